/** Draws curves with uPlot: the part before a seam thin and dashed, the seam as a tick with a diamond. */
const chart = (() => {
  "use strict";
  const { el, foreign } = elements;

  const HEIGHT = 400;
  const REACH = 40;
  const SERIES = 8;
  const CLOCK = [
    // seconds between marks, their text, and what is added where a year, a day or a minute begins
    [3600 * 24 * 365, "{YYYY}", null, null, null, null, null, null, 1],
    [3600 * 24 * 28, "{YYYY}-{MM}", null, null, null, null, null, null, 1],
    [3600 * 24, "{MM}-{DD}", "\n{YYYY}", null, null, null, null, null, 1],
    [60, "{HH}:{mm}", "\n{YYYY}-{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
    [1, "{HH}:{mm}:{ss}", "\n{YYYY}-{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
  ];
  const WHOLE = [0, 1, 2, 3, 4, 5, 6, 7].flatMap((power) => [1, 2, 5].map((step) => step * 10 ** power));

  /** Return a colour of the theme. */
  function themed(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  /** Return the colour of a trial; after the last one they begin again. */
  function colour(place) {
    return themed(`--series-${(place % SERIES) + 1}`);
  }

  /**
   * Draw a chart into a place, which it fills.
   * @param {HTMLElement} place
   * @param {Object} answer Of the route `experiment/curves`.
   * @param {{axis: string, is_log: boolean, hidden: Set<string>, describe: function(string): string}} how
   *   `describe` returns the hyper-parameters of a trial.
   * @returns {{left_out: number, highlight: function(number|null): void, hide: function(): void, end: function(): void}}
   */
  function draw(place, answer, how) {
    const { lines, seams, left_out } = chartData.linesOf(answer.trials, how.axis, how.is_log);
    const tip = el("div", { class: "tip", hidden: true });
    const is_shown = (trial) => !how.hidden.has(answer.trials[trial].trial_id);
    const options = {
      width: Math.max(280, place.clientWidth),
      height: HEIGHT,
      legend: { show: false },
      padding: [12, 24, 0, 0],
      cursor: { points: { show: false }, drag: { x: true, y: true, uni: 20 } },
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "UTC"),
      scales: { x: { time: how.axis === "clock", range: wide }, y: { distr: how.is_log ? 3 : 1 } },
      axes: axesOf(answer, how),
      series: [{}, ...lines.map((line) => seriesOf(line, is_shown(line.trial)))],
      hooks: {
        draw: [
          (plot) =>
            drawSeams(
              plot,
              seams.filter((seam) => is_shown(seam.trial)),
            ),
        ],
        setCursor: [
          (plot) =>
            showTip(
              plot,
              tip,
              answer,
              lines.filter((line) => is_shown(line.trial)),
              seams.filter((seam) => is_shown(seam.trial)),
              how,
            ),
        ],
      },
    };
    const plot = new uPlot(options, chartData.aligned(lines), place);
    plot.over.append(tip);
    place.dataset.lines = lines.length;
    place.dataset.seams = seams.length;
    plot.over.addEventListener("mouseleave", () => {
      tip.hidden = true;
    });
    plot.ctx.canvas.setAttribute("role", "img");
    plot.ctx.canvas.setAttribute("aria-label", describe(answer, how));
    const resize = new ResizeObserver(() =>
      plot.setSize({ width: Math.max(280, place.clientWidth), height: HEIGHT }),
    );
    resize.observe(place);

    return {
      left_out,
      highlight(trial) {
        plot.series.slice(1).forEach((series, at) => {
          series.alpha = trial === null || lines[at].trial === trial ? 1 : 0.15;
        });
        plot.redraw(false);
      },
      hide() {
        plot.batch(() => lines.forEach((line, at) => plot.setSeries(at + 1, { show: is_shown(line.trial) })));
      },
      end() {
        resize.disconnect();
        plot.destroy();
      },
    };
  }

  /** Widen a range whose steps no number could tell apart: uPlot would add them up for ever. */
  function wide(plot, low, high) {
    const least = Math.max(Math.abs(low), Math.abs(high)) * 1e-9;
    return low === null || high - low >= least ? [low, high] : [low - least / 2, high + least / 2];
  }

  function describe(answer, how) {
    const seams = answer.trials.reduce((sum, trial) => sum + trial.seams.length, 0);
    return (
      `${answer.metric} of ${words.counted(answer.trials.length, "trial")} over ${chartData.X_NAMES[how.axis]}, ` +
      `with ${words.counted(seams, "seam")}. The table below has the values.`
    );
  }

  function axesOf(answer, how) {
    const look = {
      stroke: themed("--muted"),
      grid: { stroke: themed("--grid"), width: 1 },
      ticks: { stroke: themed("--grid"), width: 1 },
      font: "12px Inter, system-ui, sans-serif",
      labelFont: "12px Inter, system-ui, sans-serif",
      labelSize: 20,
    };
    const plain = (plot, values) => values.map((value) => (value === null ? "" : words.number(value)));
    return [
      {
        ...look,
        label: chartData.X_NAMES[how.axis],
        size: how.axis === "clock" ? 48 : 34,
        values: how.axis === "clock" ? CLOCK : plain,
        ...(how.axis === "iteration" ? { incrs: WHOLE } : {}),
      },
      { ...look, label: answer.metric, size: 64, ...(how.is_log ? {} : { values: plain }) },
    ];
  }

  function seriesOf(line, show) {
    const stroke = colour(line.trial);
    return {
      show,
      stroke,
      width: line.is_earlier ? 1.25 : 2.25,
      dash: line.is_earlier ? [5, 4] : [],
      points: { show: line.points.length === 1, size: 6, fill: stroke },
    };
  }

  function drawSeams(plot, seams) {
    const { ctx } = plot;
    const ratio = uPlot.pxRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(plot.bbox.left, plot.bbox.top, plot.bbox.width, plot.bbox.height);
    ctx.clip();
    for (const seam of seams) {
      const x = plot.valToPos(seam.x, "x", true);
      const y = seam.y === null ? plot.bbox.top + plot.bbox.height / 2 : plot.valToPos(seam.y, "y", true);
      ctx.strokeStyle = colour(seam.trial);
      ctx.fillStyle = themed("--ground");
      ctx.lineWidth = 1.75 * ratio;
      ctx.setLineDash([]);
      ctx.beginPath();
      ctx.moveTo(x, y - 16 * ratio);
      ctx.lineTo(x, y + 16 * ratio);
      ctx.stroke();
      ctx.beginPath();
      ctx.moveTo(x, y - 5 * ratio);
      ctx.lineTo(x + 5 * ratio, y);
      ctx.lineTo(x, y + 5 * ratio);
      ctx.lineTo(x - 5 * ratio, y);
      ctx.closePath();
      ctx.fill();
      ctx.stroke();
    }
    ctx.restore();
  }

  function showTip(plot, tip, answer, lines, seams, how) {
    const { left, top } = plot.cursor;
    const project = (x, y) => [plot.valToPos(x, "x"), plot.valToPos(y, "y")];
    const found = left >= 0 ? chartData.nearest(lines, project, left, top, REACH) : null;
    tip.hidden = !found;
    if (!found) return;
    const [x, y] = found.point;
    const trial = answer.trials[found.line.trial];
    const seam = seams.findLast((one) => one.trial === found.line.trial && one.x === x && one.y === y);
    const mark = el("span", { class: "swatch" });
    mark.style.background = colour(found.line.trial);
    tip.replaceChildren(
      el("div", {}, mark, el("strong", {}, foreign(trial.trial_id))),
      el("div", {}, foreign(answer.metric), ": ", words.number(y)),
      el(
        "div",
        { class: "small" },
        how.axis === "clock"
          ? words.exact(new Date(x * 1000).toISOString())
          : `${words.number(x)} ${chartData.X_NAMES[how.axis]}`,
      ),
      seam
        ? el(
            "div",
            { class: "small" },
            "first result after restore ",
            foreign(seam.restore_id || "(unknown)"),
            seam.at ? `, ${words.exact(seam.at)}` : "",
          )
        : "",
      el("div", { class: "small faint parameters" }, foreign(how.describe(trial.trial_id))),
      found.line.is_earlier ? el("div", { class: "small faint" }, "before a restore") : "",
    );
    const [px, py] = project(x, y);
    const is_right = px > plot.over.clientWidth / 2;
    tip.style.left = `${is_right ? px - tip.offsetWidth - 12 : px + 12}px`;
    tip.style.top = `${Math.max(0, Math.min(py - 20, plot.over.clientHeight - tip.offsetHeight))}px`;
  }

  return { draw, colour };
})();

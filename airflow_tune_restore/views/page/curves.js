/** The tab of curves: which trials, which metric, over what; a legend, and the same as a table. */
const curves = (() => {
  "use strict";
  const { el, foreign, field, select, button } = elements;

  const TOP = 8; // as many as there are colours

  /**
   * Draw the tab.
   * @param {HTMLElement} panel
   * @param {Object} context
   * @returns {function(): void} Ends it.
   */
  function draw(panel, context) {
    const { about, place, signal } = context;
    const state = page.state();
    const how = { axis: state.x in chartData.X_NAMES ? state.x : "iteration", is_log: state.log === "y", hidden: new Set(),
      describe: (id) => parameters(about, id) };
    const wanted = { which: state.which || (trials.picked().length ? "picked" : "best"), top: Number(state.top) || TOP };
    const metric = el("span");
    const area = el("div", { class: "chart", id: "chart" });
    const legend = el("div", { class: "legend", role: "group", "aria-label": "Trials of the chart" });
    const below = el("div", { class: "below" });
    const remarks = el("div", { class: "remarks" });
    let answer = null;
    let drawn = null;
    let asked = 0;

    const top = el("input", { type: "number", min: 1, max: trials.MAX_PICKED, value: String(wanted.top), id: "top", onchange: () => {
      wanted.top = Math.max(1, Math.min(trials.MAX_PICKED, Number(top.value) || TOP));
      top.value = wanted.top;
      page.remember({ top: String(wanted.top) });
      read();
    } });
    const which = select(choices(context), wanted.which, (value) => {
      wanted.which = value;
      page.remember({ which: value });
      read();
    }, { id: "which" });
    const axis = select([["iteration", "iterations"], ["time", "seconds trained"], ["clock", "clock time"]], how.axis, (value) => {
      how.axis = value;
      page.remember({ x: value === "iteration" ? null : value });
      show();
    }, { id: "axis" });
    const log = el("input", { type: "checkbox", checked: how.is_log, id: "log", onchange: () => {
      how.is_log = log.checked;
      page.remember({ log: log.checked ? "y" : null });
      show();
    } });
    panel.append(
      el("div", { class: "toolbar" }, field("Trials", which), field("At most", top), metric, field("Over", axis),
        el("label", { class: "check" }, log, "Log scale")),
      remarks, area, legend, below);

    async function read() {
      const turn = ++asked;
      how.hidden.clear();
      if (wanted.which === "failed") await trials.fetchMissing(context, ["cause"]).catch(() => {}); // then by status alone
      const ids = chosenIds(context, wanted);
      if (!ids.length) {
        nothing(wanted.which);
        return;
      }
      if (!answer) area.replaceChildren(notices.loading("Reading the results…"));
      area.setAttribute("aria-busy", "true");
      try {
        const got = await source.get("experiment/curves", { ...place, metric: page.state().metric || about.metric, trial: ids }, signal);
        if (turn !== asked) return; // something else was asked for meanwhile, or the tab was left
        answer = got;
        area.removeAttribute("aria-busy");
        drawMetric();
        show();
      } catch (error) {
        if (signal.aborted || turn !== asked) return;
        clear();
        area.replaceChildren(notices.failure(error, read));
      }
    }

    function drawMetric() {
      const names = [...new Set([answer.metric, ...(source.report ? [] : answer.metrics)])].filter(Boolean);
      metric.replaceChildren(field("Metric", select(names.map((name) => [name, name]), answer.metric, (name) => {
        page.remember({ metric: name });
        read();
      }, { id: "metric" })));
    }

    function clear() {
      drawn?.end();
      drawn = null;
      [area, legend, below, remarks].forEach((each) => each.replaceChildren());
    }

    function show() {
      clear();
      const has_points = answer.trials.some((trial) => trial.value.some((value) => value !== null));
      if (!has_points) area.append(noPoints(answer));
      else drawn = chart.draw(area, answer, how);
      remarks.append(...remarksOf(answer, drawn?.left_out ?? 0));
      legend.append(...answer.trials.map(entry));
      below.append(tableOf(answer, context));
    }

    function entry(trial, at) {
      const swatch = el("span", { class: "swatch" });
      swatch.style.background = chart.colour(at);
      const made = button([swatch, foreign(trial.trial_id), trial.seams.length ? el("span", { class: "faint" }, ` ◆ ${trial.seams.length}`) : ""], () => {
        if (!how.hidden.delete(trial.trial_id)) how.hidden.add(trial.trial_id);
        made.setAttribute("aria-pressed", String(!how.hidden.has(trial.trial_id)));
        drawn?.hide();
      }, { class: "chip", title: `${parameters(about, trial.trial_id)}\n(click: hide or show)`, "aria-pressed": String(!how.hidden.has(trial.trial_id)),
        "data-trial": trial.trial_id, onmouseenter: () => drawn?.highlight(at), onmouseleave: () => drawn?.highlight(null),
        onfocus: () => drawn?.highlight(at), onblur: () => drawn?.highlight(null) });
      return made;
    }

    function nothing(kind) {
      clear();
      answer = null;
      area.replaceChildren(kind === "picked"
        ? notices.empty("No trial is chosen", el("p", {}, "Tick trials in the Trials tab, or show the best ones."),
          button("The best ones", () => { which.value = "best"; which.dispatchEvent(new Event("change")); }, { class: "button primary" }))
        : notices.empty("No trial to draw", el("p", {}, "No trial has reported a result yet.")));
    }

    const forget = page.onTheme(() => answer && show());
    read();
    return () => {
      asked += 1;
      forget();
      clear();
    };
  }

  function choices({ about }) {
    if (source.report) return [["best", "in the report"], ["picked", `chosen (${trials.picked().length})`]];
    return [["best", about.metric ? `best by ${about.metric}` : "first"], ["failed", "failed before"],
      ["picked", `chosen (${trials.picked().length})`]];
  }

  function hasFailed(about, row) {
    return row.status === "ERROR" || Boolean(about.trials.columns.cause?.[row.at]) || row.id in about.quarantine;
  }

  function chosenIds({ about, rows }, { which, top }) {
    if (which === "picked") return trials.picked().slice(0, top < TOP ? TOP : trials.MAX_PICKED);
    const drawable = source.drawable;
    if (drawable) return drawable.slice(0, top);
    const scores = about.trials.columns[trials.metricColumn(about)] ?? [];
    const column = { value: (row) => (typeof scores[row.at] === "number" ? scores[row.at] : null) };
    const offered = which === "failed" ? rows.filter((row) => hasFailed(about, row)) : rows;
    return table.sortRows(offered, column, about.mode !== "min").slice(0, top).map((row) => row.id);
  }

  function remarksOf(answer, left_out) {
    const problems = answer.trials.filter((trial) => trial.problem).map((trial) => `${trial.trial_id}: ${trial.problem}`);
    const has_seams = answer.trials.some((trial) => trial.seams.length);
    return [
      has_seams && el("p", { class: "faint small key" }, el("span", { class: "line dashed" }), "before a restore ",
        el("span", { class: "line" }), "after it ", el("span", { class: "diamond" }, "◆"), " the seam: first result after a restore. Drag to zoom, double-click to go back."),
      left_out && notices.notice("info", `${words.counted(left_out, "value")} of 0 or less cannot be shown on a log scale.`),
      notices.warnings(problems),
    ].filter(Boolean);
  }

  function noPoints(answer) {
    return notices.empty("No values to draw",
      el("p", {}, "These trials have no numeric value of ", foreign(answer.metric || "the metric"), "."),
      answer.metrics.length ? el("p", {}, "Choose another metric above: ", foreign(answer.metrics.slice(0, 10).join(", "))) : null);
  }

  function parameters(about, id) {
    const at = about.trials.ids.indexOf(id);
    return Object.entries(about.trials.columns).filter(([name]) => name.startsWith("config/"))
      .map(([name, column]) => `${name.slice(7)} = ${words.number(column[at])}`).join("\n") || "no parameter differs";
  }

  function tableOf(answer, { about }) {
    const number = (value) => value.filter((each) => each !== null);
    const columns = [
      { key: "trial", label: "Trial", value: (row) => row.trial_id,
        cell: (row) => el("span", { title: parameters(about, row.trial_id) }, foreign(row.trial_id)) },
      { key: "first", label: "First", is_numeric: true, value: (row) => number(row.value)[0] ?? null },
      { key: "last", label: "Last", is_numeric: true, value: (row) => number(row.value).at(-1) ?? null },
      { key: "iterations", label: "Last iteration", is_numeric: true, value: (row) => row.iteration.at(-1) ?? null },
      { key: "seams", label: "Seams", value: (row) => row.seams.length || null,
        cell: (row) => row.seams.map((seam) => el("div", { class: "small" }, `from iteration ${words.number(seam.iteration)} `,
          el("span", { class: "faint" }, foreign(seam.restore_id ?? ""), " ", seam.at ? words.ago(seam.at) : ""))) },
      { key: "parameters", label: "Hyper-parameters", value: (row) => parameters(about, row.trial_id).replaceAll("\n", ", ") },
    ];
    const made = table.create({ id: "curve-values", caption: "The curves as values", columns, name: (row) => row.trial_id });
    made.setRows(answer.trials);
    return made.element;
  }

  return { draw };
})();

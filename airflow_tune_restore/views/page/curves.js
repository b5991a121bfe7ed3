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
    const how = {
      axis: Object.hasOwn(chartData.X_NAMES, state.x ?? "") ? state.x : "iteration",
      is_log: state.log === "y",
      hidden: new Set(),
      describe: (id) => curveValues.parameters(about, id),
    };
    const wanted = {
      which: state.which || (trials.picked().length ? "picked" : "best"),
      top: Number(state.top) || TOP,
    };
    const metric = el("span");
    const area = el("div", { class: "chart", id: "chart" });
    const legend = el("div", { class: "legend", role: "group", "aria-label": "Trials of the chart" });
    const below = el("div", { class: "below" });
    const remarks = el("div", { class: "remarks" });
    let answer = null;
    let drawn = null;
    let asked = 0;

    const top = el("input", {
      type: "number",
      min: 1,
      max: trials.MAX_PICKED,
      value: String(wanted.top),
      id: "top",
      onchange: () => {
        wanted.top = Math.max(1, Math.min(trials.MAX_PICKED, Number(top.value) || TOP));
        top.value = wanted.top;
        page.remember({ top: String(wanted.top) });
        read();
      },
    });
    const which = select(
      choices(context),
      wanted.which,
      (value) => {
        wanted.which = value;
        page.remember({ which: value });
        read();
      },
      { id: "which" },
    );
    const axis = select(
      [
        ["iteration", "iterations"],
        ["time", "seconds trained"],
        ["clock", "clock time"],
      ],
      how.axis,
      (value) => {
        how.axis = value;
        page.remember({ x: value === "iteration" ? null : value });
        show();
      },
      { id: "axis" },
    );
    const log = el("input", {
      type: "checkbox",
      checked: how.is_log,
      id: "log",
      onchange: () => {
        how.is_log = log.checked;
        page.remember({ log: log.checked ? "y" : null });
        show();
      },
    });
    panel.append(
      el(
        "div",
        { class: "toolbar" },
        field("Trials", which),
        field("At most", top),
        metric,
        field("Over", axis),
        el("label", { class: "check" }, log, "Log scale"),
      ),
      remarks,
      area,
      legend,
      below,
    );

    async function read() {
      const turn = ++asked;
      how.hidden.clear();
      if (wanted.which === "failed") await trialColumns.fetchMissing(context, ["cause"]).catch(() => {}); // then by status alone
      const ids = chosenIds(context, wanted);
      if (!ids.length) {
        nothing(wanted.which);
        return;
      }
      if (!answer) area.replaceChildren(notices.loading("Reading the results…"));
      area.setAttribute("aria-busy", "true");
      try {
        const got = await source.get(
          "experiment/curves",
          { ...place, metric: page.state().metric || about.metric, trial: ids },
          signal,
        );
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
      metric.replaceChildren(
        field(
          "Metric",
          select(
            names.map((name) => [name, name]),
            answer.metric,
            (name) => {
              page.remember({ metric: name });
              read();
            },
            { id: "metric" },
          ),
        ),
      );
    }

    function clear() {
      drawn?.end();
      drawn = null;
      [area, legend, below, remarks].forEach((each) => each.replaceChildren());
    }

    function show() {
      clear();
      const has_points = answer.trials.some((trial) => trial.value.some((value) => value !== null));
      if (!has_points) area.append(curveValues.noPoints(answer));
      else drawn = chart.draw(area, answer, how);
      remarks.append(...curveValues.remarksOf(answer, drawn?.left_out ?? 0));
      legend.append(...answer.trials.map(entry));
      below.append(curveValues.tableOf(answer, context));
    }

    function entry(trial, at) {
      const swatch = el("span", { class: "swatch" });
      swatch.style.background = chart.colour(at);
      const made = button(
        [
          swatch,
          foreign(trial.trial_id),
          trial.seams.length ? el("span", { class: "faint" }, ` ◆ ${trial.seams.length}`) : "",
        ],
        () => {
          if (!how.hidden.delete(trial.trial_id)) how.hidden.add(trial.trial_id);
          made.setAttribute("aria-pressed", String(!how.hidden.has(trial.trial_id)));
          drawn?.hide();
        },
        {
          class: "chip",
          title: `${curveValues.parameters(about, trial.trial_id)}\n(click: hide or show)`,
          "aria-pressed": String(!how.hidden.has(trial.trial_id)),
          "data-trial": trial.trial_id,
          onmouseenter: () => drawn?.highlight(at),
          onmouseleave: () => drawn?.highlight(null),
          onfocus: () => drawn?.highlight(at),
          onblur: () => drawn?.highlight(null),
        },
      );
      return made;
    }

    function nothing(kind) {
      clear();
      answer = null;
      area.replaceChildren(
        kind === "picked"
          ? notices.empty(
              "No trial is chosen",
              el("p", {}, "Tick trials in the Trials tab, or show the best ones."),
              button(
                "The best ones",
                () => {
                  which.value = "best";
                  which.dispatchEvent(new Event("change"));
                },
                { class: "button primary" },
              ),
            )
          : notices.empty("No trial to draw", el("p", {}, "No trial has reported a result yet.")),
      );
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
    if (source.report)
      return [
        ["best", "in the report"],
        ["picked", `chosen (${trials.picked().length})`],
      ];
    return [
      ["best", about.metric ? `best by ${about.metric}` : "first"],
      ["failed", "failed before"],
      ["picked", `chosen (${trials.picked().length})`],
    ];
  }

  function hasFailed(about, row) {
    return (
      row.status === "ERROR" ||
      Boolean(about.trials.columns.cause?.[row.at]) ||
      Object.hasOwn(about.quarantine, row.id)
    );
  }

  function chosenIds({ about, rows }, { which, top }) {
    if (which === "picked") return trials.picked().slice(0, top < TOP ? TOP : trials.MAX_PICKED);
    const drawable = source.drawable;
    if (drawable) return drawable.slice(0, top);
    const scores = about.trials.columns[trialColumns.metricColumn(about)] ?? [];
    const column = { value: (row) => (typeof scores[row.at] === "number" ? scores[row.at] : null) };
    const offered = which === "failed" ? rows.filter((row) => hasFailed(about, row)) : rows;
    return table
      .sortRows(offered, column, about.mode !== "min")
      .slice(0, top)
      .map((row) => row.id);
  }

  return { draw };
})();

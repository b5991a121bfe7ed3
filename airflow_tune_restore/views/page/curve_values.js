/** The curves as values: a table of them, the hyper-parameters of a trial, and remarks on what is drawn. */
const curveValues = (() => {
  "use strict";
  const { el, foreign } = elements;

  const NAMED = 5;

  function remarksOf(answer, left_out) {
    const has_values = answer.trials.some((trial) => trial.value.some((value) => value !== null));
    const has_seams = answer.trials.some((trial) => trial.seams.length);
    return [
      has_seams &&
        el(
          "p",
          { class: "faint small key" },
          el("span", { class: "line dashed" }),
          "before a restore ",
          el("span", { class: "line" }),
          "after it ",
          el("span", { class: "diamond" }, "◆"),
          " the seam: first result after a restore.",
        ),
      has_values && el("p", { class: "faint small" }, "Drag to zoom, double-click to go back."),
      left_out &&
        notices.notice(
          "info",
          `${words.counted(left_out, "value")} of 0 or less cannot be shown on a log scale.`,
        ),
      notices.warnings(problemsOf(answer)),
    ].filter(Boolean);
  }

  /** Return each problem once, with the trials that have it: the first ones by their ids. */
  function problemsOf(answer) {
    const ids = new Map();
    for (const { trial_id, problem } of answer.trials) {
      if (problem) ids.set(problem, [...(ids.get(problem) ?? []), trial_id]);
    }
    return [...ids].map(([problem, all]) => {
      const more = all.length > NAMED ? ` and ${words.counted(all.length - NAMED, "more trial")}` : "";
      return `${all.slice(0, NAMED).join(", ")}${more}: ${problem}`;
    });
  }

  function noPoints(answer) {
    return notices.empty(
      "No values to draw",
      el("p", {}, "These trials have no numeric value of ", foreign(answer.metric || "the metric"), "."),
      answer.metrics.length
        ? el("p", {}, "Choose another metric above: ", foreign(answer.metrics.slice(0, 10).join(", ")))
        : null,
    );
  }

  function parameters(about, id) {
    const at = about.trials.ids.indexOf(id);
    return (
      Object.entries(about.trials.columns)
        .filter(([name]) => name.startsWith("config/"))
        .map(([name, column]) => `${name.slice(7)} = ${words.number(column[at])}`)
        .join("\n") || "no parameter differs"
    );
  }

  function tableOf(answer, { about }) {
    const number = (value) => value.filter((each) => each !== null);
    const columns = [
      {
        key: "trial",
        label: "Trial",
        value: (row) => row.trial_id,
        cell: (row) => el("span", { title: parameters(about, row.trial_id) }, foreign(row.trial_id)),
      },
      { key: "first", label: "First", is_numeric: true, value: (row) => number(row.value)[0] ?? null },
      { key: "last", label: "Last", is_numeric: true, value: (row) => number(row.value).at(-1) ?? null },
      {
        key: "iterations",
        label: "Last iteration",
        is_numeric: true,
        value: (row) => row.iteration.at(-1) ?? null,
      },
      {
        key: "seams",
        label: "Seams",
        value: (row) => row.seams.length || null,
        cell: (row) =>
          row.seams.map((seam) =>
            el(
              "div",
              { class: "small" },
              `from iteration ${words.number(seam.iteration)} `,
              el(
                "span",
                { class: "faint" },
                foreign(seam.restore_id ?? ""),
                " ",
                seam.at ? words.ago(seam.at) : "",
              ),
            ),
          ),
      },
      {
        key: "parameters",
        label: "Hyper-parameters",
        value: (row) => parameters(about, row.trial_id).replaceAll("\n", ", "),
      },
    ];
    const made = table.create({
      id: "curve-values",
      caption: "The curves as values",
      columns,
      name: (row) => row.trial_id,
    });
    made.setRows(answer.trials);
    return made.element;
  }

  return { remarksOf, noPoints, parameters, tableOf };
})();

/** The history of restores: who and when, before and after, and undo. */
const restores = (() => {
  "use strict";
  const { el, foreign, link, button, facts } = elements;

  /**
   * Draw the tab.
   * @param {HTMLElement} panel
   * @param {Object} context
   */
  async function draw(panel, context) {
    const { place, signal } = context;
    panel.replaceChildren(notices.loading("Reading the restores…"));
    try {
      const answer = await source.get("experiment/restores", place, signal);
      panel.replaceChildren(...body(answer, context));
      if (!panel.isConnected) return; // another tab was chosen meanwhile
      const first = answer.restores.find((one) => one.state === "committed");
      const wanted = page.state().restore ?? first?.restore_id;
      panel.querySelector(`[data-restore="${CSS.escape(wanted ?? "")}"] .changes-of`)?.click();
    } catch (error) {
      if (!signal.aborted) panel.replaceChildren(notices.failure(error, () => draw(panel, context)));
    }
  }

  function body({ restores: all, undo }, context) {
    if (!all.length) {
      return [
        notices.empty(
          "No restore yet",
          el(
            "p",
            {},
            "Restores of this experiment are listed here, with who began them and what they changed.",
          ),
          el("p", {}, "The Plan tab shows what one would do."),
        ),
      ];
    }
    return [
      undoPart(undo, context),
      el(
        "ol",
        { class: "restores" },
        all.map((one) => entry(one, context)),
      ),
    ];
  }

  function undoPart(undo, { about, reread }) {
    if (source.report || (!undo.restore_id && !undo.why_not)) return "";
    return el(
      "section",
      { class: "undo" },
      actions.undo(about, undo, reread),
      el(
        "span",
        { class: "faint" },
        undo.why_not
          ? foreign(undo.why_not)
          : [
              "The newest commit, ",
              foreign(undo.restore_id),
              ", can be undone: nothing newer was written since.",
            ],
      ),
    );
  }

  function entry(one, context) {
    const place = el("div", { class: "changes", hidden: true });
    const is_over = ["committed", "undone"].includes(one.state);
    const run = one.dag_run;
    const opener = button(
      "Before and after",
      () => {
        place.hidden = !place.hidden;
        opener.setAttribute("aria-expanded", String(!place.hidden));
        page.remember({ restore: place.hidden ? null : one.restore_id });
        if (!place.hidden && !place.firstChild) changes(place, one.restore_id, context);
      },
      { class: "button small changes-of", "aria-expanded": "false" },
    );
    return el(
      "li",
      { "data-restore": one.restore_id },
      el(
        "div",
        { class: "title" },
        words.badge(one.state),
        el("strong", {}, foreign(one.restore_id)),
        el("span", { class: "grow" }),
        is_over ? opener : "",
        source.report
          ? ""
          : link(
              {
                view: "restore",
                prefix: context.place.prefix,
                path: context.place.path,
                restore_id: one.restore_id,
              },
              one.state === "running" ? "Watch it live" : "Its trials",
            ),
      ),
      facts([
        ["Began", one.began && words.ago(one.began)],
        ["Committed", one.committed && words.ago(one.committed)],
        ["By", one.holder],
        [
          "DAG run",
          run && (source.report ? `${run.dag_id} / ${run.run_id}` : actions.runLink(run.dag_id, run.run_id)),
        ],
        ["To run", one.to_run === null ? null : `${words.number(one.to_run)} of ${words.number(one.total)}`],
        ["Strategy", one.strategy?.replaceAll("_", " ")],
        ["Flags", describeFlags(one.flags)],
        ["Wrote", one.state_file],
      ]),
      one.note ? el("p", {}, foreign(one.note)) : "",
      place,
    );
  }

  function describeFlags(flags) {
    return Object.entries(flags ?? {})
      .map(([name, value]) => (value === true ? name : `${name}: ${value}`))
      .join(", ");
  }

  async function changes(place, id, context) {
    place.replaceChildren(notices.loading("Reading before and after…"));
    try {
      const answer = await source.get(
        "experiment/restore",
        { ...context.place, restore_id: id },
        context.signal,
      );
      place.replaceChildren(...changesBody(answer));
    } catch (error) {
      if (!context.signal.aborted) place.replaceChildren(notices.failure(error));
    }
  }

  function changesBody({ headline, metric, changes: all, hidden, problem }) {
    const was_run = (row) => row.action !== "keep";
    const columns = [
      {
        key: "trial",
        label: "Trial",
        value: (row) => row.trial_id,
        cell: (row) => [
          foreign(row.trial_id),
          row.final_trial_id && row.final_trial_id !== row.trial_id
            ? el("div", { class: "small faint" }, "now ", foreign(row.final_trial_id))
            : "",
        ],
      },
      { key: "action", label: "Action", value: (row) => row.action },
      {
        key: "status",
        label: "Status",
        value: (row) => row.status_after,
        cell: (row) =>
          row.status_before === row.status_after
            ? words.badge(row.status_after)
            : arrow(row.status_before && words.badge(row.status_before), words.badge(row.status_after)),
      },
      {
        key: "iteration",
        label: "Iterations",
        is_numeric: true,
        value: (row) => row.iteration_after,
        cell: (row) => arrow(words.number(row.iteration_before), words.number(row.iteration_after)),
      },
      {
        key: "metric",
        label: metric || "Metric",
        is_numeric: true,
        value: (row) => row.metric_after,
        cell: (row) => arrow(words.number(row.metric_before), words.number(row.metric_after)),
      },
      { key: "note", label: "Note", value: (row) => row.note },
    ];
    const list = table.create({
      id: "changes",
      caption: "Trials before and after",
      columns,
      name: (row) => row.trial_id,
    });
    list.setRows([...all].sort((one, other) => was_run(other) - was_run(one)));
    return [
      headline && el("p", {}, foreign(headline)),
      problem && notices.warnings([problem]),
      all.length ? list.element : null,
      hidden
        ? el("p", { class: "faint" }, `${words.counted(hidden, "more trial")} not shown: they were not run.`)
        : null,
    ].filter(Boolean);
  }

  function arrow(before, after) {
    const is_same = typeof before === "string" && before === after;
    return el(
      "span",
      { class: "arrow" },
      is_same ? after : [before ?? words.NOTHING, el("span", { class: "faint" }, " → "), after],
    );
  }

  return { draw };
})();

/** The tab on a DAG run, and on a task instance: the restores that this run has planned. */
const dagRun = (() => {
  "use strict";
  const { el, foreign, link, button } = elements;

  /**
   * Draw the restores of the DAG run of the address; one alone is shown live at once.
   * @param {HTMLElement} root
   * @param {Object<string, string>} state
   * @param {AbortSignal} signal
   */
  function draw(root, state, signal) {
    // Airflow before 3.3 puts the id into the address as it is: its plus reads as a space, which no id has
    const run_id = state.run_id?.replaceAll(" ", "+");
    page.locate([
      [state.dag_id, null],
      [run_id, null],
      ...(state.task_id ? [[state.task_id, null]] : []),
    ]);
    root.append(notices.loading("Looking for the restores of this run…"));

    async function read() {
      try {
        const asked = {
          dag_id: state.dag_id,
          run_id,
          task_id: state.task_id,
          map_index: state.map_index,
        };
        show(await source.get("dag_run", asked, signal));
      } catch (error) {
        if (!signal.aborted)
          root.replaceChildren(notices.failure(error, read, "The restores of this run could not be read."));
      }
    }

    function show({ restores: all, trial, hidden }) {
      root.replaceChildren(
        el("h1", {}, all.length === 1 ? ["Restore of ", foreign(all[0].name)] : "Restores of this run"),
      );
      if (!all.length) root.append(nothing(read));
      else if (all.length === 1) one(all[0], trial);
      else
        root.append(
          list(all),
          hidden ? el("p", { class: "faint" }, `${words.counted(hidden, "more restore")} not shown.`) : "",
        );
    }

    function one(it, trial) {
      const problem = notices.warnings([it.problem].filter(Boolean));
      root.append(
        el("p", {}, it.outcome && words.badge(it.outcome), " ", foreign(it.reason ?? "")),
        problem ?? "",
      );
      if (!it.problem && it.restore_id)
        restore.watch(root, { prefix: it.prefix, path: it.path, restore_id: it.restore_id, trial }, signal);
      else if (!it.problem) root.append(el("p", {}, toExperiment(it)));
    }

    read();
  }

  function nothing(read) {
    return notices.empty(
      "This run has planned no restore",
      el(
        "p",
        {},
        "Either its plan task has not run yet, it found nothing to restore, or this DAG restores no experiments.",
      ),
      button([icons.make("refresh"), "Look again"], read),
      el("p", {}, link({ view: "experiments" }, "All experiments")),
    );
  }

  function toExperiment(it) {
    return link({ view: "experiment", prefix: it.prefix, path: it.path }, foreign(it.name));
  }

  function list(all) {
    const made = table.create({
      id: "run-restores",
      caption: "Restores of this run",
      name: (row) => row.path,
      columns: [
        {
          key: "name",
          label: "Experiment",
          value: (row) => row.name,
          cell: (row) => (row.problem ? foreign(row.name) : toExperiment(row)),
        },
        {
          key: "outcome",
          label: "Outcome",
          value: (row) => row.outcome,
          cell: (row, value) => (value ? words.badge(value) : words.NOTHING),
        },
        { key: "reason", label: "Reason", value: (row) => row.problem || row.reason },
        {
          key: "restore",
          label: "Restore",
          value: (row) => row.restore_id,
          cell: (row, value) =>
            !value
              ? words.NOTHING
              : row.problem
                ? foreign(value)
                : link(
                    { view: "restore", prefix: row.prefix, path: row.path, restore_id: value },
                    foreign(value),
                  ),
        },
      ],
    });
    made.setRows(all);
    return made.element;
  }

  return { draw };
})();

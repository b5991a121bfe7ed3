/** One restore, live: the state of each trial, asked for again until it is over or nobody looks. */
const restore = (() => {
  "use strict";
  const { el, foreign, link, facts } = elements;

  const POLL_MILLISECONDS = 5000;
  const TASKS_OF_A_PAGE = 100; // Airflow gives no more by default
  const MOST_TASKS = 2500; // a little more than the trials that a restore is shown with
  const STATES = ["failed", "interrupted", "silent", "running", "paused", "waiting", "ended", "finished"];

  /**
   * Draw the restore of the address.
   * @param {HTMLElement} root
   * @param {Object<string, string>} state
   * @param {AbortSignal} signal
   */
  function draw(root, state, signal) {
    const place = { prefix: state.prefix, path: state.path ?? "" };
    const back = { view: "experiment", ...place, tab: "restores" };
    page.locate([
      [state.prefix, { view: "experiments", prefix: state.prefix }],
      [state.path || state.prefix, back],
      [state.restore_id, null],
    ]);
    root.append(el("h1", {}, "Restore ", foreign(state.restore_id)));
    watch(root, { ...place, restore_id: state.restore_id, trial: state.trial ?? null }, signal);
  }

  /**
   * Draw a restore into a place, and keep it fresh.
   * @param {HTMLElement} root
   * @param {{prefix: string, path: string, restore_id: string, trial: string|null}} what `trial` is marked.
   * @param {AbortSignal} signal
   */
  function watch(root, what, signal) {
    const head = el("div", { class: "live" });
    const list = table.create({
      id: "progress",
      caption: "Trials of the restore",
      columns: columns(new Map(), null),
      sort: "state",
      name: (row) => row.trial_id,
      isChosen: (row) => row.trial_id === what.trial,
      empty: notices.loading("Reading the progress…"),
    });
    const { trial, ...asked } = what;
    let timer = null;
    let is_over = false;
    let tasks = new Map();
    root.append(head, list.element);

    async function read() {
      clearTimeout(timer);
      try {
        const answer = await source.get("experiment/progress", asked, signal);
        is_over = answer.is_over && !answer.pending; // some ends are read at the next look
        tasks = await tasksOf(answer.dag_run, tasks, answer.trials, signal);
        list.setColumns(columns(tasks, answer.dag_run));
        list.setRows(answer.trials);
        if (!answer.trials.length)
          list.element
            .querySelector(".nothing")
            .replaceChildren(notices.empty("No trial runs in this restore"));
        head.replaceChildren(...headline(answer, asked));
        if (is_over) elements.announce("The restore is over.");
      } catch (error) {
        if (signal.aborted) return;
        head.replaceChildren(notices.failure(error, read));
        if (error.status && error.status !== 502) return; // asking again would not change it
      }
      next();
    }

    function next() {
      clearTimeout(timer);
      if (!is_over && !document.hidden && !signal.aborted) timer = setTimeout(read, POLL_MILLISECONDS);
    }

    const onHidden = () => (document.hidden ? clearTimeout(timer) : is_over || read());
    document.addEventListener("visibilitychange", onHidden, { signal });
    signal.addEventListener("abort", () => clearTimeout(timer));
    read();
  }

  /**
   * Return the mapped tasks of a DAG run by the last words of their labels, which name their trials.
   * @param {{dag_id: string, run_id: string}|null} run
   * @param {Map<string, Array<Object>>} known Those of the last time: enough if all that ran are among them.
   * @param {Array<Object>} trials
   * @param {AbortSignal} signal
   * @returns {Promise<Map<string, Array<Object>>>}
   */
  async function tasksOf(run, known, trials, signal) {
    const is_known = (row) => row.state === "waiting" || taskOf(row.trial_id, known);
    if (!run || source.report || trials.every(is_known)) return known;
    const below = `dags/${encodeURIComponent(run.dag_id)}/dagRuns/${encodeURIComponent(run.run_id)}/taskInstances`;
    const found = new Map();
    try {
      let read = 0;
      let total = 1;
      while (read < Math.min(total, MOST_TASKS)) {
        const asked = `${below}?limit=${TASKS_OF_A_PAGE}&offset=${read}`;
        const { task_instances: tasks, total_entries } = await source.airflow(asked, undefined, signal);
        if (!tasks.length) break;
        for (const task of tasks) {
          if (task.map_index < 0 || !task.rendered_map_index) continue;
          const end = lastWord(task.rendered_map_index);
          found.set(end, [...(found.get(end) ?? []), task]);
        }
        read += tasks.length;
        total = total_entries ?? read;
      }
      return found;
    } catch (error) {
      if (signal.aborted) throw error;
      return known; // whoever may not read tasks gets no links to them
    }
  }

  function lastWord(text) {
    return text.slice(text.lastIndexOf(" ") + 1);
  }

  function taskOf(trial, tasks) {
    // a label is the name of the experiment and the id of the trial
    const alike = tasks.get(lastWord(trial)) ?? [];
    return alike.find((task) => ` ${task.rendered_map_index}`.endsWith(` ${trial}`)) ?? null;
  }

  function headline(answer, place) {
    const { counts, dag_run: run } = answer;
    return [
      el(
        "p",
        { class: "numbers" },
        words.badge(answer.is_over ? "committed" : answer.note ? "left" : "running"),
        el(
          "span",
          {},
          answer.is_over ? "This restore is over, and committed." : "Read again every 5 seconds while this page is seen.",
        ),
        STATES.filter((state) => counts[state]).map((state) =>
          el("span", { class: "pill" }, `${words.number(counts[state])} ${state}`),
        ),
      ),
      notices.warnings([answer.note].filter(Boolean)) ?? "",
      facts([
        ["Read", words.ago(answer.at)],
        ["DAG run", run && actions.runLink(run.dag_id, run.run_id)],
        [
          "Experiment",
          link(
            { view: "experiment", prefix: place.prefix, path: place.path },
            foreign(place.path || place.prefix),
          ),
        ],
        [
          "Before and after",
          answer.is_over
            ? link(
                {
                  view: "experiment",
                  prefix: place.prefix,
                  path: place.path,
                  tab: "restores",
                  restore: place.restore_id,
                },
                "what it changed",
              )
            : null,
        ],
      ]),
      answer.whole ? whole(answer.whole) : "",
      answer.hidden
        ? el("p", { class: "faint" }, `${words.counted(answer.hidden, "more trial")} not shown.`)
        : "",
    ];
  }

  function whole(runner) {
    return el(
      "section",
      { class: "whole" },
      el("h2", {}, "One runner for all trials"),
      facts([
        ["State", words.badge(runner.state)],
        ["Attempt", attempts(runner)],
        ["Heard", runner.heard === null ? null : `${words.span(runner.heard)} ago`],
        ["Error", runner.error],
        ["Cause", runner.cause],
        ["Ray job", runner.ray_job],
      ]),
    );
  }

  function attempts(row) {
    return (
      [row.attempt, row.attempts]
        .filter((each) => each !== null && each !== undefined)
        .map(words.number)
        .join(" of ") || words.NOTHING
    );
  }

  function columns(tasks, run) {
    return [
      { key: "trial", label: "Trial", value: (row) => row.trial_id },
      {
        key: "state",
        label: "State",
        value: (row) => STATES.indexOf(row.state),
        cell: (row) => words.badge(row.state),
      },
      { key: "attempt", label: "Attempt", is_numeric: true, value: (row) => row.attempt, cell: attempts },
      { key: "iteration", label: "Iteration", is_numeric: true, value: (row) => row.iteration },
      {
        key: "value",
        label: "Metric",
        is_numeric: true,
        value: (row) => row.value,
        cell: (row, value) => el("span", { title: row.metric ?? "" }, words.number(value)),
      },
      {
        key: "heard",
        label: "Heard",
        title: "Since the last sign of life",
        is_numeric: true,
        value: (row) => row.heard,
        cell: (row, value) => (value === null ? words.NOTHING : `${words.span(value)} ago`),
      },
      {
        key: "error",
        label: "Error",
        value: (row) => [row.cause, row.error].filter(Boolean).join(": "),
        cell: (row, value) => el("div", { class: "clamp", title: value }, table.plain(value)),
      },
      {
        key: "log",
        label: "Log",
        value: () => null,
        cell: (row) => {
          const task = run && taskOf(row.trial_id, tasks);
          if (!task)
            return row.ray_job ? foreign(row.ray_job, { class: "small faint", title: "Ray job" }) : "";
          const below = `/tasks/${encodeURIComponent(task.task_id)}/mapped/${task.map_index}`;
          return actions.runLink(run.dag_id, run.run_id, below, "Log");
        },
      },
    ];
  }

  return { draw, watch };
})();

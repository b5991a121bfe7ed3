/** What changes something: restore now, release and undo. Each asks first, and shows the server's sentence. */
const actions = (() => {
  "use strict";
  const { el, foreign, button, facts } = elements;

  const WHY_NOT_RESTORED = {
    running:
      "It is running: a live experiment is never touched. If you are sure that its driver is dead, " +
      "set Stale after in the Plan tab.",
    finished: "It has finished: nothing is left to restore.",
    unreadable: "It cannot be read, so it cannot be restored. The Evidence tab shows why.",
  };
  const CONF_FLAGS = ["resume_unfinished", "resume_errored", "restart_errored"];

  /** Return why this user may not act; "" if he may. */
  function whyNot() {
    const { can_act: canAct, recovery_dag_id: dag } = source.settings;
    if (!dag) return "No recovery DAG is configured: set [tune_restore] recovery_dag_id.";
    return canAct ? "" : `You may not run the DAG ${dag}, so you may look, but not act.`;
  }

  /**
   * Return a button of an action; it says why it cannot be pressed. A report has none.
   * @param {Node|string|Array<Node|string>} label
   * @param {function(): void} act
   * @param {Object} [options]
   * @param {string} [options.why] A reason of its own why it cannot be done.
   * @returns {HTMLElement|null}
   */
  function actButton(label, act, { why = "", ...properties } = {}) {
    if (source.report) return null;
    const reason = whyNot() || why;
    const made = button(
      label,
      () => {
        if (!reason) act();
      },
      properties,
    );
    if (reason) {
      made.setAttribute("aria-disabled", "true"); // not `disabled`: the reason has to be reachable
      made.title = reason;
      made.append(el("span", { class: "unseen" }, ` (not possible: ${reason})`));
    }
    return made;
  }

  /**
   * Return the button that starts the recovery DAG with one experiment.
   * @param {Object} about The experiment.
   * @param {function(): Object<string, *>} flags Returns how the switches of the plan stand.
   * @returns {HTMLElement|null}
   */
  function restoreNow(about, flags) {
    const is_known_dead = about.health === "running" && flags().stale_after !== "";
    const why = is_known_dead ? "" : (WHY_NOT_RESTORED[about.health] ?? "");
    return actButton([icons.make("play"), "Restore now…"], () => confirmRestore(about, flags()), {
      why,
      class: "button primary",
      "data-action": "restore-now",
    });
  }

  function confirmRestore(about, flags) {
    const dag = source.settings.recovery_dag_id;
    const conf = { experiment: about.address, ...Object.fromEntries(CONF_FLAGS.map((name) => [name, flags[name]])) };
    conf.stale_after = plan.staleAfter(flags);
    const doubts = el("div", { class: "doubts" });
    const asked = dialog.ask({
      title: "Restore this experiment now?",
      body: [
        el("p", {}, "This starts a run of the DAG ", foreign(dag), ", as you, with:"),
        facts(Object.entries(conf).map(([name, value]) => [name, shown(name, value)])),
        doubts,
        ignored(flags),
      ],
      yes: "Start the DAG run",
      act: async () => {
        const run = await source.airflow(`dags/${encodeURIComponent(dag)}/dagRuns`, { logical_date: null, conf });
        return el("p", {}, "Started: ", runLink(dag, run.dag_run_id));
      },
    });
    doubtsAbout(dag, conf).then(({ found, is_missing }) => {
      const toDag = is_missing ? "" : frame.link(`${source.settings.airflow}/dags/${encodeURIComponent(dag)}`, "Open the DAG");
      if (found.length) doubts.replaceChildren(notices.warnings(found), toDag);
      if (is_missing) asked.refuse();
    });
  }

  function shown(name, value) {
    if (typeof value === "boolean") return value ? "yes" : "no";
    return name === "stale_after" ? `${words.number(value)} s` : value;
  }

  /**
   * Return why a run of a DAG might not do what is asked for: the DAG is paused, has no such Param, or is not there.
   * @param {string} dag
   * @param {Object<string, *>} conf
   * @returns {Promise<{found: Array<string>, is_missing: boolean}>}
   */
  async function doubtsAbout(dag, conf) {
    let details;
    try {
      details = await source.airflow(`dags/${encodeURIComponent(dag)}/details`);
    } catch (error) {
      const is_missing = error.status === 404;
      const why = `Airflow has no DAG ${dag}. Set [tune_restore] recovery_dag_id to the DAG that restores.`;
      return { found: is_missing ? [why] : [], is_missing };
    }
    const missing = Object.keys(conf).filter((name) => !Object.hasOwn(details.params ?? {}, name));
    const others = missing.filter((name) => name !== "experiment");
    const found = [
      details.is_paused && `The DAG ${dag} is paused: the run waits until somebody unpauses it.`,
      missing.includes("experiment") && `The DAG ${dag} has no Param "experiment": its run may restore all experiments of its prefix.`,
      others.length && `The DAG ${dag} has no Param for ${others.join(", ")}: it may choose by itself.`,
    ].filter(Boolean);
    return { found, is_missing: false };
  }

  function ignored(flags) {
    const others = ["resume_cut_short", "allow_scratch"].filter((name) => flags[name]);
    if (!others.length) return null;
    return notices.notice(
      "wait",
      `The DAG run does not get ${others.join(" and ")}: these count in the preview alone. ` +
        "Set them in the DAG, or use the shell.",
    );
  }

  /**
   * Return a link to a run in Airflow's own pages.
   * @param {string} dag
   * @param {string} run
   * @param {string} [below] Such as `/tasks/run_trial/mapped/3`.
   * @param {*} [text]
   * @returns {HTMLElement}
   */
  function runLink(dag, run, below = "", text = run) {
    const path = `dags/${encodeURIComponent(dag)}/runs/${encodeURIComponent(run)}${below}`;
    return frame.link(`${source.settings.airflow}/${path}`, foreign(text));
  }

  /**
   * Return the button that releases a trial from quarantine.
   * @param {Object} about The experiment.
   * @param {string} trial
   * @param {string} reason Why it is in quarantine.
   * @param {function(): void} done
   * @returns {HTMLElement|null}
   */
  function release(about, trial, reason, done) {
    return actButton(
      "Release…",
      () =>
        dialog.ask({
          title: "Release this trial from quarantine?",
          body: [
            facts([
              ["Experiment", about.name],
              ["Trial", trial],
              ["Reason", reason],
            ]),
            el("p", {}, "Its failures so far no longer count, and the next restore may run it again."),
          ],
          yes: "Release it",
          act: async () => (await source.post("experiment/release", { ...where(), trial })).message,
          done,
        }),
      { class: "button small", "data-action": "release" },
    );
  }

  /**
   * Return the button that undoes the newest commit.
   * @param {Object} about The experiment.
   * @param {Object} undo What the server foresees.
   * @param {function(): void} done
   * @returns {HTMLElement|null}
   */
  function undo(about, foreseen, done) {
    return actButton(
      [icons.make("undo"), "Undo…"],
      () =>
        dialog.ask({
          title: "Undo this restore?",
          is_danger: true,
          body: [
            facts([
              ["Experiment", about.name],
              ["Restore", foreseen.restore_id],
            ]),
            el("p", {}, "This deletes, and nothing else:"),
            el(
              "ul",
              {},
              foreseen.deletes.map((key) => el("li", {}, el("code", {}, foreign(key)))),
            ),
            foreseen.newest
              ? el("p", {}, "The newest state is then ", el("code", {}, foreign(foreseen.newest)), ".")
              : null,
          ].filter(Boolean),
          yes: "Undo it",
          act: async () =>
            (await source.post("experiment/undo", { ...where(), restore_id: foreseen.restore_id })).message,
          done,
        }),
      { why: foreseen.why_not, class: "button danger", "data-action": "undo" },
    );
  }

  function where() {
    const { prefix, path } = page.state();
    return { prefix, path: path ?? "" };
  }

  return { restoreNow, release, undo, runLink, whyNot };
})();

/** What is shown where there is nothing else: work in progress, errors, and empty places, with the next step. */
const notices = (() => {
  "use strict";
  const { el, foreign, button } = elements;

  /**
   * Return a notice.
   * @param {string} tone `info`, `good`, `wait` or `bad`.
   * @param {...*} children
   * @returns {HTMLElement}
   */
  function notice(tone, ...children) {
    const icon = { good: "check", bad: "cross", wait: "warning" }[tone] ?? "info";
    return el(
      "div",
      { class: `notice ${tone}`, role: tone === "bad" ? "alert" : "note" },
      icons.make(icon),
      el("div", {}, ...children),
    );
  }

  /**
   * Return a list of warnings of the server; null if there are none.
   * @param {Array<string>} sentences
   * @param {string} [tone]
   * @returns {HTMLElement|null}
   */
  function warnings(sentences, tone = "wait") {
    if (!sentences?.length) return null;
    return notice(
      tone,
      sentences.map((sentence) => el("p", {}, foreign(sentence))),
    );
  }

  /**
   * Return what is shown while something is read.
   * @param {string} what
   * @returns {HTMLElement}
   */
  function loading(what) {
    return el("p", { class: "loading", "aria-busy": "true" }, el("span", { class: "spinner" }), what);
  }

  /**
   * Return an empty place: what is missing, why, and what to do next.
   * @param {string} title
   * @param {...*} children
   * @returns {HTMLElement}
   */
  function empty(title, ...children) {
    return el("section", { class: "empty" }, icons.make("empty"), el("h2", {}, title), ...children);
  }

  /**
   * Return an error with its next step.
   * @param {Error} error
   * @param {function(): void} [retry]
   * @param {string} [what] What could not be read.
   * @returns {HTMLElement}
   */
  function failure(error, retry, what = "") {
    const again = retry && button([icons.make("refresh"), "Try again"], retry, { class: "button" });
    return el(
      "div",
      { class: "failure", "data-status": error.status ?? "" },
      notice(
        "bad",
        what && el("p", {}, el("strong", {}, what)),
        el("p", {}, foreign(error.message)),
        el("p", { class: "next" }, nextStep(error)),
      ),
      again,
    );
  }

  function nextStep(error) {
    if (source.report) return "The page in Airflow may have it, and so may the command tune-restore.";
    const dag = source.settings?.recovery_dag_id;
    const theDag = dag ? ["the DAG ", foreign(dag)] : ["the recovery DAG"];
    if (error.status === 401)
      return "Your session has ended. Log in to Airflow again, and load this page again.";
    if (error.status === 403) {
      return el(
        "span",
        {},
        "This page is for those who may read the runs of ",
        theDag,
        "; its buttons are for those who may run it. Ask whoever gives out permissions in your Airflow.",
      );
    }
    if (error.status === 404) return "Go back to the list: it may have been moved or deleted since.";
    if (error.status === 409) return "Load this page again to see what has changed.";
    if (error.status === 502) {
      return "The connections are under Admin → Connections, the prefixes in the section [tune_restore] of Airflow's configuration. Correct what is wrong, and try again.";
    }
    if (error.status === 0)
      return "Check the network, and whether the API server is running. Then try again.";
    return error.status
      ? ""
      : "This is a fault of the page. Load it again; if it comes back, please report it.";
  }

  /**
   * Return the configuration that the page needs, for whoever has not set it.
   * @param {string} problem
   * @returns {HTMLElement}
   */
  function notConfigured(problem) {
    const example =
      '[tune_restore]\nprefixes = {"team sweeps": "s3://my_conn@my-bucket/sweeps"}\n' +
      `recovery_dag_id = ${source.settings.recovery_dag_id || "nightly_recovery"}`;
    return empty(
      "No place to look for experiments",
      el("p", {}, foreign(problem)),
      el(
        "p",
        {},
        "Set these options in ",
        el("code", {}, "airflow.cfg"),
        ". If it has the section already, change it there: Airflow does not start with a second one. ",
        el("code", {}, "my_conn"),
        " is a connection of Airflow.",
      ),
      el("pre", { class: "example" }, example),
      el(
        "p",
        { class: "faint" },
        "As an environment variable: ",
        el("code", {}, "AIRFLOW__TUNE_RESTORE__PREFIXES"),
        ".",
      ),
    );
  }

  return { notice, warnings, loading, empty, failure, notConfigured };
})();

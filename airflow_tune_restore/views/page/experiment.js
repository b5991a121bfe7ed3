/** One experiment: what it is, why it is in this state, and its tabs. */
const experiment = (() => {
  "use strict";
  const { el, foreign, command, facts, button } = elements;

  /**
   * Draw the experiment of the address.
   * @param {HTMLElement} root
   * @param {Object<string, string>} state
   * @param {AbortSignal} signal
   * @returns {function(): void} Ends the work of its tab.
   */
  function draw(root, state, signal) {
    const place = { prefix: state.prefix, path: state.path ?? "" };
    let open = null;
    page.locate(
      [
        [state.prefix ?? "", { view: "experiments", prefix: state.prefix }],
        [state.path || (state.prefix ?? ""), null],
      ].filter(([text]) => text),
    );
    root.append(notices.loading("Reading the experiment…"));

    async function read() {
      try {
        const about = await source.get("experiment", place, signal);
        open?.leave();
        show(about);
      } catch (error) {
        if (signal.aborted) return;
        root.replaceChildren(notices.failure(error, read, "The experiment could not be read."));
      }
    }

    function show(about) {
      const context = { about, place, signal, reread: read, rows: trials.rowsOf(about) };
      page.locate(
        source.report
          ? [[about.name, null]]
          : [
              [state.prefix ?? "", { view: "experiments", prefix: state.prefix }],
              [about.name, null],
            ],
        ...(source.report
          ? [el("span", { class: "faint small" }, `Written ${words.exact(source.report.written_at)}`)]
          : [button([icons.make("refresh"), "Read again"], read)]),
      );
      open = tabs.create(
        [
          { key: "trials", label: "Trials", draw: (panel) => trials.draw(panel, context) },
          { key: "curves", label: "Curves", draw: (panel) => curves.draw(panel, context) },
          { key: "plan", label: "Plan", draw: (panel) => plan.draw(panel, context) },
          { key: "restores", label: "Restores", draw: (panel) => restores.draw(panel, context) },
          { key: "evidence", label: "Evidence", draw: (panel) => evidence.draw(panel, context) },
        ],
        page.state().tab ?? "trials",
        (tab) => page.remember({ tab }),
      );
      root.replaceChildren(
        head(context),
        ...[notices.warnings(about.warnings)].filter(Boolean),
        open.element,
      );
      open.start();
    }

    read();
    return () => open?.leave();
  }

  function head({ about, rows }) {
    const counts = {};
    for (const row of rows) counts[row.status] = (counts[row.status] ?? 0) + 1;
    const quarantined = Object.keys(about.quarantine).length;
    return el(
      "section",
      { class: "head", "aria-label": "The experiment" },
      el(
        "div",
        { class: "title" },
        el("h1", {}, foreign(about.name)),
        words.badge(about.health, about.reason),
        el("span", { class: "grow" }),
        actions.restoreNow(about, plan.flags),
      ),
      el("p", { class: "reason" }, foreign(about.reason)),
      facts([
        ["Trials", words.bar(counts)],
        ["Samples not drawn yet", about.samples_left ? words.number(about.samples_left) : null],
        ["In quarantine", quarantined ? words.number(quarantined) : null],
        ["Metric", about.metric && `${about.metric}${about.mode ? ` (${about.mode})` : ""}`],
        ["Last write", about.last_write && words.ago(about.last_write)],
        ["Trainable", about.trainable],
        ["Scheduler", about.scheduler],
        ["Place", about.place],
      ]),
      el(
        "details",
        { class: "commands" },
        el("summary", {}, "The same from a shell"),
        commands(about).map((each) => command(each)),
        el("p", { class: "faint small" }, "In place of package.module:attribute, name the trainable, as in the DAG."),
      ),
    );
  }

  function commands(about) {
    const address = quoted(about.address);
    const options = plan.options(plan.DEFAULTS);
    return [
      `tune-restore plan ${address} ${options}`,
      `tune-restore restore ${address} --trainable package.module:attribute ${options}`,
      `tune-restore report ${address} -o report.html`,
    ];
  }

  function quoted(text) {
    return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
  }

  return { draw, quoted };
})();

/** The plan of a restore as a preview, with the resume flags as switches. It writes nothing. */
const plan = (() => {
  "use strict";
  const { el, foreign, field, command } = elements;

  const FLAGS = [
    [
      "resume_unfinished",
      "Resume unfinished trials",
      "Trials that were running, pending or paused go on from their checkpoint.",
    ],
    ["resume_errored", "Resume errored trials", "Failed trials go on from their checkpoint."],
    [
      "restart_errored",
      "Restart errored trials",
      "Failed trials begin again, as new trials. Resume wins over restart.",
    ],
    ["resume_cut_short", "Resume trials cut short", "Trials that fail_fast ended when another one failed."],
    ["allow_scratch", "Allow from scratch", "A trial begins again if all its checkpoints are gone."],
  ];
  const DEFAULTS = {
    resume_unfinished: true,
    resume_errored: true,
    restart_errored: false,
    resume_cut_short: false,
    allow_scratch: false,
    stale_after: "",
  };

  const USUAL_STALE_AFTER = 1800; // of tune-restore, without the option

  const COLUMNS = [
    { key: "trial", label: "Trial", value: (row) => row.trial_id },
    { key: "status", label: "Status", value: (row) => row.status, cell: (row) => words.badge(row.status) },
    { key: "action", label: "Action", value: (row) => row.action },
    { key: "iteration", label: "Iteration", value: (row) => row.iteration, is_numeric: true },
    { key: "checkpoint", label: "Checkpoint", value: (row) => row.checkpoint },
    { key: "parameters", label: "Parameters", value: (row) => text(row.parameters) },
    { key: "runs_with", label: "Runs with", value: (row) => row.runs_with },
    {
      key: "reason",
      label: "Reason",
      value: (row) => [row.quarantined && "in quarantine", row.reason].filter(Boolean).join(": "),
    },
  ];

  function text(value) {
    return Object.entries(value ?? {})
      .map(([name, each]) => `${name}: ${each}`)
      .join(", ");
  }

  /** Return the flags as the address has them. */
  function flags() {
    const state = page.state();
    const chosen = Object.fromEntries(
      FLAGS.map(([name]) => [name, name in state ? state[name] === "true" : DEFAULTS[name]]),
    );
    return { ...chosen, stale_after: state.stale_after ? Number(state.stale_after) : "" };
  }

  /**
   * Draw the tab.
   * @param {HTMLElement} panel
   * @param {Object} context
   */
  function draw(panel, context) {
    const { about, place, signal } = context;
    const result = el("div", { id: "plan" });
    const act = el("div", { class: "buttons" });
    let asked = 0;

    async function read() {
      const turn = ++asked;
      const chosen = flags();
      act.replaceChildren(
        ...[actions.restoreNow(about, flags), source.report ? null : command(`tune-restore plan ${experiment.quoted(about.address)} ${options(chosen)}`.trim())].filter(
          Boolean,
        ),
      );
      result.setAttribute("aria-busy", "true");
      if (!result.firstChild) result.replaceChildren(notices.loading("Planning…"));
      let shown;
      try {
        shown = body(
          await source.get(
            "experiment/plan",
            { ...place, ...chosen, stale_after: staleAfter(chosen) },
            signal,
          ),
        );
      } catch (error) {
        if (signal.aborted) return;
        shown = [notices.failure(error, read)];
      }
      if (turn !== asked) return; // a switch was turned meanwhile
      result.removeAttribute("aria-busy");
      result.replaceChildren(...shown);
    }

    panel.append(
      el(
        "p",
        { class: "faint" },
        source.report
          ? "What a restore would do that resumes unfinished and errored trials."
          : "What a restore would do with these flags. This is a preview: it writes nothing.",
      ),
      source.report ? "" : switches(read),
      act,
      result,
    );
    read();
  }

  function switches(onchange) {
    const now = flags();
    const boxes = FLAGS.map(([name, label, title]) => {
      const box = el("input", {
        type: "checkbox",
        role: "switch",
        checked: now[name],
        "data-flag": name,
        onchange: () => {
          page.remember({ [name]: box.checked === DEFAULTS[name] ? null : String(box.checked) });
          onchange();
        },
      });
      return el("label", { class: "switch", title }, box, el("span", { class: "track" }), label);
    });
    const stale = el("input", {
      type: "number",
      min: 0,
      step: 60,
      value: String(now.stale_after),
      placeholder: String(source.settings.stale_after),
      id: "stale-after",
      onchange: () => {
        page.remember({ stale_after: stale.value });
        onchange();
      },
    });
    return el(
      "div",
      { class: "toolbar switches", role: "group", "aria-label": "Flags" },
      boxes,
      field(
        "Stale after (s)",
        stale,
        "An experiment counts as running until nothing was written for so long",
      ),
    );
  }

  /** Return after how many seconds of silence the experiment counts as dead; 0 is a choice, too. */
  function staleAfter(chosen) {
    return chosen.stale_after === "" ? source.settings.stale_after : chosen.stale_after;
  }

  /**
   * Return the options of `tune-restore` that mean the same as switches.
   * @param {Object<string, *>} chosen
   * @returns {string}
   */
  function options(chosen) {
    const given = [];
    for (const [name] of FLAGS) {
      if (chosen[name] && name !== "resume_unfinished") given.push(`--${name.replaceAll("_", "-")}`);
    }
    if (!chosen.resume_unfinished) given.push("--no-resume-unfinished");
    const seconds = staleAfter(chosen);
    if (seconds !== USUAL_STALE_AFTER) given.push(`--stale-after ${seconds}`);
    return given.join(" ");
  }

  function fate(name, count) {
    const stays = count === 1 ? "stays as it is" : "stay as they are";
    return `${words.number(count)} ${name === "that stay as they are" ? stays : name}`;
  }

  function body(answer) {
    const list = table.create({
      id: "plan-trials",
      caption: "Trials of the plan",
      columns: COLUMNS,
      name: (row) => row.trial_id,
      empty: notices.empty(
        "Nothing to run",
        el(
          "p",
          {},
          answer.total ? "With these flags, every trial stays as it is." : "The experiment has no trial.",
        ),
      ),
    });
    list.setRows(answer.trials);
    return [
      answer.refusals.length
        ? el(
            "div",
            { class: "refusals" },
            el("h2", {}, "A restore would be refused"),
            notices.warnings(answer.refusals, "bad"),
          )
        : null,
      el(
        "p",
        { class: "numbers" },
        el("strong", {}, `${words.number(answer.to_run)} of ${words.counted(answer.total, "trial")} to run`),
        Object.entries(answer.counts)
          .filter(([name, count]) => count && name !== "to run")
          .map(([name, count]) => el("span", { class: "pill" }, foreign(fate(name, count)))),
        answer.samples_left
          ? el("span", { class: "pill" }, `${words.counted(answer.samples_left, "sample")} to draw`)
          : null,
      ),
      el(
        "p",
        { class: "faint" },
        "Strategy: ",
        el("strong", {}, foreign(answer.strategy.replaceAll("_", " "))),
        answer.strategy_reason ? [", because ", foreign(answer.strategy_reason)] : "",
      ),
      notices.warnings(answer.warnings),
      answer.kept.length
        ? el(
            "ul",
            { class: "kept" },
            answer.kept.map((sentence) => el("li", {}, foreign(sentence))),
          )
        : null,
      list.element,
      answer.hidden
        ? el(
            "p",
            { class: "faint" },
            `${words.counted(answer.hidden, "more trial")} not shown; `,
            "`tune-restore plan --json` has all.",
          )
        : null,
    ].filter(Boolean);
  }

  return { draw, flags, options, staleAfter, DEFAULTS };
})();

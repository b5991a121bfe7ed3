/** One trial beside the table: what it was given, what it reported, and why it failed. */
const trial = (() => {
  "use strict";
  const { el, foreign, facts, button } = elements;

  /**
   * Draw a trial.
   * @param {HTMLElement} place
   * @param {string} id
   * @param {Object} context
   * @param {function(): void} onclose
   */
  async function draw(place, id, context, onclose) {
    const head = el(
      "div",
      { class: "title" },
      el("h2", { tabIndex: -1 }, "Trial ", foreign(id)),
      el("span", { class: "grow" }),
      button([icons.make("cross"), el("span", { class: "unseen" }, "Close")], onclose, {
        class: "button small quiet",
      }),
    );
    place.hidden = false;
    place.dataset.trial = id;
    place.onkeydown = (event) => {
      if (event.key === "Escape") onclose();
    };
    place.replaceChildren(head, notices.loading("Reading the trial…"));
    head.firstChild.focus({ preventScroll: true });
    let shown;
    try {
      shown = body(
        await source.get("experiment/trial", { ...context.place, trial: id }, context.signal),
        context,
      );
    } catch (error) {
      if (context.signal.aborted) return;
      shown = source.report ? fromTable(id, context) : [notices.failure(error)];
    }
    if (place.dataset.trial === id) place.replaceChildren(head, ...shown); // no other one was opened since
  }

  function body(details, context) {
    const id = details.trial_id;
    const reason = details.quarantined || "";
    return [
      el(
        "p",
        {},
        words.badge(details.status),
        " ",
        details.iteration === null ? "" : `${words.number(details.iteration)} iterations`,
      ),
      details.problem && notices.warnings([details.problem]),
      reason &&
        el(
          "div",
          {},
          notices.notice(
            "wait",
            el("p", {}, el("strong", {}, "In quarantine: "), foreign(reason)),
            actions.release(context.about, id, reason, context.reread),
          ),
        ),
      curveButton(id),
      details.error_file &&
        section(
          "Error",
          el(
            "div",
            {},
            el("p", {}, el("strong", {}, foreign(raised(details.error_file)))),
            el("pre", { class: "error", tabIndex: 0 }, foreign(details.error_file)),
          ),
          true,
        ),
      details.failures.length ? section("Failures on record", failures(details.failures), true) : null,
      section("Hyper-parameters", values(details.config), true),
      section("Last result", values(details.metrics), false),
      section(
        "Where it is",
        facts([
          ["Directory", details.directory],
          ["Checkpoint", details.checkpoint],
          ["Resources", flat(details.resources)],
        ]),
        false,
      ),
    ].filter(Boolean);
  }

  /** Return the last line of a traceback that names an exception; the last line if none does. */
  function raised(text) {
    const lines = text.split("\n").filter((line) => line.trim());
    return lines.findLast((line) => /^[\w.]+(Error|Exception|Interrupt|Exit)\b/.test(line)) ?? lines.at(-1) ?? "";
  }

  function section(title, content, is_open) {
    return el("details", { open: is_open }, el("summary", {}, title), content);
  }

  function values(held) {
    const pairs = Object.entries(held ?? {});
    if (!pairs.length) return el("p", { class: "faint" }, "none");
    return facts(
      pairs.map(([name, value]) => [
        name,
        value === null ? "null" : typeof value === "number" ? words.number(value) : String(value),
      ]),
      { class: "facts lined" },
    );
  }

  function flat(value) {
    if (value === null || value === undefined || typeof value !== "object") return value;
    return Object.entries(value)
      .map(([name, each]) => `${name}: ${typeof each === "object" ? JSON.stringify(each) : each}`)
      .join(", ");
  }

  function failures(all) {
    return el(
      "ol",
      { class: "failures" },
      all.map((each) =>
        el(
          "li",
          { class: each.released ? "released" : null },
          el("strong", {}, foreign(each.type || each.cause)),
          " ",
          each.released ? "(released) " : "",
          words.ago(each.ended_at),
          el("p", {}, foreign(each.message)),
          el(
            "p",
            { class: "faint small" },
            foreign(
              [
                each.cause,
                each.iteration !== null && `at iteration ${each.iteration}`,
                each.place,
                `attempt ${each.attempt} of ${each.restore_id}`,
              ]
                .filter(Boolean)
                .join(" · "),
            ),
          ),
        ),
      ),
    );
  }

  function curveButton(id) {
    if (source.drawable && !source.drawable.includes(id)) return null;
    return button(
      "Its curve",
      () => {
        page.remember({ pick: page.joined([id]), which: "picked" });
        document.getElementById("tab-curves").click();
      },
      { class: "button small" },
    );
  }

  /** Return what the table of a report holds of a trial. */
  function fromTable(id, { about }) {
    const at = about.trials.ids.indexOf(id);
    const held = Object.entries(about.trials.columns).map(([name, column]) => [name, column[at]]);
    return [
      facts(
        held
          .filter(([, value]) => value !== null)
          .map(([name, value]) => [name, typeof value === "number" ? words.number(value) : value]),
        { class: "facts lined" },
      ),
      el("p", { class: "faint small" }, "The report holds no more of this trial."),
      curveButton(id),
    ].filter(Boolean);
  }

  return { draw };
})();

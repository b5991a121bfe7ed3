/** Why the experiment has its health, which trials are in quarantine, and where the facts come from. */
const evidence = (() => {
  "use strict";
  const { el, foreign, facts } = elements;

  /**
   * Draw the tab.
   * @param {HTMLElement} panel
   * @param {Object} context
   */
  function draw(panel, context) {
    const { about } = context;
    const signs = table.create({
      id: "signs",
      caption: "The evidence for the health",
      columns: [
        { key: "name", label: "Sign", value: (row) => row.name },
        { key: "found", label: "Found", value: (row) => row.found },
        { key: "indicates", label: "Indicates", value: (row) => row.indicates },
      ],
      empty: "No evidence was recorded.",
    });
    signs.setRows(about.evidence);
    panel.append(
      el("p", {}, words.badge(about.health), " ", foreign(about.reason)),
      signs.element,
      el("h2", {}, "Quarantine"),
      quarantine(context),
      el("h2", {}, "Where this comes from"),
      facts([
        ["Place", about.place],
        ["State file", about.state_file],
        ["Last write", about.last_write && words.ago(about.last_write)],
      ]),
    );
  }

  function quarantine(context) {
    const { about } = context;
    const held = Object.entries(about.quarantine).map(([trial_id, reason]) => ({ trial_id, reason }));
    if (about.ledger_warning) return notices.warnings([about.ledger_warning]);
    if (!held.length)
      return el(
        "p",
        { class: "faint" },
        "No trial is in quarantine. A trial gets there when it fails too often, or twice in the same way.",
      );
    const list = table.create({
      id: "quarantine",
      caption: "Trials in quarantine",
      columns: [
        { key: "trial", label: "Trial", value: (row) => row.trial_id },
        { key: "reason", label: "Reason", value: (row) => row.reason },
        ...(source.report
          ? []
          : [
              {
                key: "act",
                label: "",
                title: "Actions",
                value: () => null,
                cell: (row) => actions.release(about, row.trial_id, row.reason, context.reread) ?? "",
              },
            ]),
      ],
      name: (row) => row.trial_id,
    });
    list.setRows(held);
    return list.element;
  }

  return { draw };
})();

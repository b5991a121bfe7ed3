/** The columns of the table of trials: how each is shown, and the menu that chooses among them. */
const trialColumns = (() => {
  "use strict";
  const { el, foreign } = elements;

  const LABELS = {
    status: "Status",
    iteration: "Iteration",
    checkpoint: "Checkpoint",
    cause: "Cause",
    error: "Error",
    runtime: "Runtime (s)",
  };

  /** Return the name of the column of the experiment's metric; "" without one. */
  function metricColumn(about) {
    return about.metric ? (about.trials.order.find((name) => name.startsWith("metrics/")) ?? "") : "";
  }

  /** Return the column of ids; a lock marks those in quarantine. */
  function idColumn(about) {
    return {
      key: "id",
      label: "Trial",
      value: (row) => row.id,
      cell: (row) =>
        el(
          "span",
          { class: "trial-id" },
          foreign(row.id),
          !Object.hasOwn(about.quarantine, row.id)
            ? null
            : el(
                "span",
                { class: "quarantined", title: about.quarantine[row.id] },
                icons.make("lock"),
                el("span", { class: "unseen" }, "in quarantine"),
              ),
        ),
    };
  }

  function labelOf(name) {
    return LABELS[name] ?? name.replace(/^(config|metrics)\//, "");
  }

  /** Return a column by its name in the answer. */
  function columnOf(name, values, rows) {
    const held = values[name] ?? [];
    const is_numeric = rows.some((row) => typeof held[row.at] === "number");
    return {
      key: name,
      label: labelOf(name),
      title: name,
      is_numeric,
      value: (row) => held[row.at] ?? null,
      cell:
        name === "status"
          ? (row) => words.badge(row.status)
          : (row, value) =>
              el(
                "div",
                {
                  class: is_numeric ? null : "clamp",
                  title: is_numeric || value === null ? null : String(value),
                },
                table.plain(value),
              ),
    };
  }

  /**
   * Ask for columns that have not been asked for yet.
   * @param {Object} context
   * @param {Array<string>} names
   * @throws {source.SourceError}
   */
  async function fetchMissing({ about, place, signal }, names) {
    for (const name of names.filter((each) => !(each in about.trials.columns))) {
      const answer = await source.get("experiment/column", { ...place, name }, signal);
      if (answer.state_file === about.state_file) about.trials.columns[name] = answer.values;
      else throw new source.SourceError(409, "The experiment has changed since it was read.");
    }
  }

  /**
   * Return the menu in which columns are chosen.
   * @param {Object} context
   * @param {function(): Array<string>} now Returns the names that are shown.
   * @param {function(Array<string>): void} choose
   * @returns {HTMLElement}
   */
  function columnChooser(context, now, choose) {
    const {
      available,
      trials: { columns },
    } = context.about;
    const offered = available.filter((name) => name in columns || source.holds("experiment/column", name));
    const problem = el("div");
    const groups = { "": [], config: [], metrics: [] };
    for (const name of offered) groups[name.match(/^(config|metrics)\//)?.[1] ?? ""].push(name);
    const boxes = offered.map((name) => [
      name,
      el("input", { type: "checkbox", value: name, checked: now().includes(name), onchange: change }),
    ]);
    const byName = new Map(boxes);

    async function change(event) {
      problem.replaceChildren();
      const names = [
        ...now().filter((name) => byName.get(name)?.checked ?? true),
        ...(event.target.checked ? [event.target.value] : []),
      ];
      try {
        await fetchMissing(context, names);
        choose([...new Set(names)]);
      } catch (error) {
        event.target.checked = false;
        problem.replaceChildren(notices.failure(error));
      }
    }

    return el(
      "details",
      { class: "menu", id: "columns" },
      el("summary", { class: "button" }, "Columns"),
      el(
        "div",
        { class: "sheet" },
        problem,
        Object.entries(groups)
          .filter(([, names]) => names.length)
          .map(([group, names]) =>
            el(
              "fieldset",
              {},
              el("legend", {}, { "": "Trial", config: "Hyper-parameters", metrics: "Last result" }[group]),
              names.map((name) => el("label", { class: "check" }, byName.get(name), foreign(labelOf(name)))),
            ),
          ),
      ),
    );
  }

  return { metricColumn, idColumn, columnOf, fetchMissing, columnChooser };
})();

/** The list of experiments below all configured prefixes, or below one. */
const experiments = (() => {
  "use strict";
  const { el, foreign, link, button } = elements;

  const PENDING_MILLISECONDS = 2000;
  const known = new Map(); // the last answer of each prefix: what Back shows at once

  const COLUMNS = [
    { key: "name", label: "Experiment", value: (row) => row.name, cell: nameCell },
    {
      key: "health",
      label: "Health",
      value: (row) => experimentFilters.HEALTHS.indexOf(row.health),
      cell: healthCell,
    },
    {
      key: "trials",
      label: "Trials",
      value: (row) => total(row.trials),
      cell: (row) => words.bar(row.trials),
      is_numeric: false,
      title: "Trials by status",
    },
    {
      key: "best",
      label: "Best",
      value: (row) => row.best,
      cell: bestCell,
      is_numeric: true,
      title: "The best value of the experiment's metric",
    },
    {
      key: "last_write",
      label: "Last write",
      value: (row) => Date.parse(row.last_write ?? "") || null,
      cell: (row) => words.ago(row.last_write),
    },
    {
      key: "restore",
      label: "Restore",
      value: (row) => row.restore,
      cell: restoreCell,
      title: "A restore at work",
    },
    {
      key: "quarantined",
      label: "Quarantined",
      value: (row) => row.quarantined,
      cell: quarantineCell,
      is_numeric: true,
      title: "Trials that are not run again until they are released",
    },
  ];

  function total(trials) {
    return Object.values(trials).reduce((sum, count) => sum + count, 0);
  }

  function addressOf(row) {
    return { view: "experiment", prefix: row.prefix, path: row.path };
  }

  function nameCell(row) {
    const warning = row.warnings.length
      ? el(
          "span",
          { class: "warned", title: row.warnings.join("\n") },
          icons.make("warning"),
          el("span", { class: "unseen" }, `${words.counted(row.warnings.length, "warning")}`),
        )
      : null;
    const below = row.path && row.path !== row.name ? row.path : "";
    return el(
      "div",
      { class: "name" },
      link(addressOf(row), foreign(row.name)),
      warning,
      el(
        "div",
        { class: "faint small" },
        foreign([row.shows_prefix && row.prefix, below].filter(Boolean).join(" / ")),
      ),
    );
  }

  function healthCell(row) {
    return el(
      "div",
      { class: "health" },
      words.badge(row.health, row.reason),
      el("div", { class: "faint small clamp", title: row.reason }, foreign(row.reason)),
    );
  }

  function bestCell(row, value) {
    if (value === null) return el("span", { class: "faint" }, words.NOTHING);
    const how = [row.metric, row.mode && `(${row.mode})`, row.best_trial && `trial ${row.best_trial}`];
    return el(
      "div",
      { title: `${value}\n${how.filter(Boolean).join(" ")}` },
      words.number(value),
      el("div", { class: "faint small" }, foreign(row.metric ?? "")),
    );
  }

  function restoreCell(row, value) {
    return value
      ? el("span", { class: "at-work small", title: value }, icons.make("play"), foreign(value))
      : "";
  }

  function quarantineCell(row, value) {
    if (value === null) return el("span", { class: "faint", title: "The ledger cannot be read" }, "unknown");
    return value ? el("span", { class: "quarantined" }, icons.make("lock"), words.number(value)) : "";
  }

  /**
   * Draw the list, and read the prefixes.
   * @param {HTMLElement} root
   * @param {Object<string, string>} state
   * @param {AbortSignal} signal
   */
  function draw(root, state, signal) {
    const all = source.settings.prefixes;
    const labels = state.prefix && all.includes(state.prefix) ? [state.prefix] : all;
    const problems = el("div", { class: "problems" });
    const facts = el("p", { class: "faint small", id: "scanned" });
    const failed = new Map();
    const filters = experimentFilters.create(state, labels, () => show());
    const list = table.create({
      id: "experiments",
      caption: "Experiments",
      columns: COLUMNS,
      sort: state.sort || "health",
      onsort: (sort) => page.remember({ sort }),
      onopen: (row) => page.go(addressOf(row)),
      name: (row) => `${row.prefix}/${row.path}`,
      empty: notices.loading("Looking for experiments…"),
    });

    page.locate(
      state.prefix ? [[state.prefix, null]] : [],
      button([icons.make("refresh"), "Look again"], () => labels.forEach((label) => read(label, true)), {
        class: "button",
        title: "List the store again, now",
      }),
    );
    root.append(
      el("h1", {}, "Tune experiments"),
      notices.warnings([source.settings.problem].filter(Boolean)) ?? "",
      problems,
      filters.element,
      list.element,
      facts,
    );

    async function read(label, fresh = false) {
      if (fresh || !known.has(label)) facts.textContent = "Looking for experiments…";
      try {
        const answer = await source.get("experiments", { prefix: label, fresh: fresh || null }, signal);
        known.set(label, answer);
        failed.delete(label);
        if (answer.pending > 0) {
          const again = setTimeout(() => read(label), PENDING_MILLISECONDS);
          signal.addEventListener("abort", () => clearTimeout(again));
        }
      } catch (error) {
        if (signal.aborted) return;
        failed.set(label, error);
      }
      if (!signal.aborted) show();
    }

    function show() {
      const rows = labels.flatMap((label) =>
        (known.get(label)?.experiments ?? []).map((row) => ({
          ...row,
          prefix: label,
          shows_prefix: labels.length > 1,
        })),
      );
      const shown = rows.filter(filters.test);
      filters.count(rows);
      list.setRows(shown);
      const has_failed = failed.size === labels.length && !rows.length;
      [filters.element, list.element, facts].forEach((each) => {
        each.hidden = has_failed;
      });
      const are_read = labels.every((label) => known.has(label) || failed.has(label));
      if (are_read && !shown.length) fill(list.element.querySelector(".nothing"), rows.length);
      if (are_read) facts.replaceChildren(...describe(labels, rows.length, shown.length));
      problems.replaceChildren(
        ...[...failed].map(([label, error]) =>
          notices.failure(
            error,
            () => read(label, true),
            labels.length > 1 || error.status === 502 ? `Prefix ${label}` : "",
          ),
        ),
      );
    }

    function fill(place, count) {
      if (count) {
        place.replaceChildren(
          notices.empty(
            "No experiment passes the filters",
            el("p", {}, `${words.counted(count, "experiment")} ${count === 1 ? "is" : "are"} hidden.`),
            button("Clear the filters", filters.clear, { class: "button primary" }),
          ),
        );
      } else place.replaceChildren(noExperiments(labels));
    }

    if (labels.some((label) => known.has(label))) show();
    labels.forEach((label) => read(label));
  }

  function noExperiments(labels) {
    const lists = labels.map((label) => known.get(label)).filter(Boolean);
    return notices.empty(
      "No experiment here yet",
      el(
        "p",
        {},
        "An experiment is a directory with ",
        el("code", {}, "tuner.pkl"),
        " or an ",
        el("code", {}, "experiment_state-….json"),
        ", as Ray Tune writes them. None lies below:",
      ),
      el(
        "ul",
        {},
        lists.map(({ place }) => el("li", {}, foreign(place))),
      ),
      el(
        "p",
        {},
        "Give ",
        el("code", {}, "RunConfig(storage_path=…)"),
        " of your sweeps such a place, or change ",
        el("code", {}, "[tune_restore] prefixes"),
        ". To see what a shell finds:",
      ),
      lists.map(({ address }) => el("p", {}, elements.command(`tune-restore scan ${experiment.quoted(address)}`))),
    );
  }

  function describe(labels, count, shown) {
    const answers = labels.map((label) => known.get(label)).filter(Boolean);
    const oldest = answers.map((answer) => answer.scanned_at).sort()[0];
    const pending = answers.reduce((sum, answer) => sum + (answer.pending || 0), 0);
    return [
      shown === count
        ? words.counted(count, "experiment")
        : `${words.number(shown)} of ${words.counted(count, "experiment")}`,
      ...(oldest ? [", listed ", words.ago(oldest)] : []),
      pending ? `; the best values of ${words.number(pending)} are still being read` : "",
    ];
  }

  return { draw };
})();

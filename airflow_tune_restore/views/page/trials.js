/** The trials of an experiment as a table with columns to choose, and one trial beside it. */
const trials = (() => {
  "use strict";
  const { el, foreign, field, button } = elements;

  const MAX_PICKED = 50;
  const LABELS = { status: "Status", iteration: "Iteration", checkpoint: "Checkpoint", cause: "Cause", error: "Error", runtime: "Runtime (s)" };

  /**
   * Return the trials as rows: the columns of the answer stay as they are, a row knows its place in them.
   * @param {Object} about The experiment.
   * @returns {Array<{id: string, at: number, status: string}>}
   */
  function rowsOf(about) {
    const statuses = about.trials.columns.status ?? [];
    return about.trials.ids.map((id, at) => ({ id, at, status: statuses[at] ?? "unknown" }));
  }

  /** Return the ids of trials in the address. */
  function picked() {
    return page.list("pick");
  }

  /**
   * Draw the tab.
   * @param {HTMLElement} panel
   * @param {Object} context
   */
  function draw(panel, context) {
    const { about, rows } = context;
    const values = about.trials.columns;
    const state = page.state();
    const chosen = new Set(picked());
    let columns = page.list("columns").filter((name) => about.available.includes(name));
    if (!columns.length) columns = about.trials.order.filter((name) => name in values);

    const curvesButton = button("", () => document.getElementById("tab-curves").click(), { class: "button", id: "show-curves" });
    const text = el("input", { type: "search", id: "trial-text", value: state.trial_text ?? "", placeholder: "Trial id, cause or value",
      oninput: () => { page.remember({ trial_text: text.value }); show(); } });
    const detail = el("aside", { class: "detail", "aria-label": "One trial", hidden: true });
    const filter = statusChips(rows, state, show);
    const list = table.create({
      id: "trials", caption: "Trials", columns: [], sort: state.trial_sort ?? defaultSort(about, columns),
      onsort: (sort) => page.remember({ trial_sort: sort }), onopen: (row) => open(row.id),
      isChosen: (row) => row.id === page.state().trial, name: (row) => row.id,
      empty: notices.empty(rows.length ? "No trial passes the filters" : "This experiment has no trial yet",
        el("p", {}, rows.length ? "Change the filters above." : "Nothing has been drawn yet. The Plan tab shows what a restore would do.")),
    });

    function show() {
      list.setColumns([pickColumn(), idColumn(about), ...columns.map((name) => columnOf(name, values, rows))]);
      const wanted = text.value.trim().toLowerCase();
      list.setRows(rows.filter((row) => filter.test(row) && (!wanted || matches(row, wanted))));
      countPicked();
    }

    function matches(row, wanted) {
      return [row.id, ...columns.map((name) => values[name]?.[row.at])]
        .some((value) => value !== null && value !== undefined && String(value).toLowerCase().includes(wanted));
    }

    function pickColumn() {
      const cell = (row) => {
        const box = el("input", { type: "checkbox", checked: chosen.has(row.id), "aria-label": `Curve of ${row.id}`,
          onchange: () => {
            if (!chosen.delete(row.id)) chosen.add(row.id);
            if (chosen.size > MAX_PICKED) { chosen.delete(row.id); box.checked = false; }
            page.remember({ pick: page.joined(chosen) });
            countPicked();
          } });
        return box;
      };
      return { key: "picked", label: "", title: "Draw its curve", value: () => null, cell };
    }

    function countPicked() {
      curvesButton.textContent = chosen.size ? `Curves of ${chosen.size} chosen` : "Curves of the best";
    }

    function open(id) {
      page.remember({ trial: id });
      list.redraw();
      trial.draw(detail, id, context, close);
    }

    function close() {
      const id = page.state().trial;
      page.remember({ trial: null });
      detail.hidden = true;
      list.redraw();
      list.element.querySelector(`[data-row="${CSS.escape(id ?? "")}"]`)?.focus();
    }

    const chooser = columnChooser(context, () => columns, async (names) => {
      columns = names;
      page.remember({ columns: page.joined(names) });
      show();
    });
    panel.append(
      el("div", { class: "toolbar" }, field("Search", text), filter.element, el("span", { class: "grow" }), chooser, curvesButton),
      el("div", { class: "with-detail" }, list.element, detail));
    show();
    fetchMissing(context, columns).then(show, () => {});
    if (state.trial) open(state.trial);
  }

  function defaultSort(about, columns) {
    const metric = metricColumn(about);
    if (!columns.includes(metric)) return "status";
    return about.mode === "min" ? metric : `-${metric}`;
  }

  /** Return the name of the column of the experiment's metric; "" without one. */
  function metricColumn(about) {
    return about.metric ? about.trials.order.find((name) => name.startsWith("metrics/")) ?? "" : "";
  }

  function idColumn(about) {
    return {
      key: "id", label: "Trial", value: (row) => row.id,
      cell: (row) => el("span", { class: "trial-id" }, foreign(row.id), about.quarantine[row.id] === undefined ? null
        : el("span", { class: "quarantined", title: about.quarantine[row.id] }, icons.make("lock"), el("span", { class: "unseen" }, "in quarantine"))),
    };
  }

  function labelOf(name) {
    return LABELS[name] ?? name.replace(/^(config|metrics)\//, "");
  }

  function columnOf(name, values, rows) {
    const held = values[name] ?? [];
    const is_numeric = rows.some((row) => typeof held[row.at] === "number");
    return {
      key: name, label: labelOf(name), title: name, is_numeric, value: (row) => held[row.at] ?? null,
      cell: name === "status" ? (row) => words.badge(row.status)
        : (row, value) => el("div", { class: is_numeric ? null : "clamp", title: is_numeric || value === null ? null : String(value) }, table.plain(value)),
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

  function columnChooser(context, now, choose) {
    const { available, trials: { columns } } = context.about;
    const offered = available.filter((name) => name in columns || source.holds("experiment/column", name));
    const problem = el("div");
    const groups = { "": [], config: [], metrics: [] };
    for (const name of offered) (groups[name.match(/^(config|metrics)\//)?.[1] ?? ""]).push(name);
    const boxes = offered.map((name) => [name, el("input", { type: "checkbox", value: name, checked: now().includes(name), onchange: change })]);
    const byName = new Map(boxes);

    async function change(event) {
      problem.replaceChildren();
      const names = [...now().filter((name) => byName.get(name)?.checked ?? true), ...(event.target.checked ? [event.target.value] : [])];
      try {
        await fetchMissing(context, names);
        choose([...new Set(names)]);
      } catch (error) {
        event.target.checked = false;
        problem.replaceChildren(notices.failure(error));
      }
    }

    return el("details", { class: "menu", id: "columns" }, el("summary", { class: "button" }, "Columns"), el("div", { class: "sheet" }, problem,
      Object.entries(groups).filter(([, names]) => names.length).map(([group, names]) => el("fieldset", {},
        el("legend", {}, { "": "Trial", config: "Hyper-parameters", metrics: "Last result" }[group]),
        names.map((name) => el("label", { class: "check" }, byName.get(name), foreign(labelOf(name))))))));
  }

  function statusChips(rows, state, onchange) {
    const chosen = new Set((state.trial_status ?? "").split(",").filter(Boolean));
    const counts = {};
    for (const row of rows) counts[row.status] = (counts[row.status] ?? 0) + 1;
    const chips = words.inOrder(counts).map(([status, count]) => button(
      [words.badge(status), el("span", { class: "count" }, words.number(count))], (event) => {
        if (!chosen.delete(status)) chosen.add(status);
        event.currentTarget.setAttribute("aria-pressed", String(chosen.has(status)));
        page.remember({ trial_status: [...chosen].join(",") });
        onchange();
      }, { class: "chip", "aria-pressed": String(chosen.has(status)), "data-status": status }));
    const element = el("div", { class: "chips", role: "group", "aria-label": "Status" }, chips);
    return { element, test: (row) => !chosen.size || chosen.has(row.status) };
  }

  return { draw, rowsOf, picked, metricColumn, fetchMissing, MAX_PICKED };
})();

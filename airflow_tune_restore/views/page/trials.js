/** The trials of an experiment as a table with columns to choose, and one trial beside it. */
const trials = (() => {
  "use strict";
  const { el, field, button } = elements;

  const MAX_PICKED = 50;

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

    const curvesButton = button("", () => document.getElementById("tab-curves").click(), {
      class: "button",
      id: "show-curves",
    });
    const text = el("input", {
      type: "search",
      id: "trial-text",
      value: state.trial_text ?? "",
      placeholder: "Trial id, cause or value",
      oninput: () => {
        page.remember({ trial_text: text.value });
        show();
      },
    });
    const detail = el("aside", { class: "detail", "aria-label": "One trial", hidden: true });
    const filter = statusChips(rows, state, show);
    const list = table.create({
      id: "trials",
      caption: "Trials",
      columns: [],
      sort: state.trial_sort ?? defaultSort(about, columns),
      onsort: (sort) => page.remember({ trial_sort: sort }),
      onopen: (row) => open(row.id),
      isChosen: (row) => row.id === page.state().trial,
      name: (row) => row.id,
      empty: notices.empty(
        rows.length ? "No trial passes the filters" : "This experiment has no trial yet",
        el(
          "p",
          {},
          rows.length
            ? "Change the filters above."
            : "Nothing has been drawn yet. The Plan tab shows what a restore would do.",
        ),
      ),
    });

    function show() {
      list.setColumns([
        pickColumn(),
        trialColumns.idColumn(about),
        ...columns.map((name) => trialColumns.columnOf(name, values, rows)),
      ]);
      const wanted = text.value.trim().toLowerCase();
      list.setRows(rows.filter((row) => filter.test(row) && (!wanted || matches(row, wanted))));
      countPicked();
    }

    function matches(row, wanted) {
      return [row.id, ...columns.map((name) => values[name]?.[row.at])].some(
        (value) => value !== null && value !== undefined && String(value).toLowerCase().includes(wanted),
      );
    }

    function pickColumn() {
      const cell = (row) => {
        const box = el("input", {
          type: "checkbox",
          checked: chosen.has(row.id),
          "aria-label": `Curve of ${row.id}`,
          onchange: () => {
            if (!chosen.delete(row.id)) chosen.add(row.id);
            if (chosen.size > MAX_PICKED) {
              chosen.delete(row.id);
              box.checked = false;
            }
            page.remember({ pick: page.joined(chosen) });
            countPicked();
          },
        });
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

    const chooser = trialColumns.columnChooser(
      context,
      () => columns,
      async (names) => {
        columns = names;
        page.remember({ columns: page.joined(names) });
        show();
      },
    );
    panel.append(
      el(
        "div",
        { class: "toolbar" },
        field("Search", text),
        filter.element,
        el("span", { class: "grow" }),
        chooser,
        curvesButton,
      ),
      el("div", { class: "with-detail" }, list.element, detail),
    );
    show();
    trialColumns.fetchMissing(context, columns).then(show, () => {});
    if (state.trial) open(state.trial);
  }

  function defaultSort(about, columns) {
    const metric = trialColumns.metricColumn(about);
    if (!columns.includes(metric)) return "status";
    return about.mode === "min" ? metric : `-${metric}`;
  }

  function statusChips(rows, state, onchange) {
    const chosen = new Set((state.trial_status ?? "").split(",").filter(Boolean));
    const counts = {};
    for (const row of rows) counts[row.status] = (counts[row.status] ?? 0) + 1;
    const chips = words.inOrder(counts).map(([status, count]) =>
      button(
        [words.badge(status), el("span", { class: "count" }, words.number(count))],
        (event) => {
          if (!chosen.delete(status)) chosen.add(status);
          event.currentTarget.setAttribute("aria-pressed", String(chosen.has(status)));
          page.remember({ trial_status: [...chosen].join(",") });
          onchange();
        },
        { class: "chip", "aria-pressed": String(chosen.has(status)), "data-status": status },
      ),
    );
    const element = el("div", { class: "chips", role: "group", "aria-label": "Status" }, chips);
    return { element, test: (row) => !chosen.size || chosen.has(row.status) };
  }

  return { draw, rowsOf, picked, MAX_PICKED };
})();

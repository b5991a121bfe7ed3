/**
 * A table that sorts, pages and opens its rows. It draws one page, so thousands of rows stay quick.
 *
 * @typedef {Object} Column
 * @property {string} key Its name in the address.
 * @property {string} label
 * @property {string} [title]
 * @property {boolean} [is_numeric] Set to the right.
 * @property {function(*): *} value What a row is sorted by; null is last in both directions.
 * @property {function(*, *): (Node|string)} [cell] What is shown, from the row and its value.
 */
const table = (() => {
  "use strict";
  const { el, foreign, button } = elements;

  const COLLATOR = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const PAGE_ROWS = 100;

  /**
   * Return a table.
   * @param {Object} options
   * @param {string} options.id
   * @param {string} options.caption For a screen reader.
   * @param {Array<Column>} options.columns
   * @param {string} [options.sort] A key; `-key` is from the highest.
   * @param {function(string): void} [options.onsort]
   * @param {function(*): void} [options.onopen] A row was clicked, or Enter pressed on it.
   * @param {function(*): string} [options.name] The name of a row, in `data-row`.
   * @param {function(*): boolean} [options.isChosen]
   * @param {Node|string} [options.empty] Shown without rows.
   * @returns {{element: HTMLElement, setRows: function(Array<*>): void, setColumns: function(Array<Column>): void, redraw: function(): void}}
   */
  function create(options) {
    const head = el("tr");
    const body = el("tbody");
    const pager = el("div", { class: "pager" });
    const nothing = el("div", { class: "nothing" });
    const scroller = el(
      "div",
      { class: "scroller", tabIndex: 0, role: "region", "aria-label": options.caption },
      el(
        "table",
        { id: options.id },
        el("caption", { class: "unseen" }, options.caption),
        el("thead", {}, head),
        body,
      ),
    );
    const element = el("div", { class: "table" }, scroller, nothing, pager);
    let columns = options.columns;
    let sort = options.sort ?? "";
    let rows = [];
    let sorted = [];
    let first = 0;

    function drawHead() {
      head.replaceChildren(
        ...columns.map((column) => {
          const is_sorted = sort.replace(/^-/, "") === column.key;
          const order = !is_sorted ? "none" : sort.startsWith("-") ? "descending" : "ascending";
          const icon = { none: "both", ascending: "up", descending: "down" }[order];
          const label =
            column.label &&
            button([foreign(column.label), icons.make(icon)], () => sortBy(column), {
              class: "sort",
              title: column.title,
            });
          return el(
            "th",
            {
              scope: "col",
              class: column.is_numeric ? "numeric" : null,
              "aria-sort": column.label ? order : null,
              "data-column": column.key,
            },
            label || el("span", { class: "unseen" }, column.title),
          );
        }),
      );
    }

    function sortBy(column) {
      const is_same = sort.replace(/^-/, "") === column.key;
      if (is_same) sort = sort.startsWith("-") ? column.key : `-${column.key}`;
      else sort = column.is_numeric ? `-${column.key}` : column.key;
      first = 0;
      options.onsort?.(sort);
      draw();
      head.querySelector(`[data-column="${CSS.escape(column.key)}"] button`)?.focus();
    }

    function draw() {
      sorted = sortRows(
        rows,
        columns.find((column) => column.key === sort.replace(/^-/, "")),
        sort.startsWith("-"),
      );
      drawHead();
      drawRows();
    }

    function drawRows() {
      first = Math.min(first, Math.max(0, Math.floor((sorted.length - 1) / PAGE_ROWS) * PAGE_ROWS));
      body.replaceChildren(
        ...sorted.slice(first, first + PAGE_ROWS).map((row) => drawRow(row, columns, options)),
      );
      nothing.replaceChildren(...(sorted.length ? [] : [options.empty ?? "No rows."]));
      pager.replaceChildren(...(sorted.length > PAGE_ROWS ? pages() : []));
    }

    function pages() {
      const turn = (by) => () => {
        first += by;
        drawRows();
        scroller.scrollTop = 0;
        scroller.focus();
      };
      const last = Math.min(first + PAGE_ROWS, sorted.length);
      return [
        el("span", {}, `${words.number(first + 1)}–${words.number(last)} of ${words.number(sorted.length)}`),
        button("Previous", turn(-PAGE_ROWS), { class: "button small", disabled: first === 0 }),
        button("Next", turn(PAGE_ROWS), { class: "button small", disabled: last === sorted.length }),
      ];
    }

    draw();
    return {
      element,
      setRows: (given) => {
        rows = given;
        draw();
      },
      setColumns: (given) => {
        columns = given;
        draw();
      },
      redraw: drawRows,
    };
  }

  function drawRow(row, columns, options) {
    const is_chosen = options.isChosen?.(row) ?? false;
    const cells = columns.map((column) => {
      const value = column.value(row);
      const shown = column.cell ? column.cell(row, value) : plain(value);
      return el("td", { class: column.is_numeric ? "numeric" : null }, shown);
    });
    return el(
      "tr",
      {
        "data-row": options.name?.(row),
        class: [options.onopen && "opens", is_chosen && "chosen"].filter(Boolean).join(" ") || null,
        "aria-current": is_chosen ? "true" : null,
        ...(options.onopen
          ? { tabIndex: 0, onclick: openBy(row, options), onkeydown: keyOn(row, options) }
          : {}),
      },
      ...cells,
    );
  }

  function plain(value) {
    if (value === null || value === undefined || value === "")
      return el("span", { class: "faint" }, words.NOTHING);
    return typeof value === "number"
      ? el("span", { title: String(value) }, words.number(value))
      : foreign(value);
  }

  function openBy(row, options) {
    return (event) => {
      if (event.target.closest("a, button, input, label, summary")) return;
      if (String(window.getSelection())) return; // somebody selects a text to copy it
      options.onopen(row);
    };
  }

  function keyOn(row, options) {
    return (event) => {
      if (event.target !== event.currentTarget) return;
      const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      if (event.key === "Enter") options.onopen(row);
      else if (step) event.currentTarget[step]?.focus();
      else return;
      event.preventDefault();
    };
  }

  /**
   * Return rows sorted by a column: numbers before texts, nothing last in both directions.
   * @param {Array<*>} rows
   * @param {Column|undefined} column
   * @param {boolean} is_down
   * @returns {Array<*>}
   */
  function sortRows(rows, column, is_down) {
    if (!column) return rows;
    const keyed = rows.map((row) => [column.value(row), row]);
    return keyed.sort(([one], [other]) => compare(one, other, is_down)).map(([, row]) => row);
  }

  function compare(one, other, is_down) {
    const ranks = rank(one) - rank(other);
    if (rank(one) === 2 || rank(other) === 2) return ranks;
    const order = ranks || (rank(one) === 0 ? Number(one) - Number(other) : COLLATOR.compare(one, other));
    return is_down ? -order : order;
  }

  function rank(value) {
    if (value === null || value === undefined || value === "") return 2;
    return typeof value === "string" ? 1 : 0;
  }

  return { create, sortRows, plain };
})();

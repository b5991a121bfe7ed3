/** How values are shown: numbers, times, health, status, and bars of counts. */
const words = (() => {
  "use strict";
  const { el, foreign } = elements;

  const NOTHING = "–";
  const STATUSES = {
    TERMINATED: ["check", "good"],
    RUNNING: ["play", "busy"],
    PENDING: ["circle", "idle"],
    PAUSED: ["pause", "wait"],
    ERROR: ["cross", "bad"],
    finished: ["check", "good"],
    errored: ["cross", "bad"],
    interrupted: ["pause", "wait"],
    running: ["play", "busy"],
    not_started: ["circle", "idle"],
    unreadable: ["question", "odd"],
    failed: ["cross", "bad"],
    waiting: ["circle", "idle"],
    ended: ["check", "idle"],
    silent: ["silent", "odd"],
    paused: ["pause", "wait"],
    committed: ["check", "good"],
    undone: ["undo", "idle"],
    left: ["warning", "wait"],
    empty: ["circle", "idle"],
    restored: ["play", "busy"],
    continue_search: ["play", "busy"],
    left_alone: ["circle", "idle"],
    misfit: ["cross", "bad"],
    refused: ["cross", "bad"],
  };
  const LABELS = { restored: "restore started", left: "not committed" };
  const ORDER = ["TERMINATED", "RUNNING", "PAUSED", "PENDING", "ERROR"];
  const UNITS = [
    ["year", 31536000],
    ["month", 2592000],
    ["day", 86400],
    ["h", 3600],
    ["min", 60],
  ];

  /**
   * Return a number as people read it: whole ones in full, others with six digits, as in the tables of
   * `tune-restore`.
   * @param {*} value
   * @returns {string}
   */
  function number(value) {
    if (value === null || value === undefined || value === "") return NOTHING;
    if (typeof value !== "number") return String(value);
    if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en-US");
    const size = Math.abs(value);
    return size >= 1e6 || size < 1e-4 ? value.toExponential(5) : String(Number(value.toPrecision(6)));
  }

  /**
   * Return a count with its noun.
   * @param {number} count
   * @param {string} noun In the singular.
   * @returns {string}
   */
  function counted(count, noun) {
    return `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
  }

  /**
   * Return a span of time in its largest unit.
   * @param {number|null} seconds
   * @returns {string}
   */
  function span(seconds) {
    if (seconds === null || seconds === undefined) return NOTHING;
    const unit = UNITS.find(([, length]) => seconds >= length);
    if (!unit) return `${Math.round(seconds)} s`;
    const count = Math.floor(seconds / unit[1]);
    return `${count} ${unit[0]}${count > 1 && unit[0].length > 3 ? "s" : ""}`;
  }

  /**
   * Return how long ago a time was; its title is the exact time. A report, which is read later, has that alone.
   * @param {string|null} iso
   * @returns {Node}
   */
  function ago(iso) {
    const at = Date.parse(iso ?? "");
    if (Number.isNaN(at)) return document.createTextNode(NOTHING);
    const seconds = (Date.now() - at) / 1000;
    const shown =
      seconds < 0 || source.report ? exact(iso) : seconds < 45 ? "just now" : `${span(seconds)} ago`;
    return el("time", { dateTime: iso, title: exact(iso) }, shown);
  }

  /**
   * Return a time to the second, in UTC, as Airflow's own pages name it.
   * @param {string} iso
   * @returns {string}
   */
  function exact(iso) {
    return `${new Date(iso).toISOString().slice(0, 19).replace("T", " ")} UTC`;
  }

  /**
   * Return a badge of a health, a status or a state: an icon and the word.
   * @param {string} word
   * @param {string} [title]
   * @returns {HTMLElement}
   */
  function badge(word, title) {
    const [icon, tone] = STATUSES[word] ?? ["question", "odd"];
    return el(
      "span",
      { class: `badge ${tone}`, title, "data-word": word },
      icons.make(icon),
      foreign(LABELS[word] ?? word.replaceAll("_", " ")),
    );
  }

  /**
   * Return the statuses of counts in the order in which a bar shows them.
   * @param {Object<string, number>} counts
   * @returns {Array<[string, number]>}
   */
  function inOrder(counts) {
    const place = (status) => (ORDER.includes(status) ? ORDER.indexOf(status) : ORDER.length);
    return Object.entries(counts)
      .filter(([, count]) => count > 0)
      .sort((a, b) => place(a[0]) - place(b[0]));
  }

  /**
   * Return trials by status as one stacked bar, with the numbers in its title.
   * @param {Object<string, number>} counts
   * @returns {HTMLElement}
   */
  function bar(counts) {
    const parts = inOrder(counts);
    const total = parts.reduce((sum, [, count]) => sum + count, 0);
    if (!total) return el("span", { class: "faint" }, "none");
    const text = parts.map(([status, count]) => `${number(count)} ${status}`).join(", ");
    const pieces = parts.map(([status, count]) => {
      const piece = el("span", { class: `piece ${STATUSES[status]?.[1] ?? "odd"}` });
      piece.style.flexGrow = count;
      return piece;
    });
    return el(
      "span",
      { class: "bar-and-count", title: text },
      el("span", { class: "bar", role: "img", "aria-label": text }, pieces),
      el("span", { class: "count" }, number(total)),
    );
  }

  return { NOTHING, number, counted, span, ago, exact, badge, inOrder, bar };
})();

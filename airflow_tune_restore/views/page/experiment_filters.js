/** The filters of the list of experiments: prefix, text, status of a trial, and health. */
const experimentFilters = (() => {
  "use strict";
  const { el, button, field, select } = elements;

  const HEALTHS = ["errored", "interrupted", "running", "not_started", "unreadable", "finished"];

  /**
   * Return the filters above the list; what is chosen is in the address.
   * @param {Object<string, string>} state
   * @param {Array<string>} labels The prefixes that are listed.
   * @param {function(): void} onchange
   * @returns {{element: HTMLElement, test: function(Object): boolean, count: function(Array<Object>): void, clear: function(): void}}
   */
  function create(state, labels, onchange) {
    const chosen = new Set((state.health ?? "").split(",").filter(Boolean));
    const text = el("input", {
      type: "search",
      id: "filter-text",
      value: state.text ?? "",
      placeholder: "Name, path or reason",
      oninput: () => {
        page.remember({ text: text.value });
        onchange();
      },
    });
    const statuses = ["ERROR", "RUNNING", "PENDING", "PAUSED", "TERMINATED"];
    const status = select(
      [["", "any"], ...statuses.map((each) => [each, each])],
      state.status ?? "",
      (value) => {
        page.remember({ status: value });
        onchange();
      },
      { id: "filter-status" },
    );
    const chips = HEALTHS.map((health) =>
      button(
        [words.badge(health), el("span", { class: "count" })],
        (event) => {
          if (!chosen.delete(health)) chosen.add(health);
          event.currentTarget.setAttribute("aria-pressed", String(chosen.has(health)));
          page.remember({ health: HEALTHS.filter((each) => chosen.has(each)).join(",") });
          onchange();
        },
        { class: "chip", "aria-pressed": String(chosen.has(health)), "data-health": health },
      ),
    );
    const prefixes = source.settings.prefixes;
    const prefix =
      prefixes.length > 1
        ? field(
            "Prefix",
            select(
              [["", "all"], ...prefixes.map((each) => [each, each])],
              labels.length === 1 ? labels[0] : "",
              (value) => page.go({ ...page.state(), view: "experiments", prefix: value }),
              { id: "filter-prefix" },
            ),
          )
        : null;

    function test(row) {
      if (chosen.size && !chosen.has(row.health)) return false;
      if (status.value && !row.trials[status.value]) return false;
      const wanted = text.value.trim().toLowerCase();
      return (
        !wanted ||
        [row.name, row.path, row.reason, row.metric ?? "", row.restore ?? ""].some((each) =>
          each.toLowerCase().includes(wanted),
        )
      );
    }

    function count(rows) {
      chips.forEach((chip) => {
        chip.lastChild.textContent = rows.filter((row) => row.health === chip.dataset.health).length;
      });
    }

    function clear() {
      chosen.clear();
      text.value = "";
      status.value = "";
      chips.forEach((chip) => chip.setAttribute("aria-pressed", "false"));
      page.remember({ health: null, text: null, status: null });
      onchange();
    }

    const element = el(
      "div",
      { class: "toolbar", role: "search" },
      prefix,
      field("Search", text),
      field("With trials", status, "Experiments that have a trial of this status"),
      el("div", { class: "chips", role: "group", "aria-label": "Health" }, chips),
    );
    return { element, test, count, clear };
  }

  return { HEALTHS, create };
})();

/** Tabs, as the ARIA guide has them: arrow keys move, and the panel belongs to its tab. */
const tabs = (() => {
  "use strict";
  const { el, button } = elements;

  /**
   * Return tabs.
   * @param {Array<{key: string, label: string, draw: function(HTMLElement): *}>} each
   *   `draw` fills the panel, and may return a function that ends its work.
   * @param {string} chosen
   * @param {function(string): void} onchoose
   * @returns {{element: HTMLElement, choose: function(string): void, leave: function(): void}}
   */
  function create(each, chosen, onchoose) {
    const list = el("div", { class: "tabs", role: "tablist", "aria-label": "Parts of the experiment" });
    const panel = el("div", { class: "panel", role: "tabpanel", id: "panel", tabIndex: -1 });
    let end = null;

    const buttons = each.map(({ key, label }, at) =>
      button(label, () => choose(key), {
        class: "tab",
        role: "tab",
        id: `tab-${key}`,
        "aria-controls": "panel",
        "data-tab": key,
        onkeydown: (event) => {
          const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: each.length - 1 }[event.key];
          if (to === undefined) return;
          event.preventDefault();
          const next = (to + each.length) % each.length;
          choose(each[next].key);
          buttons[next].focus();
        },
      }),
    );
    list.append(...buttons);

    function choose(key) {
      const tab = each.find((one) => one.key === key) ?? each[0];
      leave();
      buttons.forEach((one) => {
        const is_chosen = one.dataset.tab === tab.key;
        one.setAttribute("aria-selected", String(is_chosen));
        one.tabIndex = is_chosen ? 0 : -1;
      });
      panel.setAttribute("aria-labelledby", `tab-${tab.key}`);
      const place = el("div"); // what a tab that was left still waits for is drawn where nobody sees it
      panel.replaceChildren(place);
      onchoose(tab.key);
      const ended = tab.draw(place);
      end = typeof ended === "function" ? ended : null;
    }

    function leave() {
      end?.();
      end = null;
    }

    const element = el("div", {}, list, panel);
    return { element, choose, leave, start: () => choose(chosen) };
  }

  return { create };
})();

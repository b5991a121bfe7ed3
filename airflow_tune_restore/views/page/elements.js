/**
 * Builds the DOM. Whatever a store holds gets in as text only: nothing here parses HTML.
 */
const elements = (() => {
  "use strict";

  /**
   * Return an element. Children are nodes or texts; null, undefined and false are left out.
   * A property `on…` is a listener, `class`, `role`, `aria-…` and `data-…` are attributes, all others properties.
   * @param {string} tag
   * @param {Object<string, *>} [properties]
   * @param {...*} children
   * @returns {HTMLElement}
   */
  function el(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (value === null || value === undefined) continue;
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (/^(class|role|for|scope|aria-.*|data-.*)$/.test(name)) made.setAttribute(name, value);
      else made[name] = value;
    }
    made.append(
      ...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false),
    );
    return made;
  }

  /**
   * Return a text that somebody else chose: its direction cannot turn what stands around it.
   * @param {*} text
   * @param {Object<string, *>} [properties]
   * @returns {HTMLElement}
   */
  function foreign(text, properties = {}) {
    return el("bdi", { class: "foreign", ...properties }, String(text));
  }

  /**
   * Return a link inside the page; a click changes the view without loading anything.
   * @param {Object<string, string>} state What the address says after the click.
   * @param {...*} children
   * @returns {HTMLElement}
   */
  function link(state, ...children) {
    return el(
      "a",
      {
        href: page.address(state),
        onclick: (event) => {
          if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
          event.preventDefault();
          page.go(state);
        },
      },
      ...children,
    );
  }

  /**
   * Return a button.
   * @param {string|Node|Array<string|Node>} label
   * @param {function(Event): void} onclick
   * @param {Object<string, *>} [properties]
   * @returns {HTMLElement}
   */
  function button(label, onclick, properties = {}) {
    return el("button", { type: "button", class: "button", onclick, ...properties }, label);
  }

  /**
   * Return a command that a click copies.
   * @param {string} command
   * @returns {HTMLElement}
   */
  function command(text) {
    const copy = button(
      [icons.make("copy"), "Copy"],
      async () => {
        const is_copied = await copyText(text);
        announce(is_copied ? "Copied" : "Not copied: select the text, and copy it yourself");
        copy.lastChild.textContent = is_copied ? "Copied" : "Select it";
        setTimeout(() => {
          copy.lastChild.textContent = "Copy";
        }, 2000);
      },
      { class: "button small quiet", title: "Copy this command" },
    );
    return el("span", { class: "command" }, el("code", {}, foreign(text)), copy);
  }

  async function copyText(text) {
    try {
      await navigator.clipboard.writeText(text); // a frame over plain HTTP has no clipboard
      return true;
    } catch {
      return copyOldWay(text);
    }
  }

  function copyOldWay(text) {
    const area = el("textarea", { value: text, class: "unseen" });
    document.body.append(area);
    area.select();
    const is_copied = document.execCommand("copy");
    area.remove();
    return is_copied;
  }

  /**
   * Say a sentence to a screen reader.
   * @param {string} sentence
   */
  function announce(sentence) {
    document.getElementById("announcer").textContent = sentence;
  }

  /**
   * Return a list of facts; those without a value are left out.
   * @param {Array<[string, *]>} facts Names and values (text or nodes).
   * @param {Object<string, *>} [properties]
   * @returns {HTMLElement}
   */
  function facts(pairs, properties = {}) {
    const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
    return el(
      "dl",
      { class: "facts", ...properties },
      known.map(([name, value]) =>
        el(
          "div",
          {},
          el("dt", {}, foreign(name)),
          el("dd", {}, value instanceof Node ? value : foreign(value)),
        ),
      ),
    );
  }

  /**
   * Return a labelled control.
   * @param {string} label
   * @param {HTMLElement} control
   * @param {string} [title]
   * @returns {HTMLElement}
   */
  function field(label, control, title) {
    return el("label", { class: "field", title }, el("span", { class: "label" }, label), control);
  }

  /**
   * Return a drop-down list.
   * @param {Array<[string, string]>} options Values, and what is shown for them.
   * @param {string} chosen
   * @param {function(string): void} onchange
   * @returns {HTMLElement}
   */
  function select(options, chosen, onchange, properties = {}) {
    const made = el(
      "select",
      { onchange: () => onchange(made.value), ...properties },
      options.map(([value, text]) => el("option", { value }, text)),
    );
    made.value = chosen;
    return made;
  }

  return { el, foreign, link, button, command, announce, facts, field, select };
})();

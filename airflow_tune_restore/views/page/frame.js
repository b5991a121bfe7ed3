/** What the page has of Airflow's own page around it: its theme, and the way out of the frame. */
const frame = (() => {
  "use strict";

  const DARK = window.matchMedia("(prefers-color-scheme: dark)");

  /** Return the document of Airflow's page; null if this page stands alone. */
  function host() {
    try {
      return window.parent === window ? null : window.parent.document;
    } catch {
      return null; // a page of another origin
    }
  }

  /**
   * Follow the theme of Airflow, or of the browser if the page stands alone.
   * @param {function(): void} onchange Called after each change; a canvas has to be drawn again.
   */
  function followTheme(onchange) {
    const around = host()?.documentElement;
    const apply = () => {
      const is_dark = around ? isDark(around) : DARK.matches;
      document.documentElement.classList.toggle("dark", is_dark);
      onchange();
    };
    if (around) {
      const watch = { attributes: true, attributeFilter: ["class", "data-theme"] };
      new MutationObserver(apply).observe(around, watch);
    }
    DARK.addEventListener("change", apply);
    apply();
  }

  function isDark(around) {
    if (around.classList.contains("dark")) return true;
    return !around.classList.contains("light") && DARK.matches;
  }

  /**
   * Return a link to a page of Airflow. The frame may not navigate the page around it, so an anchor of
   * that page is clicked.
   * @param {string} href An address on this server.
   * @param {...*} children
   * @returns {HTMLElement}
   */
  function link(href, ...children) {
    return elements.el(
      "a",
      {
        href,
        target: "_top",
        class: "leave",
        onclick: (event) => {
          if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
          event.preventDefault();
          leave(href);
        },
      },
      ...children,
      icons.make("leave"),
    );
  }

  function leave(href) {
    const around = host();
    if (!around) {
      window.location.assign(href);
      return;
    }
    const anchor = around.createElement("a");
    anchor.href = href;
    around.body.append(anchor);
    anchor.click();
    anchor.remove();
  }

  return { followTheme, link };
})();

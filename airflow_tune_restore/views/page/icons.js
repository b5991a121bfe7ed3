/** Small drawings that stand beside words, so that nothing is said by colour alone. */
const icons = (() => {
  "use strict";

  const PATHS = {
    check: "M3 8.5 6.5 12 13 4.5",
    cross: "M4 4l8 8M12 4l-8 8",
    pause: "M5.5 4v8M10.5 4v8",
    play: "M5 3.5v9l7.5-4.5z",
    circle: "M8 3a5 5 0 1 0 0 10A5 5 0 0 0 8 3z",
    question: "M5.5 6a2.5 2.5 0 1 1 3.6 2.3c-.8.4-1.1.8-1.1 1.7M8 12.6v.4",
    lock: "M4 7.5h8v5.5H4zM5.5 7.5V5.5a2.5 2.5 0 0 1 5 0v2",
    copy: "M6 6h7v7H6zM3 10V3h7",
    leave: "M6 3H3v10h10v-3M9 3h4v4M13 3 7.5 8.5",
    undo: "M6 3 3 6l3 3M3 6h6a4 4 0 0 1 0 8H7",
    refresh: "M13 8a5 5 0 1 1-1.5-3.6M13 2v3h-3",
    warning: "M8 2.5 14.5 13.5h-13zM8 6.5v3.5M8 11.8v.3",
    info: "M8 3a5 5 0 1 0 0 10A5 5 0 0 0 8 3zM8 7.3V11M8 5v.3",
    up: "M4 10l4-4 4 4",
    down: "M4 6l4 4 4-4",
    both: "M5 6.2 8 3.4l3 2.8M5 9.8l3 2.8 3-2.8",
    silent: "M3 8h2M7 8h2M11 8h2",
    empty: "M2 5.5 8 2.5l6 3v5l-6 3-6-3zM2 5.5l6 3 6-3M8 8.5v5",
  };

  /**
   * Return an icon that a screen reader passes over.
   * @param {string} name
   * @returns {SVGElement}
   */
  function make(name) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 16 16");
    svg.setAttribute("class", `icon icon-${name}`);
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", PATHS[name] ?? PATHS.question);
    svg.append(path);
    return svg;
  }

  return { make };
})();

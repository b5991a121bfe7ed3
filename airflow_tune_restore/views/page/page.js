/** The router: the address holds the whole state of the page, so a link shows what its sender saw. */
const page = (() => {
  "use strict";
  const { el, foreign, link } = elements;

  const MARK = source.report ? "#" : "?"; // a file's address has no query of its own
  const LISTENERS = new Set();
  let leaving = new AbortController();
  let endView = null;

  /** Return what the address says. */
  function state() {
    const text = source.report ? window.location.hash.slice(1) : window.location.search;
    return Object.fromEntries(new URLSearchParams(text));
  }

  /**
   * Return a list that the address holds: names may have commas of their own.
   * @param {string} name
   * @returns {Array<string>}
   */
  function list(name) {
    return (state()[name] ?? "").split(",").filter(Boolean).map(decoded);
  }

  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text; // the link was cut off
    }
  }

  /** Return a list as the address holds it. */
  function joined(values) {
    return [...values].map(encodeURIComponent).join(",");
  }

  /**
   * Return the address of a state; what is empty is left out, but for the path of an experiment.
   * @param {Object<string, string>} wanted
   * @returns {string}
   */
  function address(wanted) {
    const kept = Object.entries(wanted).filter(
      ([name, value]) =>
        value !== null &&
        value !== undefined &&
        (value !== "" || (name === "path" && wanted.view !== "experiments")),
    );
    return `${MARK}${new URLSearchParams(kept)}`;
  }

  /**
   * Go to another state, which the Back button leaves again.
   * @param {Object<string, string>} wanted
   */
  function go(wanted) {
    window.history.pushState(null, "", address(wanted));
    draw();
    document.getElementById("main").focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }

  /**
   * Write changes of the state into the address, without drawing the view again.
   * @param {Object<string, string|null>} changes Empty ones are taken out.
   */
  function remember(changes) {
    window.history.replaceState(null, "", address({ ...state(), ...changes }));
    frame.mirror(window.location.search);
  }

  /** Return the view of a state; without what it needs, that of what is around it. */
  function viewOf(now) {
    if (now.view === "restore" && !now.restore_id) return "experiment";
    if (Object.hasOwn(VIEWS, now.view ?? "")) return now.view;
    return source.report ? "experiment" : "experiments";
  }

  /** Draw the view of the address. */
  function draw() {
    leaving.abort();
    leaving = new AbortController();
    endView?.();
    LISTENERS.clear();
    frame.mirror(window.location.search);
    const now = state();
    const main = document.getElementById("main");
    const name = viewOf(now);
    main.replaceChildren();
    main.dataset.view = name;
    endView = VIEWS[name](main, now, leaving.signal) ?? null;
  }

  /**
   * Show where we are, in the header and in the title of the window.
   * @param {Array<[string, Object|null]>} crumbs Texts, and the states that they lead to.
   * @param {...HTMLElement} tools
   */
  function locate(crumbs, ...tools) {
    const first = source.report
      ? el("span", {}, "Ray Tune experiment")
      : link({ view: "experiments" }, "Tune experiments");
    const items = crumbs.map(([text, to]) =>
      el("li", {}, to && !source.report ? link(to, foreign(text)) : foreign(text)),
    );
    document
      .getElementById("header")
      .replaceChildren(
        el("nav", { "aria-label": "Where this page is" }, el("ol", {}, el("li", {}, first), items)),
        el("div", { class: "tools" }, ...tools),
      );
    const last = crumbs.at(-1)?.[0];
    document.title = last ? `${last} · Tune experiments` : "Tune experiments";
  }

  /**
   * Call a function when the theme changes, until the view is left.
   * @param {function(): void} listener
   * @returns {function(): void} Ends it sooner.
   */
  function onTheme(listener) {
    LISTENERS.add(listener);
    return () => LISTENERS.delete(listener);
  }

  const VIEWS = {
    experiments: experiments.draw,
    experiment: experiment.draw,
    restore: restore.draw,
    dag_run: dagRun.draw,
  };

  async function start() {
    frame.followTheme(() => LISTENERS.forEach((listener) => listener()));
    window.addEventListener("popstate", draw);
    if (frame.query()) window.history.replaceState(null, "", frame.query());
    const main = document.getElementById("main");
    main.replaceChildren(notices.loading("Reading the settings…"));
    try {
      const { problem, prefixes } = await source.start();
      if (problem && !prefixes.length) {
        main.replaceChildren(notices.notConfigured(problem));
        return;
      }
    } catch (error) {
      main.replaceChildren(notices.failure(error, start, "The settings of this page could not be read."));
      return;
    }
    draw();
  }

  return { state, list, joined, address, go, remember, locate, onTheme, start };
})();

page.start();

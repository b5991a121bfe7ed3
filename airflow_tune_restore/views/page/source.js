/**
 * Where the values come from: the routes of the app, Airflow's own REST API, or what a report embeds.
 */
const source = (() => {
  "use strict";

  const embedded = document.getElementById("report-data");
  const report = embedded ? JSON.parse(embedded.textContent) : null;
  const KEYS = {
    "experiment/trial": "trial",
    "experiment/restore": "restore_id",
    "experiment/column": "name",
  };
  let settings = null;

  /** An answer that is none, as a sentence, and what to do next. */
  class SourceError extends Error {
    /**
     * @param {number} status Of HTTP; 0 if there was no answer.
     * @param {string} message What happened.
     */
    constructor(status, message) {
      super(message);
      this.status = status;
    }
  }

  /**
   * Return the value of a route.
   * @param {string} route Such as `experiment/plan`.
   * @param {Object<string, *>} [parameters] Those that are null or "" are left out, but for `path`.
   * @param {AbortSignal} [signal] Ends the request when its view is left.
   * @returns {Promise<Object>}
   * @throws {SourceError}
   */
  async function get(route, parameters = {}, signal = undefined) {
    if (report) return fromReport(route, parameters);
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(parameters)) {
      for (const each of Array.isArray(value) ? value : [value]) {
        if (each !== null && each !== undefined && (each !== "" || name === "path")) query.append(name, each);
      }
    }
    const asked = query.size ? `api/${route}?${query}` : `api/${route}`;
    return ask(asked, { signal });
  }

  /**
   * Send an action, and return what the server says about it.
   * @param {string} route
   * @param {Object} body
   * @returns {Promise<Object>}
   * @throws {SourceError}
   */
  function post(route, body) {
    return ask(`api/${route}`, sent(body));
  }

  /**
   * Ask Airflow's own REST API, whose permissions are Airflow's own.
   * @param {string} path Below `/api/v2/`.
   * @param {Object} [body] Sent with POST if given.
   * @param {AbortSignal} [signal]
   * @returns {Promise<Object>}
   * @throws {SourceError}
   */
  function airflow(path, body = undefined, signal = undefined) {
    return ask(`${settings.airflow}/api/v2/${path}`, body ? sent(body) : { signal });
  }

  function sent(body) {
    return { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  }

  async function ask(address, options) {
    let answer;
    try {
      answer = await fetch(address, { credentials: "same-origin", ...options });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new SourceError(0, "Airflow's API server does not answer.");
    }
    if (!answer.ok) throw new SourceError(answer.status, await detailOf(answer));
    return answer.json();
  }

  async function detailOf(answer) {
    const fallback = `Airflow's API server answered ${answer.status} ${answer.statusText}`.trim();
    try {
      const { detail } = await answer.json();
      if (typeof detail === "string") return detail;
      return Array.isArray(detail) ? detail.map((each) => each.msg ?? "").join("; ") || fallback : fallback;
    } catch {
      return fallback;
    }
  }

  function fromReport(route, parameters) {
    const answers = report.answers;
    if (report.problems[route]) throw new SourceError(404, report.problems[route]);
    if (route === "experiment/curves") return someCurves(answers[route], parameters.trial ?? []);
    const key = KEYS[route];
    if (key && holds(route, parameters[key])) return answers[route][parameters[key]]; // not "constructor"
    if (!key && answers[route]) return answers[route];
    throw new SourceError(404, "The report does not hold this: the page in Airflow has it.");
  }

  /**
   * Return whether a value can be asked for: a report has some of them only.
   * @param {string} route
   * @param {string} key Such as the id of a trial.
   * @returns {boolean}
   */
  function holds(route, key) {
    return !report || Object.hasOwn(report.answers[route] ?? {}, key);
  }

  function someCurves(curves, wanted) {
    if (!curves) throw new SourceError(404, "The report holds no curves.");
    const asked = new Set(wanted);
    return { ...curves, trials: curves.trials.filter((trial) => asked.has(trial.trial_id)) };
  }

  /**
   * Return the settings of the app, which are asked for once.
   * @returns {Promise<Object>}
   */
  async function start() {
    settings = await get("settings");
    return settings;
  }

  return {
    SourceError,
    get,
    post,
    airflow,
    start,
    holds,
    report,
    get settings() {
      return settings;
    },
    /** The ids of the trials whose curves can be asked for; null for any. */
    get drawable() {
      return report ? (report.answers["experiment/curves"]?.trials ?? []).map((t) => t.trial_id) : null;
    },
  };
})();

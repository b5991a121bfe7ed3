/** From the curves of trials to the lines of a chart: one line per part between two seams. */
const chartData = (() => {
  "use strict";

  const LATEST = 8e12; // seconds: a later date has no name in a browser
  const X_NAMES = { iteration: "iterations", time: "seconds trained", clock: "clock time (UTC)" };

  /**
   * @typedef {Object} Line
   * @property {number} trial The place of its trial.
   * @property {boolean} is_earlier Whether a restore came after it.
   * @property {Array<[number, number|null]>} points
   */

  /**
   * Return the lines of trials, the marks of their seams, and how many values a log axis leaves out.
   * @param {Array<Object>} all The trials of the answer.
   * @param {"iteration"|"time"|"clock"} axis
   * @param {boolean} is_log
   * @returns {{lines: Array<Line>, seams: Array<Object>, left_out: number}}
   */
  function linesOf(all, axis, is_log) {
    const lines = [];
    const seams = [];
    let left_out = 0;
    all.forEach((trial, place) => {
      const points = trial[axis].map((x, at) => {
        const y = trial.value[at];
        const fits = y !== null && !(is_log && y <= 0);
        if (y !== null && !fits) left_out += 1;
        return [axis === "clock" && Math.abs(x) > LATEST ? null : x, fits ? y : null];
      });
      const cuts = trial.seams
        .map((seam) => seam.index)
        .filter((index) => index > 0 && index < points.length);
      const starts = [0, ...cuts];
      starts.forEach((start, part) => {
        const own = points.slice(start, starts[part + 1] ?? points.length);
        const before = part > 0 && axis !== "clock" ? lead(points.slice(0, start), own) : [];
        lines.push({
          trial: place,
          is_earlier: part < starts.length - 1,
          points: ascending([...before, ...own]),
        });
      });
      for (const seam of trial.seams) {
        const [x, y] = points[Math.min(seam.index, points.length - 1)] ?? [];
        if (x !== null && x !== undefined) seams.push({ ...seam, trial: place, x, y });
      }
    });
    return { lines, seams, left_out };
  }

  /** Return the point that a resumed part goes on from, so that its line begins there. */
  function lead(earlier, own) {
    const first = own.find(([x]) => x !== null)?.[0];
    const from = earlier.findLast(([x, y]) => x !== null && y !== null && x < first);
    return from ? [from] : [];
  }

  function ascending(points) {
    const known = points.filter(([x]) => x !== null).sort((one, other) => one[0] - other[0]);
    return known.filter(([x], at) => at + 1 === known.length || known[at + 1][0] !== x);
  }

  /**
   * Return lines as the aligned columns that uPlot takes: one of x, then one per line.
   * @param {Array<Line>} lines
   * @returns {Array<Array<number|null|undefined>>}
   */
  function aligned(lines) {
    const xs = [...new Set(lines.flatMap((line) => line.points.map(([x]) => x)))].sort(
      (one, other) => one - other,
    );
    const places = new Map(xs.map((x, at) => [x, at]));
    return [
      xs,
      ...lines.map((line) => {
        const column = new Array(xs.length); // undefined: this line has no point here; null: a gap
        for (const [x, y] of line.points) column[places.get(x)] = y;
        return column;
      }),
    ];
  }

  /**
   * Return the point next to a place on the screen.
   * @param {Array<Line>} lines Those that are shown.
   * @param {function(number, number): [number, number]} project From values to the screen.
   * @param {number} left
   * @param {number} top
   * @param {number} reach In pixels.
   * @returns {{line: Line, point: [number, number]}|null}
   */
  function nearest(lines, project, left, top, reach) {
    let found = null;
    let best = reach * reach;
    for (const line of lines) {
      for (const point of line.points) {
        if (point[1] === null) continue;
        const [x, y] = project(point[0], point[1]);
        const distance = (x - left) ** 2 + (y - top) ** 2;
        if (distance < best) {
          best = distance;
          found = { line, point };
        }
      }
    }
    return found;
  }

  return { X_NAMES, linesOf, aligned, nearest };
})();

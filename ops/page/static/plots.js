// One plot over time, with its numbers as text beside it. uPlot draws on a canvas; the table is for everybody.

import { el, render, say } from "./dom.js";
import { NONE, clock } from "./format.js";

const COLOURS = ["blue", "orange", "green", "purple", "grey"];
const DASHES = [[], [7, 3], [2, 3], [9, 3, 2, 3], [1, 5]];
/** Steps of a scale of things that are counted. */
const WHOLE = [1, 2, 5].flatMap((first) => Array.from({ length: 8 }, (_, power) => first * 10 ** power)).sort((a, b) => a - b);
/** Ticks of a logarithmic scale: 1, 2, 5 and so on, or powers of ten alone where the scale is long. */
function decades(chart, axis, low, high) {
  const steps = high / low > 60 ? [1] : [1, 2, 5];
  const first = Math.floor(Math.log10(low)), count = Math.ceil(Math.log10(high)) - first + 1;
  const ticks = Array.from({ length: count }, (_, power) => steps.map((step) => step * 10 ** (first + power))).flat();
  return ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
}

const plots = [];
const synced = globalThis.uPlot.sync("time");

/** Reads a colour of page.css, which knows the light and the dark theme. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** A plot in a figure of the page. */
export class Plot {
  /**
   * @param figure The `<figure>` that it fills.
   * @param settings {title, unit(value) and tick(value) -> text, height, log, near, whole, series: [{label, from, limit}]}: `from` names a series
   *   of the history; `limit(snapshot)` is a constant to compare with in its place. The scale begins at zero, or with `near` just below the lowest value; with `log` it is logarithmic. `whole` is for
   *   things that are counted.
   */
  constructor(figure, settings) {
    this.settings = settings;
    this.height = settings.height ?? 150;
    this.figure = figure;
    this.canvas = el("div", { class: "canvas", role: "img" });
    this.legend = el("div", { class: "legend" });
    const nothing = el("p", { class: "nothing" }, "Nothing is known of this time yet.");
    this.caption = el("figcaption", {}, settings.title);
    figure.replaceChildren(this.caption, nothing, this.canvas, this.legend);
    this.data = [[], ...settings.series.map(() => [])];
    this.cursor = null;
    this.build();
    plots.push(this);
    new ResizeObserver(() => this.resize()).observe(this.canvas);
  }

  /** Shows these columns: times in seconds, and one array for each series, with null where nothing is known. */
  show(times_s, columns, first_s, last_s) {
    this.data = [times_s, ...columns];
    this.range = [first_s, last_s];
    const drawn = columns.filter((_, index) => !this.settings.series[index].limit);
    this.figure.classList.toggle("empty", drawn.every((column) => column.every((value) => value === null)));
    this.chart.setData(this.data, false);
    this.chart.setScale("x", { min: first_s, max: last_s });
    this.describe();
  }

  /** Says behind the title what a point is. */
  say(text) {
    say(this.caption, this.settings.title + text);
  }

  build() {
    this.chart?.destroy();
    const axis = { stroke: colour("soft"), font: "11px system-ui, sans-serif", ticks: { show: false } };
    const grid = { stroke: colour("grid"), width: 1 };
    this.chart = new globalThis.uPlot(
      {
        width: Math.max(200, this.canvas.clientWidth),
        height: this.height,
        legend: { show: false },
        cursor: { sync: { key: synced.key }, drag: { x: false, y: false }, points: { size: 6 } },
        tzDate: (at_s) => globalThis.uPlot.tzDate(new Date(at_s * 1000), "Etc/UTC"),
        scales: { x: { time: true }, y: this.settings.log ? { distr: 3 } : { range: (_, low, high) => this.limits(low, high) } },
        axes: [
          { ...axis, grid: { show: false }, size: 24, space: 60, values: (_, all) => all.map((at_s) => clock(at_s * 1000, at_s * 1000, false).slice(0, 5)) },
          { ...axis, grid, size: 58, space: 26, ...(this.settings.whole ? { incrs: WHOLE } : {}), ...(this.settings.log ? { splits: decades } : {}), values: (_, all) => all.map((value) => (value === null ? "" : (this.settings.tick ?? this.settings.unit)(value))) },
        ],
        series: [{}, ...this.settings.series.map((one, index) => ({
          stroke: colour(one.limit === undefined ? COLOURS[index] : "text"),
          dash: one.limit === undefined ? DASHES[index] : [3, 4],
          width: one.limit === undefined ? 1.75 : 1,
          points: { show: false },
          spanGaps: false,
        }))],
        hooks: { setCursor: [(chart) => this.moved(chart.cursor.idx ?? null)] },
      },
      this.data,
      this.canvas,
    );
    if (this.range) this.chart.setScale("x", { min: this.range[0], max: this.range[1] });
  }

  /** The ends of a linear scale, with some air above. */
  limits(low, high) {
    if (low === null || high === null) return [0, 1];
    const air = 0.1 * (high - low) || 1e-3;
    return this.settings.near ? [low - air, high + air] : [Math.min(0, low), high ? 1.08 * high : 1];
  }

  resize() {
    const width = Math.floor(this.canvas.clientWidth);
    if (width && width !== this.chart.width) this.chart.setSize({ width, height: this.height });
  }

  moved(index) {
    if (index !== this.cursor) {
      this.cursor = index;
      this.describe();
    }
  }

  /** The table under the plot: each series with its value now, or under the cursor, its least and its most. */
  describe() {
    const [times_s, ...columns] = this.data;
    const { unit, series, title } = this.settings;
    const index = this.cursor ?? times_s.length - 1;
    const at = this.cursor === null ? "now" : clock((times_s[index] ?? 0) * 1000, undefined, false).slice(0, 5);
    const rows = series.map((one, number) => ({ ...summary(columns[number], index), ...one, number }));
    render(
      this.legend,
      el("table", {},
        el("thead", {}, el("tr", {}, ["", at, "lowest", "highest"].map((name, place) =>
          place ? el("th", { scope: "col", class: "number" }, name) : el("td", {}))) ),
        el("tbody", {}, rows.map((row) =>
          el("tr", {},
            el("th", { scope: "row" }, swatch(row), row.label),
            ["value", "lowest", "highest"].map((name) =>
              el("td", { class: "number" }, row.limit !== undefined && name !== "value" ? "" : shown(row[name], unit))))))),
    );
    const told = rows.map((row) => `${row.label} ${shown(row.value, unit)}`).join(", ");
    this.canvas.setAttribute("aria-label", `Plot: ${title}. Now: ${told}. The table below has the numbers.`);
  }
}

const shown = (value, unit) => (value === null || value === undefined ? NONE : unit(value));

function summary(column = [], index) {
  const known = column.filter((value) => value !== null && value !== undefined);
  return {
    value: column[index] ?? null,
    lowest: known.length ? known.reduce((a, b) => Math.min(a, b)) : null,
    highest: known.length ? known.reduce((a, b) => Math.max(a, b)) : null,
  };
}

function swatch({ number, limit }) {
  const dash = limit === undefined ? DASHES[number] : [3, 4];
  return el("svg", { class: `swatch ${limit === undefined ? COLOURS[number] : "text"}`, viewBox: "0 0 26 8", "aria-hidden": "true" },
    el("line", { x1: 1, y1: 4, x2: 25, y2: 4, "stroke-dasharray": dash.length ? dash.join(" ") : null }));
}

/** Draws all plots anew, in the colours of the other theme. */
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach((plot) => plot.build()));

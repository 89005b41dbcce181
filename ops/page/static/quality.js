// Sections about what is judged and told, what runs beside the queue, and what is in force.

import { el, mark, table } from "./dom.js";
import { ago, clock, cosine, counted, signed, span, whole } from "./format.js";
import { code, link, minus } from "./glance.js";
import { facts } from "./serving.js";
import { ALERT_STATES, plain } from "./words.js";

const SEEN = { ok: "No drop is seen.", firing: "Answers got worse.", insufficient: "Too little is known." };
const LEVELS = { ok: "well", firing: "bad", insufficient: "unknown" };

export function drift(snapshot) {
  const { drift: found = {} } = snapshot;
  const { means = [], exemplars = [], rules = [] } = found;
  const change = minus(found.delta, found.baseline_delta);
  return [
    el("p", {}, mark(LEVELS[found.state] ?? "unknown", SEEN[found.state] ?? SEEN.insufficient), found.verdict && ` ${found.verdict.replace(/[.]?$/, ".")}`),
    facts([
      ["OOD delta, 24 h", cosine(found.delta)], ["its baseline", cosine(found.baseline_delta)],
      ["change", signed(change)], ["told from a drop of", cosine(found.threshold)],
      typeof found.drop_low === "number" && ["drop, 99 % interval", `${signed(found.drop_low)} to ${signed(found.drop_high)}`],
    ].filter(Boolean)),
    means.length ? table("Means of the cosine over 24 h", [
      { title: "slice", head: true, cell: (row) => row.slice },
      { title: "mean", number: true, cell: (row) => cosine(row.mean) },
      { title: "95 % interval", number: true, cell: (row) => (typeof row.low === "number" ? `${cosine(row.low)} to ${cosine(row.high)}` : "–") },
      { title: "samples", number: true, cell: (row) => whole(row.n) },
    ], means, (row) => row.slice) : el("p", { class: "empty" }, "No sampled prediction met its truth yet."),
    rules.length > 0 && el("details", {}, el("summary", {}, `What each of the judge's ${rules.length} rules says`), table("Rules of the judge", [
      { title: "rule", head: true, cell: (row) => plain(row.rule) },
      { title: "lane", cell: (row) => row.lane || "all" },
      { title: "state", cell: (row) => mark(LEVELS[row.state] ?? "unknown", row.state === "insufficient" ? "too little data" : row.state) },
      { title: "in words", wraps: true, cell: (row) => row.summary },
    ], rules, (row) => `${row.rule} ${row.model} ${row.lane}`)),
    exemplars.length > 0 && el("details", {}, el("summary", {}, `Look at ${counted(exemplars.length, "exemplar")}`), ownTable("Exemplars", exemplars)),
  ];
}

/** A table of rows with whatever keys they have. */
function ownTable(label, rows) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const shown = (value) => (typeof value === "number" ? (Number.isInteger(value) ? whole(value) : cosine(value)) : String(value ?? "–"));
  return table(label, names.map((name, index) => ({
    title: plain(name), head: index === 0, cell: (row) => (name.endsWith("_ms") ? clock(row[name]) : name === "minute" ? clock(60_000 * row[name], undefined, false) : shown(row[name])),
  })), rows, (row) => JSON.stringify(row));
}

export function alerts(snapshot, now_ms) {
  const { alerts: found = [], silences = [], actions } = snapshot;
  const silence = (row) => actions && row.id && row.state !== "silenced" && el("button", {
    type: "button", "data-action": "silence", "data-alert": row.id, "data-rule": row.rule }, "Silence …");
  return [
    found.length ? el("ul", { class: "alerts" }, found.map((row) => el("li", { "data-key": row.id },
      el("div", {}, mark(...(ALERT_STATES[row.state] ?? ["unknown", row.state])), " ", el("strong", {}, plain(row.rule)),
        row.told && `: ${row.told}`, row.severity && el("span", { class: "soft" }, ` (${row.severity})`),
        row.since_ms && el("span", { class: "soft" }, `, since ${clock(row.since_ms, now_ms, false)}, ${ago(now_ms - row.since_ms)}`)),
      el("div", {}, code(row.summary)),
      el("div", { class: "buttons" }, row.runbook_link && link(row.runbook_link, "Runbook"), silence(row)))))
      : el("p", { class: "empty" }, snapshot.drift?.judging ? mark("well", "Nothing fires.") : mark("unknown", "Nothing is known to fire, as no judge is at work.")),
    silences.length > 0 && [el("h3", {}, "Held back"), table("Silences", [
      { title: "what", head: true, wraps: true, cell: (row) => row.what },
      { title: "until", wraps: true, cell: (row) => clock(row.until_ms, now_ms, false) },
      { title: "why", wraps: true, cell: (row) => row.reason },
      { title: "by", cell: (row) => row.author },
      actions && { title: "do", cell: (row) => el("button", { type: "button", "data-action": "end_silence", "data-id": row.id, "data-what": row.what }, "End …") },
    ].filter(Boolean), silences, (row) => row.id)],
  ];
}

export function jobs({ jobs: found = [] }) {
  if (!found.length) return el("p", { class: "empty" }, "No job waits or runs.");
  return table("Jobs in numbers", [
    { title: "job", head: true, wraps: true, cell: (row) => [row.description, el("div", { class: "soft" }, row.id)] },
    { title: "state", cell: (row) => plain(row.status) },
    { title: "rows", number: true, cell: (row) => [`${whole(row.done)} of ${whole(row.rows)}`,
      el("progress", { max: row.rows || 1, value: row.done ?? 0, "aria-label": `Rows of ${row.id}` })] },
    { title: "rate", number: true, cell: (row) => (row.rate_per_s ? `${whole(row.rate_per_s)} rows/s` : "–") },
    { title: "left", number: true, cell: (row) => (typeof row.left_s === "number" ? span(1000 * row.left_s) : "–") },
  ], found, (row) => row.id);
}

export function force({ in_force: found = {} }) {
  const pairs = Object.entries(found).filter(([, value]) => value);
  if (!pairs.length) return el("p", { class: "empty" }, "No worker has said what it serves.");
  return facts(pairs.map(([name, value]) => [plain(name), el("code", {}, value)]));
}

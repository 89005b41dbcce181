// Sections about requests: latency, stages, escalation.

import { el, mark, table } from "./dom.js";
import { counted, ms, number, percent, perSecond } from "./format.js";
import { REASONS, STAGES, plain } from "./words.js";

/** A short list of names and values. */
export const facts = (pairs) =>
  el("dl", { class: "facts" }, pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));

export function latency({ latency: found = {} }) {
  const { p95_ms, slow_share: slow, objective_p95_ms: bar } = found;
  const times = typeof p95_ms === "number" && p95_ms > bar ? `, ${number(p95_ms / bar)} times as long` : "";
  const missed = times || slow > 0.05;
  const held = typeof p95_ms !== "number" && typeof slow !== "number" ? mark("unknown", "nothing measured yet")
    : missed ? mark("warning", `missed${times}`) : mark("well", "held");
  return el("p", {}, typeof p95_ms === "number" && ["95 of 100 answers within ", el("strong", {}, ms(p95_ms)), ". "],
    `Objective: 95 of 100 within ${ms(bar)}: `, held, ".",
    typeof slow === "number" && ` ${percent(slow)} took longer than that.`,
    found.n > 0 && el("span", { class: "soft" }, ` Measured on ${counted(found.n, "request")}.`));
}

const PALETTE = ["blue", "orange", "green", "purple", "grey"];

/** A stacked bar for each kind of worker, and the same in numbers; the digits in the bar are those of the rows. */
export function stages({ stages: found = {} }) {
  const kinds = Object.keys(found).filter((kind) => Object.keys(found[kind]).length);
  if (!kinds.length) return el("p", { class: "empty" }, "No request was measured in the last minutes.");
  const first = kinds.filter((kind) => FIRST.has(kind)), others = kinds.filter((kind) => !FIRST.has(kind));
  return [
    first.map((kind) => ofKind(kind, found[kind])),
    others.length > 0 && el("details", {}, el("summary", {}, `More: ${others.join("; ")}`), others.map((kind) => ofKind(kind, found[kind]))),
  ];
}

/** Kinds that somebody waits for; bulk work and the secondary fallback stand behind them. */
const FIRST = new Set(["amn", "fallback"]);

function ofKind(kind, found) {
  const rows = Object.entries(found).map(([stage, times], index) =>
    ({ ...times, stage, place: index + 1, colour: PALETTE[index % PALETTE.length], time_ms: times.mean ?? times.p50 ?? 0 }));
  const sum_ms = rows.reduce((total, row) => total + row.time_ms, 0) || 1;
  rows.forEach((row) => Object.assign(row, { share: row.time_ms / sum_ms }));
  return el("div", { class: "stack", "data-key": kind }, bar(kind, rows), table(`Stages of ${kind} workers in numbers`, [
    { title: "stage", head: true, wraps: true, cell: (row) => [el("span", { class: `digit ${row.colour}`, "aria-hidden": "true" }, row.place), ` ${row.stage}`, STAGES[row.stage] && el("span", { class: "soft" }, `: ${STAGES[row.stage]}`)] },
    { title: "mean", number: true, cell: (row) => ms(row.mean) },
    { title: "share", number: true, cell: (row) => percent(row.share) },
    { title: "p50", number: true, cell: (row) => ms(row.p50) },
    { title: "p95", number: true, cell: (row) => ms(row.p95) },
    { title: "p99", number: true, cell: (row) => ms(row.p99) },
  ], rows, (row) => row.stage));
}

function bar(kind, rows) {
  let x = 0;
  const parts = rows.map(({ share, colour, place }) => {
    const at = x;
    x += share;
    return [
      el("rect", { class: colour, x: `${100 * at}%`, y: 0, width: `${100 * share}%`, height: 24 }),
      share > 0.04 && el("text", { x: `${100 * (at + share / 2)}%`, y: 16 }, place),
    ];
  });
  const told = rows.map((row) => `${row.stage} ${percent(row.share)}`).join(", ");
  return [
    el("h3", {}, `${kind}: ${ms(rows.reduce((total, row) => total + row.time_ms, 0))} in the mean of ${counted(rows[0].requests, "request")}`),
    el("svg", { width: "100%", height: 24, role: "img", "aria-label": `Shares of the time: ${told}` }, parts),
  ];
}

export function escalation({ escalation: found = {} }) {
  const { rate, hour_rate: hour, limit, by_reason: reasons = [], shed_by_reason: shed = [] } = found;
  const state = typeof hour !== "number" ? mark("unknown", "not known yet")
    : hour > limit ? mark("warning", "above the limit") : mark("well", "within the limit");
  return [
    el("p", {}, "Last seconds: ", el("strong", {}, percent(rate)), ". Last hour: ", el("strong", {}, percent(hour)),
      ` of at most ${percent(limit)}, `, state, "."),
    el("div", { class: "pair" },
      why("Given to a fallback, because", reasons), why("A rule fired, AMN answered all the same, because", shed)),
  ];
}

function why(title, rows) {
  const sorted = [...rows].sort((one, other) => (other.per_s ?? 0) - (one.per_s ?? 0));
  return el("div", {}, el("h3", {}, title), rows.length ? table(title, [
    { title: "reason", head: true, wraps: true, cell: (row) => [plain(row.reason), REASONS[row.reason] && el("span", { class: "soft" }, `: ${REASONS[row.reason]}`)] },
    { title: "rate", number: true, cell: (row) => perSecond(row.per_s) },
  ], sorted, (row) => row.reason) : el("p", { class: "empty" }, "none"));
}

// The first glance: the verdict, what else was found, and the figures that an on-call person asks for first.

import { el, mark, say } from "./dom.js";
import { ago, clock, counted, cosine, ms, number, percent, perSecond, span, whole } from "./format.js";
import { SEVERITIES, VERDICTS, plain } from "./words.js";

/** Says the verdict up to its first colon; a screen reader hears it once, when it changes. */
export function sayVerdict(element, verdict) {
  const [said] = parts(verdict);
  say(element, sentenceOf(said));
}

/** A text as a sentence; names of workers stay small. */
function sentenceOf(text) {
  const first = /^(amn|fallback|shadow)\b/.test(text) ? text.charAt(0) : text.charAt(0).toUpperCase();
  return first + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

/** What is said first, and the particulars behind the colon. */
function parts({ sentence = "" }) {
  const at = sentence.indexOf(": ");
  return at < 0 ? [sentence, ""] : [sentence.slice(0, at), sentence.slice(at + 2)];
}

/** Since when, what to do, and what else was found. */
export function advice(snapshot, now_ms) {
  const { verdict, findings = [] } = snapshot;
  const [level] = VERDICTS[verdict.state] ?? VERDICTS.unknown;
  const others = findings.filter((one) => !verdict.sentence.startsWith(one.sentence));
  const [, rest] = parts(verdict);
  return [
    rest && el("p", { class: "rest" }, code(sentenceOf(rest))),
    verdict.since_ms && el("p", { class: "since" }, level === "well" ? "Well since " : "Since ", since(verdict.since_ms, now_ms)),
    verdict.remedy && el("p", { class: "runbook" }, el("strong", {}, "What to do: "), code(verdict.remedy),
      verdict.runbook_link && [" ", link(verdict.runbook_link, "Runbook")]),
    others.length > 0 && el("details", { class: "findings", "data-key": level, open: level !== "well" },
      el("summary", {}, counted(others.length, "other finding")),
      el("ul", {}, others.map((one) => finding(one, now_ms)))),
  ];
}

function finding(one, now_ms) {
  const [level, word] = SEVERITIES[one.severity] ?? SEVERITIES.notice;
  return el("li", { "data-key": `${one.check} ${one.sentence}` },
    mark(level, word), " ", el("strong", {}, one.check), " ", code(sentenceOf(one.sentence)),
    one.since_ms && el("span", { class: "soft" }, ` Since ${clock(one.since_ms, now_ms, false)}.`),
    one.remedy && el("div", { class: "soft" }, code(one.remedy)));
}

const since = (at_ms, now_ms) => `${clock(at_ms, now_ms)}, ${ago(now_ms - at_ms)} ago`;

/** Text whose parts between backquotes are commands; all of it is one where it begins like one. */
export function code(text) {
  if (/^amn [a-z]+( [\w-]+)*$/.test(text)) return el("code", {}, text);
  return String(text).split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));
}

/** A link that leaves the page only for an address of the web; anything else is shown as text. */
export function link(address, text) {
  if (!/^https?:\/\//.test(address)) return el("span", { class: "soft" }, `${text}: ${address}`);
  return el("a", { href: address, rel: "noreferrer", target: "_blank" }, `${text} (new tab)`);
}

/** The tiles under the verdict; each leads to its section. */
export function tiles(snapshot, now_ms, recent) {
  const { traffic = {}, latency = {}, escalation = {}, streams = [], workers = [], dead = {}, drift = {}, alerts = [] } = snapshot;
  // Bulk work waits for as long as it likes: nobody is paged for it.
  const [awaited, bulk] = [false, true].map((low) =>
    streams.filter((one) => (one.kind === "amn" || one.kind === "fallback") && (one.level === "low") === low));
  const most = (name) => awaited.reduce((most, one) => Math.max(most, one[name] ?? 0), 0);
  const sum = (rows) => rows.reduce((total, one) => total + (one.entries ?? 0), 0);
  const well = workers.filter((one) => one.state === "working" || one.state === "idle").length;
  const firing = alerts.filter((one) => one.state === "firing" || one.state === "undelivered");
  return [
    tile("traffic", "Answered", perSecond(traffic.answered_per_s), `${perSecond(traffic.submitted_per_s)} submitted`, null, recent("answered_per_s")),
    tile("latency", "95 of 100 within", ms(latency.p95_ms), ...judged(latency.p95_ms, latency.objective_p95_ms), recent("p95_ms")),
    tile("escalation", "Given to a fallback", percent(escalation.rate), ...hourly(escalation), recent("escalation_rate")),
    tile("streams", "Backlog", span(1000 * most("backlog_s")), `${whole(sum(awaited))} waiting${sum(bulk) ? `, ${whole(sum(bulk))} bulk` : ""}`, null, recent("depth_amn")),
    tile("workers", "Workers well", `${well} of ${workers.length}`, troubled(workers), well < workers.length || !well ? "bad" : null, recent("amn_workers")),
    tile("drift", "OOD delta", cosine(drift.delta), `baseline ${cosine(drift.baseline_delta)}`, null, recent("delta")),
    tile("dead", "Dead letters", whole(dead.count), newest(dead, now_ms), dead.count ? "warning" : null),
    tile("alerts", "Alerts firing", whole(firing.length), firing.map((one) => plain(one.rule)).join(", ") || others(alerts.length), firing.length ? "bad" : null),
  ];
}

const others = (count) => (count ? `${count} silenced or ending` : "none is held back");

export const minus = (one, other) => (typeof one === "number" && typeof other === "number" ? one - other : null);

function judged(value, bar) {
  if (typeof value !== "number" || typeof bar !== "number") return [`objective ${number(bar)} ms`, null];
  return value > bar ? [`above ${number(bar)} ms`, "warning"] : [`objective ${number(bar)} ms: held`, null];
}

/** The limit is of an hour: a few seconds above it are no trouble. */
function hourly({ hour_rate: hour, limit }) {
  if (typeof hour !== "number") return [`limit ${percent(limit)} of an hour`, null];
  return [`${percent(hour)} in the hour, limit ${percent(limit)}`, hour > limit ? "warning" : null];
}

function troubled(workers) {
  const count = (state) => workers.filter((one) => one.state === state).length;
  const told = ["stuck", "gone"].filter(count).map((state) => `${count(state)} ${state}`);
  if (!workers.length) return "none is known";
  return told.join(", ") || `${count("working")} working, ${count("idle")} idle`;
}

function newest(dead, now_ms) {
  const at_ms = dead.newest?.[0]?.died_at_ms;
  return at_ms ? `newest ${ago(now_ms - at_ms)} ago` : "none is kept";
}

function tile(section, label, value, note, level, values) {
  return el("li", { "data-key": section },
    el("a", { href: `#${section}` },
      el("span", { class: "label" }, label),
      el("span", { class: "value" }, value),
      spark(values),
      el("span", { class: "note" }, level ? mark(level, note) : note)));
}

/** The last hour as a line without axes; the plots of the sections have the numbers. */
function spark(values = []) {
  const known = values.filter((value) => value !== null);
  if (known.length < 2) return null;
  const high = Math.max(...known), low = Math.min(0, ...known), width = values.length - 1;
  const points = values.map((value, index) => value === null ? null
    : `${number((100 * index) / width)},${number(19 - (17 * (value - low)) / (high - low || 1))}`);
  return el("svg", { class: "spark", viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": "true" },
    el("polyline", { points: points.filter(Boolean).join(" ") }));
}

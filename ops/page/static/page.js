// The page: one snapshot a second goes through the sections, and the history through the plots.

import { listen } from "./actions.js";
import { mark, render, say } from "./dom.js";
import { Feed } from "./feed.js";
import { ago, clock, cosine, ms, number, percent, perSecond, whole } from "./format.js";
import { advice, minus, sayVerdict, tiles } from "./glance.js";
import { Plot } from "./plots.js";
import { alerts, drift, force, jobs } from "./quality.js";
import { dead, streams, workers } from "./queues.js";
import { escalation, latency, stages } from "./serving.js";
import { VERDICTS } from "./words.js";

const SECTIONS = { latency, stages, escalation, drift, alerts, streams, workers, dead, jobs, force };
const OLD_MS = 3_000;
const LATELY_MS = 600_000;
/** Between two points further apart nothing is known, and no line is drawn. */
const GAP_S = 150;
const KINDS = ["amn", "fallback", "shadow"];
const $ = (id) => document.getElementById(id);

/** The newest values of a snapshot, by the names that the history has for them. */
function now({ traffic, latency, escalation, drift, streams, workers }) {
  const depth = (kind) => streams.reduce((sum, one) => sum + (one.kind === kind ? one.entries : 0), 0);
  const alive = KINDS.map((kind) => [`${kind}_workers`, workers.filter((one) => one.kind === kind && one.state !== "gone").length]);
  return { ...traffic, ...latency, escalation_rate: escalation.rate, delta: drift.delta,
    depth_amn: depth("amn"), depth_fallback: depth("fallback"), ...Object.fromEntries(alive) };
}

const PLOTS = {
  traffic: { title: "Requests a second", unit: perSecond, series: [
    { label: "submitted", from: "submitted_per_s" },
    { label: "answered", from: "answered_per_s" },
    { label: "failed", from: "failed_per_s" },
    { label: "expired: too late", from: "expired_per_s" },
    { label: "refused: the queue was full", from: "refused_per_s" }] },
  latency: { title: "Enqueue to answer, on a logarithmic scale", unit: ms, most: true, tick: (value) => (value < 1000 ? `${number(value)} ms` : `${number(value / 1000)} s`), log: true, series: [
    { label: "half within", from: "p50_ms" },
    { label: "95 of 100 within", from: "p95_ms" },
    { label: "99 of 100 within", from: "p99_ms" },
    { label: "objective for 95 of 100", limit: (s) => s.latency.objective_p95_ms }] },
  escalation: { title: "Share given to a fallback", unit: percent, series: [
    { label: "given", from: "escalation_rate" },
    { label: "limit", limit: (s) => s.escalation.limit }] },
  drift: { title: "OOD delta: how much better answers out of distribution are than those in it", unit: cosine, near: true, series: [
    { label: "delta, 24 h", from: "delta" },
    { label: "baseline", limit: (s) => s.drift.baseline_delta },
    { label: "told below", limit: (s) => minus(s.drift.baseline_delta, s.drift.threshold) }] },
  streams: { title: "Requests waiting", unit: whole, whole: true, most: true, series: [
    { label: "for AMN", from: "depth_amn" },
    { label: "for a fallback", from: "depth_fallback" }] },
  workers: { title: "Workers alive", unit: whole, whole: true, height: 90, series: KINDS.map((kind) => ({ label: kind, from: `${kind}_workers` })) },
};

const plots = Object.fromEntries(Object.entries(PLOTS).map(([id, settings]) =>
  [id, new Plot(document.querySelector(`#${id} figure`), settings)]));
let snapshot = null;
let history = { at_ms: [], series: {} };
let stale = null;
let known_ms = null;
/** Snapshots of the last ten minutes, as far as the plots need them: {at_ms, and values as `now` gives them}. */
let lately = [];

const feed = new Feed({
  onSnapshot(fresh) {
    const away = fresh.reachable === false;
    // While the server is away, what is known of it is old; it stays on the page, and the page says so.
    if (!away) known_ms = fresh.made_ms;
    snapshot = away ? { ...snapshot, ...fresh } : fresh;
    say($("queue"), fresh.queue);
    document.body.className = !away ? "" : known_ms ? "away" : "waiting";
    stale = null;
    verdict(fresh.verdict);
    say($("old"), !away ? "" : known_ms ? `The numbers below are old: they are of ${clock(known_ms)}.` : "The server was never reached; there are no numbers.");
    if (away) return;
    for (const [id, section] of Object.entries(SECTIONS)) {
      render(document.querySelector(`#${id} .now`), section(snapshot, snapshot.made_ms));
    }
    render($("tiles"), tiles(snapshot, snapshot.made_ms, recent));
    lately = [...lately.filter((one) => one.at_ms > fresh.made_ms - LATELY_MS && one.at_ms < fresh.made_ms), { at_ms: fresh.made_ms, ...now(fresh) }];
    draw();
  },
  onHistory(fresh) {
    history = fresh;
    draw();
  },
  onAge: tellAge,
});

/** Shows a verdict in the sentence, the window's title and the colour of the card. */
function verdict(found) {
  const [level, word] = VERDICTS[found.state] ?? VERDICTS.unknown;
  $("verdict").className = level;
  render($("state"), mark(level, word));
  sayVerdict($("sentence"), found);
  document.title = `${word}: ${snapshot?.queue ?? "AMN"}`;
  render($("advice"), snapshot && !stale ? advice(snapshot, snapshot.made_ms) : []);
}

/** Says how old the page is; after three seconds nothing on it may be taken for the present. */
function tellAge({ age_ms, away, never }) {
  const old = age_ms > OLD_MS;
  if (!old) say($("freshness"), snapshot ? `Live, ${clock(feed.now_ms())}` : "Connecting …");
  else say($("freshness"), never ? "No data yet" : `${ago(age_ms)} old`);
  if (old && !stale) {
    stale = true;
    document.body.className = "old";
    const why = away ? "The process of this page, amn dashboard, does not answer." : "Nothing has come from the process of this page, amn dashboard.";
    say($("old"), `${why} It is tried again every two seconds.`);
    verdict({ state: "unknown", sentence: never ? "this page has heard nothing yet."
      : `what you see is old. At ${clock(feed.made_ms)} it was ${(VERDICTS[snapshot.verdict.state] ?? VERDICTS.unknown)[1].toLowerCase()}: ${snapshot.verdict.sentence}` });
  }
}

const minutes = () => Number(document.querySelector("#ranges input:checked").value);

/** The last hour of one series, for the tiles. */
const recent = (name) => (history.series[name] ?? []).slice(-60);

/** Minutes that one point of a plot stands for: as many points as a screen can tell apart. */
const step = () => (minutes() > 360 ? 5 : 1);

/** The value of the minutes up to a row: their mean, or for what is short and bad their most. */
function joined(row, column = [], most = false) {
  const known = column.slice(Math.max(0, row - step() + 1), row + 1).filter((value) => value !== null);
  if (!known.length) return null;
  return most ? Math.max(...known) : known.reduce((sum, value) => sum + value, 0) / known.length;
}

/** Minutes of the history, then seconds of the snapshots: of the whole range for ten minutes, else since the last minute. */
function draw() {
  if (!lately.length) return;
  const last_ms = known_ms, first_ms = last_ms - 60_000 * minutes();
  const seconds_ms = minutes() === 10 ? lately[0].at_ms : Math.max(lately[0].at_ms, (history.at_ms.at(-1) ?? 0) + 1);
  const rows = history.at_ms.flatMap((at_ms, index) =>
    (at_ms >= first_ms && at_ms < seconds_ms && index % step() === step() - 1 ? [index] : []));
  const fine = lately.filter((one) => one.at_ms >= seconds_ms);
  const times_s = [...rows.map((row) => history.at_ms[row]), ...fine.map((one) => one.at_ms)].map((at_ms) => at_ms / 1000);
  const gaps = times_s.flatMap((at_s, index) => (index && at_s - times_s[index - 1] > GAP_S * step() ? [index] : []));
  const withGaps = (values, gap) => values.flatMap((value, index) => (gaps.includes(index) ? [gap(index), value] : [value]));
  const spaced_s = withGaps(times_s, (index) => times_s[index] - 1);
  for (const [id, { series, most }] of Object.entries(PLOTS)) {
    const columns = series.map(({ limit, from }) => limit ? times_s.map(() => limit(snapshot))
      : [...rows.map((row) => joined(row, history.series[from], most)), ...fine.map((one) => one[from] ?? null)]);
    plots[id].say(step() === 1 ? "" : `, ${most ? "the most" : "means"} of ${step()} minutes`);
    plots[id].show(spaced_s, columns.map((column, index) => withGaps(column, () => series[index].limit?.(snapshot) ?? null)), first_ms / 1000, last_ms / 1000);
  }
}

$("ranges").addEventListener("change", draw);
listen($("confirm"));
feed.start();

// Sections about what waits, who works, and what could not be answered.

import { el, mark, table } from "./dom.js";
import { ago, clock, counted, percent, span, whole } from "./format.js";
import { REASONS, WORKER_STATES, plain, streamName } from "./words.js";

export function streams({ streams: found = [], queue_limits: limits = {} }) {
  if (!found.length) return el("p", { class: "empty" }, "Nothing was ever put into this queue.");
  return [
    table("What waits, stream by stream", [
      { title: "stream", head: true, cell: streamName },
      { title: "waiting", number: true, cell: (row) => whole(row.entries) },
      { title: "oldest", number: true, cell: (row) => (row.entries ? span(row.oldest_age_ms) : "–") },
      { title: "backlog", number: true, cell: (row) => span(1000 * row.backlog_s) },
    ], found, streamName),
    el("p", { class: "soft" }, "Backlog: the time that the work waiting takes at the rate of the last minute.",
      limits.entries_max && ` The queue is full at ${whole(limits.entries_max)} waiting requests.`),
  ];
}

export function workers({ workers: found = [] }) {
  if (!found.length) {
    return el("p", { class: "empty" }, mark("bad", "No worker is known to the server. "), "Start some: ", el("code", {}, "amn up"));
  }
  const models = new Set(found.filter((one) => one.kind === "amn" && one.model).map((one) => one.model));
  return [
    table("Workers in numbers", [
      { title: "worker", head: true, cell: (row) => row.name },
      { title: "state", wraps: true, cell: (row) => mark(...(WORKER_STATES[row.state] ?? ["unknown", row.state])) },
      { title: "busy", number: true, cell: (row) => percent(row.busy_ratio) },
      { title: "heard", number: true, cell: (row) => (row.seen_ms_ago === undefined ? "–" : `${ago(row.seen_ms_ago)} ago`) },
      { title: "answered", number: true, cell: (row) => whole(row.finished) },
      { title: "model", cell: (row) => row.model || "–" },
      { title: "kind", cell: (row) => row.kind },
      { title: "process", cell: (row) => [row.host, row.pid && ` ${row.pid}`] },
      { title: "policy", cell: (row) => row.policy || "–" },
      { title: "version", cell: (row) => row.version || "–" },
    ], found, (row) => row.name),
    models.size > 1 && el("p", {}, mark("warning", `AMN workers serve ${models.size} different models: a swap is under way, or one was refused.`)),
  ];
}

export function dead(snapshot, now_ms) {
  const { dead: found = {}, actions } = snapshot;
  const { groups = [], newest = [], count = 0 } = found;
  if (!count) return el("p", { class: "empty" }, mark("well", "None: every request got an answer or a named error."));
  const age = (at_ms) => (at_ms ? `${ago(now_ms - at_ms)} ago` : "–");
  return [
    el("p", {}, `${counted(count, "request")} that no worker could answer, kept with the reason.`,
      found.grouped < count && ` The table is of the newest ${whole(found.grouped)}.`),
    table("Dead letters by reason", [
      { title: "reason", head: true, wraps: true, cell: (row) => [plain(row.reason), el("div", { class: "soft" }, REASONS[row.reason] ?? "")] },
      { title: "from", cell: (row) => row.kind },
      { title: "letters", number: true, cell: (row) => whole(row.count) },
      { title: "newest", number: true, cell: (row) => age(row.newest_ms) },
      actions && { title: "do", cell: (row) => el("span", { class: "buttons" },
        ["replay", "purge"].map((name) => el("button", {
          type: "button", "data-action": name, "data-reason": row.reason, "data-kind": row.kind,
        }, `${name[0].toUpperCase()}${name.slice(1)} …`))) },
    ].filter(Boolean), groups, (row) => `${row.reason} ${row.kind}`),
    el("details", {},
      el("summary", {}, `Look at the newest ${newest.length}`),
      table("Newest dead letters", [
        { title: "died", head: true, cell: (row) => clock(row.died_at_ms, now_ms) },
        { title: "reason", cell: (row) => plain(row.reason) },
        { title: "the worker said", wraps: true, cell: (row) => row.message },
        { title: "letter", cell: (row) => el("button", { type: "button", "data-action": "peek", "data-id": row.id }, "Look …") },
      ], newest, (row) => row.id)),
  ];
}

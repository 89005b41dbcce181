// What stable names of the service mean, in words for somebody who sees them for the first time.

/** Why a request is treated as it is: rules, what sheds, and codes of dead letters. */
export const REASONS = {
  // Why a request is given to a fallback (docs/escalation.md).
  high_stakes_lane: "lane that always gets a second answer",
  long_context: "its text is long",
  asked_for: "its client asked for it",
  low_confidence: "the answer is far from every reference",
  thin_margin: "two answers nearly alike",
  worth_escalating: "the fallback is expected to be better",
  // Why AMN answered all the same.
  no_gain: "a fallback would not do better",
  budget: "the hour's budget is used up",
  hard_budget: "the budget of the lanes that must escalate is used up",
  fallback_lag: "the fallback lags behind",
  fallback_full: "the fallback's queue is full",
  fallback_down: "no fallback worker answers",
  deadline: "too little time was left",
  batch: "part of a batch",
  // Why a request became a dead letter.
  undecodable: "its bytes could not be read",
  unsupported_version: "its wire version is unknown",
  worker_died: "each worker that began it died, hung or could not end it",
  batch_breaking: "the model raised an error on it",
};

/** Where a request's time goes. */
export const STAGES = {
  queue: "waits for a worker",
  batch: "joins a micro-batch",
  gate: "is a fallback needed?",
  finish: "the reply is stored",
};

/** The name without underscores. */
export const plain = (name) => String(name ?? "").replaceAll("_", " ");

/** States of a worker: a level for the mark, and words. */
export const WORKER_STATES = {
  working: ["well", "working"],
  idle: ["well", "idle"],
  stuck: ["bad", "stuck: nothing moves"],
  gone: ["bad", "gone: not heard of"],
};

export const ALERT_STATES = {
  firing: ["bad", "firing"],
  pending: ["warning", "pending: not told yet"],
  recovering: ["warning", "recovering"],
  silenced: ["quiet", "silenced"],
  undelivered: ["bad", "firing, and nobody could be told"],
};

export const VERDICTS = {
  well: ["well", "Well"],
  degraded: ["warning", "Degraded"],
  broken: ["bad", "Broken"],
  unknown: ["unknown", "Unknown"],
};

export const SEVERITIES = { error: ["bad", "error"], warning: ["warning", "warning"], notice: ["quiet", "notice"] };

/** What a stream's kind and level mean. */
export function streamName(stream) {
  const level = stream.level && stream.level !== "normal" ? `, ${stream.level}` : "";
  return `${stream.kind}${level}`;
}

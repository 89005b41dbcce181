// Numbers and times as text. Whatever is unknown is a dash, and never a zero.

export const NONE = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);

/** A number with so many significant digits as help a reader: 0.042, 1.29, 18.4, 12,345. */
export function number(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  const digits = size === 0 || size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  const text = value.toLocaleString("en", { maximumFractionDigits: digits });
  return text === "-0" ? "0" : text;
}

export const whole = (value) => (known(value) ? Math.round(value).toLocaleString("en") : NONE);
export const perSecond = (value) => (known(value) ? `${number(value)}/s` : NONE);
export const percent = (value) => (known(value) ? `${(100 * value).toFixed(1).replace(".0", "")} %` : NONE);

/** A cosine, or the difference of two with its sign. */
export const cosine = (value) => (known(value) ? value.toFixed(4) : NONE);
export const signed = (value) => (known(value) ? `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(4)}` : NONE);

/** A latency; those of one table have equally many decimals, so that they can be compared at a glance. */
export function ms(value) {
  if (!known(value)) return NONE;
  if (value >= 10_000) return span(value);
  return `${value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 }).replace(/(\d{3})\.\d+/, "$1")} ms`;
}

/** A span of time in the two units that matter: 45 s, 12 min, 2 h 05 min, 3 d 4 h. */
export function span(value_ms) {
  if (!known(value_ms)) return NONE;
  const seconds = Math.max(0, value_ms / 1000);
  if (seconds < 1) return value_ms > 0 ? `${Math.max(1, Math.round(value_ms))} ms` : "0 s";
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** An age or a duration that ticks: whole seconds at most, so that it does not flicker. */
export const ago = (value_ms) => (known(value_ms) ? span(Math.max(1000, Math.round(value_ms / 1000) * 1000)).replace(".0 s", " s") : NONE);

/** The time of day in UTC, as logs have it; with the date where that is another one than `now_ms`'s. */
export function clock(at_ms, now_ms = at_ms, seconds = true) {
  if (!known(at_ms)) return NONE;
  const text = new Date(at_ms).toISOString();
  const time = text.slice(11, seconds ? 19 : 16);
  const other = text.slice(0, 10) !== new Date(now_ms).toISOString().slice(0, 10);
  return `${other ? `${text.slice(0, 10)} ` : ""}${time} UTC`;
}

/** "1 worker", "3 workers". */
export const counted = (count, word) => `${whole(count)} ${word}${count === 1 ? "" : "s"}`;

// The stream of snapshots, how old the newest one is, and the history.

const RETRY_MS = 2_000;
const HISTORY_MS = 30_000;

/** Follows the dashboard's process, and says what it hears and when it hears nothing. */
export class Feed {
  /**
   * @param onSnapshot Called with each snapshot.
   * @param onHistory Called with each answer of the history.
   * @param onAge Called twice a second with {age_ms, away}: the time since the last snapshot, and whether the
   *   process of the page itself does not answer.
   */
  constructor({ onSnapshot, onHistory, onAge }) {
    Object.assign(this, { onSnapshot, onHistory, onAge });
    this.heard = null;
    this.opened = performance.now();
    this.away = false;
  }

  start() {
    this.connect();
    this.fetchHistory();
    setInterval(() => this.onAge({ age_ms: performance.now() - (this.heard ?? this.opened), away: this.away, never: this.heard === null }), 500);
    setInterval(() => this.fetchHistory(), HISTORY_MS);
  }

  /** The server's clock now, epoch ms: that of the last snapshot, and what has passed since by this machine. */
  now_ms() {
    return this.made_ms + (performance.now() - this.heard);
  }

  connect() {
    const events = new EventSource("api/events");
    events.addEventListener("snapshot", (event) => {
      const snapshot = JSON.parse(event.data);
      const first = this.away;
      this.heard = performance.now();
      this.made_ms = snapshot.made_ms;
      this.away = false;
      this.onSnapshot(snapshot);
      if (first) this.fetchHistory();
    });
    events.addEventListener("error", () => {
      this.away = true;
      // The browser tries again by itself, but not after an answer that is no stream, and more and more slowly.
      events.close();
      setTimeout(() => this.connect(), RETRY_MS);
    });
  }

  async fetchHistory() {
    try {
      const answer = await fetch("api/history");
      if (answer.status === 401) location.assign("login");
      if (answer.ok) this.onHistory(await answer.json());
    } catch {
      // The stream of events says that the process is away; the plots stay as they are.
    }
  }
}

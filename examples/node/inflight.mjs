// The requests that wait for their answers, and what is remembered of the ids that callers chose.
import { fault } from './messages.mjs';

export const WINDOW_MS = 60_000; // how long the server knows an id
const TAKEN = {}; // in the place of a reply that its caller has

export const now = () => performance.now();
const fits = (request, { rows, error }) => error || rows === request.rows;

export class Inflight {
  waiting = new Map(); // requests without an answer, by id
  odd = 0; // replies that were skipped, since they could not be used
  aheadMs = 0; // how far the server's clock is ahead of `now`: workers compare deadlines with it
  isClosed = false;
  #contexts = 0; // in the requests that wait
  #past = new Map(); // by chosen id: when it ended here, and its reply, if one came

  /** Takes in a request to be sent, or gives the one that waits under its id. Throws a QueueError. */
  add(request, takeBack) {
    const { id, signal } = request, late = this.#past.get(id)?.reply;
    signal?.throwIfAborted();
    if (this.isClosed) throw fault('producer_closed', 'the client was closed');
    if (this.waiting.has(id)) return this.waiting.get(id);
    // The server would say 1, and run nothing.
    if (late && !fits(request, late)) throw fault('duplicate_request', `${id} was answered within the last minute`);
    if (this.#contexts >= 8_192) throw fault('queue_full', '8,192 contexts of this client wait for answers');
    request.answer = new Promise((resolve, reject) => Object.assign(request, { resolve, reject }));
    request.first = new Promise((resolve) => (request.onFirst = resolve));
    for (const promise of [request.answer, request.first]) promise.catch(() => {}); // a caller may want one alone
    request.onAbort = () => {
      this.end(request, { error: signal.reason });
      takeBack().catch(() => {}); // where a worker has it already, its answer is dropped, or kept for a repeat
    };
    signal?.addEventListener('abort', request.onAbort, { once: true });
    this.waiting.set(id, request);
    this.#contexts += request.rows || 1;
    if (late) this.settle(late);
    return request;
  }

  /** Hands a reply to its request, or keeps it for a repeat of one that was given up. Throws at one that does not fit. */
  settle(reply) {
    const request = this.waiting.get(reply.id), past = this.#past.get(reply.id);
    if (request && !fits(request, reply)) throw new Error('this is an answer to other contexts');
    if (reply.provisional) request?.onFirst(reply.answer);
    else if (request) this.end(request, reply, TAKEN);
    else if (past && !past.reply) this.#past.set(reply.id, { at: now(), reply });
  }

  /** Ends a request, unless it has ended; where it is given up, its reply may come still. */
  end(request, { answer, error }, reply) {
    if (this.waiting.get(request.id) !== request) return;
    this.waiting.delete(request.id);
    if (request.named) this.#past.set(request.id, { at: now(), reply });
    this.#contexts -= request.rows || 1;
    request.payload = undefined;
    request.signal?.removeEventListener('abort', request.onAbort);
    if (answer) request.resolve(answer); else request.reject(error);
    request.onFirst(request.answer); // where no provisional one came before
  }

  /** Ends what is long past its deadline, forgets old ids, and gives what got in and waits for long. */
  sweep() {
    for (const [id, { at }] of this.#past) if (now() - at > WINDOW_MS) this.#past.delete(id);
    for (const one of this.waiting.values()) // 30 s after its deadline, no answer comes any more
      if (now() > one.expiresAt + 30_000) this.end(one, { error: fault('result_timeout', `no answer to ${one.id} came`) });
    return [...this.waiting.values()].filter((one) => now() - one.gotInAt > 5_000);
  }

  close() {
    this.isClosed = true;
    for (const one of this.waiting.values()) this.end(one, { error: fault('producer_closed', 'the client was closed') });
  }
}

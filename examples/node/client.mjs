// A client of the AMN queue: contexts in, answers as promises. It follows docs/wire.md, and names its sections.
import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { opened, run } from './connection.mjs';
import { hasLeft, standingOf } from './losses.mjs';
import { QueueError, bytesOf, decodeReply, encodeRequest } from './messages.mjs';

export { QueueError };

const SCRIPTS = { // sha1sum producer/lua/*.lua: workers load them
  submit: ['EVALSHA', '1e23b670142e76c6820a0f0ca7e467594aae4de0', '7'],
  cancel: ['EVALSHA', 'dc10b9718f514562f103db9ec0c829e093569b8b', '12'],
};
const FUNCTIONS = { submit: ['FCALL', 'amn_submit_v1', '7'], cancel: ['FCALL', 'amn_cancel_v1', '12'] };
const WINDOW_MS = 60_000; // how long the server knows an id
const REPEAT_MS = 30_000; // a call is repeated for less than that, so that it runs once
const LEVELS = ['high', 'normal', 'low'];

const newId = () => randomBytes(16).toString('hex');
const now = () => performance.now();
const fault = (code, message) => new QueueError(code, message);
const noted = (map, id, value) => map.set(id, value).size > 65_536 && map.delete(map.keys().next().value);

/**
 * @typedef {object} Options Each may be left out.
 * @property {string} [requestId] 1-64 of `A-Z a-z 0-9 _ . : -`; within a minute it is run once
 * @property {number} [deadlineMs] from now: 30,000 unless said, 0 for none
 * @property {'high' | 'normal' | 'low'} [priority]
 * @property {AbortSignal} [signal] rejects with its reason, and takes the request back if no worker has it
 * @property {boolean} [wait] while the queue is full, up to the deadline
 * @property {boolean} [provisional] asks for the fast answer of an escalated request too: `first` of the handle
 * @property {Uint16Array} [ends] of a batch of contexts that share their vectors
 * @property {string} [lane] and, as in the document, `tokens`, `encoder`, `sequence`, `position`, `domain`,
 *   `escalate`, `traceparent`
 *
 * @typedef {object} Handle A request that is in the queue.
 * @property {string} id
 * @property {Promise<object>} answer The final one; rejects with a QueueError, or the reason of an abort.
 * @property {Promise<object>} first The provisional answer, or `answer` where that came first.
 */
export class Client {
  #clientId; #keys; #limits; #scripts; #sender; #reader; #reading; #closed = false;
  #note = newId(); // this client in the server's notes on ids, where all may read: not the client id
  #waiting = new Map(); #contexts = 0; // requests without an answer, by id, and the contexts in them
  #answered = new Map(); // when an answer came, by ids that callers chose
  #givenUp = new Map(); // such ids that nobody waits for any more, with the answer if it came after all
  #last = '0-0'; #taken = new Set(); #takenBytes = 0; #idle = false; // the reply stream (Receiving)
  #left = []; // requests that left all streams: lost, unless the reply stream holds their answers
  #aheadMs = 0; #askedAt = 0; #sweptAt = 0;
  odd = 0; // replies that were skipped, since they could not be used; 0 in a healthy system

  /**
   * @param {object} [options]
   * @param {string} [options.url] redis://, rediss:// or unix:///path; REDIS_URL unless said
   * @param {string} [options.queue]
   * @param {string} [options.name] of the team, on a server with ACLs
   * @param {import('node:tls').ConnectionOptions} [options.tls]
   * @param {boolean} [options.functions] call the functions of a server that has them, which no update renames
   * @param {number} [options.entriesMax] how many requests may wait in the queue, in all
   * @param {number} [options.bytesMax] how many bytes of them
   */
  static async connect({ url, queue = 'main', name, tls, functions, entriesMax = 100_000, bytesMax = 2 ** 31 } = {}) {
    const client = new Client(), key = (rest) => `amn:{${queue}}:${rest}`;
    client.#scripts = functions ? FUNCTIONS : SCRIPTS;
    client.#clientId = name ? `${name}.${newId()}` : newId();
    client.#limits = [entriesMax, bytesMax, WINDOW_MS].map(String);
    const places = ['requests:high', 'requests', 'requests:low', 'fallback', 'fallback:secondary'];
    client.#keys = {
      streams: places.map(key), bytes: places.map((one) => key(`bytes:${one}`)), stats: key('stats'),
      seen: key('seen:'), standing: key('standing'), truths: key('truths'), replies: key(`replies:${client.#clientId}`),
    };
    const address = url ?? process.env.REDIS_URL ?? 'redis://127.0.0.1:6379';
    try {
      client.#sender = await opened(address, tls);
      client.#reader = await opened(address, tls);
      await client.#askTime();
      await run(client.#reader, 'XREAD', 'STREAMS', client.#keys.replies, '0-0'); // NOPERM is told here
    } catch (error) {
      await client.close();
      throw error;
    }
    client.#reading = client.#read();
    return client;
  }

  /** The answer to one context of 5 x 768. @param {Float32Array} context @param {Options} [options] */
  async predict(context, options) { return this.#one({ ...options, context }); }

  /** One answer to up to 256 contexts. @param {Float32Array} contexts n x 5 x 768 @param {Options} [options] */
  async predictBatch(contexts, options) { return this.#one({ ...options, contexts }); }

  async #one(options) {
    const [handle] = await this.submit([options]);
    if (handle instanceof Error) throw handle;
    return handle.answer;
  }

  /**
   * Sends up to 256 requests in one call: each is `{ context, ...options }` or `{ contexts, ...options }`.
   * @returns {Promise<Array<Handle | Error>>} once the server has taken in or refused each of them
   */
  async submit(each) {
    const found = each.map((options) => {
      try { return this.#registered(options); } catch (error) { return error; }
    });
    await this.#send(found.filter((one) => one.payload && one.gotInAt === Infinity));
    return found.map((one) => one.refused ?? one);
  }

  /** Takes a request back (Taking back). @returns {Promise<boolean>} true if no worker had it */
  async cancel(id) {
    const { streams, bytes, seen, stats } = this.#keys, request = this.#waiting.get(id);
    const keys = [...streams, ...bytes, seen + id, stats];
    if (await run(this.#sender, ...this.#scripts.cancel, ...keys, this.#note, 'workers') !== 1) return false;
    if (request) this.#end(request, fault('cancelled', `request ${id} was cancelled`));
    return true;
  }

  /** Reports the vector that really came next (Sampling). @param {Float32Array} vector 768 numbers */
  async reportTruth(vector, { requestId, sequence = '', position = -1 }) {
    const key = sequence && position >= 0 ? `${sequence}#${position}` : requestId;
    const entry = ['kind', 'truth', 'key', key, 'vector', bytesOf(vector)];
    await run(this.#sender, 'XADD', this.#keys.truths, 'MAXLEN', '~', '20000', '*', ...entry);
  }

  /** Ends what waits with `producer_closed`, and the connections. */
  async close() {
    this.#closed = true;
    for (const one of this.#waiting.values()) this.#end(one, fault('producer_closed', 'the client was closed'));
    this.#reader?.destroy();
    await this.#reading;
    if (this.#sender) await run(this.#sender, 'DEL', this.#keys.replies).catch(() => {}); // else it expires
    this.#sender?.destroy();
  }

  #registered({ requestId, deadlineMs = 30_000, priority = 'normal', signal, wait, provisional, ...message }) {
    signal?.throwIfAborted();
    if (this.#closed) throw fault('producer_closed', 'the client was closed');
    const id = requestId ?? newId(), level = LEVELS.indexOf(priority) + 1;
    if (this.#waiting.has(id)) return this.#waiting.get(id);
    if (now() - this.#answered.get(id) < WINDOW_MS) throw refusal(0); // the server would say 1, and run nothing
    if (this.#contexts >= 8_192) throw fault('queue_full', '8,192 contexts of this client wait for answers');
    if (!/^[\w.:-]{1,64}$/.test(id) || !level || !(deadlineMs >= 0))
      throw fault('invalid_request', `requestId '${id}', priority '${priority}' or deadlineMs ${deadlineMs} is wrong`);
    const at = now() + this.#aheadMs, expires_at_ms = deadlineMs ? at + deadlineMs : 0;
    const head = { id, reply_to: this.#clientId, level: priority, submitted_at_ms: at, expires_at_ms };
    const request = {
      id, level, signal, wait, named: Boolean(requestId), gotInAt: Infinity,
      call: requestId ? newId() : '-', // the same whenever this submit is repeated
      expiresAt: deadlineMs ? now() + deadlineMs : Infinity,
      ...encodeRequest({ ...head, provisional: Boolean(provisional) }, message),
    };
    request.answer = new Promise((resolve, reject) => Object.assign(request, { resolve, reject }));
    request.first = new Promise((resolve) => (request.onFirst = resolve));
    for (const promise of [request.answer, request.first]) promise.catch(() => {}); // a caller may want one alone
    request.abort = () => {
      this.#end(request, signal.reason);
      this.cancel(id).catch(() => {}); // where a worker has it already, its answer is dropped
    };
    signal?.addEventListener('abort', request.abort, { once: true });
    this.#waiting.set(id, request);
    this.#contexts += request.rows || 1;
    const late = this.#givenUp.get(id); // the answer to the same request, which nobody waited for any more
    if (late?.rows === request.rows || late?.outcome instanceof QueueError) {
      request.gotInAt = now();
      this.#settle(request, late.outcome);
    }
    return request;
  }

  /** Sends until the server says of each that it is in, or why not; a call that is repeated is one (Sending). */
  async #send(requests) {
    const { streams, bytes, stats, seen } = this.#keys;
    const keys = [...streams.slice(0, 3), ...bytes.slice(0, 3), stats];
    const head = [...this.#scripts.submit, ...keys, ...this.#limits, seen, this.#note];
    const until = Math.min(now() + REPEAT_MS, ...requests.map((one) => one.expiresAt));
    for (let left = requests, pauseMs = 20; left.length; pauseMs = Math.min(2 * pauseMs, 1_000)) {
      const each = left.flatMap(({ id, level, call, payload }) => [id, String(level), call, payload]);
      const said = await run(this.#sender, ...head, ...each).catch((error) => error);
      left = left.filter((request, i) => {
        const problem = said instanceof Error ? said : refusal(said[i]);
        if (!problem) request.gotInAt = now();
        if (!problem || this.#waiting.get(request.id) !== request) return false; // it is in, or has ended here
        const isOver = now() + pauseMs > until || (problem.code === 'queue_full' && !request.wait);
        if (problem.retryable && !isOver) return true;
        this.#end(request, (request.refused = problem));
        return false;
      });
      if (left.length) await sleep(pauseMs);
    }
  }

  #end(request, error, answer) {
    if (this.#waiting.get(request.id) !== request) return; // another request has this id by now
    this.#waiting.delete(request.id);
    if (request.named) noted(this.#givenUp, request.id);
    this.#contexts -= request.rows || 1;
    request.signal?.removeEventListener('abort', request.abort);
    if (answer) request.resolve(answer); else request.reject(error);
    request.onFirst(request.answer); // where no provisional one came before
  }

  /** Ends a request by the server's answer. */
  #settle(request, outcome) {
    const isError = outcome instanceof QueueError;
    if (request.named) noted(this.#answered, request.id, now());
    this.#end(request, isError && outcome, isError ? undefined : outcome);
    this.#givenUp.delete(request.id);
  }

  async #read() {
    for (let failures = 0; !this.#closed; ) {
      try {
        const overdue = this.#sweep();
        if (now() - this.#askedAt > 5_000) await this.#askTime();
        await this.#readOnce(overdue);
        failures = 0;
      } catch (error) { // it goes on with the same `#last` when the connection is there again
        for (const request of this.#waiting.values()) request.search = undefined; // perhaps another server
        this.#left = [];
        if (/WRONGTYPE/.test(error.message)) await run(this.#reader, 'DEL', this.#keys.replies).catch(() => {});
        await sleep(Math.min(20 * 2 ** failures++, 500));
      }
    }
  }

  /** Every two seconds: ends what is long past its deadline, and returns what got in and waits for long. */
  #sweep() {
    if (now() - this.#sweptAt < 2_000) return [];
    this.#sweptAt = now();
    const requests = [...this.#waiting.values()];
    for (const one of requests) // 30 s after its deadline, no answer comes any more
      if (now() > one.expiresAt + 30_000) this.#end(one, fault('result_timeout', `no answer to ${one.id} came`));
    return requests.filter((one) => now() - one.gotInAt > 5_000);
  }

  /** One round trip: deletes what was read, asks where the streams stand, and waits for more. */
  async #readOnce(overdue) {
    const { replies, standing } = this.#keys;
    const deleted = this.#idle || this.#takenBytes > 32_768 ? [...this.#taken] : [];
    if (deleted.length) [this.#last, this.#takenBytes] = ['0-0', 0];
    const [said, , found] = await Promise.all([
      overdue.length ? run(this.#reader, 'HGETALL', standing) : [],
      deleted.length ? run(this.#reader, 'XDEL', replies, ...deleted) : 0,
      run(this.#reader, 'XREAD', 'COUNT', '512', 'BLOCK', '500', 'STREAMS', replies, this.#last),
    ]);
    for (const entryId of deleted) this.#taken.delete(entryId);
    const rows = found?.[0][1] ?? [];
    this.#idle = !rows.length;
    for (const [entryId, fields] of rows) this.#take(String(entryId), fields);
    if (rows.length < 512) // the end of the stream, and no answer is there
      for (const one of this.#left.splice(0)) this.#end(one, fault('request_lost', `the server lost ${one.id}`));
    const left = overdue.filter((request) => hasLeft(request, standingOf(said)));
    if (left.length) [this.#left, this.#last] = [left, '0-0'];
  }

  #take(entryId, [name, bytes]) {
    this.#last = entryId;
    if (this.#taken.has(entryId) || !this.#taken.add(entryId) || String(name) !== 'reply') return;
    this.#takenBytes += bytes.length;
    try {
      const { id, rows, provisional, outcome } = decodeReply(bytes), request = this.#waiting.get(id);
      if (!request) return void (!provisional && this.#givenUp.has(id) && noted(this.#givenUp, id, { rows, outcome }));
      if (!(outcome instanceof QueueError) && rows !== request.rows) throw new Error('this is an answer to other contexts');
      if (provisional) return void request.onFirst(outcome);
      this.#settle(request, outcome);
    } catch {
      this.odd++; // one that cannot be used keeps no other from who waits for it
    }
  }

  /** Workers compare deadlines with the server's clock; its answer lies half a round trip back. */
  async #askTime() {
    this.#askedAt = now();
    const [seconds, micros] = await run(this.#reader, 'TIME');
    this.#aheadMs = seconds * 1000 + micros / 1000 - (this.#askedAt + now()) / 2;
  }
}

/** What a status of submit.lua means, beside 1: it is in. */
const REFUSED = {
  0: ['duplicate_request', 'the id was used within the last minute'],
  '-1': ['queue_full', 'the queue is at its limit; try again later'],
  '-2': ['stream_unusable', 'a stream of the queue takes no entry; see `amn doctor --repair`'],
};
const refusal = (status) => (status === 1 ? undefined : fault(...REFUSED[status]));

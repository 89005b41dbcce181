// A client of the AMN queue: contexts in, answers as promises. It follows docs/wire.md, and names its sections.
import { setTimeout as sleep } from 'node:timers/promises';
import { opened, run } from './connection.mjs';
import { Inflight, WINDOW_MS, now } from './inflight.mjs';
import { bytesOf, encodeRequest, fault } from './messages.mjs';
import { aheadOf, readReplies } from './replies.mjs';

export { QueueError } from './messages.mjs';

// The function of each script, and sha1sum producer/lua/*.lua: workers load them.
const SUBMIT = ['amn_submit_v1', '1e23b670142e76c6820a0f0ca7e467594aae4de0'];
const CANCEL = ['amn_cancel_v1', 'dc10b9718f514562f103db9ec0c829e093569b8b'];
const REPEAT_MS = 30_000; // less than the window: a call whose answer was lost is repeated so long, and runs once
const LEVELS = ['high', 'normal', 'low'];
const REFUSED = { 0: 'duplicate_request', '-1': 'queue_full', '-2': 'stream_unusable' }; // what submit.lua says; 1: in

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
  #clientId; #keys; #head; #functions; #sender; #reader; #reading;
  #note = crypto.randomUUID(); // this client in the server's notes on ids, where all may read: not the client id
  #inflight = new Inflight();

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
    client.#functions = functions;
    client.#clientId = name ? `${name}.${crypto.randomUUID()}` : crypto.randomUUID();
    client.#head = [entriesMax, bytesMax, WINDOW_MS, key('seen:'), client.#note].map(String);
    const places = ['requests:high', 'requests', 'requests:low', 'fallback', 'fallback:secondary'];
    const streams = places.map(key), bytes = places.map((one) => key(`bytes:${one}`)), stats = key('stats');
    client.#keys = {
      submit: [...streams.slice(0, 3), ...bytes.slice(0, 3), stats],
      cancel: (id) => [...streams, ...bytes, key(`seen:${id}`), stats],
      standing: key('standing'), truths: key('truths'), replies: key(`replies:${client.#clientId}`),
    };
    try {
      client.#sender = await opened(url, tls);
      client.#reader = await opened(url, tls); // a read that waits holds up what comes behind it
      client.#inflight.aheadMs = await aheadOf(client.#reader);
      await run(client.#reader, 'xRead', { key: client.#keys.replies, id: '0-0' }); // NOPERM is told here
    } catch (error) {
      await client.close();
      throw error;
    }
    client.#reading = readReplies(client.#reader, client.#keys, client.#inflight);
    return client;
  }

  /** Replies that were skipped, since they could not be used; 0 in a healthy system. */
  get odd() { return this.#inflight.odd; }

  /** The answer to one context of 5 x 768. @param {Float32Array} context @param {Options} [options] */
  async predict(context, options) { return this.#one({ ...options, context }); }

  /** One answer to up to 256 contexts. @param {Float32Array} contexts n x 5 x 768 @param {Options} [options] */
  async predictBatch(contexts, options) { return this.#one({ ...options, contexts }); }

  #one(options) {
    const request = this.#registered(options);
    this.#send([request]); // a refusal rejects its answer
    return request.answer;
  }

  /**
   * Sends requests, each `{ context, ...options }` or `{ contexts, ...options }`, in as few calls as may be.
   * @returns {Promise<Array<Handle | Error>>} once the server has taken in or refused each of them
   */
  async submit(each) {
    const found = each.map((options) => {
      try { return this.#registered(options); } catch (error) { return error; }
    });
    await this.#send(found);
    return found.map((one) => one.refused?.error ?? one);
  }

  /** Takes a request back (Taking back). @returns {Promise<boolean>} true if no worker had it */
  async cancel(id) {
    const request = this.#inflight.waiting.get(id), error = fault('cancelled', `request ${id} was cancelled`);
    const said = await this.#run(CANCEL, this.#keys.cancel(id), [this.#note, 'workers']).catch((trouble) => trouble);
    const isBack = said === 1 || Boolean(request?.payload); // that waits for room, or for the server, and is sent no more
    if (said instanceof Error && !isBack) throw said;
    if (isBack && request) this.#inflight.end(request, { error });
    return isBack;
  }

  /** Reports the vector that really came next (Sampling). @param {Float32Array} vector 768 numbers */
  async reportTruth(vector, { requestId, sequence = '', position = -1 }) {
    const key = sequence && position >= 0 ? `${sequence}#${position}` : requestId;
    const entry = ['kind', 'truth', 'key', key, 'vector', bytesOf(vector)];
    await run(this.#sender, 'sendCommand', ['XADD', this.#keys.truths, 'MAXLEN', '~', '20000', '*', ...entry]);
  }

  /** Ends what waits with `producer_closed`, and the connections. */
  async close() {
    this.#inflight.close();
    this.#reader?.destroy();
    await this.#reading;
    if (this.#sender) await run(this.#sender, 'del', this.#keys.replies).catch(() => {}); // else it expires
    this.#sender?.destroy();
  }

  #run([name, sha1], keys, words) {
    const call = this.#functions ? ['fCall', name] : ['evalSha', sha1];
    return run(this.#sender, ...call, { keys, arguments: words });
  }

  #registered({ requestId, deadlineMs = 30_000, priority = 'normal', signal, wait, provisional = false, ...message }) {
    const id = requestId ?? crypto.randomUUID(), level = LEVELS.indexOf(priority) + 1;
    if (!/^[\w.:-]{1,64}$/.test(id) || !level || !(deadlineMs >= 0))
      throw fault('invalid_request', `requestId '${id}', priority '${priority}' or deadlineMs ${deadlineMs} is wrong`);
    const submitted_at_ms = now() + this.#inflight.aheadMs, expires_at_ms = deadlineMs && submitted_at_ms + deadlineMs;
    const head = { id, reply_to: this.#clientId, level: priority, submitted_at_ms, expires_at_ms, provisional };
    const named = Boolean(requestId), expiresAt = deadlineMs ? now() + deadlineMs : Infinity;
    const call = named ? crypto.randomUUID() : '-'; // the same whenever this submit is repeated
    const found = { id, level, signal, wait, named, call, expiresAt, ...encodeRequest(head, message) };
    return this.#inflight.add(found, () => this.cancel(id));
  }

  /** Sends until the server says of each that it is in, or why not; a call that is repeated is one (Sending). */
  async #send(requests) {
    let left = requests, pauseMs = 10;
    while ((left = left.filter((one) => one.payload)).length) { // the others are in, or have ended here
      let contexts = 0; // a script holds up all others: so many, and 4 MiB, are enough for one
      const some = left.filter((one) => (contexts += one.rows || 1) <= 256);
      const each = some.flatMap(({ id, level, call, payload }) => [id, String(level), call, payload]);
      const said = await this.#run(SUBMIT, this.#keys.submit, [...this.#head, ...each]).catch((error) => error);
      some.forEach((request, i) => this.#judge(request, said[i], said));
      if (some.some((one) => one.payload)) await sleep((pauseMs = Math.min(2 * pauseMs, 320)));
    }
  }

  /** Takes in the status of a request; where it is to be sent again, its payload stays. */
  #judge(request, status, trouble) {
    if (status === 1) Object.assign(request, { gotInAt: now(), payload: undefined });
    if (!request.payload) return;
    const error = REFUSED[status] ? fault(REFUSED[status], `request ${request.id} was not taken in`) : trouble;
    const isFull = status === -1, room = request.wait ? Infinity : 0;
    request.unsureSince = isFull ? undefined : request.unsureSince ?? now(); // from then on, the server may have it
    const until = Math.min(request.expiresAt, isFull ? room : request.unsureSince + REPEAT_MS);
    if (!error.retryable || now() >= until) this.#inflight.end(request, (request.refused = { error }));
  }
}

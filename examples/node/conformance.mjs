// The client, driven by one JSON object a line (docs/conformance.md).
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from './client.mjs';
import { fault } from './messages.mjs';

const handles = new Map(); // by id; a request that was refused is its error
const named = new Map(); // sequence and position, for the truths
let client;

const commands = {
  async open({ url, queue, client: name, entries_max: entriesMax, bytes_max: bytesMax }) {
    client = await Client.connect({ url, queue, name, entriesMax, bytesMax });
    return { ok: true };
  },

  async submit({ requests }) {
    const found = await client.submit(requests.map(asOptions));
    found.forEach((one, i) => {
      const { id, sequence, position } = requests[i];
      if (!(one instanceof Error) || !handles.has(id)) handles.set(id, one);
      named.set(id, { requestId: id, sequence, position });
    });
    return { results: found.map((one) => (one instanceof Error ? told(one) : { ok: true })) };
  },

  result: ({ id, timeout_ms }) => outcome(id, 'answer', timeout_ms),

  provisional: ({ id, timeout_ms }) => outcome(id, 'first', timeout_ms),

  async cancel({ id }) { return { cancelled: await client.cancel(id) }; },

  async truth({ id, vector }) {
    await client.reportTruth(floats(vector), named.get(id) ?? { requestId: id });
    return { sent: true };
  },

  async close() {
    await client?.close();
    return { ok: true };
  },
};

const floats = (text) => new Float32Array(new Uint8Array(Buffer.from(text, 'base64')).buffer);
const halves = (text) => new Uint16Array(new Uint8Array(Buffer.from(text, 'base64')).buffer);

/** The options of `Client.submit` that say the same as a request of the runner. */
function asOptions({ id, dtype, shape, context, ends, level, deadline_ms: deadlineMs = 0, ...fields }) {
  try {
    const numbers = (dtype === 'f2' ? halves : floats)(context);
    const contexts = shape.length === 3 ? { contexts: numbers, ends: ends && halves(ends) } : { context: numbers };
    return { requestId: id, priority: level, deadlineMs, ...fields, ...contexts };
  } catch { // no whole numbers
    return { requestId: id };
  }
}

async function outcome(id, which, timeoutMs) {
  const handle = handles.get(id);
  if (!handle) throw fault('invalid_request', `no request ${id} was submitted`);
  if (handle instanceof Error) throw handle;
  const late = new AbortController();
  const timer = sleep(timeoutMs, undefined, { signal: late.signal }).catch(() => {});
  const reply = await Promise.race([handle[which], timer]).finally(() => late.abort());
  if (!reply) throw fault('result_timeout', `no answer to ${id} came within ${timeoutMs} ms`);
  return { reply: asMessage(reply) };
}

/** An answer as it was on the wire. */
function asMessage({ reasons, shed, ...answer }) {
  const whole = { version: 1, status: 'answered', ...answer };
  if (!answer.rules) return { ...whole, reasons, shed };
  return { ...whole, shed: Uint8Array.from(shed, (one) => answer.sheds.indexOf(one) + 1) };
}

/** For JSON.stringify: bytes, and arrays of numbers, as base64. */
function base64(name, value) {
  const found = this[name]; // `value` is what toJSON of a Buffer made of it
  if (!ArrayBuffer.isView(found)) return value;
  return Buffer.from(found.buffer, found.byteOffset, found.byteLength).toString('base64');
}

const told = ({ code = 'internal', retryable = false, message }) => ({ error: { code, retryable, message } });

for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...fields } = JSON.parse(line);
  const unknown = () => Promise.reject(fault('unsupported', `there is no command ${name}`));
  const answer = await Promise.resolve(fields).then(commands[name] ?? unknown).catch(told);
  process.stdout.write(`${JSON.stringify(answer, base64)}\n`);
  if (name === 'close') break;
}
await client?.close(); // also at the end of standard input
process.stdin.destroy();

// Requests and replies as bytes (docs/wire.md: Messages, Request, Reply, Batches).
import { decode, encode } from '@msgpack/msgpack';

const CONTEXT = 5 * 768;
const OPTIONS = ['lane', 'tokens', 'encoder', 'sequence', 'position', 'domain', 'escalate', 'traceparent'];
const RETRYABLE = ['queue_full', 'request_lost', 'result_timeout', 'server_unavailable', 'server_out_of_memory'];

/** Every failure of this client. `code` is stable (docs/wire.md, Error codes); the message is for people. */
export class QueueError extends Error {
  name = 'QueueError';

  constructor(code, message, { retryable = RETRYABLE.includes(code), cause } = {}) {
    super(message, { cause });
    this.code = code;
    this.retryable = retryable;
  }
}

/**
 * The bytes of a request, and its number of rows, 0 for a lone context. The workers look at norms, and for NaN.
 * Throws a QueueError for another form of contexts, or an option that nobody knows.
 */
export function encodeRequest(head, { context, contexts, ends, ...options }) {
  const unknown = Object.keys(options).find((name) => !OPTIONS.includes(name));
  if (unknown) throw new QueueError('invalid_request', `there is no option '${unknown}'`);
  const floats = contexts ?? context;
  const rows = contexts ? ends?.length ?? contexts.length / CONTEXT : 0;
  if (!ArrayBuffer.isView(floats) || (contexts ? !(rows % 1 === 0 && rows) : context.length !== CONTEXT))
    throw new QueueError('bad_shape', `send a Float32Array of ${CONTEXT} numbers for each context`);
  if (rows > 256) throw new QueueError('payload_too_large', `${rows} contexts in one message; send up to 256`);
  const message = {
    version: 1, ...head, encoder: 'all-mpnet-base-v2/mean/l2', ...options,
    dtype: floats.BYTES_PER_ELEMENT === 2 ? 'f2' : 'f4', // Uint16Array, or Float16Array where there is one
    shape: contexts ? [rows, 5, 768] : [5, 768], context: bytesOf(floats), ends: ends && bytesOf(ends),
  };
  return { rows, payload: bytesOf(encode(message, { ignoreUndefined: true })) };
}

/** A reply as { id, rows, provisional, outcome }, the outcome being an answer or a QueueError. Throws. */
export function decodeReply(bytes) {
  const { version, status, ...reply } = decode(bytes), { id, provisional } = reply;
  if (version !== 1) throw new QueueError('unsupported_version', `a reply has version ${version}`);
  if (status === 'failed') return { id, outcome: new QueueError(reply.code, reply.message, reply) };
  for (const bin of ['vector', 'vectors', 'confidences', 'margins', 'gains'])
    if (reply[bin]) reply[bin] = new Float32Array(new Uint8Array(reply[bin]).buffer); // a copy is aligned
  const rows = reply.vectors ? reply.vectors.length / 768 : 0;
  if (rows) {
    reply.reasons = Array.from(reply.fired, (bits) => reply.rules.filter((_, bit) => bits & (1 << bit)));
    reply.shed = Array.from(reply.shed, (one) => (one ? reply.sheds[one - 1] : ''));
  }
  return { id, rows, provisional, outcome: { shed: '', degraded: '', ...reply } };
}

/** The bytes of an array, without a copy; this machine is little-endian, as nearly all are. */
export const bytesOf = ({ buffer, byteOffset, byteLength }) => Buffer.from(buffer, byteOffset, byteLength);

// Requests and replies as bytes (docs/wire.md: Messages, Request, Reply, Batches).
import { decode, encode } from '@msgpack/msgpack';

const CONTEXT = 5 * 768;
const DTYPES = { Float32Array: 'f4', Float16Array: 'f2', Uint16Array: 'f2' }; // the last one: the bits of half floats
const OPTIONS = ['lane', 'tokens', 'encoder', 'sequence', 'position', 'domain', 'escalate', 'traceparent'];
const RETRYABLE = ['queue_full', 'request_lost', 'result_timeout', 'server_unavailable', 'server_out_of_memory'];

/** Every failure of this client. `code` is stable (docs/wire.md, Error codes); the message is for people. */
export class QueueError extends Error { name = 'QueueError'; }

export const fault = (code, message, retryable = RETRYABLE.includes(code)) =>
  Object.assign(new QueueError(message), { code, retryable });

/**
 * The bytes of a request, and its number of rows, 0 for a lone context. The workers look at norms, and for NaN.
 * Throws a QueueError for another form of contexts, or an option that nobody knows.
 */
export function encodeRequest(head, options) {
  const isBatch = 'contexts' in options;
  const { [isBatch ? 'contexts' : 'context']: floats, ends, ...others } = options;
  const unknown = Object.keys(others).find((name) => !OPTIONS.includes(name));
  if (unknown) throw fault('invalid_request', `there is no option '${unknown}'${isBatch ? ' beside contexts' : ''}`);
  const dtype = DTYPES[floats?.constructor.name], rows = ends?.length ?? floats?.length / CONTEXT;
  const isWhole = isBatch ? Number.isInteger(rows) && rows > 0 : rows === 1 && !ends;
  if (!dtype || !isWhole || (ends && !(ends instanceof Uint16Array)))
    throw fault('bad_shape', `send a Float32Array of ${CONTEXT} numbers for each context; ends are a Uint16Array`);
  if (rows > 256) throw fault('payload_too_large', `${rows} contexts in one message; send up to 256`);
  const message = {
    version: 1, ...head, encoder: 'all-mpnet-base-v2/mean/l2', ...others,
    dtype, shape: isBatch ? [rows, 5, 768] : [5, 768], context: bytesOf(floats), ends: ends && bytesOf(ends),
  };
  return { rows: isBatch ? rows : 0, payload: bytesOf(encode(message, { ignoreUndefined: true })) };
}

/** A reply as { id, rows, provisional, answer }, or as { id, error } with a QueueError. Throws. */
export function decodeReply(bytes) {
  const { version, status, ...reply } = decode(bytes), { id, provisional } = reply;
  if (version !== 1) throw new Error(`a reply has version ${version}`);
  if (status === 'failed') return { id, error: fault(reply.code, reply.message, reply.retryable) };
  for (const bin of ['vector', 'vectors', 'confidences', 'margins', 'gains'])
    if (reply[bin]) reply[bin] = new Float32Array(new Uint8Array(reply[bin]).buffer); // a copy is aligned
  const { vector, vectors, confidences, margins, fired, shed } = reply;
  const sizes = vectors ? [confidences, margins, fired, shed].map((each) => each.length) : [1];
  if (sizes.some((size) => size * 768 !== (vectors ?? vector).length)) throw new Error('an answer has another size');
  if (vectors) {
    reply.reasons = Array.from(fired, (bits) => reply.rules.filter((_, bit) => bits & (1 << bit)));
    reply.shed = Array.from(shed, (one) => (one ? reply.sheds[one - 1] : ''));
  }
  return { id, rows: vectors ? fired.length : 0, provisional, answer: { shed: '', degraded: '', ...reply } };
}

/** The bytes of an array, without a copy; this machine is little-endian, as nearly all are. */
export const bytesOf = ({ buffer, byteOffset, byteLength }) => Buffer.from(buffer, byteOffset, byteLength);

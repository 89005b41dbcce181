// Asks a gateway from Node.js 20 or newer, without a package; other languages do the same with what they have for HTTP.
//
//     node examples/gateway.mjs       # beside a gateway, after examples/gateway.sh, which writes context.bin
import { readFileSync } from 'node:fs';

const GATEWAY = process.env.GATEWAY ?? 'http://127.0.0.1:9466';
const LENGTH = 'Inference-Header-Content-Length';

/** The predicted vector, a Float32Array of 768. A repeat under the same id, after a broken connection, is one request. */
async function predict(context, requestId) {
  const tensor = { name: 'context', datatype: 'FP32', shape: [5, 768] };
  const head = Buffer.from(JSON.stringify({
    inputs: [{ ...tensor, parameters: { binary_data_size: context.byteLength } }],
    outputs: [{ name: 'vector', parameters: { binary_data: true } }],
    parameters: { request_id: requestId, deadline_ms: 2000 },
  }));
  const tensors = Buffer.from(context.buffer, context.byteOffset, context.byteLength);
  const answer = await fetch(`${GATEWAY}/v2/models/amn/infer`, {
    method: 'POST',
    headers: { [LENGTH]: String(head.length) },
    body: Buffer.concat([head, tensors]),
    signal: AbortSignal.timeout(5000),
  });
  if (!answer.ok) throw Object.assign(new Error(`status ${answer.status}`), await answer.json()); // code, retryable
  return new Float32Array((await answer.arrayBuffer()).slice(Number(answer.headers.get(LENGTH))));
}

const context = new Float32Array(new Uint8Array(readFileSync('context.bin')).buffer);
const vector = await predict(context, 'row-18');
console.log(vector.length, vector[0]);

// One context, as a first try: node predict.mjs [FILE of five float32 vectors or more]
import { readFile } from 'node:fs/promises';
import { Client } from './client.mjs';

const context = new Float32Array(5 * 768);
if (process.argv[2]) context.set(new Float32Array(new Uint8Array(await readFile(process.argv[2])).buffer, 0, 5 * 768));
else for (let row = 0; row < 5; row++) context[row * 768 + row] = 1; // made up: unit vectors

const client = await Client.connect();
try {
  const { vector, served_by, confidence, reasons } = await client.predict(context, { deadlineMs: 5_000 });
  console.log(vector.length, served_by, confidence.toFixed(3), reasons);
} finally {
  await client.close();
}

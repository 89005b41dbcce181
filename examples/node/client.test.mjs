// What the client does with a queue at REDIS_URL, whose workers answer with the newest vector of the context, and the
// fallback with the oldest one (tests/contract/test_node.py starts them).
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client, QueueError } from './client.mjs';

const context = new Float32Array(5 * 768);
for (let row = 0; row < 5; row++) context[row * 768 + row] = 1;
const newest = context.subarray(4 * 768);
let client;

before(async () => { client = await Client.connect(); });
after(() => client.close());

/** The error by which a promise rejects, and that it has this code. */
async function failure(promise, code) {
  const error = await promise.then(() => assert.fail(`there was an answer, and not ${code}`), (e) => e);
  assert.ok(error instanceof QueueError, error);
  assert.equal(error.code, code);
  return error;
}

test('a context is answered, and its vector is what the worker made', async () => {
  const answer = await client.predict(context, { lane: 'code-api', tokens: 12, sequence: 'doc', position: 4 });
  assert.deepEqual(answer.vector, newest);
  assert.equal(answer.served_by, 'amn');
});

test('a thousand contexts at once are answered once each', async () => {
  const answers = await Promise.all(Array.from({ length: 1000 }, () => client.predict(context)));
  assert.equal(new Set(answers.map((one) => one.id)).size, 1000);
  assert.equal(client.odd, 0);
});

test('contexts of another form, and options that nobody knows, are refused before they are sent', async () => {
  await failure(client.predict(context.subarray(1)), 'bad_shape');
  await failure(client.predict([...context]), 'bad_shape');
  await failure(client.predict(undefined), 'bad_shape');
  await failure(client.predict(new Float64Array(context)), 'bad_shape'); // twice the bytes
  await failure(client.predict(new Int32Array(context)), 'bad_shape');
  await failure(client.predictBatch(context, { ends: [4] }), 'bad_shape');
  await failure(client.predict(context, { ends: Uint16Array.of(4) }), 'bad_shape');
  await failure(client.predictBatch(context, { context }), 'invalid_request');
  await failure(client.predictBatch(new Float32Array(0)), 'bad_shape');
  await failure(client.predictBatch(new Float32Array(257 * 3840)), 'payload_too_large');
  await failure(client.predict(context, { token: 1 }), 'invalid_request');
  await failure(client.predict(context, { priority: 'urgent' }), 'invalid_request');
  await failure(client.predict(context, { deadlineMs: Number.NaN }), 'invalid_request');
  await failure(client.predict(context, { requestId: 'a b' }), 'invalid_request');
});

test('a mistake that only a worker sees is told with the field', async () => {
  assert.match((await failure(client.predict(context, { tokens: 1.5 }), 'undecodable')).message, /'tokens'/);
});

test('a failure of the worker is an error with its code, and says whether to try again', async () => {
  for (const [change, code] of [[{ lane: 'nope' }, 'unknown_lane'], [{ encoder: 'nope' }, 'unknown_encoder']])
    assert.equal((await failure(client.predict(context, change), code)).retryable, false);
  await failure(client.predict(context.map((x) => 2 * x)), 'bad_norm');
  await failure(client.predict(context.map(() => Number.NaN)), 'not_finite');
});

test('an escalated request has a provisional answer first, and then that of the fallback', async () => {
  const [handle] = await client.submit([{ context, escalate: true, provisional: true }]);
  const [first, answer] = [await handle.first, await handle.answer];
  assert.deepEqual([first.provisional, first.vector], [true, newest]);
  assert.deepEqual([answer.provisional, answer.served_by, answer.reasons], [false, 'gru', ['asked_for']]);
});

test('an id in flight shares its answer, and an id that was answered is a duplicate', async () => {
  const each = await Promise.all([1, 2].map(() => client.predict(context, { requestId: 'twice' })));
  assert.equal(each[0], each[1]);
  await failure(client.predict(context, { requestId: 'twice' }), 'duplicate_request');
});

test('an id of another client is a duplicate', async () => {
  const other = await Client.connect();
  await other.predict(context, { requestId: 'of-another' });
  await failure(client.predict(context, { requestId: 'of-another' }), 'duplicate_request');
  await other.close();
});

test('a full queue is an error that may be tried again, or is waited for', async () => {
  const narrow = await Client.connect({ entriesMax: 4, queue: 'empty' }); // no worker is there
  const found = await narrow.submit(Array.from({ length: 6 }, () => ({ context, deadlineMs: 0 })));
  assert.deepEqual(found.map((one) => one.code), [undefined, undefined, undefined, undefined, 'queue_full', 'queue_full']);
  assert.equal(found[5].retryable, true);
  const waiting = narrow.submit([{ context, wait: true }, { context, wait: true, deadlineMs: 50 }]);
  await sleep(150); // one gives up at its deadline, and the other goes on
  assert.equal(await narrow.cancel(found[0].id), true); // makes room
  await failure(found[0].answer, 'cancelled');
  const [handle, refused] = await waiting;
  assert.equal(refused.code, 'queue_full');
  const told = failure(handle.answer, 'producer_closed');
  await narrow.close();
  await told;
});

test('a request that waits for room is taken back, and not sent when there is some', async () => {
  const narrow = await Client.connect({ entriesMax: 1, queue: 'narrow' });
  const [first] = await narrow.submit([{ context }]);
  const told = failure(narrow.predict(context, { wait: true, requestId: 'in-line' }), 'cancelled');
  await sleep(50);
  assert.equal(await narrow.cancel('in-line'), true);
  await told;
  assert.equal(await narrow.cancel(first.id), true);
  await sleep(400); // longer than the pause between two tries
  assert.equal(await narrow.cancel('in-line'), false); // the server never had it
  await narrow.close();
});

test('a request that is aborted rejects with the reason, and is taken back', async () => {
  const alone = await Client.connect({ queue: 'empty' });
  const stop = new AbortController();
  const answer = alone.predict(context, { signal: stop.signal, requestId: 'aborted' });
  await sleep(50);
  stop.abort(new Error('nobody wants it'));
  await assert.rejects(answer, /nobody wants it/);
  await assert.rejects(alone.predict(context, { signal: stop.signal }), /nobody wants it/);
  await assert.rejects(alone.predict(context, { signal: AbortSignal.timeout(20) }), { name: 'TimeoutError' });
  await sleep(50);
  assert.equal(await alone.cancel('aborted'), true); // said of what was taken back already
  await alone.close();
});

test('an answer that came after its request was given up is kept for a repeat', async () => {
  const alone = await Client.connect(), stop = new AbortController();
  alone.cancel = async () => false; // as where a worker has it already
  const answer = alone.predict(context, { signal: stop.signal, requestId: 'given-up' });
  stop.abort(new Error('nobody waits'));
  await assert.rejects(answer, /nobody waits/);
  await sleep(300);
  assert.deepEqual((await alone.predict(context, { requestId: 'given-up' })).vector, newest);
  await failure(alone.predict(context, { requestId: 'given-up' }), 'duplicate_request');
  await alone.close();
});

test('a deadline is told by the worker', async () => {
  await failure(client.predict(context, { deadlineMs: 0.001 }), 'deadline_exceeded');
});

test('a batch in full, in half floats, and with shared vectors has an answer for each row', async () => {
  const rows = new Float32Array(7 * 768);
  for (let row = 0; row < 7; row++) rows[row * 768 + row] = 1;
  const full = new Float32Array(3 * 3840);
  for (let i = 0; i < 3; i++) full.set(rows.subarray(i * 768, i * 768 + 3840), i * 3840);
  const halves = Uint16Array.from(full, (x) => (x ? 0x3c00 : 0));
  for (const [contexts, options] of [[full], [halves], [rows, { ends: Uint16Array.of(4, 5, 6) }]]) {
    const answer = await client.predictBatch(contexts, options);
    assert.deepEqual(answer.vectors, rows.subarray(4 * 768));
    assert.deepEqual([answer.confidences.length, answer.margins.length, answer.shed.length], [3, 3, 3]);
  }
});

test('the functions of a server do what the scripts do', async () => {
  const other = await Client.connect({ functions: true });
  assert.deepEqual((await other.predict(context)).vector, newest);
  assert.equal(await other.cancel('of-nobody'), false);
  await other.close();
});

test('a truth goes to the shadow workers', async () => {
  await client.reportTruth(newest, { sequence: 'doc', position: 5 });
});

test('a server that is not there, and a URL that is wrong, are told by name', async () => {
  const here = process.env.REDIS_URL;
  await failure(Client.connect({ url: 'redis://127.0.0.1:1' }), 'server_unavailable');
  const odd = ['redis:/nonsense:secret@', 'redis+sentinel://a:secret@b/c', 'redis://u:x?secret@h/0', `${here}?db=99`];
  for (const url of [...odd, `${here}?ssl_ca_certs=ca.pem`])
    assert.doesNotMatch((await failure(Client.connect({ url }), 'invalid_settings')).message, /secret/);
  await failure(Client.connect({ url: `${here}?username=nobody&password=wrong` }), 'authentication_failed');
});

test('the database of a URL is the one that is used', async () => {
  const elsewhere = await Client.connect({ url: `${process.env.REDIS_URL}?db=1` });
  const told = failure(elsewhere.predict(context, { requestId: 'elsewhere' }), 'cancelled');
  await sleep(100); // a worker of the other database would have answered
  assert.equal(await elsewhere.cancel('elsewhere'), true);
  await told;
  await elsewhere.close();
});

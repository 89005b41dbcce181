// Reads the replies of a client, and looks after requests that get none (docs/wire.md: Receiving, Losses).
import { setTimeout as sleep } from 'node:timers/promises';
import { run } from './connection.mjs';
import { now } from './inflight.mjs';
import { hasLeft } from './losses.mjs';
import { decodeReply, fault } from './messages.mjs';

/** How far the server's clock is ahead of ours, in ms: its answer lies half a round trip back. */
export async function aheadOf(connection) {
  const askedAt = now(), [seconds, micros] = await run(connection, 'time');
  return seconds * 1000 + micros / 1000 - (askedAt + now()) / 2;
}

/** Reads on and on, through any outage, until `inflight` is closed. */
export async function readReplies(connection, keys, inflight) {
  for (let taken = [], sweptAt = 0, failures = 0; !inflight.isClosed; ) { // taken: entries that are to be deleted
    try {
      const isDue = now() - sweptAt > 2_000, overdue = isDue ? inflight.sweep() : [];
      if (isDue) [sweptAt, inflight.aheadMs] = [now(), await aheadOf(connection)];
      const [standing, , found] = await Promise.all([ // in one round trip
        overdue.length ? run(connection, 'hGetAll', keys.standing) : {},
        taken.length ? run(connection, 'xDel', keys.replies, taken) : 0, // so that each read begins at the beginning
        run(connection, 'xRead', { key: keys.replies, id: '0-0' }, { COUNT: 512, BLOCK: 500 }),
      ]);
      const entries = found?.[0].messages ?? [];
      taken = entries.map(({ id }) => id);
      for (const { message } of entries)
        try { if (message.reply) inflight.settle(decodeReply(message.reply)); } catch { inflight.odd++; }
      const lost = overdue.filter((one) => entries.length < 512 && hasLeft(one, standing)); // no answer is in the stream
      for (const one of lost) inflight.end(one, { error: fault('request_lost', `the server lost ${one.id}`) });
      failures = 0;
    } catch (error) { // what was not deleted is so with the next read, when the connection is there again
      for (const request of inflight.waiting.values()) request.search = undefined; // perhaps another server
      if (/WRONGTYPE/.test(error.message)) await run(connection, 'del', keys.replies).catch(() => {});
      await sleep(Math.min(20 * 2 ** failures++, 500));
    }
  }
}

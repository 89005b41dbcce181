// A connection to the server of the queue, and its errors by the names of docs/wire.md.
import { ErrorReply, RESP_TYPES, createClient } from '@redis/client';
import { QueueError } from './messages.mjs';

const CODES = [
  [/^OOM/, 'server_out_of_memory'],
  [/^(NOAUTH|WRONGPASS|NOPERM)/, 'authentication_failed'],
  // NOSCRIPT: no worker was here yet
  [/^(LOADING|READONLY|MASTERDOWN|MISCONF|NOREPLICAS|CLUSTERDOWN|TRYAGAIN|BUSY|NOSCRIPT)/, 'server_unavailable'],
  [/^/, 'server_error'],
];

/** Opens a connection, which opens itself again whenever it breaks. Throws a QueueError. */
export async function opened(url, tls) {
  let connection, ready = false;
  try {
    const { db, username, password, ...others } = Object.fromEntries(new URLSearchParams(url.split('?')[1]));
    if (Object.keys(others).length) throw new Error(`unknown parameters: ${Object.keys(others)}; use db, username, password`);
    connection = createClient({
      url, ...(db && { database: Number(db) }), ...(username && { username }), ...(password && { password }),
      socket: {
        ...tls,
        connectTimeout: 2_000, socketTimeout: 10_000, // a link that is silent for so long is dead
        reconnectStrategy: (tries, cause) => (ready ? Math.min(20 * 2 ** tries, 1_000) : cause),
      },
      RESP: 2, pingInterval: 3_000,
      disableOfflineQueue: true, // a command that cannot go now fails at once, and its caller knows that it did
      commandOptions: { typeMapping: { [RESP_TYPES.BLOB_STRING]: Buffer }, timeout: undefined },
    });
  } catch (error) { // without its cause, which may quote a password
    throw new QueueError('invalid_settings', `the URL of the server cannot be used: ${error.message}`);
  }
  connection.on('error', (error) => (connection.trouble = error));
  await connection.connect().catch((error) => { throw typed(error); });
  ready = true;
  return connection;
}

/** Runs a command; throws a QueueError. */
export const run = (connection, ...words) =>
  connection.sendCommand(words).catch((error) => { throw typed(error, connection.trouble); });

function typed(error, trouble = error) {
  const said = error instanceof ErrorReply;
  const tls = !said && /CERT|TLS|SSL|SELF_SIGNED|UNABLE_TO/.test(trouble.code ?? trouble.originalError?.code);
  const code = said ? CODES.find(([words]) => words.test(error.message))[1] : 'server_unavailable';
  const text = `the server of the queue: ${said ? error.message : trouble.message}`;
  return new QueueError(tls ? 'tls_failed' : code, text, { cause: error });
}

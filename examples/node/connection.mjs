// A connection to the server of the queue, and its errors by the names of docs/wire.md (Connecting, Error codes).
import { ErrorReply, RESP_TYPES, createClient } from '@redis/client';
import { fault } from './messages.mjs';

const CODES = [ // by the words of the server, and after a `!` those of the driver, of TLS and of a URL
  [/^OOM/, 'server_out_of_memory'],
  [/^(NOAUTH|WRONGPASS|NOPERM|ERR AUTH)|The user executing the script can't|ACL failure in script/, 'authentication_failed'],
  [/^(ERR DB index|ERR invalid DB|!TypeError|!URIError|!ERR_INVALID_URL)/, 'invalid_settings'],
  [/^!.*(CERT|TLS|SSL|SELF_SIGNED|UNABLE_TO)/, 'tls_failed'],
  // NOSCRIPT: no worker was here yet
  [/^(!|LOADING|READONLY|MASTERDOWN|MISCONF|NOREPLICAS|CLUSTERDOWN|TRYAGAIN|BUSY|NOSCRIPT|ERR max)/, 'server_unavailable'],
  [/^/, 'server_error'],
];

/** Opens a connection, which opens itself again whenever it breaks. Throws a QueueError. */
export async function opened(url = process.env.REDIS_URL ?? 'redis://127.0.0.1:6379', tls) {
  let connection;
  try {
    const { db = '', username, password, ...others } = Object.fromEntries(new URLSearchParams(url.split('?')[1]));
    if (Object.keys(others).length || /\D/.test(db)) throw new TypeError('after a ? come db, username and password alone');
    connection = createClient({
      url, ...(db && { database: Number(db) }), ...(username && { username }), ...(password && { password }),
      socket: {
        ...tls, connectTimeout: 2_000, socketTimeout: 10_000, // a link that is silent for so long is dead
        reconnectStrategy: (tries, cause) => (connection.wasReady ? Math.min(20 * 2 ** tries, 1_000) : cause),
      },
      RESP: 2, pingInterval: 3_000,
      disableOfflineQueue: true, // a command that cannot go now fails at once, and its caller knows that it did
      commandOptions: { typeMapping: { [RESP_TYPES.BLOB_STRING]: Buffer }, timeout: undefined },
    });
    connection.on('error', (error) => (connection.trouble = error));
    await connection.connect();
  } catch (error) {
    throw typed(error);
  }
  return Object.assign(connection, { wasReady: true });
}

/** Runs a command, which is a method of the driver. Throws a QueueError. */
export const run = (connection, command, ...words) =>
  connection[command](...words).catch((error) => { throw typed(error, connection.trouble); });

/** An error by its name here; where the connection is away, `trouble` says why. A URL is beside its text, and not kept. */
function typed(error, trouble = error) {
  const found = error instanceof ErrorReply ? error : trouble, cause = found.originalError ?? found;
  const words = cause instanceof ErrorReply ? cause.message : `!${cause.code ?? cause.name}`;
  const [, code] = CODES.find(([pattern]) => pattern.test(words));
  return fault(code, `the ${code === 'invalid_settings' ? 'URL of the ' : ''}server of the queue: ${cause.message}`);
}

// What a message asks for.
import { setTimeout as sleep } from 'node:timers/promises';
import { config } from './config.js';
import { Impossible } from './http.js';

const SQLSTATE_UNDEFINED_OBJECT = '42704';

export function messageId(message) {
  return message.headers?.get('Nats-Msg-Id') || `${config.stream}:${message.seq}`;
}

if (!JSON.rawJSON) throw new Error(`Node.js ${process.versions.node} is too old: 22 or newer is needed`);

// JavaScript would round a number such as 9007199254740993.
function exact(_name, value, { source }) {
  return typeof value === 'number' && String(value) !== source ? JSON.rawJSON(source) : value;
}

// The call of an envelope. Throws Impossible if it holds none.
export function read(message) {
  try {
    const envelope = JSON.parse(message.string(), exact);
    const { webhook_url: url, data, headers = {}, method = 'POST', webhook_id: webhook } = envelope;
    const { timeout_ms: timeoutMs = config.requestTimeoutMs } = envelope;
    if (!/^https?:$/.test(new URL(url).protocol)) throw new Error(`${url} is neither http nor https`);
    if (headers === null || typeof headers !== 'object' || Array.isArray(headers)) throw new Error('headers are not an object');
    if (!(timeoutMs >= 1 && timeoutMs <= 3_600_000)) throw new Error(`timeout_ms is ${timeoutMs}`);
    return { url, method, headers, timeoutMs, webhook, body: method === 'GET' ? undefined : JSON.stringify(data) };
  } catch (error) {
    throw new Impossible(`the envelope cannot be read: ${error.message}`);
  }
}

// The headers with secrets in their places: in the envelope they stand by name, only the database has their values.
export async function withSecrets(database, state, { webhook, headers }) {
  if (!JSON.stringify(headers).includes('{{secret:')) return headers;
  while (!state.stopping) {
    try {
      const { rows } = await database.query('select jetstream.webhook_headers($1, $2) as headers', [webhook, headers]);
      return rows[0].headers;
    } catch (error) {
      if (error.code === SQLSTATE_UNDEFINED_OBJECT) throw new Impossible(error.message);
      // A database that is away uses up no attempt.
      console.error(`no secrets from the database: ${error.message}`);
      await sleep(1_000);
    }
  }
  throw new Error('the worker stopped before the database gave the secrets');
}

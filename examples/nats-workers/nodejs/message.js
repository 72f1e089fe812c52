// What a message asks for.
import { validateHeaderName, validateHeaderValue } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { config } from './config.js';
import { Impossible } from './http.js';

// The answers to a question for secrets that stay: there is none of that name (undefined_object), or they are not sent to
// this url. All else is of the database's state, and somebody mends it.
const DENIED = ['42704', 'PJ001'];

export function messageId(message) {
  return message.headers?.get('Nats-Msg-Id') || `${config.stream}:${message.seq}`;
}

if (!JSON.rawJSON) throw new Error(`Node.js ${process.versions.node} is too old: 22 or newer is needed`);

// JavaScript would round a number such as 9007199254740993.
function exact(_name, value, { source }) {
  return typeof value === 'number' && String(value) !== source ? JSON.rawJSON(source) : value;
}

// The text of a header value: a string as it is, a number or a boolean as it was written, those of a list with commas
// between them.
function headerText(name, value) {
  if (JSON.isRawJSON(value)) return value.rawJSON;
  if (['string', 'number', 'boolean'].includes(typeof value)) return String(value);
  if (!Array.isArray(value) || value.some(Array.isArray)) throw new Error(`header "${name}" is not valid`);
  return value.map((each) => headerText(name, each)).join(', ');
}

// What HTTP cannot carry is found before the database is asked for secrets, which cannot read all of it either.
function headerTexts(headers) {
  if (typeof headers !== 'object' || Array.isArray(headers)) throw new Error('headers are not an object');
  return Object.fromEntries(Object.entries(headers).map(([name, value]) => {
    const text = headerText(name, value);
    validateHeaderName(name);
    validateHeaderValue(name, text);
    return [name, text];
  }));
}

// The call of an envelope. Throws Impossible if it holds none.
export function read(message) {
  try {
    const envelope = JSON.parse(message.string(), exact);
    const { webhook_url: url, data, headers, webhook_id: webhook } = envelope;
    const method = envelope.method ?? 'POST';
    const timeoutMs = envelope.timeout_ms ?? config.requestTimeoutMs;
    if (!/^https?:$/.test(new URL(url).protocol)) throw new Error(`${url} is neither http nor https`);
    if (webhook != null && webhook !== (webhook | 0)) throw new Error('webhook_id is not a number of a webhook');
    if (!(timeoutMs >= 1 && timeoutMs <= 3_600_000)) throw new Error(`timeout_ms is ${timeoutMs}`);
    const body = method === 'GET' ? undefined : JSON.stringify(data);
    return { url, method, headers: headerTexts(headers ?? {}), timeoutMs, webhook, body };
  } catch (error) {
    throw new Impossible(`the envelope cannot be read: ${error.message}`);
  }
}

// The headers with secrets in their places: in the envelope they stand by name, only the database has their values.
export async function withSecrets(database, state, { url, webhook, headers }) {
  if (!JSON.stringify(headers).includes('{{secret:')) return headers;
  while (!state.stopping) {
    try {
      const text = 'select jetstream.webhook_headers($1, $2, $3) as headers';
      const { rows } = await database.query(text, [webhook, headers, url]);
      return rows[0].headers;
    } catch (error) {
      if (DENIED.includes(error.code)) throw new Impossible(error.message);
      // A database that cannot give them uses up no attempt.
      console.error(`no secrets from the database: ${error.message}`);
      await sleep(1_000);
    }
  }
  throw new Error('the worker stopped before the database gave the secrets');
}

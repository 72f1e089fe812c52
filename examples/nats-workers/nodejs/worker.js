// Makes the HTTP calls of webhooks from NATS JetStream. Any number of workers share one durable consumer.
import { setTimeout as sleep } from 'node:timers/promises';
import { AckPolicy, JetStreamApiError, jetstream } from '@nats-io/jetstream';
import { connect, nanos } from '@nats-io/transport-node';
import pg from 'pg';
import { config } from './config.js';
import { bury } from './dead_letter.js';
import { call, Impossible } from './http.js';
import { messageId, read, withSecrets } from './message.js';
import { serve } from './pages.js';
import { delayMs, worthAnotherTry } from './retry.js';
import { Statistics } from './statistics.js';

// How long one pull waits for a message; stopping an idle worker takes as long.
const PULL_MS = 2_000;
// Limit for the last report, whatever the database does.
const LAST_REPORT_MS = 5_000;
const STREAM_NAME_IN_USE = 10058;

const state = { connected: false, stopping: false };
const database = new pg.Pool({
  connectionString: config.databaseUrl, max: 4, connectionTimeoutMillis: 5_000, query_timeout: 10_000,
});
database.on('error', (error) => console.error(`database: ${error.message}`));
const statistics = new Statistics(database, pending);
let js;
let consumer = null;

async function connectToNats() {
  const nats = await connect({
    servers: config.natsUrl.split(','), user: config.natsUser, pass: config.natsPass, name: config.name,
    maxReconnectAttempts: -1, waitOnFirstConnect: true, pingInterval: 10_000,
  });
  state.connected = true;
  (async () => {
    for await (const { type } of nats.status()) {
      if (type === 'disconnect') state.connected = false;
      if (type === 'reconnect') state.connected = true;
    }
  })();
  js = jetstream(nats);
  return nats;
}

// How often a message is tried is decided by the worker, from its delivery count, and not by the consumer's
// max_deliver: that would drop a message whose worker dies in the last attempt.
async function sharedConsumer() {
  const manager = await js.jetstreamManager();
  try {
    await manager.streams.add({
      name: config.deadLetterStream, subjects: [`${config.deadLetterSubject}.>`],
      description: 'Calls of webhooks that were given up', max_age: nanos(config.deadLetterMaxAgeMs),
    });
  } catch (error) {
    if (!(error instanceof JetStreamApiError && error.code === STREAM_NAME_IN_USE)) throw error;
  }
  await manager.consumers.add(config.stream, {
    durable_name: config.consumer, filter_subject: config.subject, ack_policy: AckPolicy.Explicit,
    ack_wait: nanos(config.ackWaitMs), max_deliver: -1, max_ack_pending: config.maxAckPending,
  });
  return js.consumers.get(config.stream, config.consumer);
}

async function pending() {
  try {
    return (await (await consumer)?.info())?.num_pending ?? null;
  } catch {
    return null;
  }
}

// Makes the call; null if it went well, else why not, and whether (and when) to try again.
async function attempt(message) {
  try {
    const asked = read(message);
    const headers = { 'content-type': 'application/json' };
    for (const name of ['traceparent', 'tracestate']) {
      if (message.headers?.has(name)) headers[name] = message.headers.get(name);
    }
    for (const [name, value] of Object.entries(await withSecrets(database, state, asked))) {
      headers[name.toLowerCase()] = value;
    }
    headers['idempotency-key'] = messageId(message);
    const { status, retryAfter } = await call({ ...asked, headers });
    if (status >= 200 && status < 300) return null;
    return { reason: `HTTP status ${status}`, status, again: worthAnotherTry(status), retryAfter };
  } catch (error) {
    return { reason: error.message || error.code, again: !(error instanceof Impossible) };
  }
}

// Makes the call of one message and settles it.
async function handle(message) {
  const begin = performance.now();
  const alive = setInterval(() => message.working(), config.ackWaitMs / 3);
  const deliveries = message.info.deliveryCount;
  const attempts = Math.min(deliveries, config.maxDeliver);
  try {
    const failure = deliveries > config.maxDeliver
      ? { reason: `the worker did not come back from attempt ${attempts}`, again: false }
      : await attempt(message);
    let outcome = 'succeeded';
    if (!failure) {
      message.ack();
    } else if (failure.again && deliveries < config.maxDeliver) {
      outcome = 'retried';
      message.nak(delayMs(attempts, failure.retryAfter));
    } else {
      outcome = 'dead';
      await bury(js, database, message, attempts, failure);
    }
    if (failure) console.error(`${messageId(message)} ${outcome} after attempt ${attempts}: ${failure.reason}`);
    statistics.count(outcome, deliveries > 1, performance.now() - begin);
  } finally {
    clearInterval(alive);
  }
}

// One call at a time; as many of these run as calls may be in flight.
async function pull() {
  while (!state.stopping) {
    const shared = consumer ??= sharedConsumer();
    try {
      const message = await (await shared).next({ expires: PULL_MS });
      if (message) await handle(message);
    } catch (error) {
      if (consumer === shared) {
        console.error(`no messages from ${config.stream}: ${error.message}`);
        consumer = null;
      }
      await sleep(1_000);
    }
  }
}

// A handler that stays: npm and a terminal's Ctrl-C both send the signal, and the second one must not end the process.
const stopped = new Promise((resolve) => ['SIGTERM', 'SIGINT'].forEach((signal) => process.on(signal, resolve)));
const pages = await serve(state, database, statistics).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
if (pages) console.log(`/health, /ready and /metrics are at http://${pages}/`);
const nats = await Promise.race([connectToNats(), stopped.then(() => null)]);
if (nats) {
  console.log(`${config.name} takes ${config.subject} from ${config.stream} as ${config.consumer}`);
  const work = Promise.all(Array.from({ length: config.batchSize }, pull));
  await stopped;
  state.stopping = true;
  await Promise.race([work, sleep(config.shutdownMs)]);
  const late = sleep(LAST_REPORT_MS).then(() => console.error('the last report did not reach the database in time'));
  await Promise.race([statistics.end(), late]);
  await Promise.race([nats.drain(), sleep(2_000)]);
}
console.log(statistics.summary());
process.exit(0);

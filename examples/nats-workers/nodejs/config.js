// What the environment says, and for what it does not say, the file .env of the working folder. The README lists the
// variables.
import net from 'node:net';

try {
  process.loadEnvFile('.env');
} catch (error) {
  if (error.code !== 'ENOENT') throw new Error(`cannot read .env: ${error.message}`);
}

function text(name, byDefault) {
  return process.env[name] || byDefault;
}

function number(name, byDefault, least, most) {
  const value = Number(text(name, byDefault));
  if (!Number.isInteger(value) || value < least || value > most) {
    throw new Error(`${name}=${process.env[name]} is not a whole number from ${least} to ${most}`);
  }
  return value;
}

// `false`: none; `true`: all; else networks such as 10.0.0.0/8, separated by commas.
function networks(name) {
  const value = text(name, 'false');
  const list = new net.BlockList();
  const ranges = { false: [], true: ['0.0.0.0/0', '::/0'] }[value] ?? value.split(',');
  for (const range of ranges) {
    const [address, prefix] = range.trim().split('/');
    const family = net.isIPv6(address) ? 'ipv6' : 'ipv4';
    try {
      list.addSubnet(address, Number(prefix ?? (family === 'ipv6' ? 128 : 32)), family);
    } catch {
      throw new Error(`${name}=${value} is neither true nor false nor a list of networks such as 10.0.0.0/8`);
    }
  }
  return list;
}

const stream = text('STREAM_NAME', 'WEBHOOKS');
export const config = {
  natsUrl: text('NATS_URL', 'nats://localhost:4222'),
  natsUser: process.env.NATS_USER || undefined,
  natsPass: process.env.NATS_PASS || undefined,
  databaseUrl: text('DATABASE_URL', 'postgresql://localhost/postgres'),
  stream,
  name: text('CONSUMER_NAME', 'webhook-worker-1'),
  consumer: text('QUEUE_GROUP', 'webhook-workers'),
  subject: text('SUBJECT', 'webhooks.*'),
  batchSize: number('BATCH_SIZE', 10, 1, 10_000),
  maxDeliver: number('MAX_DELIVER', 3, 1, 1_000),
  ackWaitMs: number('ACK_WAIT_MS', 30_000, 100, 3_600_000),
  maxAckPending: number('MAX_ACK_PENDING', 10_000, 1, 10_000_000),
  backoffBaseMs: number('BACKOFF_BASE_MS', 1_000, 1, 86_400_000),
  backoffCapMs: number('BACKOFF_CAP_MS', 300_000, 1, 86_400_000),
  retryAfterCapMs: number('RETRY_AFTER_CAP_MS', 3_600_000, 0, 86_400_000),
  requestTimeoutMs: number('REQUEST_TIMEOUT_MS', 30_000, 1, 3_600_000),
  deadLetterStream: text('DEAD_LETTER_STREAM', `${stream}_DEAD`),
  deadLetterSubject: text('DEAD_LETTER_SUBJECT', `dead_letters.${stream}`),
  deadLetterMaxAgeMs: number('DEAD_LETTER_MAX_AGE_MS', 2_592_000_000, 0, 315_360_000_000),
  allowedNetworks: networks('ALLOW_PRIVATE_ADDRESSES'),
  maxResponseBytes: number('MAX_RESPONSE_BYTES', 65_536, 0, 1_073_741_824),
  statsIntervalMs: number('STATS_INTERVAL_MS', 10_000, 10, 3_600_000),
  httpListen: process.env.HTTP_LISTEN ?? null, // null: the first free port
  shutdownMs: number('SHUTDOWN_TIMEOUT_MS', 30_000, 0, 3_600_000),
};

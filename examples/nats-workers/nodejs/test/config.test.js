import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { test } from 'node:test';

let imports = 0;

// The settings, read again in a folder with this .env and with these variables.
async function read(variables, dotEnv) {
  const before = { ...process.env };
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'worker-'));
  if (dotEnv !== undefined) fs.writeFileSync(path.join(folder, '.env'), dotEnv);
  const cwd = process.cwd();
  try {
    process.chdir(folder);
    Object.assign(process.env, variables);
    imports += 1;
    return (await import(`../config.js?${imports}`)).config;
  } finally {
    process.chdir(cwd);
    for (const name of Object.keys(process.env)) if (!(name in before)) delete process.env[name];
    Object.assign(process.env, before);
    fs.rmSync(folder, { recursive: true });
  }
}

test('the defaults are those of the README', async () => {
  const config = await read({});
  assert.deepEqual(
    [config.natsUrl, config.databaseUrl, config.stream, config.name, config.consumer, config.subject, config.batchSize],
    ['nats://localhost:4222', 'postgresql://localhost/postgres', 'WEBHOOKS', 'webhook-worker-1', 'webhook-workers',
      'webhooks.*', 10],
  );
  assert.equal(config.deadLetterStream, 'WEBHOOKS_DEAD');
  assert.equal(config.deadLetterSubject, 'dead_letters.WEBHOOKS');
  assert.equal(config.httpListen, null);
});

test('.env says what the environment does not say', async () => {
  const config = await read({ CONSUMER_NAME: 'from-environment', HTTP_LISTEN: '' }, [
    '# settings of this worker', 'STREAM_NAME=HOOKS', 'CONSUMER_NAME=from-file', 'HTTP_LISTEN=127.0.0.1:1',
    "NATS_PASS='pa#ss $word'", 'export BATCH_SIZE=50   # calls', 'DATABASE_URL="postgresql://u@h/db?sslmode=disable"', '',
  ].join('\r\n'));
  assert.equal(config.stream, 'HOOKS');
  assert.equal(config.deadLetterStream, 'HOOKS_DEAD');
  assert.equal(config.name, 'from-environment');
  assert.equal(config.httpListen, '');
  assert.equal(config.natsPass, 'pa#ss $word');
  assert.equal(config.batchSize, 50);
  assert.equal(config.databaseUrl, 'postgresql://u@h/db?sslmode=disable');
});

test('a value that makes no sense is refused by its name', async () => {
  for (const [name, value] of [['BATCH_SIZE', '0'], ['MAX_DELIVER', 'three'], ['ACK_WAIT_MS', '1.5']]) {
    await assert.rejects(read({ [name]: value }), new RegExp(`${name}=${value} is not a whole number`));
  }
  await assert.rejects(read({ ALLOW_PRIVATE_ADDRESSES: 'yes' }), /ALLOW_PRIVATE_ADDRESSES=yes/);
  await assert.rejects(read({}, 'MAX_ACK_PENDING=many\n'), /MAX_ACK_PENDING=many/);
});

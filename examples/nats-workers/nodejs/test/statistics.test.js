import assert from 'node:assert/strict';
import { mock, test } from 'node:test';

process.env.CONSUMER_NAME = 'w1';
process.env.QUEUE_GROUP = 'group';
process.env.MAX_DELIVER = '5';
const { config } = await import('../config.js');
const { serve } = await import('../pages.js');
const { delayMs, worthAnotherTry } = await import('../retry.js');
const { Statistics } = await import('../statistics.js');

test('every hundred messages and the end are logged, and a failed report loses nothing', async () => {
  const reports = [];
  let away = true;
  const database = {
    query: async (_text, values) => {
      if (away) throw new Error('away');
      reports.push(values);
    },
  };
  const log = mock.method(console, 'log', () => {});
  mock.method(console, 'error', () => {});
  const statistics = new Statistics(database, async () => 3);
  for (let n = 1; n <= 250; n += 1) statistics.count(n % 10 === 0 ? 'retried' : 'succeeded', n % 5 === 0, 4);
  assert.equal(log.mock.callCount(), 2);
  const lines = log.mock.calls[1].arguments[0].split('\n');
  assert.deepEqual(lines.slice(0, 5), [
    '📊 Statistics:', '   Processed: 200', '   Succeeded: 180', '   Failed: 20', '   Avg Time: 4.00ms',
  ]);
  assert.match(lines[5], /^ {3}Uptime: \d+s$/);
  await new Promise(setImmediate);
  away = false;
  await statistics.end();
  assert.deepEqual(reports, [['WEBHOOKS', 'w1', 250, 225, 3, 4, 50, false, 'group', 'explicit', 5]]);
  assert.match(statistics.summary(), /Processed: 250\n/);
  assert.match(statistics.metrics(), /outcome="retried"} 25\n/);
  mock.restoreAll();
});

test('nothing was done yet', () => {
  const statistics = new Statistics({ query: async () => {} }, async () => null);
  assert.match(statistics.summary(), /Processed: 0\n.*\n {3}Failed: 0\n {3}Avg Time: 0.00ms/);
  return statistics.end();
});

test('a second worker takes the next port, unless HTTP_LISTEN says which', async () => {
  const first = await serve({}, {}, { metrics: () => 'm' });
  const second = await serve({}, {}, { metrics: () => 'm' });
  assert.match(first, /^127\.0\.0\.1:80[89]\d$/);
  assert.notEqual(first, second);
  assert.equal(await (await fetch(`http://${second}/metrics`)).text(), 'm');
  config.httpListen = first;
  await assert.rejects(serve({}, {}, {}), new RegExp(`HTTP_LISTEN ${first}: .*EADDRINUSE`));
  config.httpListen = '';
  assert.equal(await serve({}, {}, {}), undefined);
});

test('delays double up to their limit, and Retry-After can make them longer', () => {
  for (const [attempts, retryAfter, least, most] of [
    [1, undefined, 500, 1_000], [3, undefined, 2_000, 4_000], [30, undefined, 150_000, 300_000], [1, '7', 7_000, 7_000],
    [1, '999999', 3_600_000, 3_600_000], [1, 'soon', 500, 1_000], [1, new Date(Date.now() + 60_000).toUTCString(), 58_000, 60_000],
  ]) {
    const delay = delayMs(attempts, retryAfter);
    assert.ok(delay >= least && delay <= most, `${attempts} ${retryAfter}: ${delay}`);
  }
  assert.deepEqual([200, 302, 400, 404, 408, 425, 429, 500, 503].filter(worthAnotherTry), [408, 425, 429, 500, 503]);
});

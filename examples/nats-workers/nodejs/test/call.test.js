import assert from 'node:assert/strict';
import http from 'node:http';
import { after, before, test } from 'node:test';

process.env.ALLOW_PRIVATE_ADDRESSES = '127.0.0.1/32';
process.env.MAX_RESPONSE_BYTES = '1000';
const { call, Impossible } = await import('../http.js');
const { read } = await import('../message.js');

let seen;
let server;
let url;

before(async () => {
  server = http.createServer((request, response) => {
    seen.push(request);
    const { pathname, searchParams } = new URL(request.url, 'http://x');
    if (pathname === '/redirect') response.writeHead(Number(searchParams.get('status')), { location: searchParams.get('to') });
    if (pathname === '/busy') response.writeHead(429, { 'retry-after': '7' });
    if (pathname === '/silent') return;
    response.end(pathname === '/long' ? 'x'.repeat(1 << 20) : 'ok');
  });
  await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve); });
  url = `http://127.0.0.1:${server.address().port}`;
});

after(() => {
  server.closeAllConnections();
  server.close();
});

function made(path, more = {}) {
  seen = [];
  return call({ url: `${url}${path}`, method: 'POST', headers: {}, body: '{}', timeoutMs: 5_000, ...more });
}

test('a call brings status and Retry-After', async () => {
  assert.equal((await made('/')).status, 200);
  assert.deepEqual(await made('/busy').then(({ status, retryAfter }) => [status, retryAfter]), [429, '7']);
  assert.equal((await made('/long')).status, 200);
  await assert.rejects(made('/silent', { timeoutMs: 200 }), /no answer within 200 ms/);
});

test('a redirect keeps method and body, and takes no header of the webhook to another server', async () => {
  const headers = { authorization: 'secret', 'idempotency-key': 'k' };
  await made(`/redirect?status=308&to=${encodeURIComponent('/moved')}`, { headers });
  assert.deepEqual(seen.map(({ url: path, method }) => [path.split('?')[0], method]), [['/redirect', 'POST'], ['/moved', 'POST']]);
  assert.equal(seen[1].headers.authorization, 'secret');
  const elsewhere = http.createServer((request, response) => { seen.push(request); response.end(); });
  await new Promise((resolve) => { elsewhere.listen(0, '127.0.0.1', resolve); });
  const to = `http://127.0.0.1:${elsewhere.address().port}/`;
  await made(`/redirect?status=307&to=${encodeURIComponent(to)}`, { headers });
  elsewhere.close();
  assert.equal(seen[1].headers.authorization, undefined);
  assert.equal(seen[1].headers['idempotency-key'], 'k');
  assert.equal((await made('/redirect?status=302&to=/moved')).status, 302);
  assert.equal(seen.length, 1);
});

test('private addresses are refused, by number and behind a redirect', async () => {
  for (const host of ['127.0.0.2', '10.1.2.3', '169.254.169.254', '[::1]', '[::ffff:10.0.0.1]', '[fd00::1]', '0.0.0.0']) {
    const refused = call({ url: `http://${host}:1/`, method: 'GET', headers: {}, timeoutMs: 5_000 });
    await assert.rejects(refused, /may not be called/, host);
  }
  await assert.rejects(made('/redirect?status=307&to=http%3A%2F%2F10.0.0.1%2F'), Impossible);
});

function message(text) {
  return { seq: 1, headers: undefined, string: () => text };
}

test('an envelope is read as it was written', () => {
  const asked = read(message('{"webhook_url": "http://h/", "data": {"n": 9007199254740993, "d": 2.50}, "headers": {"A": 1.0, "B": ["x", true]}}'));
  assert.equal(asked.method, 'POST');
  assert.equal(asked.timeoutMs, 30_000);
  assert.equal(asked.body, '{"n":9007199254740993,"d":2.50}');
  assert.deepEqual(asked.headers, { A: '1.0', B: 'x, true' });
  assert.equal(read(message('{"webhook_url": "https://h/", "method": "GET", "data": {}}')).body, undefined);
});

test('what is no envelope is never tried again', () => {
  for (const text of [
    'text', '[1]', '{}', '{"webhook_url": "ftp://h/"}', '{"webhook_url": "http://h/", "headers": {"X": null}}',
    '{"webhook_url": "http://h/", "headers": {"X": "a\\r\\nb"}}', '{"webhook_url": "http://h/", "timeout_ms": 0}',
    '{"webhook_url": "http://h/", "webhook_id": 3000000000}',
  ]) {
    assert.throws(() => read(message(text)), Impossible, text);
  }
});

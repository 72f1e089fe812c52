// One HTTP call: to no private address that is not allowed, also behind a redirect, and reading no endless answer.
import dns from 'node:dns';
import http from 'node:http';
import https from 'node:https';
import net from 'node:net';
import { config } from './config.js';

const MAX_REDIRECTS = 5;
// Sent on when a redirect leads to another server; what else a webhook's headers hold is for the first one alone.
const FOR_ANY_SERVER = ['content-type', 'idempotency-key', 'traceparent', 'tracestate'];

// Not on the public internet, of which IPv6 is 2000::/3. Rules for IPv4 also match IPv4 addresses mapped into IPv6.
const PRIVATE = new net.BlockList();
for (const network of [
  '0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12', '192.0.0.0/24',
  '192.0.2.0/24', '192.88.99.0/24', '192.168.0.0/16', '198.18.0.0/15', '198.51.100.0/24', '203.0.113.0/24', '224.0.0.0/4',
  '240.0.0.0/4', '::/3', '4000::/2', '8000::/1', '2001::/23', '2001:db8::/32', '2002::/16', '3fff::/20',
]) {
  const [address, prefix] = network.split('/');
  PRIVATE.addSubnet(address, Number(prefix), net.isIPv6(address) ? 'ipv6' : 'ipv4');
}

// The call cannot be made, neither now nor later.
export class Impossible extends Error {}

function allowed(address) {
  const family = net.isIPv6(address) ? 'ipv6' : 'ipv4';
  return !PRIVATE.check(address, family) || config.allowedNetworks.check(address, family);
}

function refusal(address) {
  return new Impossible(`${address} may not be called: it is not a public address`);
}

// Leaves of what a name resolves to the addresses that may be called. As this is what the connection is made to, a
// name that resolves to something else the next time gets nowhere.
function lookup(host, options, callback) {
  dns.lookup(host, { ...options, all: true }, (error, found) => {
    if (error) return callback(error);
    const good = found.filter(({ address }) => allowed(address));
    if (good.length === 0) return callback(refusal(found[0].address));
    return options.all ? callback(null, good) : callback(null, good[0].address, good[0].family);
  });
}

const clients = {
  'http:': { request: http.request, agent: new http.Agent({ keepAlive: true }) },
  'https:': { request: https.request, agent: new https.Agent({ keepAlive: true }) },
};

function begin(url, method, headers, signal) {
  const host = url.hostname.replace(/^\[|\]$/g, '');
  // A lookup is made for names alone.
  if (net.isIP(host) && !allowed(host)) throw refusal(host);
  const client = clients[url.protocol];
  if (!client) throw new Impossible(`${url.protocol} is neither http nor https`);
  try {
    return client.request(url, { method, headers, lookup, signal, agent: client.agent });
  } catch (error) {
    // A method or a header that HTTP does not have.
    throw new Impossible(error.message);
  }
}

function once(url, { method, headers, body, timeoutMs }, signal) {
  const request = begin(url, method, headers, signal);
  return new Promise((resolve, reject) => {
    request.on('response', (response) => {
      const { statusCode: status, headers: { location, 'retry-after': retryAfter } } = response;
      let size = 0;
      response.on('data', (part) => {
        size += part.length;
        if (size > config.maxResponseBytes) response.destroy();
      });
      response.on('error', () => {});
      response.on('close', () => resolve({ status, location, retryAfter }));
    });
    request.on('error', (error) => {
      const late = ['AbortError', 'TimeoutError'].includes(error.name);
      reject(late ? new Error(`no answer within ${timeoutMs} ms`) : error);
    });
    request.end(body);
  });
}

// Resolves to { status, retryAfter }; rejects with Impossible, or with why there is no answer.
export async function call(asked) {
  const signal = AbortSignal.timeout(asked.timeoutMs);
  let url = new URL(asked.url);
  let { headers } = asked;
  for (let redirects = 0; ; redirects += 1) {
    const answer = await once(url, { ...asked, headers }, signal);
    // The other redirects would change the method and drop the body.
    if (![307, 308].includes(answer.status) || !URL.canParse(answer.location, url)) return answer;
    if (redirects === MAX_REDIRECTS) throw new Impossible(`more than ${MAX_REDIRECTS} redirects`);
    const next = new URL(answer.location, url);
    if (next.origin !== url.origin) {
      headers = Object.fromEntries(Object.entries(headers).filter(([name]) => FOR_ANY_SERVER.includes(name)));
    }
    url = next;
  }
}

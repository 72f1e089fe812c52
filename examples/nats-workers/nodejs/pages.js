// /health while the process runs, /ready while it can work, /metrics for Prometheus.
import http from 'node:http';
import { config } from './config.js';

// Without HTTP_LISTEN the first free one of these is taken, so that several workers run on one machine.
const FIRST_PORT = 8080;
const LAST_PORT = 8099;

// Resolves to where it listens; undefined if nowhere.
export async function serve(state, database, statistics) {
  if (config.httpListen === '') return undefined;
  const pages = {
    '/health': () => [200, 'ok\n'],
    '/metrics': () => [200, statistics.metrics()],
    '/ready': async () => {
      if (state.stopping) return [503, 'stopping\n'];
      if (!state.connected) return [503, 'not connected to NATS\n'];
      return database.query('select 1').then(() => [200, 'ready\n'], (error) => [503, `database: ${error.message}\n`]);
    },
  };
  const server = http.createServer(async (request, response) => {
    const [status, text] = await (pages[request.url] ?? (() => [404, 'not found\n']))();
    response.writeHead(status, { 'content-type': 'text/plain' }).end(text);
  });
  if (config.httpListen !== null) {
    const at = config.httpListen.lastIndexOf(':');
    const host = config.httpListen.slice(0, at).replace(/^\[|\]$/g, '');
    try {
      await listen(server, host, Number(config.httpListen.slice(at + 1)));
    } catch (error) {
      throw new Error(`HTTP_LISTEN ${config.httpListen}: ${error.message}`);
    }
    return config.httpListen;
  }
  for (let port = FIRST_PORT; port <= LAST_PORT; port += 1) {
    try {
      await listen(server, '127.0.0.1', port);
      return `127.0.0.1:${port}`;
    } catch (error) {
      if (error.code !== 'EADDRINUSE') throw error;
    }
  }
  console.error(`no /health, /ready and /metrics: ports ${FIRST_PORT} to ${LAST_PORT} are in use; set HTTP_LISTEN`);
  return undefined;
}

function listen(server, host, port) {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    // The process runs as long as it works, and not as long as it can be asked.
    server.unref().listen(port, host, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

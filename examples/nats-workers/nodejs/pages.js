// /health while the process runs, /ready while it can work, /metrics for Prometheus.
import http from 'node:http';
import { config } from './config.js';

export function serve(state, database, statistics) {
  if (!config.httpListen) return;
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
  const at = config.httpListen.lastIndexOf(':');
  server.listen(Number(config.httpListen.slice(at + 1)), config.httpListen.slice(0, at).replace(/^\[|\]$/g, ''));
}

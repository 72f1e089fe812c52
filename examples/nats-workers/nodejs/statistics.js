// What this worker has done, and its reports of it to PostgreSQL.
import { config } from './config.js';

const EVERY_MESSAGES = 100;

export class Statistics {
  #total = { delivered: 0, succeeded: 0, retried: 0, dead: 0, redelivered: 0, milliseconds: 0 };
  #reported = { ...this.#total };
  #reporting = null;
  #database;
  #pending;
  #timer;
  #started = performance.now();

  // `pending` says how many messages wait for the consumer; null if it cannot.
  constructor(database, pending) {
    this.#database = database;
    this.#pending = pending;
    this.#timer = setInterval(() => this.#report(true), config.statsIntervalMs);
  }

  // One delivery is done with; `outcome` is succeeded, retried or dead.
  count(outcome, redelivered, milliseconds) {
    this.#total.delivered += 1;
    this.#total[outcome] += 1;
    this.#total.redelivered += redelivered ? 1 : 0;
    this.#total.milliseconds += milliseconds;
    if (this.#total.delivered % EVERY_MESSAGES === 0) console.log(this.summary());
    if (this.#total.delivered - this.#reported.delivered >= EVERY_MESSAGES) this.#report(true);
  }

  async end() {
    clearInterval(this.#timer);
    await this.#reporting;
    await this.#report(false);
  }

  // At most one report is under way, so that none counts what another does.
  #report(active) {
    this.#reporting ??= this.#send(active).finally(() => { this.#reporting = null; });
    return this.#reporting;
  }

  // The difference since the last report that went well.
  async #send(active) {
    const pending = await this.#pending();
    const now = { ...this.#total };
    const since = (what) => now[what] - this.#reported[what];
    const average = since('delivered') > 0 ? since('milliseconds') / since('delivered') : null;
    try {
      const text = 'select jetstream.rule_nats_consumer_update_stats($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)';
      await this.#database.query(text, [
        config.stream, config.name, since('delivered'), since('succeeded'), pending, average, since('redelivered'), active,
        config.consumer, 'explicit', config.maxDeliver,
      ]);
      this.#reported = now;
    } catch (error) {
      console.error(`statistics not reported, kept for the next report: ${error.message}`);
    }
  }

  // For the log: every 100 messages, and when the worker ends.
  summary() {
    const { delivered, succeeded, milliseconds } = this.#total;
    const average = delivered > 0 ? milliseconds / delivered : 0;
    const uptime = (performance.now() - this.#started) / 1000;
    return `📊 Statistics:\n   Processed: ${delivered}\n   Succeeded: ${succeeded}\n   Failed: ${delivered - succeeded}\n`
      + `   Avg Time: ${average.toFixed(2)}ms\n   Uptime: ${uptime.toFixed(0)}s`;
  }

  // In the text format of Prometheus.
  metrics() {
    const total = this.#total;
    const calls = ['succeeded', 'retried', 'dead']
      .map((outcome) => `webhook_worker_calls_total{source="nats",outcome="${outcome}"} ${total[outcome]}\n`);
    return `# TYPE webhook_worker_calls_total counter\n${calls.join('')}`
      + `# TYPE webhook_worker_redelivered_total counter\nwebhook_worker_redelivered_total ${total.redelivered}\n`;
  }
}

// Figures from samples of jetstream.metrics, and how they are written. Nothing here touches the page.

/** Samples are kept for this long, seconds. */
const WINDOW = 300;

/** Values of the metrics by name, and the buckets of the latency histogram, of one answer of the server. */
export function sample(overview) {
  const values = new Map();
  const buckets = [];
  for (const metric of overview.metrics) {
    const name = metric.name.replace("pg_jetstream_", "");
    if (name === "worker_latency_seconds_bucket") {
      buckets.push([metric.labels.le === "+Inf" ? Infinity : Number(metric.labels.le), metric.value]);
    } else {
      values.set(name, [...(values.get(name) ?? []), metric]);
    }
  }
  buckets.sort((one, other) => one[0] - other[0]);
  return { at: Number(overview.at), values, buckets };
}

/** Value of a metric that has no labels but the database; 0 if there is none. */
export function value(sample, name) {
  return sample.values.get(name)?.[0].value ?? 0;
}

/** Value of a connection's metric; 0 if there is none. */
export function ofConnection(sample, name, connection) {
  return sample.values.get(name)?.find((metric) => metric.labels.connection === connection)?.value ?? 0;
}

/** Sum and maximum of a metric over its labels. */
export function total(sample, name) {
  return (sample.values.get(name) ?? []).reduce((sum, metric) => sum + metric.value, 0);
}

export function largest(sample, name) {
  return Math.max(0, ...(sample.values.get(name) ?? []).map((metric) => metric.value));
}

/** Adds a sample to those before it. Another worker counts from the beginning, so that earlier ones say nothing of it. */
export function remember(samples, next) {
  const started = value(next, "worker_start_time_seconds");
  const same = samples.filter((old) => next.at - old.at <= WINDOW && value(old, "worker_start_time_seconds") === started);
  return [...same, next];
}

/** Messages stored in a second, between each two samples. */
export function rates(samples) {
  return samples.slice(1).map((sample, i) => {
    const before = samples[i];
    const stored = value(sample, "worker_stored_total") - value(before, "worker_stored_total");
    return [sample.at, stored / Math.max(sample.at - before.at, 0.001)];
  });
}

/** Messages by latency, not cumulated, of those stored since the first sample; of all if there were none since. */
export function latencies(samples) {
  const last = samples.at(-1);
  const first = samples[0];
  const all = last.buckets.map(([bound, count]) => [bound, count]);
  const lately = all.map(([bound, count], i) => [bound, count - (first.buckets[i]?.[1] ?? 0)]);
  const recent = samples.length > 1 && lately.at(-1)?.[1] > 0;
  const cumulated = recent ? lately : all;
  const counts = cumulated.map(([bound, count], i) => [bound, count - (cumulated[i - 1]?.[1] ?? 0)]);
  return { counts, recent, seconds: last.at - first.at };
}

/** The latency that a share of the messages does not exceed, evenly spread within its bucket; null if there were none. */
export function quantile(counts, share) {
  const all = counts.reduce((sum, [, count]) => sum + count, 0);
  if (all === 0) return null;
  let rest = share * all;
  let lower = 0;
  for (const [bound, count] of counts) {
    if (rest <= count && count > 0) return bound === Infinity ? lower : lower + (bound - lower) * (rest / count);
    rest -= count;
    lower = bound;
  }
  return lower;
}

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** A count: exact up to 99,999. */
export function count(number) {
  return Math.abs(number) < 100000 ? plain.format(number) : short.format(number);
}

/** A duration given in seconds. */
export function duration(seconds) {
  if (seconds === null) return "–";
  if (seconds === 0) return "0 s";
  if (seconds < 0.0995) return `${(seconds * 1000).toFixed(seconds < 0.00995 ? 1 : 0)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

/** A time as the database wrote it, in the browser's zone. */
export function time(text) {
  if (!text) return "";
  const date = new Date(text);
  const today = date.toDateString() === new Date().toDateString();
  const clock = date.toLocaleTimeString("en-GB");
  return today ? clock : `${date.toLocaleDateString("en-CA")} ${clock}`;
}

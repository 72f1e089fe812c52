// The page: asks every two seconds, and shows the answer. Whatever comes from the database is put in as text.

import * as figures from "./figures.js";
import { bars, line } from "./charts.js";

const INTERVAL = 2000;
const $ = (id) => document.getElementById(id);

let samples = [];
/** Kept here alone: it is gone with the page. */
let token = null;
let paused = false;
/** Answers of dead letters that are open, by id. */
const open = new Map();
let overview = null;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A cell; its name shows where there is no room for a head. */
function cell(name, content, kind = "") {
  const made = element("td", { className: kind }, content ?? "");
  made.dataset.name = name;
  return made;
}

/** Puts rows into a table, unless they are those that stand there. */
function fill(id, source, rows) {
  const table = $(id);
  const text = JSON.stringify(source);
  if (table.dataset.shown === text) return;
  table.dataset.shown = text;
  const made = rows();
  table.tBodies[0].replaceChildren(...made);
  table.hidden = made.length === 0 && table.nextElementSibling !== null;
  if (table.nextElementSibling) table.nextElementSibling.hidden = made.length > 0;
}

function say(id, text) {
  $(id).textContent = text;
  $(id).hidden = !text;
}

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => ({ error: `HTTP status ${response.status}` }));
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status });
  return answer;
}

function colour(state) {
  if (["healthy", "connected", "in sync"].includes(state)) return "good";
  if (["degraded", "connecting", "asked for"].includes(state)) return "warn";
  return state === "disabled" ? "quiet" : "bad";
}

function showHead(now) {
  const { worker, health } = overview;
  const reasons = health.reasons ?? [];
  $("state").textContent = `${health.verdict}: ${worker.pid === null ? "not running" : worker.state}`;
  $("state").className = `pill ${colour(health.verdict)}`;
  $("reasons").replaceChildren(...reasons.map((r) => element("li", { className: r.level === "down" ? "bad" : "warn" },
    r.reason, element("p", { className: "quiet" }, r.next_step))));
  $("reasons").hidden = reasons.length === 0;
  $("database").textContent = overview.database;
  $("version").textContent = overview.version ?? "";
  paused = figures.value(now, "worker_paused") === 1;
  $("pause").textContent = paused ? "Resume" : "Pause";
  $("pause").hidden = token === null;
}

function showFigures(now) {
  const { count, duration, value, total, largest } = figures;
  const stored = value(now, "worker_stored_total");
  const rate = figures.rates(samples).at(-1)?.[1];
  const { counts, recent, seconds } = figures.latencies(samples);
  const [p50, p95, p99] = [0.5, 0.95, 0.99].map((share) => figures.quantile(counts, share));
  $("lag").textContent = duration(largest(now, "connection_lag_seconds"));
  $("owed").textContent = count(value(now, "outbox_owed_messages"));
  $("in-flight").textContent = `${count(value(now, "worker_in_flight_messages"))} in flight, `
    + `${count(total(now, "connection_scheduled_messages"))} scheduled`;
  $("rate").textContent = rate === undefined ? "–" : count(rate);
  $("stored").textContent = `${count(stored)} since the worker started`;
  $("p95").textContent = duration(p95);
  $("percentiles").textContent = `95 of 100; half ${duration(p50)}, 99 of 100 ${duration(p99)}`;
  $("failing").textContent = count(total(now, "connection_failing_messages"));
  const oldest = largest(now, "connection_oldest_failing_seconds");
  $("oldest-failing").textContent = oldest > 0 ? `the oldest for ${duration(oldest)}` : "will be tried again";
  $("dead").textContent = count(total(now, "connection_dead_letters"));
  $("dead").className = `figure ${total(now, "connection_dead_letters") > 0 ? "bad" : ""}`;
  $("failing").className = `figure ${total(now, "connection_failing_messages") > 0 ? "warn" : ""}`;
  $("window").textContent = recent ? `last ${duration(seconds)}` : "since the worker started";
  line($("rate-chart"), figures.rates(samples), count, 10);
  line($("lag-chart"), samples.map((sample) => [sample.at, largest(sample, "connection_lag_seconds")]), duration, 1);
  bars($("latency-chart"), counts, duration);
}

function showTables(now) {
  const connections = (overview.connections ?? []).map((c) => ({
    ...c,
    shown: c.enabled ? (c.state ?? "unknown") : "disabled",
    lag: figures.ofConnection(now, "connection_lag_seconds", c.name),
    failing: figures.ofConnection(now, "connection_failing_messages", c.name),
    dead: figures.ofConnection(now, "connection_dead_letters", c.name),
  }));
  fill("connections", connections, () => connections.map((c) => element("tr", {},
    cell("Name", c.name), cell("Server", c.url, "code"),
    cell("State", element("span", { className: colour(c.shown) }, c.detail && c.shown !== "connected" ? `${c.shown}: ${c.detail}` : c.shown), "long"),
    cell("Lag", figures.duration(c.lag), "number"), cell("Failing", figures.count(c.failing), "number"),
    cell("Dead", figures.count(c.dead), "number"))));

  const streams = overview.streams ?? [];
  fill("streams", streams, () => streams.map((s) => {
    const state = s.sync_error ?? (s.synced_at ? "in sync" : "asked for");
    return element("tr", {}, cell("Name", s.name), cell("Connection", s.connection), cell("Subjects", s.subjects.join(", "), "code"),
      cell("State", element("span", { className: colour(state) }, state), "long"));
  }));

  const webhooks = overview.webhooks ?? [];
  fill("webhooks", webhooks, () => webhooks.map((w) => element("tr", {},
    cell("Name", w.name), cell("Server", w.server, "code"), cell("Mode", w.enabled ? w.publish_mode : `${w.publish_mode}, disabled`),
    cell("Pending", figures.count(w.pending), "number"), cell("Failing", figures.count(w.failing), "number"),
    cell("Dead, last hour", figures.count(w.dead), "number"))));

  const failures = overview.failures ?? [];
  fill("failures", failures, () => failures.map((f) => element("tr", {},
    cell("When", figures.time(f.failed_at), "when"), cell("Subject", f.subject, "code"), cell("Connection", f.connection),
    cell("Attempts", figures.count(f.attempts), "number"), cell("Reason", f.error, "long"),
    cell("Next attempt", f.state === "dead" ? "given up" : figures.time(f.next_attempt), "when"))));
  showDeadLetters(now);
}

function showDeadLetters(now) {
  const letters = overview.dead_letters ?? [];
  const all = figures.total(now, "connection_dead_letters");
  $("dead-shown").textContent = all > letters.length ? `the newest ${letters.length} of ${figures.count(all)}` : "";
  fill("dead-letters", [letters, [...open]], () => letters.flatMap((d) => {
    const body = open.get(d.id);
    const row = element("tr", {},
      cell("When", figures.time(d.died_at), "when"), cell("Subject", d.subject, "code"), cell("Connection", d.connection),
      cell("Message id", d.message_id, "code"), cell("Attempts", figures.count(d.attempts), "number"), cell("Reason", d.reason, "long"),
      cell("", element("span", {},
        element("button", { onclick: () => showBody(d.id) }, body === undefined ? "Body" : "Hide"), " ",
        element("button", { className: "main", onclick: (event) => redrive(d.id, event.target) }, "Redrive")), "do"));
    row.dataset.deadLetter = d.id;
    if (body === undefined) return [row];
    return [row, element("tr", {}, Object.assign(cell("", element("pre", {}, body), "body"), { colSpan: 7 }))];
  }));
}

/** Does what needs the token, after asking for it. */
async function change(what) {
  if (token === null && !(await unlock())) return;
  say("trouble", "");
  say("done", "");
  try {
    await what();
  } catch (error) {
    if (error.status === 401) token = null;
    say("trouble", error.message);
  }
  await look();
}

function redrive(id, button) {
  button.disabled = true;
  return change(async () => {
    const { outbox_id } = await ask(`api/dead-letters/${id}/redrive`, { method: "POST" });
    open.delete(id);
    say("done", `Dead letter ${id} is owed again, as message ${outbox_id}.`);
  }).finally(() => { button.disabled = false; });
}

function showBody(id) {
  if (open.delete(id)) return look();
  return change(async () => {
    const letter = await ask(`api/dead-letters/${id}`);
    const body = letter.raw === null ? JSON.stringify(letter.payload, null, 2) : `${letter.raw}\n(bytes, as base64)`;
    const headers = Object.entries(letter.headers ?? {}).map(([name, given]) => `${name}: ${[given].flat().join(", ")}\n`);
    open.set(id, `${headers.join("")}${headers.length ? "\n" : ""}${body}`);
  });
}

/** Asks for the token; true if the server takes it. */
function unlock() {
  const dialog = $("ask");
  say("wrong", "");
  $("token").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    $("cancel").onclick = () => dialog.close();
    dialog.onclose = () => resolve(token !== null);
    dialog.querySelector("form").onsubmit = async (event) => {
      event.preventDefault();
      token = $("token").value;
      try {
        await ask("api/token");
        dialog.close();
      } catch (error) {
        token = null;
        say("wrong", error.status === 401 ? "That is not the token." : error.message);
      }
    };
  });
}

async function look() {
  try {
    overview = await ask("api/overview");
    const now = figures.sample(overview);
    samples = figures.remember(samples, now);
    showHead(now);
    showFigures(now);
    showTables(now);
    $("unlock").textContent = token === null ? "Unlock changes" : "Lock changes";
    if ($("trouble").dataset.lost) say("trouble", "");
    delete $("trouble").dataset.lost;
  } catch (error) {
    $("trouble").dataset.lost = "yes";
    $("state").className = "pill bad";
    $("state").textContent = "unknown";
    say("trouble", `No figures: ${error.message}`);
  }
}

$("unlock").onclick = async () => {
  if (token === null) await unlock();
  else token = null;
  await look();
};
$("pause").onclick = () => change(() => ask(paused ? "api/resume" : "api/pause", { method: "POST" }));

while (true) {
  if (!document.hidden) await look();
  await new Promise((resolve) => setTimeout(resolve, INTERVAL));
}

//! A thousand calls by three workers, one of which is killed with SIGKILL in the middle.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lab::StoredMessage;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::endpoint::Answer::{Close, RetryAfter, Slow, Status};
use super::endpoint::{Answers, Endpoint, Seen};
use super::{Kind, LONG, Place, header};
use crate::e2e_support::{account, drained, eventually};

const CALLS: usize = 1000;
/// BATCH_SIZE of each worker, the number of messages that the killed one may have had in hand.
const IN_HAND: usize = 20;
/// Deliveries that the killed worker may have handled without reporting them: those since its last report, which it
/// sends after 100, and those that ended while that report was being sent.
const UNREPORTED: usize = 100 + 2 * IN_HAND;
const ACK_WAIT_MS: u64 = 3000;
const BACKOFF_MS: u64 = 400;

/// The answers of the endpoint, and whether the message becomes a dead letter: after this many attempts, with this
/// status.
struct Plan {
    name: &'static str,
    answers: Answers,
    dead: Option<(usize, u16)>,
    weight: u32,
}

impl Plan {
    /// Number of requests for a message of this plan if no worker is killed.
    fn calls(&self) -> usize {
        self.dead.map_or(self.answers.len(), |(attempts, _)| attempts)
    }
}

const fn plan(name: &'static str, weight: u32, answers: Answers, dead: Option<(usize, u16)>) -> Plan {
    Plan {
        name,
        answers,
        dead,
        weight,
    }
}

const PLANS: [Plan; 12] = [
    plan("fine", 52, &[Status(200)], None),
    plan("created", 10, &[Status(201)], None),
    plan("unavailable", 8, &[Status(503), Status(204)], None),
    plan("twice", 4, &[Status(500), Status(502), Status(200)], None),
    plan("early", 4, &[Status(425), Status(408), Status(200)], None),
    plan("busy", 6, &[RetryAfter(429, 2), Status(200)], None),
    // Few enough that they do not occupy the two remaining workers completely. Otherwise retries would wait for a free
    // slot and not for their delay.
    plan("slow", 2, &[Slow(ACK_WAIT_MS * 2)], None),
    plan("closed", 5, &[Close, Status(200)], None),
    plan("missing", 4, &[Status(404)], Some((1, 404))),
    plan("gone", 2, &[Status(503), Status(410)], Some((2, 410))),
    plan("broken", 3, &[Status(500)], Some((3, 500))),
    plan("closes", 1, &[Close], Some((3, 0))),
];

pub fn thousand_calls(kind: &Kind) {
    let place = Place::new(
        kind,
        Endpoint::start(PLANS.iter().map(|plan| (plan.name, plan.answers))),
    );
    let drawn = store_calls(&place);
    let (base, wait, batch) = (BACKOFF_MS.to_string(), ACK_WAIT_MS.to_string(), IN_HAND.to_string());
    let variables = [
        ("BATCH_SIZE", batch.as_str()),
        ("ACK_WAIT_MS", wait.as_str()),
        ("BACKOFF_BASE_MS", base.as_str()),
        ("BACKOFF_CAP_MS", "5000"),
        ("STATS_INTERVAL_MS", "1000"),
    ];
    let mut workers: Vec<_> = ["w1", "w2", "w3"].map(|name| place.worker(name, &variables)).into();
    // All workers have begun to work and have reported to the database before one of them is killed.
    eventually(&place.lab, LONG, "all three workers are busy", || {
        let reported = "select count(*) from jetstream.rule_nats_consumer_stats where messages_delivered > 0";
        Ok(place.endpoint.count() > 200 && place.lab.value(reported)? == "3")
    });
    workers[1].kill9();
    let killed = Instant::now();
    let at_kill = place.endpoint.count();
    assert!(
        at_kill < CALLS,
        "killed after {at_kill} calls, too late to prove anything"
    );
    place.finished(CALLS as u64);
    for worker in [0, 2] {
        workers[worker].terminate();
    }
    for worker in [0, 2] {
        workers[worker].ended(Duration::from_secs(20));
    }
    check(&place, &drawn, killed);
}

/// Stores the calls, through webhooks with subjects of two, four and five tokens. Returns the plan of each message id.
fn store_calls(place: &Place) -> BTreeMap<String, &'static Plan> {
    let webhooks = [
        place.webhook("plain", None, ""),
        place.webhook("orders", Some("webhooks.eu.orders.created"), ""),
        place.webhook("deep", Some("webhooks.eu.orders.created.now"), ""),
    ];
    let seed = std::env::var("WORKERS_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("WORKERS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let total: u32 = PLANS.iter().map(|plan| plan.weight).sum();
    let mut drawn = BTreeMap::new();
    let mut rows = Vec::with_capacity(CALLS);
    for n in 0..CALLS {
        let mut at = random.random_range(0..total);
        let plan = PLANS
            .iter()
            .find(|plan| {
                let here = at < plan.weight;
                at = at.saturating_sub(plan.weight);
                here
            })
            .unwrap();
        rows.push(format!("({n}, '{}', {})", plan.name, webhooks[n % webhooks.len()]));
        drawn.insert(format!("call-{n}"), plan);
    }
    let rows = rows.join(",");
    let call = "jetstream.webhook_call(webhook, jsonb_build_object('n', n, 'plan', plan), message_id => 'call-' || n)";
    place
        .lab
        .sql(&format!(
            "select count({call}) from (values {rows}) v (n, plan, webhook)"
        ))
        .unwrap();
    drained(&place.lab, LONG);
    drawn
}

fn check(place: &Place, drawn: &BTreeMap<String, &'static Plan>, killed: Instant) {
    let calls = place.endpoint.by_key();
    let dead = place.dead();
    // No message was lost.
    let never: Vec<_> = drawn.keys().filter(|id| !calls.contains_key(*id)).collect();
    let never_dead: Vec<_> = never.iter().filter(|id| !dead.contains_key(**id)).collect();
    assert!(never_dead.is_empty(), "lost: {never_dead:?}\n{}", account(&place.lab));
    assert!(never.is_empty(), "never called: {never:?}");
    for (id, calls) in &calls {
        let ended_well = calls
            .iter()
            .any(|call| matches!(call.answer, Status(200..=299) | Slow(_)));
        assert!(ended_well || dead.contains_key(id), "{id} ended nowhere: {calls:?}");
    }
    // Every message has the planned number of calls, except those that the killed worker had in hand.
    let differs =
        |id: &str, plan: &Plan| calls[id].len() != plan.calls() || dead.contains_key(id) != plan.dead.is_some();
    let differing: Vec<_> = drawn.iter().filter(|(id, plan)| differs(id, plan)).collect();
    let shown: Vec<_> = differing
        .iter()
        .map(|(id, plan)| (id, plan.name, calls[*id].len()))
        .collect();
    println!("{} differ: {shown:?}", differing.len());
    assert!(
        differing.len() <= IN_HAND,
        "{} calls are not as planned: {shown:?}",
        differing.len()
    );
    let mut uncalled = 0;
    for (id, plan) in drawn.iter().filter(|(id, plan)| !differs(id, plan)) {
        check_delays(id, &calls[id]);
        if let Some((attempts, status)) = plan.dead {
            let told: usize = header(&dead[id], "Dead-Letter-Attempts").parse().unwrap();
            // There is one more delivery than requests, because the killed worker had the message in hand but had not
            // called yet.
            let in_hand = told == attempts + 1 && calls[id].last().unwrap().at > killed;
            assert!(told == attempts || in_hand, "{id}: {told} attempts, not {attempts}");
            uncalled += usize::from(in_hand);
            check_dead(place, id, &dead[id], status);
        }
    }
    assert!(
        uncalled <= IN_HAND,
        "{uncalled} messages were delivered more often than called"
    );
    check_prompt(drawn, &calls);
    check_statistics(place, &calls, dead.len(), differing.len());
    assert_eq!(place.shown_as_dead(), dead.keys().cloned().collect::<Vec<_>>());
}

/// The delay is the backoff, of which at most half is random, or the delay that the endpoint requested.
fn check_delays(id: &str, calls: &[Seen]) {
    for (attempt, pair) in calls.windows(2).enumerate() {
        let least = match pair[0].answer {
            RetryAfter(_, seconds) => Duration::from_secs(seconds),
            _ => Duration::from_millis(BACKOFF_MS / 2 * (1 << attempt)),
        };
        let delay = pair[1].at - pair[0].at;
        assert!(
            delay >= least,
            "{id}: {delay:?} after {:?}, attempt {}",
            pair[0].answer,
            attempt + 1
        );
    }
}

fn check_dead(place: &Place, id: &str, message: &StoredMessage, status: u16) {
    assert_eq!(header(message, "Dead-Letter-Stream"), "WEBHOOKS");
    let subject = header(message, "Dead-Letter-Subject");
    assert_eq!(message.subject, format!("dead_letters.WEBHOOKS.{subject}"));
    let sequence = header(message, "Dead-Letter-Sequence");
    assert_eq!(message.id().unwrap(), format!("WEBHOOKS:{sequence}"));
    assert!(["w1", "w2", "w3"].contains(&header(message, "Dead-Letter-Worker")));
    let reason = header(message, "Dead-Letter-Reason");
    if status == 0 {
        assert!(
            message.header("Dead-Letter-Status").is_none() && !reason.is_empty(),
            "{id}: {reason}"
        );
    } else {
        assert_eq!(header(message, "Dead-Letter-Status"), status.to_string());
        assert!(reason.contains(&status.to_string()), "{id}: {reason}");
    }
    let envelope = message.json().unwrap();
    assert_eq!(format!("call-{}", envelope["data"]["n"]), id);
    assert!(
        envelope["webhook_url"]
            .as_str()
            .unwrap()
            .starts_with(&place.endpoint.url("/"))
    );
}

/// A retry follows its delay. It does not wait until the server gives the message to another worker after ACK_WAIT.
fn check_prompt(drawn: &BTreeMap<String, &'static Plan>, calls: &BTreeMap<String, Vec<Seen>>) {
    let mut delays: Vec<_> = drawn
        .iter()
        .filter(|(_, plan)| plan.name == "unavailable")
        .filter_map(|(id, _)| Some(calls[id].get(1)?.at - calls[id][0].at))
        .collect();
    delays.sort();
    let median = delays[delays.len() / 2];
    assert!(
        median < Duration::from_millis(ACK_WAIT_MS / 2),
        "the median delay of the first retry is {median:?}"
    );
}

/// Compares the workers' statistics with what the endpoint saw. A delivery makes one request, except for deliveries in
/// the hands of the killed worker. What that worker did after its last report is not included.
fn check_statistics(place: &Place, calls: &BTreeMap<String, Vec<Seen>>, dead: usize, differing: usize) {
    let requests: usize = calls.values().map(Vec::len).sum();
    let (succeeded, again) = (CALLS - dead, requests - CALLS);
    let shown = |column: &str| place.sum(column);
    let delivered = shown("messages_delivered");
    let acknowledged = shown("messages_acknowledged");
    let redelivered = shown("messages_redelivered");
    let about = |name: &str, sum: usize, truth: usize, unseen: usize| {
        println!("{name}: {sum} reported, {truth} seen");
        let least = truth.saturating_sub(UNREPORTED);
        assert!(
            (least..=truth + differing + unseen).contains(&sum),
            "{name}: {sum} reported, {truth} seen"
        );
    };
    about("delivered", delivered, requests, 0);
    about("acknowledged", acknowledged, succeeded, 0);
    // Messages that the killed worker had in hand but had not called are redelivered, although the endpoint has not
    // seen them before.
    about("redelivered", redelivered, again, IN_HAND);
    let rows = place.lab.sql(
        "select consumer_name, messages_delivered, active, messages_pending, avg_processing_time_ms > 0
         from jetstream.rule_nats_consumer_stats where stream_name = 'WEBHOOKS' order by 1",
    );
    let rows = rows.unwrap();
    println!("{rows:?}");
    assert_eq!(
        rows.iter().map(|row| row[0].as_str()).collect::<Vec<_>>(),
        ["w1", "w2", "w3"]
    );
    for row in &rows {
        let share: usize = row[1].parse().unwrap();
        assert!(
            share > 0 && share < requests * 7 / 10,
            "a worker did not get its share of the work: {rows:?}"
        );
        assert_eq!(row[2], if row[0] == "w2" { "t" } else { "f" }, "active: {rows:?}");
        assert_eq!(row[4], "t", "processing time: {rows:?}");
    }
    assert!(
        rows.iter().filter(|row| row[0] != "w2").all(|row| row[3] == "0"),
        "pending: {rows:?}"
    );
}

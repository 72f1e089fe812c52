//! `make demo`: what the extension does, on two real servers, in twenty lines.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::{self, consumer::pull::OrderedConfig};
use futures_util::StreamExt;

use crate::install;
use crate::lab::{DATABASE, Lab, PATIENCE};
use crate::paths::Paths;

/// A table, and a trigger that enqueues in the transaction of the insert.
const SCHEMA: &str = "
create table orders (id bigint generated always as identity primary key, customer text not null, total numeric not null);
create function announce_order() returns trigger language plpgsql as $$
begin
    perform jetstream.publish('orders.created', to_jsonb(new), key => 'order-' || new.id);
    return null;
end $$;
create trigger announce_order after insert on orders for each row execute function announce_order();
select jetstream.create_stream('ORDERS', array['orders.>']);
";

const COMMITTED: &str = "insert into orders (customer, total) values ('Ada', 42.50)";
const ROLLED_BACK: &str = "insert into orders (customer, total) values ('Mallory', 1000000)";
const BULK: &str = "insert into orders (customer, total) select 'Bulk', n from generate_series(1, 1000) n";

/// How many messages the transactions above leave to be published.
const EXPECTED: usize = 1001;

const LAST: usize = EXPECTED - 1;

/// Builds, starts both servers, shows the life of some messages, and stops everything.
pub fn run(paths: &Paths) -> Result<()> {
    install::run(paths)?;
    let lab = Lab::builder().durable().start()?;
    lab.sql(SCHEMA)?;
    lab.wait_connected()?;
    println!(
        "\nPostgreSQL {} with pg_jetstream, and nats-server, run on ports {} and {}.",
        lab.value("show server_version")?,
        lab.postgres.port(),
        lab.nats.port()
    );
    println!("A trigger on table orders calls jetstream.publish('orders.created', to_jsonb(new), …).\n");
    let arrived = std::thread::scope(|scope| -> Result<Vec<Arrived>> {
        let subscriber = scope.spawn(|| lab.jetstream(subscribe));
        transactions(&lab)?;
        subscriber
            .join()
            .map_err(|_| anyhow::anyhow!("the subscriber panicked"))?
    })?;
    show_arrived(&arrived)?;
    show_history(&lab)?;
    show_health(&lab)?;
    drop(lab);
    println!("Both servers are stopped. `make up` leaves them running to play with; docs: README.md");
    Ok(())
}

fn transactions(lab: &Lab) -> Result<()> {
    let mut client = lab.postgres.client(DATABASE)?;
    println!("commit    {COMMITTED}");
    client.batch_execute(COMMITTED)?;
    println!("rollback  {ROLLED_BACK}");
    let mut transaction = client.transaction()?;
    transaction.batch_execute(ROLLED_BACK)?;
    transaction.rollback()?;
    let started = Instant::now();
    client.batch_execute(BULK)?;
    println!("commit    {BULK} ({} ms)\n", started.elapsed().as_millis());
    Ok(())
}

/// A message that the subscriber got.
struct Arrived {
    sequence: u64,
    subject: String,
    payload: String,
}

async fn subscribe(context: jetstream::Context) -> Result<Vec<Arrived>> {
    let deadline = Instant::now() + PATIENCE;
    let stream = loop {
        match context.get_stream("ORDERS").await {
            Ok(stream) => break stream,
            Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => return Err(error).context("the stream was not created"),
        }
    };
    let mut messages = stream
        .create_consumer(OrderedConfig::default())
        .await?
        .messages()
        .await?;
    let mut arrived = Vec::new();
    while arrived.len() < EXPECTED {
        let next = tokio::time::timeout(PATIENCE, messages.next())
            .await
            .context("messages are missing")?;
        let message = next.context("the subscription ended")??;
        let sequence = message.info().map_err(|error| anyhow::anyhow!(error))?.stream_sequence;
        let payload = String::from_utf8_lossy(&message.payload).into_owned();
        arrived.push(Arrived {
            sequence,
            subject: message.subject.to_string(),
            payload,
        });
    }
    Ok(arrived)
}

fn show_arrived(arrived: &[Arrived]) -> Result<()> {
    ensure!(
        !arrived.iter().any(|message| message.payload.contains("Mallory")),
        "a rolled-back order was published"
    );
    println!(
        "A subscriber received {} messages, none of the rolled-back order:",
        arrived.len()
    );
    for (place, message) in arrived.iter().enumerate() {
        match place {
            0 | 1 | LAST => println!("  {:>4}  {}  {}", message.sequence, message.subject, message.payload),
            2 => println!("   ..."),
            _ => {}
        }
    }
    Ok(())
}

fn show_history(lab: &Lab) -> Result<()> {
    lab.wait_drained()?;
    let summary = lab.value(
        "select format('%s settled, %s of them stored, %s duplicates; median %s ms, p99 %s ms from enqueue to stored', \
         count(*), count(*) filter (where success), count(*) filter (where duplicate), \
         round(percentile_cont(0.5) within group (order by latency_ms)::numeric, 1), \
         round(percentile_cont(0.99) within group (order by latency_ms)::numeric, 1)) from jetstream.history",
    )?;
    println!("\njetstream.history: {summary}");
    let rows = lab.sql(
        "select format('outbox_id %s, subject %s, stream %s, sequence %s, attempts %s, latency_ms %s', \
         outbox_id, subject, stream, sequence, attempts, round(latency_ms::numeric, 1)) \
         from jetstream.history order by outbox_id limit 2",
    )?;
    for row in rows.concat() {
        println!("  {row}");
    }
    Ok(())
}

fn show_health(lab: &Lab) -> Result<()> {
    let health = lab.value(
        "select string_agg(key || ' ' || value, ', ' order by key) from jsonb_each_text(jetstream.health()) \
         where key in ('healthy', 'connected', 'owed', 'dead_letters', 'worker_state')",
    )?;
    println!("jetstream.health():  {health}");
    Ok(())
}

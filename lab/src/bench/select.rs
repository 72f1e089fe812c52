//! Measures what reading alone costs: a client reads the outbox through a cursor, feeds the relay, and settles nothing.

use std::io;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;

use super::relay::{Rate, Running, message};
use crate::lab::{DATABASE, Lab};
use crate::message::Message;

/// Reads `count` messages of `size` bytes in insert order and publishes them to a server of their own.
///
/// Errors: as [`super::relay::relay_rate`], or the outbox holds fewer messages.
pub fn select_rate(lab: &Lab, count: usize, size: usize) -> Result<Rate> {
    let running = Running::start(1_000)?;
    let mut client = lab.postgres.client(DATABASE)?;
    // Without statistics the planner may sort, and a sort reads all rows before it returns the first.
    client.batch_execute("set enable_sort = off; set jit = off")?;
    let backend: i32 = client.query_one("select pg_backend_pid()", &[])?.get(0);
    let statement = client.prepare("select id, subject, raw, message_id from jetstream.outbox order by id")?;
    let mut transaction = client.transaction()?;
    let portal = transaction.bind(&statement, &[])?;
    let meter = running.meter().process("backends", u32::try_from(backend)?);
    let rate = running.publish(count, size, meter, |wanted| {
        let rows = transaction.query_portal(&portal, i32::try_from(wanted).map_err(io::Error::other)?);
        let rows = rows.map_err(io::Error::other)?;
        rows.iter().map(from_row).map(|row| row.map(Arc::new)).collect()
    })?;
    Ok(rate)
}

fn from_row(row: &postgres::Row) -> io::Result<Message> {
    let text = |column: usize| row.try_get::<_, String>(column).map_err(io::Error::other);
    let id = row.try_get(0).map_err(io::Error::other)?;
    let payload: Vec<u8> = row.try_get(2).map_err(io::Error::other)?;
    Ok(message(id, text(1)?, Bytes::from(payload), text(3)?, None))
}

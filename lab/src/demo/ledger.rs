//! The ledger: the committed rows of `orders` next to the messages of the stream.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use crate::lab::Lab;

/// Waits until nothing is pending, compares, and prints the result. An error if a promise is broken.
pub fn compare(lab: &Lab, rolled_back: &BTreeSet<i64>) -> Result<()> {
    lab.wait_drained()?;
    let mut committed: BTreeMap<i64, String> = BTreeMap::new();
    for row in lab.sql("select id, customer from orders")? {
        committed.insert(row[0].parse()?, row[1].clone());
    }
    let mut stored: BTreeMap<i64, u32> = BTreeMap::new();
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    let mut out_of_order = 0;
    for message in lab.stream_messages("ORDERS")? {
        let order = message.json()?;
        let id = order["id"].as_i64().context("an order without an id")?;
        *stored.entry(id).or_default() += 1;
        if let Some(customer) = committed.get(&id) {
            let before = last.insert(customer.clone(), id);
            out_of_order += u32::from(before.is_some_and(|before| before > id));
        }
    }
    let lost = committed.keys().filter(|id| !stored.contains_key(id)).count();
    let phantoms = stored.keys().filter(|id| !committed.contains_key(id)).count();
    let twice = stored.values().filter(|&&count| count > 1).count();
    println!("\n4. The ledger");
    println!("   committed orders        {}", committed.len());
    println!("   rolled-back orders      {}", rolled_back.len());
    println!("   messages in the stream  {}", stored.values().sum::<u32>());
    println!(
        "   lost {lost}, stored twice {twice}, never committed {phantoms}, out of order per customer {out_of_order}"
    );
    ensure!(
        lost + phantoms + twice == 0 && out_of_order == 0,
        "a promise is broken: please report this with the lines above"
    );
    ensure!(
        rolled_back.iter().all(|id| !committed.contains_key(id)),
        "a rolled-back order is in the table"
    );
    Ok(())
}

//! Streams as the table asks for them, as others have made them, and as others change them.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::time::Duration;

use async_nats::jetstream::stream::Config;
use e2e_support::{SOON, becomes, drained, eventually, lab, numbers, synced};
use lab::Lab;

const WEEK: Duration = Duration::from_secs(7 * 86_400);

fn config(lab: &Lab, stream: &str) -> Config {
    lab.jetstream(async |js| Ok(js.get_stream(stream).await?.cached_info().config.clone()))
        .unwrap()
}

fn edit(lab: &Lab, stream: &str, change: impl FnOnce(&mut Config)) {
    let mut edited = config(lab, stream);
    change(&mut edited);
    lab.jetstream(async |js| Ok(js.update_stream(&edited).await.map(drop)?))
        .unwrap();
}

fn sync_error(stream: &str, pattern: &str) -> String {
    format!("select sync_error like '{pattern}' from jetstream.streams where name = '{stream}'")
}

#[test]
fn what_others_do_to_a_stream_is_named_and_what_they_made_is_left_alone() {
    let lab = lab(&[]);
    lab.sql("select jetstream.create_stream('OURS', array['ours.>'], max_age => '30 days')")
        .unwrap();
    synced(&lab, "OURS");
    let origin = "select origin from jetstream.streams where name = 'OURS'";
    assert_eq!(lab.value(origin).unwrap(), "created");

    // What is left out stays as it is, on the server too.
    lab.sql("select jetstream.create_stream('OURS', array['ours.>'], max_messages => 1000)")
        .unwrap();
    eventually(
        &lab,
        SOON,
        "the limit",
        || Ok(config(&lab, "OURS").max_messages == 1000),
    );
    assert_eq!(config(&lab, "OURS").max_age, Duration::from_secs(30 * 86_400));

    // Edited in NATS: reported with the field, and kept.
    edit(&lab, "OURS", |config| config.max_age = WEEK);
    becomes(
        &lab,
        "the drift",
        &sync_error("OURS", "%max_age is 604800 s there and 2592000 s here%"),
        "t",
    );
    assert_eq!(lab.value("select jetstream.health() ->> 'healthy'").unwrap(), "false");
    let reported = "select jetstream.health() -> 'stream_errors' ->> 'OURS' like '%max_age%'";
    assert_eq!(lab.value(reported).unwrap(), "t");
    assert_eq!(config(&lab, "OURS").max_age, WEEK);
    // Asked for again, it is as asked.
    lab.sql("select jetstream.create_stream('OURS', max_age => '30 days')")
        .unwrap();
    becomes(
        &lab,
        "no drift",
        "select sync_error is null from jetstream.streams where name = 'OURS'",
        "t",
    );
    assert_eq!(config(&lab, "OURS").max_age, Duration::from_secs(30 * 86_400));

    // Made by others: used, never changed.
    let theirs = Config {
        name: "THEIRS".to_owned(),
        subjects: vec!["theirs.>".to_owned()],
        max_messages: 10_000_000,
        max_age: WEEK,
        ..Config::default()
    };
    lab.jetstream(async |js| Ok(js.create_stream(theirs).await.map(drop)?))
        .unwrap();
    lab.sql("select jetstream.create_stream('THEIRS', array['theirs.>'], max_messages => 5)")
        .unwrap();
    synced(&lab, "THEIRS");
    lab.sql("update jetstream.streams set max_bytes = 1000000 where name = 'THEIRS'")
        .unwrap();
    lab.sql("select jetstream.publish('theirs.a', '{\"n\": 1}')").unwrap();
    drained(&lab, SOON);
    assert_eq!(numbers(&lab, "THEIRS"), [1]);
    let found = config(&lab, "THEIRS");
    assert_eq!(
        (found.max_messages, found.max_bytes, found.max_age),
        (10_000_000, -1, WEEK)
    );
    // Until it is taken over.
    lab.sql("update jetstream.streams set origin = 'created' where name = 'THEIRS'")
        .unwrap();
    eventually(&lab, SOON, "the limits of the row", || {
        Ok(config(&lab, "THEIRS").max_messages == 5)
    });

    // Deleted in NATS: the next message finds it again.
    lab.jetstream(async |js| Ok(js.delete_stream("OURS").await.map(drop)?))
        .unwrap();
    lab.sql("select jetstream.publish('ours.a', '{\"n\": 2}')").unwrap();
    drained(&lab, SOON);
    assert_eq!(numbers(&lab, "OURS"), [2]);
    assert_eq!(config(&lab, "OURS").max_messages, 1000);
    // So does a stream of others that is gone: nobody's options are lost.
    let gone = Config {
        name: "GONE".to_owned(),
        subjects: vec!["gone.>".to_owned()],
        ..Config::default()
    };
    lab.jetstream(async |js| Ok(js.create_stream(gone).await.map(drop)?))
        .unwrap();
    lab.sql("select jetstream.create_stream('GONE', array['gone.>'], max_messages => 7)")
        .unwrap();
    synced(&lab, "GONE");
    lab.jetstream(async |js| Ok(js.delete_stream("GONE").await.map(drop)?))
        .unwrap();
    lab.sql("select jetstream.publish('gone.a', '{\"n\": 3}')").unwrap();
    drained(&lab, SOON);
    assert_eq!(numbers(&lab, "GONE"), [3]);
    assert_eq!(config(&lab, "GONE").max_messages, 7);
    let failed = "select max(attempts) from jetstream.history where subject like 'ours.%'";
    assert_eq!(lab.value(failed).unwrap(), "1", "no attempt has failed");
}

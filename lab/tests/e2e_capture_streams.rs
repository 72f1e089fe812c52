//! Which stream takes captured changes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod capture_support;
mod e2e_support;

use capture_support::{capture_lab, settled};
use e2e_support::SOON;
use lab::Lab;

fn streams(lab: &Lab) -> String {
    lab.value("select string_agg(format('%s %s', name, subjects), ' ' order by name) from jetstream.streams")
        .unwrap()
}

#[test]
fn each_prefix_has_a_stream() {
    let lab = capture_lab();
    lab.sql("create table t (id int primary key)").unwrap();
    for prefix in ["x.y", "x_y", "a/b"] {
        lab.sql(&format!(
            "select jetstream.capture('t', subject_prefix => '{prefix}'); insert into t select count(*) from t"
        ))
        .unwrap();
    }
    assert_eq!(
        streams(&lab),
        "a%2Fb_replication {a/b.>} x%5Fy_replication {x_y.>} x_y_replication {x.y.>}"
    );
    settled(&lab, SOON);
    for stream in ["a%2Fb_replication", "x_y_replication", "x%5Fy_replication"] {
        let messages = lab.stream_messages(stream).unwrap();
        let inserts = messages.iter().filter(|message| message.subject.ends_with(".insert"));
        assert_eq!(inserts.count(), 1, "{stream}");
    }
}

#[test]
fn a_capture_names_its_stream() {
    let lab = capture_lab();
    lab.sql(
        "create table t (id int primary key); create schema app; create table app.u (id int);
         select jetstream.create_stream('MINE', array['mine.>']), jetstream.create_stream('OTHER', array['other.>'])",
    )
    .unwrap();
    let before = streams(&lab);
    lab.sql("select jetstream.capture('t', subject_prefix => 'mine', stream => 'MINE')")
        .unwrap();
    assert_eq!(streams(&lab), before);
    let refused = "select jetstream.capture('t', subject_prefix => 'mine', stream => 'OTHER')";
    assert_eq!(lab.failure(refused).unwrap(), "22023");
    let refused = "select jetstream.capture('t', subject_prefix => 'new', stream => 'a.b')";
    lab.failure(refused).unwrap();
    lab.sql("select jetstream.capture_schema('app', subject_prefix => 'apps', stream => 'APPS'); create table app.v (id int); \
             insert into app.v values (1); insert into t values (1)")
        .unwrap();
    let named =
        "select string_agg(concat(\"table\", ' ', stream), ', ' order by \"table\"::text) from jetstream.captures";
    assert_eq!(lab.value(named).unwrap(), "app.u APPS, app.v APPS, t MINE");
    settled(&lab, SOON);
    let count = |stream: &str| {
        let messages = lab.stream_messages(stream).unwrap();
        messages
            .iter()
            .filter(|message| message.subject.ends_with(".insert"))
            .count()
    };
    assert_eq!([count("APPS"), count("MINE")], [1, 1]);
}

//! What keeps a worker from starting, or ends it, is shown where an operator looks; and how many there can be of anything.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use e2e_support::{SOON, becomes, drained, eventually, insert, lab, worker};
use lab::Lab;
use nix::sys::signal::Signal;

/// Waits until `last_error` has all of these parts.
fn reports(lab: &Lab, parts: &[&str]) {
    eventually(lab, SOON, &format!("last_error with {parts:?}"), || {
        let error = lab.value("select last_error from jetstream.status()")?;
        Ok(parts.iter().all(|part| error.contains(part)))
    });
}

#[test]
fn a_role_that_the_worker_cannot_have_is_reported_and_the_worker_continues() {
    let mut lab = lab(&[]);
    let pid = worker(&lab);
    let error = lab.sql("alter system set pg_jetstream.role = 'courier'").unwrap_err();
    assert!(
        format!("{error:?}").contains("Role \"courier\" does not exist."),
        "{error:?}"
    );
    lab.postgres.set(&[("pg_jetstream.role", "courier")]).unwrap();
    reports(
        &lab,
        &[
            "role \"courier\" of pg_jetstream.role does not exist",
            "jetstream_worker",
        ],
    );
    // A query in parallel takes the setting as it is.
    let rows = lab
        .sql("set force_parallel_mode = on; select count(*) from pg_catalog.pg_class where oid > 0")
        .unwrap();
    assert_eq!(rows.len(), 1);
    lab.sql("create role courier").unwrap();
    let error = lab.sql("alter system set pg_jetstream.role = 'courier'").unwrap_err();
    assert!(format!("{error:?}").contains("grant jetstream_worker to"), "{error:?}");
    reports(&lab, &["grant jetstream_worker to \"courier\""]);
    lab.sql(&insert("s.x", 1, 100)).unwrap();
    drained(&lab, SOON);
    assert_eq!(worker(&lab), pid);
    assert_eq!(
        lab.value("select role from jetstream.status()").unwrap(),
        "jetstream_worker"
    );
    assert_eq!(
        lab.postgres.log().matches("does not exist; create it").count(),
        1,
        "once"
    );
    // One that starts waits, with the same reason.
    lab::process::signal(pid, Signal::SIGTERM).unwrap();
    becomes(
        &lab,
        "no role",
        "select role is null and pid is not null from jetstream.status()",
        "t",
    );
    reports(&lab, &["grant jetstream_worker to \"courier\""]);
    lab.sql("grant jetstream_worker to courier").unwrap();
    becomes(&lab, "its role", "select role from jetstream.status()", "courier");
    lab.sql(&insert("s.x", 101, 200)).unwrap();
    drained(&lab, SOON);
}

#[test]
fn what_ends_a_worker_is_reported_with_the_next_step() {
    let lab = lab(&[]);
    worker(&lab);
    lab.sql("revoke select on jetstream.control from jetstream_worker")
        .unwrap();
    lab.sql("select jetstream.reload()").unwrap();
    reports(&lab, &["permission denied for table control", "jetstream_worker"]);
    lab.sql("grant select on jetstream.control to jetstream_worker")
        .unwrap();
    worker(&lab);
    lab.sql(
        "create function public.fail() returns trigger language plpgsql as $$
         begin raise exception 'the disk of the archive is full' using hint = 'Buy another.'; end $$;
         create trigger fail before delete on jetstream.outbox for each row execute function public.fail()",
    )
    .unwrap();
    lab.sql(&insert("s.x", 1, 1)).unwrap();
    reports(&lab, &["the disk of the archive is full", "Buy another."]);
    lab.sql("drop trigger fail on jetstream.outbox").unwrap();
    drained(&lab, SOON);
    worker(&lab);
    // The last failure stays until another one, with its time.
    reports(
        &lab,
        &["the worker before this one ended: the disk of the archive is full"],
    );
    assert_eq!(
        lab.value("select last_error_at is not null from jetstream.status()")
            .unwrap(),
        "t"
    );
}

#[test]
fn any_number_of_connections_is_shown() {
    let lab = lab(&[]);
    lab.sql(&format!(
        "insert into jetstream.connections (name, url) select 'c' || i, '{}' from generate_series(1, 60) i",
        lab.nats.url()
    ))
    .unwrap();
    let count = |query: &str| format!("select count(*) from ({query}) x");
    let connected =
        "select from jetstream.status() s, jsonb_array_elements(s.connections) c where c ->> 'state' = 'connected'";
    becomes(&lab, "connected", &count(connected), "61");
    let healthy = "select from jetstream.connections c where (jetstream.health(c.name) ->> 'healthy')::boolean";
    assert_eq!(lab.value(&count(healthy)).unwrap(), "61");
    let up = "select from jetstream.metrics where name = 'pg_jetstream_connection_up' and value = 1";
    assert_eq!(lab.value(&count(up)).unwrap(), "61");
    let answer = lab
        .value("select jetstream.await_connection('c60', 20000) ->> 'state'")
        .unwrap();
    assert_eq!(answer, "connected");
    // More and longer than there was room for.
    lab.sql("insert into jetstream.connections (name, url) select 'd' || i, 'nats://127.0.0.1:1' from generate_series(1, 300) i")
        .unwrap();
    let all =
        "select from jetstream.status() s, jsonb_array_elements(s.connections) c where c ->> 'state' <> 'connecting'";
    becomes(&lab, "all states", &count(all), "361");
    lab.sql("delete from jetstream.connections where name <> 'default'")
        .unwrap();
    becomes(&lab, "the one left", &count(connected), "1");
}

#[test]
fn as_many_databases_are_listed_as_a_setting_says_and_the_others_warned_of_once() {
    let names: Vec<String> = (1..=150).map(|n| format!("nosuch{n}")).collect();
    let mut lab = lab(&[
        (
            "pg_jetstream.databases",
            &format!("{},postgres", names[..100].join(",")),
        ),
        ("pg_jetstream.max_databases", "101"),
    ]);
    worker(&lab);
    let warned = |lab: &Lab| lab.postgres.log().matches("are not served, the first of them").count();
    assert_eq!(warned(&lab), 0);
    lab.postgres
        .set(&[("pg_jetstream.databases", &format!("postgres,{}", names.join(",")))])
        .unwrap();
    eventually(&lab, SOON, "a warning", || Ok(warned(&lab) > 0));
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert_eq!(warned(&lab), 1);
    assert!(
        lab.postgres
            .log_contains("50 databases of pg_jetstream.databases are not served, the first of them \"nosuch101\"")
    );
    lab.sql(&insert("s.x", 1, 10)).unwrap();
    drained(&lab, SOON);
    lab.sql("create database nosuch150").unwrap();
    let error = "create extension pg_jetstream; select last_error from jetstream.status()";
    let error = lab.postgres.sql("nosuch150", error).unwrap().concat().concat();
    assert!(error.contains("pg_jetstream.max_databases is 101: raise it"), "{error}");
}

#[test]
fn a_server_without_room_for_the_launcher_says_so() {
    let lab = Lab::builder().set("max_worker_processes", "0").start().unwrap();
    reports(&lab, &["the launcher has not begun", "raise max_worker_processes"]);
}

/// The servers of these tests run with RUST_BACKTRACE=1.
#[test]
fn no_error_carries_a_backtrace() {
    let lab = lab(&[]);
    let mut client = lab.postgres.client(lab::lab::DATABASE).unwrap();
    client.batch_execute("create table public.plain (id integer)").unwrap();
    for statement in [
        "select jetstream.publish('a b', '{}')",
        "select jetstream.publish('s.x', '{}', headers => '{\"a b\": 1}')",
        "select jetstream.check_message_id(repeat('x', 10000))",
        "insert into jetstream.outbox (subject) values ('s.x')",
        "insert into jetstream.outbox (connection, subject, payload) values ('nosuch', 's.x', '{}')",
        "select jetstream.capture_analyze('public.plain'::regclass, 'id = ''x''')",
        "create trigger t after insert on public.plain referencing new table as new_rows for each statement
             execute function jetstream.capture_changes('no json')",
        "insert into public.plain values (1)",
    ] {
        let Err(error) = client.batch_execute(statement) else {
            continue;
        };
        let error = error.as_db_error().expect(statement);
        for text in [Some(error.message()), error.detail(), error.hint(), error.where_()]
            .into_iter()
            .flatten()
        {
            assert!(
                !text.contains(".rs") && !text.contains("backtrace"),
                "{statement}: {text}"
            );
        }
    }
    assert!(!lab.postgres.log().contains("backtrace"), "{}", lab.postgres.log_tail());
}

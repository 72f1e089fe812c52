//! What definitions of tables do to captures, in every kind of session, and what captures cost them.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod capture_support;
mod e2e_support;

use capture_support::{capture_lab, position, settled};
use e2e_support::SOON;
use lab::Lab;

/// What each plain dump begins with.
const HEAD: &str = "set statement_timeout = 0; set lock_timeout = 0; set idle_in_transaction_session_timeout = 0;
set client_encoding = 'UTF8'; set standard_conforming_strings = on; select pg_catalog.set_config('search_path', '', false);
set check_function_bodies = false; set xmloption = content; set client_min_messages = warning; set row_security = off;";

const FOLLOWING: &str =
    "select string_agg(concat(evtname, ' ', evtenabled), ', ' order by evtname) from pg_event_trigger";

fn captured(lab: &Lab, table: &str) -> String {
    let query = "select count(*) from pg_trigger where tgname like 'jetstream_capture%' and tgrelid = ";
    lab.value(&format!("{query}'{table}'::regclass")).unwrap()
}

#[test]
fn a_session_that_ran_a_dump_is_none_that_restores() {
    let lab = capture_lab();
    lab.sql(
        "create function ok(n int) returns boolean language sql as 'select n > 0';
         create table p (id int, v text) partition by list (id); create table p2 (id int, v text);
         select jetstream.capture('p', columns => '{id,v}', condition => 'public.ok(id) and v is not null')",
    )
    .unwrap();
    let session = |sql: &str| format!("{HEAD} {sql}");
    lab.sql(&session(
        "create table public.p1 partition of public.p for values in (1); \
         alter table only public.p attach partition public.p2 for values in (2)",
    ))
    .unwrap();
    assert_eq!([captured(&lab, "p1"), captured(&lab, "p2")], ["4", "4"]);
    for refused in [
        "alter table public.p rename column v to w",
        "alter table public.p drop column v",
        "alter function public.ok(int) rename to fine",
    ] {
        lab.failure(&session(refused)).unwrap();
    }
    lab.sql(&session(
        "alter table public.p detach partition public.p2; insert into public.p values (1, 'x')",
    ))
    .unwrap();
    assert_eq!(captured(&lab, "p2"), "0");
    lab.sql("select jetstream.capture('p', columns => '{id,v}')").unwrap();
    lab.sql(&session("alter table public.p rename column v to w")).unwrap();
    let columns = "select columns from jetstream.captures where \"table\" = 'p'::regclass";
    assert_eq!(lab.value(columns).unwrap(), "{id,w}");
}

#[test]
fn columns_of_a_capture_do_not_go_silently() {
    let lab = capture_lab();
    lab.sql(
        "create type mood as enum ('sad'); create table t (id int primary key, a text, b text, m mood);
         create table child () inherits (t); select jetstream.capture('child', columns => '{a}');
         select jetstream.capture('t', columns => '{a,b}', key => '{m}')",
    )
    .unwrap();
    let captures =
        "select string_agg(concat(\"table\", columns, key), ' ' order by \"table\"::text) from jetstream.captures";
    assert_eq!(lab.failure("alter table t drop column m").unwrap(), "2BP01", "the key");
    assert_eq!(
        lab.failure("drop type mood cascade").unwrap(),
        "2BP01",
        "the key's type"
    );
    assert_eq!(
        lab.failure("alter table t drop column a").unwrap(),
        "2BP01",
        "the child's only column"
    );
    lab.sql("alter table t drop column b; alter table t rename column a to aa")
        .unwrap();
    assert_eq!(lab.value(captures).unwrap(), "child{aa} t{aa}{m}");
    // As replication's sessions are, for which a capture can be enabled.
    lab.sql("set session_replication_role = replica; alter table t rename column aa to a")
        .unwrap();
    assert_eq!(lab.value(captures).unwrap(), "child{a} t{a}{m}");
    lab.sql("select jetstream.capture('t', key => '{}')").unwrap();
    assert_eq!(
        lab.value("select key from jetstream.captures where \"table\" = 't'::regclass")
            .unwrap(),
        "{}"
    );
    settled(&lab, SOON);
    let mut messages = lab.stream_messages("postgres_replication").unwrap();
    messages.retain(|message| message.subject == "postgres.public.t.relation");
    messages.sort_by_key(position);
    let columns = |message: &lab::StoredMessage| message.json().unwrap()["Relation"]["columns"].to_string();
    let names: Vec<String> = messages.iter().map(columns).collect();
    let renamed = names.iter().filter(|columns| columns.contains("\"aa\"")).count();
    assert!(renamed > 0 && !names.last().unwrap().contains("\"aa\""), "{names:#?}");
}

#[test]
fn what_follows_definitions_runs_while_something_is_captured() {
    let lab = capture_lab();
    let following = || lab.value(FOLLOWING).unwrap();
    let off = "jetstream_capture_began A, jetstream_capture_changed D, jetstream_capture_dropped D, jetstream_capture_renaming D";
    let on = off.replace(" D", " A");
    assert_eq!(following(), off);
    lab.sql("create table t (id int); create table u (id int); select jetstream.capture('t')")
        .unwrap();
    assert_eq!(following(), on);
    lab.sql("select jetstream.capture('t', format => 'row'); select jetstream.capture('u')")
        .unwrap();
    assert_eq!(following(), on);
    lab.sql("drop table t").unwrap();
    assert_eq!(following(), on, "u is captured");
    lab.sql("select jetstream.uncapture('u')").unwrap();
    assert_eq!(following(), off);
    lab.sql("create schema app; select jetstream.capture_schema('app')")
        .unwrap();
    assert_eq!(following(), on);
    lab.sql("create table app.t (id int)").unwrap();
    assert_eq!(captured(&lab, "app.t"), "4");
    lab.sql("drop schema app cascade").unwrap();
    assert_eq!(following(), off);
    // Two that begin and end in parallel.
    let sessions: Vec<_> = (0..4)
        .map(|n| {
            let mut client = lab.postgres.client(lab::lab::DATABASE).unwrap();
            std::thread::spawn(move || {
                client
                    .batch_execute(&format!("create table p{n} (id int primary key)"))
                    .unwrap();
                for _ in 0..10 {
                    client
                        .batch_execute(&format!("begin; select jetstream.capture('p{n}'); commit"))
                        .unwrap();
                    client
                        .batch_execute(&format!("begin; select jetstream.uncapture('p{n}'); commit"))
                        .unwrap();
                }
                client
                    .batch_execute(&format!("select jetstream.capture('p{n}')"))
                    .unwrap();
            })
        })
        .collect();
    for session in sessions {
        session.join().unwrap();
    }
    assert_eq!(following(), on);
}

/// Milliseconds that a statement takes, the median of many.
fn cost(lab: &Lab, statement: &str) -> f64 {
    let query = format!(
        "create function pg_temp.cost() returns float language plpgsql as $$
         declare began timestamptz; times float[];
         begin
             for n in 1 .. 200 loop
                 began := clock_timestamp();
                 execute replace({statement}, 'N', n::text);
                 times := times || extract(epoch from clock_timestamp() - began)::float * 1000;
             end loop;
             return (select percentile_cont(0.5) within group (order by t) from unnest(times) t);
         end $$;
         begin; select round(pg_temp.cost()::numeric, 3); rollback"
    );
    let rows = lab.sql(&query).unwrap().concat();
    rows.iter().find_map(|cell| cell.parse().ok()).unwrap()
}

/// Rows of the catalogs that two statements on tables that are not captured read.
fn catalog_rows(lab: &Lab) -> u64 {
    let query = "create temp table cheap (id int); alter table plain alter id set statistics 1;
        select sum(seq_tup_read + idx_tup_fetch) from pg_stat_xact_sys_tables
        where relname in ('pg_depend', 'pg_trigger', 'pg_inherits')";
    let rows = lab.sql(query).unwrap().concat();
    rows.iter().find_map(|cell| cell.parse().ok()).unwrap()
}

#[test]
fn definitions_cost_the_same_with_many_captures() {
    let lab = capture_lab();
    lab.sql("create schema many; create table plain (id int)").unwrap();
    for n in 1..=300 {
        lab.sql(&format!("create table many.t{n} (id int primary key)"))
            .unwrap();
    }
    let statements = [
        "'create temp table xN (id int)'",
        "'alter table plain alter id set statistics N'",
    ];
    let all = |what: &str| {
        let costs = statements.map(|statement| cost(&lab, statement));
        println!("{what}: create temp table {} ms, alter table {} ms", costs[0], costs[1]);
        costs
    };
    let none = all("nothing captured");
    lab.sql("create table one (id int primary key); select jetstream.capture('one')")
        .unwrap();
    let one = all("one table captured");
    let rows_of_one = catalog_rows(&lab);
    let began = std::time::Instant::now();
    lab.sql("set track_functions = 'all'; select count(*) from jetstream.capture_schema('many'); select pg_stat_force_next_flush()")
        .unwrap();
    println!("capture_schema of 300 tables: {:?}", began.elapsed());
    // Not once for each trigger.
    let described = "select calls from pg_stat_user_functions where funcname = 'capture_relation'";
    assert_eq!(lab.value(described).unwrap(), "300", "each table is described once");
    let many = all("301 tables captured");
    let rows_of_many = catalog_rows(&lab);
    assert!(
        rows_of_many < rows_of_one + 100,
        "rows of catalogs: {rows_of_one}, {rows_of_many}"
    );
    for ((none, one), many) in none.into_iter().zip(one).zip(many) {
        assert!(
            many < 2.0 * one + 0.3,
            "grows with the captured tables: {none}, {one}, {many} ms"
        );
    }
    let seconds = began.elapsed().as_secs();
    assert!(seconds < 60, "capture_schema took {seconds} s");
}

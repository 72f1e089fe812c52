//! A table can be rebuilt row by row from the messages of its capture alone.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod capture_support;
mod e2e_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use capture_support::zoo::ZOO;
use capture_support::{Rebuilt, capture_lab, same, settled};
use e2e_support::{LATER, SOON, new_worker, program, worker};
use lab::Lab;
use lab::lab::DATABASE;
use lab::process;
use nix::sys::signal::Signal;

/// Statements that a producer chooses from. `N` is a number below 400.
const WORK: [&str; 11] = [
    "insert into zoo select (b).* from beast(N) b on conflict (id) do update set txt = 'again', num = zoo.num + 1",
    "insert into zoo (id, txt, big) select i, 'many', repeat(md5(i::text), 100) from generate_series(N, N + 20) i on conflict do nothing",
    "update zoo set txt = txt || 'N', at = now() where id between N and N + 50",
    "update zoo set big = big || 'more', raw = null where id = N",
    "update zoo set id = id + 1000 where id = N and not exists (select from zoo where id = N + 1000)",
    "delete from zoo where id between N and N + 3",
    "begin; update zoo set f8 = N where id < 50; savepoint a; delete from zoo; rollback to a; \
     update zoo set f4 = 1 where id = N; savepoint b; update zoo set small = 1 where id = N; release b; commit",
    "begin; delete from zoo where id > N; insert into zoo (id) values (-1); rollback",
    "merge into zoo using (select i from generate_series(N, N + 5) i) s on zoo.id = s.i \
     when matched and s.i % 2 = 0 then delete when matched then update set txt = 'merged' \
     when not matched then insert (id, txt) values (s.i, 'merged')",
    "with gone as (delete from zoo where id = N returning id) insert into zoo (id, txt) select id, 'reborn' from gone",
    "truncate zoo",
];

fn draw(n: u64) -> String {
    // TRUNCATE is rare, otherwise there would be little to compare.
    let which = if n.is_multiple_of(211) {
        10
    } else {
        rand::random_range(0..10)
    };
    WORK[which].replace('N', &rand::random_range(0..400).to_string())
}

fn write(lab: &Lab, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let (conninfo, stop) = (lab.postgres.conninfo(DATABASE), stop.clone());
    std::thread::spawn(move || {
        let (mut client, mut done) = (None, 0);
        while !stop.load(Ordering::Relaxed) {
            let Some(open) = client.as_mut() else {
                client = postgres::Client::connect(&conninfo, postgres::NoTls).ok();
                std::thread::sleep(std::time::Duration::from_millis(20));
                continue;
            };
            match postgres::Client::batch_execute(open, &draw(done + 1)) {
                Ok(()) => done += 1,
                Err(error) if error.as_db_error().is_some_and(|e| e.code().code() < "57") => {
                    // Two producers may use the same key or cause a deadlock. Any other error is a defect.
                    let code = error.code().unwrap().code();
                    assert!(matches!(code, "23505" | "40P01"), "{error:?}");
                    let _ = open.batch_execute("rollback");
                }
                Err(_) => client = None,
            }
        }
        done
    })
}

#[test]
fn pgbench_and_a_zoo_of_types_are_rebuilt_from_the_stream() {
    let mut lab = capture_lab();
    let pgbench = |lab: &Lab, arguments: &[&str]| program(lab, "pgbench", &[arguments, &["-q", DATABASE]].concat());
    let made = program(&lab, "pgbench", &["-i", "-I", "dtp", "-s", "1", "-q", DATABASE]);
    assert!(made.status.success(), "{made:?}");
    lab.sql(ZOO).unwrap();
    let tables = [
        "pgbench_accounts",
        "pgbench_branches",
        "pgbench_tellers",
        "pgbench_history",
        "zoo",
    ];
    for table in tables {
        lab.sql(&format!("select jetstream.capture('{table}')")).unwrap();
    }
    let filled = pgbench(&lab, &["-i", "-I", "g", "-s", "1"]);
    assert!(filled.status.success(), "{filled:?}");
    let mut written = 0;
    for round in 0..3 {
        let some = "insert into zoo select (b).* from generate_series(0, 399) n, beast(n) b on conflict do nothing";
        lab.sql(some).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..3).map(|_| write(&lab, &stop)).collect();
        std::thread::scope(|scope| {
            let bench = scope.spawn(|| program(&lab, "pgbench", &["-n", "-c", "3", "-T", "6", DATABASE]));
            std::thread::sleep(std::time::Duration::from_secs(3));
            if round == 1 {
                let pid = worker(&lab);
                process::signal(pid, Signal::SIGKILL).unwrap();
                new_worker(&lab, pid);
            }
            // When a worker dies, every session ends, including those of pgbench.
            let bench = bench.join().unwrap();
            assert!(round == 1 || bench.status.success(), "{bench:?}");
        });
        lab.sql("truncate zoo").unwrap();
        if round != 1 {
            lab.nats.kill9().unwrap();
            lab.nats.restart().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_secs(2));
        stop.store(true, Ordering::Relaxed);
        written += writers.into_iter().map(|writer| writer.join().unwrap()).sum::<u64>();
    }
    assert!(written > 100, "only {written} statements");
    // Whatever the last TRUNCATE removed, the table now has a row of every kind to compare.
    lab.sql("insert into zoo select (b).* from generate_series(5000, 5099) n, beast(n) b; update zoo set txt = 'last' where id > 5050")
        .unwrap();
    settled(&lab, LATER);
    let rebuilt = Rebuilt::read(&lab, "postgres_replication");
    for table in tables {
        same(&lab, &rebuilt, table);
    }
    assert!(
        rebuilt.count("postgres.public.zoo.truncate") > 0,
        "no TRUNCATE was chosen"
    );
    assert_eq!(lab.value("select count(*) from jetstream.dead_letters").unwrap(), "0");
    rebuilt.in_order_by_key();
}

#[test]
fn partitions_appear_under_their_root() {
    let lab = capture_lab();
    lab.sql(
        "create table m (id int primary key, v text) partition by range (id);
         create table m1 partition of m for values from (0) to (100);
         create table m2 (v text, gone int, id int not null); alter table m2 drop column gone;
         alter table m attach partition m2 for values from (100) to (200);
         select jetstream.capture('m')",
    )
    .unwrap();
    for statement in [
        "insert into m select n, 'root' from generate_series(0, 199) n",
        "insert into m select 5, 'x' on conflict (id) do update set v = 'conflict'",
        "update m2 set v = 'direct' where id < 150",
        "delete from m1 where id > 90",
        "update m set id = 95 where id = 100",
        "create table m3 partition of m for values from (200) to (300)",
        "insert into m3 values (200, 'new partition'), (201, 'x')",
        "alter table m detach partition m1",
        "delete from m1 where id = 0",
        "alter table m attach partition m1 for values from (0) to (100)",
        "update m1 set v = 'back' where id < 3",
        "truncate m3",
        "begin; truncate m; insert into m values (1, 'a'), (101, 'b'), (201, 'c'); truncate m2; commit",
        "copy m from program 'echo 7,copied' (format csv)",
    ] {
        lab.sql(statement).unwrap();
    }
    settled(&lab, SOON);
    let rebuilt = Rebuilt::read(&lab, "postgres_replication");
    // Changes of the partition while it was detached do not belong to m. Its rows left m without messages, because
    // DETACH does not change rows.
    same(&lab, &rebuilt, "m");
    assert_eq!(rebuilt.count("postgres.public.m.truncate"), 1);
    assert!(
        rebuilt
            .subjects
            .keys()
            .all(|subject| subject.starts_with("postgres.public.m.")),
        "{:?}",
        rebuilt.subjects
    );
}

#[test]
fn writers_need_no_right_and_owners_alone_capture() {
    let lab = capture_lab();
    lab.sql(
        "create role owner login; create role writer login; create role publisher login in role jetstream_publisher;
         grant jetstream_publisher to owner; create schema app authorization owner;
         grant usage on schema app to writer, publisher; set role owner;
         create table app.t (id int primary key, secret text); grant insert on app.t to writer, publisher;
         select jetstream.capture('app.t', columns => '{id}')",
    )
    .unwrap();
    let as_role = |role: &str, sql: &str| lab.sql(&format!("set role {role}; {sql}"));
    as_role("writer", "insert into app.t values (1, 'hidden')").unwrap();
    assert_eq!(
        lab.failure("set role publisher; select jetstream.capture('app.t')")
            .unwrap(),
        "42501"
    );
    assert_eq!(
        lab.failure("set role publisher; select jetstream.uncapture('app.t')")
            .unwrap(),
        "42501"
    );
    assert_eq!(
        lab.failure("set role writer; select * from jetstream.capture_queue")
            .unwrap(),
        "42501"
    );
    settled(&lab, SOON);
    let rebuilt = Rebuilt::read(&lab, "postgres_replication");
    assert_eq!(
        rebuilt.bodies("postgres.app.t.insert")[0]["Insert"]["new_tuple"],
        serde_json::json!({"id": "1"})
    );
    as_role("owner", "select jetstream.uncapture('app.t')").unwrap();
    as_role("writer", "insert into app.t values (2)").unwrap();
    assert_eq!(lab.value("select count(*) from jetstream.capture_queue").unwrap(), "0");
}

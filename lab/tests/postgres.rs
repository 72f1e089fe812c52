//! Tests of the PostgreSQL harness itself. The extension does not have to be installed.
#![allow(clippy::unwrap_used)]

use lab::postgres::{Postgres, Stop, sqlstate};

fn plain() -> Postgres {
    Postgres::builder().set("shared_preload_libraries", "").start().unwrap()
}

#[test]
fn answers_and_leaves_nothing() {
    let server = plain();
    let rows = server.sql(
        "postgres",
        "create table t (a int, b text); insert into t values (1, 'x'), (2, null); table t",
    );
    assert_eq!(rows.unwrap(), [["1", "x"], ["2", ""]]);
    assert_eq!(
        server.value("postgres", "select current_setting('wal_level')").unwrap(),
        "logical"
    );
    let data = server.data();
    assert!(data.exists());
    drop(server);
    assert!(!data.exists());
}

#[test]
fn errors_tell_their_sqlstate() {
    let server = plain();
    let error = server.sql("postgres", "select 1/0").unwrap_err();
    assert_eq!(sqlstate(&error), Some("22012"));
    assert!(format!("{error:#}").contains("division by zero"), "{error:#}");
}

#[test]
fn comes_back_after_kill_and_stop() {
    let mut server = plain();
    server
        .sql("postgres", "create table t (a int); insert into t values (7)")
        .unwrap();
    server.kill9().unwrap();
    server.start_again().unwrap();
    assert_eq!(server.value("postgres", "select a from t").unwrap(), "7");
    for mode in [Stop::Smart, Stop::Fast, Stop::Immediate] {
        server.stop(mode).unwrap();
        server.start_again().unwrap();
    }
    assert_eq!(server.value("postgres", "select a from t").unwrap(), "7");
}

#[test]
fn settings_change_while_it_runs() {
    let mut server = plain();
    server.set(&[("work_mem", "7MB")]).unwrap();
    let changed = || Ok(server.value("postgres", "show work_mem")? == "7MB");
    lab::wait_until(std::time::Duration::from_secs(5), "the setting", changed).unwrap();
    assert!(server.log_contains("received SIGHUP"));
    assert_eq!(server.backends("checkpointer").unwrap().len(), 1);
}

#[tokio::test]
async fn async_connections_work_and_so_does_the_blocking_way() {
    let server = plain();
    let client = server.connect("postgres").await.unwrap();
    let row = client.query_one("select 40 + $1::int", &[&2i32]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 42);
    assert_eq!(server.value("postgres", "select 1").unwrap(), "1");
}

#[test]
fn servers_of_a_killed_test_run_are_stopped_and_removed() {
    let mut owner = std::process::Command::new("true").spawn().unwrap();
    owner.wait().unwrap();
    let folder = lab::paths::Paths::ready()
        .unwrap()
        .run()
        .join(format!("sweep-{}", std::process::id()));
    let (dead, living) = (
        folder.join(format!("pg-{}-a", owner.id())),
        folder.join(format!("pg-{}-b", std::process::id())),
    );
    std::fs::create_dir_all(&living).unwrap();
    let server = Postgres::builder()
        .set("shared_preload_libraries", "")
        .dir(&dead)
        .start()
        .unwrap();
    let pid = server.detach();
    lab::up::sweep_folder(&folder, "pg-").unwrap();
    assert!(!lab::process::alive(pid));
    assert!(!dead.exists() && living.exists());
    std::fs::remove_dir_all(folder).unwrap();
}

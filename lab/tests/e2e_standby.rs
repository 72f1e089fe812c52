//! A standby does nothing. After its promotion it continues where the primary stopped.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use e2e_support::{SOON, arrived, drained, eventually, exactly_once, insert, lab, worker};
use lab::Lab;
use lab::lab::DATABASE;
use lab::nats::free_port;
use lab::paths::Paths;
use lab::postgres::Stop;
use lab::user::ServerUser;
use nix::sys::signal::Signal;

/// A standby of the lab's server.
struct Standby {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Standby {
    fn start(lab: &Lab) -> Standby {
        let (user, bin) = (ServerUser::find().unwrap(), Paths::ready().unwrap().pg_bin());
        let home = lab.postgres.data().parent().unwrap().to_owned();
        let (data, log) = (home.join("standby"), home.join("standby.log"));
        let made = user
            .command(bin.join("pg_basebackup"))
            .args([
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
                "-p",
                &lab.postgres.port().to_string(),
            ])
            .args(["-R", "-X", "stream", "-c", "fast", "-D"])
            .arg(&data)
            .current_dir(&home)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let (port, file) = (free_port().unwrap(), File::create(&log).unwrap());
        let child = user
            .command(bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-c", &format!("port={port}")])
            .current_dir(&home)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let standby = Standby { child, port, log };
        eventually(lab, SOON, "a standby", || {
            Ok(standby.value("select pg_is_in_recovery()")? == "t")
        });
        standby
    }

    fn value(&self, query: &str) -> anyhow::Result<String> {
        let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname={DATABASE}", self.port);
        let rows = postgres::Client::connect(&conninfo, postgres::NoTls)?.simple_query(query)?;
        let value = rows.iter().find_map(|row| match row {
            postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Ok(value.unwrap_or_default())
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        let _ = lab::process::signal(self.child.id(), Signal::SIGQUIT);
        let _ = self.child.wait();
    }
}

#[test]
fn a_standby_is_quiet_and_a_promoted_one_goes_on() {
    let mut lab = lab(&[("max_wal_senders", "5")]);
    let standby = Standby::start(&lab);
    lab.sql("create table t (id int primary key); select jetstream.capture('t'); insert into t values (1)")
        .unwrap();
    lab.sql(&insert("s.x", 1, 100)).unwrap();
    drained(&lab, SOON);
    lab.nats.pause().unwrap();
    lab.sql(&insert("s.x", 101, 200)).unwrap();
    let owed = "select count(*) from jetstream.outbox";
    eventually(&lab, SOON, "the standby follows", || Ok(standby.value(owed)? == "100"));
    std::thread::sleep(Duration::from_secs(1));
    assert!(!standby.log().contains("pg_jetstream"), "{}", standby.log());
    let told = standby.value("select last_error from jetstream.status()").unwrap();
    assert!(
        told.contains("standby"),
        "the standby does not report why it does nothing: {told}"
    );
    let up = "select count(*) from jetstream.metrics where name like '%\\_up' and value is not null";
    assert_eq!(standby.value(up).unwrap(), "0", "an alert would fire");

    worker(&lab);
    lab.postgres.stop(Stop::Immediate).unwrap();
    assert_eq!(standby.value("select pg_promote()").unwrap(), "t");
    lab.nats.resume().unwrap();
    // The lab's own server has stopped, so only the stream and the new primary can be queried.
    lab::wait_until(SOON, "the outbox is empty", || Ok(standby.value(owed)? == "0")).unwrap();
    arrived(&lab, "S", 200);
    exactly_once(&lab, "S", 1..=200);
    // The timeline of the promoted server is a later epoch of captured changes.
    standby.value("insert into t values (2)").unwrap();
    let ids = || {
        let messages = lab.stream_messages("postgres_replication").unwrap();
        let inserts = messages.iter().filter(|message| message.subject.ends_with(".insert"));
        let epoch = |id: &str| id.split('-').next().unwrap().parse::<u64>().unwrap();
        inserts.map(|message| epoch(message.id().unwrap())).collect::<Vec<_>>()
    };
    lab::wait_until(SOON, "the change of the promoted server", || Ok(ids().len() == 2)).unwrap();
    assert!(ids()[0] < ids()[1], "{:?}", ids());
}

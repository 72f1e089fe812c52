//! Every way to restore a dump brings back every row of the extension's tables.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::collections::BTreeMap;

use e2e_support::program;
use lab::Lab;

/// A database that no worker serves, with rows in each table that a dump carries.
const FILL: &str = "
create extension pg_jetstream;
update jetstream.connections set url = 'nats://default:4222', auth_type = 'token', token = 'of default';
insert into jetstream.connections (name, url) select 'other' || n, 'nats://o:4222' from generate_series(1, 3) n;
select jetstream.create_stream('S' || n, array['s' || n || '.>'], connection => 'other' || n) from generate_series(1, 3) n;
select jetstream.create_stream('D', array['d.>']);
select jetstream.publish('d.x', to_jsonb(n), connection => case n % 4 when 0 then 'default' else 'other' || n % 4 end)
from generate_series(1, 200) n;
insert into jetstream.dead_letters (outbox_id, connection, subject, payload, message_id, attempts, reason, created_at)
values (1000, 'other1', 's1.x', '1', 'dead', 3, 'no', now());
insert into jetstream.webhooks (name, url, connection) values ('w', 'https://w.example/', 'other2'), ('v', 'https://v.example/', 'default');
insert into jetstream.webhook_secrets (webhook, name, value) select id, 'tok', 'secret' from jetstream.webhooks;
select jetstream.webhook_call(id, '{}') from jetstream.webhooks;
insert into jetstream.webhook_dead_letters (stream, sequence, message_id, subject, worker, attempts, reason) values ('S1', 1, 'm', 's1.x', 'w', 1, 'no');
insert into jetstream.consumers (stream, consumer, updated_at) values ('S1', 'c', now() - interval '1 day');
select jetstream.pause();
create schema app; create table app.t (id int not null, v text) partition by list (id); create table app.t1 partition of app.t default;
create table app.parent (id int primary key);
alter table app.t add foreign key (id) references app.parent;
select jetstream.capture_schema('app', connection => 'other3');
select jetstream.capture('app.t', key => '{id}', columns => '{id,v}', operations => '{insert}', connection => 'other3');
alter table app.t enable always trigger jetstream_capture_insert;
alter table app.t1 enable always trigger jetstream_capture_insert;
insert into app.parent values (1); insert into app.t values (1, 'x'); delete from app.t; delete from app.parent;
insert into jetstream.capture_epochs (epoch, system_identifier, timeline, since) values (1700000000, 1, 1, '2020-01-01 00:00+00');
create schema gone; select jetstream.capture_schema('gone');
";

/// Each table that a dump carries, and its rows.
fn rows(lab: &Lab, database: &str) -> BTreeMap<String, Vec<String>> {
    let tables = "select c.oid::regclass::text from pg_extension e, unnest(e.extconfig) with ordinality o (oid, n), pg_class c \
                  where e.extname = 'pg_jetstream' and c.oid = o.oid and c.relkind = 'r' order by 1";
    let of = |table: String| {
        let query = format!("select t::text from {table} t order by 1");
        let rows = lab.postgres.sql(database, &query).unwrap().concat();
        (table, rows)
    };
    let tables = lab.postgres.sql(database, tables).unwrap().concat();
    tables.into_iter().map(of).collect()
}

fn triggers(lab: &Lab, database: &str) -> Vec<String> {
    let query = "select format('%s %s %s', t.tgrelid::regclass, t.tgname, t.tgenabled) from pg_trigger t \
                 where t.tgname like 'jetstream_capture%' or t.tgrelid in (select unnest(extconfig) from pg_extension) \
                 and not t.tgisinternal order by 1";
    lab.postgres.sql(database, query).unwrap().concat()
}

/// What went wrong, in the words of the programs.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    /// Runs pg_restore, which must have nothing to complain about.
    fn restore(&mut self, lab: &Lab, database: &str, arguments: &[&str]) {
        let done = program(lab, "pg_restore", &[&["-d", database], arguments, &["dump"]].concat());
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            self.0.push(format!("{database} {arguments:?}: {said}"));
        }
    }

    /// Compares a database with the one that was dumped.
    fn compare(&mut self, lab: &Lab, database: &str) {
        let (expected, found) = (rows(lab, "source"), rows(lab, database));
        for (table, expected) in &expected {
            let missing: Vec<_> = expected.iter().filter(|row| !found[table].contains(row)).collect();
            // What the restored triggers describe in relation messages is more.
            let more = found[table].len() > expected.len() && !table.ends_with("capture_queue");
            if !missing.is_empty() || more {
                self.0.push(format!(
                    "{database}: {table} lacks {missing:#?}\nand has {:#?}",
                    found[table]
                ));
            }
        }
        // pg_restore itself makes every trigger of a table that it disabled one that fires at the origin.
        let whole = |trigger: &String| !database.starts_with("disabled") || trigger.starts_with("jetstream.");
        let of = |database| triggers(lab, database).into_iter().filter(whole).collect::<Vec<_>>();
        if of(database) != of("source") {
            self.0
                .push(format!("{database}: triggers are {:#?}", triggers(lab, database)));
        }
    }
}

#[test]
fn every_way_to_restore_brings_every_row() {
    let lab = Lab::builder().start().unwrap();
    lab.sql("create database source").unwrap();
    lab.postgres.sql("source", FILL).unwrap();
    for arguments in [&["-Fc", "-f", "dump"][..], &["--inserts", "-f", "dump.sql"]] {
        let dump = program(&lab, "pg_dump", &[arguments, &["source"]].concat());
        assert!(dump.status.success(), "{dump:?}");
    }
    let expected = rows(&lab, "source");
    let empty: Vec<_> = expected.iter().filter(|(_, rows)| rows.is_empty()).collect();
    assert!(empty.is_empty(), "nothing to compare in {empty:?}");
    let create = |database: &str| lab.sql(&format!("create database {database}")).unwrap();
    let mut wrong = Wrong::default();

    create("serial");
    wrong.restore(&lab, "serial", &[]);
    wrong.compare(&lab, "serial");
    for round in 0..3 {
        let database = format!("parallel{round}");
        create(&database);
        wrong.restore(&lab, &database, &["-j", "6"]);
        wrong.compare(&lab, &database);
    }
    wrong.restore(&lab, "serial", &["--clean"]);
    wrong.compare(&lab, "serial");
    wrong.restore(&lab, "parallel0", &["--clean", "--if-exists", "-j", "4"]);
    wrong.compare(&lab, "parallel0");
    for (database, arguments) in [
        ("data", &["-a"][..]),
        ("data_parallel", &["-a", "-j", "6"]),
        ("disabled", &["-a", "--disable-triggers"]),
        ("disabled_parallel", &["-a", "-j", "6", "--disable-triggers"]),
    ] {
        create(database);
        wrong.restore(&lab, database, &["-s"]);
        wrong.restore(&lab, database, arguments);
        wrong.compare(&lab, database);
    }
    // One by one, what names others first where no foreign key forbids it.
    create("tables");
    wrong.restore(&lab, "tables", &["-s"]);
    let last = ["connections", "streams", "webhooks", "webhook_secrets", "webhook_calls"];
    let mut tables: Vec<&str> = expected.keys().map(|table| table.rsplit('.').next().unwrap()).collect();
    tables.sort_by_key(|table| last.iter().position(|last| last == table));
    for table in tables {
        wrong.restore(&lab, "tables", &["-a", "-n", "jetstream", "-t", table]);
    }
    wrong.compare(&lab, "tables");
    create("inserts");
    let restored = program(
        &lab,
        "psql",
        &["-q", "-v", "ON_ERROR_STOP=1", "-f", "dump.sql", "inserts"],
    );
    assert!(
        restored.status.success(),
        "{}",
        String::from_utf8_lossy(&restored.stderr)
    );
    wrong.compare(&lab, "inserts");
    assert!(wrong.0.is_empty(), "{} wrong:\n{}", wrong.0.len(), wrong.0.join("\n"));
}

//! Whose settings and whose rights the worker's statements run with.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use e2e_support::{SOON, drained, eventually, exactly_once, insert, lab, new_worker, worker};
use lab::Lab;
use lab::lab::DATABASE;
use nix::sys::signal::Signal;

fn restart_worker(lab: &Lab) -> u32 {
    let before = worker(lab);
    lab::process::signal(before, Signal::SIGTERM).unwrap();
    new_worker(lab, before);
    worker(lab)
}

/// Functions, operators, types and casts in front of PostgreSQL's own, and whatever else the owner of a database can set.
#[test]
fn the_owner_of_a_database_decides_nothing_that_the_worker_runs() {
    let lab = lab(&[]);
    worker(&lab);
    lab.sql(&format!(
        "create role mallory login;
         alter database {DATABASE} owner to mallory;
         create schema evil authorization mallory;
         create table evil.ran (what text, who text);
         grant insert on evil.ran to public;
         grant usage on schema evil to public;
         set role mallory;
         create function evil.note(what text) returns void language plpgsql as $$
         begin
             insert into evil.ran values (what, current_user);
             begin execute 'alter role mallory superuser'; exception when others then null; end;
         end $$;
         create function evil.set_config(text, text, boolean) returns text language plpgsql as $$
         begin perform evil.note('set_config'); return pg_catalog.set_config($1, $2, $3); end $$;
         create function evil.clock_timestamp() returns timestamptz language plpgsql as $$
         begin perform evil.note('clock_timestamp'); return pg_catalog.clock_timestamp(); end $$;
         create function evil.convert_to(text, name) returns bytea language plpgsql as $$
         begin perform evil.note('convert_to'); return pg_catalog.convert_to($1, $2); end $$;
         create function evil.pg_current_snapshot() returns pg_catalog.pg_snapshot language plpgsql as $$
         begin perform evil.note('pg_current_snapshot'); return pg_catalog.pg_current_snapshot(); end $$;
         create function evil.greater(bigint, bigint) returns boolean language plpgsql as $$
         begin perform evil.note('>'); return $1 operator(pg_catalog.>) $2; end $$;
         create operator evil.> (leftarg = bigint, rightarg = bigint, function = evil.greater);
         create function evil.checked(pg_catalog.text) returns boolean language plpgsql as $$
         begin perform evil.note('text'); return true; end $$;
         create domain evil.text as pg_catalog.text check (evil.checked(value));
         reset role"
    ))
    .unwrap();
    // A session from before, which these settings do not concern.
    let mut root = lab.postgres.client(DATABASE).unwrap();
    let mut set = |setting: &str| {
        root.batch_execute(&format!("alter database {DATABASE} set {setting}"))
            .unwrap();
        root.batch_execute(&format!("alter role postgres in database {DATABASE} set {setting}"))
            .unwrap();
    };
    for setting in [
        "search_path = evil, pg_catalog",
        "role = mallory",
        "session_authorization = mallory",
        "default_transaction_isolation = serializable",
        "default_transaction_read_only = on",
        "exit_on_error = on",
        "row_security = off",
        "statement_timeout = 1",
        "lock_timeout = 1",
        "transform_null_equals = on",
        "standard_conforming_strings = off",
        "datestyle = 'German'",
        "timezone = 'Asia/Kolkata'",
        "enable_indexscan = off",
        "synchronous_commit = on",
    ] {
        set(setting);
    }
    for statement in [
        "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'pg_jetstream worker'",
        &insert("s.x", 1, 500),
        "select jetstream.publish('s.k', jsonb_build_object('n', n), key => 'k') from generate_series(501, 600) n",
        "select jetstream.publish('nobody.x', '{}')",
        "create table public.kept (id integer primary key)",
        "select jetstream.capture('public.kept')",
        "insert into public.kept values (1)",
    ] {
        root.batch_execute(statement).unwrap();
    }
    eventually(&lab, SOON, "the messages are in the stream", || {
        Ok(lab.message_count("S")? >= 600 && lab.message_count("postgres_replication")? >= 2)
    });
    let mut seen = |query: &str| root.query_one(query, &[]).unwrap().get::<_, String>(0);
    assert_eq!(
        seen("select rolsuper::text from pg_roles where rolname = 'mallory'"),
        "false"
    );
    assert_eq!(seen("select count(*)::text from evil.ran"), "0");
    assert_eq!(seen("select role from jetstream.status()"), "jetstream_worker");
    let log = lab.postgres.log();
    assert_eq!(log.matches("FATAL").count(), 0, "{}", lab.postgres.log_tail());
}

/// A trigger of the extension's owner sees what the worker may do.
#[test]
fn the_worker_has_the_rights_of_its_role_and_cannot_take_others() {
    let mut lab = lab(&[]);
    lab.sql(
        "create table public.tried (stage text, what text, result text);
         grant insert on public.tried to public;
         create function public.try() returns trigger language plpgsql as $$
         declare
             statement text;
         begin
             insert into public.tried values (tg_name, 'who', current_user || ' ' || session_user);
             foreach statement in array array[
                 'set role postgres', 'reset role', 'set session authorization postgres',
                 'set session authorization default', 'reset session authorization', 'create role upstart superuser',
                 'alter role jetstream_worker superuser', 'copy public.tried from program ''true''',
                 'select pg_catalog.pg_read_file(''PG_VERSION'')',
                 'select rolpassword from pg_catalog.pg_authid', 'drop table jetstream.outbox', 'create table jetstream.x ()',
                 'select value from jetstream.webhook_secrets'
             ] loop
                 begin
                     execute statement;
                     insert into public.tried values (tg_name, statement, current_user);
                 exception when others then
                     insert into public.tried values (tg_name, statement, sqlstate);
                 end;
             end loop;
             return null;
         end $$;
         create trigger at_statement after delete on jetstream.outbox for each row execute function public.try();
         create constraint trigger at_commit after delete on jetstream.outbox deferrable initially deferred
             for each row execute function public.try()",
    )
    .unwrap();
    let check = |lab: &Lab, role: &str| {
        lab.sql("truncate public.tried").unwrap();
        lab.sql(&insert("s.x", 1, 1)).unwrap();
        drained(lab, SOON);
        let tried = lab
            .sql("select stage, what, result from public.tried order by what <> 'who', 1, 2")
            .unwrap();
        assert_eq!(tried.len(), 28, "{tried:?}");
        let own = format!("{role} {role}");
        assert_eq!(tried[0], ["at_commit", "who", &own]);
        assert_eq!(tried[1], ["at_statement", "who", &own]);
        for line in &tried[2..] {
            // insufficient_privilege; roles cannot be set within a security definer function.
            assert!(line[2] == "42501", "{line:?}");
        }
    };
    check(&lab, "jetstream_worker");
    let pid = worker(&lab);
    lab.sql("create role courier; grant jetstream_worker to courier")
        .unwrap();
    lab.postgres.set(&[("pg_jetstream.role", "courier")]).unwrap();
    e2e_support::becomes(&lab, "its role", "select role from jetstream.status()", "courier");
    check(&lab, "courier");
    assert_eq!(worker(&lab), pid);
    // Also after a transaction that was rolled back.
    lab.sql(
        "create sequence public.failures; grant usage on sequence public.failures to public;
         create function public.fail() returns trigger language plpgsql as $$
         begin
             if nextval('public.failures') = 1 then raise sqlstate '40001'; end if;
             return old;
         end $$;
         create trigger a_fail before delete on jetstream.outbox for each row execute function public.fail()",
    )
    .unwrap();
    check(&lab, "courier");
    assert_eq!(worker(&lab), pid);
    assert_eq!(lab.value("select last_value > 1 from public.failures").unwrap(), "t");
}

/// What may pass when it is made again ends nothing, at a statement and at the commit.
#[test]
fn conflicts_and_cancellations_are_tried_again() {
    let lab = lab(&[]);
    let pid = worker(&lab);
    lab.sql(
        "create table public.codes (n integer primary key, code text);
         create sequence public.turn; grant usage on sequence public.turn to public; grant select on public.codes to public;
         insert into public.codes values (1, '40001'), (2, '40P01'), (3, '57014'), (4, '55P03');
         create function public.fail() returns trigger language plpgsql as $$
         declare
             c text;
         begin
             select code into c from public.codes where n = nextval('public.turn');
             if found then raise exception 'it may pass' using errcode = c; end if;
             return null;
         end $$",
    )
    .unwrap();
    for trigger in [
        "create trigger fail after delete on jetstream.outbox for each statement execute function public.fail()",
        "create constraint trigger fail after delete on jetstream.outbox deferrable initially deferred
             for each row execute function public.fail()",
        "create trigger fail after insert on jetstream.history for each statement execute function public.fail()",
    ] {
        lab.sql(&format!("alter sequence public.turn restart; {trigger}"))
            .unwrap();
        lab.sql(&insert("s.x", 1, 1)).unwrap();
        drained(&lab, SOON);
        assert_eq!(
            lab.value("select last_value >= 4 from public.turn").unwrap(),
            "t",
            "{trigger}"
        );
        let table = if trigger.contains("history") {
            "history"
        } else {
            "outbox"
        };
        lab.sql(&format!("drop trigger fail on jetstream.{table}")).unwrap();
    }
    for _ in 0..20 {
        lab.sql(&format!("select pg_cancel_backend({pid})")).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    lab.sql(&insert("s.y", 2, 100)).unwrap();
    drained(&lab, SOON);
    assert_eq!(worker(&lab), pid);
}

#[test]
fn no_statement_takes_the_lock_of_the_worker() {
    let lab = lab(&[]);
    worker(&lab);
    lab.sql("create role nobody login").unwrap();
    let conninfo = lab.postgres.conninfo(DATABASE).replace("user=postgres", "user=nobody");
    let mut nobody = postgres::Client::connect(&conninfo, postgres::NoTls).unwrap();
    let key = 1_785_164_659_i64;
    nobody
        .batch_execute(&format!(
            "select pg_try_advisory_lock({key}, 0), pg_try_advisory_lock(0, {key}), pg_try_advisory_lock({}),
                    pg_try_advisory_lock({key}), pg_try_advisory_lock_shared({key}, 0)",
            key << 32
        ))
        .unwrap();
    let held = "select a.backend_type from pg_locks l join pg_stat_activity a using (pid)
                where l.locktype = 'advisory' and l.objsubid = 3 and l.granted and l.mode = 'ExclusiveLock'";
    assert_eq!(lab.sql(held).unwrap(), [["pg_jetstream worker"]]);
    restart_worker(&lab);
    lab.sql(&insert("s.x", 1, 100)).unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", 1..=100);
    assert_eq!(lab.sql(held).unwrap(), [["pg_jetstream worker"]]);
}

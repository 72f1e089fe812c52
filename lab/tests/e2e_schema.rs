//! A schema `jetstream` that another role owns or has filled: neither an install nor an update may run what is in it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use lab::paths::Paths;
use lab::postgres::Postgres;
use lab::{release, upgrade_script};

/// What mallory would have the superuser run. Each is a better match for what the extension calls than PostgreSQL's own.
const TRAPS: &str = "
    create function jetstream.cardinality(text[]) returns integer language plpgsql as $$
    begin
        if (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then alter role mallory superuser; end if;
        return pg_catalog.cardinality($1);
    end $$;
    create function jetstream.times(numeric, bigint) returns numeric language plpgsql as $$
    begin
        if (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then alter role mallory superuser; end if;
        return $1 operator(pg_catalog.*) $2;
    end $$;
    create operator jetstream.* (leftarg = numeric, rightarg = bigint, function = jetstream.times);";

/// Uses the extension in every way that a trap could be in.
const USE: &str = "
    select jetstream.create_stream('S', array['s.>']);
    select jetstream.publish('s.x', '1');
    select jetstream.history_maintain('1 day');
    insert into jetstream.history (published_at, outbox_id, attempts, success, connection, subject, message_id)
    values (now(), 1, 1, true, 'default', 's.x', 'x');
    select * from jetstream.publish_summary";

/// The error of `create extension`, or of another statement, in a database of its own that this makes ready.
fn refused(server: &Postgres, prepare: &str, statement: &str) -> String {
    database(server, prepare);
    format!("{:#}", server.sql("shop", statement).expect_err(prepare))
}

fn database(server: &Postgres, prepare: &str) {
    server.sql("postgres", "drop database if exists shop").unwrap();
    server.sql("postgres", "create database shop owner mallory").unwrap();
    server.sql("shop", prepare).unwrap();
}

fn mallory_is_nobody(server: &Postgres) {
    let superuser = server.value("postgres", "select rolsuper from pg_roles where rolname = 'mallory'");
    assert_eq!(superuser.unwrap(), "f", "the traps ran with the rights of a superuser");
}

#[test]
fn an_install_trusts_only_a_schema_of_its_own() {
    let server = Postgres::builder().start().unwrap();
    server.sql("postgres", "create role mallory").unwrap();
    let install = "create extension pg_jetstream";
    let own = format!("set role mallory; create schema jetstream; {TRAPS}");
    let said = refused(&server, &own, install);
    assert!(
        said.contains("schema \"jetstream\" belongs to role \"mallory\""),
        "{said}"
    );
    assert_eq!(
        server
            .value(
                "shop",
                "select count(*) from pg_extension where extname = 'pg_jetstream'"
            )
            .unwrap(),
        "0"
    );

    for (prepare, reason) in [
        (
            "set role mallory; create schema jetstream",
            "belongs to role \"mallory\"",
        ),
        (
            "create schema jetstream; grant create on schema jetstream to mallory",
            "role \"mallory\" can create objects",
        ),
        (
            "create schema jetstream; grant create on schema jetstream to public",
            "role \"public\" can create objects",
        ),
        // What mallory made before she lost the schema.
        (
            "create schema jetstream authorization mallory; set role mallory;
             create function jetstream.cardinality(text[]) returns integer language sql as 'select 1'; reset role;
             alter schema jetstream owner to postgres",
            "holds what is not part of the extension: function jetstream.cardinality(text[])",
        ),
        (
            "create schema jetstream; create table jetstream.streams (id integer)",
            "extension: table jetstream.streams",
        ),
        (
            "create schema jetstream; create type jetstream.text as (x integer)",
            "extension: type jetstream.text",
        ),
    ] {
        let said = refused(&server, prepare, install);
        assert!(said.contains(reason), "{prepare}: {said}");
    }
    // As a dump restores it, also by another superuser than the one who made it.
    for prepare in [
        "create schema jetstream",
        "create role other superuser; create schema jetstream authorization other; grant create on schema jetstream to other",
    ] {
        database(&server, prepare);
        server.sql("shop", install).unwrap();
        server.sql("shop", USE).unwrap();
        server
            .sql("shop", "drop extension pg_jetstream; create extension pg_jetstream")
            .unwrap();
    }
    mallory_is_nobody(&server);
}

#[test]
fn an_update_trusts_only_a_schema_of_its_own() {
    let paths = Paths::ready().unwrap();
    let version = release::version(&paths).unwrap();
    let (_, last) = release::frozen(&release::folder(&paths))
        .unwrap()
        .into_iter()
        .rfind(|(v, _)| *v != version)
        .unwrap();
    let old = last
        .file_stem()
        .unwrap()
        .to_str()
        .unwrap()
        .rsplit("--")
        .next()
        .unwrap()
        .to_owned();
    fs::create_dir_all(paths.run()).unwrap();
    let folder = tempfile::Builder::new()
        .prefix("schema-")
        .tempdir_in(paths.run())
        .unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let copied = Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(paths.pg_tree())
        .arg(folder.path().join("pg"))
        .status();
    assert!(copied.unwrap().success());
    let tree = Paths {
        base: folder.path().to_owned(),
        ..paths.clone()
    };
    let (name, script) = upgrade_script::make(&paths).unwrap().expect("an older version");
    fs::copy(&last, tree.pg_extension().join(last.file_name().unwrap())).unwrap();
    fs::write(tree.pg_extension().join(name.file_name().unwrap()), script).unwrap();

    let server = Postgres::builder().of(tree).start().unwrap();
    server.sql("postgres", "create role mallory").unwrap();
    let create = format!("create extension pg_jetstream version '{old}'");
    let update = "alter extension pg_jetstream update";
    // The last version took the schema as it was.
    let said = refused(
        &server,
        &format!("set role mallory; create schema jetstream; {TRAPS} reset role; {create}"),
        update,
    );
    assert!(
        said.contains("schema \"jetstream\" belongs to role \"mallory\""),
        "{said}"
    );
    for (prepare, reason) in [
        (
            "create function jetstream.lower(text) returns text language sql as 'select $1'",
            "function jetstream.lower(text)",
        ),
        ("create view jetstream.mine as select 1", "view jetstream.mine"),
        (
            "grant create on schema jetstream to mallory",
            "role \"mallory\" can create objects",
        ),
    ] {
        let said = refused(&server, &format!("{create}; {prepare}"), update);
        assert!(said.contains(reason), "{prepare}: {said}");
    }
    mallory_is_nobody(&server);
    // What administrators add to the extension's own tables blocks nothing, nor do the days of the history.
    let added = "create index mine on jetstream.outbox (created_at);
                 create statistics public.mine on subject, key from jetstream.outbox;
                 select jetstream.history_maintain('1 day');
                 create publication p for all tables";
    database(&server, &format!("{create}; {added}"));
    server.sql("shop", update).unwrap();
    server.sql("shop", USE).unwrap();
    // What an update leaves is what an install makes.
    let catalog = |create: &str| {
        database(&server, create);
        let rows = server.sql("shop", include_str!("data/catalog.sql")).unwrap();
        rows.concat().into_iter().collect::<BTreeSet<String>>()
    };
    let (updated, fresh) = (
        catalog(&format!("{create}; {update}")),
        catalog("create extension pg_jetstream"),
    );
    let different: Vec<&String> = updated.symmetric_difference(&fresh).collect();
    assert!(different.is_empty(), "{different:#?}");
}

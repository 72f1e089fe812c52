//! Statements whose triggers change captured tables again. The messages have the order in which the changes happened.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod capture_support;
mod e2e_support;

use capture_support::{Rebuilt, capture_lab, same, told};
use lab::Lab;
use lab::lab::DATABASE;

const STREAM: &str = "postgres_replication";

/// A lab with a captured table `t (id, v)` and the objects in `more`.
fn with(more: &str) -> Lab {
    let lab = capture_lab();
    lab.sql(&format!(
        "create table t (id int primary key, v text); select jetstream.capture('t'); {more}"
    ))
    .unwrap();
    lab
}

/// SQL for a trigger on `t` with this body.
fn trigger(name: &str, when: &str, each: &str, body: &str) -> String {
    format!(
        "create function {name}() returns trigger language plpgsql as $f$ {body} $f$;
         create trigger {name} {when} on t for each {each} execute function {name}();"
    )
}

#[test]
fn a_row_that_its_trigger_changes_again_is_told_first() {
    let lab = with(&trigger(
        "again",
        "after insert",
        "row",
        "begin update t set v = v || ' again' where id = new.id; return null; end",
    ));
    lab.sql("insert into t values (1, 'one'), (2, 'two')").unwrap();
    assert_eq!(told(&lab), "R I1 I2 U1 U2");
    lab.sql("insert into t values (3, 'three') on conflict (id) do nothing; update t set v = 'two' where id = 2")
        .unwrap();
    assert_eq!(told(&lab), "R I1 I2 U1 U2 I3 U3 U2");
    same(&lab, &Rebuilt::read(&lab, STREAM), "t");
}

#[test]
fn so_is_what_a_trigger_of_the_statement_changes_whatever_its_name() {
    let again = "begin update t set v = v || ' again' where id = 1; return null; end";
    let lab = with(
        &["a_again", "z_again"]
            .map(|name| trigger(name, "after insert", "statement", again))
            .concat(),
    );
    lab.sql("insert into t values (1, 'one'), (2, 'two')").unwrap();
    assert_eq!(told(&lab), "R I1 I2 U1 U1");
    same(&lab, &Rebuilt::read(&lab, STREAM), "t");
}

/// This also holds if a BEFORE trigger has filled in a column.
#[test]
fn what_a_trigger_behind_the_capture_changes_is_told_behind() {
    let lab = with(
        "create function again() returns trigger language plpgsql as
             $$ begin update t set v = 'again' where v = 'once'; return null; end $$;
         create trigger z_again after insert on t for each statement execute function again();
         create function fills() returns trigger language plpgsql as $$ begin new.v := coalesce(new.v, 'filled'); return new; end $$;
         create trigger fills before insert on t for each row execute function fills()",
    );
    lab.sql("insert into t values (1, 'once'), (2, null)").unwrap();
    assert_eq!(told(&lab), "R I1 I2 U1");
    same(&lab, &Rebuilt::read(&lab, STREAM), "t");
}

#[test]
fn triggers_call_triggers_and_some_of_them_fail() {
    let deeper = "begin
        if length(new.v) < 5 then
            begin
                update t set v = v || '!' where id = new.id;
                if new.v = 'no!' then raise 'refused'; end if;
                if new.v = 'bad!' then raise division_by_zero using message = 'worse'; end if;
            exception when raise_exception then
                update t set v = 'refused' where id = new.id;
            end;
        end if;
        return null; end";
    let lab = with(&trigger("deeper", "after insert or update", "row", deeper));
    lab.sql("insert into t values (1, 'yes'), (2, 'no')").unwrap();
    assert_eq!(
        lab.sql("select id, v from t order by id").unwrap().concat().join(" "),
        "1 yes!! 2 refused"
    );
    assert_eq!(told(&lab), "R I1 I2 U1 U1 U2 U2");
    same(&lab, &Rebuilt::read(&lab, STREAM), "t");
    // A statement that fails as a whole leaves no changes behind.
    let mut client = lab.postgres.client(DATABASE).unwrap();
    client
        .batch_execute("begin; savepoint s; insert into t values (4, 'four')")
        .unwrap();
    let refused = client.batch_execute("insert into t values (5, 'bad')").unwrap_err();
    assert!(
        refused.as_db_error().unwrap().message().contains("worse"),
        "{refused:?}"
    );
    client
        .batch_execute("rollback to s; update t set v = 'after a failure' where id = 1; commit")
        .unwrap();
    assert_eq!(told(&lab), "R I1 I2 U1 U1 U2 U2 U1");
    same(&lab, &Rebuilt::read(&lab, STREAM), "t");
}

#[test]
fn what_a_trigger_in_front_of_the_row_changes_is_told_in_front_of_it() {
    let lab = with(&trigger(
        "replaces",
        "before insert",
        "row",
        "begin delete from t where id = new.id; return new; end",
    ));
    for value in ["first", "second"] {
        lab.sql(&format!("insert into t values (1, '{value}')")).unwrap();
    }
    assert_eq!(told(&lab), "R I1 D1 I1");
    same(&lab, &Rebuilt::read(&lab, STREAM), "t");
}

#[test]
fn so_with_copy() {
    let lab = with(&format!(
        "{}{}",
        trigger(
            "replaces",
            "before insert",
            "row",
            "begin delete from t where id = new.id; return new; end",
        ),
        trigger(
            "again",
            "after insert",
            "row",
            "begin update t set v = v || ' again' where id = new.id; return null; end",
        )
    ));
    let mut client = lab.postgres.client(DATABASE).unwrap();
    let mut copy = |rows: &str| -> anyhow::Result<()> {
        let mut to = client.copy_in("copy t from stdin")?;
        std::io::Write::write_all(&mut to, rows.as_bytes())?;
        to.finish()?;
        Ok(())
    };
    copy("1\tone\n2\ttwo\n").unwrap();
    assert_eq!(told(&lab), "R I1 I2 U1 U2");
    copy("2\ttwo\n3\tthree\nno number\n").unwrap_err();
    copy("2\ttoo\n3\tthree\n").unwrap();
    assert_eq!(told(&lab), "R I1 I2 U1 U2 D2 I2 I3 U2 U3");
    same(&lab, &Rebuilt::read(&lab, STREAM), "t");
}

/// The trigger on `parents` changes a child row that the foreign key deletes later.
#[test]
fn what_a_foreign_key_does_is_told_where_it_happened() {
    let lab = capture_lab();
    lab.sql(
        "create table parents (id int primary key);
         create table t (id int primary key, parent int references parents on delete cascade, v text);
         create index on t (parent);
         select jetstream.capture('t'), jetstream.capture('parents');
         insert into parents values (1), (2), (3);
         insert into t values (11, 1, 'a'), (22, 2, 'a'), (33, 3, 'a');
         create function marks() returns trigger language plpgsql as
             $$ begin update t set v = v || old.id; return null; end $$;
         create trigger marks after delete on parents for each row execute function marks()",
    )
    .unwrap();
    lab.sql("delete from parents where id < 3").unwrap();
    assert_eq!(told(&lab), "R R I1 I2 I3 I11 I22 I33 D1 D2 U22 U33 U33 D11 D22");
    let rebuilt = Rebuilt::read(&lab, STREAM);
    same(&lab, &rebuilt, "t");
    same(&lab, &rebuilt, "parents");
}

#[test]
fn copy_and_truncate_in_a_trigger_are_told_where_they_happen() {
    let lab = with(
        "create table u (id int primary key); select jetstream.capture('u');
         copy (values (7)) to program 'cat > lab_nesting_copy'",
    );
    lab.sql(&trigger(
        "copies",
        "after insert",
        "row",
        "begin
             insert into u values (7);
             truncate u;
             execute format('copy u from %L', current_setting('data_directory') || '/lab_nesting_copy');
             update u set id = 8;
             return null; end",
    ))
    .unwrap();
    lab.sql("insert into t values (1, 'one')").unwrap();
    assert_eq!(told(&lab), "R R I1 I7 T I7 D7 I8");
    same(&lab, &Rebuilt::read(&lab, STREAM), "u");
}

#[test]
fn a_transaction_begins_in_front_of_all() {
    let lab = capture_lab();
    lab.sql(
        "create table t (id int primary key, v text); select jetstream.capture('t', transactions => true);
         create table u (id int primary key); select jetstream.capture('u', transactions => true)",
    )
    .unwrap();
    lab.sql(&trigger(
        "logs",
        "after insert",
        "row",
        "begin insert into u values (new.id); return null; end",
    ))
    .unwrap();
    lab.sql("insert into t values (1, 'one'), (2, 'two')").unwrap();
    let told = told(&lab);
    let last = told.rsplit("C ").next().unwrap();
    assert_eq!(last, "B I1 I2 I1 I2 C", "{told}");
}

/// The executor hook must not change the error that a client receives.
#[test]
fn an_error_of_a_foreign_key_names_its_constraint() {
    let lab = with("create table c (id int constraint c_id_fkey references t)");
    let mut client = lab.postgres.client(DATABASE).unwrap();
    let refused = client.batch_execute("insert into c values (9)").unwrap_err();
    let refused = refused.as_db_error().unwrap();
    assert_eq!(refused.constraint(), Some("c_id_fkey"));
    assert_eq!(refused.table(), Some("c"));
    assert_eq!(refused.detail(), Some("Key (id)=(9) is not present in table \"t\"."));
}

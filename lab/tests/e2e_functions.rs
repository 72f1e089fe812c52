//! Every function that SQL can call, with values nobody has in mind: it answers or refuses, and the server lives on.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use lab::postgres::Postgres;

/// Draws the values; another seed draws others: `SEED=7 cargo test -p lab --test e2e_functions`.
const SEED: u64 = 5;

/// Calls of each function.
const CALLS: usize = 25;

/// Numbers that look random (SplitMix64).
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

/// Extreme, usual and senseless values of a type, as SQL.
fn values(kind: &str) -> &'static [&'static str] {
    match kind {
        "text" | "name" => &[
            "''",
            "' '",
            "'default'",
            "'nowhere'",
            "'a.b'",
            "'a.*'",
            "'>'",
            "repeat('x', 1000000)",
            "E'\\x01\\n'",
            "'ü'",
            "'$JS.API'",
            "'-1'",
            "'https://a/b'",
            "'HTTPS://u:p@a'",
            "'{{secret:key}}'",
            "'[1,2]'",
            "'{}'",
            "'known'",
            "'queue'",
            "'nats'",
            "repeat(E'\\u00e9', 200)",
            "'%s %n %'",
            "'''; drop table x; --'",
            "'now() > \"x\"'",
        ],
        "smallint" | "integer" => &["0", "1", "-1", "2147483647", "(-2147483648)", "42", "200", "503"],
        "bigint" => &[
            "0",
            "1",
            "-1",
            "9223372036854775807",
            "(-9223372036854775808)",
            "4294967296",
        ],
        "boolean" => &["true", "false"],
        "jsonb" => &[
            "'null'",
            "'{}'",
            "'[]'",
            "'1'",
            "'\"x\"'",
            "'{\"a\": 1e400}'",
            "'{\"a\": [\"x\", true]}'",
            "'{\"a\": {\"b\": null}}'",
            "(repeat('[', 3000) || repeat(']', 3000))::jsonb",
            "(repeat('{\"a\":', 3000) || '1' || repeat('}', 3000))::jsonb",
            "to_jsonb(repeat('x', 1000000))",
            "'{\"X\": \"{{secret:key}}\"}'",
            "'{\"a\": \"\\n\"}'",
            "'{\"table\": \"x\", \"columns\": 7, \"key\": {}, \"partition\": 1}'",
            "'{\"operations\": [\"insert\", null], \"prefix\": \"p\", \"format\": \"row\", \"connection\": \"default\"}'",
            "(select jsonb_object_agg('h' || n, n) from generate_series(1, 5000) n)",
        ],
        "jsonb[]" => &[
            "'{}'",
            "'{1,null}'",
            "'{{1,2},{3,4}}'",
            "'[0:1]={7,8}'",
            "array_fill('1'::jsonb, '{1000}')",
            "array[to_jsonb(repeat('x', 100000))]",
        ],
        "text[]" => &[
            "'{}'",
            "'{a,null}'",
            "'{{a,b},{c,d}}'",
            "'[5:6]={x,y}'",
            "'{insert,delete}'",
            "array_fill('a.b'::text, '{1000}')",
            "array[repeat('x', 1000000)]",
            "'{a.>,>}'",
            "'{id}'",
        ],
        "oid[]" => &[
            "'{}'",
            "'{0,null}'",
            "'{{1,2},{3,4}}'",
            "array['known'::regclass::oid]",
            "'{4294967295}'",
        ],
        "timestamp with time zone" => &[
            "'infinity'",
            "'-infinity'",
            "'294276-12-31 23:59:59+00'",
            "'4713-01-01 00:00+00 BC'",
            "now()",
            "'2100-01-01'",
            "'1970-01-01'",
        ],
        "interval" => &[
            "'0'",
            "'-1 s'",
            "'178000000 years'",
            "'-178000000 years'",
            "'1 microsecond'",
            "'1000000000 days'",
            "'1 month -30 days'",
            "'1 minute'",
        ],
        "numeric" => &["0", "'NaN'", "1e1000", "-1", "1e-1000", "2.5"],
        "double precision" | "real" => &["0", "'NaN'", "'Infinity'", "'-Infinity'", "1e30", "12.5"],
        "bytea" => &[
            "''",
            "'\\x00'",
            "convert_to(repeat('x', 1000000), 'UTF8')",
            "'\\xff'",
            "convert_to('{\"table\": 5}' || chr(1), 'UTF8')",
        ],
        "regclass" | "oid" => &[
            "0",
            "4294967295",
            "'known'::regclass",
            "'parted'::regclass",
            "'pg_class'::regclass",
            "'jetstream.outbox'::regclass",
            "'known_pkey'::regclass",
            "'jetstream.metrics'::regclass",
        ],
        "regnamespace" => &[
            "0",
            "4294967295",
            "'public'::regnamespace",
            "'pg_catalog'::regnamespace",
            "'jetstream'::regnamespace",
        ],
        "jetstream.webhooks" => &[
            "(select w from jetstream.webhooks w order by id limit 1)",
            "row(null, null)",
        ],
        "jetstream.connections" => &[
            "(select c from jetstream.connections c order by id limit 1)",
            "row(null, null)",
        ],
        "jetstream.streams" => &["(select s from jetstream.streams s order by id limit 1)"],
        "jetstream.webhook_calls" => &["(select c from jetstream.webhook_calls c order by id limit 1)"],
        other => panic!("no values of type {other}: add some"),
    }
}

fn value(draw: &mut Draw, kind: &str) -> String {
    let choices = values(kind);
    match draw.below(6) {
        0 => format!("null::{kind}"),
        _ => format!("{}::{kind}", choices[draw.below(choices.len())]),
    }
}

#[test]
fn no_value_of_an_argument_is_an_internal_error() {
    let seed = std::env::var("SEED").map_or(SEED, |seed| seed.parse().expect("SEED is a number"));
    let server = Postgres::builder().set("pg_jetstream.databases", "").start().unwrap();
    let mut client = server.client("postgres").unwrap();
    client
        .batch_execute(
            "create extension pg_jetstream;
             set client_min_messages = error;
             set statement_timeout = '1s';
             create table known (id integer primary key, t text);
             create table parted (id integer primary key) partition by range (id);
             create table part partition of parted for values from (0) to (10);
             select jetstream.capture('known', condition => 'id > 0'), jetstream.capture('parted', format => 'debezium');
             insert into jetstream.webhooks (name, url, publish_mode, headers)
             values ('known', 'https://a/b', 'both', '{\"X\": \"{{secret:key}}\"}');
             select jetstream.rule_webhook_secret_set(1, 'key', 'value');
             select jetstream.webhook_call(1, '1');
             insert into jetstream.dead_letters (outbox_id, connection, subject, payload, message_id, attempts, reason, created_at)
             values (1, 'default', 'a.b', '1', 'x', 5, 'because', now());
             select jetstream.create_stream('known', array['a.>']);",
        )
        .unwrap();
    let pid: i32 = client.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
    let functions = client
        .query(
            "select p.proname::text, array(select format_type(t, null) from unnest(p.proargtypes) with ordinality as a (t, n) order by n)
             from pg_proc p
             where p.pronamespace = 'jetstream'::regnamespace
               and p.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)
             order by p.oid::regprocedure::text collate \"C\"",
            &[],
        )
        .unwrap();
    assert!(functions.len() > 80, "{} functions", functions.len());
    let mut draw = Draw(seed);
    let mut wrong = Vec::new();
    for function in functions {
        let (name, kinds): (String, Vec<String>) = (function.get(0), function.get(1));
        for _ in 0..if kinds.is_empty() { 1 } else { CALLS } {
            let arguments: Vec<String> = kinds.iter().map(|kind| value(&mut draw, kind)).collect();
            let call = format!("select * from jetstream.{name}({})", arguments.join(", "));
            client.batch_execute("begin").unwrap();
            let answer = client.simple_query(&call);
            if let Err(error) = &answer {
                let code = error.code().map_or("the connection ended", |code| code.code());
                // What PostgreSQL itself says of its own types is not ours.
                if code.starts_with("XX") || code == "the connection ended" || error.to_string().contains("panicked") {
                    wrong.push(format!(
                        "{code}: {error:?}\n    {}",
                        call.chars().take(300).collect::<String>()
                    ));
                }
            }
            client
                .batch_execute("rollback")
                .unwrap_or_else(|error| panic!("{call}: {error}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "seed {seed}: {} calls\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    let now: i32 = client.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
    assert_eq!(now, pid);
    let log = server.log();
    assert!(
        !log.contains("panicked") && !log.contains("terminated by signal"),
        "{log}"
    );
}

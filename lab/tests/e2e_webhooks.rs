//! Webhooks: the three publish modes, argument checks, and secrets that stay secret.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;
mod webhook_support;

use std::time::{Duration, Instant};

use e2e_support::{SOON, arrived, becomes, drained, eventually, lab};
use lab::lab::DATABASE;
use serde_json::{Value, json};
use webhook_support::{call, claim, count, status, webhooks};

#[test]
fn each_mode_stores_what_it_says_and_nothing_of_a_rollback() {
    let mut lab = webhooks();
    lab.sql(
        "begin; select jetstream.webhook_call(w, '{\"no\": 1}') from generate_series(1, 3) w; rollback;
         do $$ begin
             perform jetstream.webhook_call(3, '{\"no\": 2}');
             raise exception 'no';
         exception when raise_exception then null;
         end $$",
    )
    .unwrap();
    let queue = call(&lab, 1, "");
    assert_eq!(
        (&queue["publish_mode"], &queue["status"]),
        (&json!("queue"), &json!("enqueued"))
    );
    assert!(
        queue["call_id"].is_number() && queue.get("outbox_id").is_none(),
        "{queue}"
    );
    let nats = call(&lab, 2, ", message_id => 'my-id'");
    assert!(nats["outbox_id"].is_number() && nats.get("call_id").is_none(), "{nats}");
    assert_eq!(nats["message_id"], "my-id");
    let both = call(&lab, 3, "");
    assert!(both["outbox_id"].is_number() && both["call_id"].is_number(), "{both}");
    drained(&lab, SOON);

    let messages = lab.stream_messages("WEBHOOKS").unwrap();
    let subjects: Vec<_> = messages.iter().map(|message| message.subject.as_str()).collect();
    assert_eq!(subjects, ["webhooks.nats", "webhooks.both"]);
    assert_eq!(messages[0].id(), Some("my-id"));
    assert_eq!(messages[1].id(), both["message_id"].as_str());
    assert_eq!(
        messages[0].json().unwrap(),
        json!({
            "webhook_url": "https://example.com/nats", "data": {"n": 2}, "headers": {"X-Kind": "test"},
            "method": "POST", "timeout_ms": 2500, "webhook_id": 2, "webhook_name": "nats",
        })
    );
    let calls = lab.sql(
        "select webhook_name, message_id, payload ->> 'n', url, method, headers ->> 'X-Kind', timeout_ms, attempt
         from jetstream.webhook_claim('w')",
    );
    let calls = calls.unwrap();
    assert_eq!(calls.len(), 2);
    assert_eq!(
        calls[1],
        [
            "both",
            both["message_id"].as_str().unwrap(),
            "3",
            "https://example.com/both",
            "POST",
            "test",
            "2500",
            "1"
        ]
    );

    // During an outage of NATS, every mode still stores calls immediately. Messages for NATS arrive later.
    lab.nats.kill9().unwrap();
    let begin = Instant::now();
    (1..=3).for_each(|webhook| drop(call(&lab, webhook, "")));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_eq!(
        (count(&lab, "outbox"), count(&lab, "webhook_calls")),
        ("2".into(), "4".into())
    );
    lab.nats.restart().unwrap();
    drained(&lab, SOON);
    assert_eq!(lab.message_count("WEBHOOKS").unwrap(), 4);
}

#[test]
fn a_change_of_mode_counts_for_the_next_call() {
    let mut lab = webhooks();
    lab.nats.kill9().unwrap();
    call(&lab, 2, "");
    lab.sql("update jetstream.webhooks set publish_mode = 'queue' where id = 2")
        .unwrap();
    call(&lab, 2, "");
    lab.sql("update jetstream.webhooks set url = 'https://example.com/new', publish_mode = 'both' where id = 2")
        .unwrap();
    call(&lab, 2, "");
    lab.nats.restart().unwrap();
    drained(&lab, SOON);
    let urls: Vec<Value> = lab
        .stream_messages("WEBHOOKS")
        .unwrap()
        .iter()
        .map(|message| message.json().unwrap()["webhook_url"].clone())
        .collect();
    assert_eq!(urls, ["https://example.com/nats", "https://example.com/new"]);
    let urls = lab.sql("select url from jetstream.webhook_calls order by id").unwrap();
    assert_eq!(urls, [["https://example.com/nats"], ["https://example.com/new"]]);
    // The webhook no longer uses NATS. No mode may select NATS by accident.
    lab.sql("update jetstream.webhooks set nats_enabled = false where id = 2")
        .unwrap();
    assert_eq!(
        lab.value("select publish_mode from jetstream.webhooks where id = 2")
            .unwrap(),
        "queue"
    );
    assert_eq!(
        lab.failure("select jetstream.rule_webhook_publish_nats(2, '{}')")
            .unwrap(),
        "55000"
    );
    lab.sql("update jetstream.webhooks set enabled = false where id = 2")
        .unwrap();
    assert_eq!(lab.failure("select jetstream.webhook_call(2, '{}')").unwrap(), "55000");
    assert_eq!(lab.failure("select jetstream.webhook_call(99, '{}')").unwrap(), "42704");
}

#[test]
fn a_scheduled_call_waits_in_both_ways() {
    let lab = webhooks();
    let soon = ", scheduled_at => clock_timestamp() + interval '700 ms'";
    let begin = Instant::now();
    call(&lab, 3, soon);
    call(&lab, 3, ", scheduled_at => clock_timestamp() + interval '1 hour'");
    assert_eq!(claim(&lab, "w", 10, "1 minute"), [0i64; 0]);
    arrived(&lab, "WEBHOOKS", 1);
    assert!(begin.elapsed() >= Duration::from_millis(700), "{:?}", begin.elapsed());
    eventually(&lab, SOON, "the call is due", || {
        Ok(claim(&lab, "w", 10, "1 minute") == [1])
    });
    assert_eq!(lab.message_count("WEBHOOKS").unwrap(), 1);
    assert_eq!(count(&lab, "outbox"), "1");
}

#[test]
fn urls_headers_and_methods_are_checked_at_registration() {
    let lab = lab(&[]);
    let register = |url: &str| format!("select jetstream.rule_webhook_register('w', '{url}')");
    for url in [
        "ftp://example.com/",
        "example.com",
        "",
        "https://",
        "https:///path",
        "https://user:secret@example.com/",
        "https://token@example.com/",
        "https://exa mple.com/",
        "https://example.com:port/",
        "javascript:alert(1)",
        "https://example.com\\n.evil/ x",
    ] {
        assert_eq!(lab.failure(&register(url)).unwrap(), "22023", "{url}");
    }
    let error = format!(
        "{:?}",
        lab.sql(&register("https://user:hunter2@example.com/")).unwrap_err()
    );
    assert!(!error.split("in select").next().unwrap_or("").contains("hunter2"));
    for url in [
        "http://localhost",
        "HTTPS://example.com:8443/a?b=c@d#e",
        "http://[::1]:80/x",
        "https://example.com?q=1",
    ] {
        lab.sql(&register(url)).unwrap();
        lab.sql("select jetstream.rule_webhook_delete(id) from jetstream.webhooks")
            .unwrap();
    }
    let refused = |more: &str| {
        lab.failure(&format!(
            "select jetstream.rule_webhook_register('w', 'https://example.com', {more})"
        ))
        .unwrap()
    };
    assert_eq!(refused("'FETCH'"), "22023");
    assert_eq!(refused("p_headers => '{\"a\": \"b\\r\\nc\"}'"), "22023");
    assert_eq!(refused("p_nats_subject => 'a b'"), "22023");
    assert_eq!(refused("p_config_name => 'nowhere'"), "23503");
    assert_eq!(refused("p_timeout_ms => 0"), "22023");
}

#[test]
fn a_secret_is_seen_by_the_worker_that_makes_the_call_alone() {
    const SECRET: &str = "hunter2-ü\"\\{{secret:other}}";
    let lab = webhooks();
    let mut client = lab.postgres.client(DATABASE).unwrap();
    client
        .batch_execute(
            "update jetstream.webhooks set headers =
                 '{\"Authorization\": \"Bearer {{secret:key}}\", \"X\": [\"{{secret:key}}/{{secret:two}}\", \"b\"], \"N\": 1}'",
        )
        .unwrap();
    let set = "select jetstream.rule_webhook_secret_set($1, $2, $3)";
    for webhook in [2i32, 3] {
        client.execute(set, &[&webhook, &"key", &SECRET]).unwrap();
        client.execute(set, &[&webhook, &"two", &"second"]).unwrap();
    }
    // No error message shows the secret.
    for (webhook, name, value) in [
        (Some(2), Some("bad name"), Some("hunter2")),
        (Some(2), None, Some("hunter2")),
        (Some(2), Some("key"), Some("hunter2\r\nX: y")),
        (None, Some("key"), Some("hunter2")),
        (Some(99), Some("key"), Some("hunter2")),
    ] {
        let error = client.execute(set, &[&webhook, &name, &value]).unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
    (1..=3).for_each(|webhook| drop(call(&lab, webhook, "")));
    drained(&lab, SOON);
    for message in lab.stream_messages("WEBHOOKS").unwrap() {
        let text = format!("{:?} {:?}", message.payload, message.headers);
        assert!(
            !text.contains("hunter2") && text.contains("Bearer {{secret:key}}"),
            "{text}"
        );
    }
    // Webhook 1 does not have this secret, so its call is dead. The other call is claimed.
    let claimed = client
        .query("select webhook, headers::text from jetstream.webhook_claim('w')", &[])
        .unwrap();
    assert_eq!(claimed.len(), 1);
    let headers: Value = serde_json::from_str(claimed[0].get(1)).unwrap();
    assert_eq!(
        headers,
        json!({"Authorization": format!("Bearer {SECRET}"), "X": [format!("{SECRET}/second"), "b"], "N": 1})
    );
    assert_eq!(status(&lab, 1), ["dead", "1", "secret \"key\" does not exist", "0"]);
    let resolved: String = client
        .query_one(
            "select jetstream.webhook_headers(2, '{\"Authorization\": \"Bearer {{secret:key}}\"}',
                 'HTTPS://example.com/another?path') ->> 'Authorization'",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(resolved, format!("Bearer {SECRET}"));
    // A forged envelope names a server of its own.
    let servers = [
        "https://evil.example/nats",
        "http://example.com/nats",
        "https://example.com:8443/nats",
        "https://example.com@evil.example/nats",
        "https://example.com.evil.example/nats",
        "https://example.com\\\\@evil.example/",
        "//example.com/",
    ];
    for url in servers.iter().map(|url| format!("'{url}'")).chain(["null".to_owned()]) {
        let asked = format!("select jetstream.webhook_headers(2, '{{\"X\": \"{{{{secret:key}}}}\"}}', {url})");
        let refused = client.query(asked.as_str(), &[]).unwrap_err();
        let error = refused.as_db_error().unwrap();
        assert_eq!(error.code().code(), "PJ001", "{url}: {error}");
        assert!(!error.message().contains("hunter2"));
    }
    let plain = "select jetstream.webhook_headers(2, '{\"X\": \"y\"}', 'https://evil.example/') ->> 'X'";
    assert_eq!(client.query_one(plain, &[]).unwrap().get::<_, String>(0), "y");

    // The secret is only in its own table. It is not in other tables, views, function results, or the log.
    let relations = lab.sql(
        "select c.oid::regclass from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = 'jetstream' and c.relkind in ('r', 'v', 'p') and c.relname <> 'webhook_secrets'",
    );
    let relations = relations.unwrap().concat();
    assert!(relations.len() > 20);
    for relation in relations {
        let found = lab
            .value(&format!(
                "select count(*) from {relation} r where r::text like '%hunter2%'"
            ))
            .unwrap();
        assert_eq!(found, "0", "{relation}");
    }
    let told = lab.sql(
        "select jetstream.rule_webhook_get('both')::text union all select l::text from jetstream.rule_webhook_list() l
         union all select jetstream.rule_webhook_call_status(2)::text union all select jetstream.status()::text",
    );
    let told = told.unwrap().concat().concat();
    assert!(
        !told.contains("hunter2") && told.contains("[\"key\", \"two\"]"),
        "{told}"
    );
    assert!(!lab.postgres.log_contains("hunter2"));
    for role in ["reader", "admin", "publisher", "worker", "webhook_worker"] {
        let read = format!("set role jetstream_{role}; select value from jetstream.webhook_secrets");
        assert_eq!(lab.failure(&read).unwrap(), "42501", "{role}");
    }
    assert_eq!(
        lab.value("select jetstream.rule_webhook_secret_delete(2, 'key')")
            .unwrap(),
        "t"
    );
    assert_eq!(
        lab.value("select jetstream.rule_webhook_secret_delete(2, 'key')")
            .unwrap(),
        "f"
    );
}

#[test]
fn each_role_may_do_its_part() {
    let lab = webhooks();
    let as_role = |role: &str, statement: &str| lab.sql(&format!("set role jetstream_{role}; {statement}"));
    let refused = |role: &str, statement: &str| {
        let error = lab.failure(&format!("set role jetstream_{role}; {statement}"));
        assert_eq!(error.unwrap(), "42501", "{role}: {statement}");
    };
    let calls = [
        "select jetstream.webhook_call(3, '{}')",
        "select jetstream.rule_webhook_call_unified(1, '{}')",
        "select jetstream.rule_webhook_publish_nats(2, '{}', null)",
        "select jetstream.rule_webhook_enqueue(1, '{}')",
        "select jetstream.rule_webhook_call(1, '{}')",
    ];
    for statement in calls {
        as_role("publisher", statement).unwrap();
        refused("reader", statement);
        refused("webhook_worker", statement);
    }
    let claim = "select count(*) from jetstream.webhook_claim('w', 1)";
    as_role("webhook_worker", claim).unwrap();
    let complete = "select jetstream.webhook_complete(id, 200) from jetstream.webhook_calls where status = 'claimed'";
    as_role("admin", complete).unwrap();
    as_role(
        "webhook_worker",
        "select jetstream.rule_nats_consumer_update_stats('S', 'c', 1, 1)",
    )
    .unwrap();
    for role in ["publisher", "reader", "admin", "worker"] {
        refused(role, claim);
        refused(
            role,
            "select jetstream.webhook_headers(1, '{}', 'https://example.com/')",
        );
    }
    let init = "select jetstream.rule_nats_init()";
    as_role("admin", init).unwrap();
    refused("reader", init);
    refused("publisher", init);
    let looks = [
        "select * from jetstream.rule_nats_config",
        "select * from jetstream.rule_nats_streams",
        "select * from jetstream.rule_nats_consumer_stats",
        "select * from jetstream.nats_publish_summary",
        "select * from jetstream.nats_recent_failures",
        "select * from jetstream.nats_performance_stats",
        "select * from jetstream.webhook_status_summary",
        "select * from jetstream.webhook_recent_failures",
        "select * from jetstream.webhook_performance_stats",
        "select webhook_name, nats_subject, enabled from jetstream.rule_webhooks",
        "select error_message, count(*) from jetstream.rule_nats_publish_history group by 1",
        "select jetstream.rule_nats_stats()",
        "select jetstream.rule_nats_config_info()",
        "select * from jetstream.rule_nats_webhooks_list()",
    ];
    for statement in looks {
        as_role("reader", statement).unwrap();
        as_role("admin", statement).unwrap();
    }
    refused("reader", "select headers from jetstream.rule_webhooks");
    refused("reader", "select payload from jetstream.webhook_calls");
    refused("reader", "delete from jetstream.rule_webhooks");
    as_role(
        "admin",
        "insert into jetstream.rule_webhooks (webhook_name, webhook_url) values ('new', 'https://example.com');
         update jetstream.rule_webhooks set publish_mode = 'both' where webhook_name = 'new';
         update jetstream.rule_nats_config set max_connections = 2 where config_name = 'default';
         insert into jetstream.rule_nats_config (config_name) values ('other') on conflict (config_name) do nothing;
         update jetstream.rule_nats_streams set max_messages = 7;
         select jetstream.rule_nats_configure('third', 'nats://localhost:4222', 'token', p_auth_token => 't');
         select jetstream.rule_webhook_secret_set(1, 'a', 'b');
         delete from jetstream.rule_webhooks where webhook_name = 'new';
         delete from jetstream.rule_nats_config where config_name <> 'default'",
    )
    .unwrap();
    // Nothing is granted to PUBLIC.
    let open = lab.sql(
        "select p.oid::regprocedure from pg_proc p join pg_namespace n on n.oid = p.pronamespace
         where n.nspname = 'jetstream' and has_function_privilege('public', p.oid, 'execute')",
    );
    assert_eq!(open.unwrap(), [[""; 0]; 0]);
}

#[test]
fn a_webhook_goes_only_when_its_calls_are_made() {
    let lab = webhooks();
    call(&lab, 1, "");
    let delete = "select jetstream.rule_webhook_delete(1)";
    assert_eq!(lab.failure(delete).unwrap(), "23503");
    claim(&lab, "w", 1, "1 minute");
    assert_eq!(lab.failure(delete).unwrap(), "23503");
    lab.sql("select jetstream.webhook_complete(1, 200)").unwrap();
    // The delete waits for a call that is being inserted.
    let mut storing = lab.postgres.client(DATABASE).unwrap();
    storing
        .batch_execute("begin; select jetstream.webhook_call(1, '{}')")
        .unwrap();
    let deleting = std::thread::scope(|scope| {
        let deleting = scope.spawn(|| lab.failure(delete));
        becomes(
            &lab,
            "the delete waits",
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%webhook_delete%'
                 and pid <> pg_backend_pid()",
            "1",
        );
        storing.batch_execute("commit").unwrap();
        deleting.join().unwrap()
    });
    assert_eq!(deleting.unwrap(), "23503");
    lab.sql("delete from jetstream.webhook_calls").unwrap();
    assert_eq!(lab.value(delete).unwrap(), "t");
    assert_eq!(lab.value(delete).unwrap(), "f");
}

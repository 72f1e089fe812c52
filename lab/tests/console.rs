//! `examples/console`: what it answers, and what somebody with a browser sees and may do.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod console_support;
mod e2e_support;

use std::time::Duration;

use console_support::{TOKEN, console, console_at, get, http, repository, request};
use e2e_support::{SOON, becomes, connection, drained, eventually, insert, quick_lab};
use lab::paths::Paths;
use lab::{Lab, debs, tools};

const SECRETS: [&str; 3] = ["hunter2", "T0K3N", "very large"];

/// 120 messages stored, three too large, one that no stream takes, a connection that is down, a stream that is not as
/// asked, webhooks, and secrets wherever there can be some.
fn prepared() -> Lab {
    // What takes long comes first: the message that fails must not be given up meanwhile.
    console_support::console_binary();
    let lab = quick_lab(
        Lab::builder()
            .set("pg_jetstream.max_attempts", "10000")
            .nats_extra("max_payload: 65536"),
    );
    lab.sql(&insert("s.a", 1, 120)).unwrap();
    lab.sql("select jetstream.publish('s.large', to_jsonb(repeat('very large ', 10000)), headers => '{\"source\": \"shop\"}')
         from generate_series(1, 3)")
        .unwrap();
    drained(&lab, SOON);
    lab.sql(
        "insert into jetstream.dead_letters (outbox_id, connection, subject, payload, message_id, attempts, reason, created_at)
         values (1, 'default', 's.bold', '1', 'id', 1, '<img src=x onerror=alert(1)>', now());
         select jetstream.publish('nowhere', '1');
         insert into jetstream.webhooks (name, url, headers)
         values ('hook', 'https://hooks.example.com/services/T0K3N', '{\"Authorization\": \"hunter2\"}');
         select jetstream.webhook_call((select id from jetstream.webhooks), '1') from generate_series(1, 2);
         insert into jetstream.connections (name, enabled) values ('off', false);
         select jetstream.create_stream('WRONG', '{wrong.>}')",
    )
    .unwrap();
    e2e_support::synced(&lab, "WRONG");
    lab.sql("update jetstream.streams set storage = 'memory' where name = 'WRONG'")
        .unwrap();
    becomes(
        &lab,
        "a stream that is not as asked",
        "select sync_error is not null from jetstream.streams where name = 'WRONG'",
        "t",
    );
    drop(connection(&lab, "away"));
    lab.sql("update jetstream.connections set auth_type = 'password', username = 'u', password = 'hunter2' where name = 'away'")
        .unwrap();
    becomes(
        &lab,
        "a message that fails",
        "select value from jetstream.metrics where name = 'pg_jetstream_connection_failing_messages' and labels ->> 'connection' = 'default'",
        "1",
    );
    lab
}

/// Runs one of the scripts of `data/console`.
fn browse(script: &str, port: u16, variables: &[(&str, &str)]) {
    let paths = Paths::ready().unwrap();
    let folder = repository().join("lab/tests/data/console");
    tools::npm_ci(&paths, &folder).unwrap();
    let chromium = debs::chromium(&paths).unwrap();
    let mut node = tools::node(&paths).unwrap();
    let output = node
        .arg(script)
        .current_dir(folder)
        .env("CONSOLE_URL", format!("http://127.0.0.1:{port}/"))
        .env("CHROMIUM", chromium.program)
        .env("TOKEN", TOKEN)
        .envs(chromium.environment)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_browser_shows_it_and_changes_nothing_without_the_token() {
    let lab = prepared();
    let (_console, port) = console(&lab, Some(TOKEN));
    browse("look.js", port, &[]);
    // Redriven, published, too large again: what happened is in the history.
    let again = "select count(*) from jetstream.history where subject = 's.large' and not success";
    becomes(&lab, "one of them tried again", again, "4");
}

#[test]
fn what_needs_the_token_is_refused_without_it() {
    let lab = prepared();
    let id = lab.value("select min(id) from jetstream.dead_letters").unwrap();
    let (_open, open) = console(&lab, Some(TOKEN));
    let (_closed, closed) = console(&lab, None);
    let guarded = [
        ("GET", "/api/token".to_owned()),
        ("GET", format!("/api/dead-letters/{id}")),
        ("POST", format!("/api/dead-letters/{id}/redrive")),
        ("POST", "/api/pause".to_owned()),
        ("POST", "/api/resume".to_owned()),
    ];
    let right = format!("Bearer {TOKEN}");
    for (method, path) in &guarded {
        for wrong in ["", "Bearer ", "Bearer a-token-for-tests-012345678", TOKEN, "Basic eDp4"] {
            let answer = http(method, open, path, &[("Authorization", wrong)]);
            assert_eq!(answer.status, 401, "{method} {path} with {wrong:?}: {answer:?}");
        }
        // Whoever's page a browser shows, it does not send the token by itself.
        let cookie = format!("token={TOKEN}");
        let elsewhere = [("Origin", "https://elsewhere.example"), ("Cookie", cookie.as_str())];
        assert_eq!(http(method, open, path, &elsewhere).status, 401);
        assert_eq!(
            http(method, closed, path, &[("Authorization", &right)]).status,
            403,
            "{path}"
        );
    }
    assert_eq!(lab.value("select count(*) from jetstream.dead_letters").unwrap(), "4");
    assert_eq!(lab.value("select count(*) from jetstream.control").unwrap(), "0");

    let asked = |method, path: &str| http(method, open, path, &[("Authorization", &right)]);
    assert_eq!(asked("GET", "/api/token").status, 204);
    let letter = asked("GET", &format!("/api/dead-letters/{id}")).json();
    assert!(letter["payload"].as_str().unwrap().contains("very large"));
    assert_eq!(asked("GET", "/api/dead-letters/0").status, 404);
    assert_eq!(
        asked("GET", &format!("/api/dead-letters/{id}/redrive")).status,
        405,
        "a link changes nothing"
    );
    let answer = asked("POST", &format!("/api/dead-letters/{id}/redrive?new_message_id=true"));
    assert!(answer.json()["outbox_id"].as_i64().unwrap() > 0, "{answer:?}");
    assert_eq!(
        asked("POST", &format!("/api/dead-letters/{id}/redrive")).status,
        404,
        "it is gone"
    );
    assert_eq!(asked("POST", "/api/pause").json()["changed"], true);
    assert_eq!(
        lab.value("select paused_by from jetstream.control").unwrap(),
        "console_admin"
    );
    assert_eq!(asked("POST", "/api/resume").json()["changed"], true);
    assert_eq!(asked("POST", "/api/resume").json()["changed"], false);
}

#[test]
fn everybody_sees_figures_and_no_secrets() {
    let mut lab = prepared();
    let (_console, port) = console(&lab, None);
    let overview = get(port, "/api/overview");
    assert_eq!(overview.status, 200, "{overview:?}");
    assert_eq!(overview.json()["dead_letters"].as_array().unwrap().len(), 4);
    let metrics = get(port, "/metrics");
    assert!(metrics.head.contains("content-type: text/plain; version=0.0.4"));
    assert!(
        metrics
            .body
            .contains("# TYPE pg_jetstream_worker_latency_seconds histogram\n")
    );
    assert!(
        metrics
            .body
            .contains("pg_jetstream_worker_stored_total{database=\"postgres\"} 120\n")
    );
    for (path, kind) in [
        ("/", "text/html"),
        ("/console.css", "text/css"),
        ("/console.js", "text/javascript"),
        ("/api/overview", "application/json"),
        ("/metrics", "text/plain"),
        ("/nothing", ""),
    ] {
        let answer = get(port, path);
        assert!(
            answer.head.contains(&format!("content-type: {kind}")) || kind.is_empty(),
            "{answer:?}"
        );
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
        ] {
            assert!(answer.head.contains(header), "{path} without {header}: {}", answer.head);
        }
        assert!(!answer.head.contains("access-control-allow"));
        for secret in SECRETS {
            assert!(!answer.body.contains(secret), "{path} gives {secret} away");
        }
    }

    // The database goes and comes back.
    lab.postgres.stop(lab::postgres::Stop::Fast).unwrap();
    assert_eq!(get(port, "/api/overview").status, 503);
    assert_eq!(get(port, "/health").status, 200);
    lab.postgres.start_again().unwrap();
    eventually(&lab, SOON, "figures again", || {
        Ok(get(port, "/api/overview").status == 200)
    });
}

/// A page of another site whose name is made to resolve to this machine asks under its own name.
#[test]
fn it_answers_under_its_own_names_alone() {
    let lab = Lab::start().unwrap();
    lab.sql("insert into jetstream.dead_letters (outbox_id, connection, subject, payload, message_id, attempts, reason, created_at)
         values (1, 'default', 's', '1', 'id', 1, 'why', now())")
        .unwrap();
    let (_console, port) = console(&lab, Some(TOKEN));
    let routes = [
        ("GET", "/", 200),
        ("GET", "/console.css", 200),
        ("GET", "/console.js", 200),
        ("GET", "/figures.js", 200),
        ("GET", "/charts.js", 200),
        ("GET", "/icon.svg", 200),
        ("GET", "/api/overview", 200),
        ("GET", "/metrics", 200),
        ("GET", "/health", 200),
        ("GET", "/nothing", 404),
        ("GET", "/api/token", 204),
        ("GET", "/api/dead-letters/1", 200),
        ("POST", "/api/pause", 200),
        ("POST", "/api/resume", 200),
        ("POST", "/api/dead-letters/1/redrive", 200),
    ];
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    let foreign = [
        "evil.example",
        "evil.example:8090",
        "localhost.evil.example",
        "192.168.1.5",
        "[fe80::1]:80",
        "0.0.0.0",
    ];
    for (method, path, _) in routes {
        let ask = |target: &str, version: &str, host: &str| {
            request(port, &format!("{method} {target} HTTP/{version}\r\n{host}{token}"))
        };
        for host in foreign {
            let answer = ask(path, "1.1", &format!("Host: {host}\r\n"));
            assert_eq!(answer.status, 403, "{method} {path} as {host}: {answer:?}");
            assert!(answer.body.contains("ALLOWED_HOSTS"), "{answer:?}");
            assert!(answer.head.contains("content-security-policy"), "{answer:?}");
        }
        // The request line may name the host as well, and then its name counts too.
        for target in ["http://evil.example", "http://localhost@evil.example:80"] {
            let answer = ask(&format!("{target}{path}"), "1.1", "Host: localhost\r\n");
            assert!(
                [400, 403].contains(&answer.status),
                "{method} {target}{path}: {answer:?}"
            );
        }
        assert_eq!(
            ask(&format!("http://localhost{path}"), "1.1", "Host: evil.example\r\n").status,
            403
        );
        let twice = "Host: localhost\r\nHost: evil.example\r\n";
        for (version, host) in [
            ("1.1", ""),
            ("1.0", ""),
            ("1.1", "Host: \r\n"),
            ("1.1", twice),
            ("1.1", "Host: ::1\r\n"),
        ] {
            assert_eq!(ask(path, version, host).status, 400, "{method} {path} with {host:?}");
        }
    }
    assert_eq!(lab.value("select count(*) from jetstream.dead_letters").unwrap(), "1");
    assert_eq!(lab.value("select count(*) from jetstream.control").unwrap(), "0");

    for host in [
        "localhost",
        "LOCALHOST.:80",
        "127.0.0.1",
        "[::1]:8090",
        "Console.Example.COM.",
        "console.example.com:443",
    ] {
        for (method, path, status) in routes.into_iter().filter(|(_, path, _)| !path.ends_with("/redrive")) {
            let answer = request(port, &format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{token}"));
            assert_eq!(answer.status, status, "{method} {path} as {host}: {answer:?}");
        }
    }
    let absolute = "GET http://localhost/api/overview HTTP/1.1\r\nHost: localhost\r\n";
    assert_eq!(request(port, absolute).status, 200);
}

/// A large backlog, history and queue do not make a look slow.
#[test]
#[ignore = "measures; cargo test -p lab --test console -- --ignored --nocapture how_long"]
fn how_long_a_look_takes() {
    let lab = prepared();
    let (_console, port) = console(&lab, None);
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql(&insert("s.a", 1, 500_000)).unwrap();
    lab.sql(
        "insert into jetstream.history (published_at, outbox_id, attempts, success, connection, subject, message_id, error)
         select now() - n * interval '80 ms', n, 1, n % 10 <> 0, 'default', 's', n, 'why' from generate_series(1, 1000000) n;
         insert into jetstream.webhook_calls (webhook, message_id, url, method, headers, timeout_ms, max_attempts)
         select 1, n, 'http://localhost/', 'POST', '{}', 1000, 3 from generate_series(1, 500000) n;
         insert into jetstream.dead_letters (outbox_id, connection, subject, message_id, attempts, reason, created_at)
         select n, 'default', 's', n, 1, 'why', now() from generate_series(1, 200000) n",
    )
    .unwrap();
    for path in ["/api/overview", "/metrics"] {
        for _ in 0..5 {
            let before = std::time::Instant::now();
            assert_eq!(get(port, path).status, 200);
            println!("{path}: {:.1} ms", before.elapsed().as_secs_f64() * 1000.0);
        }
    }
}

/// A database that accepts connections and says nothing, as a frozen server does.
#[test]
fn a_silent_database_is_told_of_and_keeps_nobody_waiting() {
    let lab = quick_lab(Lab::builder());
    // What is never accepted is connected all the same.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "postgresql://reader@{}/{}",
        silent.local_addr().unwrap(),
        lab::lab::DATABASE
    );
    let (mut console, port) = console_at(&lab, &url, None);
    std::thread::scope(|scope| {
        for path in ["/api/overview", "/api/overview", "/metrics"] {
            scope.spawn(move || {
                let begin = std::time::Instant::now();
                let answer = get(port, path);
                assert!(
                    answer.status >= 500 && answer.body.contains("no answer within"),
                    "{answer:?}"
                );
                // They wait for one connection, side by side.
                assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
            });
        }
    });
    let mut in_flight = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    std::io::Write::write_all(&mut in_flight, b"GET /api/overview HTTP/1.0\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    console.terminate(Duration::from_secs(15));
}

#[test]
#[ignore = "makes the guide's pictures, docs/img/console*.png: cargo test -p lab --test console -- --ignored pictures"]
fn pictures_for_the_guide() {
    let lab = prepared();
    lab.sql("select jetstream.discard(id) from jetstream.dead_letters where subject = 's.bold'")
        .unwrap();
    let (_console, port) = console(&lab, Some(TOKEN));
    let folder = repository().join("docs/img");
    std::fs::create_dir_all(&folder).unwrap();
    let mut writer = lab.postgres.client(lab::lab::DATABASE).unwrap();
    let running = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0_u64.. {
                if !running.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                let count = 40 + (n % 37) as i64;
                writer.batch_execute(&insert("s.orders.created", 1, count)).unwrap();
                std::thread::sleep(Duration::from_millis(150));
            }
        });
        let seconds = std::env::var("SECONDS").unwrap_or("75".to_owned());
        browse(
            "pictures.js",
            port,
            &[("PICTURES", folder.to_str().unwrap()), ("SECONDS", &seconds)],
        );
        running.store(false, std::sync::atomic::Ordering::Relaxed);
    });
}

//! The container-credential endpoint as bytes on a socket: what SDKs, attackers and slow clients get.

#[path = "support/endpoint.rs"]
mod endpoint;
#[path = "support/http.rs"]
mod http;

use std::io::{self, Write};
use std::time::Duration;

use rolecall::cluster;
use rolecall::fakes::{ROLE, World, denied, pod};
use rolecall::identity::authorization::{Authorization, Required};
use rolecall::identity::evidence::Source;
use rolecall::identity::pods::Pod;
use rolecall::sts;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use self::endpoint::{Lines, WEB, agent, agent_with, serve};
use self::http::{ask, connect, get, read, request};

#[tokio::test]
async fn a_role_without_an_aws_account_has_none_in_its_document() {
    for role in ["arn:minio:iam:::role/app", "arn:aws:iam:::role/ceph", "arn:aws:iam::tenant_1:role/ceph"] {
        let agent = agent_with(|world| world.annotate("web", &[("rolecall.dev/role-arn", role)]));
        let document = agent.get().await.json();
        assert_eq!(document["RoleArn"], role);
        assert_eq!(document.get("AccountId"), None, "{document}");
    }
}

#[tokio::test]
async fn the_document_is_what_every_sdk_parses() {
    let agent = agent();
    let answer = agent.get().await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("application/json"),
        "Go v2 and Kotlin compare the string"
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let document = answer.json();
    let fields: Vec<&String> = document.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["AccessKeyId", "AccountId", "Expiration", "RoleArn", "SecretAccessKey", "Token"]);
    assert!(document.as_object().unwrap().values().all(serde_json::Value::is_string));
    assert_eq!((&document["AccountId"], &document["RoleArn"]), (&"123456789012".into(), &ROLE.into()));
    let expiration = document["Expiration"].as_str().unwrap();
    assert!(expiration.len() == "2026-11-22T05:00:00Z".len() && expiration.ends_with('Z'), "{expiration}");
    assert!(answer.body.len() < 10_000);
}

#[tokio::test]
async fn two_pods_get_their_own_roles() {
    let agent = agent_with(|world| {
        world.add_pod(Pod { asks: true, ..pod("api", "127.0.0.8") });
        world.annotate("api", &[("rolecall.dev/role-arn", "arn:aws:iam::123456789012:role/api")]);
    });
    let api = get("127.0.0.8", agent.address, &request(agent.address)).await;
    assert_eq!(api.json()["RoleArn"], "arn:aws:iam::123456789012:role/api");
    assert_eq!(agent.get().await.json()["RoleArn"], ROLE);
}

#[tokio::test]
async fn a_role_that_has_a_name_is_behind_its_name() {
    let team = "arn:aws:iam::123456789012:role/team";
    let agent = agent_with(|world| {
        let roles = [("rolecall.dev/role-arn", ROLE), ("rolecall.dev/assume-role-arn.team", team)];
        world.annotate("web", &roles);
    });
    let get = async |path: &str| {
        let text = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", agent.address);
        get(WEB, agent.address, &text).await
    };
    assert_eq!(get("/v1/credentials").await.json()["RoleArn"], ROLE);
    assert_eq!(get("/v1/credentials/team").await.json()["RoleArn"], team);
    let lines = agent.lines.wait_for(2).await;
    assert_eq!((&lines[0]["role.name"], &lines[0]["role.arn"]), (&serde_json::Value::Null, &ROLE.into()));
    assert_eq!((&lines[1]["role.name"], &lines[1]["role.arn"]), (&"team".into(), &team.into()));
    let answer = get("/v1/credentials/other").await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "NoRole"));
    let body = answer.json();
    let said = body["message"].as_str().unwrap();
    assert!(said.contains("rolecall.dev/role-arn.other") && !said.contains("team"), "{said}");
    assert!(agent.series("rolecall_requests_total{code=\"ok\",endpoint=\"container-credentials\"}") == 2.0);
}

#[tokio::test]
async fn refusals_have_their_status_both_spellings_and_one_line() {
    let agent = agent_with(|world| {
        world.add_pod(Pod { asks: true, ..pod("plain", "127.0.0.8") });
        world.annotate("plain", &[]);
        world.add_pod(Pod { asks: true, ..pod("typo", "127.0.0.9") });
        world.annotate("typo", &[("rolecall.dev/role-arn", "demo")]);
        world.add_pod(Pod { asks: true, ..pod("future", "127.0.0.10") });
        world.annotate("future", &[("rolecall.dev/role-arn", ROLE), ("rolecall.dev/external-id", "x")]);
        world.add_pod(pod("twin-a", "127.0.0.11"));
        world.add_pod(pod("twin-b", "127.0.0.11"));
    });
    for (from, status, code, says) in [
        ("127.0.0.8", 404, "NoRole", "shop/plain"),
        ("127.0.0.9", 400, "InvalidRole", "shop/typo: rolecall.dev/role-arn: \"demo\""),
        ("127.0.0.10", 400, "InvalidPlan", "rolecall.dev/external-id"),
        ("127.0.0.11", 403, "CallerAmbiguous", "2 live pods"),
        ("127.0.0.1", 403, "CallerNotIdentified", "hostNetwork"),
    ] {
        let answer = get(from, agent.address, &request(agent.address)).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{answer:?}");
        let body = answer.json();
        assert_eq!((&body["code"], &body["message"]), (&body["Code"], &body["Message"]));
        assert!(body["message"].as_str().unwrap().contains(says), "{body}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert!(!answer.body.contains('\n'));
        let identified = !code.starts_with("Caller");
        assert_eq!(answer.header("connection"), if identified { None } else { Some("close") });
    }
    // Every refusal left a line with the same request id.
    let lines = agent.lines.wait_for(5).await;
    assert_eq!(lines[0]["code"], "NoRole");
    assert_eq!(lines[0]["pod.name"], "plain");
    assert!(agent.series("rolecall_refusals_total{code=\"NoRole\"}") == 1.0);
}

#[tokio::test]
async fn the_request_id_of_a_refusal_is_in_its_line() {
    let agent = agent_with(|world| world.annotate("web", &[]));
    let answer = agent.get().await;
    let lines = agent.lines.wait_for(1).await;
    assert_eq!(answer.json()["RequestId"], lines[0]["request_id"]);
}

#[tokio::test]
async fn only_the_exact_path_is_served() {
    let agent = agent();
    for target in [
        "/",
        "/v1/credentials/",
        "/v1/credentials/a/b",
        "/v1/credentials/Team",
        "/v1/credentials/../credentials",
        "/v1/credentials/team?x=1",
        "/v1/credentialsteam",
        "/v1/credentials?x=1",
        "/v1//credentials",
        "/v1/%63redentials",
        "/latest/meta-data/",
    ] {
        let text = format!("GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", agent.address);
        let answer = get(WEB, agent.address, &text).await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "NotFound"), "{target}");
        assert!(answer.header("x-rolecall-instance").is_some(), "`net verify` knows us by it");
    }
    for method in ["POST", "PUT", "HEAD", "DELETE", "OPTIONS"] {
        let text = format!(
            "{method} /v1/credentials HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n\r\n",
            agent.address
        );
        let mut stream = connect(WEB, agent.address).await;
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 405", "{method}");
    }
    let post = request(agent.address).replace("GET", "POST");
    let answer = get(WEB, agent.address, &post).await;
    assert_eq!((answer.code().as_str(), answer.header("allow")), ("MethodNotAllowed", Some("GET")));
}

#[tokio::test]
async fn kept_connections_and_pipelined_requests_are_answered_in_order() {
    let agent = agent();
    let mut stream = connect(WEB, agent.address).await;
    for _ in 0..1000 {
        assert_eq!(ask(&mut stream, &request(agent.address)).await.unwrap().status, 200);
    }
    let wrong = request(agent.address).replace("/v1/credentials", "/wrong");
    stream.write_all(format!("{}{wrong}", request(agent.address)).as_bytes()).await.unwrap();
    assert_eq!(read(&mut stream).await.unwrap().status, 200);
    assert_eq!(read(&mut stream).await.unwrap().status, 404);
    assert_eq!(agent.sts.calls(), 1);
    // One line for the keys, however often they are given, and one for the refusal.
    let lines = agent.lines.wait_for(2).await;
    assert_eq!(lines.iter().map(|line| &line["code"]).collect::<Vec<_>>(), ["ok", "NotFound"]);
    assert_eq!(agent.series("rolecall_requests_total{code=\"ok\""), 1001.0);
    assert_eq!(agent.series("rolecall_cache_lookups_total{result=\"hit\"}"), 1000.0);
}

#[tokio::test]
async fn malformed_requests_get_a_4xx_or_a_closed_connection() {
    let agent = agent();
    for bytes in [
        "nonsense\r\n\r\n".to_owned(),
        "GET /v1/credentials HTTP/9.9\r\n\r\n".to_owned(),
        "GET\0/ HTTP/1.1\r\n\r\n".to_owned(),
        format!("GET /v1/credentials HTTP/1.1\r\nHost: {}\r\nBad header\r\n\r\n", agent.address),
        format!("GET /{} HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(70_000), agent.address),
        format!(
            "POST / HTTP/1.1\r\nHost: {}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            agent.address
        ),
    ] {
        let mut stream = connect(WEB, agent.address).await;
        let _ = stream.write_all(bytes.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let status = String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or("closed").to_owned();
        assert!(
            status.starts_with('4') || status == "closed",
            "{status} for {:?}",
            &bytes[..bytes.len().min(40)]
        );
    }
    assert_eq!(agent.get().await.status, 200, "the others are unharmed");
}

#[tokio::test]
async fn headers_over_the_limit_get_431() {
    let agent = agent();
    for (bytes, ours) in [(9 * 1024, true), (60 * 1024, false)] {
        let text = format!(
            "GET /v1/credentials HTTP/1.1\r\nHost: {}\r\nX-Big: {}\r\n\r\n",
            agent.address,
            "x".repeat(bytes)
        );
        // Far over the limit, hyper answers by itself, without a body, and closes on what it has not read.
        let answer = ask(&mut connect(WEB, agent.address).await, &text).await;
        assert_eq!(answer.as_ref().map_or(431, |answer| answer.status), 431);
        let closes = answer.as_ref().and_then(|answer| answer.header("connection"));
        assert!(answer.is_none() || closes == Some("close"), "{answer:?}");
        let code = answer.filter(|answer| !answer.body.is_empty()).map(|answer| answer.code());
        assert_eq!(code.as_deref() == Some("HeadersTooLarge"), ours);
    }
}

#[tokio::test]
async fn a_slow_head_is_closed_after_two_seconds_and_an_idle_connection_too() {
    let agent = agent();
    let begun = Instant::now();
    let (mut half, mut idle, mut silent) = (
        connect(WEB, agent.address).await,
        connect(WEB, agent.address).await,
        connect(WEB, agent.address).await,
    );
    half.write_all(b"GET /v1/cred").await.unwrap();
    assert_eq!(ask(&mut idle, &request(agent.address)).await.unwrap().status, 200);
    for stream in [&mut half, &mut idle, &mut silent] {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(!rest.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&rest));
    }
    let took = begun.elapsed();
    assert!((Duration::from_millis(1900)..Duration::from_secs(6)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn thousands_of_idle_connections_from_one_pod_leave_the_others_unharmed() {
    let agent = agent_with(|world| world.pod_with_role("flood", "127.0.0.66"));
    let mut flood = Vec::new();
    for _ in 0..2000 {
        flood.push(connect("127.0.0.66", agent.address).await);
    }
    assert_eq!(agent.get().await.status, 200);
    let (mut kept, mut turned_away) = (0, 0);
    for stream in &mut flood {
        // Also who asks when the answer is there already, and who asked before it was.
        match ask(stream, &request(agent.address)).await {
            Some(answer) if answer.status == 200 => kept += 1,
            Some(answer) => {
                assert_eq!((answer.status, answer.code().as_str()), (503, "Overloaded"));
                assert_eq!(answer.header("retry-after"), Some("1"));
                turned_away += 1;
            }
            None => {}
        }
    }
    assert!((1..=241).contains(&kept) && turned_away > 1000, "{kept} kept, {turned_away} turned away");
    assert!(agent.series("rolecall_refusals_total{code=\"Overloaded\"}") >= f64::from(turned_away));
}

#[tokio::test]
async fn a_request_that_must_wait_is_held_to_nine_tenths_of_a_second() {
    for (set_up, code) in [
        (
            Box::new(|world: &World| world.sts.fail(Some(sts::Error::Away("test".into()))))
                as Box<dyn Fn(&World)>,
            "StsUnavailable",
        ),
        (Box::new(|world: &World| world.sts.slow(Duration::from_secs(3))), "StsUnavailable"),
        (
            Box::new(|world: &World| {
                world.sts.fail(Some(sts::Error::Throttled { code: "Throttling".into() }))
            }),
            "StsThrottled",
        ),
        (
            Box::new(|world: &World| world.cluster.fail(Some(cluster::Error::Away("test".into())))),
            "KubeUnavailable",
        ),
        (
            Box::new(|world: &World| world.add_pod(Pod { terminating: true, ..pod("web", WEB) })),
            "PodNotKnownYet",
        ),
    ] {
        let agent = agent_with(set_up);
        let begun = Instant::now();
        let answer = agent.get().await;
        let took = begun.elapsed();
        assert_eq!((answer.status, answer.code().as_str()), (503, code));
        assert_eq!(answer.header("retry-after"), Some("1"));
        // On a noisy machine; exactly 0.9 s on the paused clock of the cache's own tests.
        assert!((Duration::from_millis(800)..Duration::from_secs(3)).contains(&took), "{code}: {took:?}");
    }
}

#[tokio::test]
async fn a_slow_sts_on_a_cold_miss_costs_one_call_and_the_retry_finds_it() {
    let agent = agent_with(|world| world.sts.slow(Duration::from_secs(3)));
    let mut tries = 1;
    while agent.get().await.status != 200 {
        tries += 1;
    }
    assert!((2..=5).contains(&tries), "{tries}");
    assert_eq!((agent.sts.calls(), agent.cluster.tokens().len()), (1, 1));
}

#[tokio::test]
async fn a_hundred_cold_callers_of_a_hundred_identities_do_not_wait_for_each_other() {
    let agent = agent_with(|world| {
        for n in 1..=100 {
            world.pod_with_role(&format!("p{n}"), &format!("127.0.1.{n}"));
        }
        world.sts.slow(Duration::from_millis(300));
    });
    let from: Vec<String> = (1..=100).map(|n| format!("127.0.1.{n}")).collect();
    let text = request(agent.address);
    let answers =
        futures_util::future::join_all(from.iter().map(|from| get(from, agent.address, &text))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(agent.sts.calls(), 101, "theirs, and that of `web`, fetched ahead");
}

#[tokio::test]
async fn a_removed_or_changed_annotation_counts_at_once() {
    let agent = agent_with(|world| world.pod_with_role("other", "127.0.0.8"));
    let mut kept = connect(WEB, agent.address).await;
    assert_eq!(ask(&mut kept, &request(agent.address)).await.unwrap().status, 200);
    agent.sts.fail(Some(denied()));
    agent.pods.delete(&pod("other", "127.0.0.8").uid);
    assert_eq!(
        ask(&mut kept, &request(agent.address)).await.unwrap().status,
        200,
        "cached, whatever STS says now"
    );
    agent.pods.delete(&pod("web", WEB).uid);
    let gone = ask(&mut kept, &request(agent.address)).await.unwrap();
    assert_eq!(
        (gone.status, gone.code().as_str()),
        (403, "CallerNotIdentified"),
        "the kept connection's pod has gone"
    );
}

#[tokio::test]
async fn where_a_value_is_required_only_that_value_is_accepted() {
    let lines = Lines::default();
    let word = Authorization { required: Required::Word("the-value".into()), ..Authorization::default() };
    let world = World::with_authorization(Source::Address, word, lines.clone());
    world.pod_with_role("web", WEB);
    let agent = serve(world, lines);
    let with = |value: &str| {
        request(agent.address).replace("Accept:", &format!("Authorization: {value}\r\nAccept:"))
    };
    assert_eq!(get(WEB, agent.address, &with("the-value")).await.status, 200);
    assert_eq!(get(WEB, agent.address, &with("Bearer the-value")).await.status, 200);
    assert_eq!(agent.get().await.code(), "AuthorizationRequired");
    for wrong in ["the-valuf", "the-value2", "", "bearer", " x \u{7f}"] {
        // Bytes that no header may hold get hyper's own answer, or end the connection.
        let answer = ask(&mut connect(WEB, agent.address).await, &with(wrong)).await;
        assert!(
            answer.as_ref().is_none_or(|answer| [400, 401].contains(&answer.status)),
            "{wrong:?}: {answer:?}"
        );
    }
    agent.audit.flush();
    let lines = format!("{:?}", agent.lines.wait_for(4).await);
    assert!(!lines.contains("the-value") && !lines.contains("the-secret"), "{lines}");
}

/// A stdout that nobody reads: the first write never returns.
struct Unread;

impl Write for Unread {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        loop {
            std::thread::park();
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_stdout_that_nobody_reads_delays_no_answer() {
    let world = World::writing_to(Unread);
    world.pod_with_role("web", WEB);
    let agent = serve(world, Lines::default());
    let mut stream = connect(WEB, agent.address).await;
    let wrong = request(agent.address).replace("/v1/credentials", "/wrong");
    let mut slowest = Duration::ZERO;
    while agent.series("rolecall_log_lines_dropped_total") < 10.0 {
        let begun = Instant::now();
        assert_eq!(ask(&mut stream, &wrong).await.unwrap().status, 404);
        slowest = slowest.max(begun.elapsed());
        agent.audit.flush();
    }
    assert_eq!(agent.get().await.status, 200);
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}

#[tokio::test]
async fn a_drain_finishes_the_request_under_way_and_takes_no_new_one() {
    let agent = agent_with(|world| world.sts.slow(Duration::from_millis(500)));
    let address = agent.address;
    let mut stream = connect(WEB, address).await;
    stream.write_all(request(address).as_bytes()).await.unwrap();
    // Its flight is under way: the question has been read.
    while agent.sts.calls() == 0 {
        tokio::task::yield_now().await;
    }
    let (drained, answer) = tokio::join!(agent.trigger.finish(), read(&mut stream));
    assert_eq!((drained, answer.unwrap().status), (true, 200));
    assert!(read(&mut stream).await.is_none(), "closed after its answer");
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_peer_that_never_reads_fills_its_own_window_and_is_dropped() {
    let agent = agent();
    let stream = connect(WEB, agent.address).await;
    let text = request(agent.address).repeat(7);
    let mut sent = 0;
    let reset = timeout(Duration::from_secs(20), async {
        loop {
            stream.writable().await.unwrap();
            match stream.try_write(text.as_bytes()) {
                Ok(bytes) => sent += bytes,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            // What the agent answers must stay in the kernel's buffers, which are bounded.
            assert!(sent < 20 << 20, "the agent keeps answers that nobody takes");
            tokio::task::yield_now().await;
        }
    });
    reset.await.expect("the agent lets go of it");
    assert_eq!(agent.get().await.status, 200);
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_a_drain() {
    let agent = agent();
    let (mut kept, _silent) = (connect(WEB, agent.address).await, connect(WEB, agent.address).await);
    assert_eq!(ask(&mut kept, &request(agent.address)).await.unwrap().status, 200);
    let begun = Instant::now();
    assert!(agent.trigger.finish().await);
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert!(read(&mut kept).await.is_none(), "closed, with nothing said");
}

#[tokio::test]
async fn a_flood_on_one_connection_leaves_the_others_unharmed() {
    let agent = agent_with(|world| world.pod_with_role("flood", "127.0.0.66"));
    let (mut reading, mut writing) = connect("127.0.0.66", agent.address).await.into_split();
    let text = request(agent.address).repeat(1000);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { while writing.write_all(text.as_bytes()).await.is_ok() {} });
    tasks.spawn(async move {
        let mut bytes = [0; 64 * 1024];
        while reading.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    });
    while agent.series("rolecall_requests_total{code=\"ok\"") < 1000.0 {
        tokio::task::yield_now().await;
    }
    let begun = Instant::now();
    assert_eq!(agent.get().await.status, 200);
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    assert_eq!(agent.lines.wait_for(2).await.len(), 2, "the same keys are counted, not written");
}

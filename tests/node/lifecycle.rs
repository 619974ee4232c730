//! The agent as a process: start, probes, pages, proof by `net verify`, end; and that it tells nobody a secret.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use rolecall::emulator::Fault;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

use crate::agent::{Agent, ROLECALL, SOON, until};
use crate::http;
use crate::net::{self, text};
use crate::netns::Node;
use crate::tenant::Shape;
use crate::world::{V4, arn, on_the_node};

/// Where the node's own agent is scraped.
const METRICS: &str = "127.0.0.1:9903";

#[test]
fn verify_proves_a_running_agent_and_misses_a_stopped_one() {
    let Some(node) = Node::new("verified") else { return };
    net::install(&node, &[]);
    // It needs no API server to be on its addresses.
    let kubeconfig = tempfile::NamedTempFile::new().unwrap();
    let nowhere = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "none",
        "clusters": [{"name": "none", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "none", "user": {"token": "none"}}],
        "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
    });
    fs::write(&kubeconfig, nowhere.to_string()).unwrap();
    node.run(async || {
        let mut agent = Agent::start(&node, "verified", kubeconfig.path(), &[]);
        agent.until_page("/livez", |status, _| status == 200).await;
        let verify = || net::net(&node, "verify", &["--local-socket", agent_socket("verified")]);
        let proof = verify();
        assert!(proof.status.success(), "{}", text(&proof));
        assert_eq!(text(&proof).matches("our agent answers").count(), 3, "{}", text(&proof));

        agent.signal(Signal::SIGTERM);
        assert_eq!(agent.ended().await.code(), Some(0), "{}", agent.output());
        assert!(!agent.socket.exists());
        let proof = verify();
        assert_eq!(proof.status.code(), Some(1), "{}", text(&proof));
        assert!(text(&proof).contains("cannot ask the agent who it is"), "{}", text(&proof));
        assert!(!agent.probe("live").status.success());
    });
}

fn agent_socket(name: &str) -> &'static str {
    Box::leak(format!("/run/{name}.sock").into_boxed_str())
}

#[test]
fn sigterm_answers_the_requests_under_way_and_leaves_with_0() {
    on_the_node("drained", async |case| {
        let (mut agent, to) = case
            .agent("drained", &case.kubeconfig("drained"), &["--sts-endpoint-url", &case.world.sts])
            .await;
        case.account("web").await;
        case.fault("web", Fault { delay_ms: 400, ..Fault::default() });
        let pod = case.pod_on("drained", "web", Shape::Routed).await;
        let mut idle = pod.connect(to);
        let nothing = format!("GET /nothing HTTP/1.1\r\nHost: {to}\r\n\r\n");
        assert_eq!(http::ask(&mut idle, &nothing).await.unwrap().status, 404);
        let mut waiting = pod.connect(to);
        waiting.write_all(http::request(to).as_bytes()).await.unwrap();
        until(SOON, || agent.output(), async || (case.calls("web") == 1).then_some(())).await;
        agent.signal(Signal::SIGTERM);
        let answer = timeout(SOON, http::read(&mut waiting)).await.unwrap().expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(agent.ended().await.code(), Some(0), "{}", agent.output());
        assert!(http::read(&mut idle).await.is_none());
        assert!(agent.output().contains("\"drained\":true"), "{}", agent.output());
    });
}

#[test]
fn a_second_signal_leaves_at_once() {
    on_the_node("second-signal", async |case| {
        let (mut agent, to) =
            case.agent("second", &case.kubeconfig("second"), &["--sts-endpoint-url", &case.world.sts]).await;
        // STS does not answer, so the question is held.
        case.account("web").await;
        case.fault("web", Fault { delay_ms: 20_000, ..Fault::default() });
        let pod = case.pod_on("second", "web", Shape::Routed).await;
        agent.until_ready().await;
        let mut asked = pod.connect(to);
        asked.write_all(http::request(to).as_bytes()).await.unwrap();
        until(SOON, || agent.output(), async || (case.calls("web") == 1).then_some(())).await;
        let mut waiting = pod.connect(to);
        let begun = Instant::now();
        waiting.write_all(http::request(to).as_bytes()).await.unwrap();
        agent.signal(Signal::SIGTERM);
        until(SOON, || agent.output(), async || agent.output().contains("\"draining\"").then_some(())).await;
        agent.signal(Signal::SIGINT);
        let status = agent.ended().await;
        assert_eq!((status.code(), status.signal()), (Some(143), None), "{}", agent.output());
        assert!(
            begun.elapsed() < Duration::from_millis(900),
            "it waited for the request: {:?}",
            begun.elapsed()
        );
    });
}

#[test]
fn no_page_and_no_line_holds_a_secret() {
    on_the_node("secrets", async |case| {
        let to = V4.parse().unwrap();
        case.account("web").await;
        case.account_with("api", json!({"rolecall.dev/role-arn": arn("secrets", "web")})).await;
        let (pod, denied) = (case.pod("web").await, case.pod("api").await);
        let document = pod.credentials(to).await;
        denied.until(to, SOON, |answer| answer.code() == "StsDenied").await;
        // What a caller sends is a secret too: of a pod that needs a token, and of one that sends it by mistake.
        let sent = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl";
        for path in ["/v1/credentials", "/nothing"] {
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: {V4}\r\nAuthorization: Bearer {sent}\r\n\r\n");
            http::ask(&mut pod.connect(to), &request).await.unwrap();
        }
        let (_, status) = case.world.agent.page("/statusz").await.unwrap();
        let metrics = scrape("/metrics").await;
        assert_eq!(metrics.status, 200);
        let key = document["AccessKeyId"].as_str().unwrap();
        for (page, text) in
            [("/statusz", &status), ("/metrics", &metrics.body), ("log", &case.world.agent.output())]
        {
            assert_eq!(text.contains(key), page != "/metrics", "the key's id is no secret: {page}: {text}");
            for field in ["SecretAccessKey", "Token"] {
                assert!(!text.contains(document[field].as_str().unwrap()), "{field} in {page}: {text}");
            }
            assert!(!text.contains("eyJ"), "a token in {page}: {text}");
        }
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert!(status["pods"].as_array().unwrap().iter().any(|shown| shown["uid"] == pod.uid.as_str()));

        assert!(metrics.body.contains("rolecall_requests_total{code=\"ok\""), "{}", metrics.body);
        assert_eq!(scrape("/v1/credentials").await.status, 404);
        for path in ["/metrics", "/statusz", "/livez"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {V4}\r\n\r\n");
            let answer = http::ask(&mut pod.connect(to), &request).await.unwrap();
            assert_eq!((answer.status, &*answer.code()), (404, "NotFound"), "{path}");
        }
    });
}

async fn scrape(path: &str) -> http::Answer {
    let to = METRICS.parse().unwrap();
    http::get("127.0.0.1", to, &format!("GET {path} HTTP/1.1\r\nHost: {METRICS}\r\n\r\n")).await
}

#[test]
fn bad_flags_are_64_with_every_mistake() {
    let output = Command::new(ROLECALL)
        .args([
            "agent",
            "--listen",
            "0.0.0.0:9902",
            "--listen",
            "here",
            "--session-duration",
            "1",
            "--identity",
            "guess",
        ])
        .args(["--metrics-listen", "9903", "--sts-endpoint-url", "sts", "--sts-ca-bundle", "/nonexistent"])
        .env_remove("ROLECALL_NODE_NAME")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8_lossy(&output.stderr);
    let mistakes = [
        "node-name",
        "listen",
        "metrics-listen",
        "identity",
        "session-duration",
        "sts-endpoint-url",
        "sts-ca-bundle",
    ];
    for flag in mistakes {
        assert!(said.contains(&format!("error: --{flag}: ")), "{flag}: {said}");
    }
    assert_eq!(said.lines().count(), mistakes.len() + 1, "two listeners are wrong: {said}");
    let unknown = Command::new(ROLECALL).args(["agent", "--node-name", "n", "--colour"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(64));
}

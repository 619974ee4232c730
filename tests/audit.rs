//! The audit lines: who was given which keys, who was refused and why, and how often that is written.
// clippy.toml allows it in tests, and does not know their helpers for such.

#[path = "support/endpoint.rs"]
mod endpoint;
#[path = "support/http.rs"]
mod http;

use rolecall::fakes::{ROLE, account, pod};
use rolecall::identity::pods::Pod;
use serde_json::Value;

use self::endpoint::{Agent, WEB, agent, agent_with};
use self::http::{get, request};

/// The given fields of a line.
fn fields<'a>(line: &'a Value, names: &[&str]) -> Vec<&'a str> {
    names.iter().map(|name| line[name].as_str().unwrap_or_else(|| panic!("no {name} in {line}"))).collect()
}

/// `not-before` now: the next question brings other keys.
fn revoke(agent: &Agent, name: &str) {
    let annotations = [("rolecall.dev/role-arn", ROLE.to_owned()), ("rolecall.dev/not-before", now())];
    let annotations = annotations.map(|(name, value)| (name.to_owned(), value)).into();
    agent.accounts.apply(&account(name), &format!("uid-{name}"), &annotations);
}

fn now() -> String {
    rolecall::time::now().to_string()
}

#[tokio::test]
async fn a_pod_that_is_given_keys_has_a_line_with_all_that_joins_it_to_cloudtrail() {
    let agent = agent();
    let document = agent.get().await.json();
    let lines = agent.lines.wait_for(1).await;
    let names = ["target", "code", "pod.namespace", "pod.name", "pod.uid", "service_account"];
    assert_eq!(fields(&lines[0], &names), ["audit", "ok", "shop", "web", "uid-web", "web"]);
    let key = document["AccessKeyId"].as_str().unwrap();
    let names = ["role.arn", "access_key_id", "token.id", "sts.request_id", "evidence"];
    assert_eq!(fields(&lines[0], &names), [ROLE, key, "jti-of-uid-web", "sts-request-1", "address"]);
    assert!(lines[0]["client.addr"].as_str().unwrap().starts_with(&format!("{WEB}:")));
    assert_eq!(lines[0]["status"], 200);
}

#[tokio::test]
async fn a_pod_has_one_line_for_each_set_of_keys_over_any_number_of_connections() {
    let agent = agent();
    for _ in 0..50 {
        assert_eq!(agent.get().await.status, 200);
    }
    revoke(&agent, "web");
    for _ in 0..50 {
        assert_eq!(agent.get().await.status, 200);
    }
    assert_eq!(agent.sts.calls(), 2);
    // A third pair of lines shows that nothing else is on its way.
    revoke(&agent, "web");
    agent.get().await;
    let lines = agent.lines.wait_for(3).await;
    let keys: Vec<&str> = lines.iter().flat_map(|line| fields(line, &["access_key_id"])).collect();
    assert_eq!(keys, ["ASIA0001.web", "ASIA0002.web", "ASIA0003.web"]);
}

#[tokio::test]
async fn two_pods_of_one_plan_have_a_line_each() {
    let agent = agent_with(|world| {
        world.add_pod(Pod { service_account: account("web"), ..pod("second", "127.0.0.8") });
    });
    for from in [WEB, "127.0.0.8", WEB, "127.0.0.8"] {
        assert_eq!(get(from, agent.address, &request(agent.address)).await.status, 200);
    }
    revoke(&agent, "web");
    agent.get().await;
    let lines = agent.lines.wait_for(3).await;
    let given: Vec<Vec<&str>> =
        lines.iter().map(|line| fields(line, &["pod.name", "access_key_id"])).collect();
    assert_eq!(given, [["web", "ASIA0001.web"], ["second", "ASIA0001.web"], ["web", "ASIA0002.web"]]);
}

#[tokio::test]
async fn a_refusal_has_a_line_with_its_reason_and_its_repeats_carry_that_lines_request_id() {
    let agent = agent_with(|world| world.annotate("web", &[]));
    let first = agent.get().await.json();
    for _ in 0..9 {
        assert_eq!(agent.get().await.json()["RequestId"], first["RequestId"]);
    }
    agent.audit.flush();
    let lines = agent.lines.wait_for(2).await;
    let names = ["code", "pod.name", "service_account", "request_id", "reason"];
    let id = first["RequestId"].as_str().unwrap();
    let reason = first["message"].as_str().unwrap();
    for line in &lines {
        assert_eq!(fields(line, &names), ["NoRole", "web", "web", id, reason]);
    }
    assert_eq!((&lines[0]["repeats"], &lines[1]["repeats"]), (&Value::Null, &9.into()));
}

#[tokio::test]
async fn a_refusal_is_written_while_another_pod_floods() {
    let agent = agent_with(|world| {
        world.annotate("web", &[]);
        world.add_pod(pod("second", "127.0.0.8"));
        world.annotate("second", &[]);
    });
    for _ in 0..500 {
        agent.get().await;
    }
    assert_eq!(get("127.0.0.8", agent.address, &request(agent.address)).await.code(), "NoRole");
    let lines = agent.lines.wait_for(2).await;
    assert_eq!(fields(&lines[0], &["pod.name"]), ["web"]);
    assert_eq!(fields(&lines[1], &["pod.name"]), ["second"]);
}

#[tokio::test]
async fn no_line_holds_a_secret() {
    let agent = agent();
    let secret = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzZWNyZXQifQ.c2VjcmV0";
    let asked = [
        request(agent.address),
        request(agent.address).replace("Accept:", &format!("Authorization: {secret}\r\nAccept:")),
        request(agent.address).replace("/v1/credentials", &format!("/{secret}")),
        request(agent.address).replace("Host: ", &format!("Host: {secret}")),
    ];
    for text in asked {
        get(WEB, agent.address, &text).await;
    }
    agent.audit.flush();
    let lines = format!("{:?}", agent.lines.wait_for(3).await);
    for secret in ["eyJ", "c2VjcmV0", "the-secret-key", "the-session-token"] {
        assert!(!lines.contains(secret), "{secret} in {lines}");
    }
}

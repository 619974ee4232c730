//! Instance metadata on real parts: pods with no variable at all get their own roles, and the node's role stays the node's.
//!
//! Real are the same parts as in `node.rs`; the redirect is in force, and beyond the node's uplink its own instance metadata waits.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/http.rs"]
mod http;
#[path = "support/in_pods.rs"]
mod in_pods;
#[path = "support/net.rs"]
mod net;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/node_metadata.rs"]
mod node_metadata;
#[path = "support/process.rs"]
mod process;
#[path = "support/sdk.rs"]
mod sdk;
#[path = "support/tenant.rs"]
mod tenant;
#[path = "support/world.rs"]
mod world;

use std::net::SocketAddr;

use nix::sys::signal::Signal;
use rolecall::emulator::Fault;
use serde_json::json;
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};

use self::agent::Agent;
use self::http::Answer;
use self::in_pods::{a_pod_each, every_sdk_has_its_pods_role, has_identity, identities, its_own};
use self::netns::NODE_IP;
use self::node_metadata::{Metadata, NODE_KEY};
use self::sdk::Environment;
use self::tenant::{RunningPod, Shape};
use self::world::{Case, on_the_node, session_arn};

const INSTALL: &[&str] =
    &["--imds-listen", "169.254.170.2:9904,[fd00:ec2::23]:9904", "--metadata-guard", "enforce"];
const AGENT: &[&str] = &[
    "--imds-listen",
    "169.254.170.2:9904,[fd00:ec2::23]:9904",
    "--imds-passthrough-namespace",
    "system,ailing",
];
const NAMESPACES: &[&str] =
    &["routed", "bridged", "ipv6", "slow", "tokens", "upgraded", "refused", "system", "ailing", "host"];

const REAL: &str = "169.254.169.254:80";
const LIST: &str = "/latest/meta-data/iam/security-credentials/";

/// Nothing of ours and nothing of AWS's but where the test's STS is; the region is no credential.
fn environment(case: &Case) -> Environment {
    Environment::new().without("AWS_EC2_METADATA_DISABLED").region("eu-central-1").sts(&case.world.sts)
}

/// One request from inside the pod, as an SDK writes it.
async fn ask(pod: &RunningPod, to: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let at: SocketAddr = to.parse().unwrap();
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", to.trim_end_matches(":80"));
    http::ask(&mut pod.connect(at), &request).await.expect("an answer")
}

async fn token(pod: &RunningPod, to: &str) -> String {
    let ttl = [("X-aws-ec2-metadata-token-ttl-seconds", "21600")];
    let answer = ask(pod, to, "PUT", "/latest/api/token", &ttl).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

async fn read(pod: &RunningPod, to: &str, path: &str, token: &str) -> Answer {
    ask(pod, to, "GET", path, &[("X-aws-ec2-metadata-token", token)]).await
}

/// The node's own service, which one test at a time has for itself: what it was asked is that test's doing.
async fn real(case: &Case) -> MappedMutexGuard<'static, Metadata> {
    static REAL: Mutex<Option<Metadata>> = Mutex::const_new(None);
    let real = REAL.lock().await;
    MutexGuard::map(real, |real| {
        real.get_or_insert_with(|| {
            let outside = case.world.node.outside();
            let metadata = Metadata::start(&outside);
            std::mem::forget(outside);
            metadata
        })
    })
}

#[test]
fn every_sdk_without_any_variable_has_its_role_in_a_routed_pod() {
    on_the_node("routed", async |case| {
        every_sdk_has_its_pods_role(case, Shape::Routed, &environment(case)).await
    });
}

#[test]
fn every_sdk_without_any_variable_has_its_role_behind_a_bridge() {
    on_the_node("bridged", async |case| {
        every_sdk_has_its_pods_role(case, Shape::Bridged, &environment(case)).await
    });
}

#[test]
fn every_sdk_that_asks_instance_metadata_over_ipv6_has_its_role() {
    on_the_node("ipv6", async |case| {
        let by = environment(case).with("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6");
        every_sdk_has_its_pods_role(case, Shape::Routed, &by).await;
    });
}

#[test]
fn every_sdk_gets_over_an_sts_that_takes_a_second_without_asking_twice() {
    on_the_node("slow", async |case| {
        // First of all: a pod is no sooner there than its role is asked for.
        for sdk in sdk::programs() {
            case.fault(&sdk.name, Fault { delay_ms: 1000, ..Fault::default() });
        }
        let pods = a_pod_each(case).await;
        for (sdk, output) in identities(&environment(case), its_own(&pods)) {
            has_identity(sdk, &output, &session_arn(case.namespace, &sdk.name));
            assert_eq!(case.calls(&sdk.name), 1, "{}", sdk.name);
        }
    });
}

#[test]
fn a_token_of_one_pod_is_no_token_of_another() {
    on_the_node("tokens", async |case| {
        case.account("web").await;
        let (one, other) = (case.pod("web").await, case.pod("web").await);
        for at in [REAL, "[fd00:ec2::254]:80"] {
            let token = token(&one, at).await;
            assert_eq!(read(&one, at, LIST, &token).await.body, "tokens-web", "{at}");
            // Of the same ServiceAccount, and so of the same role.
            let refused = read(&other, at, LIST, &token).await;
            assert_eq!(
                (refused.status, refused.body.split(':').next().unwrap()),
                (401, "MetadataTokenInvalid")
            );
        }
        let version_1 = ask(&one, REAL, "GET", LIST, &[]).await;
        assert_eq!(version_1.status, 401);
    });
}

#[test]
fn tokens_outlive_the_agent_and_end_with_its_key() {
    on_the_node("upgraded", async |case| {
        case.account("web").await;
        let pod = case.pod_on("upgraded", "web", Shape::Routed).await;
        let kubeconfig = case.kubeconfig("upgraded");
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let at = format!("{NODE_IP}:9914");
        let start = async |name: &str| {
            let listen = format!("{NODE_IP}:9912");
            let args = ["--listen", &listen, "--imds-listen", &at, "--metrics-listen", "127.0.0.1:0"];
            let args = [&args[..], &["--sts-endpoint-url", &case.world.sts]].concat();
            let command = case.world.node.command(agent::ROLECALL);
            let agent = Agent::start_by(command, name, socket.to_str().unwrap(), &kubeconfig, &args);
            agent.until_ready().await;
            agent
        };
        let mut first = start("upgraded").await;
        let token = token(&pod, &at).await;
        assert_eq!(read(&pod, &at, LIST, &token).await.body, "upgraded-web");
        first.signal(Signal::SIGTERM);
        first.ended().await;
        drop(first);

        let mut second = start("upgraded").await;
        assert_eq!(read(&pod, &at, LIST, &token).await.body, "upgraded-web", "{}", second.output());
        second.signal(Signal::SIGTERM);
        second.ended().await;
        drop(second);

        std::fs::remove_file(directory.path().join("imds.key")).unwrap();
        let third = start("upgraded").await;
        assert_eq!(read(&pod, &at, LIST, &token).await.status, 401);
        third.has_told_no_secret();
        assert!(!third.output().contains(&token));
    });
}

#[test]
fn a_pod_that_is_refused_gets_nothing_of_the_node() {
    on_the_node("refused", async |case| {
        let real = real(case).await;
        case.account_with("no-role", json!({})).await;
        case.account_with("wrong", json!({"rolecall.dev/role-arn": "web"})).await;
        case.account("web").await;
        case.fault("web", Fault { code: Some("AccessDenied".into()), ..Fault::default() });
        let before = real.asked().len();
        for (account, code) in [("no-role", "NoRole"), ("wrong", "InvalidRole"), ("web", "StsDenied")] {
            let pod = case.pod(account).await;
            for (sdk, output) in identities(&environment(case), |_| &pod) {
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(!output.status.success(), "{account}, {}: {said}", sdk.name);
            }
            let told = |line: &serde_json::Value| line["code"] == code && line["endpoint"] == "imds";
            case.world.agent.line_about(&pod.uid, told).await;
        }
        assert_eq!(real.asked().len(), before);
    });
}

#[test]
fn system_pods_without_a_role_of_their_own_reach_the_node_and_no_others() {
    on_the_node("system", async |case| {
        let real = real(case).await;
        case.account_with("cni", json!({})).await;
        case.account_with("wrong", json!({"rolecall.dev/role-arn": "web"})).await;
        case.account("web").await;

        let cni = case.pod("cni").await;
        let theirs = token(&cni, REAL).await;
        assert_eq!(theirs, node_metadata::TOKEN, "the real service's own");
        assert_eq!(read(&cni, REAL, "/latest/meta-data/mac", &theirs).await.body, "02:00:00:00:00:01");
        let document = read(&cni, REAL, &format!("{LIST}node"), &theirs).await.json();
        assert_eq!(document["AccessKeyId"], NODE_KEY);
        assert_eq!(read(&cni, REAL, "/latest/nothing", &theirs).await.status, 404);
        let asked = real.asked();
        let last = asked.last().unwrap().to_lowercase();
        assert!(last.contains(&format!("x-aws-ec2-metadata-token: {theirs}")), "{last}");
        let version_1 = ask(&cni, REAL, "GET", LIST, &[]).await;
        assert_eq!(version_1.status, 401);
        assert_eq!(real.asked().len(), asked.len(), "without a token nothing goes on");
        let forged = ask(&cni, REAL, "GET", LIST, &[("X-Forwarded-For", "10.0.0.1")]).await;
        assert_eq!(forged.status, 403);
        let passed = case.world.agent.line_about(&cni.uid, |line| line["code"] == "PassedThrough").await;
        assert_eq!(passed["reason"], "PUT /latest/api/token");
        assert_eq!((&passed["evidence"], &passed["pod.name"]), (&"kernel".into(), &(*cni.name).into()));

        // A role of one's own is the only one; one that is wrong never turns into the node's.
        let before = real.asked().len();
        let web = case.pod("web").await;
        let ours = token(&web, REAL).await;
        assert_eq!(read(&web, REAL, LIST, &ours).await.body, "system-web");
        assert_eq!(read(&web, REAL, "/latest/meta-data/mac", &ours).await.status, 404);
        let wrong = case.pod("wrong").await;
        let token = token(&wrong, REAL).await;
        assert_eq!(read(&wrong, REAL, LIST, &token).await.status, 400);
        assert_eq!(read(&wrong, REAL, &format!("{LIST}node"), &token).await.status, 400);
        for (account, annotation, status) in
            [("misspelt", "rolecall.dev/rol-arn", 400), ("named", "rolecall.dev/role-arn.team", 404)]
        {
            case.account_with(account, json!({annotation: session_arn(case.namespace, account)})).await;
            let pod = case.pod(account).await;
            let token = self::token(&pod, REAL).await;
            assert_eq!(read(&pod, REAL, LIST, &token).await.status, status, "{account}");
        }
        assert_eq!(real.asked().len(), before);
    });
}

/// SDKs would take a PUT that fails for a service of version 1.
#[test]
fn while_the_node_hangs_up_or_throttles_a_token_is_given_all_the_same() {
    on_the_node("ailing", async |case| {
        let real = real(case).await;
        case.account_with("cni", json!({})).await;
        let cni = case.pod("cni").await;
        let (hangs_up, throttles) = (|on: bool| real.hang_up(on), |on: bool| real.throttle(on));
        let ills: [&dyn Fn(bool); 2] = [&hangs_up, &throttles];
        for ill in ills {
            ill(true);
            let ours = token(&cni, REAL).await;
            let away = read(&cni, REAL, LIST, node_metadata::TOKEN).await;
            ill(false);
            assert_ne!(ours, node_metadata::TOKEN);
            assert_eq!(away.status, 503);
            // At this SDKs ask for another one.
            assert_eq!(read(&cni, REAL, LIST, &ours).await.status, 401);
            assert_eq!(token(&cni, REAL).await, node_metadata::TOKEN);
        }
        let stood_in = case.world.agent.line_about(&cni.uid, |line| line["code"] == "StoodIn").await;
        assert_eq!((&stood_in["status"], &stood_in["endpoint"]), (&200.into(), &"imds".into()));
    });
}

#[test]
fn the_host_itself_asks_the_node() {
    on_the_node("host", async |case| {
        let _real = real(case).await;
        let request = format!("GET {LIST} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
        let answer = http::get("0.0.0.0", REAL.parse().unwrap(), &request).await;
        assert_eq!(answer.body, "node");
    });
}

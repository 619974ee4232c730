//! Unchanged SDKs in pods: each finds its role, and what the agent answers in trouble makes it wait, or stop.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rolecall::emulator::Fault;
use serde_json::json;

use crate::in_pods::{a_pod_each, every_sdk_has_its_pods_role, has_identity, identities, its_own};
use crate::netns::NODE_IP;
use crate::sdk::{self, Environment};
use crate::tenant::{RunningPod, Shape};
use crate::world::{Case, V4, on_the_node, session_arn};

const IPV4: &str = "http://169.254.170.23:9902/v1/credentials";
const IPV6: &str = "http://[fd00:ec2::23]:9902/v1/credentials";

/// Nothing but where the test's STS is; the region is no credential.
fn environment(case: &Case) -> Environment {
    Environment::new().region("eu-central-1").sts(&case.world.sts)
}

#[test]
fn every_sdk_in_a_routed_pod_has_the_role_of_its_service_account() {
    on_the_node("routed", async |case| {
        every_sdk_has_its_pods_role(case, Shape::Routed, &environment(case).full_uri(IPV4)).await;
    });
}

#[test]
fn every_sdk_behind_a_bridge_has_the_role_of_its_service_account() {
    on_the_node("bridged", async |case| {
        every_sdk_has_its_pods_role(case, Shape::Bridged, &environment(case).full_uri(IPV4)).await;
    });
}

#[test]
fn every_sdk_has_its_role_over_ipv6() {
    on_the_node("ipv6", async |case| {
        every_sdk_has_its_pods_role(case, Shape::Routed, &environment(case).full_uri(IPV6)).await;
    });
}

#[test]
fn every_sdk_has_its_role_by_the_relative_uri_on_port_80() {
    on_the_node("relative", async |case| {
        let by = environment(case).relative_uri("/v1/credentials");
        every_sdk_has_its_pods_role(case, Shape::Routed, &by).await;
    });
}

#[test]
fn every_sdk_with_a_proxy_asks_directly_by_what_the_injection_sets() {
    on_the_node("proxied", async |case| {
        case.account("web").await;
        let pod = case.pod("web").await;
        let proxy = TcpListener::bind((NODE_IP, 0)).unwrap();
        let url = format!("http://{}", proxy.local_addr().unwrap());
        // It hangs up on everybody, so that an SDK which asks it fails at once. The thread ends with the process.
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        thread::spawn(move || proxy.incoming().for_each(|_| _ = count.fetch_add(1, Ordering::Relaxed)));
        for uri in [IPV4, IPV6] {
            // STS is on the node as well. IPv6 stands there without brackets.
            let direct = format!("{NODE_IP},169.254.170.23,169.254.170.2,fd00:ec2::23");
            let by = ["HTTP_PROXY", "http_proxy"]
                .into_iter()
                .fold(environment(case).full_uri(uri).token("rolecall"), |by, name| by.with(name, &url))
                .with("NO_PROXY", &direct)
                .with("no_proxy", &direct);
            for (sdk, output) in identities(&by, |_| &pod) {
                has_identity(sdk, &output, &session_arn(case.namespace, "web"));
            }
        }
        assert_eq!(asked.load(Ordering::Relaxed), 0, "somebody asked the proxy");
    });
}

#[test]
fn every_sdk_gets_over_an_sts_that_fails_twice() {
    on_the_node("back", async |case| {
        let pods = a_pod_each(case).await;
        for sdk in sdk::programs() {
            case.fault(
                &sdk.name,
                Fault { code: Some("ServiceUnavailable".into()), count: Some(2), ..Fault::default() },
            );
        }
        for (sdk, output) in identities(&environment(case).full_uri(IPV4), its_own(&pods)) {
            has_identity(sdk, &output, &session_arn(case.namespace, &sdk.name));
            assert_eq!(case.calls(&sdk.name), 3, "{}", sdk.name);
        }
    });
}

/// Three tries of 0.9 s must do: the pauses between Rust's are random, and may be nothing.
#[test]
fn every_sdk_gets_over_an_sts_that_takes_longer_than_two_tries_with_one_call() {
    on_the_node("slow", async |case| {
        let pods = a_pod_each(case).await;
        for sdk in sdk::programs() {
            case.fault(&sdk.name, Fault { delay_ms: 2500, ..Fault::default() });
        }
        for (sdk, output) in identities(&environment(case).full_uri(IPV4), its_own(&pods)) {
            has_identity(sdk, &output, &session_arn(case.namespace, &sdk.name));
            assert_eq!(case.calls(&sdk.name), 1, "{}", sdk.name);
        }
    });
}

#[test]
fn all_tries_of_an_sdk_that_sts_denies_cost_one_call() {
    on_the_node("denied", async |case| {
        let pods = a_pod_each(case).await;
        for sdk in sdk::programs() {
            case.fault(&sdk.name, Fault { code: Some("AccessDenied".into()), ..Fault::default() });
        }
        for (sdk, output) in identities(&environment(case).full_uri(IPV4), its_own(&pods)) {
            assert!(!output.status.success(), "{}", sdk.name);
            let refused = refusals(case, its_own(&pods)(sdk));
            assert!(
                refused.iter().all(|code| code == "StsDenied" || is_passing(code)),
                "{}: {refused:?}",
                sdk.name
            );
            assert_eq!(case.calls(&sdk.name), 1, "{}: {refused:?}", sdk.name);
        }
    });
}

#[test]
fn an_sdk_in_a_pod_without_a_role_stops_at_404() {
    on_the_node("no-role", async |case| {
        let mut pods = Vec::new();
        for sdk in sdk::programs() {
            case.account_with(&sdk.name, json!({"rolecall.example/role-arn": "not ours"})).await;
            pods.push(case.pod(&sdk.name).await);
        }
        for (sdk, output) in identities(&environment(case).full_uri(IPV4), its_own(&pods)) {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{}", sdk.name);
            let pod = its_own(&pods)(sdk);
            case.world.agent.line_about(&pod.uid, |line| line["code"] == "NoRole").await;
            let refused = refusals(case, pod);
            // botocore and JS v3 try again after any answer; the audit says it once.
            let no_role = refused.iter().filter(|code| *code == "NoRole").count();
            assert_eq!(no_role, 1, "{}: {refused:?} {said}", sdk.name);
            assert!(
                refused.iter().all(|code| code == "NoRole" || is_passing(code)),
                "{}: {refused:?}",
                sdk.name
            );
            assert_eq!(case.calls(&sdk.name), 0);
        }
        let answer = its_own(&pods)(&sdk::programs()[0]).get(V4.parse().unwrap()).await;
        assert_eq!((answer.status, &*answer.code()), (404, "NoRole"));
    });
}

/// The codes of the pod's audit lines, in order.
fn refusals(case: &Case, pod: &RunningPod) -> Vec<String> {
    case.world
        .agent
        .lines_about(&pod.uid)
        .iter()
        .map(|line| line["code"].as_str().unwrap().to_owned())
        .collect()
}

/// What a pod may be told while its address is being confirmed.
fn is_passing(code: &str) -> bool {
    matches!(code, "PodNotKnownYet" | "KubeUnavailable")
}

//! Callers on the host network, whom only a token can name.

use std::time::Duration;

use rolecall::fakes::{reviewed, token_of};
use rolecall::identity::pods::{Pod, PodUid};

use crate::http::Answer;
use crate::ladder::*;
use crate::netns::{NODE_IP, NODE_IP_V6, Node};
use crate::process::Process;

/// The agent's own audience, by default.
const AUDIENCE: &str = "rolecall";
const HOUR: Duration = Duration::from_secs(3600);

/// A hostNetwork pod with role `a`.
fn on_the_host() -> Pod {
    Pod { host_network: true, ..shown("a", &[NODE_IP, NODE_IP_V6]) }
}

/// A node whose agent knows of that pod alone, with a process of it.
fn with_a_host_pod(test: &str, check: impl FnOnce(&Node, &Agent)) {
    let Some(node) = node(test) else { return };
    let _process = Process::of(&uid("a"), &node);
    with_agent(&node, |agent| {
        agent.set(&[on_the_host()]);
        check(&node, agent);
    });
}

/// The node asks with this in Authorization, over both families.
fn both(node: &Node, authorization: &str) -> [Answer; 2] {
    [("169.254.170.23", V4), ("fd00:ec2::23", V6)].map(|(from, to)| ask_with(authorization, node, from, to))
}

#[test]
fn a_host_network_pod_with_its_own_token_gets_its_own_role() {
    with_a_host_pod("host_own", |node, agent| {
        let token = agent.cluster.token_of(&on_the_host());
        for answer in both(node, &token).iter().chain(&both(node, &format!("Bearer {token}"))) {
            assert_eq!(account(answer), "a");
        }
    });
}

#[test]
fn a_host_network_pod_with_no_token_is_refused() {
    with_a_host_pod("host_none", |node, _| {
        for answer in both(node, "").iter().chain(&both(node, "a word")) {
            refused(answer, 403, "CallerNotIdentified");
        }
    });
}

#[test]
fn a_host_network_pod_with_a_token_that_the_api_does_not_accept_is_refused() {
    with_a_host_pod("host_forged", |node, agent| {
        // Forged: it says all the right things, and nobody has signed it.
        let forged = token_of(&on_the_host(), AUDIENCE, HOUR);
        // Expired, though its own clock says otherwise; and one that says so itself.
        let expired = agent.cluster.token_of(&on_the_host());
        assert_eq!(account(&both(node, &expired)[0]), "a");
        let of_long_ago = token_of(&on_the_host(), AUDIENCE, Duration::ZERO);
        for token in [forged, of_long_ago] {
            for answer in both(node, &token) {
                refused(&answer, 401, "AuthorizationInvalid");
            }
        }
    });
}

#[test]
fn a_host_network_pod_with_another_pods_token_is_refused() {
    let Some(node) = node("host_foreign") else { return };
    let pod = node.routed_pod("b", "10.0.1.8", None);
    let _processes = [Process::of(&uid("a"), &node), Process::of(&uid("b"), &pod)];
    with_agent(&node, |agent| {
        let b = shown("b", &["10.0.1.8"]);
        agent.set(&[on_the_host(), b.clone()]);
        let (own, bs) = (agent.cluster.token_of(&on_the_host()), agent.cluster.token_of(&b));
        // Of a pod with a network of its own: it asks from there. Stolen, it is of no use on the host.
        for answer in both(&node, &bs) {
            assert!(answer.status == 401 || answer.status == 403, "{answer:?}");
        }
        // Nor is a token of the host's in a pod: the kernel shows who asks.
        refused(&ask_with(&own, &pod, "10.0.1.8", V4), 403, "SourceMismatch");
        // Of a pod of another node, and of no pod at all.
        let elsewhere = Pod { uid: PodUid::new(uid("elsewhere")), ..on_the_host() };
        let of_nobody = token_of(&on_the_host(), AUDIENCE, HOUR);
        let unbound = rolecall::cluster::Reviewed {
            pod_uid: None,
            pod_name: None,
            ..reviewed(&on_the_host(), AUDIENCE)
        };
        agent.cluster.accept(&of_nobody, unbound);
        for token in [agent.cluster.token_of(&elsewhere), of_nobody] {
            for answer in both(&node, &token) {
                refused(&answer, 401, "AuthorizationInvalid");
            }
        }
        // The API server's word counts, and not the token's own: it says that it is a's, and is b's.
        let two_faced = token_of(&on_the_host(), AUDIENCE, HOUR);
        agent.cluster.accept(&two_faced, reviewed(&b, AUDIENCE));
        for answer in both(&node, &two_faced) {
            assert!(answer.status == 401 || answer.status == 403, "{answer:?}");
        }
    });
}

#[test]
fn a_token_of_a_deleted_host_network_pod_is_refused_though_it_was_good_a_moment_ago() {
    with_a_host_pod("host_deleted", |node, agent| {
        let token = agent.cluster.token_of(&on_the_host());
        for answer in both(node, &token) {
            assert_eq!(account(&answer), "a");
        }
        // The API server's good answer is kept for a while; that the pod has gone counts at once.
        for gone in [vec![], vec![Pod { finished: true, ..on_the_host() }]] {
            agent.set(&gone);
            for answer in both(node, &token) {
                assert!([401, 403, 503].contains(&answer.status), "{answer:?}");
            }
        }
    });
}

#[test]
fn a_token_for_another_audience_is_refused() {
    with_a_host_pod("host_audience", |node, agent| {
        for audience in ["sts.amazonaws.com", "https://kubernetes.default.svc", "rolecall2", ""] {
            // Good for whom it is meant; and one that lies about it.
            let (honest, lying) =
                (token_of(&on_the_host(), audience, HOUR), token_of(&on_the_host(), AUDIENCE, HOUR));
            for token in [honest, lying] {
                agent.cluster.accept(&token, reviewed(&on_the_host(), audience));
                for answer in both(node, &token) {
                    refused(&answer, 401, "AuthorizationInvalid");
                }
            }
        }
    });
}

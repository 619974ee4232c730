//! Whose processes are in the namespace that a connection comes from.
#![allow(clippy::unwrap_used)]

use rolecall::identity::pods::Pod;

use crate::ladder::*;
use crate::netns;
use crate::process::Process;

#[test]
fn a_process_of_the_host_is_refused() {
    let Some(node) = node("attest_host") else { return };
    with_agent(&node, |agent| {
        agent.set(&[Pod { host_network: true, ..shown("a", &[netns::NODE_IP]) }]);
        for (from, to) in [("169.254.170.23", V4), (netns::NODE_IP, V4), ("fd00:ec2::23", V6)] {
            refused(&ask(&node, from, to), 403, "CallerNotIdentified");
        }
    });
}

#[test]
fn a_namespace_without_a_pods_process_is_refused() {
    let Some(node) = node("attest_nobody") else { return };
    let a = node.routed_pod("a", "10.0.1.7", None);
    let _process = Process::start(&a, "0::/system.slice/docker.service\n");
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"])]);
        refused(&ask(&a, "10.0.1.7", V4), 403, "CallerNotIdentified");
    });
}

#[test]
fn processes_of_two_pods_in_one_namespace_are_refused() {
    let Some(node) = node("attest_two") else { return };
    let a = node.routed_pod("a", "10.0.1.7", None);
    let _processes = [Process::of(&uid("a"), &a), Process::of(&uid("b"), &a)];
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"]), shown("b", &[])]);
        refused(&ask(&a, "10.0.1.7", V4), 403, "CallerAmbiguous");
    });
}

#[test]
fn a_pod_that_the_api_does_not_have_is_refused() {
    let Some(node) = node("attest_gone") else { return };
    let a = node.routed_pod("a", "10.0.1.7", None);
    let _process = Process::of(&uid("a"), &a);
    with_agent(&node, |agent| {
        agent.set(&[shown("b", &["10.0.1.8"])]);
        refused(&ask(&a, "10.0.1.7", V4), 403, "CallerNotIdentified");
    });
}

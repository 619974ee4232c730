//! A pod with CAP_NET_ADMIN rebuilds its own network. Addresses that it adds and link-layer addresses that it changes are in [`crate::spoof`].

use crate::ladder::*;
use crate::netns::{Namespace, Node};
use crate::process::{Process, cgroup};

/// A cgroup below the pod's own, as of a container in it.
fn nested(pod: &str) -> String {
    format!("{}/docker/{:064x}\n", cgroup(&uid(pod)).trim_end(), 9)
}

/// Moves the attacker's end of its cable into `to`, with these addresses of its.
fn move_link(attacker: &Namespace, to: &Namespace, addresses: &[&str]) {
    attacker.ip(&format!("link set eth0 netns {}", to.name()));
    to.ip("link set eth0 up");
    for address in addresses {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        to.ip(&format!("address add {address} dev eth0 {nodad}"));
    }
    to.ip("route add default via 10.0.2.1");
    to.ip("route add default via fd00:2::1");
}

#[test]
fn a_link_that_is_moved_to_where_no_pod_is_belongs_to_nobody() {
    let Some(node) = node("admin_moved") else { return };
    let b = node.bridged_pod("b", "10.0.2.8", Some("fd00:2::8"));
    let _process = Process::of(&uid("b"), &b);
    let empty = node.detached("empty");
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.2.7", "fd00:2::7"]), shown("b", &["10.0.2.8", "fd00:2::8"])]);
        assert_eq!(account(&settled(&b, "10.0.2.8", V4)), "b");
        move_link(&b, &empty, &["10.0.2.7/24", "10.0.2.8/24", "fd00:2::7/64", "fd00:2::8/64"]);
        for (from, to) in [("10.0.2.8", V4), ("10.0.2.7", V4), ("fd00:2::8", V6), ("fd00:2::7", V6)] {
            refused(&settled(&empty, from, to), 403, "CallerNotIdentified");
        }
    });
}

#[test]
fn a_link_that_is_moved_within_the_pod_is_still_the_pods() {
    let Some(node) = node("admin_inside") else { return };
    let b = node.bridged_pod("b", "10.0.2.8", Some("fd00:2::8"));
    let inside = node.detached("inside");
    let _processes = [Process::of(&uid("b"), &b), Process::start(&inside, &nested("b"))];
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.2.7", "fd00:2::7"]), shown("b", &["10.0.2.8", "fd00:2::8"])]);
        move_link(&b, &inside, &["10.0.2.7/24", "10.0.2.8/24", "fd00:2::7/64", "fd00:2::8/64"]);
        for (own, victims, to) in [("10.0.2.8", "10.0.2.7", V4), ("fd00:2::8", "fd00:2::7", V6)] {
            assert_eq!(account(&settled(&inside, own, to)), "b");
            refused(&settled(&inside, victims, to), 403, "SourceMismatch");
        }
    });
}

#[test]
fn behind_a_bridge_of_its_own_a_pod_is_still_itself() {
    for (shape, own, victims, to) in [
        ("bridged", "10.0.2.8", "10.0.2.7", V4),
        ("bridged6", "fd00:2::8", "fd00:2::7", V6),
        ("routed", "10.0.1.8", "10.0.1.7", V4),
    ] {
        let Some(node) = node(&format!("admin_bridge_{shape}")) else { return };
        let b = match shape {
            "routed" => node.routed_pod("b", own, None),
            _ => node.bridged_pod("b", "10.0.2.8", Some("fd00:2::8")),
        };
        let inside = behind_a_bridge(&node, &b, victims);
        let _processes = [Process::of(&uid("b"), &b), Process::start(&inside, &nested("b"))];
        if shape == "routed" {
            // Not even a node that sends the victim's packets there is fooled.
            node.ip(&format!("route add {victims}/32 dev veth1"));
            inside.ip("route add 169.254.1.1 dev eth0");
            inside.ip("route add default via 169.254.1.1");
            inside.ip("neighbour add 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent");
        }
        with_agent(&node, |agent| {
            agent.set(&[shown("a", &[victims]), shown("b", &[own])]);
            let answer = settled(&inside, victims, to);
            refused(&answer, 403, "SourceMismatch");
            // And when it has the address itself: the socket is found, and it is the attacker's.
            let nodad = if victims.contains(':') { "nodad" } else { "" };
            b.ip(&format!("address add {victims} dev lo {nodad}"));
            let answer = settled(&inside, victims, to);
            refused(&answer, 403, "SourceMismatch");
            assert!(answer.body.contains(&uid("b")), "the attacker is named: {}", answer.body);
        });
    }
}

/// A namespace that shares the pod's cable through a bridge in the pod, and has this address.
fn behind_a_bridge(node: &Node, pod: &Namespace, address: &str) -> Namespace {
    let inside = node.detached("inside");
    pod.ip("link add br0 type bridge");
    pod.ip("link set br0 up");
    pod.ip("link set eth0 master br0");
    pod.ip(&format!("link add inner type veth peer name eth0 netns {}", inside.name()));
    pod.ip("link set inner master br0 up");
    inside.ip("link set eth0 up");
    let (bits, nodad, gateway) = match address {
        v6 if v6.contains(':') => ("/64", "nodad", "fd00:2::1"),
        routed if routed.starts_with("10.0.1.") => ("/32", "", ""),
        _ => ("/24", "", "10.0.2.1"),
    };
    inside.ip(&format!("address add {address}{bits} dev eth0 {nodad}"));
    if !gateway.is_empty() {
        inside.ip(&format!("route add default via {gateway}"));
    }
    inside
}

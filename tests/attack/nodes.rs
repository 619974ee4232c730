//! Callers that are on no pod's cable: the node itself, and other nodes.

use rolecall::identity::pods::Pod;

use crate::ladder::*;
use crate::netns::{self, Node, OUTSIDE_IP, OUTSIDE_IP_V6};
use crate::process::Process;

#[test]
fn a_process_of_the_host_is_refused() {
    let Some(node) = node("nodes_host") else { return };
    let pod = node.routed_pod("b", "10.0.1.8", Some("fd00::8"));
    let _processes = [Process::of(&uid("b"), &pod), Process::start(&node, "0::/system.slice/sshd.service\n")];
    with_agent(&node, |agent| {
        agent.set(&[Pod { host_network: true, ..shown("a", &[netns::NODE_IP]) }, shown("b", &["10.0.1.8"])]);
        // Its own addresses, and a pod's, which it may just add to itself.
        node.ip("address add 10.0.1.8/32 dev eth0");
        for (from, to) in [
            ("169.254.170.23", V4),
            (netns::NODE_IP, V4),
            ("10.0.1.8", V4),
            ("127.0.0.1", V4),
            ("fd00:ec2::23", V6),
            (netns::NODE_IP_V6, V6),
        ] {
            refused(&settled(&node, from, to), 403, "CallerNotIdentified");
        }
    });
}

/// The kernel shows its pod's UID in the node's namespace, which says nothing: all of them are in there.
#[test]
fn a_process_of_a_host_network_pod_is_refused_by_address() {
    let Some(node) = node("nodes_host_pod") else { return };
    let _process = Process::of(&uid("a"), &node);
    with_agent(&node, |agent| {
        agent.set(&[Pod { host_network: true, ..shown("a", &[netns::NODE_IP, netns::NODE_IP_V6]) }]);
        for (from, to) in
            [("169.254.170.23", V4), (netns::NODE_IP, V4), ("fd00:ec2::23", V6), (netns::NODE_IP_V6, V6)]
        {
            refused(&settled(&node, from, to), 403, "CallerNotIdentified");
        }
    });
}

#[test]
fn a_neighbour_with_a_hand_made_route_is_refused() {
    let Some(node) = node("nodes_neighbour") else { return };
    let neighbour = node.outside();
    neighbour.ip("route add 169.254.170.23/32 via 10.0.9.1");
    neighbour.ip("route add fd00:ec2::23/128 via fd00:9::1");
    // A pod's address of this node, too: the answer finds its way back where the node's route has been poisoned.
    neighbour.ip("address add 10.0.1.7/32 dev lo");
    node.ip("route add 10.0.1.7/32 via 10.0.9.2");
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"])]);
        for (from, to) in [(OUTSIDE_IP, V4), ("10.0.1.7", V4), (OUTSIDE_IP_V6, V6)] {
            refused(&settled(&neighbour, from, to), 403, "CallerNotIdentified");
        }
    });
}

/// Not even where nodes are containers of one machine, and the agent sees the other one's processes at the end of the cable.
#[test]
fn a_pod_of_a_neighbour_node_is_refused() {
    let (Some(node), Some(other)) = (node("nodes_other"), Node::new("nodes_other2")) else { return };
    node.ip(&format!("link add uplink type veth peer name uplink netns {}", other.name()));
    for (side, mine, mine6) in
        [(&node, "10.0.8.1/24", "fd00:8::1/64"), (&other, "10.0.8.2/24", "fd00:8::2/64")]
    {
        side.ip(&format!("address add {mine} dev uplink"));
        side.ip(&format!("address add {mine6} dev uplink nodad"));
        side.ip("link set uplink up");
    }
    let pod = other.routed_pod("a", "10.0.3.7", Some("fd00:3::7"));
    other.ip("route add 169.254.170.23/32 via 10.0.8.1");
    other.ip("route add fd00:ec2::23/128 via fd00:8::1");
    node.ip("route add 10.0.3.7/32 via 10.0.8.2");
    node.ip("route add fd00:3::7/128 via fd00:8::2");
    let _pods_process = Process::of(&uid("a"), &pod);
    with_agent(&node, |agent| {
        agent.set(&[shown("b", &["10.0.1.8"])]);
        let ask_both = |code: &str| {
            for (from, to) in [("10.0.3.7", V4), ("fd00:3::7", V6)] {
                refused(&settled(&pod, from, to), 403, code);
            }
        };
        ask_both("CallerNotIdentified");
        let _of_a_host_network_pod = Process::of(&uid("b"), &other);
        ask_both("SourceMismatch");
    });
}

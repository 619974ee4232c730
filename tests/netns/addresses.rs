//! The addresses: where they are put, whose they stay, and who reaches them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use crate::ADDRESSES;
use crate::net::*;
use crate::netns::Node;

#[test]
fn the_addresses_are_on_a_link_of_our_own_or_on_lo_without_dummy_links() {
    let Some(node) = Node::new("own_link") else { return };
    let has_dummies =
        node.command("ip").args("link add probe type dummy".split(' ')).output().unwrap().status.success();
    install(&node, &[]);
    let home = if has_dummies { "rolecall0" } else { "lo" };
    for address in ADDRESSES {
        assert_eq!(links_of(&node, address), [home], "{address}");
    }
}

#[test]
fn install_twice_changes_nothing() {
    let Some(node) = Node::new("install_twice") else { return };
    install(&node, &[]);
    let once = state(&node);
    let said = install(&node, &[]);
    assert_eq!(state(&node), once);
    assert!(said.contains("already on"), "{said}");
}

#[test]
fn install_adds_no_route_that_another_agent_would_take_for_a_conflict() {
    let Some(node) = Node::new("no_route") else { return };
    let before = main_routes(&node);
    install(&node, &[]);
    assert_eq!(main_routes(&node), before);
}

#[test]
fn an_address_somebody_else_holds_is_left_alone() {
    let Some(node) = Node::new("they_first") else { return };
    their_link(&node);
    let before = state(&node);
    let without_rules = addresses_and_routes(&node);
    let said = install(&node, &["--listen", "169.254.170.23:9902", "--listen", "[fd00:ec2::23]:9902"]);
    assert_eq!(addresses_and_routes(&node), without_rules);
    assert!(said.contains("warning 169.254.170.23: held by link pod-id-link0"), "{said}");
    remove(&node);
    assert_eq!(state(&node), before);
}

#[test]
fn an_address_that_somebody_else_adds_after_us_is_still_theirs_when_we_leave() {
    let Some(node) = Node::new("we_first") else { return };
    let pod = node.routed_pod("a", "10.0.1.7", Some("fd00::7"));
    install(&node, &[]);
    their_link(&node);
    install(&node, &[]);
    remove(&node);
    for address in ["169.254.170.23", "fd00:ec2::23"] {
        assert_eq!(links_of(&node, address), ["pod-id-link0"]);
        let theirs = SocketAddr::new(address.parse().unwrap(), 80);
        let listener = listen(&node, theirs);
        connect(&pod, theirs);
        drop(listener);
    }
    assert_eq!(links_of(&node, "169.254.170.2"), [""; 0]);
}

#[test]
fn an_address_that_somebody_else_adds_before_us_is_still_theirs_when_they_stay() {
    let Some(node) = Node::new("they_stay") else { return };
    their_link(&node);
    install(&node, &[]);
    assert_eq!(links_of(&node, "169.254.170.23"), ["pod-id-link0"]);
    node.ip("link del pod-id-link0");
    install(&node, &[]);
    assert_eq!(links_of(&node, "169.254.170.23").len(), 1, "free now, so it is ours to add");
}

#[test]
fn an_address_somebody_routes_is_left_alone() {
    let Some(node) = Node::new("routed_away") else { return };
    let _pod = node.routed_pod("a", "10.0.1.7", None);
    node.ip("route add 169.254.170.23/32 dev veth1");
    node.ip("-6 route add fd00:ec2::/64 dev veth1 table 77");
    let said = install(&node, &[]);
    assert_eq!(links_of(&node, "169.254.170.23"), [""; 0], "{said}");
    assert_eq!(links_of(&node, "fd00:ec2::23"), [""; 0], "{said}");
    assert_eq!(links_of(&node, "169.254.170.2").len(), 1, "{said}");
    assert!(said.contains("warning 169.254.170.23: routed through veth1"), "{said}");
    remove(&node);
    assert!(main_routes(&node).contains("169.254.170.23 dev veth1"));
}

#[test]
fn remove_takes_only_what_we_added() {
    let Some(node) = Node::new("remove") else { return };
    node.ip("address add 169.254.20.10/32 dev lo");
    node.ip("address add fd00:ec2::10/128 dev lo");
    nft(&node, "add table inet theirs; add chain inet theirs c; add rule inet theirs c counter");
    let before = state(&node);
    install(&node, &["--redirect-eks-port"]);
    assert_ne!(state(&node), before);
    remove(&node);
    assert_eq!(state(&node), before);
    assert!(!fs::exists(run_dir(&node)).unwrap());
    remove(&node);
}

#[test]
fn remove_can_stay_until_it_is_told_to_stop() {
    let Some(node) = Node::new("remove_wait") else { return };
    let before = state(&node);
    install(&node, &[]);
    let mut command = net_command(&node, "remove");
    command.args(["--wait", "--run-dir", &run_dir(&node)]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with(&format!("ok      {}: removed", run_dir(&node)))));
    assert_eq!(state(&node), before);
    // SIGTERM as the kubelet sends it; without the flag there would be nobody left to get it.
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_node_without_ipv6_gets_ipv4_and_a_warning() {
    let Some(node) = Node::new("no_ipv6") else { return };
    for conf in ["all", "default"] {
        node.sysctl(&format!("ipv6/conf/{conf}/disable_ipv6"), "1");
    }
    let said = install(&node, &[]);
    assert!(said.contains("warning fd00:ec2::23: not added: IPv6 is switched off"), "{said}");
    assert_eq!(links_of(&node, "169.254.170.23").len(), 1);
    let agent = FakeAgent::start(&node, "the-word", &["169.254.170.23:9902", "169.254.170.2:9902"]);
    let proof = agent.verify(&node, &[]);
    assert!(proof.status.success(), "{}", text(&proof));
}

#[test]
fn every_address_is_reached_from_pods_of_both_shapes() {
    let Some(node) = Node::new("reached") else { return };
    let pods = [
        ("10.0.1.7", "fd00::7", node.routed_pod("a", "10.0.1.7", Some("fd00::7"))),
        ("10.0.2.7", "fd00:2::7", node.bridged_pod("b", "10.0.2.7", Some("fd00:2::7"))),
    ];
    install(&node, &[]);
    for address in ADDRESSES {
        let target = SocketAddr::new(address.parse().unwrap(), 9902);
        let listener = listen(&node, target);
        for (ip, ipv6, pod) in &pods {
            let _connection = connect(pod, target);
            let source: IpAddr = if target.is_ipv6() { ipv6 } else { ip }.parse().unwrap();
            assert_eq!(listener.accept().unwrap().1.ip(), source);
        }
    }
}

#[test]
fn no_address_of_ours_is_the_source_of_the_nodes_own_traffic() {
    let Some(node) = Node::new("source") else { return };
    let pods = [
        node.routed_pod("a", "10.0.1.7", Some("fd00:ec2:0:1::7")),
        node.bridged_pod("b", "10.0.2.7", Some("fd00:2::7")),
    ];
    let targets = [["10.0.1.7:80", "[fd00:ec2:0:1::7]:80"], ["10.0.2.7:80", "[fd00:2::7]:80"]];
    let sources = || {
        let ask = |target: &str| connect(&node, target.parse().unwrap()).local_addr().unwrap().ip();
        targets.map(|targets| targets.map(ask))
    };
    let _listeners: Vec<_> = pods
        .iter()
        .zip(targets)
        .flat_map(|(pod, at)| at.map(|at| listen(pod, at.parse().unwrap())))
        .collect();
    let before = sources();
    install(&node, &[]);
    assert_eq!(sources(), before);
}

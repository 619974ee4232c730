//! `--identity=kernel` on real kernels: whose connection it is, on nodes and pods made of network namespaces. What attackers try there is in
//! `attack.rs`.
//!
//! A pod is a namespace with a process in it, whose `/proc/<pid>/cgroup` is a file of the test's. Everything else is the kernel's own.

#![cfg(target_os = "linux")]

#[path = "support/http.rs"]
mod http;
#[path = "support/ladder.rs"]
mod ladder;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/process.rs"]
mod process;

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use ladder::*;
use netns::{Namespace, Node};
use process::{Process, cgroup};
use rolecall::identity::pods::Pod;
use tokio::time::Instant;

/// Two pods, by name and by their addresses of both families, ask over each; and again, when they are known.
fn each_gets_its_own(node: &Node, pods: [(&str, &Namespace, [&str; 2]); 2]) {
    let _processes = pods.map(|(name, pod, _)| Process::of(&uid(name), pod));
    with_agent(node, |agent| {
        agent.set(&pods.map(|(name, _, addresses)| shown(name, &addresses)));
        for (family, to) in [V4, V6, V4, V6].into_iter().enumerate() {
            for (name, pod, addresses) in pods {
                assert_eq!(account(&settled(pod, addresses[family % 2], to)), name);
            }
        }
    });
}

#[test]
fn routed_pods_get_their_own_keys_over_both_families() {
    let Some(node) = node("attest_routed") else { return };
    let a = node.routed_pod("a", "10.0.1.7", Some("fd00::7"));
    let b = node.routed_pod("b", "10.0.1.8", Some("fd00::8"));
    each_gets_its_own(&node, [("a", &a, ["10.0.1.7", "fd00::7"]), ("b", &b, ["10.0.1.8", "fd00::8"])]);
}

#[test]
fn bridged_pods_get_their_own_keys_over_both_families() {
    let Some(node) = node("attest_bridged") else { return };
    let a = node.bridged_pod("a", "10.0.2.7", Some("fd00:2::7"));
    let b = node.bridged_pod("b", "10.0.2.8", Some("fd00:2::8"));
    each_gets_its_own(&node, [("a", &a, ["10.0.2.7", "fd00:2::7"]), ("b", &b, ["10.0.2.8", "fd00:2::8"])]);
}

#[test]
fn a_token_names_a_pod_on_the_host_network_and_no_pod_whose_link_names_it() {
    let Some(node) = node("attest_token") else { return };
    let a = node.routed_pod("a", "10.0.1.7", Some("fd00::7"));
    let _process = Process::of(&uid("a"), &a);
    with_agent(&node, |agent| {
        let pod = shown("a", &["10.0.1.7", "fd00::7"]);
        let host = Pod { host_network: true, ..shown("b", &["192.0.2.1"]) };
        agent.set(&[pod.clone(), host.clone()]);
        let (pods, hosts) = (agent.cluster.token_of(&pod), agent.cluster.token_of(&host));
        for (from, of_the_host, to) in [("10.0.1.7", "169.254.170.23", V4), ("fd00::7", "fd00:ec2::23", V6)] {
            assert_eq!(account(&ask_with(&hosts, &node, of_the_host, to)), "b");
            assert_eq!(account(&ask_with(&pods, &a, from, to)), "a");
            refused(&ask_with(&hosts, &a, from, to), 403, "SourceMismatch");
            refused(&ask_with(&pods, &node, of_the_host, to), 403, "SourceMismatch");
            refused(&settled(&node, of_the_host, to), 403, "CallerNotIdentified");
        }
    });
}

#[test]
fn a_dual_stack_client_of_a_bridged_pod_is_known() {
    let Some(node) = node("attest_mapped") else { return };
    let a = node.bridged_pod("a", "10.0.2.7", None);
    let _process = Process::of(&uid("a"), &a);
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.2.7"])]);
        let to: SocketAddr = "[::ffff:169.254.170.23]:9902".parse().unwrap();
        let ours: SocketAddr = V4.parse().unwrap();
        let answer = a.run(async || http::get("::", to, &http::request(ours)).await);
        assert_eq!(account(&answer), "a");
    });
}

#[test]
fn a_bridged_pod_that_is_redirected_from_port_80_is_known() {
    let Some(node) = node("attest_redirect") else { return };
    let a = node.bridged_pod("a", "10.0.2.7", Some("fd00:2::7"));
    let _process = Process::of(&uid("a"), &a);
    for file in [include_str!("../iptables/00-table.nft"), include_str!("../iptables/20-eks-port.nft")] {
        let path = format!("/run/{}.nft", node.name());
        fs::write(&path, file).unwrap();
        assert!(node.command("nft").args(["-f", &path]).status().unwrap().success());
    }
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.2.7", "fd00:2::7"])]);
        assert_eq!(account(&settled(&a, "10.0.2.7", "169.254.170.23:80")), "a");
        assert_eq!(account(&settled(&a, "fd00:2::7", "[fd00:ec2::23]:80")), "a");
    });
}

#[test]
fn a_new_pod_needs_no_published_address_and_no_watch() {
    let Some(node) = node("attest_new") else { return };
    let new = node.routed_pod("new", "10.0.1.7", None);
    let _process = Process::of(&uid("new"), &new);
    with_agent(&node, |agent| {
        agent.set(&[shown("new", &[])]);
        assert_eq!(account(&settled(&new, "10.0.1.7", V4)), "new");
    });
}

#[test]
fn a_link_that_asks_for_too_many_walks_waits_and_its_neighbour_does_not() {
    let Some(node) = node("attest_flood") else { return };
    let nobody = node.routed_pod("nobody", "10.0.1.7", None);
    let a = node.routed_pod("a", "10.0.1.8", None);
    let _process = Process::of(&uid("a"), &a);
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.8"])]);
        let busy = (0..1000).find_map(|_| {
            let answer = ask(&nobody, "10.0.1.7", V4);
            (answer.status != 403).then_some(answer)
        });
        refused(&busy.expect("an end to its patience"), 503, "Overloaded");
        assert_eq!(account(&settled(&a, "10.0.1.8", V4)), "a");
    });
}

#[test]
fn processes_of_nobody_are_passed_over_and_a_dead_witness_is_replaced() {
    let Some(node) = node("attest_witness") else { return };
    let a = node.routed_pod("a", "10.0.1.7", None);
    let _runtime = Process::start(&a, "0::/system.slice/containerd.service\n");
    let (first, _second) = (Process::of(&uid("a"), &a), Process::of(&uid("a"), &a));
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"])]);
        assert_eq!(account(&settled(&a, "10.0.1.7", V4)), "a");
        drop(first);
        assert_eq!(account(&settled(&a, "10.0.1.7", V4)), "a");
    });
}

#[test]
fn a_second_pods_process_beside_a_known_witness_is_noticed() {
    let Some(node) = node("attest_joined") else { return };
    let a = node.routed_pod("a", "10.0.1.7", None);
    let _first = Process::of(&uid("a"), &a);
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"]), shown("b", &[])]);
        assert_eq!(account(&settled(&a, "10.0.1.7", V4)), "a");
        let _second = Process::of(&uid("b"), &a);
        let joined = Instant::now();
        let answer = loop {
            let answer = settled(&a, "10.0.1.7", V4);
            assert!(joined.elapsed() < Duration::from_secs(20), "never noticed");
            if answer.status != 200 {
                break answer;
            }
        };
        refused(&answer, 403, "CallerAmbiguous");
    });
}

/// Only somebody with rights over both namespaces can do that: a network plug-in, or a pod within its own.
#[test]
fn a_cable_that_leads_to_another_namespace_now_is_not_the_pods_any_more() {
    let Some(node) = node("attest_moved") else { return };
    let a = node.routed_pod("a", "10.0.1.7", None);
    let _process = Process::of(&uid("a"), &a);
    let elsewhere = node.detached("elsewhere");
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"])]);
        assert_eq!(account(&settled(&a, "10.0.1.7", V4)), "a");
        a.ip(&format!("link set eth0 netns {}", elsewhere.name()));
        for line in [
            "address add 10.0.1.7/32 dev eth0",
            "link set eth0 up",
            "route add 169.254.1.1 dev eth0 scope link",
            "route add default via 169.254.1.1",
        ] {
            elsewhere.ip(line);
        }
        node.ip("address replace 169.254.1.1/32 dev veth1");
        refused(&settled(&elsewhere, "10.0.1.7", V4), 403, "CallerNotIdentified");
    });
}

/// A node whose bridge has no address of its own: all that pods send comes out of `host0`, the node's end of a cable that
/// leads from the bridge to the node itself. So it is with the bridge plug-in and a VLAN, and much like Cilium's `cilium_host`.
fn handed(node: &Node) {
    for line in [
        "address del 10.0.2.1/24 dev cni0",
        "address del fd00:2::1/64 dev cni0",
        "link add host0 type veth peer name host1",
        "link set host1 master cni0 up",
        "link set host0 up",
        "address add 10.0.2.1/24 dev host0",
        "address add fd00:2::1/64 dev host0 nodad",
    ] {
        node.ip(line);
    }
    // Else the bridge answers for that address, too.
    node.sysctl("ipv4/conf/cni0/arp_ignore", "1");
}

#[test]
fn pods_that_are_handed_over_get_their_own_keys_over_both_families() {
    let Some(node) = node("attest_handed") else { return };
    let a = node.bridged_pod("a", "10.0.2.7", Some("fd00:2::7"));
    let b = node.bridged_pod("b", "10.0.2.8", Some("fd00:2::8"));
    handed(&node);
    each_gets_its_own(&node, [("a", &a, ["10.0.2.7", "fd00:2::7"]), ("b", &b, ["10.0.2.8", "fd00:2::8"])]);
}

#[test]
fn an_address_that_two_handed_over_pods_have_is_nobodys() {
    let Some(node) = node("attest_handed_two") else { return };
    let (victim, attacker) =
        (node.bridged_pod("a", "10.0.2.7", None), node.bridged_pod("b", "10.0.2.8", None));
    handed(&node);
    let _processes = [Process::of(&uid("a"), &victim), Process::of(&uid("b"), &attacker)];
    attacker.ip("address add 10.0.2.7/24 dev eth0");
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.2.7"]), shown("b", &["10.0.2.8"])]);
        for pod in [&attacker, &victim] {
            let mac = mac(pod);
            node.ip(&format!("neighbour replace 10.0.2.7 lladdr {mac} dev host0 nud reachable"));
            refused(&settled(pod, "10.0.2.7", V4), 403, "CallerAmbiguous");
        }
        assert_eq!(account(&settled(&attacker, "10.0.2.8", V4)), "b");
    });
}

/// Somebody on the same wire who is no pod here: a neighbour of a bridge that has an uplink.
#[test]
fn an_outsider_under_the_address_of_a_handed_over_pod_gets_nothing() {
    let Some(node) = node("attest_handed_outside") else { return };
    let (victim, outsider) =
        (node.bridged_pod("a", "10.0.2.7", None), node.bridged_pod("outsider", "10.0.2.8", None));
    handed(&node);
    let _process = Process::of(&uid("a"), &victim);
    outsider.ip("address add 10.0.2.7/24 dev eth0");
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.2.7"])]);
        assert_eq!(account(&settled(&victim, "10.0.2.7", V4)), "a");
        let mac = mac(&outsider);
        node.ip(&format!("neighbour replace 10.0.2.7 lladdr {mac} dev host0 nud reachable"));
        refused(&settled(&outsider, "10.0.2.7", V4), 403, "SourceMismatch");
        refused(&settled(&outsider, "10.0.2.8", V4), 403, "CallerNotIdentified");
    });
}

fn mac(pod: &Namespace) -> String {
    let link = pod.ip("-o link show eth0");
    link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap().to_owned()
}

#[test]
fn docker_in_a_pod_gets_the_pods_keys_in_both_shapes() {
    let Some(node) = node("attest_dind") else { return };
    let pods = [
        ("10.0.1.7", "a", node.routed_pod("a", "10.0.1.7", None)),
        ("10.0.2.7", "b", node.bridged_pod("b", "10.0.2.7", None)),
    ];
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"]), shown("b", &["10.0.2.7"])]);
        for (number, (ip, name, pod)) in pods.iter().enumerate() {
            let _daemon = Process::of(&uid(name), pod);
            // A bridge, a container behind it, and its address translated to the pod's.
            let inner = inner(&node, pod, number);
            let nested = format!("{}/docker/{:064x}\n", cgroup(&uid(name)).trim_end(), 9);
            let _container = Process::start(&inner, &nested);
            assert_eq!(account(&settled(&inner, "172.17.0.2", V4)), *name, "{ip}");
        }
    });
}

#[test]
fn an_address_that_a_pod_forwards_untranslated_is_not_its_own() {
    let Some(node) = node("attest_forward") else { return };
    let a = node.routed_pod("a", "10.0.1.7", None);
    let _daemon = Process::of(&uid("a"), &a);
    let inner = inner(&node, &a, 0);
    assert!(a.command("nft").args(["flush", "ruleset"]).status().unwrap().success());
    node.ip("route add 172.17.0.2/32 via 10.0.1.7 dev veth1 onlink");
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"])]);
        refused(&settled(&inner, "172.17.0.2", V4), 403, "SourceMismatch");
    });
}

#[test]
fn an_agent_that_sees_only_its_own_processes_refuses_to_start_and_says_what_is_missing() {
    let Some(node) = node("attest_no_host_pid") else { return };
    let mut agent = node.command("unshare");
    agent.args(["--pid", "--fork", "--kill-child", "--mount-proc", env!("CARGO_BIN_EXE_rolecall")]);
    agent.args(["agent", "--node-name=n", "--local-socket=/run/none.sock"]);
    let output = agent.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--identity=kernel is not possible") && said.contains("hostPID: true"), "{said}");
}

#[test]
fn an_agent_in_a_network_of_its_own_refuses_to_start_and_says_what_is_missing() {
    let Some(node) = node("attest_no_host_network") else { return };
    let pod = node.routed_pod("agent", "10.0.1.7", None);
    // The node's first process is in the node's network; the agent, its child, is in a pod's.
    let agent = format!(
        "nsenter --net=/run/netns/{} {} agent --identity=kernel --node-name=n --local-socket=/run/none.sock; exit $?",
        pod.name(),
        env!("CARGO_BIN_EXE_rolecall")
    );
    let mut first = node.command("unshare");
    first.args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &agent]);
    let output = first.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("--identity=kernel is not possible") && said.contains("hostNetwork: true"),
        "{said}"
    );
}

/// A container as Docker in `pod` would make it.
fn inner(node: &Node, pod: &Namespace, number: usize) -> Namespace {
    let inner = node.detached(&format!("inner{number}"));
    pod.ip("link add docker0 type bridge");
    pod.ip("address add 172.17.0.1/16 dev docker0");
    pod.ip("link set docker0 up");
    pod.ip(&format!("link add inner type veth peer name eth0 netns {}", inner.name()));
    pod.ip("link set inner master docker0 up");
    inner.ip("address add 172.17.0.2/16 dev eth0");
    inner.ip("link set eth0 up");
    inner.ip("route add default via 172.17.0.1");
    pod.sysctl("ipv4/ip_forward", "1");
    for rule in [
        "add table ip docker",
        "add chain ip docker p { type nat hook postrouting priority srcnat; }",
        "add rule ip docker p ip saddr 172.17.0.0/16 oifname eth0 masquerade",
    ] {
        assert!(pod.command("nft").arg(rule).status().unwrap().success());
    }
    inner
}

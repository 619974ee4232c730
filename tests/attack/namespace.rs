//! Whose processes are in the namespace that a connection comes from.

use crate::ladder::*;
use crate::process::{Process, cgroup};

#[test]
fn a_child_cgroup_named_for_a_victim_names_its_maker() {
    let Some(node) = node("ns_nested") else { return };
    let pods = [
        ("10.0.1.8", "10.0.1.7", node.routed_pod("r", "10.0.1.8", Some("fd00::8")), "fd00::8"),
        ("10.0.2.8", "10.0.2.7", node.bridged_pod("b", "10.0.2.8", Some("fd00:2::8")), "fd00:2::8"),
    ];
    with_agent(&node, |agent| {
        for (own, victims, pod, own6) in &pods {
            agent.set(&[shown("a", &[victims]), shown("b", &[own, own6])]);
            let victim = uid("a");
            for child in [
                format!("pod{victim}/{:064x}", 9),
                format!(
                    "kubepods-burstable-pod{}.slice/cri-containerd-{:064x}.scope",
                    victim.replace('-', "_"),
                    9
                ),
                format!("kubepods/besteffort/pod{victim}/x"),
            ] {
                let _process = Process::start(pod, &format!("{}/{child}\n", cgroup(&uid("b")).trim_end()));
                assert_eq!(account(&settled(pod, own, V4)), "b", "{child}");
                assert_eq!(account(&settled(pod, own6, V6)), "b", "{child}");
            }
        }
    });
}

/// With cgroup v1 each hierarchy has a line, and a container may be in charge of one of them.
#[test]
fn a_line_that_names_another_pod_than_the_rest_is_refused() {
    let Some(node) = node("ns_lines") else { return };
    let b = node.routed_pod("b", "10.0.1.8", None);
    let lines = format!("4:cpu:/kubepods/pod{}/x\n3:name=x:/kubepods/pod{}/x\n", uid("b"), uid("a"));
    let _process = Process::start(&b, &lines);
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"]), shown("b", &["10.0.1.8"])]);
        refused(&settled(&b, "10.0.1.8", V4), 403, "CallerAmbiguous");
    });
}

#[test]
fn processes_of_two_pods_in_one_namespace_are_refused() {
    let Some(node) = node("ns_two") else { return };
    let pods = [
        ("10.0.1.7", "fd00::7", node.routed_pod("r", "10.0.1.7", Some("fd00::7"))),
        ("10.0.2.7", "fd00:2::7", node.bridged_pod("b", "10.0.2.7", Some("fd00:2::7"))),
    ];
    with_agent(&node, |agent| {
        for (ip, ipv6, pod) in &pods {
            agent.set(&[shown("a", &[ip, ipv6]), shown("b", &[])]);
            // Whichever of them is the older one.
            for names in [["a", "b"], ["b", "a"]] {
                let _processes = names.map(|name| Process::of(&uid(name), pod));
                refused(&settled(pod, ip, V4), 403, "CallerAmbiguous");
                refused(&settled(pod, ipv6, V6), 403, "CallerAmbiguous");
            }
        }
    });
}

#[test]
fn a_namespace_without_a_pods_process_is_refused() {
    let Some(node) = node("ns_nobody") else { return };
    let pods = [
        ("10.0.1.7", "fd00::7", node.routed_pod("r", "10.0.1.7", Some("fd00::7"))),
        ("10.0.2.7", "fd00:2::7", node.bridged_pod("b", "10.0.2.7", Some("fd00:2::7"))),
    ];
    with_agent(&node, |agent| {
        for (ip, ipv6, pod) in &pods {
            let _process = Process::start(pod, "0::/system.slice/docker.service\n");
            agent.set(&[shown("a", &[ip, ipv6])]);
            refused(&settled(pod, ip, V4), 403, "CallerNotIdentified");
            refused(&settled(pod, ipv6, V6), 403, "CallerNotIdentified");
        }
    });
}

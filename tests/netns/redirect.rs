//! The redirect: which requests come to us, and which stay where they were meant for.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ADDRESSES;
use crate::net::*;
use crate::netns::{Node, Pod};

#[test]
fn the_redirect_serves_port_80_and_keeps_the_address_of_a_routed_pod() {
    let Some(node) = Node::new("redirect_routed") else { return };
    let pod = node.routed_pod("a", "10.0.1.7", Some("fd00::7"));
    port_80_reaches_9902(&node, &pod, "10.0.1.7", "fd00::7");
}

#[test]
fn the_redirect_serves_port_80_and_keeps_the_address_of_a_bridged_pod() {
    let Some(node) = Node::new("redirect_bridged") else { return };
    let pod = node.bridged_pod("a", "10.0.2.7", Some("fd00:2::7"));
    port_80_reaches_9902(&node, &pod, "10.0.2.7", "fd00:2::7");
}

fn port_80_reaches_9902(node: &Node, pod: &Pod, ip: &str, ipv6: &str) {
    install(node, &["--redirect-eks-port"]);
    for address in ADDRESSES {
        let address: IpAddr = address.parse().unwrap();
        let listener = listen(node, SocketAddr::new(address, 9902));
        let mut at_pod = connect(pod, SocketAddr::new(address, 80));
        let (mut at_agent, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), if address.is_ipv6() { ipv6 } else { ip }.parse::<IpAddr>().unwrap());
        // The way back passes the translation too.
        at_agent.write_all(b"x").unwrap();
        at_pod.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn port_80_of_the_eks_addresses_is_redirected_only_by_choice() {
    let Some(node) = Node::new("eks_port") else { return };
    let pod = node.routed_pod("a", "10.0.1.7", None);
    install(&node, &[]);
    let _ours = listen(&node, "169.254.170.23:9902".parse().unwrap());
    let refused = pod.run(async || TcpStream::connect("169.254.170.23:80"));
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    // And their agent can have it.
    let theirs = listen(&node, "169.254.170.23:80".parse().unwrap());
    connect(&pod, "169.254.170.23:80".parse().unwrap());
    theirs.accept().unwrap();
}

#[test]
fn port_80_of_an_address_that_another_agent_has_stays_its_own() {
    let Some(node) = Node::new("eks_agent") else { return };
    let redirect = ["--redirect-eks-port"];
    let redirected = || ruleset(&node).contains("chain eks_port");
    let warning = "warning redirect: 169.254.170.23 is on link pod-id-link0, not ours";
    // It comes after us, and goes; and it is there before us.
    let said = install(&node, &redirect);
    assert!(redirected() && !said.contains("warning redirect"), "{said}");
    their_link(&node);
    let said = install(&node, &redirect);
    assert!(!redirected() && said.contains(warning), "{said}");
    assert!(text(&net(&node, "verify", &redirect)).contains(warning));
    node.ip("link del pod-id-link0");
    install(&node, &redirect);
    assert!(redirected());
    remove(&node);
    their_link(&node);
    let said = install(&node, &redirect);
    assert!(!redirected() && said.contains(warning), "{said}");
}

#[test]
fn another_port_is_redirected_to_as_well() {
    let Some(node) = Node::new("other_port") else { return };
    let pod = node.routed_pod("a", "10.0.1.7", None);
    install(&node, &["--listen", "169.254.170.2:1234"]);
    let listener = listen(&node, "169.254.170.2:1234".parse().unwrap());
    connect(&pod, "169.254.170.2:80".parse().unwrap());
    listener.accept().unwrap();
}

#[test]
fn an_ingress_on_host_port_80_does_not_get_what_is_ours() {
    let Some(node) = Node::new("host_port") else { return };
    let pod = node.routed_pod("a", "10.0.1.7", None);
    // What the portmap plug-in does for a pod with hostPort 80: every local address.
    nft(
        &node,
        "add table ip portmap; add chain ip portmap p { type nat hook prerouting priority dstnat; };
         add rule ip portmap p fib daddr type local tcp dport 80 dnat to 10.0.1.99:8080",
    );
    install(&node, &[]);
    let listener = listen(&node, "169.254.170.2:9902".parse().unwrap());
    connect(&pod, "169.254.170.2:80".parse().unwrap());
    listener.accept().unwrap();
}

#[test]
fn instance_metadata_is_ours_while_we_answer_it_and_kube2iams_before_and_after() {
    let Some(node) = Node::new("moving_in") else { return };
    let pod = node.routed_pod("a", "10.0.1.7", None);
    let metadata = || pod.run(async || TcpStream::connect("169.254.169.254:80"));
    // As kube2iam and kiam do it: iptables' own chain of that priority.
    nft(
        &node,
        "add table ip nat; add chain ip nat PREROUTING { type nat hook prerouting priority dstnat; };
         add rule ip nat PREROUTING ip daddr 169.254.169.254 tcp dport 80 dnat to 10.0.0.1:8181",
    );
    let theirs = listen(&node, "10.0.0.1:8181".parse().unwrap());
    install(&node, &[]);
    let ours = listen(&node, "169.254.170.2:9904".parse().unwrap());
    for flags in [&[][..], &["--imds-listen", "169.254.170.2:9904"], &[]] {
        install(&node, flags);
        let _asked = metadata().unwrap();
        let (has_it, has_not) = if flags.is_empty() { (&theirs, &ours) } else { (&ours, &theirs) };
        has_it.accept().unwrap();
        has_not.set_nonblocking(true).unwrap();
        assert!(has_not.accept().is_err(), "{flags:?}");
        has_not.set_nonblocking(false).unwrap();
    }
}

#[test]
fn the_redirect_is_not_put_over_an_address_that_somebody_else_holds() {
    let Some(node) = Node::new("ecs_agent") else { return };
    node.ip("link add ecs0 type bridge");
    node.ip("address add 169.254.170.2/32 dev ecs0");
    install(&node, &[]);
    assert!(!ruleset(&node).contains("relative_uri"));
}

#[test]
fn flushing_iptables_leaves_the_redirect_in_place() {
    let Some(node) = Node::new("iptables_flush") else { return };
    install(&node, &[]);
    let before = ruleset(&node);
    for args in [["-t", "filter", "-F"], ["-t", "nat", "-F"], ["-t", "nat", "-X"]] {
        assert!(node.command("iptables").args(args).status().unwrap().success());
    }
    let after = nft(&node, "list table inet rolecall");
    assert!(before.contains(&after), "{after}");
}

#[test]
fn what_is_applied_is_what_the_files_say() {
    let (Some(node), Some(by_hand)) = (Node::new("applied"), Node::new("by_hand")) else { return };
    install(&node, &["--redirect-eks-port", "--metadata-guard", "enforce"]);
    // `net::install` is for an agent of the tests' own user.
    nft(&by_hand, &FILES.concat().replace("define agent_uid = 9902", "define agent_uid = 0"));
    let json = |node: &Node| {
        let mut listed: serde_json::Value =
            serde_json::from_str(&nft_args(node, &["-j", "list", "ruleset"])).unwrap();
        // Handles count every object the kernel ever made in the table.
        for object in listed["nftables"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .flat_map(|item| item.as_object_mut().unwrap().values_mut())
        {
            object.as_object_mut().unwrap().remove("handle");
        }
        listed
    };
    assert_eq!(json(&node), json(&by_hand));
}

#[test]
fn installing_again_leaves_no_moment_without_the_redirect() {
    let Some(node) = Node::new("no_gap") else { return };
    let pod = node.routed_pod("a", "10.0.1.7", None);
    install(&node, &[]);
    serve(listen(&node, "169.254.170.2:9902".parse().unwrap()), String::new());
    let installed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            pod.run(async || {
                while !installed.load(Ordering::Relaxed) {
                    TcpStream::connect("169.254.170.2:80").expect("the redirect is in place");
                }
            });
        });
        // Other rules each time: the same ones are left alone.
        for mode in ["off", "observe", "enforce", "observe", "off"] {
            install(&node, &["--metadata-guard", mode]);
        }
        installed.store(true, Ordering::Relaxed);
        asking.join().unwrap();
    });
}

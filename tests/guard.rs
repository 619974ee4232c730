//! The guard on real kernels: who reaches our addresses, and which pods reach the node's instance metadata.

#![cfg(target_os = "linux")]

#[path = "support/net.rs"]
mod net;
#[path = "support/netns.rs"]
mod netns;

#[path = "guard/host_pods.rs"]
mod host_pods;
#[path = "guard/instance_metadata.rs"]
mod instance_metadata;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use net::*;
use netns::{Namespace, Node, OUTSIDE_IP, OUTSIDE_IP_V6, Pod};

const METADATA: [&str; 2] = ["169.254.169.254:80", "[fd00:ec2::254]:80"];
const OURS: [&str; 2] = ["169.254.170.23:9902", "[fd00:ec2::23]:9902"];
/// Long enough for a handshake on a busy machine: whoever is not answered by then was dropped.
const PATIENCE: Duration = Duration::from_secs(2);
const ENFORCE: [&str; 2] = ["--metadata-guard", "enforce"];

/// A node with an uplink, a pod of each shape, and instance metadata that answers.
struct World {
    node: Node,
    outside: Pod,
    routed: Pod,
    bridged: Pod,
    _metadata: Vec<TcpListener>,
}

const ROUTED: [&str; 2] = ["10.0.1.7", "fd00::7"];
const BRIDGED: [&str; 2] = ["10.0.2.7", "fd00:2::7"];

impl World {
    fn new(test: &str) -> Option<Self> {
        let node = Node::new(test)?;
        let outside = node.outside();
        let routed = node.routed_pod("a", ROUTED[0], Some(ROUTED[1]));
        let bridged = node.bridged_pod("b", BRIDGED[0], Some(BRIDGED[1]));
        let metadata = METADATA.map(|at| listen(&outside, address(at))).into();
        Some(Self { node, outside, routed, bridged, _metadata: metadata })
    }

    fn pods(&self) -> [&Pod; 2] {
        [&self.routed, &self.bridged]
    }

    /// What `verify` says, its agent answering.
    fn verify(&self, args: &[&str]) -> String {
        done(&FakeAgent::start(&self.node, "the-word", &ALL).verify(&self.node, args))
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn outcome(namespace: &Namespace, to: &str) -> Result<(), ErrorKind> {
    try_connect(namespace, address(to), PATIENCE).map(drop).map_err(|err| err.kind())
}

/// Packets that a counter of our table has seen.
fn counter(node: &Node, name: &str) -> u64 {
    let listed = nft(node, &format!("list counter inet rolecall {name}"));
    listed.split_whitespace().skip_while(|&word| word != "packets").nth(1).unwrap().parse().unwrap()
}

// Instance metadata.

#[test]
fn observe_lets_pods_reach_instance_metadata_and_says_which_did() {
    let Some(world) = World::new("observe") else { return };
    install(&world.node, &[]);
    for at in METADATA {
        for pod in world.pods() {
            connect(pod, address(at));
        }
        connect(&world.node, address(at));
    }
    connect(&world.routed, address(METADATA[0]));
    let said = world.verify(&[]);
    assert!(said.contains("ok      metadata guard: observe"), "{said}");
    assert!(said.contains("5 connections (metadata_connections), 4 pods in a day"), "{said}");
    for (ip, connections) in [(ROUTED[0], 2), (ROUTED[1], 1), (BRIDGED[0], 1), (BRIDGED[1], 1)] {
        assert!(said.contains(&format!("metadata guard: {ip}: {connections} connections")), "{said}");
    }
}

#[test]
fn enforce_resets_pods_at_once_and_leaves_the_host_alone() {
    let Some(world) = World::new("enforce") else { return };
    for pod in world.pods() {
        connect(pod, address(METADATA[0]));
    }
    install(&world.node, &ENFORCE);
    for at in METADATA {
        for pod in world.pods() {
            assert_eq!(outcome(pod, at), Err(ErrorKind::ConnectionRefused), "{at}");
        }
        assert_eq!(outcome(&world.node, at), Ok(()), "{at}");
    }
    let said = world.verify(&ENFORCE);
    assert!(said.contains("ok      metadata guard: enforce"), "{said}");
    assert!(said.contains("4 connections (metadata_connections), 4 pods in a day: refused"), "{said}");
}

#[test]
fn enforce_closes_what_was_open_before() {
    let Some(world) = World::new("enforce_open") else { return };
    install(&world.node, &[]);
    for at in METADATA {
        let mut open = connect(&world.routed, address(at));
        install(&world.node, &ENFORCE);
        open.write_all(b"x").unwrap();
        open.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(open.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset, "{at}");
        install(&world.node, &[]);
    }
}

#[test]
fn enforce_refuses_other_protocols_and_leaves_name_resolution() {
    let Some(world) = World::new("enforce_udp") else { return };
    install(&world.node, &ENFORCE);
    let ask = |from: &str, to: &str| {
        let socket = world.routed.run(async || UdpSocket::bind(from)).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send(b"x").unwrap();
        socket.recv(&mut [0])
    };
    for (from, host) in [("0.0.0.0:0", "169.254.169.254"), ("[::]:0", "[fd00:ec2::254]")] {
        let refused = ask(from, &format!("{host}:80")).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{host}");
        let names = format!("{host}:53");
        let resolver = world.outside.run(async || UdpSocket::bind(&*names)).unwrap();
        resolver.set_read_timeout(Some(PATIENCE)).unwrap();
        let answered = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (_, from) = resolver.recv_from(&mut [0]).unwrap();
                resolver.send_to(b"y", from).unwrap();
            });
            ask(from, &names)
        });
        assert_eq!(answered.unwrap(), 1, "{host}");
    }
}

#[test]
fn off_lets_pods_pass_uncounted_and_still_guards_our_addresses() {
    let Some(world) = World::new("off") else { return };
    install(&world.node, &["--metadata-guard", "off"]);
    connect(&world.routed, address(METADATA[0]));
    assert!(!ruleset(&world.node).contains("metadata"));
    let _ours = listen(&world.node, address(OURS[0]));
    assert_eq!(outcome(&world.outside, OURS[0]), Err(ErrorKind::TimedOut));
}

#[test]
fn a_pod_that_somebody_sends_elsewhere_is_neither_counted_nor_refused() {
    let Some(world) = World::new("kube2iam") else { return };
    nft(
        &world.node,
        "add table ip theirs; add chain ip theirs p { type nat hook prerouting priority dstnat; };
         add rule ip theirs p ip daddr 169.254.169.254 tcp dport 80 dnat to 10.0.0.1:8181",
    );
    let theirs = listen(&world.node, address("10.0.0.1:8181"));
    install(&world.node, &ENFORCE);
    connect(&world.routed, address(METADATA[0]));
    theirs.accept().unwrap();
    assert_eq!(counter(&world.node, "metadata_connections"), 0);
}

// Our addresses.

#[test]
fn a_neighbour_with_a_route_of_its_own_does_not_reach_us_and_pods_do() {
    let Some(world) = World::new("neighbour") else { return };
    install(&world.node, &["--redirect-eks-port"]);
    let ours: Vec<_> = OURS.iter().map(|at| listen(&world.node, address(at))).collect();
    nft(&world.node, "delete table inet rolecall");
    for at in OURS {
        assert_eq!(outcome(&world.outside, at), Ok(()), "{at}: without the guard this shows nothing");
    }
    let said = install(&world.node, &["--redirect-eks-port"]);
    assert!(said.contains("ok      address guard: nobody reaches us by veth1"), "{said}");
    for at in [OURS[0], OURS[1], "169.254.170.23:80", "[fd00:ec2::23]:80"] {
        assert_eq!(outcome(&world.outside, at), Err(ErrorKind::TimedOut), "{at}");
        for namespace in [&*world.routed, &*world.bridged, &*world.node] {
            // The host's own requests pass no redirect.
            if !at.ends_with(":80") || namespace.name() != world.node.name() {
                assert_eq!(outcome(namespace, at), Ok(()), "{at} from {}", namespace.name());
            }
        }
    }
    drop(ours);
    let said = world.verify(&["--redirect-eks-port"]);
    assert!(said.contains("packets from outside this node (from_outside)"), "{said}");
}

#[test]
fn a_neighbour_that_comes_by_another_link_does_not_reach_us_either() {
    let Some(world) = World::new("second_card") else { return };
    install(&world.node, &[]);
    let ours: Vec<_> = OURS.iter().map(|at| listen(&world.node, address(at))).collect();
    // The way back to it is the uplink.
    speak_as(&world.routed, OUTSIDE_IP, OUTSIDE_IP_V6);
    for (at, listener) in OURS.iter().zip(ours) {
        let before = counter(&world.node, "from_outside");
        assert_eq!(outcome(&world.routed, at), Err(ErrorKind::TimedOut), "{at}");
        assert!(counter(&world.node, "from_outside") > before, "{at}");
        drop(listener);
    }
}

#[test]
fn a_routed_pod_with_the_address_of_another_is_dropped() {
    let Some(world) = World::new("spoofed") else { return };
    let victim = world.node.routed_pod("victim", "10.0.1.8", Some("fd00::8"));
    install(&world.node, &[]);
    let _ours: Vec<_> = OURS.iter().map(|at| listen(&world.node, address(at))).collect();
    for at in OURS {
        assert_eq!(outcome(&world.routed, at), Ok(()));
    }
    speak_as(&world.routed, "10.0.1.8", "fd00::8");
    for at in OURS {
        let before = counter(&world.node, "foreign_source");
        assert_eq!(outcome(&world.routed, at), Err(ErrorKind::TimedOut), "{at}");
        assert!(counter(&world.node, "foreign_source") > before, "{at}");
        assert_eq!(outcome(&victim, at), Ok(()), "{at}: the victim itself is served");
    }
}

/// Makes `pod` send all that is for us from these addresses, which it gives itself.
fn speak_as(pod: &Pod, ip: &str, ipv6: &str) {
    pod.ip(&format!("address add {ip}/32 dev eth0"));
    pod.ip(&format!("address add {ipv6}/128 dev eth0 nodad"));
    pod.ip(&format!("route add 169.254.170.23/32 via 169.254.1.1 dev eth0 src {ip}"));
    pod.ip(&format!("route add fd00:ec2::23/128 via fe80::1 dev eth0 src {ipv6}"));
}

#[test]
fn a_pod_that_is_answered_by_another_link_than_it_asks_by_is_served() {
    let Some(world) = World::new("asymmetric") else { return };
    install(&world.node, &[]);
    let _ours: Vec<_> = OURS.iter().map(|at| listen(&world.node, address(at))).collect();
    // As on Cilium: each pod comes in by its own link, and is reached by a common one.
    world.node.ip(&format!("link add common type veth peer name eth1 netns {}", world.routed.name()));
    world.node.ip("link set common up");
    world.node.ip("address add fe80::9/64 dev common nodad");
    world.routed.ip("link set eth1 up");
    world.routed.ip(&format!("address add {}/128 dev eth1 nodad", ROUTED[1]));
    world.node.ip(&format!("route replace {}/32 dev common", ROUTED[0]));
    world.node.ip(&format!("route del {}/128", ROUTED[1]));
    world.node.ip(&format!("route add {}/128 dev common", ROUTED[1]));
    for at in OURS {
        assert_eq!(outcome(&world.routed, at), Ok(()), "{at}");
        assert_eq!(outcome(&world.routed, at), Ok(()), "{at}");
    }
}

#[test]
fn a_bridge_that_is_the_way_out_is_not_closed_to_the_pods_on_it() {
    let Some(node) = Node::new("flat") else { return };
    let pod = node.bridged_pod("a", BRIDGED[0], None);
    node.ip("route add default via 10.0.2.99");
    let said = install(&node, &[]);
    assert!(said.contains("warning address guard: cni0 is the way out, and a bridge"), "{said}");
    let _ours = listen(&node, address(OURS[0]));
    assert_eq!(outcome(&pod, OURS[0]), Ok(()));
}

// Keeping it.

#[test]
fn the_rules_read_alike_where_protocols_have_no_names() {
    let Some(world) = World::new("no_names") else { return };
    // As in the image, which has no such file.
    install(&world.node, &ENFORCE);
    let agent = FakeAgent::start(&world.node, "the-word", &ALL);
    let mut command = world.node.command("unshare");
    command.args(["--mount", "sh", "-c", r#"mount --bind /dev/null /etc/protocols; exec "$@""#, "sh"]);
    command.args([env!("CARGO_BIN_EXE_rolecall"), "net", "verify", "--metadata-guard", "enforce"]);
    command.args(["--run-uid", "0", "--local-socket"]);
    let proof = command.arg(&agent.socket).output().unwrap();
    assert!(proof.status.success(), "{}", text(&proof));
}

#[test]
fn installing_again_keeps_the_counts() {
    let Some(world) = World::new("counts") else { return };
    install(&world.node, &[]);
    connect(&world.routed, address(METADATA[0]));
    install(&world.node, &[]);
    assert_eq!(counter(&world.node, "metadata_connections"), 1);
}

#[test]
fn changing_the_rules_leaves_no_moment_without_the_guard() {
    let Some(world) = World::new("switch") else { return };
    install(&world.node, &ENFORCE);
    let installed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            world.routed.run(async || {
                while !installed.load(Ordering::Relaxed) {
                    let refused = std::net::TcpStream::connect_timeout(&address(METADATA[0]), PATIENCE);
                    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
                }
            });
        });
        for extra in [&["--redirect-eks-port"][..], &[], &["--redirect-eks-port"], &[]] {
            install(&world.node, &[&ENFORCE, extra].concat());
        }
        installed.store(true, Ordering::Relaxed);
        asking.join().unwrap();
    });
}

#[test]
fn flushing_iptables_leaves_the_guard_in_place() {
    let Some(world) = World::new("guard_flush") else { return };
    install(&world.node, &ENFORCE);
    for program in ["iptables", "ip6tables"] {
        for args in [["-t", "filter", "-F"], ["-t", "nat", "-F"], ["-t", "filter", "-X"]] {
            assert!(world.node.command(program).args(args).status().unwrap().success());
        }
    }
    for at in METADATA {
        assert_eq!(outcome(&world.routed, at), Err(ErrorKind::ConnectionRefused), "{at}");
    }
}

#[test]
fn remove_gives_pods_back_what_they_had() {
    let Some(world) = World::new("guard_remove") else { return };
    let before = state(&world.node);
    install(&world.node, &ENFORCE);
    remove(&world.node);
    assert_eq!(state(&world.node), before);
    assert_eq!(outcome(&world.routed, METADATA[0]), Ok(()));
}

#[test]
fn verify_names_a_mode_and_an_uplink_that_are_not_the_ones_in_force() {
    let Some(world) = World::new("new_uplink") else { return };
    install(&world.node, &[]);
    let agent = FakeAgent::start(&world.node, "the-word", &ALL);
    let proof = |args: &[&str]| text(&agent.verify(&world.node, args));
    let said = proof(&ENFORCE);
    assert!(
        said.contains("FAILED  metadata guard: observe is in force, --metadata-guard asks for enforce"),
        "{said}"
    );
    assert!(said.contains("missing in table inet rolecall: `chain metadata_enforce`"), "{said}");
    world.node.ip("link add eth9 type veth peer name eth10");
    world.node.ip("link set eth9 up");
    world.node.ip("route add default dev eth9 metric 9");
    let said = proof(&[]);
    assert!(said.contains(r#"FAILED  rules: table inet rolecall knows the uplinks ["veth1"]"#), "{said}");
    install(&world.node, &[]);
    let said = proof(&[]);
    assert!(said.contains("ok      address guard: nobody reaches us by veth1, eth9"), "{said}");
}

// From inside a pod.

/// `verify`'s outcome and words, from inside these pods too.
fn from_inside(world: &World, pods: &[&Pod], args: &[&str]) -> (Option<i32>, String) {
    let agent = FakeAgent::start(&world.node, "the-word", &ALL);
    let paths: Vec<String> = pods.iter().map(|pod| path(pod)).collect();
    let inside = paths.iter().flat_map(|path| ["--netns", path]);
    let proof = agent.verify(&world.node, &args.iter().copied().chain(inside).collect::<Vec<_>>());
    (proof.status.code(), text(&proof))
}

fn path(pod: &Pod) -> String {
    format!("/run/netns/{}", pod.name())
}

#[test]
fn verify_proves_the_agent_and_the_guard_from_inside_pods() {
    let Some(world) = World::new("inside") else { return };
    install(&world.node, &ENFORCE);
    let (code, said) = from_inside(&world, &world.pods(), &ENFORCE);
    assert_eq!(code, Some(0), "{said}");
    for pod in world.pods().map(path) {
        for at in ALL {
            assert!(said.contains(&format!("ok      {at} from {pod}: our agent answers")), "{said}");
        }
        for at in METADATA {
            assert!(
                said.contains(&format!("ok      {at} from {pod}: not reached (Connection refused")),
                "{said}"
            );
        }
    }
}

#[test]
fn verify_counts_no_pod_as_one_that_asks_for_metadata() {
    let Some(world) = World::new("inside_observe") else { return };
    install(&world.node, &[]);
    let (code, said) = from_inside(&world, &world.pods(), &[]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(counter(&world.node, "metadata_connections"), 0, "{said}");
}

#[test]
fn verify_names_what_a_pod_reaches_and_what_it_does_not() {
    let Some(world) = World::new("inside_bad") else { return };
    // Rules as they should be, and still: somebody else takes the metadata requests, and the pod has another idea of our address.
    nft(
        &world.node,
        "add table ip theirs; add chain ip theirs p { type nat hook prerouting priority dstnat; };
         add rule ip theirs p ip daddr 169.254.169.254 tcp dport 80 dnat to 10.0.0.1:8181",
    );
    let _theirs = listen(&world.node, address("10.0.0.1:8181"));
    let only_v4 = world.node.routed_pod("c", "10.0.1.9", None);
    only_v4.ip("route add unreachable 169.254.170.23/32");
    install(&world.node, &ENFORCE);
    let (code, said) = from_inside(&world, &[&only_v4], &ENFORCE);
    assert_eq!(code, Some(1), "{said}");
    let pod = path(&only_v4);
    for line in [
        format!("FAILED  169.254.169.254:80 from {pod}: reached, though it is to be closed"),
        format!("FAILED  169.254.170.23:9902 from {pod}: cannot connect"),
        format!("ok      169.254.170.2:9902 from {pod}: our agent answers"),
        format!("warning [fd00:ec2::23]:9902 from {pod}: no route: this pod has no IPv6"),
    ] {
        assert!(said.contains(&line), "{line}: {said}");
    }
}

#[test]
fn verify_names_the_right_that_it_lacks_to_look_from_inside() {
    let Some(world) = World::new("inside_rights") else { return };
    install(&world.node, &[]);
    let agent = FakeAgent::start(&world.node, "the-word", &ALL);
    let socket = agent.socket.to_str().unwrap();
    let said = with_capabilities(
        &world.node,
        "-all,+net_admin",
        "verify",
        &[
            "--run-uid",
            "0",
            "--local-socket",
            socket,
            "--netns",
            &path(&world.routed),
            "--netns",
            "/run/none",
        ],
    );
    assert_eq!(said.status.code(), Some(1));
    for why in ["run this on the node as root (SYS_ADMIN)", "FAILED  /run/none: cannot open it"] {
        assert!(text(&said).contains(why), "{}", text(&said));
    }
}

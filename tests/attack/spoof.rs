//! A pod takes another's address: on a bridge that both share, and behind a cable of its own.
//!
//! Who has CAP_NET_ADMIN in its pod can do all of this there; who has CAP_NET_RAW most of it.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use tokio::time::Instant;

use crate::http;
use crate::ladder::*;
use crate::netns::{Namespace, Node, Pod};
use crate::process::Process;

/// What differs between the two.
struct Family {
    name: &'static str,
    victim: &'static str,
    own: &'static str,
    bits: u8,
    gateway: &'static str,
    to: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family { name: "v4", victim: "10.0.2.7", own: "10.0.2.8", bits: 24, gateway: "10.0.2.1", to: V4 },
    Family { name: "v6", victim: "fd00:2::7", own: "fd00:2::8", bits: 64, gateway: "fd00:2::1", to: V6 },
];

/// The victim `a` and the attacker `b`, which has both addresses, on one bridge.
struct Bridge {
    node: Node,
    family: &'static Family,
    victim: Pod,
    attacker: Pod,
    process_of_victim: Process,
    _process_of_attacker: Process,
}

impl Bridge {
    fn new(test: &str, family: &'static Family) -> Option<Self> {
        let node = node(&format!("{test}_{}", family.name))?;
        let victim = node.bridged_pod("a", "10.0.2.7", Some("fd00:2::7"));
        let attacker = node.bridged_pod("b", "10.0.2.8", Some("fd00:2::8"));
        let process_of_victim = Process::of(&uid("a"), &victim);
        let _process_of_attacker = Process::of(&uid("b"), &attacker);
        let nodad = if family.victim.contains(':') { "nodad" } else { "" };
        attacker.ip(&format!("address add {}/{} dev eth0 {nodad}", family.victim, family.bits));
        Some(Self { node, family, victim, attacker, process_of_victim, _process_of_attacker })
    }

    /// Both as they are, in the API server and in the watch.
    fn show(&self, agent: &Agent) {
        agent.set(&[shown("a", &[self.family.victim]), shown("b", &[self.family.own])]);
    }

    /// The node takes the victim's address to be at `pod`, as after its gratuitous ARP.
    fn points_to(&self, pod: &Namespace) {
        let (victim, mac) = (self.family.victim, mac(pod));
        self.node.ip(&format!("neighbour replace {victim} lladdr {mac} dev cni0 nud reachable"));
    }

    /// The attacker asks under its victim's address, and is refused under its own name.
    fn the_attacker_is_named(&self) {
        let answer = settled(&self.attacker, self.family.victim, self.family.to);
        refused(&answer, 403, "SourceMismatch");
        assert!(answer.body.contains(&uid("b")), "the attacker is named: {}", answer.body);
    }

    fn the_victim_is_served(&self) {
        assert_eq!(account(&settled(&self.victim, self.family.victim, self.family.to)), "a");
    }
}

#[test]
fn a_spoofer_on_the_bridge_is_itself_and_its_victim_is_served_before_and_after() {
    for family in &FAMILIES {
        let Some(bridge) = Bridge::new("spoof_alive", family) else { return };
        with_agent(&bridge.node, |agent| {
            bridge.show(agent);
            bridge.the_victim_is_served();
            bridge.points_to(&bridge.attacker);
            bridge.the_attacker_is_named();
            bridge.points_to(&bridge.victim);
            bridge.the_victim_is_served();
        });
    }
}

#[test]
fn a_spoofer_whose_victim_is_silent_is_itself() {
    for family in &FAMILIES {
        let Some(bridge) = Bridge::new("spoof_silent", family) else { return };
        with_agent(&bridge.node, |agent| {
            bridge.show(agent);
            bridge.the_victim_is_served();
            silence(&bridge.victim, "");
            bridge.victim.sysctl("ipv4/conf/eth0/arp_ignore", "8");
            // Nobody else answers who has the address.
            bridge.node.ip("neighbour flush dev cni0");
            bridge.the_attacker_is_named();
        });
    }
}

#[test]
fn a_spoofer_whose_victim_is_gone_is_itself_also_when_nobody_claims_the_address() {
    for family in &FAMILIES {
        let Some(bridge) = Bridge::new("spoof_gone", family) else { return };
        // What else is in it stays until the end.
        let Bridge { node, victim, attacker, process_of_victim, .. } = bridge;
        with_agent(&node, |agent| {
            agent.set(&[shown("a", &[family.victim]), shown("b", &[family.own])]);
            assert_eq!(account(&settled(&victim, family.victim, family.to)), "a");
            drop(process_of_victim);
            drop(victim);
            node.ip("neighbour flush dev cni0");
            let asks = || settled(&attacker, family.victim, family.to);
            refused(&asks(), 403, "SourceMismatch");
            agent.set(&[shown("b", &[family.own])]);
            assert_eq!(account(&asks()), "b");
        });
    }
}

#[test]
fn a_spoofer_that_announces_its_victims_address_is_itself() {
    for family in &FAMILIES {
        let Some(bridge) = Bridge::new("spoof_announced", family) else { return };
        with_agent(&bridge.node, |agent| {
            bridge.show(agent);
            bridge.the_victim_is_served();
            // A gratuitous ARP and an unsolicited neighbour advertisement, by the attacker's own kernel.
            bridge.attacker.sysctl("ipv4/conf/eth0/arp_notify", "1");
            bridge.attacker.sysctl("ipv6/conf/eth0/ndisc_notify", "1");
            bridge.attacker.ip("link set eth0 address 02:00:00:00:01:08");
            let shows = || bridge.node.ip(&format!("neighbour show {} dev cni0", family.victim));
            until(|| shows().contains("02:00:00:00:01:08"), || format!("not believed: {}", shows()));
            bridge.the_attacker_is_named();
        });
    }
}

#[test]
fn a_spoofer_that_gives_the_neighbour_entry_back_in_time_gets_nothing() {
    for family in &FAMILIES {
        let Some(bridge) = Bridge::new("spoof_flap", family) else { return };
        bridge.in_turns(|| bridge.points_to(&bridge.attacker), || bridge.points_to(&bridge.victim));
    }
}

/// Neither entry's age tells: the neighbour entry never changes, and every frame refreshes the forwarding entry.
#[test]
fn a_spoofer_under_its_victims_link_layer_address_gets_nothing() {
    for family in &FAMILIES {
        let Some(bridge) = Bridge::new("spoof_mac", family) else { return };
        bridge.attacker.ip(&format!("link set eth0 address {}", mac(&bridge.victim)));
        // Whoever sends a frame has the port.
        let send = |pod: &Namespace| {
            pod.ip("neighbour flush dev eth0");
            let gateway = SocketAddr::new(family.gateway.parse().unwrap(), 1);
            let refused = pod.run(async || TcpStream::connect(gateway)).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        };
        let to_attacker = || {
            bridge.points_to(&bridge.victim);
            send(&bridge.attacker);
        };
        bridge.in_turns(to_attacker, || send(&bridge.victim));
    }
}

/// On a cable of one's own, the answer to the first packet goes where the address is.
#[test]
fn a_spoofer_behind_a_cable_of_its_own_completes_no_handshake() {
    for (family, victim, own, to) in [("v4", "10.0.1.7", "10.0.1.8", V4), ("v6", "fd00::7", "fd00::8", V6)] {
        let Some(node) = node(&format!("spoof_routed_{family}")) else { return };
        let pods = [
            node.routed_pod("a", "10.0.1.7", Some("fd00::7")),
            node.routed_pod("b", "10.0.1.8", Some("fd00::8")),
        ];
        let [of_victim, _of_attacker] = [Process::of(&uid("a"), &pods[0]), Process::of(&uid("b"), &pods[1])];
        let [a, b] = pods;
        let nodad = if victim.contains(':') { "nodad" } else { "" };
        b.ip(&format!("address add {victim} dev eth0 {nodad}"));
        // Silent, or its kernel would end a connection that it does not know.
        silence(&a, "tcp flags rst");
        with_agent(&node, |agent| {
            agent.set(&[shown("a", &[victim]), shown("b", &[own])]);
            assert_eq!(account(&settled(&a, victim, to)), "a");
            no_handshake(&b, victim, to);
            // Nor when the victim and the route to it are gone, and its object is still there.
            drop(of_victim);
            drop(a);
            no_handshake(&b, victim, to);
            assert_eq!(account(&settled(&b, own, to)), "b");
        });
    }
}

/// It connects from `from`, and nothing comes of it.
fn no_handshake(pod: &Namespace, from: &str, to: &str) {
    let (from, to): (std::net::IpAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let connected = pod.run(async || {
        let socket =
            socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
        // Long enough for one more SYN.
        socket.connect_timeout(&to.into(), Duration::from_millis(1500))
    });
    assert!(connected.is_err(), "{from} was answered");
}

/// What `pod` sends is dropped where `filter` fits.
fn silence(pod: &Namespace, filter: &str) {
    for rule in [
        "add table inet t".to_owned(),
        "add chain inet t c { type filter hook output priority 0; }".to_owned(),
        format!("add rule inet t c {filter} drop"),
    ] {
        assert!(pod.command("nft").arg(rule).status().unwrap().success());
    }
}

fn until(done: impl Fn() -> bool, why: impl Fn() -> String) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", why());
        std::thread::yield_now();
    }
}

impl Bridge {
    /// The attacker has its victim's address for the handshake, the victim has it while the agent looks, and then the
    /// attacker again, for the answer.
    fn in_turns(&self, to_attacker: impl Fn(), to_victim: impl Fn()) {
        // Its kernel would end a connection that it does not know.
        silence(&self.victim, "tcp flags rst");
        let to: SocketAddr = self.family.to.parse().unwrap();
        let connection = RefCell::new(None);
        let before = || {
            to_attacker();
            let mut stream = self.attacker.run(async || {
                let stream = http::connect(self.family.victim, to).await.into_std().unwrap();
                stream.set_nonblocking(false).unwrap();
                stream
            });
            stream.write_all(http::request(to).as_bytes()).unwrap();
            connection.replace(Some(stream));
            to_victim();
        };
        with_late_agent(&self.node, before, |agent| {
            self.show(agent);
            let mut connection: TcpStream = connection.take().unwrap();
            // The answer is sent to the victim first, and again to the attacker once it has the address back.
            until(|| unacknowledged(&self.node) > 0, || "no answer".into());
            connection.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let (mut answer, begun) = ([0; 4096], Instant::now());
            let length = loop {
                // Again and again: the victim's kernel has things to say, too.
                to_attacker();
                match connection.read(&mut answer) {
                    Ok(length) => break length,
                    Err(err) => assert!(begun.elapsed() < Duration::from_secs(20), "{err}"),
                }
            };
            let answer = String::from_utf8_lossy(&answer[..length]);
            assert!(answer.contains("SourceMismatch") && answer.contains("did not open"), "{answer}");
        });
    }
}

/// Bytes of the agent's answers that nobody has acknowledged.
fn unacknowledged(node: &Node) -> u32 {
    let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
    let sockets = String::from_utf8(node.command("cat").args(tables).output().unwrap().stdout).unwrap();
    let sockets = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let established = sockets.filter(|columns| columns[3] != "0A" && columns[1].ends_with(":26AE"));
    established.map(|columns| u32::from_str_radix(&columns[4][..8], 16).unwrap()).sum()
}

fn mac(pod: &Namespace) -> String {
    let link = pod.ip("-o link show eth0");
    link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap().to_owned()
}

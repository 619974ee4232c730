//! A pod takes another's address.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::http;
use crate::ladder::*;
use crate::netns::{Namespace, Node};
use crate::process::Process;

const VICTIM: &str = "10.0.2.7";

#[test]
fn a_spoofer_on_the_bridge_is_itself_and_not_its_victim() {
    let Some(node) = node("attest_spoof") else { return };
    let (victim, attacker) = (node.bridged_pod("a", VICTIM, None), node.bridged_pod("b", "10.0.2.8", None));
    let _processes = [Process::of(&uid("a"), &victim), Process::of(&uid("b"), &attacker)];
    attacker.ip(&format!("address add {VICTIM}/24 dev eth0"));
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &[VICTIM]), shown("b", &["10.0.2.8"])]);
        // What a gratuitous ARP does.
        points_to(&node, &attacker);
        let answer = ask(&attacker, VICTIM, V4);
        refused(&answer, 403, "SourceMismatch");
        assert!(answer.body.contains(&uid("b")), "the attacker is named: {}", answer.body);
        points_to(&node, &victim);
        assert_eq!(account(&ask(&victim, VICTIM, V4)), "a");
    });
}

#[test]
fn a_spoofer_that_gives_the_neighbour_entry_back_in_time_gets_nothing() {
    let Some(node) = node("attest_flap") else { return };
    spoof_in_turns(&node, |_, _| {}, |node, attacker, _| points_to(node, attacker), points_to);
}

/// Neither entry's age tells: the neighbour entry never changes, and every frame refreshes the forwarding entry.
#[test]
fn a_spoofer_under_its_victims_link_layer_address_gets_nothing() {
    let Some(node) = node("attest_mac") else { return };
    let same_mac = |victim: &Namespace, attacker: &Namespace| {
        attacker.ip(&format!("link set eth0 address {}", mac(victim)));
    };
    // Whoever sends a frame has the port.
    let send = |pod: &Namespace| {
        pod.ip("neighbour flush dev eth0");
        let refused = pod.run(async || TcpStream::connect("10.0.2.1:1")).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    };
    spoof_in_turns(
        &node,
        same_mac,
        |node, attacker, victim| {
            points_to(node, victim);
            send(attacker);
        },
        |_, victim| send(victim),
    );
}

/// The attacker has its victim's address for the handshake, the victim has it while the agent looks, and then the
/// attacker again, for the answer.
fn spoof_in_turns(
    node: &Node,
    prepare: impl Fn(&Namespace, &Namespace),
    to_attacker: impl Fn(&Node, &Namespace, &Namespace),
    to_victim: impl Fn(&Node, &Namespace),
) {
    let (victim, attacker) = (node.bridged_pod("a", VICTIM, None), node.bridged_pod("b", "10.0.2.8", None));
    let _processes = [Process::of(&uid("a"), &victim), Process::of(&uid("b"), &attacker)];
    attacker.ip(&format!("address add {VICTIM}/24 dev eth0"));
    prepare(&victim, &attacker);
    // Silent, or its kernel would end a connection that it does not know.
    for rule in [
        "add table inet t",
        "add chain inet t c { type filter hook output priority 0; }",
        "add rule inet t c tcp flags rst drop",
    ] {
        assert!(victim.command("nft").arg(rule).status().unwrap().success());
    }
    let to: SocketAddr = V4.parse().unwrap();
    let connection = std::cell::RefCell::new(None);
    let before = || {
        to_attacker(node, &attacker, &victim);
        let mut stream = attacker.run(async || {
            let stream = http::connect(VICTIM, to).await.into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            stream
        });
        stream.write_all(http::request(to).as_bytes()).unwrap();
        connection.replace(Some(stream));
        to_victim(node, &victim);
    };
    with_late_agent(node, before, |agent| {
        agent.set(&[shown("a", &[VICTIM]), shown("b", &["10.0.2.8"])]);
        let mut connection: TcpStream = connection.take().unwrap();
        // The answer is sent to the victim first, and again to the attacker once it has the address back.
        while unacknowledged(node) == 0 {
            std::thread::yield_now();
        }
        to_attacker(node, &attacker, &victim);
        connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answer = [0; 4096];
        let length = connection.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.contains("SourceMismatch") && answer.contains("did not open"), "{answer}");
    });
}

/// Bytes of the agent's answers that nobody has acknowledged.
fn unacknowledged(node: &Node) -> u32 {
    let sockets = node.command("cat").arg("/proc/thread-self/net/tcp").output().unwrap();
    let sockets = String::from_utf8(sockets.stdout).unwrap();
    let established = sockets.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let established = established.filter(|columns| columns[3] != "0A" && columns[1].ends_with(":26AE"));
    established.map(|columns| u32::from_str_radix(&columns[4][..8], 16).unwrap()).sum()
}

/// The node takes the address of [`VICTIM`] to be at `pod`.
fn points_to(node: &Node, pod: &Namespace) {
    node.ip(&format!("neighbour replace {VICTIM} lladdr {} dev cni0 nud reachable", mac(pod)));
}

fn mac(pod: &Namespace) -> String {
    let link = pod.ip("-o link show eth0");
    link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap().to_owned()
}

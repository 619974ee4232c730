//! Processes of the node that want the agent's sockets: root's, with every option that lets sockets share an address, and other agents.
//!
//! What root can do is take the guard away, become the agent's user, or replace the agent. What is shown is that it gets nothing by listening.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use crate::Hardened;
use crate::net::{self, ALL};
use crate::netns::Node;

/// Whoever is not answered by then was dropped.
const PATIENCE: Duration = Duration::from_secs(2);

/// Root's listener, by each way to share: the options, and a link to be bound to.
fn rival(
    node: &Node,
    at: SocketAddr,
    (address, port): (bool, bool),
    link: Option<&str>,
) -> io::Result<TcpListener> {
    node.run(async || {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
        socket.set_reuse_address(address)?;
        socket.set_reuse_port(port)?;
        socket.bind_device(link.map(str::as_bytes))?;
        if at.is_ipv4() {
            socket.set_freebind_v4(true)?;
        } else {
            // So that it takes IPv4 too, where it may.
            socket.set_only_v6(false)?;
        }
        socket.bind(&at.into())?;
        socket.listen(1)?;
        Ok(socket.into())
    })
}

#[test]
fn no_process_of_the_node_shares_an_address_with_the_agent() {
    let Some(world) = Hardened::new("shared") else { return };
    let _pod = world.node.routed_pod("a", "10.0.1.7", None);
    let agent = world.node.run(async || world.running("shared", &[]).await);
    let others = ["0.0.0.0:9902", "[::]:9902", "[::ffff:169.254.170.23]:9902", "[::ffff:169.254.170.2]:9902"];
    for at in ALL.iter().chain(&others) {
        for options in [(false, false), (true, false), (false, true), (true, true)] {
            for link in [None, Some("lo"), Some("veth1")] {
                let shared = rival(&world.node, at.parse().unwrap(), options, link);
                assert_eq!(
                    shared.map_err(|err| err.kind()).err(),
                    Some(ErrorKind::AddrInUse),
                    "{at} with SO_REUSEADDR, SO_REUSEPORT {options:?} on {link:?}: {}",
                    agent.output()
                );
            }
        }
    }
}

#[test]
fn a_second_agent_of_the_same_user_takes_nothing_from_the_first() {
    let Some(world) = Hardened::new("second_agent") else { return };
    world.node.run(async || {
        let first = world.running("first-agent", &[]).await;
        let mut second = world.agent("second-agent", &["--metrics-listen", "127.0.0.1:0"]);
        assert_eq!(second.ended().await.code(), Some(1), "{}", second.output());
        assert!(second.output().contains("no --listen address could be bound"), "{}", second.output());
        assert!(
            first.probe("live").status.success(),
            "its local socket is still its own: {}",
            first.output()
        );
    });
}

#[test]
fn between_two_agents_whoever_takes_the_addresses_is_not_heard() {
    let Some(world) = Hardened::new("between") else { return };
    let node = &world.node;
    let pod = node.routed_pod("a", "10.0.1.7", Some("fd00::7"));
    let reached = |from: &crate::netns::Namespace, at: &str| {
        net::try_connect(from, at.parse().unwrap(), PATIENCE).map(drop).map_err(|err| err.kind())
    };
    let mut old = node.run(async || world.running("old-agent", &[]).await);
    for at in ALL {
        assert_eq!(reached(&pod, at), Ok(()), "{at}: {}", old.output());
    }
    old.signal(Signal::SIGTERM);
    node.run(async || assert_eq!(old.ended().await.code(), Some(0), "{}", old.output()));

    let rivals = ALL.map(|at| rival(node, at.parse().unwrap(), (true, true), None).unwrap());
    for at in ALL {
        assert_eq!(reached(&pod, at), Err(ErrorKind::TimedOut), "{at}");
        assert_eq!(reached(node, at), Err(ErrorKind::TimedOut), "{at} from the node");
    }
    assert!(!net::nft(node, "list counter inet rolecall impostor").contains("packets 0 "));
    // The successor shares nothing with them either, and says so rather than wait for ever.
    node.run(async || {
        let mut new = world.agent("blocked-agent", &[]);
        assert_eq!(new.ended().await.code(), Some(1), "{}", new.output());
    });
    // Not because nobody could have been heard.
    net::nft(node, "delete table inet rolecall");
    for at in ALL {
        assert_eq!(reached(&pod, at), Ok(()), "{at}");
    }
    net::install_for(node, crate::netns::AGENT_USER, &[]);
    drop(rivals);
    let new = node.run(async || world.running("new-agent", &[]).await);
    for at in ALL {
        assert_eq!(reached(&pod, at), Ok(()), "{at}: {}", new.output());
        assert_eq!(reached(node, at), Ok(()), "{at} from the node: {}", new.output());
    }
}

//! Pods' instance metadata is answered by the agent, and by nobody else, whatever was there before and whoever has left.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use super::*;

const IMDS: [&str; 2] = ["169.254.170.2:9904", "[fd00:ec2::23]:9904"];
const REDIRECT: [&str; 2] = ["--imds-listen", "169.254.170.2:9904,[fd00:ec2::23]:9904"];

/// Who answers a request for `/` at `to`: the word of our agent, or nothing of it.
fn word(namespace: &Namespace, to: &str) -> Option<String> {
    let mut stream = connect(namespace, address(to));
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nHost: {to}\r\n\r\n").unwrap();
    let mut head = [0; 512];
    let read = stream.read(&mut head).unwrap_or(0);
    let head = String::from_utf8_lossy(&head[..read]).into_owned();
    head.lines().find_map(|line| line.strip_prefix("x-rolecall-instance: ").map(str::to_owned))
}

fn agent(world: &World) -> FakeAgent {
    FakeAgent::start(&world.node, "the-word", &[&ALL[..], &IMDS].concat())
}

#[test]
fn pods_of_both_shapes_and_families_find_the_agent_in_the_nodes_place() {
    let Some(world) = World::new("imds_redirect") else { return };
    install(&world.node, &REDIRECT);
    let _agent = agent(&world);
    for at in METADATA {
        for pod in world.pods() {
            assert_eq!(word(pod, at).as_deref(), Some("the-word"), "{at}");
        }
        // The node's own, which the fake beyond the uplink accepts and does not answer: the host's requests are not redirected.
        let mut stream = connect(&world.node, address(at));
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let _ = write!(stream, "GET / HTTP/1.1\r\n\r\n");
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "{at}");
    }
    assert_eq!(counter(&world.node, "metadata_connections"), 0, "nothing of it was forwarded");
}

#[test]
fn while_no_agent_listens_pods_are_refused_and_never_find_the_node() {
    let Some(world) = World::new("imds_no_agent") else { return };
    install(&world.node, &REDIRECT);
    for at in METADATA {
        for pod in world.pods() {
            assert_eq!(outcome(pod, at), Err(ErrorKind::ConnectionRefused), "{at}");
        }
    }
}

#[test]
fn the_guard_closes_what_the_redirect_leaves() {
    let Some(world) = World::new("imds_guard") else { return };
    install(&world.node, &[]);
    let mut open = connect(&world.routed, address(METADATA[0]));
    let others = ["169.254.169.254:8080", "[fd00:ec2::254]:8080"];
    let _others = others.map(|at| listen(&world.outside, address(at)));
    let args = [&REDIRECT[..], &ENFORCE].concat();
    install(&world.node, &args);
    let _agent = agent(&world);
    open.write_all(b"x").unwrap();
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(open.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(word(&world.routed, METADATA[0]).as_deref(), Some("the-word"));
    for at in others {
        assert_eq!(outcome(&world.routed, at), Err(ErrorKind::ConnectionRefused), "{at}");
    }
}

#[test]
fn a_neighbour_reaches_instance_metadata_of_no_other_node() {
    let Some(world) = World::new("imds_neighbour") else { return };
    install(&world.node, &REDIRECT);
    let _agent = agent(&world);
    for (at, by, family) in [(IMDS[0], "10.0.9.1", "-4"), (IMDS[1], "fd00:9::1", "-6")] {
        let ip = address(at).ip();
        world.outside.ip(&format!("{family} route add {ip} via {by}"));
        assert_eq!(outcome(&world.outside, at), Err(ErrorKind::TimedOut), "{at}");
    }
}

#[test]
fn verify_proves_it_from_inside_and_names_who_else_takes_it() {
    let Some(world) = World::new("imds_verify") else { return };
    let args = [&REDIRECT[..], &ENFORCE].concat();
    install(&world.node, &args);
    let agent = agent(&world);
    let inside = world.pods().map(path);
    let verify = || {
        let inside = inside.iter().flat_map(|path| ["--netns", path]);
        let output = agent.verify(&world.node, &args.iter().copied().chain(inside).collect::<Vec<_>>());
        (output.status.code(), text(&output))
    };
    let (code, said) = verify();
    assert_eq!(code, Some(0), "{said}");
    for at in METADATA {
        for pod in &inside {
            let line = format!("ok      {at} from {pod}: our agent answers in its place");
            assert!(said.contains(&line), "{line}: {said}");
        }
    }
    nft(
        &world.node,
        "add table ip theirs; add chain ip theirs p { type nat hook prerouting priority dstnat - 20; };
         add rule ip theirs p ip daddr 169.254.169.254 tcp dport 80 dnat to 10.0.0.1:8181",
    );
    serve(
        listen(&world.node, address("10.0.0.1:8181")),
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into(),
    );
    let (code, said) = verify();
    assert_eq!(code, Some(1), "{said}");
    let line =
        format!("FAILED  169.254.169.254:80 from {}: answered by something other than our agent", inside[0]);
    assert!(said.contains(&line), "{line}: {said}");
}

#[test]
fn removing_it_gives_pods_back_what_they_had() {
    let Some(world) = World::new("imds_remove") else { return };
    install(&world.node, &REDIRECT);
    remove(&world.node);
    for at in METADATA {
        for pod in world.pods() {
            assert_eq!(outcome(pod, at), Ok(()), "{at}");
        }
    }
}

//! What `/proc` shows of a running agent.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nix::sys::signal::Signal;

use crate::netns::{AGENT_USER, OTHER_USER};
use crate::{Hardened, ROLECALL, as_user};

#[test]
fn the_agent_has_no_capability_no_way_to_get_one_and_no_core() {
    let Some(world) = Hardened::new("given_up") else { return };
    world.node.run(async || {
        let agent = world.running("given-up", &[]).await;
        let own = format!("/proc/{}", agent.id());
        let status = fs::read_to_string(format!("{own}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("{name}: {status}")).trim().to_owned()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(field("Uid"), [AGENT_USER; 4].map(|user| user.to_string()).join("\t"));
        assert_eq!(field("NoNewPrivs"), "1");
        // What is not dumpable is root's in /proc: its own user can neither trace it nor read its memory.
        assert_eq!(fs::metadata(format!("{own}/environ")).unwrap().uid(), 0);
        let limits = fs::read_to_string(format!("{own}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    });
}

#[test]
fn another_process_of_the_agents_user_reads_nothing_of_its_memory() {
    let Some(world) = Hardened::new("memory") else { return };
    world.node.run(async || {
        let agent = world.running("memory", &[]).await;
        for file in ["environ", "maps", "mem"] {
            let path = format!("/proc/{}/{file}", agent.id());
            let read = as_user(&world.node, AGENT_USER, "cat").arg(&path).output().unwrap();
            let said = String::from_utf8_lossy(&read.stderr);
            assert!(said.contains("Permission denied"), "{file}: {said}");
        }
    });
}

#[test]
fn the_local_socket_is_the_agents_and_roots_alone() {
    let Some(world) = Hardened::new("local_socket") else { return };
    world.node.run(async || {
        let mut agent = world.running("local-socket", &[]).await;
        assert_eq!(fs::metadata(&agent.socket).unwrap().permissions().mode() & 0o777, 0o600);
        let probe = |user| {
            let mut command = as_user(&world.node, user, ROLECALL);
            command.args(["probe", "live", "--local-socket"]).arg(&agent.socket).output().unwrap()
        };
        assert!(probe(AGENT_USER).status.success(), "the kubelet's probe is the agent's user");
        let said = String::from_utf8(probe(OTHER_USER).stderr).unwrap();
        assert!(said.contains("Permission denied"), "{said}");
        let remove = as_user(&world.node, OTHER_USER, "rm").arg("-f").arg(&agent.socket).output().unwrap();
        assert!(!remove.status.success() && agent.socket.exists());

        agent.signal(Signal::SIGTERM);
        assert_eq!(agent.ended().await.code(), Some(0), "{}", agent.output());
        assert!(!agent.socket.exists());
    });
}

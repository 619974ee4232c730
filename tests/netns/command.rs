//! `rolecall net install` as a process: its rights, its output, its folder, its flags.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::net::*;
use crate::netns::Node;

#[test]
fn install_needs_no_right_but_net_admin_and_chown() {
    let Some(node) = Node::new("rights") else { return };
    let run_dir = run_dir(&node);
    let said = with_capabilities(
        &node,
        "-all,+net_admin,+chown",
        "install",
        &["--run-dir", &run_dir, "--run-uid", "0"],
    );
    assert!(said.status.success(), "{}", text(&said));
    assert_eq!(links_of(&node, "169.254.170.2").len(), 1);
    assert!(ruleset(&node).contains("relative_uri"));
    let made = fs::metadata(&run_dir).unwrap();
    assert_eq!((made.mode() & 0o7777, made.uid()), (0o700, 0));
}

#[test]
fn install_names_the_capability_that_is_missing() {
    let Some(node) = Node::new("no_rights") else { return };
    let said = with_capabilities(&node, "-all", "install", &["--run-dir", &run_dir(&node), "--run-uid", "0"]);
    assert_eq!(said.status.code(), Some(1));
    // Three addresses and the rules.
    assert_eq!(text(&said).matches("needs the capability NET_ADMIN").count(), 4, "{}", text(&said));
}

#[test]
fn install_finishes_when_nobody_reads_what_it_says() {
    let Some(node) = Node::new("closed_pipe") else { return };
    let run_dir = run_dir(&node);
    let mut command = net_command(&node, "install");
    command.args(["--run-uid", "0", "--run-dir", &run_dir]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command.stderr(writer.try_clone().unwrap()).stdout(writer).status().unwrap();
    assert!(status.success(), "{status}");
    assert!(ruleset(&node).contains("relative_uri"));
}

#[test]
fn a_run_directory_that_kubelet_made_is_closed_to_others() {
    let Some(node) = Node::new("run_dir") else { return };
    let run_dir = run_dir(&node);
    fs::create_dir(&run_dir).unwrap();
    fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o755)).unwrap();
    install(&node, &[]);
    assert_eq!(fs::metadata(&run_dir).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn bad_flags_are_64_with_every_mistake_and_change_nothing() {
    let Some(node) = Node::new("bad_flags") else { return };
    let before = state(&node);
    let said = net(&node, "install", &["--listen", "0.0.0.0:9902", "--listen", "here"]);
    assert_eq!(said.status.code(), Some(64));
    assert_eq!(text(&said).matches("error: --listen").count(), 2, "{}", text(&said));
    assert_eq!(state(&node), before);
}

//! `rolecall net keep` on real kernels: what somebody takes away comes back, and nothing else.

#![cfg(target_os = "linux")]

#[path = "support/net.rs"]
mod net;
#[path = "support/netns.rs"]
mod netns;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use net::*;
use netns::Node;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

/// Far less than the half minute after which it looks without being told, and far more than it takes.
const SOON: Duration = Duration::from_secs(10);
const ENFORCE: [&str; 2] = ["--metadata-guard", "enforce"];

/// A running `net keep`; ends with this value.
struct Keeper {
    child: Child,
    lines: Receiver<String>,
}

impl Keeper {
    fn start(node: &Node, args: &[&str]) -> Self {
        Self::run(net_command(node, "keep").args(args))
    }

    fn run(command: &mut Command) -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        command.stdin(Stdio::null()).stdout(writer.try_clone().unwrap()).stderr(writer);
        let child = command.spawn().unwrap();
        let (sender, lines) = channel();
        thread::spawn(move || {
            BufReader::new(reader).lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        let keeper = Self { child, lines };
        keeper.until("ok      keep: watching");
        keeper
    }

    /// Waits for a line that begins so, and returns all until then.
    fn until(&self, line: &str) -> Vec<String> {
        let (begun, mut seen) = (Instant::now(), Vec::new());
        loop {
            let left = SOON.saturating_sub(begun.elapsed());
            let next =
                self.lines.recv_timeout(left).unwrap_or_else(|err| panic!("{err}: no {line:?} in {seen:?}"));
            seen.push(next);
            if seen.last().is_some_and(|last| last.starts_with(line)) {
                return seen;
            }
        }
    }

    /// Waits for a repair, and returns what was said to be wrong.
    fn repaired(&self) -> String {
        self.until("ok      keep: repaired").join("\n")
    }

    fn stop(mut self) -> String {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        self.until("ok      keep: stopped").join("\n")
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_flushed_ruleset_comes_back() {
    let Some(node) = Node::new("keep_flush") else { return };
    install(&node, &ENFORCE);
    let before = ruleset(&node);
    let keeper = Keeper::start(&node, &ENFORCE);
    nft(&node, "flush ruleset");
    let said = keeper.repaired();
    assert!(said.contains("warning keep: missing in table inet rolecall"), "{said}");
    assert_eq!(ruleset(&node), before);
}

#[test]
fn a_table_that_somebody_changed_is_put_right() {
    let Some(node) = Node::new("keep_changed") else { return };
    install(&node, &ENFORCE);
    let before = ruleset(&node);
    let keeper = Keeper::start(&node, &ENFORCE);
    for (change, said) in [
        ("flush chain inet rolecall metadata_enforce", "missing in table inet rolecall"),
        ("add rule inet rolecall to_us accept", "not ours, but in table inet rolecall: `accept`"),
        ("delete table inet rolecall", "missing in table inet rolecall"),
    ] {
        nft(&node, change);
        let why = keeper.repaired();
        assert!(why.contains(said), "{change}: {why}");
        assert_eq!(ruleset(&node), before, "{change}");
    }
}

#[test]
fn a_deleted_address_comes_back() {
    let Some(node) = Node::new("keep_address") else { return };
    install(&node, &[]);
    let before = addresses_and_routes(&node);
    let keeper = Keeper::start(&node, &[]);
    for (address, bits) in [("169.254.170.23", 32), ("fd00:ec2::23", 128)] {
        let link = links_of(&node, address).remove(0);
        node.ip(&format!("address del {address}/{bits} dev {link}"));
        let why = keeper.repaired();
        assert!(why.contains(&format!("warning keep: {address} was on no link")), "{why}");
        assert_eq!(links_of(&node, address), [link]);
    }
    let sorted = |text: &str| {
        let mut words: Vec<String> = text
            .lines()
            .map(|line| line.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned())
            .collect();
        words.sort();
        words
    };
    assert_eq!(sorted(&addresses_and_routes(&node)), sorted(&before));
}

#[test]
fn our_own_link_is_set_up_again() {
    let Some(node) = Node::new("keep_link") else { return };
    install(&node, &[]);
    let keeper = Keeper::start(&node, &[]);
    let link = links_of(&node, "169.254.170.23").remove(0);
    if link == "lo" {
        // No dummy links in this kernel. `lo` is not ours to set.
        node.ip("link set lo down");
        assert_eq!(keeper.stop().lines().count(), 1);
        return;
    }
    node.ip("link set rolecall0 down");
    assert!(keeper.repaired().contains("warning keep: rolecall0 was down"));
    assert!(node.ip("link show dev rolecall0").contains(",UP"));
}

#[test]
fn an_uplink_that_appears_is_closed() {
    let Some(node) = Node::new("keep_uplink") else { return };
    let _outside = node.outside();
    install(&node, &[]);
    let keeper = Keeper::start(&node, &[]);
    node.ip("link add eth9 type veth peer name eth10");
    node.ip("link set eth9 up");
    node.ip("route add default dev eth9 metric 9");
    let why = keeper.repaired();
    assert!(why.contains("knows the uplinks [\"veth1\"]"), "{why}");
    assert!(nft(&node, "list set inet rolecall uplinks").contains("eth9"));
}

#[test]
fn what_install_would_leave_alone_is_left_alone() {
    let Some(node) = Node::new("keep_theirs") else { return };
    their_link(&node);
    nft(&node, "add table inet theirs; add chain inet theirs c");
    install(&node, &[]);
    let before = state(&node);
    let keeper = Keeper::start(&node, &[]);
    nft(&node, "add rule inet theirs c accept; flush chain inet theirs c");
    node.ip("address add 10.9.9.9/32 dev lo");
    node.ip("address del 10.9.9.9/32 dev lo");
    // By the time of this repair the others' changes have been looked at, too.
    nft(&node, "delete table inet rolecall");
    let said = keeper.repaired();
    assert_eq!(said.lines().count(), 2, "{said}");
    assert_eq!(state(&node), before);
    assert_eq!(keeper.stop(), "ok      keep: stopped; addresses and rules stay");
    assert_eq!(state(&node), before);
}

#[test]
fn who_keeps_flushing_meets_fewer_repairs_each_time() {
    let Some(node) = Node::new("keep_fight") else { return };
    install(&node, &[]);
    let keeper = Keeper::start(&node, &[]);
    let began = Instant::now();
    for _ in 0..3 {
        nft(&node, "flush ruleset");
        keeper.repaired();
    }
    // 1 s after the first repair, 2 s after the second.
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn it_needs_no_right_but_net_admin_and_names_it() {
    let Some(node) = Node::new("keep_rights") else { return };
    install(&node, &[]);
    let mut command = node.command("setpriv");
    let set = "-all,+net_admin";
    command.args(["--bounding-set", set, "--inh-caps", set, env!("CARGO_BIN_EXE_rolecall"), "net", "keep"]);
    let keeper = Keeper::run(command.args(["--run-uid", "0"]));
    nft(&node, "flush ruleset");
    let link = links_of(&node, "169.254.170.2").remove(0);
    node.ip(&format!("address del 169.254.170.2/32 dev {link}"));
    keeper.repaired();
    drop(keeper);
    let said = with_capabilities(&node, "-all", "keep", &[]);
    assert_eq!(said.status.code(), Some(1));
    assert!(text(&said).contains("needs the capability NET_ADMIN"), "{}", text(&said));
}

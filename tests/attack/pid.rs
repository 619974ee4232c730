//! A process ends and its number is given to another pod's, between two steps of the ladder.
//!
//! A process that changes its namespace under one number stands for the two, and a tree of the test's for what `/proc` shows of them. Its
//! `cgroup` is a FIFO: whoever reads it waits for the test, which is how the change comes between two steps and not some time.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::ladder::*;
use crate::netns::Namespace;
use crate::process::cgroup;

/// A process in the first of three namespaces, which goes to the next with each line that it is sent.
struct Wanderer(Child);

impl Wanderer {
    fn start([first, second, third]: [&Namespace; 3]) -> Self {
        let enter = |namespace: &Namespace| format!("exec nsenter --net=/run/netns/{}", namespace.name());
        let script = format!("read x; {} sh -c 'read x; {} sleep 600'", enter(second), enter(third));
        Self(first.command("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap())
    }

    fn go(&mut self, to: &Namespace) {
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        self.is_in(to);
    }

    fn is_in(&self, namespace: &Namespace) {
        let inode = |path: &str| fs::metadata(path).map(|of| of.ino()).ok();
        let (own, its) =
            (format!("/proc/{}/ns/net", self.0.id()), format!("/run/netns/{}", namespace.name()));
        while inode(&own) != inode(&its) {
            std::thread::yield_now();
        }
    }
}

impl Drop for Wanderer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What stands in for `/proc`: our parent, whom the agent asks for at its start, and one process.
struct Tree(PathBuf);

impl Tree {
    fn new() -> Self {
        let root = PathBuf::from("/run/recycled");
        fs::create_dir_all(&root).unwrap();
        let parent = nix::unistd::getppid().to_string();
        symlink(Path::new("/proc").join(&parent), root.join(parent)).unwrap();
        Self(root)
    }

    /// A directory as of a process whose namespace has this address; it has no `cgroup` yet.
    fn directory(&self, name: &str, address: &str) -> PathBuf {
        let directory = self.0.join(name);
        fs::create_dir_all(directory.join("net")).unwrap();
        fs::write(directory.join("net/fib_trie"), format!("|-- {address}\n   /32 host LOCAL\n")).unwrap();
        directory
    }

    /// `pid` is the process of this directory from now on.
    fn show(&self, pid: u32, directory: &Path) {
        let new = self.0.join("new");
        symlink(directory, &new).unwrap();
        fs::rename(new, self.0.join(pid.to_string())).unwrap();
    }
}

#[test]
fn a_number_that_changes_hands_between_two_steps_names_nobody() {
    let Some(node) = node("pid_recycled") else { return };
    let victim = node.routed_pod("a", "10.0.1.7", None);
    let attacker = node.routed_pod("b", "10.0.1.8", None);
    let mut process = Wanderer::start([&attacker, &victim, &attacker]);
    process.is_in(&attacker);
    let (pid, tree) = (process.0.id(), Tree::new());
    // Both show the attacker's address: the numbers alone must do.
    let (of_attacker, of_victim) = (tree.directory("b", "10.0.1.8"), tree.directory("a", "10.0.1.8"));
    fs::write(of_attacker.join("cgroup"), cgroup(&uid("b"))).unwrap();
    let fifo = of_victim.join("cgroup");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    tree.show(pid, &of_attacker);
    with_agent_over(
        &tree.0,
        &node,
        || {},
        |agent| {
            agent.set(&[shown("a", &["10.0.1.7"]), shown("b", &["10.0.1.8"])]);
            assert_eq!(
                account(&ask(&attacker, "10.0.1.8", V4)),
                "b",
                "the number stands for its link from now on"
            );
            // It has ended, and one of the victim's has its number.
            process.go(&victim);
            tree.show(pid, &of_victim);
            let recycled = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // Opened together with the agent, which has the victim's directory in its hand by now.
                    let mut read = File::options().write(true).open(&fifo).unwrap();
                    if recycled.load(Ordering::Relaxed) {
                        return;
                    }
                    read.write_all(cgroup(&uid("a")).as_bytes()).unwrap();
                    // The victim's ends as well, and one of the attacker's has the number. Then the agent reads on.
                    fs::remove_file(&fifo).unwrap();
                    process.go(&attacker);
                    tree.show(pid, &of_attacker);
                    recycled.store(true, Ordering::Relaxed);
                });
                let answer = ask(&attacker, "10.0.1.8", V4);
                assert_eq!(account(&answer), "b");
                let was_read = recycled.swap(true, Ordering::Relaxed);
                // Were it not read, the thread would still wait.
                let _ = File::options().read(true).open(&fifo);
                assert!(was_read, "the agent never asked by that number");
            });
            assert_eq!(account(&ask(&attacker, "10.0.1.8", V4)), "b");
        },
    );
}

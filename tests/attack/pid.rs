//! A process ends and its number is given to another pod's, between two steps of the ladder.
//!
//! A tree of the test's stands for what `/proc` shows. In it, `cgroup` is a FIFO: who reads it waits for the test, which is how the change
//! comes between two steps and not some time.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::ladder::*;
use crate::process::{Process, cgroup};

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

/// When the kernel is asked by number, the number is one of the attacker's processes; what was opened before is the victim's.
#[test]
fn a_number_that_changes_hands_between_two_steps_names_nobody() {
    let Some(node) = node("pid_recycled") else { return };
    let attacker = node.routed_pod("b", "10.0.1.8", None);
    let process = Process::of(&uid("b"), &attacker);
    let (pid, tree) = (process.id(), Tree::new());
    // Both show the attacker's address: the numbers alone must do.
    let (of_attacker, of_victim) = (tree.directory("b", "10.0.1.8"), tree.directory("a", "10.0.1.8"));
    fs::write(of_attacker.join("cgroup"), cgroup(&uid("b"))).unwrap();
    let fifo = of_victim.join("cgroup");
    with_agent_over(
        &tree.0,
        &node,
        || {},
        |agent| {
            // The kube API does not show the attacker's address yet, so it contradicts nothing.
            agent.set(&[shown("a", &["10.0.1.7"]), shown("b", &[])]);
            // After the first look at the victim's process, or after the second.
            for looks in [1, 2] {
                mkfifo(&fifo, Mode::S_IRWXU).unwrap();
                tree.show(pid, &of_victim);
                let (recycle, recycled) = mpsc::channel();
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        for look in 1..=looks {
                            // Opened together with the agent, which has the victim's directory in its hand by now.
                            let mut read = File::options().write(true).open(&fifo).unwrap();
                            read.write_all(cgroup(&uid("a")).as_bytes()).unwrap();
                            fs::remove_file(&fifo).unwrap();
                            if look == looks {
                                // The victim's process ends, and one of the attacker's has the number. Then the agent reads on.
                                tree.show(pid, &of_attacker);
                                recycle.send(()).unwrap();
                            } else {
                                // One of its own for the next look: this one may still have its reader.
                                mkfifo(&fifo, Mode::S_IRWXU).unwrap();
                            }
                            drop(read);
                        }
                    });
                    let answer = ask(&attacker, "10.0.1.8", V4);
                    assert!(recycled.try_recv().is_ok(), "the agent looked less often than {looks} times");
                    assert!(
                        answer.status == 403 || answer.status == 503 || account(&answer) == "b",
                        "{answer:?}"
                    );
                });
            }
            assert_eq!(account(&settled(&attacker, "10.0.1.8", V4)), "b", "nothing is remembered of it");
        },
    );
}

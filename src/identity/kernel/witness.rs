//! The process that stood for a link at the last walk, kept for the link's next connections.
//!
//! The key is the index of our end of the cable, which the kernel never gives out again. Namespace ids it does give
//! out again at once, and addresses go from pod to pod: neither is a key anywhere.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::super::pods::PodUid;
use super::process::Process;

/// A witness this old is believed, and the thread is asked to look at all of its namespace's processes again.
const FRESH: Duration = Duration::from_secs(5);
/// One this old is not. So that is how long a second pod's process in the namespace can go unnoticed: nothing but
/// the node's root can put one there.
const LIFE: Duration = Duration::from_secs(10);
/// Several times the pods of a node. Forgetting all of them costs one walk each.
const MAX_LINKS: usize = 1024;
/// A pod that calls from more has some of them looked up again.
const MAX_ADDRESSES: usize = 8;

/// A pod's process.
pub(super) struct Witness {
    pub(super) pid: u32,
    pub(super) uid: PodUid,
    /// Held, so that the number above means this process or nobody.
    pub(super) process: Process,
    /// Seen to be local to its namespace.
    addresses: Mutex<Vec<IpAddr>>,
}

impl Witness {
    pub(super) fn new(pid: u32, uid: PodUid, process: Process) -> Self {
        Self { pid, uid, process, addresses: Mutex::default() }
    }

    /// Whether `address` has been seen to be local. It may have been taken away since; but whoever can do that in
    /// the namespace of a pod could as well leave it there.
    pub(super) fn knows(&self, address: IpAddr) -> bool {
        self.addresses().contains(&address)
    }

    /// Whether `address` is local: a look at the namespace's own tables, which the pod can make long.
    pub(super) fn has(&self, address: IpAddr) -> io::Result<bool> {
        if self.knows(address) {
            return Ok(true);
        }
        let local = self.process.has_address(address)?;
        if local {
            let mut addresses = self.addresses();
            if addresses.len() >= MAX_ADDRESSES {
                addresses.remove(0);
            }
            addresses.push(address);
        }
        Ok(local)
    }

    fn addresses(&self) -> MutexGuard<'_, Vec<IpAddr>> {
        self.addresses.lock().expect("nothing panics while it holds this lock")
    }
}

/// The witness of each link.
#[derive(Default)]
pub(super) struct Witnesses(Mutex<HashMap<u32, Entry>>);

struct Entry {
    witness: Arc<Witness>,
    /// Before the walk began.
    walked: Instant,
    /// A further walk is asked for.
    wanted: bool,
}

impl Witnesses {
    /// The witness of `link`, if it is young enough.
    pub(super) fn of(&self, link: u32, now: Instant) -> Option<Arc<Witness>> {
        let mut entries = self.entries();
        let entry = entries.get(&link)?;
        if now.saturating_duration_since(entry.walked) < LIFE {
            return Some(Arc::clone(&entry.witness));
        }
        entries.remove(&link);
        None
    }

    /// Whether it is time for another walk, said once for each that is due.
    pub(super) fn want(&self, link: u32, now: Instant) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(&link) else { return false };
        let due = !entry.wanted && now.saturating_duration_since(entry.walked) >= FRESH;
        entry.wanted |= due;
        due
    }

    /// Those for which a walk is wanted.
    pub(super) fn wanted(&self) -> Vec<(u32, Arc<Witness>)> {
        let entries = self.entries();
        let wanted = entries.iter().filter(|(_, entry)| entry.wanted);
        wanted.map(|(link, entry)| (*link, Arc::clone(&entry.witness))).collect()
    }

    /// `witness` stands for `link`, by a walk that began at `walked`.
    pub(super) fn keep(&self, link: u32, witness: Arc<Witness>, walked: Instant) {
        let mut entries = self.entries();
        if entries.len() >= MAX_LINKS && !entries.contains_key(&link) {
            entries.clear();
        }
        entries.insert(link, Entry { witness, walked, wanted: false });
    }

    /// Nobody stands for `link`.
    pub(super) fn forget(&self, link: u32) {
        self.entries().remove(&link);
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<u32, Entry>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::process::Proc;
    use super::*;

    const ADDRESS: &str = "fd00::7";

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("7/net")).unwrap();
            fs::write(root.path().join("7/cgroup"), "").unwrap();
            Self(root)
        }

        fn addresses(&self, addresses: &[&str]) {
            let hex = |text: &&str| text.parse::<std::net::Ipv6Addr>().unwrap().to_bits();
            let lines: String =
                addresses.iter().map(|text| format!("{:032x} 02 80 00 80 eth0\n", hex(text))).collect();
            fs::write(self.0.path().join("7/net/if_inet6"), lines).unwrap();
        }

        fn witness(&self) -> Arc<Witness> {
            let process = Proc::new(self.0.path()).process(7).unwrap().unwrap();
            Arc::new(Witness::new(7, PodUid::new("uid"), process))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_witness_is_believed_for_its_life_and_looked_at_again_in_time() {
        let (tree, witnesses, now) = (Tree::new(), Witnesses::default(), Instant::now());
        witnesses.keep(1, tree.witness(), now);
        assert!(witnesses.of(2, now).is_none(), "another link's");
        assert!(!witnesses.want(1, now) && witnesses.wanted().is_empty());
        assert!(witnesses.want(1, now + FRESH));
        assert!(!witnesses.want(1, now + FRESH), "said once");
        assert_eq!(witnesses.wanted().len(), 1);
        witnesses.keep(1, tree.witness(), now + FRESH);
        assert!(witnesses.wanted().is_empty() && !witnesses.want(1, now + FRESH));
        assert!(witnesses.of(1, now + FRESH + LIFE / 2).is_some());
        assert!(witnesses.of(1, now + FRESH + LIFE).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn links_that_came_and_went_are_forgotten() {
        let (tree, witnesses, now) = (Tree::new(), Witnesses::default(), Instant::now());
        for link in 0..10 * MAX_LINKS as u32 {
            witnesses.keep(link, tree.witness(), now);
        }
        assert!(witnesses.entries().len() <= MAX_LINKS);
        witnesses.keep(1, tree.witness(), now);
        witnesses.forget(1);
        assert!(witnesses.of(1, now).is_none());
    }

    #[test]
    fn an_address_is_looked_up_until_it_is_local() {
        let (tree, address) = (Tree::new(), ADDRESS.parse().unwrap());
        tree.addresses(&["fd00::8"]);
        let witness = tree.witness();
        assert!(!witness.has(address).unwrap() && !witness.knows(address));
        tree.addresses(&["fd00::8", ADDRESS]);
        assert!(witness.has(address).unwrap() && witness.knows(address));
    }

    #[test]
    fn the_addresses_that_are_remembered_are_bounded() {
        let tree = Tree::new();
        let many: Vec<String> = (0..100).map(|n| format!("fd00::{n:x}")).collect();
        tree.addresses(&many.iter().map(String::as_str).collect::<Vec<_>>());
        let witness = tree.witness();
        for address in &many {
            assert!(witness.has(address.parse().unwrap()).unwrap());
        }
        assert_eq!(witness.addresses().len(), MAX_ADDRESSES);
        assert!(witness.knows(many[99].parse().unwrap()));
    }
}

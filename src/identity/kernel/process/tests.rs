//! Processes as files, under a root of the test's own.

use std::fs;

use super::*;

const TRIE: &str = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     |-- 10.0.1.0
        /24 link UNICAST
Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 10.0.1.0/24 2 0 2
        |-- 10.0.1.7
           /32 host LOCAL
        |-- 10.0.1.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        +-- 127.0.0.0/31 1 0 0
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
";
const IF_INET6: &str = "\
00000000000000000000000000000001 01 80 10 80       lo
fd000000000000000000000000000007 02 80 00 80     eth0
";
const TCP: &str =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

struct Tree(tempfile::TempDir);

impl Tree {
    fn new(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("7/net")).unwrap();
        for (name, text) in files {
            fs::write(root.path().join("7").join(name), text).unwrap();
        }
        Self(root)
    }

    fn process(&self) -> Process {
        Proc::new(self.0.path()).process(7).unwrap().unwrap()
    }
}

#[test]
fn only_the_namespaces_own_addresses_are_local_to_it() {
    let tree = Tree::new(&[("net/fib_trie", TRIE), ("net/if_inet6", IF_INET6)]);
    let process = tree.process();
    for (address, local) in [
        ("10.0.1.7", true),
        ("10.0.1.70", false),
        ("10.0.1.255", false),
        ("10.0.1.0", false),
        ("127.0.0.0", false),
        ("0.0.0.0", false),
        ("fd00::7", true),
        ("fd00::8", false),
    ] {
        assert_eq!(process.has_address(address.parse().unwrap()).unwrap(), local, "{address}");
    }
}

#[test]
fn a_connection_counts_with_both_ends_and_while_it_is_open() {
    let word = |octets: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(octets));
    let (pod, ours) = (word([10, 0, 1, 7]), word([169, 254, 170, 23]));
    let line =
        |number, state| format!("   {number}: {pod}:9C4{number} {ours}:26AE {state} 00000000:00000000\n");
    let tcp = format!("{TCP}{}{}{}", line(0, "01"), line(1, "06"), line(2, "04"));
    let mapped = format!("0000000000000000{}", word([0, 0, 0xff, 0xff]));
    let tcp6 = format!("{TCP}   0: {mapped}{pod}:9C45 {mapped}{ours}:26AE 01 00000000:00000000\n");
    let tree = Tree::new(&[("net/tcp", &tcp), ("net/tcp6", &tcp6)]);
    let has = |from: &str, to: &str, any| {
        tree.process().has_connection(from.parse().unwrap(), to.parse().unwrap(), any).unwrap()
    };
    for (from, to, any, found) in [
        ("10.0.1.7:40000", "169.254.170.23:9902", false, true),
        ("10.0.1.7:40001", "169.254.170.23:9902", false, false),
        ("10.0.1.7:40002", "169.254.170.23:9902", false, true),
        ("10.0.1.7:40005", "169.254.170.23:9902", false, true),
        ("10.0.1.7:40000", "169.254.170.23:80", false, false),
        ("10.0.1.8:40000", "169.254.170.23:9902", false, false),
        ("10.0.1.8:40000", "169.254.170.23:9902", true, true),
        ("10.0.1.8:40009", "169.254.170.23:9902", true, false),
    ] {
        assert_eq!(has(from, to, any), found, "{from} {to} {any}");
    }
}

#[test]
fn a_table_that_is_too_long_is_an_error_and_not_an_answer() {
    let tree = Tree::new(&[("net/fib_trie", &TRIE.repeat(1000))]);
    assert!(tree.process().has_address("10.0.1.9".parse().unwrap()).is_err());
}

#[test]
fn a_process_that_has_gone_shows_nothing() {
    let tree = Tree::new(&[("cgroup", "0::/init.scope\n")]);
    let process = tree.process();
    assert_eq!(process.owner().unwrap(), Some(Owner::Nobody));
    fs::remove_dir_all(tree.0.path().join("7")).unwrap();
    // Another gets its number: what was opened stays the first one's.
    fs::create_dir_all(tree.0.path().join("7")).unwrap();
    fs::write(tree.0.path().join("7/cgroup"), "0::/kubepods/pod00000000-0000-4000-8000-000000000001/x\n")
        .unwrap();
    assert_eq!(process.owner().unwrap(), None);
}

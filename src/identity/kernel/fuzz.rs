//! What the kernel writes and pods have a hand in, as it never should be: cgroup files, netlink answers, the tables of a namespace, control
//! messages. Each has an oracle beyond "it does not panic".

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use super::super::pods::PodUid;
use super::cgroup::{Owner, owner};
use super::link::{Answer, attributes};
use super::process::Proc;
use super::socket::packet_info;
use crate::fuzz::fuzz;

const UID: &str = "3f2a9c1e-7b64-4d05-9e8a-1c2d3e4f5a6b";
const VICTIM: &str = "00000000-0000-4000-8000-000000000001";

fn cgroups() -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/proc");
    for runtime in fs::read_dir(root).unwrap() {
        for scenario in fs::read_dir(runtime.unwrap().path()).unwrap() {
            found.push(fs::read(scenario.unwrap().path().join("cgroup")).unwrap());
        }
    }
    found
}

#[test]
fn a_cgroup_file_names_only_whom_it_names_and_nothing_below_changes_that() {
    let corpus = cgroups();
    assert!(corpus.len() > 20);
    let slice = format!("kubepods-burstable-pod{}.slice", UID.replace('-', "_"));
    let words = [
        "0::",
        "/",
        "kubepods",
        "pod",
        UID,
        VICTIM,
        &slice,
        ".slice",
        ".scope",
        ":",
        "\n",
        "-",
        "_",
        "..",
        "cri-containerd:",
        "\u{e9}",
    ];
    fuzz(20_000, &corpus, &words, |input| {
        let text = String::from_utf8_lossy(input);
        let whole = owner(&text);
        if let Owner::Pod(uid) = &whole {
            let uid = uid.as_str();
            let groups: Vec<usize> = uid.split('-').map(str::len).collect();
            assert_eq!(groups, [8, 4, 4, 4, 12], "{uid}");
            assert!(uid.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-')), "{uid}");
            assert!(text.replace('_', "-").contains(&format!("pod{uid}")), "{uid}");
        }
        // Each line speaks for itself, and no two may differ.
        let lines: Vec<Owner> = text.lines().map(owner).filter(|owner| *owner != Owner::Nobody).collect();
        assert!(!lines.contains(&Owner::Contradiction));
        let expected = match &lines[..] {
            [] => Owner::Nobody,
            [first, rest @ ..] if rest.iter().all(|other| other == first) => first.clone(),
            _ => Owner::Contradiction,
        };
        assert_eq!(whole, expected);
        // What a container makes below its own cgroup names its maker.
        for line in text.lines().filter(|line| owner(line) != Owner::Nobody) {
            for child in [format!("pod{VICTIM}/x"), format!("kubepods-pod{}.slice", VICTIM.replace('-', "_"))]
            {
                assert_eq!(owner(&format!("{line}/{child}")), owner(line), "{line}/{child}");
            }
        }
        // And what is of nobody can be made a victim's only by whoever writes the file.
        assert!(
            whole != Owner::Pod(PodUid::new(VICTIM))
                || text.contains(VICTIM)
                || text.contains(&VICTIM.replace('-', "_"))
                || text.contains('_')
        );
    });
}

/// A real answer of the kernel's: all about `lo`.
fn netlink_answers() -> Vec<Vec<u8>> {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
            .unwrap();
    let ask = |kind: u16, body: &[u8]| {
        let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
        message.extend([7, 0, 0, 0, 0, 0, 0, 0]);
        message.extend(body);
        send(socket.as_raw_fd(), &message, MsgFlags::empty()).unwrap();
        let mut answer = vec![0; 32 * 1024];
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        answer[..length].to_vec()
    };
    let index = |index: u32| [&[0; 4][..], &index.to_ne_bytes(), &[0; 8]].concat();
    let pid = [&[0, 0, 0, 0, 8, 0, 2, 0][..], &std::process::id().to_ne_bytes()].concat();
    vec![
        ask(libc::RTM_GETLINK, &index(1)),
        // One that is not there is an error, which is a message too.
        ask(libc::RTM_GETLINK, &index(i32::MAX as u32)),
        ask(libc::RTM_GETNSID, &pid),
    ]
}

#[test]
fn a_netlink_answer_is_read_within_its_bounds_and_attributes_are_what_was_written() {
    fuzz(30_000, &netlink_answers(), &["\0\0\0\0", "\u{8}\0%\0", "\u{4}\0", "veth\0"], |input| {
        if let Some(answer) = Answer::read(input) {
            assert!((16..=input.len()).contains(&answer.end));
            let read: Vec<_> = attributes(&input[16..answer.end]).collect();
            // Written again, they are the same: nothing was made up, and nothing was skipped.
            let mut written = Vec::new();
            for (kind, value) in &read {
                written.extend((value.len() as u16 + 4).to_ne_bytes());
                written.extend(kind.to_ne_bytes());
                written.extend(*value);
                written.resize(written.len().next_multiple_of(4), 0);
            }
            assert_eq!(attributes(&written).collect::<Vec<_>>(), read);
            assert!(written.len() < input.len() - 16 + 4);
        } else {
            assert!(
                input.len() < 16
                    || u32::from_ne_bytes(input[..4].try_into().unwrap()) as usize > input.len()
                    || (u32::from_ne_bytes(input[..4].try_into().unwrap()) as usize) < 16
            );
        }
    });
}

#[test]
fn the_tables_of_a_namespace_show_only_what_is_written_in_them() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("7/net")).unwrap();
    let process = Proc::new(root.path()).process(7).unwrap().unwrap();
    let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.1.0\n        /24 link UNICAST\nLocal:\n     |-- 10.0.1.7\n        /32 host LOCAL\n     |-- 10.0.1.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
    let inet6 = "00000000000000000000000000000001 01 80 10 80       lo\nfd000000000000000000000000000007 02 80 00 80     eth0\n";
    let tcp = "  sl  local_address rem_address   st\n   0: 0701000A:9C40 17AAFEA9:26AE 01 00000000:00000000\n   1: 0701000A:9C41 17AAFEA9:26AE 06 00000000\n";
    let words = [
        "|-- ",
        "/32 host LOCAL",
        "\n",
        "10.0.1.7",
        "10.0.1.8",
        "10.0.1.70",
        " ",
        ":",
        "0801000A",
        "01",
        "9C40",
        "fd000000000000000000000000000008",
    ];
    let addresses = ["10.0.1.7", "10.0.1.8", "10.0.1.0", "10.0.1.70", "fd00::7", "fd00::8"]
        .map(|address| address.parse::<IpAddr>().unwrap());
    fuzz(3_000, &[trie, inet6, tcp], &words, |input| {
        for table in ["fib_trie", "if_inet6", "tcp", "tcp6"] {
            fs::write(root.path().join("7/net").join(table), input).unwrap();
        }
        let text = String::from_utf8_lossy(input);
        let words: BTreeSet<&str> = text.split_whitespace().collect();
        for address in addresses {
            // What cannot be read is an error, and so a refusal.
            if !matches!(process.has_address(address), Ok(true)) {
                continue;
            }
            match address {
                IpAddr::V4(v4) => {
                    let leaf = text.find(&format!("|-- {v4}")).expect("the leaf");
                    assert!(text[leaf..].contains("/32 host LOCAL"));
                    assert!(words.contains(&*v4.to_string()), "{v4} stands alone");
                }
                IpAddr::V6(v6) => assert!(words.contains(&*format!("{:032x}", v6.to_bits()))),
            }
        }
        let (from, to): (SocketAddr, SocketAddr) =
            ("10.0.1.8:40000".parse().unwrap(), "169.254.170.23:9902".parse().unwrap());
        if cfg!(target_endian = "little") && matches!(process.has_connection(from, to, false), Ok(true)) {
            let line =
                text.lines().any(|line| line.contains("0801000A:9C40") && line.contains("17AAFEA9:26AE"));
            assert!(line, "both ends on one line");
        }
    });
}

#[test]
fn a_link_index_is_taken_only_from_a_whole_control_message() {
    let mut v4 = (size_of::<usize>() + 8 + 12).to_ne_bytes().to_vec();
    v4.extend(libc::IPPROTO_IP.to_ne_bytes());
    v4.extend(libc::IP_PKTINFO.to_ne_bytes());
    v4.extend([0x5a, 0x5b, 0x5c, 0x5d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut v6 = (size_of::<usize>() + 8 + 20).to_ne_bytes().to_vec();
    v6.extend(libc::IPPROTO_IPV6.to_ne_bytes());
    v6.extend(libc::IPV6_PKTINFO.to_ne_bytes());
    v6.extend([[0; 16].as_slice(), &[0x5a, 0x5b, 0x5c, 0x5d, 0, 0, 0, 0]].concat());
    let both = [v4.clone(), v6.clone()].concat();
    fuzz(30_000, &[v4, v6, both], &["\0\0\0\0", "\u{1c}\0\0\0\0\0\0\0", "\u{29}\0\0\0"], |input| {
        if let Some(index) = packet_info(input) {
            assert!(input.windows(4).any(|window| window == index.to_ne_bytes()));
            assert!(input.len() >= size_of::<usize>() + 12);
        }
    });
}

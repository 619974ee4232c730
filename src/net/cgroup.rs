//! The cgroups that the guard tells pods on the host network by: whether this node has them, and whether a rule can name them from here.

use std::fs;
use std::io;
use std::path::Path;

/// Where nft looks names up.
const ROOT: &str = "/sys/fs/cgroup";

/// Why no rule can be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Error {
    /// Every process has it.
    #[error("/proc/self/mountinfo: {0}")]
    Mounts(io::ErrorKind),
    /// Version 1 tells sockets apart by a class that something must set; nobody does.
    #[error(
        "{ROOT} is not cgroup version 2: pods on the host network cannot be told from the host's own processes"
    )]
    Version1,
    /// The kernel counts levels from the namespace of whoever makes the rule, and cannot count upwards.
    #[error(
        "this is a cgroup namespace of its own: run it in the host's (on the node itself; of a pod's containers only privileged ones are)"
    )]
    OwnNamespace,
    /// Another name, or no pod yet.
    #[error("there is no cgroup {0}: with the systemd driver it is kubepods.slice, with cgroupfs kubepods")]
    Missing(String),
}

/// Whether `text` is a cgroup's path beneath the root. It becomes a part of a rule: nothing that could end a string.
pub(super) fn is_path(text: &str) -> bool {
    let named = |part: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte);
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(known)
    };
    text.split('/').all(named)
}

/// Whether `path` exists now.
pub(super) fn exists(path: &str) -> bool {
    Path::new(ROOT).join(path).is_dir()
}

/// Whether a rule can name `pods` now.
pub(super) fn check(pods: &str) -> Result<(), Error> {
    check_mount(&fs::read_to_string("/proc/self/mountinfo").map_err(|err| Error::Mounts(err.kind()))?)?;
    if exists(pods) { Ok(()) } else { Err(Error::Missing(pods.to_owned())) }
}

/// `proc(5)`: the mount's root is the fourth field and its place the fifth; the type follows the dash. The last one at a place covers others.
fn check_mount(mounts: &str) -> Result<(), Error> {
    let mount = mounts.lines().rev().find(|line| line.split(' ').nth(4) == Some(ROOT));
    let mount = mount.ok_or(Error::Version1)?;
    let kind = mount.split(" - ").nth(1).and_then(|rest| rest.split(' ').next());
    match (kind, mount.split(' ').nth(3)) {
        (Some("cgroup2"), Some("/")) => Ok(()),
        (Some("cgroup2"), _) => Err(Error::OwnNamespace),
        _ => Err(Error::Version1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_version_2_seen_from_the_hosts_namespace_will_do() {
        let v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        let v1 = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        let pod = "30 23 0:26 /../../../.. /sys/fs/cgroup ro,nosuid - cgroup2 cgroup2 rw";
        assert_eq!(check_mount(v2), Ok(()));
        assert_eq!(check_mount(v1), Err(Error::Version1));
        assert_eq!(check_mount(pod), Err(Error::OwnNamespace));
        assert_eq!(check_mount(&format!("{v1}\n{v2}")), Ok(()), "the last mount covers the first");
        assert_eq!(check_mount(""), Err(Error::Version1));
    }

    #[test]
    fn a_path_holds_nothing_that_could_end_a_string() {
        for good in
            ["kubepods.slice", "kubelet.slice/kubelet-kubepods.slice", "kubepods/burstable/pod-1_2:3@4"]
        {
            assert!(is_path(good), "{good}");
        }
        for bad in ["", "/kubepods", "kubepods/", "a//b", "..", "a/../b", "a\"b", "a b", "a\nb", "a$b"] {
            assert!(!is_path(bad), "{bad:?}");
        }
    }
}

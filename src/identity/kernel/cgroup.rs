//! The pod whose cgroup a process is in, from the text of `/proc/<pid>/cgroup`.
//!
//! The kernel writes the file, but a container with a writable cgroup names the cgroups below its own: it may well
//! make one called `pod<the victim's UID>`. The kubelet made everything to the left of that, so the leftmost
//! segment that names a pod is the one that counts.

use super::super::pods::PodUid;

/// Whose a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// No pod's: the host's, the runtime's, a plain container's.
    Nobody,
    /// This pod's.
    Pod(PodUid),
    /// A static pod's: the cgroup has its configuration's hash, which is no UID, and it has no ServiceAccount.
    Static,
    /// Two hierarchies name two pods.
    Contradiction,
}

/// Reads the whole file: cgroup v1 has a line per hierarchy, and all that name a pod must name the same one.
pub(super) fn owner(cgroup: &str) -> Owner {
    let mut found = Owner::Nobody;
    // A path may hold colons itself; a newline it cannot hold (the kernel refuses such a name).
    for path in cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
        let Some(owner) = path.split('/').find_map(segment) else { continue };
        if found == Owner::Nobody {
            found = owner;
        } else if found != owner {
            return Owner::Contradiction;
        }
    }
    found
}

/// `pod<uid>` (cgroupfs), `kubepods[-qos]-pod<uid>.slice` (systemd) also behind the prefix of a nested kubelet, or
/// that with `:cri-containerd:<id>` (a cgroupfs containerd under a systemd kubelet).
fn segment(segment: &str) -> Option<Owner> {
    let segment = segment.split(':').next()?;
    let name = match segment.strip_suffix(".slice") {
        Some(slice) => {
            let (prefix, name) = slice.rsplit_once('-')?;
            prefix.contains("kubepods").then_some(name)?
        }
        None => segment,
    };
    let uid = name.strip_prefix("pod")?;
    if uid.len() == 32 && uid.bytes().all(is_hex) {
        return Some(Owner::Static);
    }
    // systemd splits names at "-", so there the kubelet writes the UID with "_".
    let groups: Vec<&str> = uid.split(['-', '_']).collect();
    let is_uid = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|group| group.bytes().all(is_hex));
    is_uid.then(|| Owner::Pod(PodUid::new(uid.replace('_', "-"))))
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
#[path = "cgroup/tests.rs"]
mod tests;

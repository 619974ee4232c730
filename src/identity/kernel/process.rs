//! A process as `/proc` shows it. The directory is opened first and everything is read through it, so what is read
//! is of one process: once that has gone, nothing more can be read, whoever gets its number.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, fstatat, stat};
use nix::unistd::{AccessFlags, faccessat};

use super::cgroup::{self, Owner};

/// The longest path is 4 KiB, in at most some dozen lines.
const MAX_CGROUP: u64 = 64 * 1024;
/// A pod that has more routes only shuts itself out: this is read while others wait.
const MAX_ADDRESSES: u64 = 256 * 1024;
/// 150 bytes a socket.
const MAX_SOCKETS: u64 = 4 * 1024 * 1024;
/// `net/tcp` states in which a client can be whose connection we have accepted: established, or closing its side.
const OPEN: [&str; 3] = ["01", "04", "05"];

/// `/proc`, or a tree that stands in for it.
#[derive(Clone, Debug)]
pub(super) struct Proc {
    root: PathBuf,
}

/// One process of it.
pub(super) struct Process {
    directory: OwnedFd,
}

impl Proc {
    pub(super) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// All process ids, lowest first: a pod's sandbox process is older than its others, and stays.
    pub(super) fn pids(&self) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        for entry in std::fs::read_dir(&self.root)? {
            pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
        }
        pids.sort_unstable();
        Ok(pids)
    }

    /// [`Process::namespace_inode`] of the calling thread.
    pub(super) fn own_namespace_inode(&self) -> io::Result<Option<u64>> {
        Ok(present(stat(&self.root.join("thread-self/net/tcp")))?.map(|stat| stat.st_ino))
    }

    /// The process that has this id now, if any.
    pub(super) fn process(&self, pid: u32) -> io::Result<Option<Process>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = present(open(&self.root.join(pid.to_string()), flags, Mode::empty()))?;
        Ok(directory.map(|directory| Process { directory }))
    }
}

impl Process {
    /// Whose it is; `None` once it has gone.
    pub(super) fn owner(&self) -> io::Result<Option<Owner>> {
        let Some(file) = self.open("cgroup")? else { return Ok(None) };
        let mut text = Vec::with_capacity(1024);
        match file.take(MAX_CGROUP).read_to_end(&mut text) {
            Ok(_) => Ok(Some(cgroup::owner(&String::from_utf8_lossy(&text)))),
            Err(err) if err.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Whether it is still there.
    pub(super) fn lives(&self) -> io::Result<bool> {
        let seen = faccessat(&self.directory, "cgroup", AccessFlags::F_OK, AtFlags::empty());
        Ok(present(seen)?.is_some())
    }

    /// Is `address` local to the process's network namespace? The kernel writes these tables; whoever administers
    /// the namespace chooses what is in them.
    pub(super) fn has_address(&self, address: IpAddr) -> io::Result<bool> {
        match address {
            IpAddr::V4(v4) => {
                let (leaf, mut at_leaf) = (format!("|-- {v4}"), false);
                self.any_line("net/fib_trie", MAX_ADDRESSES, |line| {
                    let line = line.trim();
                    if line.starts_with("|-- ") {
                        at_leaf = line == leaf;
                    }
                    at_leaf && line == "/32 host LOCAL"
                })
            }
            IpAddr::V6(v6) => {
                let hex = format!("{:032x} ", v6.to_bits());
                self.any_line("net/if_inet6", MAX_ADDRESSES, |line| line.starts_with(&hex))
            }
        }
    }

    /// Is there an open TCP socket from `from` to `to` in the process's network namespace? With `any_source` the
    /// source address may be another, and only its port counts.
    pub(super) fn has_connection(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        any_source: bool,
    ) -> io::Result<bool> {
        let port = format!(":{:04X}", from.port());
        let find = |table: &str, mapped: bool| {
            let (source, target) = (endpoint(from, mapped), endpoint(to, mapped));
            self.any_line(table, MAX_SOCKETS, |line| {
                let mut columns = line.split_ascii_whitespace().skip(1);
                let (local, remote, state) = (columns.next(), columns.next(), columns.next());
                let local =
                    local.is_some_and(|local| local == source || any_source && local.ends_with(&port));
                local && remote == Some(&*target) && state.is_some_and(|state| OPEN.contains(&state))
            })
        };
        // A dual-stack client's IPv4 connection stands in the IPv6 table.
        Ok((from.is_ipv4() && find("net/tcp", false)?) || find("net/tcp6", from.is_ipv4())?)
    }

    /// Tells network namespaces apart: each has its own inode for this file.
    pub(super) fn namespace_inode(&self) -> io::Result<Option<u64>> {
        Ok(present(fstatat(&self.directory, "net/tcp", AtFlags::empty()))?.map(|stat| stat.st_ino))
    }

    fn open(&self, path: &str) -> io::Result<Option<File>> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(present(openat(&self.directory, path, flags, Mode::empty()))?.map(File::from))
    }

    /// Stops at the first line that `wanted` likes, and refuses to read more than `bytes`.
    fn any_line(&self, path: &str, bytes: u64, mut wanted: impl FnMut(&str) -> bool) -> io::Result<bool> {
        let Some(file) = self.open(path)? else { return Ok(false) };
        let mut lines = BufReader::with_capacity(16 * 1024, file.take(bytes));
        let mut line = String::new();
        while lines.read_line(&mut line)? > 0 {
            if wanted(&line) {
                return Ok(true);
            }
            line.clear();
        }
        if lines.get_ref().limit() == 0 {
            return Err(io::Error::other(format!("{path} of the pod's namespace is over {bytes} bytes")));
        }
        Ok(false)
    }
}

/// As `net/tcp{,6}` writes it: each 32-bit word of the address in the machine's own order.
fn endpoint(at: SocketAddr, mapped: bool) -> String {
    let octets = match at.ip() {
        IpAddr::V4(v4) if mapped => v4.to_ipv6_mapped().octets().to_vec(),
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (words, _) = octets.as_chunks::<4>();
    let address: String = words.iter().map(|word| format!("{:08X}", u32::from_ne_bytes(*word))).collect();
    format!("{address}:{:04X}", at.port())
}

/// A process may go at any moment: that is no error.
fn present<T>(result: Result<T, Errno>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EINVAL) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

#[cfg(test)]
#[path = "process/tests.rs"]
mod tests;

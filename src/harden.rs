//! What the agent's process gives up before its first thread: core dumps, ptrace, new privileges, and all files but a few.
//!
//! Before the first thread, because Landlock binds the thread that asks for it and those that come of it. What a thief of the process finds
//! then is what the agent itself needs: no kubeconfig of somebody else's, no program to run but the `credential_process`
//! that it was told to, no file to leave behind.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::config::{Config, Kube};

/// Why the process is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused one of the things that every kernel has.
    #[error("the process cannot be hardened: {0}")]
    Process(#[source] io::Error),
    /// Landlock is there, and does not do what it says.
    #[cfg(target_os = "linux")]
    #[error("Landlock cannot close the file system: {0}")]
    Landlock(#[source] landlock::RulesetError),
}

/// How far the file system is closed to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// Only what the agent reads is open.
    Closed,
    /// The same, by an older Landlock, which cannot forbid everything: truncating a file (Linux 6.2), moving one to another directory (5.19).
    PartlyClosed,
    /// This kernel has no Landlock, or was booted without it.
    Open,
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed by Landlock, but for what the agent reads",
            Self::PartlyClosed => "closed by an older Landlock, but for what the agent reads",
            Self::Open => {
                "open as far as the user may read: this kernel has no Landlock (Linux 5.13, lsm=landlock,...)"
            }
        })
    }
}

/// No core dump, no ptrace by our own user, no new privileges: a thief of this process must come from root.
///
/// # Errors
/// [`Error::Process`], for the first of them that the kernel refuses.
#[cfg(target_os = "linux")]
pub fn process() -> Result<(), Error> {
    use nix::sys::{prctl, resource};
    let refused = |errno: nix::Error| Error::Process(errno.into());
    resource::setrlimit(resource::Resource::RLIMIT_CORE, 0, 0).map_err(refused)?;
    prctl::set_dumpable(false).map_err(refused)?;
    prctl::set_no_new_privs().map_err(refused)
}

/// Closes all files to the calling thread, and to those that it starts, but what an agent of this configuration reads, and the
/// `credential_process` that it runs; nothing can be written. Sockets and signals are as they were.
///
/// # Errors
/// `Error::Landlock`. A kernel without Landlock is no error.
#[cfg(target_os = "linux")]
pub fn files(config: &Config) -> Result<FileSystem, Error> {
    linux::close_files(linux::readable(config), linux::executable(config), Some(&config.local_socket))
        .map_err(Error::Landlock)
}

/// As [`files`], for a process that reads `paths`, what a connection to the API server of `kube` takes, and nothing else.
///
/// # Errors
/// `Error::Landlock`. A kernel without Landlock is no error.
#[cfg(target_os = "linux")]
pub fn files_but(kube: &Kube, paths: Vec<PathBuf>) -> Result<FileSystem, Error> {
    let paths = [linux::for_the_api_server(kube), paths].concat();
    linux::close_files(paths, Vec::new(), None).map_err(Error::Landlock)
}

/// Elsewhere the agent only builds; it runs on Linux nodes.
///
/// # Errors
/// Never.
#[cfg(not(target_os = "linux"))]
pub fn process() -> Result<(), Error> {
    Ok(())
}

/// As [`process`].
///
/// # Errors
/// Never.
#[cfg(not(target_os = "linux"))]
pub fn files(_: &Config) -> Result<FileSystem, Error> {
    Ok(FileSystem::Open)
}

/// As [`process`].
///
/// # Errors
/// Never.
#[cfg(not(target_os = "linux"))]
pub fn files_but(_: &Kube, _: Vec<PathBuf>) -> Result<FileSystem, Error> {
    Ok(FileSystem::Open)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::env;
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};

    use landlock::{
        ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
        RulesetError, RulesetStatus, path_beneath_rules,
    };

    use super::FileSystem;
    use crate::base_credentials::Source;
    use crate::cluster::client;
    use crate::config::{Config, Identity, Kube};
    use crate::identity::authorization::TokenSource;

    /// The newest whose rights on files we know. Rights on networks and signals (ABI 4 and 6) are left alone: the agent dials what it is told
    /// to, and its probes are signalled by nobody.
    const KNOWN: ABI = ABI::V5;

    /// Read by the C library, which reads them again when they change: names, and the modules of `nsswitch.conf`. Not `/etc` itself: in the
    /// image nothing else is there, and elsewhere it is the node's.
    const RESOLVER: [&str; 11] = [
        "/etc/resolv.conf",
        "/etc/hosts",
        "/etc/nsswitch.conf",
        "/etc/host.conf",
        "/etc/gai.conf",
        "/etc/services",
        "/etc/ld.so.cache",
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
    ];

    /// Where distributions keep the roots that STS's certificate leads to. They are read when the region is known, which can be late.
    const ROOTS: [&str; 6] = [
        "/etc/ssl/certs",
        "/etc/ssl/cert.pem",
        "/etc/pki",
        "/etc/ca-certificates",
        "/usr/share/ca-certificates",
        "/usr/local/share/ca-certificates",
    ];
    /// The same, by choice of whoever starts us; the second can be a list.
    const ROOTS_VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

    /// A script, its interpreter, and that one's loader.
    const INTERPRETERS: usize = 3;
    const PT_INTERP: usize = 3;

    /// Opens `paths` for reading, `programs` for running, and the directory of `socket` for making it; closes the rest.
    pub(super) fn close_files(
        paths: Vec<PathBuf>,
        programs: Vec<PathBuf>,
        socket: Option<&Path>,
    ) -> Result<FileSystem, RulesetError> {
        let status = Ruleset::default()
            // What an older kernel does not know is not asked of it.
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(KNOWN))?
            .create()?
            // A path that is not there needs no rule: nothing can be made there either.
            .add_rules(path_beneath_rules(paths, read()))?
            .add_rules(path_beneath_rules(programs, AccessFs::Execute | AccessFs::ReadFile))?
            // The socket of the last agent is taken away, ours is made.
            .add_rules(path_beneath_rules(
                socket.map(directory_of),
                AccessFs::MakeSock | AccessFs::RemoveFile,
            ))?
            .restrict_self()?;
        Ok(match status.ruleset {
            RulesetStatus::FullyEnforced => FileSystem::Closed,
            RulesetStatus::PartiallyEnforced => FileSystem::PartlyClosed,
            RulesetStatus::NotEnforced => FileSystem::Open,
        })
    }

    fn read() -> BitFlags<AccessFs> {
        AccessFs::ReadFile | AccessFs::ReadDir
    }

    pub(super) fn readable(config: &Config) -> Vec<PathBuf> {
        let mut paths = for_the_api_server(&config.kube);
        paths.extend(roots());
        // Renewed in the same way.
        if let TokenSource::Issuer(door) = &config.authorization.tokens {
            let files = door.ca_bundle.iter().chain([&door.token_file]);
            paths.extend(files.filter_map(|path| around(path)));
        }
        let base = config.sts_mode.base().map(Source::files).unwrap_or_default();
        paths.extend(base.iter().filter_map(|path| around(path)));
        paths.extend(config.sts.ca_bundle.iter().flat_map(|bundle| bundle_paths(&bundle.path)));
        if config.identity == Identity::Kernel {
            // cgroup and net/ of every process; the kernel keeps environ, maps and the like of others from us (ptrace).
            paths.push("/proc".into());
        }
        paths
    }

    fn roots() -> Vec<PathBuf> {
        let chosen = ROOTS_VARIABLES.into_iter().filter_map(env::var_os);
        let chosen = chosen.flat_map(|value| env::split_paths(&value).collect::<Vec<_>>());
        ROOTS.map(PathBuf::from).into_iter().chain(chosen).collect()
    }

    /// Its name's address, the files of whoever logs in there, and the system's roots: a kubeconfig may name no CA.
    pub(super) fn for_the_api_server(kube: &Kube) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = RESOLVER.iter().map(PathBuf::from).collect();
        // Elsewhere than in a container it is a link into a directory of the resolver's, which writes it anew.
        paths.extend(
            fs::canonicalize(RESOLVER[0])
                .ok()
                .filter(|path| !path.starts_with("/etc"))
                .and_then(|path| around(&path)),
        );
        // Tokens and certificates are renewed by putting another file in their place: a rule for the file would be one for the old one.
        paths.extend(client::files(kube).iter().filter_map(|path| around(path)));
        if let Kube::Kubeconfig(_) = kube {
            paths.extend(roots());
        }
        paths
    }

    /// The directory of each link that leads to the file: in a mounted Secret one of them leads from renewal to renewal.
    fn bundle_paths(path: &Path) -> Vec<PathBuf> {
        let mut path = path.to_owned();
        let mut paths = Vec::new();
        // As many as the kernel follows.
        for _ in 0..40 {
            paths.extend(around(&path));
            let Ok(to) = fs::read_link(&path) else { break };
            path = directory_of(&path).join(to);
        }
        paths
    }

    /// `credential_process`, where that is where base credentials come from, and what the kernel runs it by. It and all that it starts is
    /// closed in as we are.
    pub(super) fn executable(config: &Config) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        let mut next = config.sts_mode.base().and_then(Source::program);
        while let Some(path) = next.take_if(|_| paths.len() < INTERPRETERS) {
            next = fs::read(&path).ok().and_then(|program| interpreter(&program));
            paths.push(path);
        }
        paths
    }

    /// The dynamic loader of an ELF program, or what a script's first line names.
    /// <https://man7.org/linux/man-pages/man5/elf.5.html>
    fn interpreter(program: &[u8]) -> Option<PathBuf> {
        let path =
            |bytes: &[u8]| Some(PathBuf::from(OsStr::from_bytes(bytes))).filter(|path| path.is_absolute());
        if let Some(line) = program.strip_prefix(b"#!") {
            let line = line.split(|byte| *byte == b'\n').next()?;
            return path(line.split(|byte| b" \t".contains(byte)).find(|word| !word.is_empty())?);
        }
        let at = |at: usize, length: usize| program.get(at..at.checked_add(length)?);
        let number = |place: usize, length: usize| {
            // 64 bits, little-endian: both architectures that we are built for.
            let bytes = at(place, length)?.iter().rev();
            usize::try_from(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))).ok()
        };
        if at(0, 6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        let header = |index: usize| table.checked_add(index.checked_mul(size)?);
        let interp = (0..count).filter_map(header).find(|header| number(*header, 4) == Some(PT_INTERP))?;
        let name = at(number(interp.checked_add(8)?, 8)?, number(interp.checked_add(32)?, 8)?)?;
        path(name.split(|byte| *byte == 0).next()?)
    }

    /// What is opened for one file: its directory, so that it can be renewed. All of the file system is too much for that: of what is
    /// directly in `/` it is the file alone, and of `/` itself nothing.
    fn around(path: &Path) -> Option<PathBuf> {
        // However it is written: `.` where we start in `/`, `/x/..`, a link.
        let is_root = |path: &Path| fs::canonicalize(path).is_ok_and(|path| path == Path::new("/"));
        let directory = directory_of(path);
        if !is_root(&directory) {
            return Some(directory);
        }
        (!is_root(path)).then(|| path.to_owned())
    }

    fn directory_of(path: &Path) -> PathBuf {
        match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => ".".into(),
            Some(parent) => parent.to_owned(),
            None => path.to_owned(),
        }
    }
}

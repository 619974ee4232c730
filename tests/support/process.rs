//! A process of a pod, as the ladder sees one: in the pod's network namespace, and in its cgroup.
//!
//! The cgroup is a file of the test's: a bind mount over `/proc/<pid>/cgroup`, which needs no root. It goes with the process.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::fs;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MsFlags, mount};

use crate::netns::Namespace;

/// Killed when dropped.
pub struct Process(Child);

impl Process {
    /// A process in `namespace` whose cgroup reads `cgroup`.
    pub fn start(namespace: &Namespace, cgroup: &str) -> Self {
        // Born in there, of a thread in there: no moment when it is elsewhere.
        let process = namespace.run(async || Self::start_here());
        process.set_cgroup(cgroup);
        process
    }

    /// A process of the pod with this UID.
    pub fn of(uid: &str, namespace: &Namespace) -> Self {
        Self::start(namespace, &cgroup(uid))
    }

    /// A process in the calling thread's network namespace, and nobody's yet.
    pub fn start_here() -> Self {
        Self(Command::new("sleep").arg("600").spawn().unwrap())
    }

    /// From now on its cgroup reads `cgroup`.
    pub fn set_cgroup(&self, cgroup: &str) {
        static FILES: AtomicU32 = AtomicU32::new(0);
        let file = format!("/run/cgroup-{}", FILES.fetch_add(1, Ordering::Relaxed));
        fs::write(&file, cgroup).unwrap();
        let (proc, none) = (format!("/proc/{}/cgroup", self.id()), None::<&str>);
        mount(Some(&*file), &*proc, none, MsFlags::MS_BIND, none).unwrap();
        // The mount holds what it needs of it.
        fs::remove_file(&file).unwrap();
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a process of the pod with this UID reads in its `cgroup`: containerd, systemd, cgroup v2.
pub fn cgroup(uid: &str) -> String {
    let uid = uid.replace('-', "_");
    let slice = format!("kubepods-burstable-pod{uid}.slice");
    format!("0::/kubepods.slice/kubepods-burstable.slice/{slice}/cri-containerd-{:064x}.scope\n", 7)
}

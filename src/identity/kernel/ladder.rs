//! The steps from a link to a pod's UID, and the rule for each. What is read is compared again at the end, because
//! everything here may change between two questions.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::super::evidence::Doubt;
use super::super::pods::PodUid;
use super::cgroup::Owner;
use super::link::{Link, Netlink};
use super::process::Proc;

/// A pod may hold this many network namespaces of its own (containers within it) before we stop looking.
const MAX_INNER: usize = 4;

/// Both ends of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) from: SocketAddr,
    /// Where the caller sent it, which a redirect may have changed since.
    pub(super) to: SocketAddr,
}

/// The cable that leads to the caller's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Our end of it: the ingress link, or the port of the ingress bridge. Its index is never given out again.
    pub(super) link: u32,
    /// The other end's namespace, as the kernel numbers it now.
    pub(super) namespace: i32,
    /// On a bridge pods choose by what they send which port an address seems to be behind.
    pub(super) bridged: bool,
}

/// The two sources of evidence, as one thread uses them.
pub(super) struct Ladder {
    netlink: Netlink,
    proc: Proc,
}

impl Ladder {
    pub(super) fn new(netlink: Netlink, proc: Proc) -> Self {
        Self { netlink, proc }
    }

    /// From the ingress link to the namespace behind it.
    pub(super) fn way(&mut self, ingress: u32, from: IpAddr) -> Result<Way, Doubt> {
        let link = self.link(ingress)?;
        if link.kind != "bridge" {
            return self.end_of(ingress, link, false);
        }
        let Some(port) = self.netlink.port(ingress, from).map_err(Doubt::unreadable)? else {
            return Err(Doubt::NotAPod { link: link.name });
        };
        // The bridge itself is a port where the address is its own.
        let link = self.link(port)?;
        self.end_of(port, link, true)
    }

    /// One process's testimony: `None` if it is no longer a pod's in that namespace.
    pub(super) fn testimony(&mut self, pid: u32, way: &Way, call: Call) -> Result<Option<PodUid>, Doubt> {
        let read = Doubt::unreadable;
        let Some(process) = self.proc.process(pid).map_err(read)? else { return Ok(None) };
        let Some(Owner::Pod(uid)) = process.owner().map_err(read)? else { return Ok(None) };
        if self.namespace_of(pid)? != Some(way.namespace) {
            return Ok(None);
        }
        if !process.has_address(call.from.ip()).map_err(read)? {
            return Err(Doubt::NotItsAddress { address: call.from.ip() });
        }
        if way.bridged
            && !process.has_connection(call.from, call.to, false).map_err(read)?
            && !self.inner_connection(&uid, process.namespace_inode().map_err(read)?, call).map_err(read)?
        {
            return Err(Doubt::NoSuchConnection { address: call.from.ip() });
        }
        // Still the same process, and still there: else its number may have been another's when we asked by it.
        let unchanged = process.owner().map_err(read)? == Some(Owner::Pod(uid.clone()))
            && self.namespace_of(pid)? == Some(way.namespace);
        // Our end still leads there, so the namespace lived all the while and its id was nobody else's.
        let link = self.link(way.link)?;
        Ok((unchanged && link.peer == Some(way.namespace)).then_some(uid))
    }

    /// The processes of every namespace in `wanted`, oldest first, in one walk over all processes.
    pub(super) fn walk(&mut self, wanted: &HashSet<i32>) -> io::Result<HashMap<i32, Vec<(u32, Owner)>>> {
        let mut found: HashMap<i32, Vec<(u32, Owner)>> = HashMap::new();
        for pid in self.proc.pids()? {
            let process = self.proc.process(pid);
            let Some(namespace) = self.netlink.namespace_of(pid)?.filter(|id| wanted.contains(id)) else {
                continue;
            };
            // One that we may not read could be another pod's: nobody can say then. Elsewhere it is none of ours.
            let Some(process) = process? else { continue };
            if let Some(owner) = process.owner()? {
                found.entry(namespace).or_default().push((pid, owner));
            }
        }
        Ok(found)
    }

    /// The process that stands for the caller's namespace. All that are a pod's must be the same pod's; those of
    /// nobody (a runtime that looks in, a plug-in) are passed over.
    pub(super) fn spokesman(way: &Way, walked: &HashMap<i32, Vec<(u32, Owner)>>) -> Result<u32, Doubt> {
        let mut spokesman: Option<(u32, &Owner)> = None;
        for (pid, owner) in walked.get(&way.namespace).into_iter().flatten() {
            match (owner, spokesman) {
                (Owner::Nobody, _) => {}
                (Owner::Contradiction, _) => return Err(Doubt::SeveralPods),
                (owner, Some((_, first))) if owner != first => return Err(Doubt::SeveralPods),
                (_, Some(_)) => {}
                (owner, None) => spokesman = Some((*pid, owner)),
            }
        }
        match spokesman {
            Some((_, Owner::Static)) => Err(Doubt::StaticPod),
            Some((pid, _)) => Ok(pid),
            None => Err(Doubt::NoPod),
        }
    }

    /// Docker in a pod translates its containers' addresses to the pod's, and keeps the port unless the pod has it
    /// in use already; their sockets are in namespaces of their own, whose processes are under the pod's cgroup.
    /// Where it had to change the port, the caller is refused and its next connection is not.
    ///
    /// A spoofer gains nothing by it: while the container has that port, the spoofer's connection would be the
    /// container's own to us, and not a new one.
    fn inner_connection(&self, uid: &PodUid, outer: Option<u64>, call: Call) -> io::Result<bool> {
        let mut seen: HashSet<u64> = outer.into_iter().collect();
        for pid in self.proc.pids()? {
            let Ok(Some(process)) = self.proc.process(pid) else { continue };
            if !matches!(process.owner(), Ok(Some(Owner::Pod(owner))) if owner == *uid) {
                continue;
            }
            let Some(inode) = process.namespace_inode()? else { continue };
            if seen.insert(inode) && process.has_connection(call.from, call.to, true)? {
                return Ok(process.owner()? == Some(Owner::Pod(uid.clone())));
            }
            if seen.len() > MAX_INNER {
                break;
            }
        }
        Ok(false)
    }

    fn link(&mut self, index: u32) -> Result<Link, Doubt> {
        let link = self.netlink.link(index).map_err(Doubt::unreadable)?;
        link.ok_or_else(|| Doubt::NotAPod { link: format!("#{index}, which has gone") })
    }

    fn end_of(&mut self, index: u32, link: Link, bridged: bool) -> Result<Way, Doubt> {
        match link.peer {
            Some(namespace) if matches!(&*link.kind, "veth" | "netkit") => {
                Ok(Way { link: index, namespace, bridged })
            }
            _ => Err(Doubt::NotAPod { link: link.name }),
        }
    }

    fn namespace_of(&mut self, pid: u32) -> Result<Option<i32>, Doubt> {
        self.netlink.namespace_of(pid).map_err(Doubt::unreadable)
    }
}

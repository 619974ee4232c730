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
use super::witness::Witness;

/// A pod may hold this many network namespaces of its own (containers within it) before we stop looking.
const MAX_INNER: usize = 4;

/// Both ends of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) from: SocketAddr,
    /// Where the caller sent it, which a redirect may have changed since.
    pub(super) to: SocketAddr,
}

/// Where a connection came from, as far as its link tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The caller's namespace is at the other end of this cable.
    Cable(Cable),
    /// Both ends of this cable are the node's own: something on the node hands over what pods send, and their own
    /// cables are not seen. Its name.
    Handed(String),
}

impl Way {
    /// The caller's namespace, if the link tells.
    pub(super) fn namespace(&self) -> Option<i32> {
        match self {
            Self::Cable(cable) => Some(cable.namespace),
            Self::Handed(_) => None,
        }
    }

    /// Our end of the caller's cable, if that is known.
    pub(super) fn link(&self) -> Option<u32> {
        match self {
            Self::Cable(cable) => Some(cable.link),
            Self::Handed(_) => None,
        }
    }
}

/// A cable to a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cable {
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
            return match link.peer {
                Some(namespace) if link.is_cable() => {
                    Ok(Way::Cable(Cable { link: ingress, namespace, bridged: false }))
                }
                None if link.is_cable() => Ok(Way::Handed(link.name)),
                _ => Err(Doubt::NotAPod { link: link.name }),
            };
        }
        let Some(port) = self.netlink.port(ingress, from).map_err(Doubt::unreadable)? else {
            return Err(Doubt::NotAPod { link: link.name });
        };
        // The bridge itself is a port where the address is its own.
        let link = self.link(port)?;
        match link.peer {
            Some(namespace) if link.is_cable() => {
                Ok(Way::Cable(Cable { link: port, namespace, bridged: true }))
            }
            _ => Err(Doubt::NotAPod { link: link.name }),
        }
    }

    /// The namespace that the cable at our end `link` leads to now.
    pub(super) fn peer(&mut self, link: u32) -> Result<Option<i32>, Doubt> {
        self.netlink.peer(link).map_err(Doubt::unreadable)
    }

    /// The processes of every namespace in `wanted`, oldest first, in one walk over all processes; of every namespace
    /// that a cable leads to, if it is `None`.
    pub(super) fn walk(&mut self, wanted: Option<&HashSet<i32>>) -> io::Result<Walk> {
        let mut found = Walk::default();
        for pid in self.proc.pids()? {
            // Most are in none of them: those need not be opened.
            if self.namespace_in(pid, wanted)?.is_none() {
                continue;
            }
            let process = self.proc.process(pid);
            let Some(namespace) = self.namespace_in(pid, wanted)? else { continue };
            // One that we may not read could be another pod's: nobody can say then. Elsewhere it is none of ours.
            let Some(process) = process? else { continue };
            if let Some(owner) = process.owner()? {
                found.0.entry(namespace).or_default().push((pid, owner));
            }
        }
        Ok(found)
    }

    /// Process `pid`, if it is one of pod `uid` still. It stays that pod's for as long as it lives: it can be moved to
    /// cgroups below its own, and out of the pod's only by the node's root.
    pub(super) fn witness(&self, pid: u32, uid: &PodUid) -> Result<Option<Witness>, Doubt> {
        let Some(process) = self.proc.process(pid).map_err(Doubt::unreadable)? else { return Ok(None) };
        let owner = process.owner().map_err(Doubt::unreadable)?;
        let same = matches!(owner, Some(Owner::Pod(owner)) if owner == *uid);
        Ok(same.then(|| Witness::new(pid, uid.clone(), process)))
    }

    /// Whether `witness` is in the namespace behind `link` now. This is all that a routed pod's connection costs while
    /// its witness is known, so each question has its reason:
    ///
    /// - Where the process is, because one with the right to can leave its namespace.
    /// - Where the cable leads, because a pod that administers its namespace can put its end into another one, and so
    ///   could a network plug-in that uses its cables again. (No pod can put it into another pod's: that takes a right
    ///   over that namespace.)
    /// - Whether the process still lives, last: then the number meant it when the kernel was asked by number, and
    ///   nobody who was given the number since.
    ///
    /// Between the first two the id that both name could change hands, if the process left and its namespace died in
    /// these microseconds. But then the cable had been taken out of it first, which only the pod itself can do: it
    /// would be taken for itself.
    pub(super) fn stands(&mut self, witness: &Witness, link: u32) -> Result<bool, Doubt> {
        let namespace = self.netlink.namespace_of(witness.pid).map_err(Doubt::unreadable)?;
        let there = namespace.is_some() && self.peer(link)? == namespace;
        Ok(there && witness.process.lives().map_err(Doubt::unreadable)?)
    }

    /// All that is asked of a connection whose `witness` is not known to speak for its address: whether it stands, and
    /// did all the while.
    pub(super) fn testimony(&mut self, witness: &Witness, cable: &Cable, call: Call) -> Result<bool, Doubt> {
        if !self.stands(witness, cable.link)? {
            return Ok(false);
        }
        if !witness.has(call.from.ip()).map_err(Doubt::unreadable)? {
            return Err(Doubt::NotItsAddress { address: call.from.ip() });
        }
        if cable.bridged {
            self.opened(witness, call)?;
        }
        self.stands(witness, cable.link)
    }

    /// The pod that opened a connection which was handed over, so that the sender's address is all that tells: it must
    /// be local to one pod's namespace only, and the connection must stand there. The sender chose the address, but an
    /// open connection with both its ends is there once only: where its packets come from.
    ///
    /// A pod that administers its namespace can take its neighbour's address there. Then neither is answered.
    pub(super) fn by_address(&mut self, walk: &Walk, call: Call, link: &str) -> Result<PodUid, Doubt> {
        let (address, mut found) = (call.from.ip(), None);
        for namespace in walk.0.keys() {
            let Ok((pid, uid)) = walk.spokesman(*namespace) else { continue };
            let Some(witness) = self.witness(pid, uid)? else { continue };
            // Whose own table is too long is not in the others' way.
            if !witness.has(address).unwrap_or(false) {
                continue;
            }
            if found.replace((*namespace, witness)).is_some() {
                return Err(Doubt::SeveralHaveIt { address });
            }
        }
        let (namespace, witness) = found.ok_or_else(|| Doubt::NotAPod { link: link.to_owned() })?;
        self.opened(&witness, call)?;
        let there = self.netlink.namespace_of(witness.pid).map_err(Doubt::unreadable)? == Some(namespace);
        let there = there && witness.process.lives().map_err(Doubt::unreadable)?;
        if there { Ok(witness.uid) } else { Err(Doubt::NoPod) }
    }

    /// The connection must be one of the pod's own.
    fn opened(&self, witness: &Witness, call: Call) -> Result<(), Doubt> {
        let read = Doubt::unreadable;
        let opened = witness.process.has_connection(call.from, call.to, false).map_err(read)?
            || self.inner_connection(witness, call).map_err(read)?;
        if opened { Ok(()) } else { Err(Doubt::NoSuchConnection { address: call.from.ip() }) }
    }

    fn namespace_in(&mut self, pid: u32, wanted: Option<&HashSet<i32>>) -> io::Result<Option<i32>> {
        let namespace = self.netlink.namespace_of(pid)?;
        Ok(namespace.filter(|id| wanted.is_none_or(|wanted| wanted.contains(id))))
    }

    /// Docker in a pod translates its containers' addresses to the pod's, and keeps the port unless the pod has it
    /// in use already; their sockets are in namespaces of their own, whose processes are under the pod's cgroup.
    /// Where it had to change the port, the caller is refused and its next connection is not.
    ///
    /// A spoofer gains nothing by it: while the container has that port, the spoofer's connection would be the
    /// container's own to us, and not a new one.
    fn inner_connection(&self, witness: &Witness, call: Call) -> io::Result<bool> {
        let mut seen: HashSet<u64> = witness.process.namespace_inode()?.into_iter().collect();
        for pid in self.proc.pids()? {
            let Ok(Some(process)) = self.proc.process(pid) else { continue };
            if !matches!(process.owner(), Ok(Some(Owner::Pod(owner))) if owner == witness.uid) {
                continue;
            }
            let Some(inode) = process.namespace_inode()? else { continue };
            if seen.insert(inode) && process.has_connection(call.from, call.to, true)? {
                return process.lives();
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
}

/// What a walk found: the processes of each namespace that was wanted, and whose they are.
#[derive(Default)]
pub(super) struct Walk(HashMap<i32, Vec<(u32, Owner)>>);

impl Walk {
    /// The process that stands for `namespace`, and its pod. All that are a pod's must be the same pod's; those of
    /// nobody (a runtime that looks in, a plug-in) are passed over.
    pub(super) fn spokesman(&self, namespace: i32) -> Result<(u32, &PodUid), Doubt> {
        let mut spokesman: Option<(u32, &Owner)> = None;
        for (pid, owner) in self.0.get(&namespace).into_iter().flatten() {
            match (owner, spokesman) {
                (Owner::Nobody, _) => {}
                (Owner::Contradiction, _) => return Err(Doubt::SeveralPods),
                (owner, Some((_, first))) if owner != first => return Err(Doubt::SeveralPods),
                (_, Some(_)) => {}
                (owner, None) => spokesman = Some((*pid, owner)),
            }
        }
        match spokesman {
            Some((pid, Owner::Pod(uid))) => Ok((pid, uid)),
            Some((_, Owner::Static)) => Err(Doubt::StaticPod),
            _ => Err(Doubt::NoPod),
        }
    }
}

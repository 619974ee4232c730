//! The kernel's own evidence of who opened a connection: no address is believed, and no right is needed but to see
//! the node's processes (hostPID) and its network (hostNetwork).
//!
//! accepted socket → the link it came in by → the network namespace at the other end of that cable → the processes
//! in there → the pod in whose cgroup they are. Then the source address must be local to that namespace.
//!
//! On a bridge all pods come in by one link. Which port an address is behind is then asked of the neighbour and
//! forwarding tables, and pods decide by what they send what those say: with raw packets one can be "behind" its
//! victim's port at any chosen moment, without a trace in either table. So there the connection itself must stand
//! among the sockets of the pod's namespace, always.
//!
//! Some networks hand over what pods send through a cable of the node's own: Cilium, where it does not deliver by the
//! pod's (`cilium_host`), and the bridge plug-in with a VLAN. There the address says where to look, and again the
//! connection must stand in that pod's namespace. Any other link is no pod's: uplinks, tunnels, VPNs, Open vSwitch.
//!
//! Nothing is remembered but which process stood for a link, for some seconds, and whether it still does is asked for
//! each connection.

mod cgroup;
#[cfg(test)]
mod fuzz;
mod helper;
mod ladder;
mod link;
mod process;
mod socket;
mod witness;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use self::helper::{Buckets, Job};
use self::ladder::{Cable, Call, Ladder, Way};
use self::link::Netlink;
use self::process::Proc;
use self::witness::{Witness, Witnesses};
use super::evidence::{Doubt, Origin};
use super::pods::{PodUid, unmapped};

/// Why this node does not allow it.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// Our parent is not to be seen, so neither are the pods' processes.
    #[error("the agent sees only its own processes; its pod needs hostPID: true")]
    HostPid,
    /// The node's first process is at the other end of a cable of ours.
    #[error("the agent is in a network namespace of its own; its pod needs hostNetwork: true")]
    HostNetwork,
    /// There, but closed: `hidepid`, or SELinux.
    #[error(
        "the agent may not read /proc/{pid}/cgroup ({source}); is /proc mounted with hidepid, or does SELinux forbid it?"
    )]
    Proc {
        /// Our parent.
        pid: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Or one without answers.
    #[error("netlink: {0}")]
    Netlink(#[source] io::Error),
    /// No `IP_PKTOPTIONS`, or not what we take it for.
    #[error("the kernel does not tell by which link a connection came in: {0}")]
    Ingress(#[source] io::Error),
    /// For the dear steps.
    #[error("no thread: {0}")]
    Thread(#[source] io::Error),
}

/// How a connection came in.
pub struct Arrival {
    link: Option<u32>,
    next: Result<(Call, Next), Doubt>,
}

/// What is to be asked next.
enum Next {
    /// Whether the witness of this routed link still stands.
    Witness(u32, Arc<Witness>),
    /// Who is in the namespace there.
    Namespace(Way),
}

impl Arrival {
    /// Our end of the caller's cable: the link that it came in by, or the port where that is a bridge. Only for `lo` and
    /// for a bridge's unknown addresses do several callers share one. None where the kernel did not say, or where
    /// pods share a link.
    pub fn link(&self) -> Option<u32> {
        self.link
    }
}

/// The ladder, shared by all connections.
pub struct Kernel {
    loopback: u32,
    /// For the cheap steps, on the caller's thread: microseconds, so nobody waits for the lock.
    ladder: Mutex<Ladder>,
    helper: SyncSender<Job>,
    witnesses: Arc<Witnesses>,
    buckets: Mutex<Buckets>,
}

impl Kernel {
    /// Tries the ladder on ourselves. The sockets are in the network namespace of the calling thread; `proc` is
    /// `/proc`.
    ///
    /// # Errors
    /// What the node does not allow.
    pub fn start(proc: impl Into<PathBuf>) -> Result<Self, Missing> {
        let proc = Proc::new(proc);
        let mut netlink = Netlink::open().map_err(Missing::Netlink)?;
        check_processes(&proc, &mut netlink)?;
        check_network(&proc, &mut netlink)?;
        let loopback = check_ingress(&mut netlink)?;
        let ladder = |netlink| Ladder::new(netlink, proc.clone());
        let witnesses = Arc::new(Witnesses::default());
        let own = ladder(Netlink::open().map_err(Missing::Netlink)?);
        let helper = helper::start(own, Arc::clone(&witnesses)).map_err(Missing::Thread)?;
        Ok(Self {
            loopback,
            ladder: Mutex::new(ladder(netlink)),
            helper,
            witnesses,
            buckets: Mutex::default(),
        })
    }

    /// The first steps, which cost microseconds: by which link `stream` came in, accepted from `peer` at our address
    /// `local`. Where they fail, that is part of what they show: who is refused is charged, too.
    pub fn arrived(&self, stream: &tokio::net::TcpStream, peer: SocketAddr, local: SocketAddr) -> Arrival {
        let ingress = match socket::ingress(stream, local) {
            Ok(ingress) => ingress,
            Err(err) => return Arrival { link: None, next: Err(Doubt::unreadable(err)) },
        };
        if ingress == self.loopback {
            return Arrival { link: Some(ingress), next: Err(Doubt::Host) };
        }
        let mut call = Call { from: SocketAddr::new(unmapped(peer.ip()), peer.port()), to: local };
        // No bridge has a witness: its ports have, and what must be asked there is dear.
        let witness = self.witnesses.of(ingress, Instant::now());
        if let Some(witness) = witness.filter(|witness| witness.knows(call.from.ip())) {
            return Arrival { link: Some(ingress), next: Ok((call, Next::Witness(ingress, witness))) };
        }
        let way = locked(&self.ladder).way(ingress, call.from.ip()).and_then(|way| {
            if !matches!(way, Way::Cable(Cable { bridged: false, .. })) {
                call.to = socket::destination(stream, local).map_err(Doubt::unreadable)?;
            }
            Ok(way)
        });
        let link = match &way {
            Ok(Way::Cable(cable)) => Some(cable.link),
            Ok(Way::Handed(_)) => None,
            // A bridge's own index is for those whose port is not known.
            Err(_) => Some(ingress),
        };
        Arrival { link, next: way.map(|way| (call, Next::Namespace(way))) }
    }

    /// The pod that opened the connection. The thread has the jobs of others before it: whoever is not reached by `deadline` asks again.
    ///
    /// # Errors
    /// Any [`Doubt`].
    pub async fn attest(&self, arrival: Arrival, deadline: Instant) -> Result<PodUid, Doubt> {
        let (call, next) = arrival.next?;
        let way = match next {
            Next::Namespace(way) => way,
            Next::Witness(link, witness) => {
                if locked(&self.ladder).stands(&witness, link)? {
                    self.look_again_in_time(link);
                    return Ok(witness.uid.clone());
                }
                locked(&self.ladder).way(link, call.from.ip())?
            }
        };
        let origin = match &way {
            Way::Cable(cable) => Origin::Link(cable.link),
            Way::Handed(_) => Origin::Address(call.from.ip()),
        };
        if !locked(&self.buckets).take(origin, Instant::now()) {
            return Err(Doubt::Busy);
        }
        let (answer, answered) = oneshot::channel();
        let caller = helper::Caller { way, call, answer };
        self.helper.try_send(Job::Caller(caller)).map_err(|_| Doubt::Busy)?;
        match timeout_at(deadline, answered).await {
            Ok(Ok(found)) => found,
            _ => Err(Doubt::Busy),
        }
    }

    /// If the thread is too busy for it, the witness is not believed for long either.
    fn look_again_in_time(&self, link: u32) {
        if self.witnesses.want(link, Instant::now()) {
            let _ = self.helper.try_send(Job::Again);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}

/// Without hostPID our parent is outside of what we see: we are the first process, or the sandbox's is.
fn check_processes(proc: &Proc, netlink: &mut Netlink) -> Result<(), Missing> {
    let parent = nix::unistd::getppid().as_raw().unsigned_abs();
    if parent == 0 {
        return Err(Missing::HostPid);
    }
    let missing = |source| Missing::Proc { pid: parent, source };
    let process = proc.process(parent).map_err(missing)?;
    let owner = process.map(|process| process.owner()).transpose().map_err(missing)?.flatten();
    owner.ok_or_else(|| missing(io::ErrorKind::NotFound.into()))?;
    netlink.namespace_of(parent).map_err(Missing::Netlink)?;
    Ok(())
}

/// Without hostNetwork a cable of ours leads to the namespace of the node's first process, and so we have an id for that
/// namespace. One may have an id for its own as well, so that must not be it. A pod whose network is a device of its own
/// has neither cable nor id: no link that we see then leads to a pod, and everybody is refused.
fn check_network(proc: &Proc, netlink: &mut Netlink) -> Result<(), Missing> {
    const FIRST: u32 = 1;
    let missing = |source| Missing::Proc { pid: FIRST, source };
    let first = proc.process(FIRST).map_err(missing)?;
    let theirs = first.map(|first| first.namespace_inode()).transpose().map_err(missing)?.flatten();
    let ours = proc.own_namespace_inode().map_err(missing)?;
    match netlink.namespace_of(FIRST).map_err(Missing::Netlink)? {
        Some(_) if theirs != ours => Err(Missing::HostNetwork),
        _ => Ok(()),
    }
}

/// Connects to ourselves, which must be seen to come in by `lo`: its index.
fn check_ingress(netlink: &mut Netlink) -> Result<u32, Missing> {
    let loopback = ingress_of((Ipv4Addr::LOCALHOST, 0).into()).map_err(Missing::Ingress)?;
    let link = netlink.link(loopback).map_err(Missing::Netlink)?.unwrap_or_default();
    if link.name != "lo" {
        return Err(Missing::Ingress(io::Error::other(format!("{} instead of lo", link.name))));
    }
    // Some nodes have no IPv6; where it works, both families must agree.
    match ingress_of((Ipv6Addr::LOCALHOST, 0).into()) {
        Err(err) if err.kind() == io::ErrorKind::AddrNotAvailable => Ok(loopback),
        Err(err) if err.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(loopback),
        Ok(index) if index == loopback => Ok(loopback),
        Ok(index) => {
            Err(Missing::Ingress(io::Error::other(format!("link {index} over IPv6, instead of lo"))))
        }
        Err(err) => Err(Missing::Ingress(err)),
    }
}

fn ingress_of(at: SocketAddr) -> io::Result<u32> {
    let listener = TcpListener::bind(at)?;
    let local = listener.local_addr()?;
    let _client = TcpStream::connect(local)?;
    socket::ingress(listener.accept()?.0, local)
}

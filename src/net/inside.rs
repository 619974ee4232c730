//! The proof from where it counts: a pod's network namespace, entered by one thread that dials what a pod would and ends.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::verify::{self, Fault, PATIENCE};

/// The node's instance metadata.
const METADATA: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)), 80),
];

/// Why nothing could be dialled from there.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Mostly a namespace that has gone.
    #[error("cannot open it: {0}; `lsns -t net` shows a process of each, for /proc/PID/ns/net")]
    Open(#[source] io::Error),
    /// The kernel wants `CAP_SYS_ADMIN` for another's namespace.
    #[error("cannot enter it: {0}; run this on the node as root (SYS_ADMIN)")]
    Enter(#[source] io::Error),
    /// No thread, or no runtime on it.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// What a pod is to find at instance metadata.
#[derive(Clone, Copy)]
pub(super) struct Expected {
    /// Nobody, where our agent does not answer. Otherwise it is not dialled: the guard would count this pod as one that asks.
    pub(super) refused: bool,
    /// Our agent, over IPv4.
    pub(super) v4: bool,
    /// Our agent, over IPv6.
    pub(super) v6: bool,
}

/// What a pod finds at instance metadata.
#[derive(Debug)]
pub(super) enum Metadata {
    /// Our agent, as it should be.
    Ours,
    /// Somebody else, or nobody, in place of our agent.
    NotOurs(Fault),
    /// A connection.
    Reached,
    /// None, and at once.
    Refused(io::Error),
    /// None, and its SDKs wait for nothing.
    Silent,
}

/// What was found, by address.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) ours: Vec<(SocketAddr, Result<(), Fault>)>,
    pub(super) metadata: Vec<(SocketAddr, Metadata)>,
}

/// Dials `targets`, as [`verify::verify`] does, and instance metadata as far as something is expected there.
pub(super) async fn dial(
    namespace: &Path,
    targets: &[SocketAddr],
    instance: &str,
    expected: Expected,
) -> Result<Found, Error> {
    let (path, targets, instance) = (PathBuf::from(namespace), targets.to_vec(), instance.to_owned());
    let (answer, found) = oneshot::channel();
    let work = move || {
        let _ = answer.send(enter(&path, async {
            let ours = |at: &SocketAddr| if at.is_ipv4() { expected.v4 } else { expected.v6 };
            let (redirected, closed): (Vec<_>, Vec<_>) = METADATA.into_iter().partition(ours);
            let closed = closed.into_iter().filter(|_| expected.refused);
            let closed = futures_util::future::join_all(closed.map(|at| async move { (at, ask(at).await) }));
            let metadata = async {
                let (redirected, closed) = tokio::join!(verify::verify(&redirected, &instance), closed);
                let redirected = redirected
                    .into_iter()
                    .map(|(at, found)| (at, found.map_or_else(Metadata::NotOurs, |()| Metadata::Ours)));
                redirected.chain(closed).collect()
            };
            let (ours, metadata) = tokio::join!(verify::verify(&targets, &instance), metadata);
            Found { ours, metadata }
        }));
    };
    // Not one of a pool: the thread is in the namespace for good.
    thread::Builder::new().name("netns".into()).spawn(work).map_err(Error::Thread)?;
    found.await.unwrap_or_else(|_| Err(Error::Thread(io::Error::other("it ended early"))))
}

fn enter<T>(namespace: &Path, work: impl Future<Output = T>) -> Result<T, Error> {
    let file = File::open(namespace).map_err(Error::Open)?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Enter(errno.into()))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Thread)?;
    Ok(runtime.block_on(work))
}

async fn ask(at: SocketAddr) -> Metadata {
    match timeout(PATIENCE, TcpStream::connect(at)).await {
        Ok(Ok(_)) => Metadata::Reached,
        Ok(Err(err)) => Metadata::Refused(err),
        Err(_) => Metadata::Silent,
    }
}

//! Caller -> [`AttestedPod`], or a refusal with its reason. Any doubt is a refusal.
//!
//! `--identity=ip`: the source address, against the kube API's podIPs. The address is the caller's claim; what
//! stands behind it is the node's datapath (a routed veth answers only to its own address) and the kube API.
//! What this cannot see is listed in the README and warned of at start.
//!
//! `--identity=kernel`: [`kernel`] names the pod's UID before a byte is parsed, and the kube API must agree: that pod
//! is live on this node, and the source address is no other live pod's.

pub mod confirm;
pub mod evidence;
#[cfg(target_os = "linux")]
pub mod kernel;
pub mod pods;
pub mod watch;

use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use self::confirm::{Confirmations, Listed};
pub use self::evidence::Caller;
use self::evidence::{Doubt, Evidence, Source};
use self::pods::{Pod, PodUid, Pods};
use crate::cluster::Cluster;

/// Why a caller is not known to be a pod of this node.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The source is the node itself: a hostNetwork pod or a host process.
    #[error(
        "{address} is this node's own address: host processes and hostNetwork pods are not answered by address"
    )]
    Host {
        /// The source address.
        address: IpAddr,
    },
    /// Two live pods claim the address; an answer could hand one pod the other's role.
    #[error("{count} live pods claim {address}")]
    Ambiguous {
        /// The source address.
        address: IpAddr,
        /// How many.
        count: usize,
    },
    /// The connection was opened by a pod that has gone, or that has another address now.
    #[error("the pod that opened this connection no longer has {address}; connect again")]
    Gone {
        /// The source address.
        address: IpAddr,
    },
    /// No live pod shows the address yet. Pods ask before the API server knows their address.
    #[error("no live pod of this node shows {address} yet")]
    NotKnownYet {
        /// The source address.
        address: IpAddr,
    },
    /// The only pod with this address is being deleted; its address may belong to the next one already.
    #[error("the only pod that shows {address} is being deleted")]
    Terminating {
        /// The source address.
        address: IpAddr,
    },
    /// The first list of this node's pods has not arrived.
    #[error("the kube API has not listed this node's pods yet")]
    NotSynced,
    /// The address could not be confirmed with the kube API.
    #[error("{address} could not be confirmed: {why}")]
    Unconfirmed {
        /// The source address.
        address: IpAddr,
        /// What the kube API said.
        why: String,
    },
    /// The kernel's evidence names no pod.
    #[error("{address}: {doubt}")]
    Unattested {
        /// The source address.
        address: IpAddr,
        /// Why not.
        doubt: Doubt,
    },
    /// The kernel's evidence names a pod that the kube API does not have on this node, or that has finished.
    #[error("pod {uid}, which opened this connection, is not a live pod of this node")]
    NoSuchPod {
        /// Its UID.
        uid: PodUid,
    },
    /// The two authorities disagree: one pod opened the connection, under the address of another.
    #[error("pod {uid} opened this connection, but {address} is another pod's")]
    NotItsAddress {
        /// The source address.
        address: IpAddr,
        /// The pod that the kernel shows.
        uid: PodUid,
    },
}

impl Error {
    /// The fixed word of the README's table of answers.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Host { .. } | Self::Gone { .. } | Self::NoSuchPod { .. } => "CallerNotIdentified",
            Self::Ambiguous { .. } => "CallerAmbiguous",
            Self::NotKnownYet { .. } | Self::Terminating { .. } => "PodNotKnownYet",
            Self::NotSynced | Self::Unconfirmed { .. } => "KubeUnavailable",
            Self::NotItsAddress { .. } => "SourceMismatch",
            Self::Unattested { doubt, .. } => doubt.code(),
        }
    }
}

/// A pod that is proved to be the caller. Only this module can make one.
#[derive(Clone, Debug)]
pub struct AttestedPod {
    pod: Arc<Pod>,
}

impl AttestedPod {
    /// The pod object, as the kube API shows it.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }
}

/// What the claims to an address amount to.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    /// Exactly one live pod, not being deleted.
    One(Arc<Pod>),
    Many(usize),
    /// Only pods that are being deleted.
    Terminating,
    HostNetwork,
    Nobody,
}

/// Judges the pods that show one address. Finished pods keep theirs, so they have no voice; a pod that is being
/// deleted has none beside one that is not. Phase is no filter: init containers ask while it is Pending.
fn judge<'a>(claimants: impl Iterator<Item = &'a Arc<Pod>>) -> Claim {
    let (mut live, mut terminating, mut host) = (Vec::new(), 0, false);
    for pod in claimants.filter(|pod| pod.live()) {
        if pod.host_network {
            host = true;
        } else if pod.terminating {
            terminating += 1;
        } else {
            live.push(pod);
        }
    }
    match live.as_slice() {
        // The node's own address is never also a pod's; if it seems so, nobody can be told apart.
        [_, ..] if host => Claim::Many(live.len() + 1),
        [pod] => Claim::One(Arc::clone(pod)),
        [_, ..] => Claim::Many(live.len()),
        [] if host => Claim::HostNetwork,
        [] if terminating > 0 => Claim::Terminating,
        [] => Claim::Nobody,
    }
}

/// The kernel says that `uid` opened the connection; `mine` is what the kube API shows of it, and `others` how many
/// other live pods it shows under the address. An address that it shows nobody under is no contradiction: pods have
/// further interfaces, and ask before their address is published.
fn agree(address: IpAddr, uid: &PodUid, mine: Option<Arc<Pod>>, others: usize) -> Result<Arc<Pod>, Error> {
    match mine {
        Some(pod) if pod.live() && pod.host_network => Err(Error::Host { address }),
        Some(pod) if pod.live() && others == 0 => Ok(pod),
        Some(pod) if pod.live() => Err(Error::NotItsAddress { address, uid: uid.clone() }),
        _ => Err(Error::NoSuchPod { uid: uid.clone() }),
    }
}

/// Tells who is calling.
pub struct Identity {
    pods: Arc<Pods>,
    confirmations: Confirmations,
}

impl Identity {
    /// Identity by evidence from `source`: `pods` is what the watch shows, `cluster` confirms it.
    pub fn new(source: &Source, pods: Arc<Pods>, cluster: Arc<dyn Cluster>) -> Self {
        // Only an address needs the API server's word before it is believed.
        let ahead = matches!(source, Source::Address);
        let confirmations = Confirmations::start(Arc::clone(&pods), cluster, ahead);
        Self { pods, confirmations }
    }

    /// The pod behind `caller`. The first request of a connection settles which pod it is; later ones check that
    /// it is still that pod's.
    ///
    /// # Errors
    /// [`Error`]: any doubt. Nothing of a failure is remembered.
    pub async fn attest(&self, caller: &Caller, deadline: Instant) -> Result<AttestedPod, Error> {
        match caller.evidence() {
            Evidence::Address => {}
            Evidence::Kernel(Ok(uid)) => return self.vouched(caller, uid, deadline).await,
            Evidence::Kernel(Err(doubt)) => {
                return Err(Error::Unattested { address: caller.address(), doubt: doubt.clone() });
            }
        }
        if let Some(uid) = caller.pod() {
            return self.still(caller.address(), uid);
        }
        let pod = self.settle(caller, deadline).await?;
        caller.settle(pod.uid.clone());
        Ok(AttestedPod { pod })
    }

    /// The pod's object must be there, must still show the address, and nobody else may show it who could be the
    /// next owner. A terminating pod keeps its open connections: shutdown hooks need credentials too.
    fn still(&self, address: IpAddr, uid: &PodUid) -> Result<AttestedPod, Error> {
        let (mine, others) = self.pods.claim(address, uid);
        match mine {
            Some(pod) if pod.live() && others == 0 => Ok(AttestedPod { pod }),
            Some(pod) if pod.live() => Err(Error::Ambiguous { address, count: others + 1 }),
            _ => Err(Error::Gone { address }),
        }
    }

    /// What the kernel shows, if the kube API agrees. Where the watch does not, it may be behind: a quorum list, begun
    /// after what is asked about, then has the last word. So a new pod need not wait for the watch, nor for its
    /// `status.podIP`, and the old owner of its address is not in its way.
    async fn vouched(&self, caller: &Caller, uid: &PodUid, deadline: Instant) -> Result<AttestedPod, Error> {
        let address = caller.address();
        // The evidence of a first request is as old as the connection, and says that the pod was there then.
        let since = if caller.pod().is_none() { caller.accepted() } else { Instant::now() };
        let (mut changes, mut lists) = (self.pods.changes(), self.confirmations.lists());
        let agreed = loop {
            changes.mark_unchanged();
            let others = self.pods.claim(address, uid).1;
            let refusal = match agree(address, uid, self.pods.by_uid(uid), others) {
                Ok(pod) => break pod,
                Err(refusal) => refusal,
            };
            let listed = lists.borrow_and_update().clone().filter(|list| list.begun >= since);
            let why = match listed {
                Some(Listed { found: Ok(found), .. }) => {
                    let mine = found.pods.iter().find(|pod| pod.uid == *uid).cloned();
                    let others =
                        found.pods.iter().filter(|pod| pod.uid != *uid && pod.claims(address)).count();
                    break agree(address, uid, mine, others)?;
                }
                // It is never again live, and never was on a network of its own.
                _ if self.pods.by_uid(uid).is_some_and(|pod| !pod.live() || pod.host_network) => {
                    return Err(refusal);
                }
                Some(Listed { found: Err(failure), .. }) => failure.to_string(),
                None => "no list in time".into(),
            };
            self.confirmations.want();
            let woken = async {
                tokio::select! {
                    change = changes.changed() => change,
                    list = lists.changed() => list,
                }
            };
            if timeout_at(deadline, woken).await.is_err() {
                return Err(Error::Unconfirmed { address, why });
            }
        };
        caller.settle(uid.clone());
        Ok(AttestedPod { pod: agreed })
    }

    async fn settle(&self, caller: &Caller, deadline: Instant) -> Result<Arc<Pod>, Error> {
        let address = caller.address();
        let (mut changes, mut lists) = (self.pods.changes(), self.confirmations.lists());
        loop {
            changes.mark_unchanged();
            let refusal = match judge(self.pods.claimants(address).iter()) {
                Claim::One(pod) if self.confirmations.holds(address, &pod.uid) => return Ok(pod),
                Claim::One(pod) => {
                    // The watch may be behind: what etcd has decides, in a list begun after this connection.
                    let listed =
                        lists.borrow_and_update().clone().filter(|list| list.begun >= caller.accepted());
                    match listed.map(|list| list.found) {
                        // The list came before the watch had caught up with it.
                        Some(Ok(found)) if found.alone.get(&address) == Some(&pod.uid) => {
                            self.confirmations.confirm(address, &pod.uid);
                            return Ok(pod);
                        }
                        // The list knows better than the watch, which will catch up, and wake us.
                        Some(Ok(_)) => Error::NotKnownYet { address },
                        other => {
                            self.confirmations.want();
                            let why = other.and_then(Result::err).map(|failure| failure.to_string());
                            Error::Unconfirmed {
                                address,
                                why: why.unwrap_or_else(|| "no list in time".into()),
                            }
                        }
                    }
                }
                Claim::Many(count) => return Err(Error::Ambiguous { address, count }),
                Claim::HostNetwork => return Err(Error::Host { address }),
                Claim::Nobody if caller.is_host() => return Err(Error::Host { address }),
                Claim::Nobody if !self.pods.synced() => Error::NotSynced,
                Claim::Terminating => Error::Terminating { address },
                Claim::Nobody => Error::NotKnownYet { address },
            };
            let woken = async {
                tokio::select! {
                    change = changes.changed() => change,
                    list = lists.changed() => list,
                }
            };
            // The watch's channel lives in `self`, so an error is a deadline.
            if timeout_at(deadline, woken).await.is_err() {
                return Err(refusal);
            }
        }
    }
}

#[cfg(test)]
#[path = "identity/tests.rs"]
mod tests;

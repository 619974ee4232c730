//! Caller -> [`AttestedPod`], or a refusal with its reason. Any doubt is a refusal.
//!
//! `--identity=ip`: the source address, against the kube API's podIPs. The address is the caller's claim; what
//! stands behind it is the node's datapath (a routed veth answers only to its own address) and the kube API.
//! What this cannot see is listed in the README and warned of at start.
//!
//! `--identity=kernel`: [`kernel`] names the pod's UID before a byte is parsed, and the kube API must agree: that pod
//! is live on this node, and the source address is no other live pod's.
//!
//! Callers on the host network, pods and other processes alike, look the same to both. They are answered only by a token
//! that the API server ties to a live hostNetwork pod of this node (`review`), judged anew for each request. Whoever
//! reads such a pod's token file on the host can be that pod; nothing here tells the two apart.

pub(crate) mod allowance;
pub mod authorization;
pub mod confirm;
pub mod evidence;
#[cfg(target_os = "linux")]
pub mod kernel;
pub mod pods;
mod review;
pub mod watch;

use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use self::authorization::{Authorization, Fault, Presented, Token};
use self::confirm::{Confirmations, Listed};
pub use self::evidence::Caller;
use self::evidence::{Doubt, Evidence, Source};
use self::pods::{Pod, PodUid, Pods};
use self::review::{Reviews, Subject};
use crate::cluster::Cluster;

/// Why a caller is not known to be a pod of this node.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The source is the node itself: a hostNetwork pod or a host process.
    #[error(
        "{address} is this node's own: a hostNetwork pod must show its token, and host processes are not answered"
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
    /// An Authorization header is needed.
    #[error("an Authorization header is required")]
    AuthorizationRequired,
    /// There is one, and it is not good.
    #[error("the Authorization header is not valid: {0}")]
    AuthorizationInvalid(Fault),
    /// The two authorities disagree: a good token, but another pod (or the host) opened the connection.
    #[error("the token is of pod {uid}, which did not open this connection")]
    NotItsToken {
        /// Whose token it is.
        uid: PodUid,
    },
    /// The API server did not say whose token it is.
    #[error("the token could not be reviewed: {why}")]
    NotReviewed {
        /// What it said instead.
        why: String,
    },
    /// This source has shown more tokens than its share.
    #[error("too many tokens to review; ask again")]
    TooManyReviews,
}

impl Error {
    /// The fixed word of the README's table of answers.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Host { .. } | Self::Gone { .. } | Self::NoSuchPod { .. } => "CallerNotIdentified",
            Self::Ambiguous { .. } => "CallerAmbiguous",
            Self::NotKnownYet { .. } | Self::Terminating { .. } => "PodNotKnownYet",
            Self::NotSynced | Self::Unconfirmed { .. } | Self::NotReviewed { .. } => "KubeUnavailable",
            // Not `AuthorizationInvalid`: the token is good, so it is somebody else's, which an operator should see.
            Self::NotItsAddress { .. } | Self::NotItsToken { .. } => "SourceMismatch",
            Self::Unattested { doubt, .. } => doubt.code(),
            Self::AuthorizationRequired => "AuthorizationRequired",
            Self::AuthorizationInvalid(_) => "AuthorizationInvalid",
            Self::TooManyReviews => "Overloaded",
        }
    }
}

/// A pod that is proved to be the caller. Only this module can make one.
#[derive(Clone, Debug)]
pub struct AttestedPod {
    pod: Arc<Pod>,
    proof: Proof,
    credential_id: Option<Arc<str>>,
}

/// What names the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    Address,
    Kernel,
    Token,
}

impl AttestedPod {
    /// The pod object, as the kube API shows it.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// What names it: `kernel`, `address` or `token`.
    pub fn evidence(&self) -> &'static str {
        match self.proof {
            Proof::Address => "address",
            Proof::Kernel => "kernel",
            Proof::Token => "token",
        }
    }

    /// `JTI=…` of the token in Authorization, as the API server's audit log has it; none where no token was reviewed.
    pub fn credential_id(&self) -> Option<&str> {
        self.credential_id.as_deref()
    }

    fn new(pod: Arc<Pod>, proof: Proof) -> Self {
        Self { pod, proof, credential_id: None }
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

/// The API server says whose token it is; `pod` is what the kube API shows under that UID. Only a pod on the host network
/// is named by its token alone: any other one's connections do not come from there, so somebody else has its token.
fn agree_on_the_host(subject: &Subject, pod: Option<Arc<Pod>>) -> Result<Arc<Pod>, Error> {
    match pod {
        Some(pod) if pod.live() && pod.host_network && subject.is(&pod) => Ok(pod),
        Some(pod) if pod.live() => Err(Error::NotItsToken { uid: subject.uid.clone() }),
        _ => Err(Error::AuthorizationInvalid(Fault::NotHere(subject.uid.clone()))),
    }
}

/// Tells who is calling.
pub struct Identity {
    pods: Arc<Pods>,
    confirmations: Confirmations,
    authorization: Authorization,
    reviews: Reviews,
}

impl Identity {
    /// Identity by evidence from `source`: `pods` is what the watch shows, `cluster` confirms it, and reviews tokens.
    pub fn new(
        source: &Source,
        authorization: Authorization,
        pods: Arc<Pods>,
        cluster: Arc<dyn Cluster>,
    ) -> Self {
        // Only an address needs the API server's word before it is believed.
        let by_address = matches!(source, Source::Address);
        let reviews = Reviews::new(Arc::clone(&cluster), &authorization.audiences);
        let confirmations = Confirmations::start(Arc::clone(&pods), cluster, by_address);
        Self { pods, confirmations, authorization, reviews }
    }

    /// The pod behind `caller`, who presents this with its request. The first request of a connection settles which pod
    /// it is; later ones check that it is still that pod's. What is presented is judged anew each time.
    ///
    /// # Errors
    /// [`Error`]: any doubt. Nothing of a failure is remembered.
    pub async fn attest(
        &self,
        caller: &Caller,
        presented: &Presented,
        deadline: Instant,
    ) -> Result<AttestedPod, Error> {
        self.authorization.admits(presented)?;
        let attested = match (self.by_evidence(caller, deadline).await, presented.token()) {
            (Err(Error::Host { .. }), Some(token)) if caller.may_be_host() => {
                return self.by_token(caller, token, deadline).await;
            }
            (attested, _) => attested?,
        };
        match presented.token().filter(|token| self.authorization.judges(token)) {
            Some(token) => self.by_both(attested, caller, token, deadline).await,
            None => Ok(attested),
        }
    }

    async fn by_evidence(&self, caller: &Caller, deadline: Instant) -> Result<AttestedPod, Error> {
        match caller.evidence() {
            Evidence::Kernel(Ok(uid)) => self.vouched(caller, uid, deadline).await,
            Evidence::Kernel(Err(Doubt::Host)) => Err(Error::Host { address: caller.address() }),
            Evidence::Kernel(Err(doubt)) => {
                Err(Error::Unattested { address: caller.address(), doubt: doubt.clone() })
            }
            Evidence::Address => match caller.pod() {
                Some(uid) => self.still(caller.address(), uid),
                None => {
                    let pod = self.settle(caller, deadline).await?;
                    caller.settle(pod.uid.clone());
                    Ok(AttestedPod::new(pod, Proof::Address))
                }
            },
        }
    }

    /// The hostNetwork pod that the token names. Nothing of it stays with the connection: the next request may be of
    /// another process.
    async fn by_token(
        &self,
        caller: &Caller,
        token: &Token,
        deadline: Instant,
    ) -> Result<AttestedPod, Error> {
        let asked = Instant::now();
        let subject = self.reviews.subject(token, caller.origin(), deadline).await?;
        let agree = |pod, _| agree_on_the_host(&subject, pod);
        let pod = self.agreed(caller.address(), &subject.uid, asked, deadline, agree).await?;
        let credential_id = subject.credential_id.clone();
        Ok(AttestedPod { pod, proof: Proof::Token, credential_id })
    }

    /// The pod that the evidence names, if the token names it, too.
    async fn by_both(
        &self,
        attested: AttestedPod,
        caller: &Caller,
        token: &Token,
        deadline: Instant,
    ) -> Result<AttestedPod, Error> {
        let subject = self.reviews.subject(token, caller.origin(), deadline).await?;
        if !subject.is(&attested.pod) {
            return Err(Error::NotItsToken { uid: subject.uid.clone() });
        }
        Ok(AttestedPod { credential_id: subject.credential_id.clone(), ..attested })
    }

    /// The pod's object must be there, must still show the address, and nobody else may show it who could be the
    /// next owner. A terminating pod keeps its open connections: shutdown hooks need credentials too.
    fn still(&self, address: IpAddr, uid: &PodUid) -> Result<AttestedPod, Error> {
        let (mine, others) = self.pods.claim(address, uid);
        match mine {
            Some(pod) if pod.live() && others == 0 => Ok(AttestedPod::new(pod, Proof::Address)),
            Some(pod) if pod.live() => Err(Error::Ambiguous { address, count: others + 1 }),
            _ => Err(Error::Gone { address }),
        }
    }

    /// What the kernel shows, if the kube API agrees. So a new pod need not wait for the watch, nor for its
    /// `status.podIP`, and the old owner of its address is not in its way.
    async fn vouched(&self, caller: &Caller, uid: &PodUid, deadline: Instant) -> Result<AttestedPod, Error> {
        let address = caller.address();
        let agree = |mine, others| agree(address, uid, mine, others);
        // A list that is younger than the connection may be older than this request, and what has happened since is not in it.
        let pod = self.agreed(address, uid, Instant::now(), deadline, agree).await?;
        Ok(AttestedPod::new(pod, Proof::Kernel))
    }

    /// The pod `uid`, if what the kube API shows agrees: the pod, and how many others claim `address`. Where the watch
    /// does not, it may be behind: a quorum list, begun after `since`, then has the last word.
    async fn agreed(
        &self,
        address: IpAddr,
        uid: &PodUid,
        since: Instant,
        deadline: Instant,
        agree: impl Fn(Option<Arc<Pod>>, usize) -> Result<Arc<Pod>, Error>,
    ) -> Result<Arc<Pod>, Error> {
        let shown = || agree(self.pods.by_uid(uid), self.pods.claim(address, uid).1);
        // Most requests end here, and have nothing to be woken by.
        if let Ok(pod) = shown() {
            return Ok(pod);
        }
        let (mut changes, mut lists) = (self.pods.changes(), self.confirmations.lists());
        loop {
            changes.mark_unchanged();
            let refusal = match shown() {
                Ok(pod) => return Ok(pod),
                Err(refusal) => refusal,
            };
            let listed = lists.borrow_and_update().clone().filter(|list| list.begun >= since);
            let why = match listed {
                Some(Listed { found: Ok(found), .. }) => {
                    let mine = found.pods.iter().find(|pod| pod.uid == *uid).cloned();
                    let others =
                        found.pods.iter().filter(|pod| pod.uid != *uid && pod.claims(address)).count();
                    return agree(mine, others);
                }
                // What is wrong with the pod itself stays so: it is never again live, and never changes networks.
                _ if self.pods.by_uid(uid).is_some_and(|pod| agree(Some(pod), 0).is_err()) => {
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
        }
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

//! What is known of a connection before a byte of it is parsed: its addresses and, with `--identity=kernel`, the
//! pod that the kernel shows behind it.

use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Error;
use super::pods::{PodUid, unmapped};

/// Where evidence comes from: `--identity`.
#[derive(Clone, Default)]
pub enum Source {
    /// The source address, and nothing else.
    #[default]
    Address,
    /// Namespaces and cgroups.
    #[cfg(target_os = "linux")]
    Kernel(std::sync::Arc<super::kernel::Kernel>),
}

impl Source {
    /// Takes the first, cheap evidence of a connection that was just accepted from `peer` at our address `local`.
    pub fn arrived(&self, stream: &TcpStream, peer: SocketAddr, local: SocketAddr) -> Arrival {
        let caller = Caller::new(peer, local);
        #[cfg(target_os = "linux")]
        if let Self::Kernel(kernel) = self {
            let arrival = kernel.arrived(stream, peer, local);
            let origin = arrival.link().map_or(caller.origin, Origin::Link);
            let ladder = Some((std::sync::Arc::clone(kernel), arrival));
            return Arrival { caller: Caller { origin, ..caller }, ladder };
        }
        let _ = stream; // Its address is all there is.
        Arrival {
            caller,
            #[cfg(target_os = "linux")]
            ladder: None,
        }
    }
}

/// What a connection is charged to, also if it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The index of the node's end of the caller's cable, which no pod can choose; or that of `lo`, which all of the
    /// host share.
    Link(u32),
    /// The source address, where that is all there is.
    Address(IpAddr),
}

/// A connection whose caller is not known yet: what it costs to find out is charged to its origin.
pub struct Arrival {
    caller: Caller,
    #[cfg(target_os = "linux")]
    ladder: Option<(std::sync::Arc<super::kernel::Kernel>, super::kernel::Arrival)>,
}

impl Arrival {
    /// Who is charged.
    pub fn origin(&self) -> Origin {
        self.caller.origin
    }

    /// What is known so far, for the log; nobody is attested by it.
    pub fn known(&self) -> &Caller {
        &self.caller
    }

    /// The caller as far as it is known: no more evidence is taken.
    pub fn unasked(self) -> Caller {
        self.caller
    }

    /// Takes the rest of the evidence; what is not there by `deadline` is [`Doubt::Busy`].
    pub async fn caller(self, deadline: Instant) -> Caller {
        #[cfg(target_os = "linux")]
        if let Some((kernel, arrival)) = self.ladder {
            return self.caller.with_evidence(kernel.attest(arrival, deadline).await);
        }
        let _ = deadline; // An address is there at once.
        self.caller
    }
}

/// What there is beside the address.
#[derive(Clone, Debug)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "elsewhere there is nothing"))]
pub(super) enum Evidence {
    /// Nothing.
    Address,
    /// The pod in whose network namespace the connection was opened; or why that is not known.
    Kernel(Result<PodUid, Doubt>),
}

/// Why the kernel's evidence names no pod.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Doubt {
    /// It came in by `lo`: a host process or a hostNetwork pod. Only a token can say which.
    #[error("the connection came from the host itself")]
    Host,
    /// It came in by a link that has no pod at its other end: an uplink, a tunnel, a VPN.
    #[error("the connection came in by {link}, which is no pod's link")]
    NotAPod {
        /// Its name.
        link: String,
    },
    /// A namespace in which no pod's process runs.
    #[error("no pod's process is in the network namespace that the connection came from")]
    NoPod,
    /// An answer could hand one pod the other's role.
    #[error("processes of several pods are in the network namespace that the connection came from")]
    SeveralPods,
    /// Where only the address tells, several pods have it.
    #[error("several pods of this node have {address}, and its link does not tell them apart")]
    SeveralHaveIt {
        /// The source address.
        address: IpAddr,
    },
    /// A static pod has no ServiceAccount.
    #[error("the caller is a static pod, which has no ServiceAccount")]
    StaticPod,
    /// The source address is not one of that namespace's: it is spoofed, or the datapath is unknown to us.
    #[error("{address} is no address of the network namespace that the connection came from")]
    NotItsAddress {
        /// The source address.
        address: IpAddr,
    },
    /// On a bridge: the pod that seems to have the address did not open this connection.
    #[error("the pod that seems to have {address} did not open this connection")]
    NoSuchConnection {
        /// The source address.
        address: IpAddr,
    },
    /// This link asked for more than its share of what costs milliseconds.
    #[error("too many new connections; ask again")]
    Busy,
    /// The kernel did not say.
    #[error("the kernel does not show who opened this connection: {0}")]
    Unreadable(String),
}

impl Doubt {
    #[cfg(target_os = "linux")]
    pub(super) fn unreadable(err: std::io::Error) -> Self {
        Self::Unreadable(err.to_string())
    }

    /// The fixed word of the README's table.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Host | Self::NotAPod { .. } | Self::NoPod | Self::StaticPod | Self::Unreadable(_) => {
                "CallerNotIdentified"
            }
            Self::SeveralPods | Self::SeveralHaveIt { .. } => "CallerAmbiguous",
            Self::NotItsAddress { .. } | Self::NoSuchConnection { .. } => "SourceMismatch",
            Self::Busy => "Overloaded",
        }
    }
}

/// What a connection tells of its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// The pod that the kernel shows.
    Pod(PodUid),
    /// The source address, where there is no more.
    Address(IpAddr),
}

/// One connection. Its pod is settled once: by the kernel before the first byte ([`Evidence`]), or by the first request.
#[derive(Debug)]
pub struct Caller {
    peer: SocketAddr,
    local: IpAddr,
    origin: Origin,
    accepted: Instant,
    evidence: Evidence,
    /// By the first request.
    pod: OnceLock<PodUid>,
}

impl Caller {
    /// A connection from `peer` to our address `local`, accepted now, of which nothing else is known.
    pub fn new(peer: SocketAddr, local: SocketAddr) -> Self {
        let peer = SocketAddr::new(unmapped(peer.ip()), peer.port());
        Self {
            peer,
            local: unmapped(local.ip()),
            origin: Origin::Address(peer.ip()),
            accepted: Instant::now(),
            evidence: Evidence::Address,
            pod: OnceLock::new(),
        }
    }

    /// The source address. The caller wrote it, and got our SYN-ACK under it.
    pub fn address(&self) -> IpAddr {
        self.peer.ip()
    }

    /// Source address and port, for the log.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// What the connection is charged to.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// When the connection was accepted: evidence must be younger.
    pub fn accepted(&self) -> Instant {
        self.accepted
    }

    /// What the connection itself tells of its caller, before the kube API is asked. Nobody is attested by it.
    ///
    /// # Errors
    /// It is no pod's: [`Error::Host`], or what the kernel doubts.
    pub fn known(&self) -> Result<Known, Error> {
        let address = self.address();
        match &self.evidence {
            Evidence::Kernel(Ok(uid)) => Ok(Known::Pod(uid.clone())),
            // Its next connection will show who it is; this one has no share in that.
            Evidence::Kernel(Err(Doubt::Busy)) => Ok(Known::Address(address)),
            Evidence::Kernel(Err(Doubt::Host)) => Err(Error::Host { address }),
            Evidence::Kernel(Err(doubt)) => Err(Error::Unattested { address, doubt: doubt.clone() }),
            Evidence::Address => Ok(Known::Address(address)),
        }
    }

    /// A host process is seen under the address it dials, or under loopback.
    pub(super) fn is_host(&self) -> bool {
        self.peer.ip() == self.local || self.peer.ip().is_loopback()
    }

    /// May a token say who this is? Where the kernel names a pod, or doubts, no token changes that.
    pub(super) fn may_be_host(&self) -> bool {
        matches!(self.evidence, Evidence::Address | Evidence::Kernel(Err(Doubt::Host)))
    }

    pub(super) fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    #[cfg(any(test, feature = "testing", target_os = "linux"))]
    pub(crate) fn with_evidence(self, evidence: Result<PodUid, Doubt>) -> Self {
        Self { evidence: Evidence::Kernel(evidence), ..self }
    }

    /// The pod that its first request was attested for, where only an address tells.
    pub(super) fn pod(&self) -> Option<&PodUid> {
        self.pod.get()
    }

    /// The pod that the evidence names, for the log: whether it is attested is another question.
    pub fn uid(&self) -> Option<&PodUid> {
        match &self.evidence {
            Evidence::Kernel(Ok(uid)) => Some(uid),
            _ => self.pod.get(),
        }
    }

    /// Where the evidence comes from, for the log.
    pub fn means(&self) -> &'static str {
        match self.evidence {
            Evidence::Address => "address",
            Evidence::Kernel(_) => "kernel",
        }
    }

    pub(super) fn settle(&self, uid: PodUid) {
        // Pipelined requests are answered in turn, so there is never a second, different, UID.
        let _ = self.pod.set(uid);
    }
}

//! What is known of a connection before a byte of it is parsed. Today: its addresses; the kernel's evidence
//! (ingress link, namespace, cgroup) belongs here.

use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use tokio::time::Instant;

use super::pods::{PodUid, unmapped};

/// One connection. Its pod is settled once, by the first request.
#[derive(Debug)]
pub struct Caller {
    peer: SocketAddr,
    local: IpAddr,
    accepted: Instant,
    pod: OnceLock<PodUid>,
}

impl Caller {
    /// A connection from `peer` to our address `local`, accepted now.
    pub fn new(peer: SocketAddr, local: SocketAddr) -> Self {
        let peer = SocketAddr::new(unmapped(peer.ip()), peer.port());
        Self { peer, local: unmapped(local.ip()), accepted: Instant::now(), pod: OnceLock::new() }
    }

    /// The source address. The caller wrote it, and got our SYN-ACK under it.
    pub fn address(&self) -> IpAddr {
        self.peer.ip()
    }

    /// Source address and port, for the log.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// When the connection was accepted: evidence must be younger.
    pub fn accepted(&self) -> Instant {
        self.accepted
    }

    /// A host process is seen under the address it dials, or under loopback.
    pub(super) fn is_host(&self) -> bool {
        self.peer.ip() == self.local || self.peer.ip().is_loopback()
    }

    pub(super) fn pod(&self) -> Option<&PodUid> {
        self.pod.get()
    }

    pub(super) fn settle(&self, uid: PodUid) {
        // Pipelined requests are answered in turn, so there is never a second, different, UID.
        let _ = self.pod.set(uid);
    }
}

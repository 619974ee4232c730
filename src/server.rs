//! Accept loop: a connection becomes a Caller (evidence) and a task of its own.

pub mod ecs;
pub mod reply;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use self::ecs::Endpoint;
use crate::identity;
use crate::identity::evidence::{Origin, Source};
use crate::shutdown::Drain;

/// Half a request may hang this long, and a kept connection may idle this long.
const HEADER_READ: Duration = Duration::from_secs(2);
/// Who takes nothing of an answer for this long is dropped by the kernel; a stopped pod's own kernel takes it all.
const STALL: Duration = Duration::from_secs(5);
/// hyper reads no more than this ahead; its default lets one connection grow to 400 KiB.
const BUFFER: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// Open connections in all, and of one origin: a pod that opens thousands fills its own share only.
const CONNECTIONS: usize = 4096;
const CONNECTIONS_PER_ORIGIN: usize = 128;
const BACKLOG: i32 = 1024;

/// Binds `address` exactly: before it exists (FREEBIND), where IPv6 is switched off, and never more than it.
///
/// # Errors
/// The kernel's: somebody else listens there, or the port needs a right that we do not want.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // For connections of our predecessor that linger. Never SO_REUSEPORT: whoever runs as our user could then listen beside us.
    socket.set_reuse_address(true)?;
    // Connections inherit it. A zero window counts, which no keep-alive would notice.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(STALL))?;
    #[cfg(target_os = "linux")]
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connections in all and by origin.
pub struct Limits {
    all: Arc<Semaphore>,
    by_origin: Mutex<HashMap<Origin, usize>>,
}

impl Limits {
    /// The limits of one agent, shared by its listeners.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { all: Arc::new(Semaphore::new(CONNECTIONS)), by_origin: Mutex::new(HashMap::new()) })
    }

    fn admit(self: &Arc<Self>, origin: Origin) -> Option<Admission> {
        let permit = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let mut by_origin = self.by_origin.lock().expect("nothing panics while it holds this lock");
        let count = by_origin.entry(origin).or_default();
        if *count >= CONNECTIONS_PER_ORIGIN {
            return None;
        }
        *count += 1;
        Some(Admission { limits: Arc::clone(self), origin, _permit: permit })
    }
}

struct Admission {
    limits: Arc<Limits>,
    origin: Origin,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut by_origin = self.limits.by_origin.lock().expect("nothing panics while it holds this lock");
        if let Some(count) = by_origin.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                by_origin.remove(&self.origin);
            }
        }
    }
}

/// Serves `listener` until `drain` begins; connections then finish the request they are at.
pub async fn serve(
    listener: TcpListener,
    source: Source,
    endpoint: Arc<Endpoint>,
    limits: Arc<Limits>,
    drain: Drain,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.begun() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(err) => {
                // Out of descriptors, or the peer gave up: the next accept may succeed, but not at once.
                tracing::warn!(error = %err, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(local) = stream.local_addr() else { continue };
        let arrival = source.arrived(&stream, peer, local);
        // Over the limit the connection is closed: a reset is all that a flood deserves, and costs least.
        let Some(admission) = limits.admit(arrival.origin()) else { continue };
        let (endpoint, drain) = (Arc::clone(&endpoint), drain.clone());
        tokio::spawn(async move {
            // Before a byte is parsed: who it is does not hang on what it says.
            let caller = arrival.caller().await;
            connection(stream, caller, endpoint, admission, drain).await;
        });
    }
}

async fn connection(
    stream: TcpStream,
    caller: identity::Caller,
    endpoint: Arc<Endpoint>,
    admission: Admission,
    drain: Drain,
) {
    let _ = stream.set_nodelay(true);
    let answers = ecs::Connection::new(endpoint, caller);
    let service = service_fn(move |request| Arc::clone(&answers).answer(request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ)
        .max_buf_size(BUFFER)
        .max_headers(MAX_HEADERS)
        // Never `pipeline_flush`: while requests keep coming it holds back every answer, without a bound.
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // Errors are the peer's: it sent something that is no HTTP, or went away. hyper has answered 400 where it could.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = drain.begun() => {
            connection.as_mut().graceful_shutdown();
            let _ = timeout(drain.deadline(), connection).await;
        }
    }
    drop(admission);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_closes_connections_may_open_others_and_leaves_nothing_behind() {
        let limits = Limits::new();
        let (pod, other) = (Origin::Link(7), Origin::Link(8));
        for _ in 0..3 {
            let open: Vec<_> = (0..CONNECTIONS_PER_ORIGIN).map(|_| limits.admit(pod)).collect();
            assert!(open.iter().all(Option::is_some));
            assert!(limits.admit(pod).is_none() && limits.admit(other).is_some());
        }
        assert!(limits.by_origin.lock().unwrap().is_empty());
        assert_eq!(limits.all.available_permits(), CONNECTIONS);
    }

    #[test]
    fn all_origins_together_are_bounded() {
        let limits = Limits::new();
        let open: Vec<_> = (0..=CONNECTIONS as u32).map(|n| limits.admit(Origin::Link(n))).collect();
        assert_eq!(open.iter().flatten().count(), CONNECTIONS);
    }
}

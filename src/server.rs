//! Accept loop: a connection becomes a Caller (evidence) and a task of its own.

mod direct;
pub mod ecs;
pub mod front;
pub mod imds;
pub mod limits;
pub mod reply;
pub(crate) mod tls;
pub mod visitor;

use std::convert::Infallible;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use self::imds::unadmitted::Unadmitted;
use self::limits::{Admission, Limits};
use self::reply::RequestError;
use self::visitor::Visitor;
use crate::identity::evidence::{Arrival, Source};
use crate::shutdown::Drain;

/// Half a request may hang this long, and a kept connection may idle this long.
const HEADER_READ: Duration = Duration::from_secs(2);
/// Who takes nothing of an answer for this long is dropped by the kernel; a stopped pod's own kernel takes it all.
const STALL: Duration = Duration::from_secs(5);
/// hyper reads no more than this ahead; its default lets one connection grow to 400 KiB.
const BUFFER: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// For the one request of who is only heard: it comes with the connection, or it is no SDK's. No longer, or silence would be a place.
const HEARD: Duration = Duration::from_millis(200);
/// Of the request of a caller that is turned away.
const MAX_DISCARDED: usize = 4 * 1024;
const BACKLOG: i32 = 1024;
/// Out of descriptors, or the peer gave up: the next accept may succeed, but not at once.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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

/// What is served behind a listener.
#[derive(Clone)]
pub enum Door {
    /// Container credentials.
    Ecs(Arc<ecs::Endpoint>),
    /// Instance metadata.
    Imds(Arc<imds::Endpoint>),
}

impl Door {
    /// How long a request is held here.
    fn hold(&self) -> Duration {
        match self {
            Self::Ecs(_) => ecs::HOLD,
            Self::Imds(_) => imds::HOLD,
        }
    }

    /// Refuses a connection for which there is no room.
    fn refuse(&self, stream: TcpStream, arrival: Arrival, limits: &Arc<Limits>, drain: &Drain) {
        let refusal = RequestError::Overloaded("too many open connections from one pod");
        match self {
            Self::Ecs(endpoint) => turn_away(&stream, &endpoint.turned_away(arrival.known(), refusal)),
            Self::Imds(endpoint) => match limits.hear(arrival.origin()) {
                Some(place) => {
                    let (endpoint, drain) = (Arc::clone(endpoint), drain.clone());
                    tokio::spawn(async move {
                        let refusal = place.turn().await.err().unwrap_or(refusal);
                        hear(stream, place, Unadmitted::new(endpoint, arrival.unasked(), refusal), drain)
                            .await;
                    });
                }
                // Closed without a word: if it is a PUT, SDKs take 503 for the end of version 2.
                None => Unadmitted::new(Arc::clone(endpoint), arrival.unasked(), refusal).ended(),
            },
        }
    }

    /// Refuses a connection that had no turn, after it has waited for one.
    async fn refuse_late(
        self,
        stream: TcpStream,
        arrival: Arrival,
        place: Admission,
        refusal: RequestError,
        drain: Drain,
    ) {
        match self {
            Self::Ecs(endpoint) => turn_away(&stream, &endpoint.turned_away(arrival.known(), refusal)),
            Self::Imds(endpoint) => {
                hear(stream, place, Unadmitted::new(endpoint, arrival.unasked(), refusal), drain).await;
            }
        }
    }

    async fn serve(self, stream: TcpStream, visitor: Visitor, drain: Drain) {
        let _ = stream.set_nodelay(true);
        match self {
            Self::Ecs(endpoint) => {
                connection(stream, HEADER_READ, |request| endpoint.answer(&visitor, request), drain).await;
            }
            Self::Imds(endpoint) => {
                connection(stream, HEADER_READ, |request| endpoint.answer(&visitor, request), drain).await;
            }
        }
    }
}

/// Serves `listener` until `drain` begins; connections then finish the request they are at.
pub async fn serve(listener: TcpListener, source: Source, door: Door, limits: Arc<Limits>, drain: Drain) {
    while let Some((stream, peer)) = next(&listener, &drain).await {
        let Ok(local) = stream.local_addr() else { continue };
        let arrival = source.arrived(&stream, peer, local);
        let Some(admission) = limits.admit(arrival.origin()) else {
            door.refuse(stream, arrival, &limits, &drain);
            continue;
        };
        let (door, drain) = (door.clone(), drain.clone());
        tokio::spawn(async move {
            let arrived = Instant::now();
            // Before it is asked who it is, which costs more than an answer.
            if let Err(refusal) = admission.turn().await {
                return door.refuse_late(stream, arrival, admission, refusal, drain).await;
            }
            // Before a byte is parsed: who it is does not hang on what it says.
            let caller = arrival.caller(arrived + door.hold()).await;
            let visitor = Visitor::new(caller, admission, arrived.elapsed());
            door.serve(stream, visitor, drain).await;
        });
    }
}

/// The next connection that `listener` has; `None` once `drain` has begun.
pub(crate) async fn next(listener: &TcpListener, drain: &Drain) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.begun() => return None,
        };
        match accepted {
            Ok(accepted) => return Some(accepted),
            Err(err) => {
                tracing::warn!(error = %err, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers what comes over `stream`, where half a request may hang for `idle`, until the peer leaves; when `drain` begins, the
/// request it is at is finished.
pub(crate) async fn connection<A>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    idle: Duration,
    answer: impl Fn(Request<Incoming>) -> A,
    drain: Drain,
) where
    A: Future<Output = Result<Response<Full<Bytes>>, Infallible>>,
{
    let service = service_fn(answer);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
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
}

/// Answers the first request of a connection that is not let in, and ends it. `_place` is what it costs its origin.
async fn hear(stream: TcpStream, _place: Admission, unadmitted: Unadmitted, drain: Drain) {
    let _ = stream.set_nodelay(true);
    let answer = |request| unadmitted.answer(request);
    // Both bounds: hyper's is for the head alone.
    let _ = timeout(2 * HEARD, connection(stream, HEARD, answer, drain)).await;
    unadmitted.ended();
}

/// Sends `answer` to whatever is asked, without reading it, and waits for nothing.
fn turn_away(stream: &TcpStream, answer: &[u8]) {
    let socket = SockRef::from(stream);
    // A new socket's buffer takes it all. What was asked is taken out of ours, or closing would be a reset, which some
    // clients see before the answer.
    let _ = socket.send(answer);
    let _ = socket.recv(&mut [MaybeUninit::uninit(); MAX_DISCARDED]);
    let _ = socket.shutdown(Shutdown::Write);
}

#[cfg(test)]
#[path = "server/tests.rs"]
mod tests;

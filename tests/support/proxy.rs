//! A TCP proxy on loopback that counts connections and can stop forwarding without closing anything, as a
//! firewall does that forgets a connection.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Gone, with its connections, when dropped.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    stalled: watch::Sender<bool>,
    /// Connections accepted and connections that the client has closed, so far.
    pub(crate) accepted: Arc<watch::Sender<usize>>,
    pub(crate) closed: Arc<watch::Sender<usize>>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// Forwards from `port` (0: a free one) to `target` on loopback.
    pub(crate) async fn start(port: u16, target: u16) -> Self {
        Self::forward(TcpListener::bind(("127.0.0.1", port)).await.expect("loopback"), target)
    }

    /// Forwards what comes in there, which may be in another network namespace than `target`.
    pub(crate) fn forward(listener: TcpListener, target: u16) -> Self {
        let port = listener.local_addr().expect("bound").port();
        let stalled = watch::Sender::new(false);
        let accepted = Arc::new(watch::Sender::new(0));
        let closed = Arc::new(watch::Sender::new(0));
        let (gate, count, gone) = (stalled.subscribe(), Arc::clone(&accepted), Arc::clone(&closed));
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.expect("accept");
                count.send_modify(|count| *count += 1);
                connections.spawn(forward(client, target, gate.clone(), Arc::clone(&gone)));
            }
        });
        Self { port, stalled, accepted, closed, _accepting: accepting }
    }

    /// From now on nothing gets through, or everything again.
    pub(crate) fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }
}

async fn forward(
    client: TcpStream,
    target: u16,
    gate: watch::Receiver<bool>,
    closed: Arc<watch::Sender<usize>>,
) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let upstream = async {
        copy(from_client, to_server, gate.clone(), || closed.send_modify(|closed| *closed += 1)).await;
    };
    tokio::join!(upstream, copy(from_server, to_client, gate.clone(), || ()));
}

async fn copy(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut gate: watch::Receiver<bool>,
    ended: impl Fn(),
) {
    let (mut chunk, mut held) = (vec![0; 16 << 10], Vec::new());
    loop {
        // While it is stalled too, so that the end of the client's connection is seen.
        tokio::select! {
            read = from.read(&mut chunk) => match read {
                Ok(read @ 1..) => held.extend_from_slice(&chunk[..read]),
                _ => return ended(),
            },
            changed = gate.changed() => if changed.is_err() { return },
        }
        if !*gate.borrow_and_update() {
            if to.write_all(&held).await.is_err() {
                return;
            }
            held.clear();
        }
    }
}

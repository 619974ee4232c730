//! The way to AWS's own names: a proxy whose every tunnel leads to the scenario's STS, which has a certificate for those names by an
//! authority of its own.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};

use rolecall::emulator::Emulator;
use tokio::sync::oneshot;

use crate::agent::ROLECALL;
use crate::pki::Authority;
use crate::scenario::Scenario;
use crate::stub::{Does, Request, Stub, acceptor};

/// On a thread of its own: boto3's calls block the scenario's.
pub(crate) struct Tunnel {
    pub(crate) proxy: SocketAddr,
    pub(crate) sts: Emulator,
    authority: Authority,
    seen: Arc<Mutex<Vec<Request>>>,
    close: oneshot::Sender<()>,
    closed: mpsc::Receiver<()>,
}

impl Tunnel {
    /// From now on every call is judged, as with [`crate::scenario::Aws::open`].
    pub(crate) fn open(it: &Scenario<'_>, names: &[&str]) -> Self {
        let authority = Authority::new();
        let names: Vec<String> = names.iter().map(|name| format!("DNS:{name}")).collect();
        let tls = acceptor(&authority.leaf(&names.join(",")));
        let (sts, at) = it.aws.open_at("127.0.0.1:0", Some(tls));
        let (sender, started) = mpsc::channel();
        let (close, ended) = oneshot::channel();
        let (gone, closed) = mpsc::channel();
        it.node.serve(async move || {
            let proxy = Stub::at("127.0.0.1:0", None, Does::Proxy(at)).await;
            sender.send((proxy.addr, proxy.seen())).unwrap();
            let _ = ended.await;
            proxy.close().await;
            let _ = gone.send(());
        });
        let (proxy, seen) = started.recv().unwrap();
        Self { proxy, sts, authority, seen, close, closed }
    }

    /// The agent's command, with variables for the way; `user` is the proxy's, with a password and `@`, or nothing.
    pub(crate) fn agent(&self, it: &Scenario<'_>, user: &str) -> Command {
        let mut command = it.node.command(ROLECALL);
        command
            .env("HTTPS_PROXY", format!("http://{user}{}", self.proxy))
            .env("NO_PROXY", ".cluster.local,10.0.0.0/8")
            .env("AWS_CA_BUNDLE", self.authority.bundle());
        command
    }

    /// What the proxy has been asked so far.
    pub(crate) fn asked(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// From now on there is no way.
    pub(crate) fn close(self) {
        drop(self.close);
        self.closed.recv().unwrap();
    }
}

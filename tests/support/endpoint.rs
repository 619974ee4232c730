//! The whole path behind a listener on loopback, between the two doors in memory, with the audit lines that it wrote.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rolecall::audit::Audit;
use rolecall::fakes::{FakeCluster, FakeSts, World};
use rolecall::identity::pods::Pods;
use rolecall::metrics::Metrics;
use rolecall::server::{self, imds::Settings};
use rolecall::service_accounts::ServiceAccounts;
use rolecall::shutdown::{self, Trigger};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::http::{self, get, request};

/// The pod whose address most tests ask from.
pub(crate) const WEB: &str = "127.0.0.7";

/// The whole path on a loopback address, with the audit lines it wrote.
pub(crate) struct Agent {
    pub(crate) address: SocketAddr,
    pub(crate) cluster: Arc<FakeCluster>,
    pub(crate) sts: Arc<FakeSts>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) pods: Arc<Pods>,
    pub(crate) accounts: Arc<ServiceAccounts>,
    pub(crate) lines: Lines,
    pub(crate) trigger: Trigger,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// Waits until `count` lines were written.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<serde_json::Value> {
        loop {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            if text.matches('\n').count() >= count {
                return text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            }
            tokio::task::yield_now().await;
        }
    }
}

pub(crate) fn serve(world: World, lines: Lines) -> Agent {
    let listener = server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    serve_at(address, vec![listener], world, lines)
}

/// With instance metadata behind the address, in place of container credentials.
pub(crate) fn serve_imds(mut world: World, lines: Lines, settings: Settings) -> Agent {
    let listener = server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    world.app = world.app.with_imds(vec![listener], settings);
    serve_at(address, Vec::new(), world, lines)
}

fn serve_at(address: SocketAddr, listeners: Vec<TcpListener>, world: World, lines: Lines) -> Agent {
    let World { cluster, sts, app } = world;
    let (metrics, audit) = (Arc::clone(&app.metrics), Arc::clone(&app.audit));
    let (pods, accounts) = (Arc::clone(&app.pods), Arc::clone(&app.accounts));
    let (trigger, drain) = shutdown::drain();
    let mut tasks = JoinSet::new();
    app.serve(listeners, &drain, &mut tasks).unwrap();
    Agent { address, cluster, sts, metrics, audit, pods, accounts, lines, trigger, _tasks: tasks }
}

/// An agent with one pod, `web`, that has a role.
pub(crate) fn agent() -> Agent {
    agent_with(|_| {})
}

pub(crate) fn agent_with(set_up: impl FnOnce(&World)) -> Agent {
    let lines = Lines::default();
    let world = World::writing_to(lines.clone());
    world.pod_with_role("web", WEB);
    set_up(&world);
    serve(world, lines)
}

impl Agent {
    pub(crate) async fn get(&self) -> http::Answer {
        get(WEB, self.address, &request(self.address)).await
    }

    pub(crate) fn series(&self, name: &str) -> f64 {
        let text = self.metrics.render(Default::default());
        let line =
            text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

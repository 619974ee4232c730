//! The endpoint on a loopback address over fakes, for tests that send it bytes. Its one pod, `web`, is [`WEB`] and has a role.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::join_all;
use rolecall::fakes::World;
use rolecall::metrics::Metrics;
use rolecall::server;
use rolecall::shutdown::{self, Trigger};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::http::{self, Answer};

pub const WEB: &str = "127.0.0.7";

/// Ends when dropped.
pub struct Loopback {
    pub address: SocketAddr,
    pub metrics: Arc<Metrics>,
    _trigger: Trigger,
    _tasks: JoinSet<()>,
}

impl Loopback {
    pub fn start() -> Self {
        let World { app, .. } = {
            let world = World::new();
            world.pod_with_role("web", WEB);
            world
        };
        let listener = server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, metrics) = (listener.local_addr().unwrap(), Arc::clone(&app.metrics));
        let (_trigger, drain) = shutdown::drain();
        let mut _tasks = JoinSet::new();
        app.serve(vec![listener], &drain, &mut _tasks).unwrap();
        Self { address, metrics, _trigger, _tasks }
    }

    /// All answers to these bytes, until the agent closes the connection: at once, or when nothing more comes for two seconds.
    pub async fn answers(&self, bytes: &[u8]) -> Vec<Answer> {
        let mut stream = http::connect(WEB, self.address).await;
        let _ = stream.write_all(bytes).await;
        let mut answers = Vec::new();
        while let Some(answer) = http::read(&mut stream).await {
            answers.push(answer);
        }
        answers
    }

    /// Likewise for many at once, each on a connection of its own.
    pub async fn all_answers(&self, texts: &[String]) -> Vec<Vec<Answer>> {
        join_all(texts.iter().map(|text| self.answers(text.as_bytes()))).await
    }
}

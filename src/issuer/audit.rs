//! Which token was signed for whom and at whose asking, and what was refused: a line each, counted in the same place.
//!
//! Whoever is refused again and again writes one line a minute, so nobody can push others' lines out of the log.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;

use super::Issued;
use super::metrics::Metrics;
use super::proof::{Bound, Trail};
use super::refusal::Refusal;
use crate::role::Claims;
use crate::telemetry::Lines;
use crate::time;

/// A refusal that repeats itself has a line this often.
const PERIOD: Duration = Duration::from_secs(60);
/// More sources than a cluster has nodes that go wrong at once. Whoever comes beyond is counted with the others.
const MAX_REPEATED: usize = 1024;

/// One request, and what became known of it.
pub struct Asked<'a> {
    /// The end of its head.
    pub begun: Instant,
    /// Its other end.
    pub peer: SocketAddr,
    /// What was proved on the way.
    pub trail: &'a Trail,
}

/// Counts every answer to a request for a token, and writes what is new.
pub struct Audit {
    metrics: Arc<Metrics>,
    lines: Arc<Lines>,
    refused: Mutex<HashMap<(Option<IpAddr>, &'static str), Repeated>>,
}

/// A refusal that was written, and how often it came again since.
struct Repeated {
    written: Instant,
    request_id: String,
    repeats: u64,
}

impl Audit {
    /// Counts in `metrics` and writes to `lines`.
    pub fn new(metrics: Arc<Metrics>, lines: Arc<Lines>) -> Self {
        Self { metrics, lines, refused: Mutex::default() }
    }

    /// A token was signed. Its `token.id` is the one of the agent's audit line and of CloudTrail's.
    pub fn issued(&self, asked: &Asked<'_>, issued: &Issued) {
        self.metrics.answered("ok", asked.begun.elapsed());
        let mut line = begin("ok", asked);
        for (name, value) in
            [("audience", &*issued.audience), ("token.id", &issued.id), ("key.id", &issued.kid)]
        {
            line.insert(name.into(), value.into());
        }
        let Claims { tags, source_identity } = &issued.of_session;
        if !tags.is_empty() {
            let tags: Map<String, Value> =
                tags.iter().map(|tag| (tag.key().to_owned(), tag.value().into())).collect();
            line.insert("session.tags".into(), tags.into());
        }
        if let Some(source_identity) = source_identity {
            line.insert("source.identity".into(), source_identity.as_str().into());
        }
        self.push(line);
    }

    /// No token. Returns the id of the line that says so, or did within the last minute.
    pub fn refused(&self, asked: &Asked<'_>, refusal: &Refusal) -> String {
        let code = refusal.code();
        self.metrics.answered(code, asked.begun.elapsed());
        let now = Instant::now();
        let mut refused = self.refused.lock().expect("nothing panics while it holds this lock");
        let mut kind = (Some(asked.peer.ip()), code);
        if refused.len() >= MAX_REPEATED && !refused.contains_key(&kind) {
            refused.retain(|_, repeated| now.duration_since(repeated.written) < PERIOD);
            if refused.len() >= MAX_REPEATED {
                kind.0 = None;
            }
        }
        let repeats = match refused.get_mut(&kind) {
            Some(repeated) if now.duration_since(repeated.written) < PERIOD => {
                repeated.repeats += 1;
                return repeated.request_id.clone();
            }
            Some(repeated) => repeated.repeats,
            None => 0,
        };
        let request_id = format!("{:016x}", fastrand::u64(..));
        refused.insert(kind, Repeated { written: now, request_id: request_id.clone(), repeats: 0 });
        drop(refused);
        let mut line = begin(code, asked);
        if repeats > 0 {
            line.insert("repeats".into(), repeats.into());
        }
        line.insert("request_id".into(), request_id.as_str().into());
        line.insert("reason".into(), refusal.to_string().into());
        self.push(line);
        request_id
    }

    fn push(&self, line: Map<String, Value>) {
        self.lines.push(format!("{}\n", Value::Object(line)).as_bytes());
    }
}

fn begin(code: &str, asked: &Asked<'_>) -> Map<String, Value> {
    let mut line = Map::new();
    let mut text = |name: &str, value: &str| line.insert(name.to_owned(), value.into());
    text("timestamp", &format!("{:.3}", time::now()));
    text("target", "audit");
    text("code", code);
    if let Some(Bound { account, pod_name, pod_uid, node, .. }) = &asked.trail.pod {
        text("pod.namespace", &account.namespace);
        text("pod.name", pod_name);
        text("pod.uid", pod_uid);
        text("service_account", &account.name);
        text("node", node);
    }
    if let Some(Bound { pod_name, node, credential_id, .. }) = &asked.trail.agent {
        text("agent.pod", pod_name);
        text("agent.node", node);
        if let Some(id) = credential_id {
            text("authorization.id", id);
        }
    }
    text("client.addr", &asked.peer.to_string());
    line
}

//! Who was given which keys, and who was refused and why: a line for what is new, a count of what repeats itself.
//!
//! A pod that asks in a loop writes as little as one that asks once, so it can push nobody else's line out of the log.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::{Instant, interval_at};

use crate::broker::Trail;
use crate::cache::Served;
use crate::identity::evidence::Origin;
use crate::identity::pods::PodUid;
use crate::identity::{AttestedPod, Caller};
use crate::metrics::{Endpoint, Metrics};
use crate::server::reply::{Refusal, RequestError};
use crate::telemetry::Lines;
use crate::time;

/// A refusal that repeats itself has a line at first, and then one this often.
const PERIOD: Duration = Duration::from_secs(60);
/// The codes of what is no refusal, and is counted as they are.
const PASSED_THROUGH: &str = "PassedThrough";
const STOOD_IN: &str = "StoodIn";
/// Several times the pods of a node, about half a KiB each. Whoever comes beyond shares one line with the others.
const MAX_REPEATED: usize = 1024;

/// One request, and what became known of it.
pub struct Asked<'a> {
    /// Where.
    pub endpoint: Endpoint,
    /// The end of the request's head.
    pub begun: Instant,
    /// Who asked.
    pub caller: &'a Caller,
    /// What became known on the way.
    pub trail: &'a Trail,
}

/// Counts every answer, and writes down those that say something new. The two cannot disagree.
pub struct Audit {
    metrics: Arc<Metrics>,
    lines: Arc<Lines>,
    refused: Mutex<HashMap<(Who, &'static str), Repeated>>,
}

/// Whose refusals are counted together.
#[derive(PartialEq, Eq, Hash)]
enum Who {
    Pod(PodUid),
    /// Of whom no pod is known.
    Origin(Origin),
    Others,
}

/// A refusal that was written, and what came of the same kind since.
struct Repeated {
    status: u16,
    subject: String,
    request_id: String,
    /// The last one's.
    reason: String,
    repeats: u64,
}

impl Audit {
    /// Counts in `metrics` and writes to `lines`.
    pub fn new(metrics: Arc<Metrics>, lines: Arc<Lines>) -> Self {
        Self { metrics, lines, refused: Mutex::default() }
    }

    /// 200 without keys: of such there is no line.
    pub fn answered(&self, asked: &Asked<'_>) {
        self.metrics.answered(asked.endpoint, "ok", asked.begun.elapsed());
    }

    /// 200. The first time that a pod is given these keys has a line: it joins CloudTrail to the pod.
    pub fn granted(&self, asked: &Asked<'_>, served: &Served) {
        self.answered(asked);
        let attested = asked.trail.attested.as_ref();
        if !attested.is_some_and(|attested| served.is_new_to(&attested.pod().uid)) {
            return;
        }
        let mut line = begin("ok", 200);
        line.push_str(&subject(asked));
        // Not in a refusal's: a pod may ask for any name, and those lines are counted by pod and code.
        if let Some(role) = &asked.trail.role {
            text(&mut line, "role.name", role.as_str());
        }
        text(&mut line, "access_key_id", &served.access_key_id);
        for (name, value) in [("token.id", &served.token_id), ("sts.request_id", &served.sts_request_id)] {
            if let Some(value) = value {
                text(&mut line, name, value);
            }
        }
        self.lines.push(&finish(line));
    }

    /// Any other answer. Returns its request id, which is that of the line that it is written or counted in.
    pub fn refused(&self, asked: &Asked<'_>, refusal: &Refusal) -> String {
        self.metrics.refused(refusal.code());
        self.counted(asked, refusal.code(), refusal.status().as_u16(), refusal.to_string())
    }

    /// What the node's own instance metadata answered a pod of `--imds-passthrough-namespace`: who asks for what of the node is
    /// written like a refusal, once and then by number.
    pub fn passed_through(&self, asked: &Asked<'_>, status: u16, request: &str) {
        self.counted(asked, PASSED_THROUGH, status, request.to_owned());
    }

    /// A pod of `--imds-passthrough-namespace` was given a token of ours, because the node's own service gave none.
    pub fn stood_in(&self, asked: &Asked<'_>, why: &RequestError) {
        self.counted(asked, STOOD_IN, 200, why.to_string());
    }

    /// A line at first, and then a number of others of the same kind. Returns the request id that stands in it.
    fn counted(&self, asked: &Asked<'_>, code: &'static str, status: u16, reason: String) -> String {
        self.metrics.answered(asked.endpoint, code, asked.begun.elapsed());
        let attested = asked.trail.attested.as_ref();
        let uid = attested.map(|attested| &attested.pod().uid).or_else(|| asked.caller.uid());
        let who = uid.map_or(Who::Origin(asked.caller.origin()), |uid| Who::Pod(uid.clone()));
        let mut refused = self.locked();
        let mut kind = (who, code);
        if refused.len() >= MAX_REPEATED && !refused.contains_key(&kind) {
            kind.0 = Who::Others;
        }
        if let Some(repeated) = refused.get_mut(&kind) {
            repeated.repeats += 1;
            repeated.reason = reason;
            return repeated.request_id.clone();
        }
        let request_id = format!("{:016x}", fastrand::u64(..));
        let repeated = Repeated {
            status,
            subject: if kind.0 == Who::Others { String::new() } else { subject(asked) },
            request_id: request_id.clone(),
            reason,
            repeats: 0,
        };
        self.lines.push(&repeated.line(code));
        refused.insert(kind, repeated);
        request_id
    }

    /// Writes what has repeated itself since the last time, and forgets what has not.
    pub fn flush(&self) {
        self.locked().retain(|(_, code), repeated| {
            if repeated.repeats == 0 {
                return false;
            }
            self.lines.push(&repeated.line(code));
            repeated.repeats = 0;
            true
        });
    }

    /// Flushes in time, for ever.
    pub async fn keep_flushing(&self) -> Infallible {
        let mut ticks = interval_at(Instant::now() + PERIOD, PERIOD);
        loop {
            ticks.tick().await;
            self.flush();
        }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<(Who, &'static str), Repeated>> {
        self.refused.lock().expect("nothing panics while it holds this lock")
    }
}

impl Repeated {
    fn line(&self, code: &str) -> Vec<u8> {
        let mut line = begin(code, self.status);
        if self.repeats > 0 {
            // `write!` to a String cannot fail.
            let _ = write!(line, r#","repeats":{}"#, self.repeats);
        }
        line.push_str(&self.subject);
        text(&mut line, "request_id", &self.request_id);
        text(&mut line, "reason", &self.reason);
        finish(line)
    }
}

fn begin(code: &str, status: u16) -> String {
    let mut line = String::with_capacity(768);
    let now = time::now();
    let _ = write!(line, r#"{{"timestamp":"{now:.3}","target":"audit","code":"{code}","status":{status}"#);
    line
}

/// Who it was, as far as that is known, and by what.
fn subject(asked: &Asked<'_>) -> String {
    let (caller, mut line) = (asked.caller, String::new());
    let attested = asked.trail.attested.as_ref();
    if let Some(pod) = attested.map(AttestedPod::pod) {
        text(&mut line, "pod.namespace", pod.namespace());
        text(&mut line, "pod.name", &pod.name);
        text(&mut line, "pod.uid", pod.uid.as_str());
        text(&mut line, "service_account", &pod.service_account.name);
    } else if let Some(uid) = caller.uid() {
        text(&mut line, "pod.uid", uid.as_str());
    }
    if let Some(plan) = &asked.trail.plan {
        text(&mut line, "role.arn", plan.role.as_str());
    }
    text(&mut line, "evidence", attested.map_or_else(|| caller.means(), AttestedPod::evidence));
    if let Some(id) = attested.and_then(AttestedPod::credential_id) {
        text(&mut line, "authorization.id", id);
    }
    if let Origin::Link(index) = caller.origin() {
        // A name may be given out again; this is only for people.
        let name = nix::net::if_::if_indextoname(index).ok().and_then(|name| name.into_string().ok());
        text(&mut line, "link", &name.unwrap_or_else(|| format!("#{index}")));
    }
    text(&mut line, "client.addr", &caller.peer().to_string());
    text(&mut line, "endpoint", asked.endpoint.as_str());
    line
}

/// Adds a string field. Most values need no escapes; those that do go through serde_json.
fn text(line: &mut String, name: &str, value: &str) {
    let plain = value.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\');
    let _ = if plain {
        write!(line, r#","{name}":"{value}""#)
    } else {
        write!(line, r#","{name}":{}"#, serde_json::Value::from(value))
    };
}

fn finish(mut line: String) -> Vec<u8> {
    line.push_str("}\n");
    line.into_bytes()
}

#[cfg(test)]
#[path = "audit/tests.rs"]
mod tests;

//! Callers whom only a token can name: what the API server says of it, by TokenReview.
//! <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/>
//!
//! A good answer is kept for a minute, by the token's hash, and says only whose token it is; whether that pod still
//! lives is looked up for each request. A bad answer is never kept. So one who sends bad tokens could have the API
//! server asked at will: each source pays for its questions, and none can use up what the others need.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dashmap::DashMap;
use ring::digest::{SHA256, digest};
use secrecy::ExposeSecret;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::Error;
use super::allowance::Allowance;
use super::authorization::{Fault, Token};
use super::evidence::Origin;
use super::pods::{Pod, PodUid, ServiceAccountName};
use crate::cluster::{self, Cluster, Reviewed, Verdict};

/// A token that is taken back without its pod's end (a ServiceAccount made anew) is believed for this long at most.
const KEEP: Duration = Duration::from_secs(60);
/// Several times the pods of a node. Only good tokens are kept, which nobody makes by himself.
const MAX_KEPT: usize = 1024;
/// Questions of one source at a time: a slow API server must not let it hold all of them.
const FLIGHTS_PER_SOURCE: u32 = 16;
/// Questions of all sources at a time.
const FLIGHTS: usize = 128;

/// SHA-256 of a token: the token itself is kept nowhere.
type Hash = [u8; 32];
/// What a flight brought.
type Answer = Result<Arc<Subject>, Error>;

/// Whose token it is: one pod, as the API server names it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Subject {
    account: ServiceAccountName,
    pod: Box<str>,
    pub(super) uid: PodUid,
    /// Names the token in the API server's audit log, and is no secret.
    pub(super) credential_id: Option<Arc<str>>,
}

impl Subject {
    /// `reviewed` as the API server has it, if it is a pod of a ServiceAccount, and the token is meant for us.
    fn new(reviewed: Reviewed, audiences: &[String]) -> Result<Self, Fault> {
        // An authenticator that knows no audiences says none, and means the API server's own.
        if !reviewed.audiences.iter().any(|audience| audiences.contains(audience)) {
            return Err(Fault::OtherAudience(audiences.join(" or ")));
        }
        let account = reviewed.user.strip_prefix("system:serviceaccount:").and_then(|account| {
            let (namespace, name) = account.split_once(':')?;
            Some(ServiceAccountName { namespace: namespace.into(), name: name.into() })
        });
        let (Some(account), Some(pod), Some(uid)) = (account, reviewed.pod_name, reviewed.pod_uid) else {
            return Err(Fault::NotOfAPod);
        };
        let credential_id = reviewed.credential_id.map(Into::into);
        Ok(Self { account, pod: pod.into(), uid: PodUid::new(uid), credential_id })
    }

    /// Is `pod` in every respect the one that the token is bound to?
    pub(super) fn is(&self, pod: &Pod) -> bool {
        self.uid == pod.uid && *self.pod == *pod.name && self.account == pod.service_account
    }
}

/// Asks the API server about tokens.
pub(super) struct Reviews {
    cluster: Arc<dyn Cluster>,
    audiences: Arc<[String]>,
    known: Arc<Known>,
    flights: Arc<Mutex<Flights>>,
}

impl Reviews {
    /// Reviews for tokens that are meant for one of `audiences`.
    pub(super) fn new(cluster: Arc<dyn Cluster>, audiences: &[String]) -> Self {
        Self { cluster, audiences: audiences.into(), known: Arc::default(), flights: Arc::default() }
    }

    /// Whose token this is. `source` pays for the question.
    ///
    /// # Errors
    /// [`Error::AuthorizationInvalid`] for one that is not good; passing trouble before `deadline`.
    pub(super) async fn subject(
        &self,
        token: &Token,
        source: Origin,
        deadline: Instant,
    ) -> Result<Arc<Subject>, Error> {
        if !token.is_for(&self.audiences) {
            return Err(Error::AuthorizationInvalid(Fault::OtherAudience(self.audiences.join(" or "))));
        }
        let text = token.text().expose_secret();
        let hash: Hash = digest(&SHA256, text.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes");
        if let Some(subject) = self.known.get(&hash) {
            return Ok(subject);
        }
        let mut landed = self.flight(hash, token, source)?;
        match timeout_at(deadline, landed.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone().expect("waited for"),
            // The flight's task ended without an answer, which it does not.
            Ok(Err(_)) => Err(Error::NotReviewed { why: "the question was dropped".into() }),
            Err(_) => Err(Error::NotReviewed { why: "no answer in time".into() }),
        }
    }

    /// The flight for this token, which goes on when its caller's deadline has passed.
    fn flight(
        &self,
        hash: Hash,
        token: &Token,
        source: Origin,
    ) -> Result<watch::Receiver<Option<Answer>>, Error> {
        let mut flights = locked(&self.flights);
        if let Some(flight) = flights.under_way.get(&hash) {
            return Ok(flight.clone());
        }
        flights.charge(source)?;
        let (sender, flight) = watch::channel(None);
        flights.under_way.insert(hash, flight.clone());
        drop(flights);
        let (cluster, audiences) = (Arc::clone(&self.cluster), Arc::clone(&self.audiences));
        let (known, flights) = (Arc::clone(&self.known), Arc::clone(&self.flights));
        let (text, life) = (token.text().clone(), token.remaining());
        tokio::spawn(async move {
            let asked = Instant::now();
            let answer = judge(cluster.review_token(&text, &audiences).await, &audiences);
            if let Ok(subject) = &answer {
                known.keep(hash, subject, asked + life.min(KEEP));
            }
            let mut flights = locked(&flights);
            flights.under_way.remove(&hash);
            flights.ended(source);
            drop(flights);
            sender.send_replace(Some(answer));
        });
        Ok(flight)
    }
}

fn judge(verdict: Result<Verdict, cluster::Error>, audiences: &[String]) -> Answer {
    match verdict {
        Ok(Verdict::Good(reviewed)) => {
            Subject::new(reviewed, audiences).map(Arc::new).map_err(Error::AuthorizationInvalid)
        }
        Ok(Verdict::Bad(why)) => Err(Error::AuthorizationInvalid(Fault::NotAccepted(why))),
        Err(failure) => Err(Error::NotReviewed { why: failure.to_string() }),
    }
}

fn locked(flights: &Mutex<Flights>) -> MutexGuard<'_, Flights> {
    flights.lock().expect("nothing panics while it holds this lock")
}

/// Good answers, until when.
#[derive(Default)]
struct Known(DashMap<Hash, (Arc<Subject>, Instant)>);

impl Known {
    fn get(&self, hash: &Hash) -> Option<Arc<Subject>> {
        let entry = self.0.get(hash)?;
        let (subject, until) = &*entry;
        (Instant::now() < *until).then(|| Arc::clone(subject))
    }

    fn keep(&self, hash: Hash, subject: &Arc<Subject>, until: Instant) {
        let now = Instant::now();
        if self.0.len() >= MAX_KEPT {
            self.0.retain(|_, (_, until)| now < *until);
        }
        // Forgetting all of them costs one question each, so the bound is simple.
        if self.0.len() >= MAX_KEPT {
            self.0.clear();
        }
        if now < until {
            self.0.insert(hash, (Arc::clone(subject), until));
        }
    }
}

/// The questions under way, and what each source has left.
#[derive(Default)]
struct Flights {
    under_way: HashMap<Hash, watch::Receiver<Option<Answer>>>,
    sources: HashMap<Origin, Source>,
}

struct Source {
    flying: u32,
    allowance: Allowance,
}

impl Flights {
    fn charge(&mut self, source: Origin) -> Result<(), Error> {
        let now = Instant::now();
        if !self.sources.contains_key(&source) {
            self.sources.retain(|_, source| source.flying > 0 || !source.allowance.is_full(now));
        }
        let flights = self.under_way.len();
        let source = self
            .sources
            .entry(source)
            .or_insert_with(|| Source { flying: 0, allowance: Allowance::new(now) });
        if source.flying >= FLIGHTS_PER_SOURCE || flights >= FLIGHTS || !source.allowance.take(now) {
            return Err(Error::TooManyReviews);
        }
        source.flying += 1;
        Ok(())
    }

    fn ended(&mut self, source: Origin) {
        if let Some(source) = self.sources.get_mut(&source) {
            source.flying -= 1;
        }
    }
}

#[cfg(test)]
#[path = "review/tests.rs"]
mod tests;

//! One flight per plan, renewal ahead of time, and never the expired: what stands between callers and STS.
//!
//! Each plan in use has a keeper task that fetches, renews and backs off. Callers only read what it published,
//! or wait for it; so a caller that hangs up ends nothing, and a thousand callers cost one flight. A plan's first hop is an
//! entry of its own: all that stand on it share its session, its flight, and its refusal.

mod keeper;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use dashmap::DashMap;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use crate::credentials::{Credentials, Keys, LEAST_LEFT};
use crate::exchange::{Before, Error, Exchange, Fetched};
use crate::identity::pods::PodUid;
use crate::role::{PlanKey, RolePlan};
use crate::{server, time};

/// A refusal by STS is remembered this long at first, doubled each time, so that an SDK's own retries cost one call.
const REFUSAL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// Back-off of one plan in passing trouble.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// While somebody asks and there is nothing to serve, the next try is at most this far off: after a recovery the
/// next request must be good within 5 s.
const ASKED_FOR: Duration = Duration::from_secs(3);
/// A new pod of a refused plan may cause one more try, this often.
const NEW_POD: Duration = Duration::from_secs(60);

/// Credentials as they are served: the answer's bytes, built once, and until when they are good.
pub struct Served {
    /// The JSON document of the container-credential endpoint.
    pub body: Bytes,
    /// The same as instance metadata has it, once somebody has asked there.
    metadata: OnceLock<Bytes>,
    /// For the audit line, like the two below; not a secret.
    pub access_key_id: String,
    /// Which token STS was shown.
    pub token_id: Option<Arc<str>>,
    /// STS's own id of the answer.
    pub sts_request_id: Option<Arc<str>>,
    /// What a second hop is signed with.
    keys: Keys,
    /// The pods that have been given these keys.
    given_to: Mutex<HashSet<PodUid>>,
    /// This node's wall clock when STS was asked for the oldest hop of it: what `not-before` is compared with.
    issued: Timestamp,
    /// Both clocks must agree that it is still good: the monotonic one stands still while a laptop sleeps, the
    /// wall clock may be set.
    good_until: Instant,
    good_until_wall: Timestamp,
    renew: Instant,
}

impl Served {
    fn new(fetched: Fetched, plan: &RolePlan) -> Self {
        let body = server::ecs::document(&fetched.credentials, plan);
        let Credentials { life, access_key_id, secret_access_key, session_token, request_id, .. } =
            fetched.credentials;
        // Half the life, less up to a tenth at random, so that a node's plans do not renew in step.
        let half = life / 2;
        let good = life.saturating_sub(LEAST_LEFT);
        Self {
            body,
            metadata: OnceLock::new(),
            access_key_id: access_key_id.clone(),
            token_id: fetched.token_id,
            sts_request_id: request_id.as_deref().map(Into::into),
            keys: Keys { access_key_id, secret_access_key, session_token: Some(session_token) },
            given_to: Mutex::default(),
            issued: fetched.issued,
            good_until: fetched.asked + good,
            good_until_wall: time::plus(fetched.asked_wall, good),
            renew: fetched.asked + half.mul_f64(1.0 - 0.1 * fastrand::f64()),
        }
    }

    /// The document of instance metadata.
    pub fn metadata(&self) -> Bytes {
        self.metadata.get_or_init(|| server::imds::document(&self.body, self.issued)).clone()
    }

    /// Is this pod given these keys for the first time? The answer is yes once.
    pub fn is_new_to(&self, pod: &PodUid) -> bool {
        let mut given_to = self.given_to.lock().expect("nothing panics while it holds this lock");
        !given_to.contains(pod) && given_to.insert(pod.clone())
    }

    fn before(&self) -> Before<'_> {
        Before { keys: &self.keys, token_id: self.token_id.as_ref(), issued: self.issued }
    }

    fn usable(&self, plan: &RolePlan) -> bool {
        let wall = time::now();
        Instant::now() < self.good_until && wall < self.good_until_wall && !plan.revokes(self.issued, wall)
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served")
            .field("body", &"<redacted>")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// How an answer came about (`rolecall_cache_lookups_total`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// From the cache.
    Hit,
    /// This caller's question started the flight, or found a remembered refusal.
    Miss,
    /// It waited for a flight that was under way.
    Joined,
}

impl Lookup {
    /// The metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Joined => "joined",
        }
    }
}

/// Counts of `rolecall_credentials{state}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct States {
    /// Served, and renewal is on time.
    pub fresh: i64,
    /// Served, but the last renewal failed.
    pub stale: i64,
    /// Nothing to serve.
    pub failed: i64,
}

/// All plans in use.
pub struct Cache {
    entries: DashMap<PlanKey, Arc<Entry>>,
    exchange: Arc<Exchange>,
}

struct Entry {
    /// The newest plan under this key; only `not_before` can differ from the one before.
    plan: ArcSwap<RolePlan>,
    current: ArcSwapOption<Served>,
    state: Mutex<State>,
    /// Counts flights that have ended, whatever came of them.
    landed: watch::Sender<u64>,
    /// Wakes the keeper: somebody asks, or the plan changed.
    asked: Notify,
    callers: AtomicU64,
    keeper: Mutex<Option<AbortHandle>>,
}

#[derive(Default)]
struct State {
    failure: Option<Failure>,
    failures: u32,
    flying: bool,
    last_forgotten: Option<Instant>,
    /// Counts the tokens that were shown: a flight may have looked for one just before it came.
    shown: u64,
}

/// What becomes of a flight that brought nothing, but may next time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Callers are held for the whole deadline: an SDK that retries without a pause has its tries used up at once.
    Held,
    /// A second hop's flight is told, and tells its own callers.
    Told,
}

#[derive(Clone)]
struct Failure {
    error: Error,
    at: Instant,
    /// Until then the same answer is given without asking again (refusals), or no new try starts (passing trouble).
    until: Instant,
}

impl Cache {
    /// An empty cache in front of `exchange`.
    pub fn new(exchange: Arc<Exchange>) -> Self {
        Self { entries: DashMap::new(), exchange }
    }

    /// The answer for `plan`: what is cached, or what the flight that is under way brings before `deadline`.
    ///
    /// # Errors
    /// The last flight's [`Error`]; a flight goes on when its caller's deadline has passed.
    pub async fn fresh_or_fetch(
        self: &Arc<Self>,
        plan: &Arc<RolePlan>,
        deadline: Instant,
    ) -> (Lookup, Result<Arc<Served>, Error>) {
        let entry = self.entry(plan);
        if let Some(served) = entry.serve(plan) {
            return (Lookup::Hit, Ok(served));
        }
        entry.wait(plan, deadline, Trouble::Held).await
    }

    /// Starts the first fetch ahead of the first question.
    pub fn prefetch(self: &Arc<Self>, plan: &Arc<RolePlan>) {
        self.entry(plan);
    }

    /// Is this plan in use?
    pub fn knows(&self, key: &PlanKey) -> bool {
        self.entries.contains_key(key)
    }

    /// Another pod of this plan has come: a remembered refusal may be out of date, though not more than once a minute.
    pub fn new_pod(&self, plan: &Arc<RolePlan>) {
        for entry in self.entries_of(plan) {
            let mut state = entry.lock();
            if state.last_forgotten.is_none_or(|at| at.elapsed() >= NEW_POD) {
                state.last_forgotten = Some(Instant::now());
                entry.forget(&mut state);
            }
        }
    }

    /// A pod of this plan has shown its token: one that was missing is there now.
    pub fn token_shown(&self, plan: &Arc<RolePlan>) {
        for entry in self.entries_of(plan) {
            let mut state = entry.lock();
            state.shown += 1;
            if state.failure.as_ref().is_some_and(|failure| failure.error.unshown()) {
                entry.forget(&mut state);
            }
        }
    }

    /// The agent has other credentials of its own: what was refused or missing with those before is asked for again.
    pub fn base_changed(&self) {
        for entry in &self.entries {
            let mut state = entry.lock();
            if state.failure.is_some() {
                entry.forget(&mut state);
            }
        }
    }

    /// Takes the plans in use now, and the hops that they stand on: drops the others, and tells the rest of a new
    /// `not-before`.
    pub fn retain<'a>(&self, in_use: impl IntoIterator<Item = &'a Arc<RolePlan>>) {
        let mut hops: HashMap<PlanKey, &Arc<RolePlan>> = HashMap::new();
        for plan in in_use {
            hops.extend(plan.hops().map(|hop| (hop.key(), hop)));
        }
        self.entries.retain(|key, entry| {
            let Some(plan) = hops.get(key) else {
                entry.stop();
                return false;
            };
            entry.adopt(plan);
            true
        });
    }

    /// For `rolecall_credentials{state}`.
    pub fn states(&self) -> States {
        let mut states = States::default();
        for entry in &self.entries {
            let failed = entry.lock().failure.is_some();
            match entry.serve(&entry.plan.load()) {
                Some(_) if failed => states.stale += 1,
                Some(_) => states.fresh += 1,
                None => states.failed += 1,
            }
        }
        states
    }

    /// One line per plan for `/statusz`: what is cached and what went wrong, never a secret.
    pub fn status(&self) -> Vec<serde_json::Value> {
        let entries: Vec<Arc<Entry>> = self.entries.iter().map(|entry| Arc::clone(&entry)).collect();
        entries.iter().map(|entry| entry.status()).collect()
    }

    fn entry(self: &Arc<Self>, plan: &Arc<RolePlan>) -> Arc<Entry> {
        if let Some(entry) = self.entries.get(&plan.key()) {
            return Arc::clone(&entry);
        }
        let entry = self.entries.entry(plan.key()).or_insert_with(|| Entry::start(plan, self));
        Arc::clone(&entry)
    }

    /// The entries of the plan and of the hops before it, as far as there are any: the first hop's first, so that the one that
    /// stands on it finds it changed.
    fn entries_of(&self, plan: &Arc<RolePlan>) -> Vec<Arc<Entry>> {
        let entry = |hop: &Arc<RolePlan>| self.entries.get(&hop.key()).map(|entry| Arc::clone(&entry));
        let mut entries: Vec<Arc<Entry>> = plan.hops().filter_map(entry).collect();
        entries.reverse();
        entries
    }
}

impl Entry {
    fn start(plan: &Arc<RolePlan>, cache: &Arc<Cache>) -> Arc<Self> {
        let entry = Arc::new(Self {
            plan: ArcSwap::new(Arc::clone(plan)),
            current: ArcSwapOption::empty(),
            state: Mutex::new(State { flying: true, ..State::default() }),
            landed: watch::Sender::new(0),
            asked: Notify::new(),
            callers: AtomicU64::new(0),
            keeper: Mutex::new(None),
        });
        let keeper = keeper::keep(Arc::clone(&entry), Arc::downgrade(cache), Arc::clone(&cache.exchange));
        let keeper = tokio::spawn(keeper).abort_handle();
        *entry.keeper.lock().expect("nothing panics while it holds this lock") = Some(keeper);
        entry
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    fn serve(&self, plan: &RolePlan) -> Option<Arc<Served>> {
        self.current.load_full().filter(|served| served.usable(plan))
    }

    /// Waits for a flight to land with something to serve.
    async fn wait(
        &self,
        plan: &Arc<RolePlan>,
        deadline: Instant,
        trouble: Trouble,
    ) -> (Lookup, Result<Arc<Served>, Error>) {
        self.adopt(plan);
        let mut landed = self.landed.subscribe();
        if let Some(served) = self.serve(plan) {
            return (Lookup::Hit, Ok(served)); // It landed just before we subscribed.
        }
        let lookup = {
            let state = self.lock();
            match &state.failure {
                Some(failure) if failure.error.refused() && Instant::now() < failure.until => {
                    return (Lookup::Miss, Err(failure.error.clone()));
                }
                Some(failure) if failure.error.unshown() => {
                    return (Lookup::Miss, Err(failure.error.clone()));
                }
                _ if self.callers.load(Ordering::Relaxed) > 0 => Lookup::Joined,
                _ => Lookup::Miss,
            }
        };
        let _caller = Counted::new(&self.callers);
        self.asked.notify_one();
        loop {
            let in_time = timeout_at(deadline, landed.changed()).await.is_ok();
            if let Some(served) = self.serve(plan) {
                return (lookup, Ok(served));
            }
            let failure = self.lock().failure.clone();
            match failure {
                Some(Failure { error, .. })
                    if !in_time || trouble == Trouble::Told || error.refused() || error.unshown() =>
                {
                    return (lookup, Err(error));
                }
                None if !in_time => return (lookup, Err(Error::NoAnswerYet)),
                _ => self.asked.notify_one(),
            }
        }
    }

    /// Takes a plan under the same key whose `not-before` differs.
    fn adopt(&self, plan: &Arc<RolePlan>) {
        if self.plan.load().not_before != plan.not_before {
            self.plan.store(Arc::clone(plan));
            self.forget(&mut self.lock());
        }
    }

    fn forget(&self, state: &mut State) {
        state.failure = None;
        state.failures = 0;
        self.asked.notify_one();
    }

    fn stop(&self) {
        if let Some(keeper) = self.keeper.lock().expect("nothing panics while it holds this lock").take() {
            keeper.abort();
        }
    }

    fn status(&self) -> serde_json::Value {
        let (plan, state) = (self.plan.load_full(), self.lock());
        let current = self.current.load();
        serde_json::json!({
            "service_account": plan.account.to_string(),
            "role_arn": plan.role.as_str(),
            "base_role_arn": plan.before().map(|before| before.role.as_str()),
            "session_name": plan.session_name.as_str(),
            "access_key_id": current.as_ref().map(|served| served.access_key_id.clone()),
            "good_until": current.as_ref().map(|served| served.good_until_wall.to_string()),
            "fetching": state.flying,
            "failure": state.failure.as_ref().map(|failure| failure.error.to_string()),
        })
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        for entry in &self.entries {
            entry.stop();
        }
    }
}

/// Counts a caller for as long as it waits, also if it hangs up.
struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;

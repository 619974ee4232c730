//! The task behind each plan in use: fetches, publishes, and sleeps until there is a reason to fetch again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{ASKED_FOR, BACKOFF, Cache, Entry, Failure, REFUSAL, Served, Trouble};
use crate::exchange::{Error, Exchange, Fetched};
use crate::role::{Base, By, RolePlan};
use crate::time;
use crate::token::BoundToken;

/// How long a second hop's flight waits for the first hop's session: longer than one TokenRequest and one call of STS take.
const HOP_BEFORE: Duration = Duration::from_secs(15);

/// Fetches, publishes, and sleeps until there is a reason to fetch again; ended by [`Entry::stop`].
pub(super) async fn keep(entry: Arc<Entry>, cache: Weak<Cache>, exchange: Arc<Exchange>) {
    let mut last_token = None;
    loop {
        let plan = entry.plan.load_full();
        let shown = {
            let mut state = entry.lock();
            state.flying = true;
            state.shown
        };
        let fetched = fly(&plan, &cache, &exchange, &mut last_token).await;
        {
            let mut state = entry.lock();
            state.flying = false;
            match fetched {
                Ok(fetched) => {
                    entry.current.store(Some(Arc::new(Served::new(fetched, &plan))));
                    state.failure = None;
                    state.failures = 0;
                }
                Err((error, _)) if error.unshown() && state.shown != shown => continue,
                Err((error, until)) => {
                    let bounds = if error.refused() { REFUSAL } else { BACKOFF };
                    let pause = backoff(bounds, state.failures);
                    state.failures += 1;
                    let now = Instant::now();
                    state.failure = Some(Failure { error, at: now, until: until.unwrap_or(now + pause) });
                }
            }
        }
        entry.landed.send_modify(|landed| *landed += 1);
        entry.until_due().await;
    }
}

/// One flight. A second hop's begins with the session of the first, from the cache or from the first hop's own flight; where
/// the first one is refused, the refusal ends for both when it ends for the first.
async fn fly(
    plan: &RolePlan,
    cache: &Weak<Cache>,
    exchange: &Exchange,
    last_token: &mut Option<BoundToken>,
) -> Result<Fetched, (Error, Option<Instant>)> {
    let before = match &plan.by {
        By::WebIdentity { .. } => {
            return exchange.by_token(plan, last_token).await.map_err(|error| (error, None));
        }
        By::AssumeRole { with: Base::Agent, .. } => {
            return exchange.by_agent(plan).await.map_err(|error| (error, None));
        }
        By::AssumeRole { with: Base::Plan(before), .. } => before,
    };
    // Looked up each time: the entry of a hop that nobody stood on for a moment has been stopped.
    let Some(entry) = cache.upgrade().map(|cache| cache.entry(before)) else {
        return std::future::pending().await;
    };
    let session = entry.session(before).await?;
    match exchange.by_keys(plan, session.before()).await {
        Err(error) if error.keys_are_spent() => {
            // An STS that was started anew knows none of its sessions. Keys that are new are not refused for that.
            entry.discard(&session);
            let session = entry.session(before).await?;
            exchange.by_keys(plan, session.before()).await.map_err(|error| (error, None))
        }
        answer => answer.map_err(|error| (error, None)),
    }
}

impl Entry {
    /// This hop's session, for the hop that stands on it; or why there is none, and until when a refusal holds.
    async fn session(&self, plan: &Arc<RolePlan>) -> Result<Arc<Served>, (Error, Option<Instant>)> {
        if let Some(served) = self.serve(plan) {
            return Ok(served);
        }
        let (_, answer) = self.wait(plan, Instant::now() + HOP_BEFORE, Trouble::Told).await;
        answer.map_err(|error| {
            let failure = self.lock().failure.clone();
            let until = failure.filter(|_| error.refused()).map(|failure| failure.until);
            (error, until)
        })
    }

    /// STS no longer takes these keys.
    fn discard(&self, session: &Arc<Served>) {
        let _state = self.lock();
        if self.current.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            self.current.store(None);
            self.asked.notify_one();
        }
    }

    /// Resolves when the next fetch is due: renewal, revocation, the end of a back-off, or a caller with nothing to get.
    async fn until_due(&self) {
        loop {
            let now = Instant::now();
            match self.due(now) {
                Some(due) if due <= now => return,
                Some(due) => tokio::select! {
                    () = sleep_until(due) => {}
                    () = self.asked.notified() => {}
                },
                None => self.asked.notified().await,
            }
        }
    }

    /// `None`: not before somebody asks.
    fn due(&self, now: Instant) -> Option<Instant> {
        let (plan, state) = (self.plan.load(), self.lock());
        let wanted = self.callers.load(Ordering::Relaxed) > 0;
        match (&state.failure, self.serve(&plan)) {
            // Nothing went wrong: renew in time, or at once what `not-before` has taken away.
            (None, Some(served)) => Some(served.renew.min(revocation(&plan, now))),
            (None, None) => Some(now),
            (Some(failure), Some(_)) => Some(failure.until),
            (Some(failure), None) if failure.error.unshown() => None,
            (Some(failure), None) if failure.error.refused() => wanted.then_some(failure.until),
            (Some(failure), None) if wanted => Some(failure.until.min(failure.at + ASKED_FOR)),
            (Some(failure), None) => Some(failure.until),
        }
    }
}

/// When a `not-before` that lies ahead will strike.
fn revocation(plan: &RolePlan, now: Instant) -> Instant {
    let wall = time::now();
    match plan.not_before {
        Some(moment) if moment > wall => now + time::between(wall, moment),
        _ => now + Duration::from_secs(24 * 3600),
    }
}

/// Doubles from `first` to `last` with full jitter above half, so that it is never nothing.
fn backoff((first, last): (Duration, Duration), failures: u32) -> Duration {
    let ceiling = first.saturating_mul(1 << failures.min(6)).min(last);
    if failures == 0 { first } else { ceiling.mul_f64(0.5 + 0.5 * fastrand::f64()) }
}

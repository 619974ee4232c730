//! What one origin may take of the agent: open connections, and with them memory, and requests a second.
//!
//! All connections share one thread, so what one pod takes its neighbours lack. Up to a rate nobody waits; above it each
//! request waits for its turn, and since a connection waits with one request at a time, the wait is bounded by the
//! connections. Only what has no connection left is refused, in the cheapest way; of instance metadata a few such may say what
//! they came for, because a PUT must not be refused ([`Limits::hear`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::reply::RequestError;
use crate::identity::evidence::Origin;

/// Open connections of all. Each costs its read buffer, 16 KiB at most, and a few KiB more: together less than the
/// manifest's 128 MiB.
const CONNECTIONS: usize = 4096;
/// Connections of all that are not let in, but heard. Each ends with its first answer.
const HEARD: usize = 512;
/// What one origin may have of those that are still free: 241 while nobody else has any, so that 200 processes can start
/// at once, and so little beside many floods that a newcomer finds room.
const PART: usize = 16;
/// One request, or one new connection with its first: 1,000 a second, which is a tenth of a core at most (measured: 80 µs for a new
/// connection, 12 µs for a kept one).
const INTERVAL: Duration = Duration::from_millis(1);
/// What an origin that was quiet may ask at once: 1,000, so 200 processes with an SDK that asks four times.
const SAVED: Duration = Duration::from_secs(1);
/// Nearly twice the wait that open connections can cause; more turns than that are booked only by callers that do not wait
/// for theirs. As long as instance metadata may hold a PUT, which is answered all the same.
const PATIENCE: Duration = super::imds::HOLD;
/// Several times the pods of a node: links come and go.
const SWEEP: usize = 1024;

/// The limits of one agent, shared by its listeners.
pub struct Limits {
    inside: usize,
    table: Mutex<Table>,
}

/// How many connections there are of a kind.
#[derive(Clone, Copy, Default)]
struct Count {
    inside: usize,
    heard: usize,
}

/// What a connection is counted as.
#[derive(Clone, Copy)]
enum Kind {
    Inside,
    Heard,
}

impl Count {
    fn of(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Inside => &mut self.inside,
            Kind::Heard => &mut self.heard,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(CONNECTIONS)
    }
}

#[derive(Default)]
struct Table {
    open: Count,
    origins: HashMap<Origin, Taken>,
}

#[derive(Default)]
struct Taken {
    open: Count,
    turns: Arc<Turns>,
}

impl Limits {
    /// Limits for so many open connections.
    pub fn new(connections: usize) -> Self {
        Self { inside: connections, table: Mutex::default() }
    }

    /// Room for one connection of `origin`, until what is returned is dropped; `None` if it has its share already.
    pub fn admit(self: &Arc<Self>, origin: Origin) -> Option<Admission> {
        self.place(origin, Kind::Inside)
    }

    /// Room for one connection of `origin` that is not admitted, for its first request alone. It takes its turn with the others,
    /// so who floods has no more answers by it; `None` if the origin has its share of this, too.
    pub fn hear(self: &Arc<Self>, origin: Origin) -> Option<Admission> {
        self.place(origin, Kind::Heard)
    }

    fn place(self: &Arc<Self>, origin: Origin, kind: Kind) -> Option<Admission> {
        let mut table = self.locked();
        let most = match kind {
            Kind::Inside => self.inside,
            Kind::Heard => HEARD,
        };
        let allowed = (most - *table.open.of(kind)) / PART;
        if table.origins.len() >= SWEEP && !table.origins.contains_key(&origin) {
            let now = Instant::now();
            // Whoever has used up its turns is remembered until it would have them again.
            table
                .origins
                .retain(|_, taken| taken.open.inside + taken.open.heard > 0 || !taken.turns.unused(now));
        }
        let taken = table.origins.entry(origin).or_default();
        if *taken.open.of(kind) >= allowed {
            return None;
        }
        *taken.open.of(kind) += 1;
        let turns = Arc::clone(&taken.turns);
        *table.open.of(kind) += 1;
        Some(Admission { limits: Arc::clone(self), origin, kind, turns })
    }

    fn locked(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nothing panics while it holds this lock")
    }
}

/// One open connection.
pub struct Admission {
    limits: Arc<Limits>,
    origin: Origin,
    kind: Kind,
    turns: Arc<Turns>,
}

impl Admission {
    /// Resolves when it is the origin's turn, which is at once below its rate.
    ///
    /// # Errors
    /// [`RequestError::Overloaded`], after a pause, if more turns are booked than can be waited for.
    pub async fn turn(&self) -> Result<(), RequestError> {
        let wait = self.turns.book(Instant::now());
        match wait {
            Some(Duration::ZERO) => {}
            Some(wait) => sleep(wait).await,
            // Not at once: refusing costs as much as answering.
            None => sleep(PATIENCE).await,
        }
        wait.map(drop).ok_or(RequestError::Overloaded("too many requests from one pod"))
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut table = self.limits.locked();
        *table.open.of(self.kind) -= 1;
        if let Some(taken) = table.origins.get_mut(&self.origin) {
            *taken.open.of(self.kind) -= 1;
        }
    }
}

/// A token bucket, as the moment at which it will be full.
struct Turns(Mutex<Instant>);

impl Default for Turns {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Turns {
    /// How long to wait for the next turn; `None`, and nothing is booked, if that is too long.
    fn book(&self, now: Instant) -> Option<Duration> {
        let mut full = self.0.lock().expect("nothing panics while it holds this lock");
        let next = now.max(*full) + INTERVAL;
        let wait = next.duration_since(now).saturating_sub(SAVED);
        if wait > PATIENCE {
            return None;
        }
        *full = next;
        Some(wait)
    }

    fn unused(&self, now: Instant) -> bool {
        *self.0.lock().expect("nothing panics while it holds this lock") <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: Origin = Origin::Link(7);
    const OTHER: Origin = Origin::Link(8);

    #[tokio::test(start_paused = true)]
    async fn who_closes_connections_may_open_others() {
        let limits = Arc::new(Limits::default());
        for _ in 0..3 {
            let open: Vec<_> = (0..200).map(|_| limits.admit(POD)).collect();
            assert!(open.iter().all(Option::is_some));
            let _rest: Vec<_> = std::iter::from_fn(|| limits.admit(POD)).collect();
            assert!(limits.admit(POD).is_none() && limits.admit(OTHER).is_some());
        }
        assert_eq!(limits.locked().open.inside, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_only_heard_has_places_and_turns_of_its_own_origin_alone() {
        let limits = Arc::new(Limits::default());
        let _inside: Vec<_> = std::iter::from_fn(|| limits.admit(POD)).collect();
        let heard: Vec<_> = std::iter::from_fn(|| limits.hear(POD)).collect();
        assert!((16..HEARD / 8).contains(&heard.len()), "{}", heard.len());
        assert!(limits.hear(OTHER).is_some() && limits.admit(OTHER).is_some());
        for _ in 0..1000 {
            heard[0].turn().await.unwrap();
        }
        let begun = Instant::now();
        heard[1].turn().await.unwrap();
        assert_eq!(begun.elapsed(), INTERVAL, "it has no more turns than who is let in");
        drop(heard);
        assert_eq!(limits.locked().open.heard, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn beside_ninety_floods_a_newcomer_finds_room() {
        let limits = Arc::new(Limits::default());
        let mut open = Vec::new();
        for pod in 0..90 {
            assert!(limits.admit(Origin::Link(pod)).is_some(), "pod {pod} beside {} connections", open.len());
            while let Some(admission) = limits.admit(Origin::Link(pod)) {
                open.push(admission);
            }
        }
        assert!((CONNECTIONS * 9 / 10..CONNECTIONS).contains(&open.len()), "{}", open.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_origin_has_a_burst_and_then_its_rate() {
        let limits = Arc::new(Limits::default());
        let pod = limits.admit(POD).unwrap();
        let begun = Instant::now();
        for _ in 0..1000 {
            pod.turn().await.unwrap();
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        for _ in 0..5000 {
            pod.turn().await.unwrap();
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        let other = limits.admit(OTHER).unwrap();
        other.turn().await.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_secs(5), "a neighbour does not wait");
    }

    #[tokio::test(start_paused = true)]
    async fn all_connections_of_an_origin_wait_together_and_none_is_refused() {
        let limits = Arc::new(Limits::default());
        let open: Vec<_> = std::iter::from_fn(|| limits.admit(POD)).collect();
        for _ in 0..1000 {
            open[0].turn().await.unwrap();
        }
        let begun = Instant::now();
        let turns = futures_util::future::join_all(open.iter().map(Admission::turn)).await;
        assert!(turns.iter().all(Result::is_ok));
        assert_eq!(begun.elapsed(), INTERVAL * open.len() as u32);
    }

    #[tokio::test(start_paused = true)]
    async fn turns_that_nobody_waits_for_are_refused_slowly_and_are_no_debt() {
        let limits = Arc::new(Limits::default());
        let pod = limits.admit(POD).unwrap();
        for _ in 0..10_000 {
            let _ = futures_util::FutureExt::now_or_never(pod.turn());
        }
        let begun = Instant::now();
        assert!(matches!(pod.turn().await, Err(RequestError::Overloaded(_))));
        assert_eq!(begun.elapsed(), PATIENCE);
        pod.turn().await.unwrap();
        assert!(begun.elapsed() <= 2 * PATIENCE, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_give_an_origin_no_new_turns_and_the_idle_are_forgotten() {
        let limits = Arc::new(Limits::default());
        for _ in 0..1000 {
            limits.admit(POD).unwrap().turn().await.unwrap();
        }
        let again = limits.admit(POD).unwrap();
        let begun = Instant::now();
        again.turn().await.unwrap();
        assert_eq!(begun.elapsed(), INTERVAL, "a new connection waits like the old ones");
        drop(again);
        for link in 100..100 + 10 * SWEEP as u32 {
            limits.admit(Origin::Link(link)).unwrap().turn().await.unwrap();
            tokio::time::advance(INTERVAL).await;
        }
        let origins = limits.locked().origins.len();
        assert!(origins <= SWEEP, "{origins} are remembered");
    }
}

//! Wall clock <-> durations. The monotonic clock is `tokio::time::Instant`, which tests can pause; wall time comes from here alone.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// The node's wall clock.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// From `earlier` to `later`; zero if it is the other way round.
pub fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

/// `moment` and `after` more, or the end of time.
pub fn plus(moment: Timestamp, after: Duration) -> Timestamp {
    SignedDuration::try_from(after)
        .ok()
        .and_then(|after| moment.checked_add(after).ok())
        .unwrap_or(Timestamp::MAX)
}

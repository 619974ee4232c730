//! What one source may ask the API server about tokens: so much at once, and then so much each second.

use tokio::time::Instant;

/// At once. A pod's own token costs one a minute.
pub(crate) const BURST: u32 = 20;
/// Each second after that.
const PER_SECOND: u32 = 5;

/// What a source has left.
pub(crate) struct Allowance {
    left: u32,
    filled: Instant,
}

impl Allowance {
    /// All of it.
    pub(crate) fn new(now: Instant) -> Self {
        Self { left: BURST, filled: now }
    }

    /// Takes one question, if there is one left.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let taken = self.left > 0;
        self.left -= u32::from(taken);
        taken
    }

    /// Gives `questions` back that have been taken.
    pub(crate) fn give_back(&mut self, questions: u32) {
        self.left = BURST.min(self.left + questions);
    }

    /// Whoever has all is as one that never asked.
    pub(crate) fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.left == BURST
    }

    fn fill(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.filled).as_secs().saturating_mul(PER_SECOND.into());
        if gained > 0 {
            self.left = BURST.min(self.left.saturating_add(gained.try_into().unwrap_or(u32::MAX)));
            self.filled = now;
        }
    }
}

//! The other end of one connection: who it is, whose turn it is, and how long its request may still be held.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::limits::Admission;
use super::reply::RequestError;
use crate::identity::Caller;

/// A caller that was let in, and what that may take of the agent.
pub struct Visitor {
    caller: Caller,
    admission: Admission,
    /// How long the connection waited for its turn, and for its evidence.
    waited: Duration,
    /// That turn was the first request's as well.
    asked: AtomicBool,
}

impl Visitor {
    /// `caller`, whose connection was accepted so long ago.
    pub fn new(caller: Caller, admission: Admission, waited: Duration) -> Self {
        Self { caller, admission, waited, asked: AtomicBool::new(false) }
    }

    /// Who it is.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Resolves when a request may go on. The first request's turn was the connection's.
    ///
    /// # Errors
    /// As [`Admission::turn`].
    pub async fn turn(&self) -> Result<(), RequestError> {
        if self.asked.load(Ordering::Relaxed) { self.admission.turn().await } else { Ok(()) }
    }

    /// What is left of `hold` for a request: the first one, whose head mostly came with the connection, has waited with it.
    pub fn left_of(&self, hold: Duration) -> Duration {
        if self.asked.load(Ordering::Relaxed) { hold } else { hold.saturating_sub(self.waited) }
    }

    /// A request has been answered: the next one waits for a turn of its own.
    pub fn answered(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }
}

//! A ServiceAccount token bound to one pod: what STS is shown. One that the agent mints exists only between two calls.

pub mod shown;

use std::fmt;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

/// A web-identity token and how long it may still be used.
pub struct BoundToken {
    token: SecretString,
    expires: Instant,
}

impl BoundToken {
    /// A token that lives for `life` from now.
    pub fn new(token: SecretString, life: Duration) -> Self {
        Self { token, expires: Instant::now() + life }
    }

    /// The token itself, for STS alone.
    pub fn expose(&self) -> &str {
        self.token.expose_secret()
    }

    /// What is left of its life.
    pub fn remaining(&self) -> Duration {
        self.expires.saturating_duration_since(Instant::now())
    }
}

impl fmt::Debug for BoundToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundToken")
            .field("token", &"<redacted>")
            .field("remaining", &self.remaining())
            .finish()
    }
}

//! `--token-source=caller`: pods show their own projected token in Authorization, and the agent has no right to mint.
//!
//! Nobody checks a signature here. Other evidence has named the pod before, the token says that it is of that very pod,
//! and STS checks the rest: whoever shows a forged one is refused there, and so are the other pods of its own
//! ServiceAccount for as long as that refusal is remembered.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use crate::identity::authorization::{Fault, Token};
use crate::identity::pods::{Pod, PodUid, Pods};
use crate::token::BoundToken;

/// What a token must outlive to be of use: STS has the rest of it.
const LEAST_LEFT: Duration = Duration::from_secs(30);

/// The newest token of each pod that has shown one.
pub struct ShownTokens {
    pods: Arc<Pods>,
    by_pod: DashMap<PodUid, Shown>,
}

struct Shown {
    text: SecretString,
    audience: Arc<str>,
    /// By its own words, and this node's clock.
    expires: Instant,
}

impl ShownTokens {
    /// Tokens of `pods`; those of others are forgotten.
    pub fn new(pods: Arc<Pods>) -> Self {
        Self { pods, by_pod: DashMap::new() }
    }

    /// Keeps the token that `pod`, which other evidence has named, shows for `audience`. `false`: it is for somebody else,
    /// and left alone.
    ///
    /// # Errors
    /// [`Fault`]: it is another pod's by its own words, or as good as expired.
    pub fn take(&self, pod: &Pod, audience: &Arc<str>, token: &Token) -> Result<bool, Fault> {
        if !token.is_for(&[audience]) {
            return Ok(false);
        }
        if !token.says_it_is_of(pod) {
            return Err(Fault::OfAnother);
        }
        if token.remaining() <= LEAST_LEFT {
            return Err(Fault::Expired);
        }
        let expires = Instant::now() + token.remaining();
        let newest = self.by_pod.get(&pod.uid).is_none_or(|last| {
            last.audience != *audience
                || (last.expires < expires && last.text.expose_secret() != token.text().expose_secret())
        });
        if newest {
            self.by_pod.retain(|uid, _| self.pods.by_uid(uid).is_some_and(|pod| pod.live()));
            let shown = Shown { text: token.text().clone(), audience: Arc::clone(audience), expires };
            self.by_pod.insert(pod.uid.clone(), shown);
        }
        Ok(true)
    }

    pub(super) fn newest(&self, pod: &Pod, audience: &str) -> Option<BoundToken> {
        let shown = self.by_pod.get(&pod.uid)?;
        let left = shown.expires.saturating_duration_since(Instant::now());
        (*shown.audience == *audience && left > LEAST_LEFT).then(|| BoundToken::new(shown.text.clone(), left))
    }
}

#[cfg(test)]
#[path = "shown/tests.rs"]
mod tests;

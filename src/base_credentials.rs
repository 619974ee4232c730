//! The agent's own credentials (`--sts-mode=assume-role`): where they come from, and how they are kept fresh.
//!
//! Which source it is, the environment decides once, at start: the first of them that is set up, and no other after it.
//! An SDK would go on to the next one, so a Secret that is not mounted would quietly make the node's own role the one that
//! assumes all others. aws-config has these sources too, but reads its files once, so that keys in a Secret could not be
//! replaced, and runs `credential_process` by a shell, which our image has not.

mod file;
mod metadata;
mod process;
mod source;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::sleep;

pub use self::source::Source;
use crate::credentials::Keys;
use crate::time;

/// How often a file is read again: a Secret that is mounted has been replaced by then, and so have the keys that we use.
const LOOK: Duration = Duration::from_secs(5);
/// Between two tries that bring nothing.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Keys without an end are asked for again after this long, in case that others have taken their place.
const ENDLESS: Duration = Duration::from_secs(600);
/// A source that goes on giving the same keys is not asked more often, however near their end is.
const LEAST_PAUSE: Duration = Duration::from_secs(10);

/// Why there are no base credentials. Never holds what a source answered, only what is wrong with it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The source that is set up gave none. Names every source, and why it is not the one or what it lacks.
    #[error("no base credentials; tried, in this order: {0}")]
    None(String),
    /// The last ones have ended, and no others came.
    #[error("the base credentials ended at {ended}, and {from} gives no new ones: {why}")]
    Ended {
        /// When.
        ended: Timestamp,
        /// [`Source`] as text.
        from: String,
        /// Why not.
        why: String,
    },
}

/// What calls to AssumeRole are signed with, and until when.
#[derive(Clone, Debug)]
pub struct BaseKeys {
    /// A session's, or a user's own.
    pub keys: Keys,
    /// When they end, by the source's clock.
    pub expiration: Option<Timestamp>,
}

impl BaseKeys {
    fn new(access_key_id: String, secret: String, session_token: Option<String>) -> Result<Self, String> {
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        // They go into headers. What they are is not said.
        if !plain(&access_key_id) || !plain(&secret) || session_token.as_deref().is_some_and(|t| !plain(t)) {
            return Err(
                "the access key, its secret or the session token is empty or has a space in it".into()
            );
        }
        let (secret_access_key, session_token) = (secret.into(), session_token.map(Into::into));
        Ok(Self { keys: Keys { access_key_id, secret_access_key, session_token }, expiration: None })
    }

    /// Reads the document that containers' endpoints, instance metadata and `credential_process` give.
    fn from_document(document: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Document {
            access_key_id: String,
            secret_access_key: String,
            #[serde(alias = "SessionToken")]
            token: Option<String>,
            expiration: Option<Timestamp>,
        }
        // serde's own words may quote what they do not like.
        let Document { access_key_id, secret_access_key, token, expiration } =
            serde_json::from_slice(document).map_err(|err| {
                format!(
                    "it is not JSON with AccessKeyId, SecretAccessKey, a token and an Expiration such as \
                     2026-11-22T05:00:00Z (line {}, column {})",
                    err.line(),
                    err.column()
                )
            })?;
        let keys = Self::new(access_key_id, secret_access_key, token.filter(|token| !token.is_empty()))?;
        Ok(Self { expiration, ..keys })
    }

    fn ended(&self) -> Option<Timestamp> {
        self.expiration.filter(|end| *end <= time::now())
    }

    fn same(&self, other: &Self) -> bool {
        let all = |Self { keys, expiration }: &Self| {
            let token = keys.session_token.as_ref().map(|token| token.expose_secret().to_owned());
            (
                keys.access_key_id.clone(),
                keys.secret_access_key.expose_secret().to_owned(),
                token,
                *expiration,
            )
        };
        all(self) == all(other)
    }
}

/// The base credentials as they are now. One task keeps them, every AssumeRole of the first hop reads them.
pub struct BaseCredentials {
    source: Source,
    keys: ArcSwapOption<BaseKeys>,
    /// Why the last try brought nothing.
    trouble: Mutex<Option<String>>,
    changes: watch::Sender<u64>,
}

impl BaseCredentials {
    /// None yet; [`keep`](Self::keep) fetches them.
    pub fn new(source: Source) -> Self {
        let (keys, trouble) = Default::default();
        Self { source, keys, trouble, changes: watch::Sender::new(0) }
    }

    /// Those that hold now.
    ///
    /// # Errors
    /// [`Error`]: there are none, or they have ended.
    pub fn current(&self) -> Result<Arc<BaseKeys>, Error> {
        match self.keys.load_full() {
            None => Err(Error::None(self.source.tried(self.why().as_deref().unwrap_or("not asked yet")))),
            Some(keys) => match keys.ended() {
                None => Ok(keys),
                Some(ended) => Err(Error::Ended {
                    ended,
                    from: self.source.to_string(),
                    why: self.why().unwrap_or_else(|| "not asked yet".into()),
                }),
            },
        }
    }

    /// Resolves each time that other keys take the place of those before.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Fetches them, and again ahead of their end, for ever. A try that fails leaves those before as they are.
    pub async fn keep(&self) -> Infallible {
        let mut process = process::Last::default();
        let mut pause = RETRY.0;
        loop {
            match self.source.read(&mut process).await {
                Ok(keys) => {
                    pause = RETRY.0;
                    let next = self.source.look_again(&keys);
                    self.take(keys);
                    sleep(next).await;
                }
                Err(why) => {
                    self.failed(why);
                    sleep(pause).await;
                    pause = (pause * 2).min(self.source.longest_pause());
                }
            }
        }
    }

    fn take(&self, keys: BaseKeys) {
        if keys.ended().is_some() {
            return self.failed("it gives credentials that have ended: check this node's clock".into());
        }
        let recovered = self.why_mut().take().is_some();
        let before = self.keys.load_full();
        if before.as_ref().is_some_and(|before| before.same(&keys)) {
            if recovered {
                tracing::info!(source = %self.source, "the source of the base credentials is back");
            }
            return;
        }
        tracing::info!(
            source = %self.source, access_key_id = keys.keys.access_key_id, session = keys.keys.session_token.is_some(),
            expires = keys.expiration.map(tracing::field::display), "base credentials",
        );
        self.keys.store(Some(Arc::new(keys)));
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn failed(&self, why: String) {
        let mut last = self.why_mut();
        if last.as_ref() != Some(&why) {
            match self.keys.load().as_ref().filter(|keys| keys.ended().is_none()) {
                None => tracing::warn!(tried = self.source.tried(&why), "no base credentials"),
                Some(_) => {
                    tracing::warn!(source = %self.source, error = why, "the last base credentials are kept");
                }
            }
        }
        *last = Some(why);
    }

    fn why(&self) -> Option<String> {
        self.why_mut().clone()
    }

    fn why_mut(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().expect("nothing panics while it holds this lock")
    }
}

#[cfg(test)]
#[path = "base_credentials/tests.rs"]
mod tests;

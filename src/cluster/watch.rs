//! List, then watch, for ever: what every watch of the agent does, whatever it watches.
//!
//! kube's own watcher keeps asking for a resourceVersion that a gateway answers with HTTP 410, has no deadline
//! for a watch that is never answered, and shows neither bookmarks nor restarts, so nobody can tell a quiet
//! watch from a dead one. This one does less, and each of these ends in a new list or a new watch.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{WatchEvent, WatchParams};
use kube::core::Request;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use super::api::{causes, log_safe};
use super::list;
use crate::time;

/// Each watch is asked for a time between these, so that the watches of a node do not all end together.
const WATCH_SECONDS: std::ops::Range<u32> = 240..290;
/// The API server ends a watch by itself; one that outlives its time by this much without a word is dead.
const SILENCE: Duration = Duration::from_secs(5);
/// A list of this node's pods, or the head of a watch's answer, from an API server that is having a bad day.
const ANSWER: Duration = Duration::from_secs(30);
/// A watch that ended sooner did not work, however it ended.
const WORKED: Duration = Duration::from_secs(10);
/// A watch that is refused so often in a row begins anew with a list: its resourceVersion may be the reason.
const REFUSED: u32 = 5;
/// Longer than kubelet's first step for nothing; the last step leaves time to be back within 30 s of a recovery.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(800), Duration::from_secs(15));

/// An object as a watch needs it.
pub trait Object: DeserializeOwned + Clone + Send {
    /// `metadata.resourceVersion`; `None` if the object cannot be understood, and then the list is asked for.
    fn resource_version(&self) -> Option<&str>;
}

/// What a watch has to say.
#[derive(Debug)]
pub enum Event<K> {
    /// Everything that there is: what is not in it has gone, unseen.
    Listed(Vec<K>),
    /// This one is new, or has changed.
    Applied(K),
    /// This one has gone.
    Deleted(K),
}

/// What is watched.
pub struct Source {
    /// The path of the collection, such as `/api/v1/pods`.
    pub path: String,
    /// The field selector.
    pub fields: String,
    /// Ask for metadata alone.
    pub metadata_only: bool,
}

/// `rolecall_kube_watch_restarts_total` and `rolecall_kube_watch_last_event_timestamp_seconds` of one resource.
#[derive(Debug, Default)]
pub struct WatchHealth {
    /// Watches that ended, for whatever reason, their time being up among them.
    pub restarts: AtomicU64,
    /// Seconds since 1970 of the last list, event or bookmark; 0 before the first.
    pub last_event: AtomicI64,
}

impl WatchHealth {
    fn heard(&self) {
        self.last_event.store(time::now().as_second(), Ordering::Relaxed);
    }
}

/// Why a watch did not go on.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot list")]
    List(#[source] super::Error),
    #[error("the list has no resourceVersion")]
    NoVersion,
    #[error("cannot watch: {0}")]
    Start(String),
    #[error("the watch broke off: {0}")]
    Broken(String),
    #[error("the watch's resourceVersion has expired")]
    Expired,
    #[error("an object of the watch cannot be understood")]
    NotUnderstood,
    #[error("the watch ended at once")]
    TooShort,
}

/// Tells `heard` all that happens in `source`, for ever. While the API server is away, says so once.
pub async fn follow<K: Object>(
    client: &kube::Client,
    source: &Source,
    health: &WatchHealth,
    mut heard: impl FnMut(Event<K>) + Send,
) -> Infallible {
    let mut watch =
        Watch { client, source, health, version: None, since: None, refused: 0, failures: 0, down: false };
    let mut pause = BACKOFF.0;
    loop {
        let ended = watch.once(&mut heard).await;
        health.restarts.fetch_add(1, Ordering::Relaxed);
        if watch.since.take().is_some_and(|since| since.elapsed() >= WORKED) {
            watch.failures = 0;
            pause = BACKOFF.0;
            if ended.is_ok() {
                continue;
            }
        }
        watch.failed(&ended.err().unwrap_or(Failure::TooShort));
        sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

struct Watch<'a> {
    client: &'a kube::Client,
    source: &'a Source,
    health: &'a WatchHealth,
    /// Where the next watch goes on; `None`: with a list.
    version: Option<String>,
    /// When the present watch started.
    since: Option<Instant>,
    /// Watches that were refused, since one last started.
    refused: u32,
    /// Failures of all kinds, since one last worked.
    failures: u32,
    /// The log says that it is down.
    down: bool,
}

impl Watch<'_> {
    /// One watch, with a list before it if one is due. Good if it ended of its own accord.
    async fn once<K: Object>(&mut self, heard: &mut (impl FnMut(Event<K>) + Send)) -> Result<(), Failure> {
        let from = match &self.version {
            Some(version) if !version.is_empty() => version.clone(),
            // An empty one would mean "from now on", and what went before now would stay for ever.
            _ => self.list(heard).await?,
        };
        let seconds = fastrand::u32(WATCH_SECONDS);
        let params = WatchParams::default().fields(&self.source.fields).timeout(seconds);
        let path = Request::new(&self.source.path);
        let request = if self.source.metadata_only {
            path.watch_metadata(&params, &from)
        } else {
            path.watch(&params, &from)
        };
        let request = request.map_err(|error| Failure::Start(causes(&error)))?;
        let events = match timeout(ANSWER, self.client.request_events::<K>(request)).await {
            Ok(Ok(events)) => events,
            Ok(Err(kube::Error::Api(status))) if status.code == 410 => {
                return Err(self.relist(Failure::Expired));
            }
            Ok(Err(kube::Error::Api(status))) => {
                // Not while it is overloaded or away: then all nodes would list at once as soon as it is back.
                if (400..500).contains(&status.code) && status.code != 429 {
                    self.refused += 1;
                    self.version.take_if(|_| self.refused >= REFUSED);
                }
                return Err(Failure::Start(format!("{}: {}", status.code, log_safe(&status.message))));
            }
            Ok(Err(error)) => return Err(Failure::Start(causes(&error))),
            Err(_) => return Err(Failure::Start(format!("no answer within {} s", ANSWER.as_secs()))),
        };
        self.started();

        let mut events = pin!(events);
        let life = Duration::from_secs(seconds.into()) + SILENCE;
        loop {
            let Ok(event) = timeout(life, events.next()).await else {
                return Err(Failure::Broken("silent for longer than it should live".into()));
            };
            let Some(event) = event else { return Ok(()) };
            let event = event.map_err(|error| match error {
                kube::Error::ReadEvents(_) => Failure::Broken(causes(&error)),
                // kube takes a line that it cannot decode for a status of which every field is absent.
                _ => self.relist(Failure::NotUnderstood),
            })?;
            self.health.heard();
            let event = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => Event::Applied(object),
                WatchEvent::Deleted(object) => Event::Deleted(object),
                WatchEvent::Bookmark(bookmark) => {
                    self.version = Some(bookmark.metadata.resource_version);
                    continue;
                }
                WatchEvent::Error(status) if status.code == 410 => return Err(self.relist(Failure::Expired)),
                WatchEvent::Error(status) => return Err(Failure::Broken(log_safe(&status.message))),
            };
            let (Event::Applied(object) | Event::Deleted(object)) = &event else { continue };
            // What the object was before must not stay either: the list that follows goes without it.
            let Some(version) = object.resource_version() else {
                return Err(self.relist(Failure::NotUnderstood));
            };
            self.version = Some(version.to_owned());
            heard(event);
        }
    }

    /// A quorum read: a cache of the API server could show what has been revoked.
    async fn list<K: Object>(
        &mut self,
        heard: &mut (impl FnMut(Event<K>) + Send),
    ) -> Result<String, Failure> {
        let Source { path, fields, metadata_only } = self.source;
        let listed = list::some(self.client, path, fields, *metadata_only, ANSWER).await;
        let (objects, version) = listed.map_err(Failure::List)?;
        let version = version.filter(|version| !version.is_empty());
        let version = version.ok_or(Failure::NoVersion)?;
        self.version = Some(version.clone());
        self.health.heard();
        heard(Event::Listed(objects));
        Ok(version)
    }

    fn relist(&mut self, why: Failure) -> Failure {
        self.version = None;
        why
    }

    fn started(&mut self) {
        self.since = Some(Instant::now());
        self.refused = 0;
        if std::mem::take(&mut self.down) {
            let Source { path, fields, .. } = self.source;
            tracing::info!(watch.path = path, watch.fields = fields, "watch works again");
        }
    }

    /// A watch that breaks off is the API server's daily business, and not told; one that does not come back is,
    /// once: 30 watches that fail every few seconds would hide everything else.
    fn failed(&mut self, failure: &Failure) {
        self.failures += 1;
        let Source { path, fields, .. } = self.source;
        let error = causes(failure);
        if self.failures > 1 && !std::mem::replace(&mut self.down, true) {
            tracing::error!(
                watch.path = path,
                watch.fields = fields,
                error,
                "watch waits for the API server"
            );
        } else {
            tracing::debug!(watch.path = path, watch.fields = fields, error, "watch failed");
        }
    }
}

#[cfg(test)]
#[path = "watch/tests.rs"]
mod tests;

//! The dear steps, on a thread of their own: a walk over all processes (3 ms for 300), a namespace's sockets (3 ms).
//! Each link pays for its own from a token bucket, so that one pod cannot keep the thread busy.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::evidence::Doubt;
use super::super::pods::PodUid;
use super::ladder::{Call, Ladder, Way};

/// Jobs of one link: so many at once, then one per interval. A kept connection needs none, nor does a new one of a
/// routed pod whose process is known.
const BURST: u32 = 50;
const INTERVAL: Duration = Duration::from_millis(200);
/// Waiting jobs of all links; each is some milliseconds.
const QUEUE: usize = 64;
/// Several times the pods of a node: links come and go.
const MAX_LINKS: usize = 1024;

/// One caller whose pod is wanted.
pub(super) struct Job {
    pub(super) way: Way,
    pub(super) call: Call,
    /// A process that stood for this link before.
    pub(super) hint: Option<u32>,
    pub(super) answer: oneshot::Sender<Result<Found, Doubt>>,
}

/// The pod, and the process that stood for it.
pub(super) struct Found {
    pub(super) uid: PodUid,
    pub(super) pid: u32,
}

/// Starts the thread, which ends when nobody can send a job any more.
///
/// # Errors
/// The kernel's, if there is no further thread.
pub(super) fn start(ladder: Ladder) -> io::Result<SyncSender<Job>> {
    let (sender, jobs) = sync_channel(QUEUE);
    thread::Builder::new().name("attest".into()).spawn(move || run(ladder, &jobs))?;
    Ok(sender)
}

fn run(mut ladder: Ladder, jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        // One walk serves all that wait: it begins after each of them was sent.
        let jobs: Vec<Job> = std::iter::once(first).chain(jobs.try_iter()).collect();
        let mut waiting = Vec::new();
        for job in jobs {
            match by_hint(&mut ladder, &job) {
                Ok(None) => waiting.push(job),
                Ok(Some(found)) => drop(job.answer.send(Ok(found))),
                Err(doubt) => drop(job.answer.send(Err(doubt))),
            }
        }
        if waiting.is_empty() {
            continue;
        }
        let walked = ladder.walk(&waiting.iter().map(|job| job.way.namespace).collect());
        let walked = walked.map_err(Doubt::unreadable);
        for job in waiting {
            let found = walked.as_ref().map_err(Clone::clone).and_then(|walked| {
                let pid = Ladder::spokesman(&job.way, walked)?;
                let uid = ladder.testimony(pid, &job.way, job.call)?.ok_or(Doubt::NoPod)?;
                Ok(Found { uid, pid })
            });
            let _ = job.answer.send(found);
        }
    }
}

fn by_hint(ladder: &mut Ladder, job: &Job) -> Result<Option<Found>, Doubt> {
    let Some(pid) = job.hint else { return Ok(None) };
    let uid = ladder.testimony(pid, &job.way, job.call)?;
    Ok(uid.map(|uid| Found { uid, pid }))
}

/// What each link may still ask of the thread.
#[derive(Default)]
pub(super) struct Buckets(HashMap<u32, Bucket>);

struct Bucket {
    tokens: u32,
    /// Up to when tokens were handed out.
    filled: Instant,
}

impl Buckets {
    /// Takes one token of `link`, if there is one.
    pub(super) fn take(&mut self, link: u32, now: Instant) -> bool {
        if self.0.len() >= MAX_LINKS {
            self.0.retain(|_, bucket| {
                bucket.fill(now);
                bucket.tokens < BURST
            });
        }
        let bucket = self.0.entry(link).or_insert(Bucket { tokens: BURST, filled: now });
        bucket.fill(now);
        let taken = bucket.tokens.checked_sub(1);
        bucket.tokens = taken.unwrap_or(0);
        taken.is_some()
    }
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        let due = now.saturating_duration_since(self.filled).as_millis() / INTERVAL.as_millis();
        let due = u32::try_from(due).unwrap_or(u32::MAX).min(BURST);
        self.tokens = (self.tokens + due).min(BURST);
        // The rest of an interval counts for the next token, but a full bucket saves nothing.
        self.filled = if self.tokens == BURST { now } else { self.filled + INTERVAL * due };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_link_that_asks_too_often_waits_and_others_do_not() {
        let mut buckets = Buckets::default();
        let now = Instant::now();
        assert_eq!((0..100).filter(|_| buckets.take(1, now)).count(), BURST as usize);
        assert!(buckets.take(2, now));
        assert!(!buckets.take(1, now + INTERVAL / 2));
        assert!(buckets.take(1, now + INTERVAL));
        assert!(!buckets.take(1, now + INTERVAL));
        let later = now + 1000 * INTERVAL;
        assert_eq!(
            (0..100).filter(|_| buckets.take(1, later)).count(),
            BURST as usize,
            "no more than a burst"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn links_that_came_and_went_are_forgotten() {
        let mut buckets = Buckets::default();
        let mut now = Instant::now();
        for link in 0..10 * MAX_LINKS as u32 {
            now += INTERVAL;
            buckets.take(link, now);
        }
        assert!(buckets.0.len() <= MAX_LINKS, "{}", buckets.0.len());
    }
}

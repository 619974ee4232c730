//! The dear steps, on a thread of their own: a walk over all processes (3 ms for 300), a namespace's sockets (3 ms).
//! Each link pays for its own from a token bucket, so that one pod cannot keep the thread busy.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::evidence::{Doubt, Origin};
use super::super::pods::PodUid;
use super::ladder::{Call, Ladder, Walk, Way};
use super::witness::{Witness, Witnesses};

/// Jobs of one link: so many at once, since a bridged pod may start 200 processes that each ask, then one per interval.
/// A kept connection needs none, nor does a new one of a routed pod whose process is known.
const BURST: u32 = 250;
const INTERVAL: Duration = Duration::from_millis(50);
/// Waiting jobs of all links; each is a millisecond or less, or shares a walk with the others.
const QUEUE: usize = 512;
/// Several times the pods of a node: links come and go.
const MAX_LINKS: usize = 1024;

/// What is asked of the thread.
pub(super) enum Job {
    /// Whose a connection is.
    Caller(Caller),
    /// Whether those witnesses still stand of whom [`Witnesses::want`] said that it is time.
    Again,
}

/// One caller whose pod is wanted.
pub(super) struct Caller {
    pub(super) way: Way,
    pub(super) call: Call,
    pub(super) answer: oneshot::Sender<Result<PodUid, Doubt>>,
}

/// Starts the thread, which ends when nobody can send a job any more.
///
/// # Errors
/// The kernel's, if there is no further thread.
pub(super) fn start(ladder: Ladder, witnesses: Arc<Witnesses>) -> io::Result<SyncSender<Job>> {
    let (sender, jobs) = sync_channel(QUEUE);
    let mut helper = Helper { ladder, witnesses, waiting: Vec::new() };
    thread::Builder::new().name("attest".into()).spawn(move || while helper.round(&jobs).is_some() {})?;
    Ok(sender)
}

struct Helper {
    ladder: Ladder,
    witnesses: Arc<Witnesses>,
    waiting: Vec<Caller>,
}

impl Helper {
    /// Answers one caller of each link: a bridged pod that starts hundreds costs its neighbours no more than one. `None` when
    /// nobody waits, and nobody can come any more.
    fn round(&mut self, jobs: &Receiver<Job>) -> Option<()> {
        let mut again = false;
        while self.waiting.len() < QUEUE {
            let idle = self.waiting.is_empty() && !again;
            let job = if idle { Some(jobs.recv().ok()?) } else { jobs.try_recv().ok() };
            match job {
                Some(Job::Caller(caller)) => self.waiting.push(caller),
                Some(Job::Again) => again = true,
                None => break,
            }
        }
        // Whoever does not wait any more is not worth milliseconds of those who do.
        self.waiting.retain(|caller| !caller.answer.is_closed());
        let mut links = HashSet::new();
        // Where only the address tells, one walk is for all.
        let first = |caller: &mut Caller| caller.way.link().is_none_or(|link| links.insert(link));
        let callers = self.waiting.extract_if(.., first).collect();
        self.answer(callers, again);
        Some(())
    }

    /// One walk serves all: it begins after each of them was sent.
    fn answer(&mut self, callers: Vec<Caller>, again: bool) {
        let mut waiting = Vec::new();
        for caller in callers {
            match self.by_witness(&caller) {
                Ok(None) => waiting.push(caller),
                Ok(Some(uid)) => drop(caller.answer.send(Ok(uid))),
                Err(doubt) => drop(caller.answer.send(Err(doubt))),
            }
        }
        let known = if again { self.known() } else { Vec::new() };
        if known.is_empty() && waiting.is_empty() {
            return;
        }
        // All of them, if only the address tells.
        let wanted: Option<HashSet<i32>> = waiting.iter().map(|caller| caller.way.namespace()).collect();
        let wanted = wanted.map(|mut wanted| {
            wanted.extend(known.iter().map(|known| known.namespace));
            wanted
        });
        let begun = Instant::now();
        let walked = self.ladder.walk(wanted.as_ref()).map_err(Doubt::unreadable);
        for known in known {
            self.look_again(known, &walked, begun);
        }
        for caller in waiting.into_iter().filter(|caller| !caller.answer.is_closed()) {
            let found = self.by_walk(&caller, &walked, begun);
            let _ = caller.answer.send(found);
        }
    }

    fn by_witness(&mut self, Caller { way, call, .. }: &Caller) -> Result<Option<PodUid>, Doubt> {
        let Way::Cable(cable) = way else { return Ok(None) };
        let Some(witness) = self.witnesses.of(cable.link, Instant::now()) else { return Ok(None) };
        let stands = self.ladder.testimony(&witness, cable, *call)?;
        Ok(stands.then(|| witness.uid.clone()))
    }

    fn by_walk(
        &mut self,
        Caller { way, call, .. }: &Caller,
        walked: &Result<Walk, Doubt>,
        begun: Instant,
    ) -> Result<PodUid, Doubt> {
        let walked = walked.as_ref().map_err(Clone::clone)?;
        let cable = match way {
            Way::Cable(cable) => cable,
            Way::Handed(link) => return self.ladder.by_address(walked, *call, link),
        };
        let (pid, uid) = walked.spokesman(cable.namespace)?;
        let witness = Arc::new(self.ladder.witness(pid, uid)?.ok_or(Doubt::NoPod)?);
        if !self.ladder.testimony(&witness, cable, *call)? {
            return Err(Doubt::NoPod);
        }
        self.witnesses.keep(cable.link, witness, begun);
        Ok(uid.clone())
    }

    /// The witnesses that are to be looked at again: their links, and where those lead now.
    fn known(&mut self) -> Vec<Known> {
        let mut known = Vec::new();
        for (link, witness) in self.witnesses.wanted() {
            match self.ladder.peer(link) {
                Ok(Some(namespace)) => known.push(Known { link, namespace, witness }),
                _ => self.witnesses.forget(link),
            }
        }
        known
    }

    /// Keeps the witness whom the walk confirms. For any other the link's next connection has a walk of its own,
    /// which tells why.
    fn look_again(&mut self, known: Known, walked: &Result<Walk, Doubt>, begun: Instant) {
        let Known { link, namespace, witness } = known;
        let spokesman = walked.as_ref().ok().and_then(|walk| walk.spokesman(namespace).ok());
        let same = spokesman == Some((witness.pid, &witness.uid));
        if same && self.ladder.stands(&witness, link) == Ok(true) {
            self.witnesses.keep(link, witness, begun);
        } else {
            self.witnesses.forget(link);
        }
    }
}

struct Known {
    link: u32,
    namespace: i32,
    witness: Arc<Witness>,
}

/// What each link may still ask of the thread; where pods share one, each address.
#[derive(Default)]
pub(super) struct Buckets(HashMap<Origin, Bucket>);

struct Bucket {
    tokens: u32,
    /// Up to when tokens were handed out.
    filled: Instant,
}

impl Buckets {
    /// Takes one token of `origin`, if there is one.
    pub(super) fn take(&mut self, origin: Origin, now: Instant) -> bool {
        if self.0.len() >= MAX_LINKS {
            self.0.retain(|_, bucket| {
                bucket.fill(now);
                bucket.tokens < BURST
            });
        }
        let bucket = self.0.entry(origin).or_insert(Bucket { tokens: BURST, filled: now });
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
        assert_eq!((0..1000).filter(|_| buckets.take(Origin::Link(1), now)).count(), BURST as usize);
        assert!(buckets.take(Origin::Link(2), now));
        assert!(!buckets.take(Origin::Link(1), now + INTERVAL / 2));
        assert!(buckets.take(Origin::Link(1), now + INTERVAL));
        assert!(!buckets.take(Origin::Link(1), now + INTERVAL));
        let later = now + 1000 * INTERVAL;
        assert_eq!(
            (0..1000).filter(|_| buckets.take(Origin::Link(1), later)).count(),
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
            buckets.take(Origin::Link(link), now);
        }
        assert!(buckets.0.len() <= MAX_LINKS, "{}", buckets.0.len());
    }
}

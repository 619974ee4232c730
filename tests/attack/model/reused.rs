//! Addresses that go from pod to pod, ten thousand times.

use std::collections::VecDeque;
use std::fmt;

use rolecall::identity::pods::PodUid;

use super::{ACCOUNTS, ADDRESSES, MOMENT, Mode, Model, address_of, claims, in_time};

/// One node's addresses given to one pod after the other, each of which asks at once, on a new connection and on kept ones.
pub(crate) struct ReusedAddress {
    pub(crate) rounds: usize,
    pub(crate) seed: u64,
}

/// How it went.
pub(crate) struct Reused {
    asked: usize,
    unwatched: usize,
}

impl fmt::Display for Reused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} questions, {} of them before the watch showed who asks: 0 wrong, 0 refused",
            self.asked, self.unwatched
        )
    }
}

impl ReusedAddress {
    pub(crate) fn run(&self) -> Reused {
        in_time(self.seed, async {
            let mut model = Model::new(Mode::Kernel);
            let mut random = fastrand::Rng::with_seed(self.seed);
            let mut reused = Reused { asked: 0, unwatched: 0 };
            let mut ends = VecDeque::new();
            for _ in 0..self.rounds {
                let (account, address) = (random.u8(..ACCOUNTS), address_of(random.u8(..ADDRESSES)));
                let new = model.reuse(account, address, random.u8(..3));
                model.number();
                ends.push_back(new.clone());
                if random.u8(..4) == 0 {
                    model.show_pods(random.usize(..50));
                    model.number();
                }
                let unwatched = !model.now.watched.contains_key(&new);
                let others: Vec<PodUid> = model
                    .now
                    .etcd
                    .values()
                    .filter(|pod| claims(pod, address_of(0)))
                    .map(|pod| pod.uid.clone())
                    .collect();
                model.ask(&new, false, None);
                for other in others {
                    model.ask(&other, true, None);
                }
                while let Some(asked) = model.asked.join_next().await {
                    let asked = asked.unwrap();
                    let checked = model.check(&asked).and_then(|()| match &asked.answer {
                        Err(refusal) => Err(format!("{} was refused: {refusal}", asked.uid)),
                        Ok(_) => Ok(()),
                    });
                    checked.unwrap_or_else(|why| panic!("ROLECALL_SEED={}: {why}", self.seed));
                    reused.asked += 1;
                    reused.unwatched += usize::from(unwatched && asked.uid == new);
                }
                model.check_answered().unwrap();
                tokio::time::sleep(MOMENT).await;
                // Objects of the dead go in the end.
                if ends.len() > 20 {
                    let old: PodUid = ends.pop_front().unwrap();
                    if model.now.etcd.get(&old).is_some_and(|pod| !claims(pod, model.address(&old))) {
                        model.delete(&old);
                    }
                }
            }
            reused
        })
    }
}

//! What an answer may be, by the rules of the pages and not by the code that is tested.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use rolecall::fakes;
use rolecall::identity::pods::{Pod, PodUid};

use super::door::{Answer, Asked};
use super::event::ROLES;
use super::{Account, Hops, Model, State, arn};

/// The operator leaves `left` all but the last role, and `right` all.
fn allowed(namespace: &str, role: &str) -> bool {
    namespace == "right" || *role != arn(ROLES - 1)
}

impl Account {
    /// The way to the role with this name, as the annotations lead.
    fn way(&self, name: Option<u8>) -> Option<Hops> {
        let (first, second) = match name {
            None => self.default,
            Some(name) => {
                let (own, second) = self.named[usize::from(name)]?;
                // A second hop needs a first one, and takes the default role's where it has none of its own.
                (own.or(self.default.0.filter(|_| second.is_some())), second)
            }
        };
        let first = first?;
        Some(std::iter::once(first).chain(second.filter(|second| *second != first)).map(arn).collect())
    }
}

impl Model {
    /// THE PROPERTY.
    pub(super) fn check(&mut self, asked: Asked) -> Result<(), String> {
        let Asked { uid, name, from, to, at, answer } = asked;
        let fail = |why: String| Err(format!("{uid}, name {name:?}: {why}"));
        let states = &self.states[from - self.base..=to - self.base];
        let owner = &self.owners[&uid];
        let pods: Vec<&Pod> = states.iter().flat_map(|state| state.shown(&uid)).collect();
        // Its object, its ServiceAccount and its namespace are looked at one after the other.
        let mut ways = pods.iter().flat_map(|pod| {
            states
                .iter()
                .flat_map(move |account| states.iter().map(move |namespace| (*pod, account, namespace)))
        });
        let way = |(pod, account, namespace): &(&Pod, &State, &State)| {
            let (account, hops) = self.way(pod, name, account, namespace)?;
            Some((account.clone(), hops))
        };
        match answer {
            Answer::Refused(_) => Ok(()),
            Answer::Session(token) => {
                self.sessions.insert(uid, token);
                Ok(())
            }
            Answer::Role(role) => {
                let mut named = ways.filter_map(|way_| way(&way_)).map(|(_, hops)| hops);
                match named.any(|hops| hops.last().unwrap().ends_with(&format!("/{role}"))) {
                    true => Ok(()),
                    false => fail(format!("role {role} is said to be its own")),
                }
            }
            Answer::Keys(key, role) => {
                let last = self.world.sts.asked_for(&key);
                let first = last.signed_by.as_ref().map(|key| self.world.sts.asked_for(key));
                let calls: Vec<_> = first.iter().chain([&last]).collect();
                if role.is_some_and(|role| role != last.plan.role.as_str()) {
                    return fail(format!("another role is said than {}", last.plan.role));
                }
                let made: Hops = calls.iter().map(|call| call.plan.role.to_string()).collect();
                let oldest = calls.iter().map(|call| call.at_wall).min().unwrap();
                let right = ways.any(|each| {
                    way(&each).is_some_and(|(account, hops)| {
                        let whose = |call: &&fakes::Asked| {
                            call.plan.account == *owner
                                && *call.plan.account_uid == *format!("{owner}-{}", account.uid)
                                && call.plan.pod.as_ref().is_none_or(|pod| *pod == uid)
                                && call.plan.pod.is_some() == account.per_pod
                        };
                        hops == made
                            && calls.iter().all(whose)
                            && account.not_before.is_none_or(|moment| oldest >= moment)
                    })
                });
                if !right {
                    return fail(format!("keys by {made:?} of {}", last.plan.account));
                }
                let token = &calls[0].token;
                let mut own = self.owners.iter().filter(|(_, account)| *account == owner).map(|(pod, _)| pod);
                if !own.any(|pod| fakes::minted_for(pod) == *token) {
                    return fail("by another ServiceAccount's token".into());
                }
                if at - last.at > Duration::from_secs(3600) {
                    return fail(format!("keys of {:?} ago", at - last.at));
                }
                Ok(())
            }
        }
    }

    /// What the rules give `pod` under that name, where these are what is shown of its ServiceAccount and its namespace.
    pub(super) fn way<'a>(
        &self,
        pod: &Pod,
        name: Option<u8>,
        account: &'a State,
        namespace: &State,
    ) -> Option<(&'a Account, Hops)> {
        let account = account.accounts.get(&pod.service_account)?.as_ref()?;
        let hops = match self.by_pod {
            false => account.way(name)?,
            true => {
                let asked = pod.asked.as_ref()?.role.as_deref().filter(|_| name.is_none())?;
                let hops = match account.default {
                    (None, None) => vec![asked.to_owned()],
                    // Nothing to begin with.
                    (None, Some(_)) => return None,
                    _ => account.way(None)?,
                };
                let (expression, list) = namespace.namespaces.get(pod.namespace())?;
                let permitted = [expression, list]
                    .into_iter()
                    .flatten()
                    .all(|set| (0..ROLES).any(|role| set & 1 << role != 0 && arn(role) == asked));
                (permitted && hops.last().is_some_and(|last| last == asked)).then_some(hops)?
            }
        };
        hops.iter().all(|role| allowed(pod.namespace(), role)).then_some((account, hops))
    }
}

impl State {
    /// As what the agent may know the pod.
    fn shown(&self, uid: &PodUid) -> Vec<&Pod> {
        let unwatched = self.unwatched.get(uid).into_iter().flatten();
        let shown = [self.watched.get(uid), self.etcd.get(uid)].into_iter().flatten().chain(unwatched);
        shown.filter(|pod| !pod.finished).collect()
    }
}

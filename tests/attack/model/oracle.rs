//! THE PROPERTY: what every answer may be, worked out by the rules and not by the code that is tested.

use std::net::IpAddr;
use std::time::Duration;

use rolecall::fakes;
use rolecall::identity::pods::Pod;
use rolecall::role::{Defaults, RolePlan};

use super::{Asked, Mode, Model, State};

impl Model {
    /// Was this answer right for one of the states that the cluster was in while its question was open?
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(&self, asked: &Asked) -> Result<(), String> {
        let Ok(served) = &asked.answer else { return Ok(()) };
        let states = &self.states[asked.from - self.base..=asked.to - self.base];
        let fail = |why: String| Err(format!("{} under {}: {why}", asked.uid, asked.address));
        let document: serde_json::Value = serde_json::from_slice(&served.body).unwrap();
        let sts = self.world.sts.asked_for(&served.access_key_id);
        let account = &*sts.plan.account.name;
        if document["RoleArn"] != sts.plan.role.as_str() || document["AccessKeyId"] != *served.access_key_id {
            return fail(format!("the answer says {document}, and STS was asked for {:?}", sts.plan));
        }
        // Whose keys these may be: pods that the API shows for this caller.
        let mut pods = states.iter().flat_map(|state| self.shown(state, asked));
        if !pods.any(|pod| &*pod.service_account.name == account) {
            return fail(format!("keys of {account}, whose pod this is not"));
        }
        // For what that account asked at the time, and not revoked.
        let first = sts.signed_by.as_ref().map_or_else(|| sts.clone(), |key| self.world.sts.asked_for(key));
        let same = |plan: &RolePlan| {
            let fields = |plan: &RolePlan| {
                let RolePlan { account, account_uid, role, session_duration, policy_arns, .. } = plan.clone();
                (account, account_uid, role, session_duration, policy_arns)
            };
            // Each hop is what it was to be, and shown what it was to be shown.
            fields(plan) == fields(&sts.plan)
                && plan.before().map(|before| fields(before))
                    == sts.signed_by.as_ref().map(|_| fields(&first.plan))
                && !plan.revokes(sts.at_wall.min(first.at_wall), rolecall::time::now())
        };
        let mut plans = states.iter().filter_map(|state| plan(state, account));
        if !plans.any(|plan| same(&plan)) {
            return fail(format!("{account} did not ask for {:?}", sts.plan));
        }
        // By a token of a pod of its own.
        let mut own = self.accounts_of.iter().filter(|(_, name)| *name == account);
        if !own.any(|(uid, _)| fakes::minted_for(uid) == first.token) {
            return fail(format!("by a token of another account: {}", first.token));
        }
        if asked.at - sts.at > sts.plan.session_duration.min(Duration::from_secs(3600)) {
            return fail(format!("keys of {:?} ago", asked.at - sts.at));
        }
        Ok(())
    }

    /// The pods that the API shows, in this state, to be who asked.
    fn shown<'a>(&self, state: &'a State, asked: &Asked) -> Vec<&'a Pod> {
        // By the watch, or by a list that went before it; and by a list of now. Who is not in etcd any more claims nothing.
        let watched = state.watched.values().chain(state.unwatched.values().flatten()).collect::<Vec<_>>();
        /// By another than `pod`.
        fn claimed<'p>(mut pods: impl Iterator<Item = &'p Pod>, address: IpAddr, pod: &Pod) -> bool {
            pods.any(|other| other.uid != pod.uid && !other.host_network && claims(other, address))
        }
        let fits = |pod: &Pod| {
            let its = match self.mode {
                Mode::Kernel => pod.uid == asked.uid,
                Mode::Address => pod.addresses.contains(&asked.address) && (!asked.first || !pod.terminating),
            };
            its && !pod.finished && !pod.host_network
        };
        let still = |pod: &&Pod| self.mode == Mode::Address || state.etcd.contains_key(&pod.uid);
        let mut shown: Vec<&Pod> = watched
            .into_iter()
            .filter(|pod| fits(pod) && !claimed(state.watched.values().filter(still), asked.address, pod))
            .collect();
        // An address is believed only where the watch shows it.
        shown.retain(|pod| self.mode == Mode::Kernel || state.watched.contains_key(&pod.uid));
        if self.mode == Mode::Kernel {
            let etcd = state.etcd.values();
            shown.extend(etcd.filter(|pod| fits(pod) && !claimed(state.etcd.values(), asked.address, pod)));
        }
        shown
    }
}

/// By the rule itself, and not by the code that is tested: a finished pod keeps its address, and one that is going has given it up.
pub(super) fn claims(pod: &Pod, address: IpAddr) -> bool {
    !pod.finished && !pod.terminating && pod.addresses.contains(&address)
}

/// What ServiceAccount `name` asks for, as its watch shows it.
pub(super) fn plan(state: &State, name: &str) -> Option<RolePlan> {
    let (uid, annotations) = state.accounts.get(name)?.as_ref()?;
    RolePlan::from_annotations(&fakes::account(name), uid, annotations, &Defaults::of_node("node-1")).ok()
}

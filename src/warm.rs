//! Plans follow pods: the first fetch starts when a pod that will ask is bound to the node, and a plan whose last pod has left
//! is dropped. Roles that have a name are fetched when they are asked for, and kept as the default one is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::cache::Cache;
use crate::identity::pods::{PodUid, Pods};
use crate::role::{PlanKey, RolePlan};
use crate::service_accounts::ServiceAccounts;

/// Without any event: sweeps up a plan that a request used while it was being replaced.
const SWEEP: Duration = Duration::from_secs(60);

/// Whose first fetch starts before it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// Pods that show our variable, and those whose plan was asked for before.
    Showing,
    /// All that have a role: any of them may ask instance metadata, whose callers wait least.
    All,
}

/// Follows `pods` and `accounts` for ever; every change of either is looked at once.
pub async fn follow(pods: Arc<Pods>, accounts: Arc<ServiceAccounts>, cache: Arc<Cache>, ahead: Ahead) {
    let (mut pod_changes, mut account_changes) = (pods.changes(), accounts.changes());
    let mut known = HashSet::new();
    loop {
        pod_changes.mark_unchanged();
        account_changes.mark_unchanged();
        known = reconcile(&pods, &accounts, &cache, &known, ahead);
        let change = async {
            tokio::select! {
                changed = pod_changes.changed() => changed.is_ok(),
                changed = account_changes.changed() => changed.is_ok(),
            }
        };
        if timeout(SWEEP, change).await == Ok(false) {
            return; // Both sides are gone: the agent is shutting down.
        }
    }
}

/// Brings the cache in line with the node; returns the pods whose plans are settled.
fn reconcile(
    pods: &Pods,
    accounts: &ServiceAccounts,
    cache: &Arc<Cache>,
    known: &HashSet<PodUid>,
    ahead: Ahead,
) -> HashSet<PodUid> {
    let mut in_use: HashMap<PlanKey, Arc<RolePlan>> = HashMap::new();
    let mut asking = HashMap::new();
    let mut settled = HashSet::new();
    for pod in pods.all().into_iter().filter(|pod| pod.live()) {
        let Some(roles) = accounts.roles_of(&pod) else { continue };
        for plan in roles.plans() {
            let plan = plan.for_pod(&pod);
            if !known.contains(&pod.uid) {
                cache.new_pod(&plan);
            }
            in_use.insert(plan.key(), plan);
            settled.insert(pod.uid.clone());
        }
        // From the host network nobody reaches us there.
        let asks = pod.asks || (ahead == Ahead::All && !pod.host_network);
        if let (true, Ok(plan)) = (asks, &roles.default) {
            let plan = plan.for_pod(&pod);
            asking.insert(plan.key(), plan);
        }
    }
    cache.retain(in_use.values());
    accounts.retain_pods(|uid| pods.by_uid(uid).is_some());
    for plan in asking.values().filter(|plan| !cache.knows(&plan.key())) {
        cache.prefetch(plan);
    }
    settled
}

#[cfg(test)]
#[path = "warm/tests.rs"]
mod tests;

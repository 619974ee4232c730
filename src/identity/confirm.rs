//! Quorum lists of this node's pods, for questions that the watch cannot settle.
//!
//! With `--identity=ip` they confirm what the watch shows under an address, before anything is issued for it: pods that
//! show our variable as soon as the watch shows their address, so that their first question need not wait for it; all
//! others when they ask. With `--identity=kernel` they bring the pods that the watch does not show yet.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::pods::{Pod, PodUid, Pods};
use super::{Claim, judge};
use crate::cluster::{Cluster, Error};

/// At most two lists a second: a node's whole load on the API server for this. Who has just missed one is held for
/// longer than that, and gets the next.
const PAUSE: Duration = Duration::from_millis(500);
/// Several times the pods of a node: with IPv6 every pod that ever was has an address of its own.
const MAX_CONFIRMED: usize = 2048;

/// A list that has ended.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    /// When it was asked for. What happened before is in it.
    pub(super) begun: Instant,
    /// What it brought, or why it brought nothing.
    pub(super) found: Result<Arc<Found>, Error>,
}

/// This node's pods as etcd had them.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) pods: Vec<Arc<Pod>>,
    /// The pod under each address, where there is exactly one that may ask.
    pub(super) alone: HashMap<IpAddr, PodUid>,
}

/// Confirmed addresses, and the one list in flight.
pub(super) struct Confirmations {
    confirmed: Arc<Confirmed>,
    wanted: Arc<Notify>,
    listed: watch::Receiver<Option<Listed>>,
    lister: AbortHandle,
}

impl Confirmations {
    /// Starts the task that lists, which runs as long as this lives; for callers known `by_address`, or by the kernel.
    pub(super) fn start(pods: Arc<Pods>, cluster: Arc<dyn Cluster>, by_address: bool) -> Self {
        let (sender, listed) = watch::channel(None);
        let (confirmed, wanted) = (Arc::<Confirmed>::default(), Arc::<Notify>::default());
        let lister = Lister { pods, cluster, by_address, confirmed: Arc::clone(&confirmed), listed: sender };
        let lister = tokio::spawn(lister.run(Arc::clone(&wanted))).abort_handle();
        Self { confirmed, wanted, listed, lister }
    }

    /// Was this address confirmed for this very pod? Another pod under it has another UID.
    pub(super) fn holds(&self, address: IpAddr, uid: &PodUid) -> bool {
        self.confirmed.holds(address, uid)
    }

    /// Takes `uid` as confirmed: a list that is young enough for the caller shows it alone under `address`.
    pub(super) fn confirm(&self, address: IpAddr, uid: &PodUid) {
        self.confirmed.insert(address, uid.clone());
    }

    /// How many addresses are confirmed.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.confirmed.0.len()
    }

    /// Asks for a list; `lists` tells when one has ended.
    pub(super) fn want(&self) {
        self.wanted.notify_one();
    }

    /// The last list that ended, and those to come.
    pub(super) fn lists(&self) -> watch::Receiver<Option<Listed>> {
        self.listed.clone()
    }
}

impl Drop for Confirmations {
    fn drop(&mut self) {
        self.lister.abort();
    }
}

#[derive(Default)]
struct Confirmed(DashMap<IpAddr, PodUid>);

impl Confirmed {
    fn holds(&self, address: IpAddr, uid: &PodUid) -> bool {
        self.0.get(&address).is_some_and(|confirmed| *confirmed == *uid)
    }

    fn insert(&self, address: IpAddr, uid: PodUid) {
        // Forgetting all of them costs one list each, so the bound is simple.
        if self.0.len() >= MAX_CONFIRMED {
            self.0.clear();
        }
        self.0.insert(address, uid);
    }
}

struct Lister {
    pods: Arc<Pods>,
    cluster: Arc<dyn Cluster>,
    by_address: bool,
    confirmed: Arc<Confirmed>,
    listed: watch::Sender<Option<Listed>>,
}

impl Lister {
    async fn run(self, wanted: Arc<Notify>) {
        let mut changes = self.pods.changes();
        loop {
            changes.mark_unchanged();
            if !self.expected() {
                tokio::select! {
                    () = wanted.notified() => {}
                    _ = changes.changed() => continue,
                }
            }
            let begun = Instant::now();
            // What follows a caller that the kernel vouches for (ServiceAccount, plan, token) starts from known pods.
            let listing = (!self.by_address).then(|| self.pods.begin_list());
            let found = self.cluster.pods_now().await.map(|now| Arc::new(Found::new(now)));
            match (&found, listing) {
                (Ok(found), Some(listing)) => listing.learn(&found.pods),
                (Ok(found), None) => self.confirm(&found.alone),
                (Err(_), _) => {}
            }
            let failed = found.is_err();
            self.listed.send_replace(Some(Listed { begun, found }));
            sleep_until(begun + PAUSE).await;
            // What this list did not confirm waits for the watch to change, or for somebody to ask: no polling.
            if failed || self.expected() {
                tokio::select! {
                    () = wanted.notified() => wanted.notify_one(),
                    _ = changes.changed() => {}
                }
            }
        }
    }

    /// Is there a pod that will ask, and that the watch shows alone under an address not confirmed for it?
    fn expected(&self) -> bool {
        if !self.by_address {
            return false;
        }
        let asking = self.pods.all().into_iter().filter(|pod| pod.asks && !pod.host_network);
        asking.flat_map(|pod| pod.addresses.clone()).any(|address| self.unconfirmed(address).is_some())
    }

    fn unconfirmed(&self, address: IpAddr) -> Option<PodUid> {
        match judge(self.pods.claimants(address).iter()) {
            Claim::One(pod) if !self.confirmed.holds(address, &pod.uid) => Some(pod.uid.clone()),
            _ => None,
        }
    }

    /// Takes over every address under which the watch and the list see the same single pod.
    fn confirm(&self, alone: &HashMap<IpAddr, PodUid>) {
        for (address, uid) in alone {
            if self.unconfirmed(*address).is_some_and(|seen| seen == *uid) {
                self.confirmed.insert(*address, uid.clone());
            }
        }
    }
}

impl Found {
    fn new(pods: Vec<Pod>) -> Self {
        let pods: Vec<Arc<Pod>> = pods.into_iter().map(Arc::new).collect();
        let mut claimants: HashMap<IpAddr, Vec<Arc<Pod>>> = HashMap::new();
        for pod in &pods {
            for address in &pod.addresses {
                claimants.entry(*address).or_default().push(Arc::clone(pod));
            }
        }
        let alone = claimants.into_iter().filter_map(|(address, claimants)| match judge(claimants.iter()) {
            Claim::One(pod) => Some((address, pod.uid.clone())),
            _ => None,
        });
        Self { alone: alone.collect(), pods }
    }
}

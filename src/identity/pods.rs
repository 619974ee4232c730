//! This node's pods by UID and by address: plain data with `apply`, `delete` and `reset`.
//!
//! Several pods may stand under one address: finished pods keep theirs for as long as they exist, and a
//! terminating pod's address is given out again before its object goes (measured on a real cluster). The
//! index therefore holds every claim; [`crate::identity`] decides which of them may be believed.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use dashmap::DashMap;
use tokio::sync::watch;

use crate::role::pod_annotation::Asked;

/// `metadata.uid` of a pod: never given out twice, unlike its name and its address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// The UID as the API server wrote it.
    pub fn new(uid: impl Into<Arc<str>>) -> Self {
        Self(uid.into())
    }

    /// The UID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A ServiceAccount by namespace and name; its UID is known only to the watch of the object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceAccountName {
    /// `metadata.namespace`
    pub namespace: Arc<str>,
    /// `metadata.name`
    pub name: Arc<str>,
}

impl fmt::Display for ServiceAccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is used of a pod object; the rest is never decoded (88 KiB a pod if it were kept).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`
    pub uid: PodUid,
    /// `metadata.name`
    pub name: Arc<str>,
    /// `metadata.namespace` and `spec.serviceAccountName` (the API server fills in `default`).
    pub service_account: ServiceAccountName,
    /// `status.podIPs`, IPv4-mapped forms unwrapped.
    pub addresses: Vec<IpAddr>,
    /// `spec.hostNetwork`: its address is the node's, so the address says nothing about the pod.
    pub host_network: bool,
    /// `status.phase` is `Succeeded` or `Failed`. `Pending` is no filter: init containers ask then.
    pub finished: bool,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// A container's `env` names one of our variables, so the pod will ask.
    pub asks: bool,
    /// One of those containers has IRSA's variable, too, which SDKs prefer.
    pub prefers_web_identity: bool,
    /// kube2iam's and kiam's annotations; whoever makes pods writes them.
    pub asked: Option<Arc<Asked>>,
}

impl Pod {
    /// `metadata.namespace`
    pub fn namespace(&self) -> &str {
        &self.service_account.namespace
    }

    /// May this pod be given credentials at all? Finished pods run nothing that could ask.
    pub fn live(&self) -> bool {
        !self.finished
    }

    /// Has this pod a voice in whose `address` is? A finished one keeps its address, and one that is being deleted
    /// has given it up.
    pub fn claims(&self, address: IpAddr) -> bool {
        self.live() && !self.terminating && self.addresses.contains(&address)
    }
}

/// The index. Writes come from the watch, and from lists that are ahead of it; readers wait for neither.
#[derive(Debug)]
pub struct Pods {
    by_uid: DashMap<PodUid, Arc<Pod>>,
    by_address: DashMap<IpAddr, Vec<Arc<Pod>>>,
    /// Held by whoever writes. While a list is under way: what was forgotten since it began.
    forgotten: Mutex<Option<Forgotten>>,
    /// Counts changes; waiters are woken by it, so nobody polls.
    generation: watch::Sender<u64>,
    synced: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Forgotten {
    pods: HashSet<PodUid>,
    /// The watch began anew, so any pod may have been.
    all: bool,
}

/// A list of this node's pods that is under way.
#[derive(Debug)]
pub struct Listing<'p> {
    pods: &'p Pods,
    /// The pods that were known when it began.
    known: HashSet<PodUid>,
}

impl Default for Pods {
    fn default() -> Self {
        Self {
            by_uid: DashMap::new(),
            by_address: DashMap::new(),
            forgotten: Mutex::default(),
            generation: watch::Sender::new(0),
            synced: watch::Sender::new(false),
        }
    }
}

impl Pods {
    /// Takes a pod as the API server shows it now.
    pub fn apply(&self, pod: Pod) {
        let _writing = self.write();
        if self.insert(pod) {
            self.changed();
        }
    }

    /// Forgets a pod that the API server no longer has.
    pub fn delete(&self, uid: &PodUid) {
        let mut forgotten = self.write();
        if let Some(forgotten) = &mut *forgotten {
            forgotten.pods.insert(uid.clone());
        }
        if self.remove(uid) {
            self.changed();
        }
    }

    /// Begins a quorum list of this node's pods. One at a time.
    pub fn begin_list(&self) -> Listing<'_> {
        *self.write() = Some(Forgotten::default());
        Listing { pods: self, known: self.by_uid.iter().map(|entry| entry.key().clone()).collect() }
    }

    /// Takes a whole list: what it lacks is gone. A relist that only added would leave ghosts, and a ghost's
    /// address would hand its role to the next pod.
    pub fn reset(&self, pods: Vec<Pod>) {
        let mut forgotten = self.write();
        if let Some(forgotten) = &mut *forgotten {
            forgotten.all = true;
        }
        let listed: HashSet<PodUid> = pods.iter().map(|pod| pod.uid.clone()).collect();
        let gone: Vec<PodUid> = self
            .by_uid
            .iter()
            .filter(|entry| !listed.contains(entry.key()))
            .map(|entry| entry.key().clone())
            .collect();
        for uid in gone {
            self.remove(&uid);
        }
        for pod in pods {
            self.insert(pod);
        }
        self.synced.send_replace(true);
        self.changed();
    }

    /// The pod with this UID, if it is on this node.
    pub fn by_uid(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.by_uid.get(uid).map(|entry| Arc::clone(&entry))
    }

    /// Every pod that claims `address`, finished and terminating ones included.
    pub fn claimants(&self, address: IpAddr) -> Vec<Arc<Pod>> {
        self.by_address.get(&address).map(|entry| entry.clone()).unwrap_or_default()
    }

    /// What `uid` has under `address` now, and how many other live pods claim it that are not being deleted.
    pub fn claim(&self, address: IpAddr, uid: &PodUid) -> (Option<Arc<Pod>>, usize) {
        let Some(claimants) = self.by_address.get(&address) else { return (None, 0) };
        let mine = claimants.iter().find(|pod| pod.uid == *uid).map(Arc::clone);
        let others = claimants.iter().filter(|pod| pod.uid != *uid && pod.claims(address)).count();
        (mine, others)
    }

    /// All pods, in no order.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.by_uid.iter().map(|entry| Arc::clone(&entry)).collect()
    }

    /// Pods on this node, finished ones included (`rolecall_pods`).
    pub fn len(&self) -> usize {
        self.by_uid.len()
    }

    /// No pod is known.
    pub fn is_empty(&self) -> bool {
        self.by_uid.is_empty()
    }

    /// Resolves at every change after this call.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Has the first list arrived? Before it, an unknown address means nothing.
    pub fn synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Resolves when the first list has arrived.
    pub async fn wait_synced(&self) {
        // The sender lives in `self`, so the channel cannot close while we wait.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    fn write(&self) -> MutexGuard<'_, Option<Forgotten>> {
        self.forgotten.lock().expect("nothing panics while it holds this lock")
    }

    fn remove(&self, uid: &PodUid) -> bool {
        let Some((_, pod)) = self.by_uid.remove(uid) else { return false };
        self.unindex(&pod);
        true
    }

    fn insert(&self, pod: Pod) -> bool {
        if self.by_uid.get(&pod.uid).is_some_and(|old| **old == pod) {
            return false; // A watch repeats itself; waiters need not wake for that.
        }
        let pod = Arc::new(pod);
        if let Some(old) = self.by_uid.insert(pod.uid.clone(), Arc::clone(&pod)) {
            self.unindex(&old);
        }
        for address in &pod.addresses {
            self.by_address.entry(*address).or_default().push(Arc::clone(&pod));
        }
        true
    }

    fn unindex(&self, pod: &Pod) {
        for address in &pod.addresses {
            if let Some(mut claimants) = self.by_address.get_mut(address) {
                claimants.retain(|other| other.uid != pod.uid);
            }
            self.by_address.remove_if(address, |_, claimants| claimants.is_empty());
        }
    }

    fn changed(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}

impl Listing<'_> {
    /// Takes from the list what the watch can only confirm, however far behind or ahead it is: pods that it has never
    /// shown, and that those which the list lacks are gone. A UID is never given out twice, and a quorum read is no
    /// older than what was known when it began. Of a pod that both show, only the watch can tell which state is newer.
    pub fn learn(self, listed: &[Arc<Pod>]) {
        let Self { pods, known } = &self;
        let mut changed = false;
        let writing = pods.write();
        match &*writing {
            // A pod that is new to us may be one that the watch, begun anew, knows to be gone.
            Some(forgotten) if !forgotten.all => {
                let there: HashSet<&PodUid> = listed.iter().map(|pod| &pod.uid).collect();
                for uid in known.iter().filter(|uid| !there.contains(uid)) {
                    changed |= pods.remove(uid);
                }
                for pod in listed {
                    if !forgotten.pods.contains(&pod.uid) && !pods.by_uid.contains_key(&pod.uid) {
                        changed |= pods.insert((**pod).clone());
                    }
                }
            }
            _ => {}
        }
        if changed {
            pods.changed();
        }
    }
}

impl Drop for Listing<'_> {
    fn drop(&mut self) {
        *self.pods.write() = None;
    }
}

/// `::ffff:10.0.0.7` and `10.0.0.7` are one address: a dual-stack socket shows the first, the kube API the second.
pub fn unmapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
#[path = "pods/tests.rs"]
mod tests;

//! Confirms with a quorum list what the watch shows under an address, before anything is issued for it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::pods::{Pod, PodUid};
use crate::cluster::{Cluster, Error};

/// At most one list a second: a node's whole load on the API server for this.
const PAUSE: Duration = Duration::from_secs(1);
/// Several times the pods of a node: with IPv6 every pod that ever was has an address of its own.
const MAX_CONFIRMED: usize = 2048;

struct Listed {
    begun: Instant,
    pods: Result<Arc<Vec<Arc<Pod>>>, Error>,
}

/// Confirmed addresses, and the one list in flight.
pub(super) struct Confirmations {
    confirmed: DashMap<IpAddr, PodUid>,
    wanted: Arc<Notify>,
    listed: watch::Receiver<Option<Arc<Listed>>>,
    lister: AbortHandle,
}

impl Confirmations {
    /// Starts the task that lists, which runs as long as this lives.
    pub(super) fn start(cluster: Arc<dyn Cluster>) -> Self {
        let (sender, listed) = watch::channel(None);
        let wanted = Arc::new(Notify::new());
        let lister = tokio::spawn(list(cluster, Arc::clone(&wanted), sender)).abort_handle();
        Self { confirmed: DashMap::new(), wanted, listed, lister }
    }

    /// Was this address confirmed for this very pod? Another pod under it has another UID.
    pub(super) fn holds(&self, address: IpAddr, uid: &PodUid) -> bool {
        self.confirmed.get(&address).is_some_and(|confirmed| *confirmed == *uid)
    }

    /// Remembers a confirmation. Forgetting all of them costs one list each, so the bound is simple.
    pub(super) fn confirm(&self, address: IpAddr, uid: PodUid) {
        if self.confirmed.len() >= MAX_CONFIRMED {
            self.confirmed.clear();
        }
        self.confirmed.insert(address, uid);
    }

    /// This node's pods, from a list that began after `accepted`.
    pub(super) async fn list_since(
        &self,
        accepted: Instant,
        deadline: Instant,
    ) -> Result<Arc<Vec<Arc<Pod>>>, Error> {
        let mut listed = self.listed.clone();
        loop {
            let newest = listed.borrow_and_update().clone();
            if let Some(Listed { pods: Ok(pods), .. }) = newest.as_deref().filter(|list| list.begun >= accepted) {
                return Ok(Arc::clone(pods));
            }
            self.wanted.notify_one();
            if timeout_at(deadline, listed.changed()).await.is_err() {
                let failed = newest.and_then(|list| list.pods.as_ref().err().cloned());
                return Err(failed.unwrap_or_else(|| Error::Away("no list of this node's pods in time".into())));
            }
        }
    }
}

impl Drop for Confirmations {
    fn drop(&mut self) {
        self.lister.abort();
    }
}

async fn list(cluster: Arc<dyn Cluster>, wanted: Arc<Notify>, listed: watch::Sender<Option<Arc<Listed>>>) {
    loop {
        wanted.notified().await;
        let begun = Instant::now();
        let pods = cluster.pods_now().await.map(|pods| Arc::new(pods.into_iter().map(Arc::new).collect()));
        listed.send_replace(Some(Arc::new(Listed { begun, pods })));
        sleep_until(begun + PAUSE).await;
    }
}

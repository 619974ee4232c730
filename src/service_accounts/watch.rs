//! One metadata watch per ServiceAccount in use on this node, as kubelet watches Secrets: what an agent holds
//! grows with its node, not with the cluster, and it never reads a ServiceAccount that it does not serve.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::FuturesUnordered;

use crate::cluster::slim::SlimAccount;
use crate::cluster::watch::{self, Event, Source, WatchHealth};
use crate::identity::pods::{Pods, ServiceAccountName};
use crate::service_accounts::ServiceAccounts;

/// Keeps `accounts` as the API server has the ServiceAccounts of this node's live pods, for ever. A watch starts
/// with the first pod of its ServiceAccount and ends with the last.
///
/// Pods on the host network count, too: which of them has a token to show, their objects do not say.
pub async fn follow(
    client: kube::Client,
    pods: Arc<Pods>,
    accounts: Arc<ServiceAccounts>,
    health: Arc<WatchHealth>,
) -> Infallible {
    let mut changes = pods.changes();
    // All in this one task: once aborted, a watch is not polled again, so it says nothing after `forget`.
    let mut running = FuturesUnordered::new();
    let mut watches: HashMap<ServiceAccountName, AbortHandle> = HashMap::new();
    loop {
        let wanted = in_use(&pods);
        watches.retain(|account, watch| {
            let stays = wanted.contains(account);
            if !stays {
                watch.abort();
                accounts.forget(account);
            }
            stays
        });
        for account in wanted {
            watches.entry(account).or_insert_with_key(|account| {
                let (handle, registration) = AbortHandle::new_pair();
                let watch = follow_one(&client, account.clone(), &accounts, &health);
                running.push(Abortable::new(watch, registration));
                handle
            });
        }
        tokio::select! {
            // The sender lives in `pods`, which is ours.
            _ = changes.changed() => {}
            // Nothing ends but what was aborted.
            Some(_) = running.next() => {}
        }
    }
}

fn in_use(pods: &Pods) -> HashSet<ServiceAccountName> {
    pods.all().iter().filter(|pod| pod.live()).map(|pod| pod.service_account.clone()).collect()
}

async fn follow_one(
    client: &kube::Client,
    account: ServiceAccountName,
    accounts: &ServiceAccounts,
    health: &WatchHealth,
) -> Infallible {
    let source = Source {
        path: format!("/api/v1/namespaces/{}/serviceaccounts", account.namespace),
        fields: format!("metadata.name={}", account.name),
        metadata_only: true,
    };
    let apply = |object: SlimAccount| {
        let uid = object.uid().to_owned();
        accounts.apply(&account, &uid, &object.annotations());
    };
    watch::follow(client, &source, health, |event| match event {
        Event::Listed(mut list) => match list.pop() {
            Some(object) => apply(object),
            None => accounts.absent(&account),
        },
        Event::Applied(object) => apply(object),
        Event::Deleted(_) => accounts.absent(&account),
    })
    .await
}

//! One metadata watch per ServiceAccount in use on this node, as kubelet watches Secrets: what an agent holds
//! grows with its node, not with the cluster, and it never reads a ServiceAccount that it does not serve. With
//! `--role-source=pod-annotation` the same for the namespaces.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::hash::Hash;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::FuturesUnordered;

use crate::cluster::slim::SlimObject;
use crate::cluster::watch::{self, Event, Source, WatchHealth};
use crate::identity::pods::{Pod, Pods, ServiceAccountName};
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
    let of_pod = |pod: &Pod| asks(pod, &accounts).then(|| pod.service_account.clone());
    let start = |account| follow_account(&client, account, &accounts, &health);
    follow_each(&pods, of_pod, start, |account| accounts.forget(account)).await
}

/// The same for the namespaces of those pods.
pub async fn follow_namespaces(
    client: kube::Client,
    pods: Arc<Pods>,
    accounts: Arc<ServiceAccounts>,
    health: Arc<WatchHealth>,
) -> Infallible {
    let of_pod = |pod: &Pod| asks(pod, &accounts).then(|| Arc::clone(&pod.service_account.namespace));
    let start = |namespace| follow_namespace(&client, namespace, &accounts, &health);
    follow_each(&pods, of_pod, start, |namespace| accounts.forget_namespace(namespace)).await
}

/// May what we watch give this pod a role? Where its own annotations must name one, only then.
fn asks(pod: &Pod, accounts: &ServiceAccounts) -> bool {
    accounts.by_service_account() || pod.asked.as_ref().is_some_and(|asked| asked.role.is_some())
}

/// A watch for each thing that live pods use, from the first pod to the last.
async fn follow_each<N: Clone + Eq + Hash, W: Future<Output = Infallible>>(
    pods: &Pods,
    of_pod: impl Fn(&Pod) -> Option<N>,
    start: impl Fn(N) -> W,
    forget: impl Fn(&N),
) -> Infallible {
    let mut changes = pods.changes();
    // All in this one task: once aborted, a watch is not polled again, so it says nothing after `forget`.
    let mut running = FuturesUnordered::new();
    let mut watches: HashMap<N, AbortHandle> = HashMap::new();
    loop {
        let wanted: HashSet<N> =
            pods.all().iter().filter(|pod| pod.live()).filter_map(|pod| of_pod(pod)).collect();
        watches.retain(|name, watch| {
            let stays = wanted.contains(name);
            if !stays {
                watch.abort();
                forget(name);
            }
            stays
        });
        for name in wanted {
            watches.entry(name).or_insert_with_key(|name| {
                let (handle, registration) = AbortHandle::new_pair();
                running.push(Abortable::new(start(name.clone()), registration));
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

async fn follow_account(
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
    let apply = |object: SlimObject| {
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

async fn follow_namespace(
    client: &kube::Client,
    namespace: Arc<str>,
    accounts: &ServiceAccounts,
    health: &WatchHealth,
) -> Infallible {
    let source = Source {
        path: "/api/v1/namespaces".into(),
        fields: format!("metadata.name={namespace}"),
        metadata_only: true,
    };
    let apply = |object: SlimObject| accounts.apply_namespace(&namespace, &object.annotations());
    watch::follow(client, &source, health, |event| match event {
        Event::Listed(mut list) => match list.pop() {
            Some(object) => apply(object),
            None => accounts.forget_namespace(&namespace),
        },
        Event::Applied(object) => apply(object),
        Event::Deleted(_) => accounts.forget_namespace(&namespace),
    })
    .await
}

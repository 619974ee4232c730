//! The watch of this node's pods that feeds [`Pods`].

use std::convert::Infallible;
use std::sync::Arc;

use crate::cluster::slim::SlimPod;
use crate::cluster::watch::{self, Event, Source, WatchHealth};
use crate::identity::pods::{Pod, Pods};

/// Keeps `pods` as the API server has this node's pods, for ever; [`Pods::synced`] after the first list.
pub async fn follow(
    client: kube::Client,
    node: &str,
    pods: Arc<Pods>,
    health: Arc<WatchHealth>,
) -> Infallible {
    let source =
        Source { path: "/api/v1/pods".into(), fields: format!("spec.nodeName={node}"), metadata_only: false };
    watch::follow(&client, &source, &health, |event| match event {
        Event::Listed(list) => {
            let list: Vec<Pod> = list.into_iter().filter_map(SlimPod::understood).collect();
            for pod in &list {
                tell_once(&pods, pod);
            }
            pods.reset(list);
        }
        Event::Applied(pod) => {
            if let Some(pod) = pod.understood() {
                tell_once(&pods, &pod);
                pods.apply(pod);
            }
        }
        // By UID: the name may belong to the next pod already.
        Event::Deleted(pod) => {
            if let Some(pod) = pod.understood() {
                pods.delete(&pod.uid);
            }
        }
    })
    .await
}

/// Nothing is wrong with such a pod, which is on its way from IRSA or back. But whoever looks for its keys looks here.
fn tell_once(pods: &Pods, pod: &Pod) {
    if pod.prefers_web_identity && pod.live() && pods.by_uid(&pod.uid).is_none() {
        tracing::info!(
            pod.namespace = pod.namespace(), pod.name = &*pod.name, service_account = %pod.service_account,
            "the pod has IRSA's variables beside ours: SDKs prefer them, and do not ask here"
        );
    }
}

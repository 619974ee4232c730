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
            pods.reset(list.into_iter().filter_map(SlimPod::understood).collect::<Vec<Pod>>());
        }
        Event::Applied(pod) => {
            if let Some(pod) = pod.understood() {
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

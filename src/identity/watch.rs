//! The watch of this node's pods that feeds [`Pods`].

use std::convert::Infallible;
use std::sync::Arc;

use crate::cluster::slim::SlimPod;
use crate::cluster::watch::{self, Event, Source, WatchHealth};
use crate::identity::pods::{Pod, Pods};

/// Keeps `pods` as the API server has this node's pods, for ever; [`Pods::synced`] after the first list. `imds`: instance metadata is
/// served here, so pods need no variable of ours.
pub async fn follow(
    client: kube::Client,
    node: &str,
    pods: Arc<Pods>,
    health: Arc<WatchHealth>,
    imds: bool,
) -> Infallible {
    let source =
        Source { path: "/api/v1/pods".into(), fields: format!("spec.nodeName={node}"), metadata_only: false };
    watch::follow(&client, &source, &health, |event| match event {
        Event::Listed(list) => {
            let read = |pod| understood(&pods, pod, imds);
            let list: Vec<Pod> = list.into_iter().filter_map(read).collect();
            pods.reset(list);
        }
        Event::Applied(pod) => {
            if let Some(pod) = understood(&pods, pod, imds) {
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

fn understood(pods: &Pods, pod: SlimPod, imds: bool) -> Option<Pod> {
    let web_identity = pod.has_web_identity();
    let pod = pod.understood()?;
    // Nothing is wrong with such a pod, which is on its way from IRSA or back. But whoever looks for its keys looks here.
    if let Some(remark) = remark(&pod, web_identity, imds).filter(|_| pods.by_uid(&pod.uid).is_none()) {
        tracing::info!(
            pod.namespace = pod.namespace(), pod.name = &*pod.name, service_account = %pod.service_account, "{remark}"
        );
    }
    Some(pod)
}

/// What is said of a pod once, when it is first seen.
fn remark(pod: &Pod, web_identity: bool, imds: bool) -> Option<&'static str> {
    if !pod.live() {
        None
    } else if pod.prefers_web_identity {
        Some("the pod has IRSA's variables beside ours: SDKs prefer them, and do not ask here")
    // The host's packets are not redirected, so such a pod could not ask here anyway.
    } else if imds && web_identity && !pod.asks && !pod.host_network {
        Some("the pod has IRSA's variables: SDKs prefer them to instance metadata, and do not ask here")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::pod;

    #[test]
    fn who_has_irsas_variables_is_told_what_its_sdk_prefers_them_to() {
        let web = pod("web", "10.0.0.7");
        let beside = Pod { prefers_web_identity: true, ..web.clone() };
        for imds in [true, false] {
            let remark = remark(&beside, true, imds).unwrap();
            assert!(remark.contains("beside ours"), "imds: {imds}");
        }
        assert!(remark(&web, true, true).unwrap().contains("instance metadata"));
        assert_eq!(remark(&web, true, false), None, "without ours it would not ask here");
        assert_eq!(remark(&web, false, true), None);
        for other in [Pod { host_network: true, ..web.clone() }, Pod { finished: true, ..web }] {
            assert_eq!(remark(&other, true, true), None);
        }
    }
}

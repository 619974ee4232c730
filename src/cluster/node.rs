//! What this node's own object tells of it: the region of its STS, and the harmless facts of instance metadata.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Deserialize;
use tokio::time::sleep;

use super::api::KubeApi;

/// <https://kubernetes.io/docs/reference/labels-annotations-taints/#topologykubernetesioregion>
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";
/// Written by AWS's cloud controller, and by EKS.
const ZONE_ID: &str = "topology.k8s.aws/zone-id";

/// What whoever runs the cluster, or its cloud controller, wrote on the node. None of it is a secret or a right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Label `topology.kubernetes.io/region`
    pub region: Option<Arc<str>>,
    /// Label `topology.kubernetes.io/zone`
    pub zone: Option<Arc<str>>,
    /// Label `topology.k8s.aws/zone-id`
    pub zone_id: Option<Arc<str>>,
    /// Label `node.kubernetes.io/instance-type`
    pub instance_type: Option<Arc<str>>,
    /// The instance in `spec.providerID`, which is `aws:///ZONE/INSTANCE`; other providers' ids are none of EC2.
    pub instance_id: Option<Arc<str>>,
}

/// While the kube API does not answer, and while something may yet be written on a new node.
const PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(600));

/// Keeps `facts` until all that a cloud controller writes is there; some nodes never have it, so that the questions get rare. `region` is
/// the agent's own, which counts more than the label.
pub async fn follow(api: Arc<KubeApi>, region: Option<String>, facts: Arc<ArcSwap<Facts>>) {
    let region: Option<Arc<str>> = region.map(Into::into);
    facts.store(Arc::new(Facts { region: region.clone(), ..Facts::default() }));
    let mut pause = PAUSES.0;
    loop {
        match api.facts().await {
            Ok(found) => {
                let settled = found.zone.is_some() && found.instance_type.is_some();
                let region = region.clone().or(found.region);
                facts.store(Arc::new(Facts { region, ..found }));
                if settled {
                    // Whoever spawned us takes an end for a fault.
                    return std::future::pending().await;
                }
            }
            Err(err) if pause == PAUSES.0 => {
                tracing::warn!(error = %err, "the node's facts are not known yet: instance metadata has none");
            }
            Err(_) => {}
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// The fields of a node object that are read.
#[derive(Deserialize)]
pub(super) struct SlimNode {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    #[serde(rename = "providerID")]
    provider_id: Option<String>,
}

impl From<SlimNode> for Facts {
    fn from(node: SlimNode) -> Self {
        let labels = node.metadata.labels.unwrap_or_default();
        let label =
            |name: &str| labels.get(name).filter(|value| !value.is_empty()).map(|value| (**value).into());
        let instance = node.spec.provider_id.as_deref().and_then(|id| id.strip_prefix("aws://"));
        let instance = instance.and_then(|id| id.rsplit('/').next()).filter(|id| id.starts_with("i-"));
        Self {
            region: label(REGION),
            zone: label(ZONE),
            zone_id: label(ZONE_ID),
            instance_type: label(INSTANCE_TYPE),
            instance_id: instance.map(Into::into),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn facts(node: serde_json::Value) -> Facts {
        serde_json::from_value::<SlimNode>(node).unwrap().into()
    }

    #[test]
    fn a_node_of_aws_tells_all() {
        let labels = json!({
            REGION: "eu-west-1", ZONE: "eu-west-1a", ZONE_ID: "euw1-az3", INSTANCE_TYPE: "m7g.large",
        });
        let node = json!({"metadata": {"labels": labels}, "spec": {"providerID": "aws:///eu-west-1a/i-0123456789abcdef0"}});
        let some = |text: &str| Some(text.into());
        let expected = Facts {
            region: some("eu-west-1"),
            zone: some("eu-west-1a"),
            zone_id: some("euw1-az3"),
            instance_type: some("m7g.large"),
            instance_id: some("i-0123456789abcdef0"),
        };
        assert_eq!(facts(node), expected);
    }

    #[test]
    fn another_providers_id_is_no_instance() {
        for id in
            ["kind://docker/kind/kind-control-plane", "k3s://node", "aws:///eu-west-1a/fargate-ip-10-0-0-1"]
        {
            let node = json!({"metadata": {"labels": {REGION: ""}}, "spec": {"providerID": id}});
            assert_eq!(facts(node), Facts::default(), "{id}");
        }
        assert_eq!(facts(json!({"metadata": {}})), Facts::default());
    }
}

//! Session tags: which of them a plan asks for, and their values. Policies of roles and resources decide by them, so a
//! value that STS would not take is refused, never changed into another.

use std::sync::Arc;

use super::quoted;
use super::session_name::Template;
use crate::identity::pods::{PodUid, ServiceAccountName};

/// STS's limit on a tag's value.
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_Tag.html>
const MAX_VALUE: usize = 256;
/// Asks for a tag that stays when the session makes another session.
const TRANSITIVE: &str = ":transitive";

/// What a tag says. The keys are EKS Pod Identity's, so that policies written for it hold here, too; the node is ours.
/// <https://docs.aws.amazon.com/eks/latest/userguide/pod-id-abac.html>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cluster,
    Namespace,
    ServiceAccount,
    PodName,
    PodUid,
    Node,
}

const KINDS: [(Kind, &str); 6] = [
    (Kind::Cluster, "eks-cluster-name"),
    (Kind::Namespace, "kubernetes-namespace"),
    (Kind::ServiceAccount, "kubernetes-service-account"),
    (Kind::PodName, "kubernetes-pod-name"),
    (Kind::PodUid, "kubernetes-pod-uid"),
    (Kind::Node, "kubernetes-node"),
];

/// A session tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    kind: Kind,
    value: Arc<str>,
    /// Does it stay when the session makes another session?
    pub transitive: bool,
}

impl Tag {
    /// Takes a list such as `kubernetes-namespace,eks-cluster-name:transitive`. `place` knows node and cluster.
    ///
    /// # Errors
    /// What is wrong with it, as a phrase.
    pub fn parse_list(
        list: &str,
        account: &ServiceAccountName,
        place: &Template,
    ) -> Result<Vec<Self>, String> {
        let mut tags: Vec<Self> = Vec::new();
        for text in list.split(',').map(str::trim) {
            let (key, transitive) = match text.strip_suffix(TRANSITIVE) {
                Some(key) => (key, true),
                None => (text, false),
            };
            let Some((kind, key)) = KINDS.into_iter().find(|(_, known)| *known == key) else {
                let known: Vec<&str> = KINDS.iter().map(|(_, key)| *key).collect();
                return Err(format!(
                    "{} is none of {}, each alone or with {TRANSITIVE}",
                    quoted(text),
                    known.join(" ")
                ));
            };
            if tags.iter().any(|tag| tag.kind == kind) {
                return Err(format!("{key} stands there twice"));
            }
            let value: Arc<str> = match kind {
                Kind::Cluster if place.cluster().is_empty() => {
                    return Err(format!("{key} needs the agent's --cluster-name"));
                }
                Kind::Cluster => place.cluster().into(),
                Kind::Namespace => Arc::clone(&account.namespace),
                Kind::ServiceAccount => Arc::clone(&account.name),
                Kind::Node => place.node().into(),
                Kind::PodName | Kind::PodUid => "".into(),
            };
            if !is_value(&value) {
                return Err(format!(
                    "{value:?} cannot be the value of {key}: STS takes up to 256 letters, digits, spaces and _.:/=+-@"
                ));
            }
            tags.push(Self { kind, value, transitive });
        }
        Ok(tags)
    }

    /// `Key`
    pub fn key(&self) -> &'static str {
        KINDS.iter().find(|(kind, _)| *kind == self.kind).expect("every kind has its line").1
    }

    /// As it was asked for: what [`Tag::parse_list`] takes.
    pub fn asked(&self) -> String {
        format!("{}{}", self.key(), if self.transitive { TRANSITIVE } else { "" })
    }

    /// `Value`
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Is its value another one for each pod?
    pub(super) fn is_the_pods(&self) -> bool {
        matches!(self.kind, Kind::PodName | Kind::PodUid)
    }

    /// Names of pods and UIDs are made of letters, digits, `-` and `.`, and shorter than STS's limit.
    pub(super) fn fill(&mut self, pod_name: &str, pod_uid: &PodUid) {
        match self.kind {
            Kind::PodName => self.value = pod_name.into(),
            Kind::PodUid => self.value = pod_uid.as_str().into(),
            Kind::Cluster | Kind::Namespace | Kind::ServiceAccount | Kind::Node => {}
        }
    }
}

/// Does STS take it for a tag's value?
pub(crate) fn is_value(text: &str) -> bool {
    text.chars().count() <= MAX_VALUE
        && text.chars().all(|c| c.is_alphanumeric() || c == ' ' || "_.:/=+-@".contains(c))
}

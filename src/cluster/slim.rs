//! The few fields of pods, ServiceAccounts and namespaces that are used; the rest is skipped while it is read.
//!
//! Whole pods cost 88 KiB each to keep, and half of an agent's memory to have read once: 22 MiB against 13.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::watch::Object;
use crate::identity::pods::{self, PodUid, ServiceAccountName};
use crate::role::pod_annotation::Asked;

/// A container with one of these in its `env` will ask for credentials. A value may be anything, and variables
/// that come by `envFrom` are not seen: this only decides whether the first fetch may start early.
const ASKING: [&str; 2] = ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"];
/// IRSA's. An SDK that finds it asks STS itself, and never us.
const WEB_IDENTITY: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";

/// A pod object, or one that this version cannot read. One such pod must not end the watch of all others: it is
/// left out, which means that it gets nothing.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum SlimPod {
    /// The usual.
    Read(Box<Fields>),
    /// Something is not of the type it should be; the name is for the log.
    Unread {
        /// `metadata`, as far as it names the pod.
        metadata: Name,
    },
    /// Not even a name.
    Nameless(IgnoredAny),
}

/// Namespace and name of a pod that cannot be read.
#[derive(Clone, Debug, Deserialize)]
pub struct Name {
    namespace: String,
    name: String,
}

/// What is decoded of a pod.
#[derive(Clone, Debug, Deserialize)]
pub struct Fields {
    metadata: PodMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodMeta {
    name: String,
    namespace: String,
    uid: String,
    resource_version: String,
    deletion_timestamp: Option<IgnoredAny>,
    #[serde(default)]
    annotations: Annotations,
}

/// Those of [`Asked`]; a pod's others can be large.
#[derive(Clone, Debug, Default)]
struct Annotations(Asked);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    service_account_name: Option<String>,
    host_network: Option<bool>,
    containers: All<Container>,
    init_containers: All<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    env: All<Variable>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Variable(Shown);

/// Which variables there are.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    ours: bool,
    web_identity: bool,
    /// In one container. Each in a container of its own, neither is in the other's way.
    both: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<IpAddr>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodIp {
    ip: Option<IpAddr>,
}

impl SlimPod {
    /// Has any of its containers IRSA's variable, with ours beside it or without?
    pub fn has_web_identity(&self) -> bool {
        let Self::Read(fields) = self else { return false };
        fields.spec.containers.shown.web_identity || fields.spec.init_containers.shown.web_identity
    }

    /// The pod as the path of a request knows it; `None`, and a line in the log, if it cannot be understood.
    pub fn understood(self) -> Option<pods::Pod> {
        match self {
            Self::Read(fields) => Some((*fields).into()),
            Self::Unread { metadata: Name { namespace, name } } => {
                tracing::error!(
                    pod.namespace = namespace,
                    pod.name = name,
                    "pod not understood: it gets nothing"
                );
                None
            }
            Self::Nameless(_) => {
                tracing::error!("pod without a name in the list: it gets nothing");
                None
            }
        }
    }
}

impl Object for SlimPod {
    fn resource_version(&self) -> Option<&str> {
        match self {
            Self::Read(fields) => Some(&fields.metadata.resource_version),
            Self::Unread { .. } | Self::Nameless(_) => None,
        }
    }
}

impl From<Fields> for pods::Pod {
    fn from(Fields { metadata, spec, status }: Fields) -> Self {
        let service_account = spec.service_account_name.filter(|name| !name.is_empty());
        let mut addresses: Vec<IpAddr> =
            status.pod_ips.iter().flatten().filter_map(|entry| entry.ip).collect();
        // `podIP` is the first of `podIPs`; something that writes the old field alone counts too.
        if addresses.is_empty() {
            addresses.extend(status.pod_ip);
        }
        // Two forms of one address are one claim to it, not two pods'.
        let mut unique = Vec::new();
        for address in addresses.into_iter().map(pods::unmapped) {
            if !unique.contains(&address) {
                unique.push(address);
            }
        }
        Self {
            uid: PodUid::new(metadata.uid),
            name: metadata.name.into(),
            service_account: ServiceAccountName {
                namespace: metadata.namespace.into(),
                name: service_account.map_or_else(|| "default".into(), Into::into),
            },
            addresses: unique,
            host_network: spec.host_network.unwrap_or(false),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            terminating: metadata.deletion_timestamp.is_some(),
            asks: spec.containers.shown.ours || spec.init_containers.shown.ours,
            prefers_web_identity: spec.containers.shown.both || spec.init_containers.shown.both,
            asked: Some(metadata.annotations.0).filter(|asked| !asked.is_empty()).map(Arc::new),
        }
    }
}

/// A ServiceAccount's or a namespace's metadata: all that is asked of the API server.
#[derive(Clone, Debug, Deserialize)]
pub struct SlimObject {
    metadata: ObjectMeta,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ObjectMeta {
    uid: String,
    resource_version: String,
    annotations: Option<BTreeMap<String, String>>,
}

impl SlimObject {
    /// `metadata.uid`
    pub fn uid(&self) -> &str {
        &self.metadata.uid
    }

    /// `metadata.annotations`
    pub fn annotations(self) -> BTreeMap<String, String> {
        self.metadata.annotations.unwrap_or_default()
    }
}

impl Object for SlimObject {
    fn resource_version(&self) -> Option<&str> {
        Some(&self.metadata.resource_version)
    }
}

/// What the elements of a list show. Reads it without keeping any of it.
#[derive(Clone, Debug)]
struct All<T> {
    shown: Shown,
    of: PhantomData<T>,
}

impl<T> Default for All<T> {
    fn default() -> Self {
        Self { shown: Shown::default(), of: PhantomData }
    }
}

/// What an [`All`] asks of its elements.
trait Shows {
    fn shows(&self) -> Shown;
}

impl Shows for Container {
    fn shows(&self) -> Shown {
        let Shown { ours, web_identity, .. } = self.env.shown;
        Shown { ours, web_identity, both: ours && web_identity }
    }
}

impl Shows for Variable {
    fn shows(&self) -> Shown {
        self.0
    }
}

impl<'de, T: Deserialize<'de> + Shows> Deserialize<'de> for All<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + Shows> Visitor<'de> for Elements<T> {
            type Value = Shown;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_unit<E>(self) -> Result<Shown, E> {
                Ok(Shown::default()) // `null`
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Shown, A::Error> {
                let mut shown = Shown::default();
                while let Some(element) = elements.next_element::<T>()? {
                    let Shown { ours, web_identity, both } = element.shows();
                    shown.ours |= ours;
                    shown.web_identity |= web_identity;
                    shown.both |= both;
                }
                Ok(shown)
            }
        }

        let shown = deserializer.deserialize_any(Elements(PhantomData::<T>))?;
        Ok(Self { shown, of: PhantomData })
    }
}

impl<'de> Deserialize<'de> for Variable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Named<'a> {
            #[serde(borrow)]
            name: Cow<'a, str>,
        }
        let Named { name } = Named::deserialize(deserializer)?;
        let (ours, web_identity) = (ASKING.contains(&&*name), name == WEB_IDENTITY);
        Ok(Self(Shown { ours, web_identity, both: false }))
    }
}

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Asked;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("annotations")
            }

            fn visit_unit<E>(self) -> Result<Asked, E> {
                Ok(Asked::default()) // `null`
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Asked, A::Error> {
                let mut asked = Asked::default();
                while let Some((Text(name), Text(value))) = entries.next_entry()? {
                    asked.take(&name, &value);
                }
                Ok(asked)
            }
        }

        deserializer.deserialize_any(Entries).map(Self)
    }
}

/// Borrowed where nothing in it is escaped.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
#[path = "slim/tests.rs"]
mod tests;

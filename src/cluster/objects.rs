//! All objects of a cluster that decide about roles, read once: for commands that a person runs.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Deserialize;

use super::slim::SlimPod;
use super::{client, list};
use crate::config::Kube;
use crate::identity::pods::{Pod, ServiceAccountName};
use crate::role::Defaults;
use crate::service_accounts::ServiceAccounts;

/// No annotations.
pub static NONE: BTreeMap<String, String> = BTreeMap::new();

/// The objects.
pub struct Objects {
    /// All namespaces.
    pub namespaces: Vec<Object>,
    /// All ServiceAccounts.
    pub accounts: Vec<Object>,
    /// All pods that can be read, those that have ended among them.
    pub pods: Vec<Pod>,
    /// Pods that this version cannot read; the agent leaves them out as well.
    pub unread: usize,
}

/// A namespace or a ServiceAccount.
#[derive(Clone, Deserialize)]
pub struct Object {
    metadata: Metadata,
}

#[derive(Clone, Deserialize)]
struct Metadata {
    name: String,
    namespace: Option<String>,
    uid: String,
    annotations: Option<BTreeMap<String, String>>,
}

impl Objects {
    /// Lists them.
    ///
    /// # Errors
    /// Which kind cannot be listed, and why.
    pub async fn read(kube: &Kube) -> anyhow::Result<Self> {
        let kubeconfig = match kube {
            Kube::Kubeconfig(path) => Some(path.as_path()),
            Kube::InCluster => None,
        };
        let client = client::client(&client::config(kubeconfig).await?)?;
        let namespaces = list::all(&client, "/api/v1/namespaces", true).await;
        let namespaces = namespaces.context("namespaces cannot be listed")?;
        let accounts = list::all(&client, "/api/v1/serviceaccounts", true).await;
        let accounts = accounts.context("ServiceAccounts cannot be listed")?;
        let listed: Vec<SlimPod> =
            list::all(&client, "/api/v1/pods", false).await.context("pods cannot be listed")?;
        let count = listed.len();
        let pods: Vec<Pod> = listed.into_iter().filter_map(SlimPod::understood).collect();
        Ok(Self { namespaces, accounts, unread: count - pods.len(), pods })
    }

    /// What an agent would know, all of whose watches have shown just this.
    pub fn accounts(&self, plan: Defaults) -> ServiceAccounts {
        let accounts = ServiceAccounts::new(plan);
        for namespace in &self.namespaces {
            accounts.apply_namespace(&namespace.name().into(), namespace.annotations());
        }
        for pod in &self.pods {
            // Overwritten by what follows, for those that are there.
            accounts.absent(&pod.service_account);
        }
        for account in &self.accounts {
            let namespace = account.metadata.namespace.as_deref().unwrap_or_default();
            let name = ServiceAccountName { namespace: namespace.into(), name: account.name().into() };
            accounts.apply(&name, &account.metadata.uid, account.annotations());
        }
        accounts
    }
}

impl Object {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// Its annotations.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        self.metadata.annotations.as_ref().unwrap_or(&NONE)
    }

    /// One that a test makes up.
    #[cfg(test)]
    pub fn new(namespace: Option<&str>, name: &str, annotations: &[(&str, &str)]) -> Self {
        let annotations = annotations.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            metadata: Metadata {
                name: name.into(),
                namespace: namespace.map(str::to_owned),
                uid: format!("uid-{name}"),
                annotations: Some(annotations.collect()),
            },
        }
    }
}

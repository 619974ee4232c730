//! `--role-source=pod-annotation`: a plan for each pod, from its own annotations, its namespace's and its ServiceAccount's.

use std::collections::BTreeMap;
use std::sync::Arc;

use dashmap::DashMap;

use crate::identity::pods::{Pod, PodUid, ServiceAccountName};
use crate::role::pod_annotation::{Asked, Namespace, Rules};
use crate::role::{Defaults, Error, Plan, RoleName, RolePlan, Roles};

/// What the watches last said, and the plans that were made of it. A plan is made when it is asked for: an expression of a
/// tenant's is run once for each change, and not for each request.
#[derive(Default)]
pub(super) struct ByPod {
    /// `None`: the API server has no such ServiceAccount.
    accounts: DashMap<ServiceAccountName, Option<Arc<Account>>>,
    namespaces: DashMap<Arc<str>, Arc<Namespace>>,
    made: DashMap<PodUid, Made>,
}

#[derive(PartialEq, Eq)]
struct Account {
    uid: Box<str>,
    annotations: BTreeMap<String, String>,
}

/// A pod's roles, and all that they were made of.
struct Made {
    account: Arc<Account>,
    namespace: Arc<Namespace>,
    asked: Arc<Asked>,
    roles: Roles,
}

impl ByPod {
    /// The plan of `pod`, whose only role has no name; `None` until the watches of its ServiceAccount and its namespace have spoken.
    pub(super) fn plan(
        &self,
        pod: &Pod,
        name: Option<&RoleName>,
        rules: &Rules,
        defaults: &Defaults,
    ) -> Option<Plan> {
        match name {
            Some(_) => Some(Err(Error::NoPodRole { account: pod.service_account.clone() })),
            None => self.roles(pod, rules, defaults).map(|roles| roles.default),
        }
    }

    /// The same as all the roles of the pod.
    pub(super) fn roles(&self, pod: &Pod, rules: &Rules, defaults: &Defaults) -> Option<Roles> {
        let name = &pod.service_account;
        let Some(asked) = pod.asked.as_ref().filter(|asked| asked.role.is_some()) else {
            return Some(only(Err(Error::NoPodRole { account: name.clone() })));
        };
        // Each lock ends with its line: the maps are written by the watches while plans are made.
        let account = self.accounts.get(name).map(|account| account.clone())?;
        let namespace = self.namespaces.get(&name.namespace).map(|namespace| Arc::clone(&namespace))?;
        let Some(account) = account else { return Some(Roles::of_nobody(name)) };
        if let Some(made) = self.made.get(&pod.uid).filter(|made| {
            Arc::ptr_eq(&made.account, &account)
                && Arc::ptr_eq(&made.namespace, &namespace)
                && made.asked == *asked
        }) {
            return Some(made.roles.clone());
        }
        let plan = rules
            .annotations(name, asked, &namespace, &account.annotations, &defaults.policy)
            .and_then(|annotations| RolePlan::from_annotations(name, &account.uid, &annotations, defaults))
            .map_err(|refusal| asked.names(refusal));
        let roles = only(plan.map(Arc::new));
        super::tell(name, &roles);
        let made = Made { account, namespace, asked: Arc::clone(asked), roles: roles.clone() };
        self.made.insert(pod.uid.clone(), made);
        Some(roles)
    }

    /// Takes a ServiceAccount; does that change anything? Of its annotations only those that can be a plan's are kept.
    pub(super) fn apply(
        &self,
        name: &ServiceAccountName,
        uid: &str,
        annotations: &BTreeMap<String, String>,
    ) -> bool {
        let ours = |name: &str| name.starts_with("rolecall.dev/") || name.starts_with("eks.amazonaws.com/");
        let annotations = annotations
            .iter()
            .filter(|(name, _)| ours(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let account = Account { uid: uid.into(), annotations };
        if matches!(self.accounts.get(name).as_deref(), Some(Some(old)) if **old == account) {
            return false;
        }
        self.accounts.insert(name.clone(), Some(Arc::new(account)));
        true
    }

    pub(super) fn absent(&self, name: &ServiceAccountName) -> bool {
        !matches!(self.accounts.insert(name.clone(), None), Some(None))
    }

    pub(super) fn forget(&self, name: &ServiceAccountName) -> bool {
        self.accounts.remove(name).is_some()
    }

    pub(super) fn apply_namespace(&self, name: &Arc<str>, namespace: Namespace) -> bool {
        if self.namespaces.get(name).is_some_and(|old| **old == namespace) {
            return false;
        }
        self.namespaces.insert(Arc::clone(name), Arc::new(namespace));
        true
    }

    pub(super) fn forget_namespace(&self, name: &str) -> bool {
        self.namespaces.remove(name).is_some()
    }

    /// Drops the plans of pods that have gone.
    pub(super) fn retain(&self, there: impl Fn(&PodUid) -> bool) {
        self.made.retain(|uid, _| there(uid));
    }
}

fn only(default: Plan) -> Roles {
    Roles { default, named: BTreeMap::new() }
}

#[cfg(test)]
#[path = "by_pod/tests.rs"]
mod tests;

//! The ServiceAccounts in use on this node: what their watches last said, as plans.

mod by_pod;
pub mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dashmap::DashMap;
use tokio::sync::watch::{Receiver, Sender};

use self::by_pod::ByPod;
use crate::identity::pods::{Pod, PodUid, ServiceAccountName};
use crate::role::pod_annotation::{self, Namespace};
use crate::role::{Defaults, Plan, RoleName, RoleSource, Roles};

/// Plans by ServiceAccount. Written by one watch per ServiceAccount, read by every request.
pub struct ServiceAccounts {
    roles: DashMap<ServiceAccountName, Roles>,
    /// Instead of `roles`, with `--role-source=pod-annotation`.
    by_pod: ByPod,
    defaults: Defaults,
    generation: Sender<u64>,
    /// The log says that pods have annotations which this agent does not honour.
    told: AtomicBool,
}

impl ServiceAccounts {
    /// No ServiceAccount is known yet.
    pub fn new(defaults: Defaults) -> Self {
        Self {
            roles: DashMap::new(),
            by_pod: ByPod::default(),
            defaults,
            generation: Sender::new(0),
            told: AtomicBool::new(false),
        }
    }

    /// What `pod` gets under that name, or as its default role; `None` until the watches that decide it have spoken.
    pub fn plan_of(&self, pod: &Pod, name: Option<&RoleName>) -> Option<Plan> {
        let plan = match &self.defaults.source {
            RoleSource::ServiceAccount => self.plan(&pod.service_account, name)?,
            RoleSource::PodAnnotation(rules) => self.by_pod.plan(pod, name, rules, &self.defaults)?,
        };
        Some(plan.map(|plan| plan.for_pod(pod)))
    }

    /// All that `pod` may get, before it is made the pod's own; `None` as in [`ServiceAccounts::plan_of`].
    pub fn roles_of(&self, pod: &Pod) -> Option<Roles> {
        match &self.defaults.source {
            RoleSource::ServiceAccount => {
                self.tell_once(pod);
                self.roles.get(&pod.service_account).map(|roles| roles.clone())
            }
            RoleSource::PodAnnotation(rules) => self.by_pod.roles(pod, rules, &self.defaults),
        }
    }

    /// What the ServiceAccount asks for under that name, or as its default role; `None` until its watch has spoken.
    pub fn plan(&self, account: &ServiceAccountName, name: Option<&RoleName>) -> Option<Plan> {
        self.roles.get(account).map(|roles| roles.plan(account, name))
    }

    /// Takes the object as the API server shows it now.
    pub fn apply(&self, account: &ServiceAccountName, uid: &str, annotations: &BTreeMap<String, String>) {
        if !self.by_service_account() {
            if self.by_pod.apply(account, uid, annotations) {
                self.changed();
            }
            return;
        }
        self.set(account, Roles::from_annotations(account, uid, annotations, &self.defaults));
    }

    /// Takes a namespace's annotations as the API server shows them now.
    pub fn apply_namespace(&self, name: &Arc<str>, annotations: &BTreeMap<String, String>) {
        if self.by_pod.apply_namespace(name, Namespace::of(annotations)) {
            self.changed();
        }
    }

    /// The API server has no such namespace, or its last pod has left: nothing is known of it.
    pub fn forget_namespace(&self, name: &str) {
        if self.by_pod.forget_namespace(name) {
            self.changed();
        }
    }

    /// Drops what is kept for pods that have gone.
    pub fn retain_pods(&self, there: impl Fn(&PodUid) -> bool) {
        self.by_pod.retain(there);
    }

    /// Do the ServiceAccounts alone decide? Else pods and namespaces do, too.
    pub fn by_service_account(&self) -> bool {
        self.defaults.source == RoleSource::ServiceAccount
    }

    /// The API server has no such ServiceAccount (any more): the next answer is a refusal.
    pub fn absent(&self, account: &ServiceAccountName) {
        if !self.by_service_account() {
            if self.by_pod.absent(account) {
                self.changed();
            }
            return;
        }
        self.set(account, Roles::of_nobody(account));
    }

    /// Its last pod has left, and its watch is dropped.
    pub fn forget(&self, account: &ServiceAccountName) {
        if self.roles.remove(account).is_some() || self.by_pod.forget(account) {
            self.changed();
        }
    }

    /// Resolves at every change after this call.
    pub fn changes(&self) -> Receiver<u64> {
        self.generation.subscribe()
    }

    fn set(&self, account: &ServiceAccountName, roles: Roles) {
        if self.roles.get(account).is_some_and(|old| *old == roles) {
            return; // An event that changes nothing of the plans must not wake anybody.
        }
        tell(account, &roles);
        self.roles.insert(account.clone(), roles);
        self.changed();
    }

    fn tell_once(&self, pod: &Pod) {
        if pod.asked.is_some() && !self.told.swap(true, Ordering::Relaxed) {
            tracing::info!(
                pod.namespace = pod.namespace(),
                pod.name = &*pod.name,
                "{} on pods is not honoured here: roles are the ServiceAccounts' (--role-source)",
                pod_annotation::ROLE,
            );
        }
    }

    fn changed(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}

/// What is refused, and what is not given as it was asked for.
fn tell(account: &ServiceAccountName, roles: &Roles) {
    for err in roles.refusals() {
        tracing::info!(service_account = %account, code = err.code(), error = %err, "no plan");
    }
    for (plan, asked) in roles.plans().filter_map(|plan| plan.cut_from.map(|asked| (plan, asked))) {
        plan.tell_cut(asked);
    }
}

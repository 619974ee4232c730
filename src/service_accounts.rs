//! The ServiceAccounts in use on this node: what their watches last said, as plans.

pub mod watch;

use std::collections::BTreeMap;

use dashmap::DashMap;
use tokio::sync::watch::{Receiver, Sender};

use crate::identity::pods::ServiceAccountName;
use crate::role::{Defaults, Plan, RoleName, Roles};

/// Plans by ServiceAccount. Written by one watch per ServiceAccount, read by every request.
pub struct ServiceAccounts {
    roles: DashMap<ServiceAccountName, Roles>,
    defaults: Defaults,
    generation: Sender<u64>,
}

impl ServiceAccounts {
    /// No ServiceAccount is known yet.
    pub fn new(defaults: Defaults) -> Self {
        Self { roles: DashMap::new(), defaults, generation: Sender::new(0) }
    }

    /// What the ServiceAccount asks for under that name, or as its default role; `None` until its watch has spoken.
    pub fn plan(&self, account: &ServiceAccountName, name: Option<&RoleName>) -> Option<Plan> {
        self.roles.get(account).map(|roles| roles.plan(account, name))
    }

    /// All that the ServiceAccount asks for; `None` until its watch has spoken.
    pub fn roles(&self, account: &ServiceAccountName) -> Option<Roles> {
        self.roles.get(account).map(|roles| roles.clone())
    }

    /// Takes the object as the API server shows it now.
    pub fn apply(&self, account: &ServiceAccountName, uid: &str, annotations: &BTreeMap<String, String>) {
        self.set(account, Roles::from_annotations(account, uid, annotations, &self.defaults));
    }

    /// The API server has no such ServiceAccount (any more): the next answer is a refusal.
    pub fn absent(&self, account: &ServiceAccountName) {
        self.set(account, Roles::none(account));
    }

    /// Its last pod has left, and its watch is dropped.
    pub fn forget(&self, account: &ServiceAccountName) {
        if self.roles.remove(account).is_some() {
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
        for err in roles.refusals() {
            tracing::info!(service_account = %account, code = err.code(), error = %err, "no plan");
        }
        for (plan, asked) in roles.plans().filter_map(|plan| plan.cut_from.map(|asked| (plan, asked))) {
            tracing::info!(
                service_account = %account, role.arn = %plan.role, asked_s = asked.as_secs(),
                "cut to an hour: STS lets no session make another one that lives longer",
            );
        }
        self.roles.insert(account.clone(), roles);
        self.changed();
    }

    fn changed(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}

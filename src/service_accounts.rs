//! The ServiceAccounts in use on this node: what their watches last said, as plans.

pub mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::watch::{Receiver, Sender};

use crate::identity::pods::ServiceAccountName;
use crate::role::{Defaults, Error, RolePlan};

/// What is known of one ServiceAccount.
pub type Plan = Result<Arc<RolePlan>, Error>;

/// Plans by ServiceAccount. Written by one watch per ServiceAccount, read by every request.
pub struct ServiceAccounts {
    plans: DashMap<ServiceAccountName, Plan>,
    defaults: Defaults,
    generation: Sender<u64>,
}

impl ServiceAccounts {
    /// No ServiceAccount is known yet.
    pub fn new(defaults: Defaults) -> Self {
        Self { plans: DashMap::new(), defaults, generation: Sender::new(0) }
    }

    /// What the ServiceAccount asks for; `None` until its watch has spoken.
    pub fn plan(&self, account: &ServiceAccountName) -> Option<Plan> {
        self.plans.get(account).map(|plan| plan.clone())
    }

    /// Takes the object as the API server shows it now.
    pub fn apply(&self, account: &ServiceAccountName, uid: &str, annotations: &BTreeMap<String, String>) {
        let plan = RolePlan::from_annotations(account, uid, annotations, &self.defaults).map(Arc::new);
        self.set(account, plan);
    }

    /// The API server has no such ServiceAccount (any more): the next answer is a refusal.
    pub fn absent(&self, account: &ServiceAccountName) {
        self.set(account, Err(Error::NoRole { account: account.clone() }));
    }

    /// Its last pod has left, and its watch is dropped.
    pub fn forget(&self, account: &ServiceAccountName) {
        if self.plans.remove(account).is_some() {
            self.changed();
        }
    }

    /// Resolves at every change after this call.
    pub fn changes(&self) -> Receiver<u64> {
        self.generation.subscribe()
    }

    fn set(&self, account: &ServiceAccountName, plan: Plan) {
        if self.plans.get(account).is_some_and(|old| *old == plan) {
            return; // An event that changes nothing of the plan must not wake anybody.
        }
        if let Err(err) = &plan {
            tracing::info!(service_account = %account, code = err.code(), error = %err, "no plan");
        }
        self.plans.insert(account.clone(), plan);
        self.changed();
    }

    fn changed(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}

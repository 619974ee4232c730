//! THE STORY: one function, from caller to credentials.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use crate::cache::{Cache, Served};
use crate::identity::authorization::Presented;
use crate::identity::{AttestedPod, Caller, Identity};
use crate::metrics::Metrics;
use crate::role::{RoleName, RolePlan};
use crate::service_accounts::ServiceAccounts;
use crate::token::shown::ShownTokens;
use crate::{exchange, identity, role};

/// Why a caller gets no credentials: the step that refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Who is calling is not known.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The ServiceAccount's watch has not spoken yet.
    #[error("the kube API has not shown ServiceAccount {0} yet")]
    NotWatchedYet(String),
    /// The ServiceAccount has no usable role.
    #[error(transparent)]
    Role(#[from] role::Error),
    /// The flight brought nothing.
    #[error(transparent)]
    Exchange(#[from] exchange::Error),
}

impl Error {
    /// The fixed word of the README's table of answers: metric label, log field and response code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Identity(err) => err.code(),
            Self::NotWatchedYet(_) => "KubeUnavailable",
            Self::Role(err) => err.code(),
            Self::Exchange(err) => err.code(),
        }
    }
}

/// What became known on the way, for the audit line: also when the answer is a refusal.
#[derive(Debug, Default)]
pub struct Trail {
    /// The caller.
    pub attested: Option<AttestedPod>,
    /// Which of its roles was asked for, if not the default one.
    pub role: Option<RoleName>,
    /// Its plan.
    pub plan: Option<Arc<RolePlan>>,
}

/// From caller to credentials. It holds the parts; `app` builds them.
pub struct Broker {
    identity: Identity,
    accounts: Arc<ServiceAccounts>,
    cache: Arc<Cache>,
    shown: Option<Arc<ShownTokens>>,
    metrics: Arc<Metrics>,
}

impl Broker {
    /// A broker over its parts; `shown` keeps the tokens that pods show, if those are what STS is shown.
    pub fn new(
        identity: Identity,
        accounts: Arc<ServiceAccounts>,
        cache: Arc<Cache>,
        shown: Option<Arc<ShownTokens>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { identity, accounts, cache, shown, metrics }
    }

    /// Credentials for `caller`: the evidence about a connection, taken when it was accepted; and what this request
    /// presents in Authorization. `trail.role` names the role, if it is not the default one.
    ///
    /// `deadline` covers every wait on the path; a cached answer waits for nothing.
    ///
    /// # Errors
    /// Fails closed: any doubt about the caller is [`Error::Identity`].
    pub async fn credentials(
        &self,
        caller: &Caller,
        presented: &Presented,
        deadline: Instant,
        trail: &mut Trail,
    ) -> Result<Arc<Served>, Error> {
        let (pod, plan) = self.planned(caller, presented, deadline, trail).await?;
        let shows = self.take(&pod, &plan, presented)?;
        let (lookup, answer) = self.cache.fresh_or_fetch(&plan, deadline).await;
        self.metrics.looked_up(lookup);
        match answer {
            // The watch does not have the pod yet, so its token was not found: the pod cannot do more than ask again.
            Err(err) if shows && err.unshown() => {
                Err(exchange::Error::NoPod(plan.account.to_string()).into())
            }
            answer => Ok(answer?),
        }
    }

    /// The steps before the credentials: who is calling, and what its ServiceAccount asks for.
    ///
    /// # Errors
    /// As [`Broker::credentials`].
    pub async fn planned(
        &self,
        caller: &Caller,
        presented: &Presented,
        deadline: Instant,
        trail: &mut Trail,
    ) -> Result<(AttestedPod, Arc<RolePlan>), Error> {
        let attested = self.identity.attest(caller, presented, deadline).await;
        self.metrics.attested(attested.as_ref().map_or_else(identity::Error::code, |_| "ok"));
        let pod = attested?;
        trail.attested = Some(pod.clone());
        let plan = self.plan(&pod, trail.role.as_ref(), deadline).await?;
        trail.plan = Some(Arc::clone(&plan));
        Ok((pod, plan))
    }

    /// Does the pod show the token that STS is to see? Only with `--token-source=caller`.
    fn take(&self, pod: &AttestedPod, plan: &Arc<RolePlan>, presented: &Presented) -> Result<bool, Error> {
        let (Some(shown), Some(token)) = (&self.shown, presented.token()) else { return Ok(false) };
        let Some(audience) = plan.audience() else { return Ok(false) };
        let taken = shown.take(pod.pod(), audience, token);
        let taken = taken.map_err(identity::Error::AuthorizationInvalid)?;
        if taken {
            self.cache.token_shown(plan);
        }
        Ok(taken)
    }

    /// What the pod's ServiceAccount asks for, as its watch last showed it; a new one's watch may yet have to speak.
    async fn plan(
        &self,
        pod: &AttestedPod,
        role: Option<&RoleName>,
        deadline: Instant,
    ) -> Result<Arc<RolePlan>, Error> {
        if let Some(plan) = self.accounts.plan_of(pod.pod(), role) {
            return Ok(plan?);
        }
        let mut changes = self.accounts.changes();
        loop {
            if let Some(plan) = self.accounts.plan_of(pod.pod(), role) {
                return Ok(plan?);
            }
            if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                return Err(Error::NotWatchedYet(pod.pod().service_account.to_string()));
            }
        }
    }
}

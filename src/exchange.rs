//! RolePlan -> credentials: a token of one of the plan's live pods, or a signature of the hop before, shown to STS. One
//! flight, from end to end.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::base_credentials;
use crate::cluster;
use crate::credentials::{Credentials, Keys, LEAST_LEFT};
use crate::identity::pods::{Pod, Pods};
use crate::metrics::Metrics;
use crate::role::{By, RolePlan};
use crate::sts::{self, Sts};
use crate::time;
use crate::token::{BoundToken, Tokens};

/// While the API server is away, the last token is shown again if it outlives the call.
const TOKEN_LEFT: Duration = Duration::from_secs(30);

/// Why a flight brought nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The flight is still under way when the caller's deadline passes.
    #[error("STS has not answered yet; ask again")]
    NoAnswerYet,
    /// No pod of the plan is left on this node to bind a token to.
    #[error("no live pod of ServiceAccount {0} is on this node")]
    NoPod(String),
    /// No token from the kube API.
    #[error("no token for ServiceAccount {account}: {source}")]
    Token {
        /// Whose token it would have been.
        account: String,
        /// What the kube API said.
        source: cluster::Error,
    },
    /// `--sts-mode=assume-role`, and the agent has nothing to sign with.
    #[error(transparent)]
    Base(#[from] base_credentials::Error),
    /// No credentials from STS.
    #[error(transparent)]
    Sts(#[from] sts::Error),
}

impl Error {
    /// The fixed word of the README's table of answers.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoAnswerYet | Self::Base(_) => "StsUnavailable",
            Self::NoPod(_) => "PodNotKnownYet",
            Self::Token { source: cluster::Error::NotShown(_), .. } => "AuthorizationRequired",
            Self::Token { .. } => "KubeUnavailable",
            Self::Sts(err) => err.code(),
        }
    }

    /// Does it wait for a pod to show its token (`--token-source=caller`)? Then no time changes anything.
    pub fn unshown(&self) -> bool {
        matches!(self, Self::Token { source: cluster::Error::NotShown(_), .. })
    }

    /// Does STS no longer take what the hop before has signed with?
    pub fn keys_are_spent(&self) -> bool {
        matches!(self, Self::Sts(err) if err.keys_are_spent())
    }

    /// Will STS say the same until somebody changes something? Then the answer is remembered.
    pub fn refused(&self) -> bool {
        matches!(self, Self::Sts(sts::Error::Denied { .. } | sts::Error::Foreign { .. }))
    }
}

/// What a flight brought, and when it was asked for: lifetimes count from there.
#[derive(Debug)]
pub struct Fetched {
    /// The keys.
    pub credentials: Credentials,
    /// [`BoundToken::id`] of what STS was shown.
    pub token_id: Option<Arc<str>>,
    /// Just before STS was asked.
    pub asked: Instant,
    /// The same moment on this node's wall clock.
    pub asked_wall: Timestamp,
    /// When the oldest hop of it was asked for: what `not-before` is compared with.
    pub issued: Timestamp,
}

/// The session of the hop before, as a second hop needs it.
#[derive(Debug)]
pub struct Before<'a> {
    /// What signs.
    pub keys: &'a Keys,
    /// [`Fetched::token_id`] of that hop.
    pub token_id: Option<&'a Arc<str>>,
    /// [`Fetched::issued`] of that hop.
    pub issued: Timestamp,
}

/// The two outside doors, and the pods to go through the first one with.
pub struct Exchange {
    pods: Arc<Pods>,
    tokens: Tokens,
    sts: Arc<dyn Sts>,
    metrics: Arc<Metrics>,
}

impl Exchange {
    /// Exchanges `tokens`, bound to pods in `pods`, with `sts`.
    pub fn new(pods: Arc<Pods>, tokens: Tokens, sts: Arc<dyn Sts>, metrics: Arc<Metrics>) -> Self {
        Self { pods, tokens, sts, metrics }
    }

    /// Credentials for a plan that STS is shown a token for. `last` keeps the token for as long as it may be needed again.
    ///
    /// # Errors
    /// [`Error`]: each step's own.
    pub async fn by_token(&self, plan: &RolePlan, last: &mut Option<BoundToken>) -> Result<Fetched, Error> {
        match self.token(plan).await {
            Ok(token) => *last = Some(token),
            // Known pods outlast an API server or an issuer that is away for as long as the last token lives.
            Err(Error::Token { source, account }) if source.is_passing() => {
                if last.as_ref().is_none_or(|token| token.remaining() <= TOKEN_LEFT) {
                    *last = None;
                    return Err(Error::Token { account, source });
                }
                tracing::warn!(service_account = account, error = %source, "the last token is used again");
            }
            Err(err) => {
                *last = None;
                return Err(err);
            }
        }
        let token = last.as_ref().expect("every other arm above has returned");
        let (asked, asked_wall) = (Instant::now(), time::now());
        let answer = self.sts.assume_role_with_web_identity(plan, token).await;
        let credentials = self.judge(plan, asked, answer)?;
        Ok(Fetched { credentials, token_id: token.id().cloned(), asked, asked_wall, issued: asked_wall })
    }

    /// Credentials for a plan that the hop before it signs for.
    ///
    /// # Errors
    /// STS's.
    pub async fn by_keys(&self, plan: &RolePlan, before: Before<'_>) -> Result<Fetched, Error> {
        let (asked, asked_wall) = (Instant::now(), time::now());
        let answer = self.sts.assume_role(plan, before.keys).await;
        let credentials = self.judge(plan, asked, answer)?;
        let issued = before.issued.min(asked_wall);
        Ok(Fetched { credentials, token_id: before.token_id.cloned(), asked, asked_wall, issued })
    }

    /// Credentials for a plan that the agent's own ones sign for. No token is asked for: who the pod is, its connection has shown.
    ///
    /// # Errors
    /// [`Error::Base`], or STS's.
    pub async fn by_agent(&self, plan: &RolePlan) -> Result<Fetched, Error> {
        let base = self.sts.base().expect("without base credentials no plan stands on them");
        let base = base.current().inspect_err(|err| {
            tracing::warn!(service_account = %plan.account, role.arn = %plan.role, error = %err, "no base credentials");
        })?;
        // Whoever revokes by `not-before` means what was made for the ServiceAccount, not the agent's own.
        self.by_keys(plan, Before { keys: &base.keys, token_id: None, issued: time::now() }).await
    }

    /// Counts STS's answer, and takes it if it is of use.
    fn judge(
        &self,
        plan: &RolePlan,
        asked: Instant,
        answer: Result<Credentials, sts::Error>,
    ) -> Result<Credentials, Error> {
        let result = answer.as_ref().map_or_else(sts::Error::code, |_| "ok");
        self.metrics.sts_call(plan.by.operation(), asked.elapsed(), result);
        let credentials = answer?;
        if credentials.life <= LEAST_LEFT {
            // They could not be served, so the next flight would start at once, and the next.
            tracing::warn!(
                service_account = %plan.account, life_s = credentials.life.as_secs(), expires = %credentials.expiration,
                "STS gave credentials that are as good as expired: check its session durations and its clock",
            );
            return Err(sts::Error::Away("its sessions end too soon to be used".into()).into());
        }
        if let Some(percent) = credentials.packed_policy_percent {
            self.metrics.sts_packed_policy_percent.set(percent.into());
        }
        tracing::info!(
            service_account = %plan.account, role.arn = %plan.role, access_key_id = credentials.access_key_id,
            expires = %credentials.expiration, sts.request_id = credentials.request_id,
            role.base = plan.before().map(|before| before.role.as_str()),
            packed_policy_percent = credentials.packed_policy_percent, "new credentials",
        );
        Ok(credentials)
    }

    /// A token bound to one of the plan's pods; if that pod has gone meanwhile, to another.
    async fn token(&self, plan: &RolePlan) -> Result<BoundToken, Error> {
        let By::WebIdentity { audience, token_life, claims, .. } = &plan.by else {
            unreachable!("only a plan that STS is shown a token for gets here");
        };
        let mut result = Err(Error::NoPod(plan.account.to_string()));
        for pod in self.candidates(plan) {
            let asked = self.tokens.request(&pod, audience, *token_life, claims).await;
            self.metrics.token_request(asked.as_ref().map_or_else(cluster::Error::result, |_| "ok"));
            match asked {
                Ok(token) => return Ok(token),
                Err(source) => {
                    let others = matches!(source, cluster::Error::PodGone(_) | cluster::Error::NotShown(_));
                    result = Err(Error::Token { account: plan.account.to_string(), source });
                    if !others {
                        break;
                    }
                }
            }
        }
        if let Some(err) = result.as_ref().err().filter(|err| !err.unshown()) {
            tracing::warn!(service_account = %plan.account, code = err.code(), error = %err, "no token");
        }
        result
    }

    /// The plan's pods: those that stay before those that are going.
    fn candidates(&self, plan: &RolePlan) -> Vec<Arc<Pod>> {
        let mut pods: Vec<Arc<Pod>> = self
            .pods
            .all()
            .into_iter()
            .filter(|pod| pod.live() && pod.service_account == plan.account)
            .filter(|pod| plan.pod.as_ref().is_none_or(|uid| *uid == pod.uid))
            .collect();
        pods.sort_by_key(|pod| pod.terminating);
        pods
    }
}

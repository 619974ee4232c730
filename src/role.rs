//! ServiceAccount annotations -> [`RolePlan`]: which role, by which token, under which name, for how long.
//!
//! A tenant writes these annotations, so they are input, not orders: what is not understood is refused
//! (`InvalidPlan`), because an older agent must never drop a restriction that a newer one would honour.

pub mod arn;
pub mod pod_annotation;
pub mod session_name;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use ring::digest;

pub use self::arn::RoleArn;
use self::session_name::{SessionName, Template};
use crate::config::AUDIENCE;
use crate::identity::pods::{Pod, PodUid, ServiceAccountName};
use crate::policy::Policy;

/// Our own annotations; every other name under it is refused.
const PREFIX: &str = "rolecall.dev/";
const ROLE_ARN: &str = "rolecall.dev/role-arn";
const SESSION_NAME: &str = "rolecall.dev/session-name";
const SESSION_DURATION: &str = "rolecall.dev/session-duration";
const POLICY_ARNS: &str = "rolecall.dev/policy-arns";
const NOT_BEFORE: &str = "rolecall.dev/not-before";

/// IRSA's annotations, read so that moving in and out changes no ServiceAccount.
const EKS_ROLE_ARN: &str = "eks.amazonaws.com/role-arn";
const EKS_AUDIENCE: &str = "eks.amazonaws.com/audience";
const EKS_TOKEN_EXPIRATION: &str = "eks.amazonaws.com/token-expiration";
const EKS_REGIONAL: &str = "eks.amazonaws.com/sts-regional-endpoints";

/// A token is used at once, so its life is short; the API server refuses less than 10 minutes.
/// <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-request-v1/>
const TOKEN_LIFE: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(3600));
/// What STS accepts as DurationSeconds.
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html>
pub const SESSION_LIFE: (Duration, Duration) = (Duration::from_secs(900), Duration::from_secs(12 * 3600));
/// STS accepts at most ten session policies.
const MAX_POLICY_ARNS: usize = 10;

/// Why a ServiceAccount has no usable plan.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// There is no role annotation, or no such ServiceAccount. There is no default role.
    #[error("ServiceAccount {account} has no role: annotate it with {ROLE_ARN}")]
    NoRole {
        /// The caller's ServiceAccount.
        account: ServiceAccountName,
    },
    /// `--role-source=pod-annotation`, and the pod has no annotation.
    #[error("the pod has no role: this agent takes it from the pod's annotation {}", pod_annotation::ROLE)]
    NoPodRole {
        /// The caller's ServiceAccount.
        account: ServiceAccountName,
    },
    /// The annotation's value is not a role ARN.
    #[error("ServiceAccount {account}: {annotation}: {value:?} is not a role ARN ({reason})")]
    InvalidRole {
        /// The caller's ServiceAccount.
        account: ServiceAccountName,
        /// Which annotation holds it.
        annotation: &'static str,
        /// The value, cut to a readable length.
        value: String,
        /// Which part is wrong.
        reason: &'static str,
    },
    /// An annotation that cannot apply, or that this version does not understand.
    #[error("ServiceAccount {account}: {annotation}: {reason}")]
    InvalidPlan {
        /// The caller's ServiceAccount.
        account: ServiceAccountName,
        /// Which annotation it is.
        annotation: String,
        /// What would be right.
        reason: String,
    },
    /// The pod's namespace does not permit this role.
    #[error("pods of ServiceAccount {account} may not have {role}: their namespace's {annotation}: {reason}")]
    NotPermitted {
        /// The caller's ServiceAccount.
        account: ServiceAccountName,
        /// The role that its pod asks for.
        role: RoleArn,
        /// The namespace's annotation that decides.
        annotation: &'static str,
        /// Why not.
        reason: String,
    },
    /// `--allow-role` does not allow this role to this namespace.
    #[error("ServiceAccount {account} may not have {role}: no --allow-role entry of this agent matches")]
    NotAllowed {
        /// The caller's ServiceAccount.
        account: ServiceAccountName,
        /// The role that it asks for.
        role: RoleArn,
    },
}

impl Error {
    /// The fixed word of the README's table of answers: metric label, log field and response code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoRole { .. } | Self::NoPodRole { .. } => "NoRole",
            Self::InvalidRole { .. } => "InvalidRole",
            Self::InvalidPlan { .. } => "InvalidPlan",
            Self::NotPermitted { .. } | Self::NotAllowed { .. } => "RoleNotAllowed",
        }
    }
}

/// Identifies what decides an answer: ServiceAccount UID and every field of the plan that STS sees.
/// A ServiceAccount that is deleted and made again under its old name has another key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlanKey([u8; 32]);

impl fmt::Debug for PlanKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..6] {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Everything that STS is asked for on behalf of one ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolePlan {
    /// Whose plan this is.
    pub account: ServiceAccountName,
    /// `metadata.uid` of the ServiceAccount.
    pub account_uid: Arc<str>,
    /// The role.
    pub role: RoleArn,
    /// The token's only audience.
    pub audience: Arc<str>,
    /// The token's life.
    pub token_life: Duration,
    /// `RoleSessionName`, the same on every node, unless the template names the pod.
    pub session_name: SessionName,
    /// `DurationSeconds`.
    pub session_duration: Duration,
    /// Session policies (`PolicyArns`): they can only take rights away.
    pub policy_arns: Vec<String>,
    /// `eks.amazonaws.com/sts-regional-endpoints: "false"` asks for the global endpoint.
    pub global_endpoint: bool,
    /// Whatever was issued before this moment is dropped, once the moment has come.
    pub not_before: Option<Timestamp>,
    /// Set where the template names the pod: then every pod has a session of its own.
    per_pod: Option<Template>,
    /// Set by [`RolePlan::for_pod`] on such a plan: only this pod's token may be used for it.
    pub pod: Option<PodUid>,
    key: PlanKey,
}

/// What the agent's own configuration adds to every plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// `--audience`
    pub audience: Arc<str>,
    /// `--allow-audience`: what an annotation may ask for.
    pub allowed_audiences: Vec<String>,
    /// `--session-duration`
    pub session_duration: Duration,
    /// `--session-name`
    pub session_name: Template,
    /// `--allow-role`
    pub policy: Policy,
}

impl Defaults {
    /// What the agent's flags give when none is set.
    pub fn of_node(node: &str) -> Self {
        Self {
            audience: AUDIENCE.into(),
            allowed_audiences: vec![AUDIENCE.to_owned()],
            session_duration: Duration::from_secs(3600),
            session_name: Template::parse("{namespace}.{service-account}", node, "")
                .expect("the template is a constant"),
            policy: Policy::default(),
        }
    }
}

impl RolePlan {
    /// The key under which the answer is cached.
    pub fn key(&self) -> PlanKey {
        self.key
    }

    /// The plan as it applies to `pod`: itself, unless its session name holds the pod's name.
    pub fn for_pod(self: &Arc<Self>, pod: &Pod) -> Arc<Self> {
        let Some(template) = &self.per_pod else { return Arc::clone(self) };
        let mut plan = RolePlan {
            session_name: template.render(&self.account, Some(&pod.name)),
            pod: Some(pod.uid.clone()),
            ..(**self).clone()
        };
        plan.key = plan.compute_key();
        Arc::new(plan)
    }

    /// Does revocation by `not-before` hit something issued at `issued`, as of `now`?
    pub fn revokes(&self, issued: Timestamp, now: Timestamp) -> bool {
        self.not_before.is_some_and(|moment| moment <= now && issued < moment)
    }

    /// The plan that these annotations ask for.
    ///
    /// # Errors
    /// [`Error`]: no role, a malformed or forbidden one, or an annotation that is not understood.
    pub fn from_annotations(
        account: &ServiceAccountName,
        account_uid: &str,
        annotations: &BTreeMap<String, String>,
        defaults: &Defaults,
    ) -> Result<Self, Error> {
        let invalid = |annotation: &str, reason: String| Error::InvalidPlan {
            account: account.clone(),
            annotation: annotation.to_owned(),
            reason,
        };
        let text = |annotation: &str| annotations.get(annotation).map(|value| value.trim());

        let (annotation, value) = [ROLE_ARN, EKS_ROLE_ARN]
            .into_iter()
            .find_map(|annotation| Some((annotation, text(annotation)?)))
            .ok_or_else(|| Error::NoRole { account: account.clone() })?;
        let role = RoleArn::parse(value).map_err(|reason| Error::InvalidRole {
            account: account.clone(),
            annotation,
            value: value.chars().take(200).collect(),
            reason,
        })?;
        if let Some(name) = annotations.keys().find(|name| name.starts_with(PREFIX) && !understood(name)) {
            return Err(invalid(
                name,
                "this version of the agent does not understand it, and so grants nothing".into(),
            ));
        }

        let audience: Arc<str> = match text(EKS_AUDIENCE) {
            None => Arc::clone(&defaults.audience),
            Some(asked) if defaults.allowed_audiences.iter().any(|allowed| allowed == asked) => asked.into(),
            Some(asked) => {
                return Err(invalid(EKS_AUDIENCE, format!("{asked:?} is not in --allow-audience")));
            }
        };
        let token_life = match text(EKS_TOKEN_EXPIRATION).map(str::parse::<u64>) {
            None => TOKEN_LIFE.1,
            Some(Ok(seconds)) if seconds >= TOKEN_LIFE.0.as_secs() => {
                Duration::from_secs(seconds).min(TOKEN_LIFE.1)
            }
            Some(_) => {
                return Err(invalid(
                    EKS_TOKEN_EXPIRATION,
                    "must be a number of seconds, at least 600".into(),
                ));
            }
        };
        let session_duration = match text(SESSION_DURATION).map(parse_duration) {
            None => defaults.session_duration,
            Some(Some(duration)) if (SESSION_LIFE.0..=SESSION_LIFE.1).contains(&duration) => duration,
            Some(_) => {
                return Err(invalid(SESSION_DURATION, "must be from 15m to 12h, with its unit".into()));
            }
        };
        let template = match text(SESSION_NAME).map(|template| defaults.session_name.with_text(template)) {
            None => defaults.session_name.clone(),
            Some(Ok(template)) => template,
            Some(Err(reason)) => return Err(invalid(SESSION_NAME, reason)),
        };
        let global_endpoint = match text(EKS_REGIONAL) {
            None | Some("true") => false,
            Some("false") => true,
            Some(_) => return Err(invalid(EKS_REGIONAL, "must be \"true\" or \"false\"".into())),
        };
        let policy_arns: Vec<String> = text(POLICY_ARNS)
            .map(|list| list.split(',').map(|arn| arn.trim().to_owned()).collect())
            .unwrap_or_default();
        if policy_arns.len() > MAX_POLICY_ARNS || policy_arns.iter().any(|arn| !arn::is_policy(arn)) {
            return Err(invalid(POLICY_ARNS, "must be at most 10 policy ARNs, separated by commas".into()));
        }
        let not_before = match text(NOT_BEFORE).map(str::parse::<Timestamp>) {
            None => None,
            Some(Ok(moment)) => Some(moment),
            Some(Err(_)) => {
                return Err(invalid(NOT_BEFORE, "must be a time such as 2026-11-22T05:00:00Z".into()));
            }
        };
        if !defaults.policy.allows(&account.namespace, role.as_str()) {
            return Err(Error::NotAllowed { account: account.clone(), role });
        }

        let mut plan = Self {
            session_name: template.render(account, None),
            account: account.clone(),
            account_uid: account_uid.into(),
            role,
            audience,
            token_life,
            session_duration,
            policy_arns,
            global_endpoint,
            not_before,
            per_pod: template.names_the_pod().then_some(template),
            pod: None,
            key: PlanKey([0; 32]),
        };
        plan.key = plan.compute_key();
        Ok(plan)
    }

    /// `not_before` is left out: it drops an answer, it does not change what is asked for.
    fn compute_key(&self) -> PlanKey {
        let mut context = digest::Context::new(&digest::SHA256);
        // Each field with its length, so that no two plans run together into the same bytes.
        let mut field = |bytes: &[u8]| {
            context.update(&(bytes.len() as u64).to_le_bytes());
            context.update(bytes);
        };
        field(self.account_uid.as_bytes());
        field(self.account.namespace.as_bytes());
        field(self.account.name.as_bytes());
        field(self.role.as_str().as_bytes());
        field(self.audience.as_bytes());
        field(&self.token_life.as_secs().to_le_bytes());
        field(self.session_name.as_str().as_bytes());
        field(&self.session_duration.as_secs().to_le_bytes());
        field(&[u8::from(self.global_endpoint)]);
        field(self.pod.as_ref().map_or("", PodUid::as_str).as_bytes());
        for arn in &self.policy_arns {
            field(arn.as_bytes());
        }
        let mut key = [0; 32];
        key.copy_from_slice(context.finish().as_ref());
        PlanKey(key)
    }
}

/// `1h`, `90m`, `3600s`: a duration carries its unit. `None` where it does not parse.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let scale = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(scale).map(Duration::from_secs)
}

fn understood(name: &str) -> bool {
    matches!(name, ROLE_ARN | SESSION_NAME | SESSION_DURATION | POLICY_ARNS | NOT_BEFORE)
}

#[cfg(test)]
#[path = "role/tests.rs"]
mod tests;

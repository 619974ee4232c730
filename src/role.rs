//! ServiceAccount annotations -> [`RolePlan`]: which role, shown what for it, under which name, for how long.
//!
//! [`annotations`] reads what a tenant wrote; [`plan`] is what STS is asked for, hop by hop, and the key of the answer.

pub mod annotations;
pub mod arn;
pub mod plan;
pub mod pod_annotation;
pub mod roles;
pub mod session_name;
pub mod tags;

use std::sync::Arc;
use std::time::Duration;

pub use self::arn::RoleArn;
pub use self::plan::{Base, By, Claims, Operation, PlanKey, RolePlan};
pub use self::roles::{Plan, RoleName, Roles};
use self::session_name::Template;
use crate::config::AUDIENCE;
use crate::identity::pods::ServiceAccountName;
use crate::policy::Policy;

/// What STS accepts as DurationSeconds.
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html>
pub const SESSION_LIFE: (Duration, Duration) = (Duration::from_secs(900), Duration::from_secs(12 * 3600));

/// Why a ServiceAccount has no usable plan.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// There is no role annotation, or none of this name. There is no default role.
    #[error("ServiceAccount {account} has no role here: annotate it with {annotation}")]
    NoRole {
        /// The caller's ServiceAccount.
        account: ServiceAccountName,
        /// Which annotation is missing.
        annotation: String,
    },
    /// It has roles, and none that is given unasked.
    #[error(
        "ServiceAccount {account} has roles by name alone: ask for one of them, or annotate it with {}",
        annotations::ROLE_ARN
    )]
    NoDefaultRole {
        /// The caller's ServiceAccount.
        account: ServiceAccountName,
    },
    /// The API server has no such ServiceAccount (any more), so what it asked for is not known.
    #[error("ServiceAccount {account} does not exist, and so has no role")]
    NoServiceAccount {
        /// The caller's ServiceAccount.
        account: ServiceAccountName,
    },
    /// So many that what they cost is not the tenant's alone. None of them is read.
    #[error(
        "ServiceAccount {account} has {count} further roles, and can have {most}: use several ServiceAccounts"
    )]
    TooManyRoles {
        /// The caller's ServiceAccount.
        account: ServiceAccountName,
        /// How many it has.
        count: usize,
        /// How many it can have.
        most: usize,
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
        annotation: String,
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
    /// `account` has no role of this name; without a name, no default one.
    pub fn no_role(account: &ServiceAccountName, name: Option<&RoleName>) -> Self {
        let annotation = annotations::ROLE_ARN;
        let annotation = name.map_or_else(|| annotation.into(), |name| format!("{annotation}.{name}"));
        Self::NoRole { account: account.clone(), annotation }
    }

    /// The fixed word of the README's table of answers: metric label, log field and response code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoRole { .. }
            | Self::NoDefaultRole { .. }
            | Self::NoServiceAccount { .. }
            | Self::NoPodRole { .. } => "NoRole",
            Self::InvalidRole { .. } => "InvalidRole",
            Self::InvalidPlan { .. } | Self::TooManyRoles { .. } => "InvalidPlan",
            Self::NotPermitted { .. } | Self::NotAllowed { .. } => "RoleNotAllowed",
        }
    }
}

/// `--role-source`: who says which role a pod gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RoleSource {
    /// Its ServiceAccount's annotations.
    #[default]
    ServiceAccount,
    /// Its own, and its namespace's, as kube2iam and kiam have them.
    PodAnnotation(pod_annotation::Rules),
}

/// What the agent's own configuration adds to every plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// `--role-source`
    pub source: RoleSource,
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
    /// `--sts-mode=assume-role`: the agent's own credentials make the first hop.
    pub by_agent: bool,
    /// `--token-source=issuer`: tokens can say session tags and a source identity.
    pub claims_in_tokens: bool,
}

impl Defaults {
    /// What the agent's flags give when none is set.
    pub fn of_node(node: &str) -> Self {
        Self {
            source: RoleSource::default(),
            audience: AUDIENCE.into(),
            allowed_audiences: vec![AUDIENCE.to_owned()],
            session_duration: Duration::from_secs(3600),
            session_name: Template::parse("{namespace}.{service-account}", node, "")
                .expect("the template is a constant"),
            policy: Policy::default(),
            by_agent: false,
            claims_in_tokens: false,
        }
    }
}

/// A tenant's text, for a message: long enough to be known by. The message goes to the log, and to whoever asks.
pub(crate) fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(100).collect::<String>())
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

#[cfg(test)]
#[path = "role/tests.rs"]
mod tests;

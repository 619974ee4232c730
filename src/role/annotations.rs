//! Annotations -> [`Roles`]. A tenant writes them, so they are input, not orders: what is not understood is refused
//! (`InvalidPlan`), because an older agent must never drop a restriction that a newer one would honour.
//!
//! A setting such as `rolecall.dev/policy-arns` holds for every role of the ServiceAccount, unless the role has its own,
//! `rolecall.dev/policy-arns.NAME`. `not-before` holds for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::plan::{Base, By, Claims, RolePlan, Session};
use super::session_name::{self, Name, Template};
use super::tags::Tag;
use super::{Defaults, Error, RoleArn, RoleName, Roles, SESSION_LIFE, arn, parse_duration, quoted};
use crate::identity::pods::ServiceAccountName;

/// Our own annotations; every other name under it is refused.
const PREFIX: &str = "rolecall.dev/";
pub(super) const ROLE_ARN: &str = "rolecall.dev/role-arn";
pub(super) const ASSUME_ROLE_ARN: &str = "rolecall.dev/assume-role-arn";
pub(super) const SESSION_NAME: &str = "rolecall.dev/session-name";
pub(super) const SESSION_DURATION: &str = "rolecall.dev/session-duration";
pub(super) const POLICY_ARNS: &str = "rolecall.dev/policy-arns";
pub(super) const EXTERNAL_ID: &str = "rolecall.dev/external-id";
pub(super) const SESSION_TAGS: &str = "rolecall.dev/session-tags";
pub(super) const SOURCE_IDENTITY: &str = "rolecall.dev/source-identity";
pub(super) const NOT_BEFORE: &str = "rolecall.dev/not-before";
/// What a role may have of its own, as `ANNOTATION.NAME`. `not-before` is not among them: who revokes means everything.
const OF_A_ROLE: [&str; 8] = [
    ROLE_ARN,
    ASSUME_ROLE_ARN,
    SESSION_NAME,
    SESSION_DURATION,
    POLICY_ARNS,
    EXTERNAL_ID,
    SESSION_TAGS,
    SOURCE_IDENTITY,
];
/// AssumeRole takes these, AssumeRoleWithWebIdentity does not. All but the first can stand in a token that `rolecall issuer` signs.
const OF_THE_SECOND_HOP: [&str; 3] = [EXTERNAL_ID, SESSION_TAGS, SOURCE_IDENTITY];

/// IRSA's annotations, read so that moving in and out changes no ServiceAccount.
pub(super) const EKS_ROLE_ARN: &str = "eks.amazonaws.com/role-arn";
pub(super) const EKS_AUDIENCE: &str = "eks.amazonaws.com/audience";
pub(super) const EKS_TOKEN_EXPIRATION: &str = "eks.amazonaws.com/token-expiration";
pub(super) const EKS_REGIONAL: &str = "eks.amazonaws.com/sts-regional-endpoints";

/// A token is used at once, so its life is short; the API server refuses less than 10 minutes.
/// <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-request-v1/>
const TOKEN_LIFE: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(3600));
/// What the session of a first hop lives: it signs one call in half an hour, and every role may live as long.
const FIRST_HOP_LIFE: Duration = Duration::from_secs(3600);
/// Roles by name. Each costs a session in half an hour, and a place in the cache for each pod that asks for it; and whoever annotates a
/// ServiceAccount has 256 KiB, room for thousands, on every node that has a pod of it.
const MOST_NAMED: usize = 32;
/// STS accepts at most ten session policies.
const MAX_POLICY_ARNS: usize = 10;
/// STS's limits on `ExternalId`.
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>
const EXTERNAL_ID_LENGTH: std::ops::RangeInclusive<usize> = 2..=1224;

impl Roles {
    /// The roles that these annotations ask for.
    pub fn from_annotations(
        account: &ServiceAccountName,
        account_uid: &str,
        annotations: &BTreeMap<String, String>,
        defaults: &Defaults,
    ) -> Self {
        let names: BTreeSet<RoleName> = [ROLE_ARN, ASSUME_ROLE_ARN]
            .into_iter()
            .flat_map(|annotation| annotations.keys().filter_map(move |key| own(key, annotation)))
            .collect();
        if names.len() > MOST_NAMED {
            let (account, count, most) = (account.clone(), names.len(), MOST_NAMED);
            return Self {
                default: Err(Error::TooManyRoles { account, count, most }),
                named: BTreeMap::new(),
            };
        }
        // One look at all annotations for all roles.
        let misunderstood = misunderstood(annotations);
        let plan = |name: Option<&RoleName>| {
            let asked = Asked { account, account_uid, annotations, misunderstood, defaults, name };
            asked.plan().map(Arc::new)
        };
        let default = plan(None).map_err(|refusal| match refusal {
            Error::NoRole { account, .. } if !names.is_empty() => Error::NoDefaultRole { account },
            refusal => refusal,
        });
        Self { default, named: names.into_iter().map(|name| (name.clone(), plan(Some(&name)))).collect() }
    }
}

impl RolePlan {
    /// The plan of the default role alone.
    ///
    /// # Errors
    /// [`Error`]: no role, a malformed or forbidden one, or an annotation that is not understood.
    pub fn from_annotations(
        account: &ServiceAccountName,
        account_uid: &str,
        annotations: &BTreeMap<String, String>,
        defaults: &Defaults,
    ) -> Result<Self, Error> {
        let misunderstood = misunderstood(annotations);
        Asked { account, account_uid, annotations, misunderstood, defaults, name: None }.plan()
    }
}

/// The first annotation of ours that has no meaning. A restriction typed under a wrong name must not be dropped, so a name that no role
/// has is not understood either.
fn misunderstood(annotations: &BTreeMap<String, String>) -> Option<&str> {
    let understood = |key: &str| {
        if !key.starts_with(PREFIX) || key == NOT_BEFORE || OF_A_ROLE.contains(&key) {
            return true;
        }
        OF_A_ROLE.into_iter().find_map(|annotation| own(key, annotation)).is_some_and(|name| {
            [ROLE_ARN, ASSUME_ROLE_ARN]
                .into_iter()
                .any(|annotation| annotations.contains_key(&format!("{annotation}.{name}")))
        })
    };
    annotations.keys().map(String::as_str).find(|key| !understood(key))
}

/// The NAME of `ANNOTATION.NAME`.
fn own(key: &str, annotation: &str) -> Option<RoleName> {
    RoleName::parse(key.strip_prefix(annotation)?.strip_prefix('.')?)
}

/// What the annotations ask for under one name, or none.
struct Asked<'a> {
    account: &'a ServiceAccountName,
    account_uid: &'a str,
    annotations: &'a BTreeMap<String, String>,
    misunderstood: Option<&'a str>,
    defaults: &'a Defaults,
    name: Option<&'a RoleName>,
}

/// An annotation's full name, and its value.
type Setting<'a> = (String, &'a str);

impl Asked<'_> {
    fn plan(&self) -> Result<RolePlan, Error> {
        let second = self.role(self.own(ASSUME_ROLE_ARN))?;
        let first = match self.role(self.own(ROLE_ARN))? {
            Some(first) => Some(first),
            // The default role, or with a second hop every role, begins with the ServiceAccount's own one.
            None if self.name.is_none() || second.is_some() => {
                self.role(self.all(ROLE_ARN).or_else(|| self.all(EKS_ROLE_ARN)))?
            }
            None => None,
        };
        // Before it is said that there is no role: what is misspelt may have been meant for one.
        if let Some(name) = self.misunderstood {
            return Err(self.invalid(
                name.to_owned(),
                "this version of the agent does not understand it, and so grants nothing".into(),
            ));
        }
        let (first, second) = match (first, second) {
            (Some((first, _)), second) => (first, second),
            (None, Some((_, annotation))) => {
                return Err(
                    self.invalid(annotation, format!("needs {ROLE_ARN}, the role that may assume it"))
                );
            }
            (None, None) => return Err(Error::no_role(self.account, self.name)),
        };
        // A hop to the role that is already held would only shorten its session.
        let second = second.map(|(role, _)| role).filter(|second| *second != first);
        for role in std::iter::once(&first).chain(&second) {
            if !self.defaults.policy.allows(&self.account.namespace, role.as_str()) {
                return Err(Error::NotAllowed { account: self.account.clone(), role: role.clone() });
            }
        }

        let last = Session {
            role: second.clone().unwrap_or_else(|| first.clone()),
            name: self.template(SESSION_NAME)?.unwrap_or_else(|| self.defaults.session_name.clone()),
            duration: self.session_duration()?,
            policy_arns: self.policy_arns()?,
            not_before: self.not_before()?,
        };
        let plan = |session, by| RolePlan::new(self.account, self.account_uid, session, by);
        if self.defaults.by_agent {
            return self.by_agent(first, second, last);
        }
        if second.is_none() {
            let impossible =
                if self.defaults.claims_in_tokens { &OF_THE_SECOND_HOP[..1] } else { &OF_THE_SECOND_HOP };
            if let Some((annotation, _)) = impossible.iter().find_map(|name| self.setting(name)) {
                let hop =
                    self.name.map_or(ASSUME_ROLE_ARN.into(), |name| format!("{ASSUME_ROLE_ARN}.{name}"));
                let reason = format!(
                    "only AssumeRole takes it, and this role is had by a web-identity token alone: name a second role in {hop}"
                );
                return Err(self.invalid(annotation, reason));
            }
            return Ok(plan(last, self.web_identity(self.claims()?)?));
        }
        let first = plan(
            Session { role: first, duration: FIRST_HOP_LIFE, policy_arns: Vec::new(), ..last.clone() },
            self.web_identity(Claims::default())?,
        );
        Ok(plan(last, self.assume_role(Base::Plan(Arc::new(first)))?))
    }

    /// `--sts-mode=assume-role`: the agent's own credentials before the first role. What AssumeRole takes belongs to the last one,
    /// as with web identity, so that an annotation means the same in both modes.
    fn by_agent(&self, first: RoleArn, second: Option<RoleArn>, last: Session) -> Result<RolePlan, Error> {
        if let Some((annotation, _)) = self.setting(SESSION_NAME) {
            // Trust policies and CloudTrail can tell the agent's callers by this name alone.
            let reason = "with --sts-mode=assume-role only the agent's --session-name may say who it is; take it away, \
                          be it a pod's iam.amazonaws.com/session-name";
            return Err(self.invalid(annotation, reason.into()));
        }
        // No first hop proves who the caller is: the agent may set what it likes, and trust policies believe it.
        self.proved_source_identity()?;
        let plan = |session, by| RolePlan::new(self.account, self.account_uid, session, by);
        let with = match second {
            None => Base::Agent,
            Some(_) => {
                let before = Session {
                    role: first,
                    duration: FIRST_HOP_LIFE,
                    policy_arns: Vec::new(),
                    ..last.clone()
                };
                let (external_id, tags, source_identity) = Default::default();
                let by = By::AssumeRole { with: Base::Agent, external_id, tags, source_identity };
                Base::Plan(Arc::new(plan(before, by)))
            }
        };
        Ok(plan(last, self.assume_role(with)?))
    }

    fn assume_role(&self, with: Base) -> Result<By, Error> {
        let (external_id, tags, source_identity) =
            (self.external_id()?, self.tags()?, self.source_identity()?);
        Ok(By::AssumeRole { with, external_id, tags, source_identity })
    }

    /// An annotation that holds for all roles.
    fn all(&self, annotation: &str) -> Option<Setting<'_>> {
        Some((annotation.to_owned(), self.annotations.get(annotation)?.trim()))
    }

    /// An annotation of this very role.
    fn own(&self, annotation: &str) -> Option<Setting<'_>> {
        let Some(name) = self.name else { return self.all(annotation) };
        self.all(&format!("{annotation}.{name}"))
    }

    /// An annotation of this very role, or else of all.
    fn setting(&self, annotation: &str) -> Option<Setting<'_>> {
        self.own(annotation).or_else(|| self.all(annotation))
    }

    fn invalid(&self, annotation: String, reason: String) -> Error {
        Error::InvalidPlan { account: self.account.clone(), annotation, reason }
    }

    fn role(&self, setting: Option<Setting<'_>>) -> Result<Option<(RoleArn, String)>, Error> {
        let Some((annotation, value)) = setting else { return Ok(None) };
        match RoleArn::parse(value) {
            Ok(role) => Ok(Some((role, annotation))),
            Err(reason) => Err(Error::InvalidRole {
                account: self.account.clone(),
                annotation,
                value: value.chars().take(200).collect(),
                reason,
            }),
        }
    }

    fn web_identity(&self, claims: Claims) -> Result<By, Error> {
        let audience: Arc<str> = match self.all(EKS_AUDIENCE) {
            None => Arc::clone(&self.defaults.audience),
            Some((_, asked)) if self.defaults.allowed_audiences.iter().any(|allowed| allowed == asked) => {
                asked.into()
            }
            Some((annotation, asked)) => {
                return Err(self.invalid(annotation, format!("{} is not in --allow-audience", quoted(asked))));
            }
        };
        let token_life = match self.all(EKS_TOKEN_EXPIRATION).map(|(name, text)| (name, text.parse::<u64>()))
        {
            None => TOKEN_LIFE.1,
            Some((_, Ok(seconds))) if seconds >= TOKEN_LIFE.0.as_secs() => {
                Duration::from_secs(seconds).min(TOKEN_LIFE.1)
            }
            Some((annotation, _)) => {
                return Err(self.invalid(annotation, "must be a number of seconds, at least 600".into()));
            }
        };
        let global_endpoint = match self.all(EKS_REGIONAL) {
            None | Some((_, "true")) => false,
            Some((_, "false")) => true,
            Some((annotation, _)) => {
                return Err(self.invalid(annotation, "must be \"true\" or \"false\"".into()));
            }
        };
        Ok(By::WebIdentity { audience, token_life, global_endpoint, claims })
    }

    fn session_duration(&self) -> Result<Duration, Error> {
        let Some((annotation, text)) = self.setting(SESSION_DURATION) else {
            return Ok(self.defaults.session_duration);
        };
        parse_duration(text)
            .filter(|duration| (SESSION_LIFE.0..=SESSION_LIFE.1).contains(duration))
            .ok_or_else(|| self.invalid(annotation, "must be from 15m to 12h, with its unit".into()))
    }

    fn template(&self, annotation: &str) -> Result<Option<Template>, Error> {
        let Some((annotation, text)) = self.setting(annotation) else { return Ok(None) };
        self.defaults
            .session_name
            .with_text(text)
            .map(Some)
            .map_err(|reason| self.invalid(annotation, reason))
    }

    fn policy_arns(&self) -> Result<Vec<String>, Error> {
        let Some((annotation, list)) = self.setting(POLICY_ARNS) else { return Ok(Vec::new()) };
        let arns = list.split(',').map(|arn| arn.trim().to_owned());
        let arns: Vec<String> = arns.take(MAX_POLICY_ARNS + 1).collect();
        if arns.len() > MAX_POLICY_ARNS || !arns.iter().all(|arn| arn::is_policy(arn)) {
            return Err(
                self.invalid(annotation, "must be at most 10 policy ARNs, separated by commas".into())
            );
        }
        Ok(arns)
    }

    fn not_before(&self) -> Result<Option<Timestamp>, Error> {
        let Some((annotation, text)) = self.all(NOT_BEFORE) else { return Ok(None) };
        let moment = text.parse::<Timestamp>();
        moment
            .map(Some)
            .map_err(|_| self.invalid(annotation, "must be a time such as 2026-11-22T05:00:00Z".into()))
    }

    fn external_id(&self) -> Result<Option<Arc<str>>, Error> {
        let Some((annotation, text)) = self.setting(EXTERNAL_ID) else { return Ok(None) };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b);
        if !EXTERNAL_ID_LENGTH.contains(&text.len()) || !text.bytes().all(plain) {
            return Err(self.invalid(annotation, "must be 2 to 1224 letters, digits and _+=,.@:/-".into()));
        }
        Ok(Some(text.into()))
    }

    /// For a role that is had by a token alone.
    fn claims(&self) -> Result<Claims, Error> {
        Ok(Claims { source_identity: self.proved_source_identity()?, tags: self.tags()? })
    }

    /// For a session that is made of our word alone.
    fn proved_source_identity(&self) -> Result<Option<Name>, Error> {
        let source_identity = self.source_identity()?;
        if let Some((annotation, text)) = self.setting(SOURCE_IDENTITY) {
            session_name::proves(text).map_err(|reason| self.invalid(annotation, reason))?;
        }
        Ok(source_identity)
    }

    /// Trust policies decide by it, so it is never cleaned as a session name is.
    fn source_identity(&self) -> Result<Option<Name>, Error> {
        let Some((annotation, text)) = self.setting(SOURCE_IDENTITY) else { return Ok(None) };
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-{}".contains(&b)) {
            return Err(self.invalid(annotation, "must be letters, digits, _+=,.@- and placeholders".into()));
        }
        Ok(self.template(SOURCE_IDENTITY)?.map(|template| Name::new(template, self.account)))
    }

    fn tags(&self) -> Result<Vec<Tag>, Error> {
        let Some((annotation, list)) = self.setting(SESSION_TAGS) else { return Ok(Vec::new()) };
        Tag::parse_list(list, self.account, &self.defaults.session_name)
            .map_err(|reason| self.invalid(annotation, reason))
    }
}

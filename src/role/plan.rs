//! What STS is asked for on behalf of one ServiceAccount, hop by hop, and the key of its answer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use ring::digest;

use super::RoleArn;
use super::session_name::{Name, Template};
use super::tags::Tag;
use crate::identity::pods::{Pod, PodUid, ServiceAccountName};

/// STS's limit on a session that a session makes.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles.html#iam-term-role-chaining>
pub const CHAIN_LIMIT: Duration = Duration::from_secs(3600);

/// Identifies what decides an answer: ServiceAccount UID and every field of the plan that STS sees, of all its hops.
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

/// Everything that STS is asked for on behalf of one ServiceAccount: one hop, and by [`By`] the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolePlan {
    /// Whose plan this is.
    pub account: ServiceAccountName,
    /// `metadata.uid` of the ServiceAccount.
    pub account_uid: Arc<str>,
    /// The role.
    pub role: RoleArn,
    /// What STS is shown for it.
    pub by: By,
    /// `RoleSessionName`, the same on every node, unless the template names the pod.
    pub session_name: Name,
    /// `DurationSeconds`.
    pub session_duration: Duration,
    /// What was asked for instead, where [`CHAIN_LIMIT`] has cut it.
    pub cut_from: Option<Duration>,
    /// Session policies (`PolicyArns`): they can only take rights away.
    pub policy_arns: Vec<String>,
    /// Whatever was issued before this moment is dropped, once the moment has come.
    pub not_before: Option<Timestamp>,
    /// Something of it is the pod's own: then every pod has a session of its own.
    pub per_pod: bool,
    /// Set by [`RolePlan::for_pod`] on such a plan: only this pod's token may be used for it.
    pub pod: Option<PodUid>,
    key: PlanKey,
}

/// What STS is shown for a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// AssumeRoleWithWebIdentity: a token of one of the ServiceAccount's pods. The role's trust policy names that account.
    WebIdentity {
        /// The token's only audience.
        audience: Arc<str>,
        /// The token's life.
        token_life: Duration,
        /// `eks.amazonaws.com/sts-regional-endpoints: "false"` asks for the global endpoint.
        global_endpoint: bool,
        /// What the token says beside whose it is: nothing, unless an issuer of our own signs it.
        claims: Claims,
    },
    /// AssumeRole: a signature. Only this call takes an external id, tags and a source identity.
    AssumeRole {
        /// Whose keys sign it.
        with: Base,
        /// `ExternalId`
        external_id: Option<Arc<str>>,
        /// `Tags` and `TransitiveTagKeys`
        tags: Vec<Tag>,
        /// `SourceIdentity`
        source_identity: Option<Name>,
    },
}

/// What a token says to AWS of the session: AssumeRoleWithWebIdentity has no parameters for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// `https://aws.amazon.com/tags`
    pub tags: Vec<Tag>,
    /// `https://aws.amazon.com/source_identity`
    pub source_identity: Option<Name>,
}

impl Claims {
    /// Does the token say nothing beside whose it is?
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.source_identity.is_none()
    }

    /// Does it say something of the very pod?
    fn is_the_pods(&self) -> bool {
        is_the_pods(&self.tags, self.source_identity.as_ref())
    }

    /// What it says for that pod of `account`.
    pub(crate) fn fill(&mut self, account: &ServiceAccountName, pod_name: &str, pod_uid: &PodUid) {
        fill(&mut self.tags, self.source_identity.as_mut(), account, pod_name, pod_uid);
    }
}

fn is_the_pods(tags: &[Tag], source_identity: Option<&Name>) -> bool {
    tags.iter().any(Tag::is_the_pods) || source_identity.is_some_and(Name::is_the_pods)
}

fn fill(
    tags: &mut [Tag],
    source_identity: Option<&mut Name>,
    account: &ServiceAccountName,
    pod_name: &str,
    pod_uid: &PodUid,
) {
    tags.iter_mut().for_each(|tag| tag.fill(pod_name, pod_uid));
    if let Some(source_identity) = source_identity {
        source_identity.fill(account, pod_name);
    }
}

/// Whose keys sign an AssumeRole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// The session of the hop before, which is cached on its own.
    Plan(Arc<RolePlan>),
    /// The agent's own: `--sts-mode=assume-role`, and the first hop.
    Agent,
}

/// What one hop asks for, whatever it shows for it.
#[derive(Clone, Debug)]
pub struct Session {
    /// The role.
    pub role: RoleArn,
    /// `RoleSessionName`
    pub name: Template,
    /// `DurationSeconds`
    pub duration: Duration,
    /// `PolicyArns`
    pub policy_arns: Vec<String>,
    /// See [`RolePlan::not_before`].
    pub not_before: Option<Timestamp>,
}

impl RolePlan {
    /// A plan of the ServiceAccount with that UID. Whether it may have the role is for the caller to say.
    pub fn new(account: &ServiceAccountName, account_uid: &str, session: Session, by: By) -> Self {
        let Session { role, name, duration, policy_arns, not_before } = session;
        let limit = if by.is_chained() { CHAIN_LIMIT } else { Duration::MAX };
        let mut plan = Self {
            account: account.clone(),
            account_uid: account_uid.into(),
            role,
            session_name: Name::new(name, account),
            session_duration: duration.min(limit),
            cut_from: (duration > limit).then_some(duration),
            policy_arns,
            not_before,
            per_pod: false,
            pod: None,
            key: PlanKey([0; 32]),
            by,
        };
        plan.per_pod = plan.session_name.is_the_pods() || plan.by.is_the_pods();
        plan.key = plan.compute_key();
        plan
    }

    /// Says in the log that its session is shorter than was asked for.
    pub fn tell_cut(&self, asked: Duration) {
        tracing::info!(
            service_account = %self.account, role.arn = %self.role, asked_s = asked.as_secs(),
            "cut to an hour: STS lets no session make another one that lives longer",
        );
    }

    /// The key under which the answer is cached.
    pub fn key(&self) -> PlanKey {
        self.key
    }

    /// The hop before this one, whose session signs for it.
    pub fn before(&self) -> Option<&Arc<RolePlan>> {
        match &self.by {
            By::AssumeRole { with: Base::Plan(before), .. } => Some(before),
            By::AssumeRole { with: Base::Agent, .. } | By::WebIdentity { .. } => None,
        }
    }

    /// This hop and those before it, the last one first.
    pub fn hops(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Self>> {
        std::iter::successors(Some(self), |hop| hop.before())
    }

    fn backwards(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |hop| hop.before().map(Arc::as_ref))
    }

    /// The audience of the token that its first hop shows.
    pub fn audience(&self) -> Option<&Arc<str>> {
        self.backwards().find_map(|hop| match &hop.by {
            By::WebIdentity { audience, .. } => Some(audience),
            By::AssumeRole { .. } => None,
        })
    }

    /// Does its first hop ask the global endpoint? Keys from there are good where the global endpoint is.
    pub fn global_endpoint(&self) -> bool {
        self.backwards().any(|hop| matches!(hop.by, By::WebIdentity { global_endpoint: true, .. }))
    }

    /// The plan as it applies to `pod`: itself, unless something of it is the pod's own.
    pub fn for_pod(self: &Arc<Self>, pod: &Pod) -> Arc<Self> {
        if !self.per_pod {
            return Arc::clone(self);
        }
        let mut plan = (**self).clone();
        plan.session_name.fill(&plan.account, &pod.name);
        match &mut plan.by {
            By::WebIdentity { claims, .. } => claims.fill(&plan.account, &pod.name, &pod.uid),
            By::AssumeRole { with, tags, source_identity, .. } => {
                match with {
                    Base::Plan(before) => *before = before.for_pod(pod),
                    Base::Agent => {}
                }
                fill(tags, source_identity.as_mut(), &plan.account, &pod.name, &pod.uid);
            }
        }
        plan.pod = Some(pod.uid.clone());
        plan.key = plan.compute_key();
        Arc::new(plan)
    }

    /// Does revocation by `not-before` hit something issued at `issued`, as of `now`? What seems to be issued later than now was so by
    /// a clock that has been set back since, and may be older than it says.
    pub fn revokes(&self, issued: Timestamp, now: Timestamp) -> bool {
        self.not_before.is_some_and(|moment| moment <= now && (issued < moment || issued > now))
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
        field(self.session_name.as_str().as_bytes());
        field(&self.session_duration.as_secs().to_le_bytes());
        field(self.pod.as_ref().map_or("", PodUid::as_str).as_bytes());
        // A list begins with its length: what follows it is no part of it.
        field(&(self.policy_arns.len() as u64).to_le_bytes());
        for arn in &self.policy_arns {
            field(arn.as_bytes());
        }
        // Each kind of hop begins with its own word, so that no field of one is taken for another's.
        match &self.by {
            By::WebIdentity { audience, token_life, global_endpoint, claims } => {
                field(b"web-identity");
                field(audience.as_bytes());
                field(&token_life.as_secs().to_le_bytes());
                field(&[u8::from(*global_endpoint)]);
                optional(&mut field, claims.source_identity.as_ref().map(Name::as_str));
                all(&mut field, &claims.tags);
            }
            By::AssumeRole { with, external_id, tags, source_identity } => {
                field(b"assume-role");
                match with {
                    Base::Plan(before) => {
                        field(b"plan");
                        field(&before.key.0);
                    }
                    // Whichever they are: they are not the caller's, and he gets the same with others.
                    Base::Agent => field(b"agent"),
                }
                optional(&mut field, external_id.as_deref());
                optional(&mut field, source_identity.as_ref().map(Name::as_str));
                all(&mut field, tags);
            }
        }
        let mut key = [0; 32];
        key.copy_from_slice(context.finish().as_ref());
        PlanKey(key)
    }
}

fn optional(field: &mut impl FnMut(&[u8]), text: Option<&str>) {
    field(&[u8::from(text.is_some())]);
    field(text.unwrap_or_default().as_bytes());
}

fn all(field: &mut impl FnMut(&[u8]), tags: &[Tag]) {
    field(&(tags.len() as u64).to_le_bytes());
    for tag in tags {
        field(tag.key().as_bytes());
        field(tag.value().as_bytes());
        field(&[u8::from(tag.transitive)]);
    }
}

impl By {
    /// STS's name of the call, as metrics and the log have it.
    pub fn operation(&self) -> Operation {
        match self {
            Self::WebIdentity { .. } => Operation::AssumeRoleWithWebIdentity,
            Self::AssumeRole { .. } => Operation::AssumeRole,
        }
    }

    /// Is it made with a role's session? Then STS makes sessions of an hour at most.
    fn is_chained(&self) -> bool {
        match self {
            // Base credentials may be a session too; only the agent that has them knows.
            Self::WebIdentity { .. } | Self::AssumeRole { with: Base::Agent, .. } => false,
            Self::AssumeRole { with: Base::Plan(_), .. } => true,
        }
    }

    fn is_the_pods(&self) -> bool {
        match self {
            Self::WebIdentity { claims, .. } => claims.is_the_pods(),
            Self::AssumeRole { with, tags, source_identity, .. } => {
                matches!(with, Base::Plan(before) if before.per_pod)
                    || is_the_pods(tags, source_identity.as_ref())
            }
        }
    }
}

/// A call of STS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Shows a token.
    AssumeRoleWithWebIdentity,
    /// Shows a signature.
    AssumeRole,
}

impl Operation {
    /// All there are, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::AssumeRoleWithWebIdentity, Self::AssumeRole];

    /// STS's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AssumeRoleWithWebIdentity => "AssumeRoleWithWebIdentity",
            Self::AssumeRole => "AssumeRole",
        }
    }
}

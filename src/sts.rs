//! RolePlan + BoundToken, or the keys of the hop before -> Credentials: the client, its deadlines, and what a refusal
//! means.

mod answer;
mod assume_role;
pub mod connector;
pub mod endpoint;
mod trouble;
mod web_identity;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_sts::config::{BehaviorVersion, Region};
use aws_sdk_sts::types::PolicyDescriptorType;
use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_async::time::SystemTimeSource;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use futures_util::future::BoxFuture;

use self::connector::CaBundle;
use self::endpoint::{Endpoint, Settings};
use crate::base_credentials::BaseCredentials;
use crate::credentials::{Credentials, Keys};
use crate::role::{Base, By, Operation, RolePlan};
use crate::token::BoundToken;

/// One hop: enough for a slow region, short enough that a renewal can try again.
const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(8);
/// The region that signatures for the global endpoint name.
const GLOBAL_REGION: &str = "us-east-1";

/// Why STS gave no credentials. What it means for the caller is decided by STS's own code.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// STS will say the same until somebody changes something: trust policy, provider, plan.
    #[error("STS refused {role}: {code}. {fix}")]
    Denied {
        /// The role that was asked for; for a second hop, by which other one.
        role: String,
        /// STS's own error code.
        code: String,
        /// What most likely puts it right.
        fix: &'static str,
    },
    /// STS asked for fewer calls.
    #[error("STS throttles this account: {code}")]
    Throttled {
        /// STS's own error code.
        code: String,
    },
    /// The role is of another partition than the STS that would be asked.
    #[error(
        "{role} is in the partition {theirs}, and this agent asks the STS of {ours}: check the ARN and the agent's --region"
    )]
    Foreign {
        /// The role that was asked for.
        role: String,
        /// Its partition.
        theirs: String,
        /// The region's.
        ours: &'static str,
    },
    /// STS could not be reached, failed, or answered with something that is not an answer.
    #[error("STS is not available: {0}")]
    Away(String),
}

impl Error {
    /// The fixed word of the README's table of answers.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Denied { .. } => "StsDenied",
            Self::Foreign { .. } => "InvalidRole",
            Self::Throttled { .. } => "StsThrottled",
            Self::Away(_) => "StsUnavailable",
        }
    }

    /// Sorts STS's answer by its code; `message` decides only where one code means two things.
    /// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html#API_AssumeRoleWithWebIdentity_Errors>
    fn from_answer(plan: &RolePlan, status: u16, code: Option<&str>, message: &str) -> Self {
        let Some(code) = code else {
            return Self::Away(format!("HTTP status {status} without an error code"));
        };
        match code {
            "Throttling"
            | "ThrottlingException"
            | "ThrottledException"
            | "RequestLimitExceeded"
            | "TooManyRequestsException"
            | "SlowDown" => Self::Throttled { code: code.into() },
            // STS could not fetch the issuer's keys at that moment; the PHP and Ruby SDKs retry it too.
            "InvalidIdentityToken" if message.contains("retrieve verification key") => {
                Self::Away(format!("{code}: STS could not fetch the issuer's keys"))
            }
            "IDPCommunicationError"
            | "RequestTimeout"
            | "RequestTimeoutException"
            | "InternalFailure"
            | "InternalError"
            | "InternalServerError"
            | "ServiceUnavailable" => Self::Away(code.into()),
            _ if status == 429 => Self::Throttled { code: code.into() },
            _ if status >= 500 => Self::Away(format!("HTTP status {status}, {code}")),
            _ => Self::Denied {
                role: match &plan.by {
                    By::WebIdentity { .. } => plan.role.to_string(),
                    By::AssumeRole { with: Base::Plan(before), .. } => {
                        format!("{} to {}", plan.role, before.role)
                    }
                    By::AssumeRole { with: Base::Agent, .. } => {
                        format!("{} to the agent's base credentials", plan.role)
                    }
                },
                code: code.into(),
                fix: match &plan.by {
                    By::AssumeRole { with: Base::Agent, .. } => likely_fix_of_base(code),
                    By::AssumeRole { .. } | By::WebIdentity { .. } => None,
                }
                .unwrap_or_else(|| likely_fix(plan.by.operation(), code, message)),
            },
        }
    }

    /// Does STS no longer take the keys that signed the call? Others may do.
    pub fn keys_are_spent(&self) -> bool {
        matches!(self, Self::Denied { code, .. } if SPENT.contains(&code.as_str()))
    }
}

/// What STS says of keys that have ended, or that it does not know (any more).
const SPENT: [&str; 3] = ["ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId"];

/// What an operator most often has to do, by STS's code. The upstream text stays in the log.
fn likely_fix(operation: Operation, code: &str, message: &str) -> &'static str {
    match (operation, code) {
        // AWS does not always say which of the actions it was.
        (Operation::AssumeRoleWithWebIdentity, "AccessDenied" | "AccessDeniedException") => {
            "The role's trust policy must allow sts:AssumeRoleWithWebIdentity to this cluster's OIDC provider for this ServiceAccount and audience; and sts:TagSession and sts:SetSourceIdentity, if the issuer's token asks for them"
        }
        // AWS's words are "… is not authorized to perform: ACTION on resource: …".
        (Operation::AssumeRole, "AccessDenied" | "AccessDeniedException")
            if message.contains("sts:TagSession") =>
        {
            "For its session tags the former's trust policy and the latter's own policies must allow sts:TagSession as well"
        }
        (Operation::AssumeRole, "AccessDenied" | "AccessDeniedException")
            if message.contains("sts:SetSourceIdentity") =>
        {
            "For its source identity the former's trust policy and the latter's own policies must allow sts:SetSourceIdentity as well"
        }
        (Operation::AssumeRole, "AccessDenied" | "AccessDeniedException") => {
            "The former's trust policy must name the latter, with the external id if it asks for one, and the latter's own policies must allow sts:AssumeRole on the former"
        }
        (Operation::AssumeRole, "SignatureDoesNotMatch" | "InvalidSignatureException" | "RequestExpired") => {
            "Check the clock of this node, and that --region is the one that this STS signs for"
        }
        (Operation::AssumeRole, code) if SPENT.contains(&code) => {
            "STS no longer takes the keys of the first hop, which is made again"
        }
        (_, "InvalidIdentityToken") => {
            "IAM needs an OIDC provider for this cluster's issuer that lists the token's audience, and must be able to fetch its keys"
        }
        (_, "IDPRejectedClaim") => {
            "The OIDC provider rejected the token: check the issuer's keys and the audience"
        }
        (_, "ExpiredTokenException" | "ExpiredToken") => {
            "The token was fresh: check the clocks of this node and of the API server"
        }
        (_, "ValidationError") => {
            "Check the ARN, and that the session's duration is at most the role's MaxSessionDuration"
        }
        (_, "RegionDisabledException") => {
            "Activate STS in this region, or set --region to one where it is active"
        }
        (_, "PackedPolicyTooLarge" | "MalformedPolicyDocument") => {
            "Check the rolecall.dev/policy-arns and rolecall.dev/session-tags annotations"
        }
        _ => "The agent's log has STS's own words",
    }
}

/// The same where it was the agent's own keys that STS did not like.
fn likely_fix_of_base(code: &str) -> Option<&'static str> {
    match code {
        code if SPENT.contains(&code) => Some(
            "STS does not know the agent's base credentials, or no longer: its log says where they come from",
        ),
        "SignatureDoesNotMatch" | "InvalidSignatureException" | "RequestExpired" => Some(
            "Check the secret key of the agent's base credentials, the clock of this node, and that --region is the one that this STS signs for",
        ),
        _ => None,
    }
}

/// The door to STS.
pub trait Sts: Send + Sync + 'static {
    /// AssumeRoleWithWebIdentity: one attempt, bounded in time; retrying is the plan's business.
    fn assume_role_with_web_identity<'a>(
        &'a self,
        plan: &'a RolePlan,
        token: &'a BoundToken,
    ) -> BoxFuture<'a, Result<Credentials, Error>>;

    /// What the agent itself signs with, where `--sts-mode` says so.
    fn base(&self) -> Option<&BaseCredentials> {
        None
    }

    /// AssumeRole, signed with `keys`: one attempt as well.
    fn assume_role<'a>(
        &'a self,
        plan: &'a RolePlan,
        keys: &'a Keys,
    ) -> BoxFuture<'a, Result<Credentials, Error>>;
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// AWS has no such endpoint.
    #[error(
        "no STS endpoint for region {region}: {why} (--use-fips-endpoint, --use-dualstack-endpoint, --sts-endpoint-url)"
    )]
    Endpoint {
        /// The region.
        region: String,
        /// In the SDK's words.
        why: String,
    },
    /// Roots or proxy that the SDK does not take.
    #[error("no connection to STS is possible: {0}")]
    Connector(String),
}

/// The real STS, or whatever speaks its protocol.
pub struct StsClient {
    region: String,
    settings: Settings,
    endpoint: Endpoint,
    /// With the bundle whose roots it believes.
    current: Mutex<(Option<CaBundle>, aws_sdk_sts::Client)>,
}

impl Sts for StsClient {
    fn assume_role_with_web_identity<'a>(
        &'a self,
        plan: &'a RolePlan,
        token: &'a BoundToken,
    ) -> BoxFuture<'a, Result<Credentials, Error>> {
        Box::pin(self.call_with_token(plan, token))
    }

    fn assume_role<'a>(
        &'a self,
        plan: &'a RolePlan,
        keys: &'a Keys,
    ) -> BoxFuture<'a, Result<Credentials, Error>> {
        Box::pin(self.call_with_keys(plan, keys))
    }
}

impl StsClient {
    /// A client of the region's endpoint, or of the one in `settings`.
    ///
    /// # Errors
    /// [`SetupError`]: nothing that asking again would change.
    pub fn new(region: &str, settings: Settings) -> Result<Self, SetupError> {
        let endpoint = Endpoint::resolve(region, &settings)
            .map_err(|why| SetupError::Endpoint { region: region.to_owned(), why })?;
        let bundle = settings.ca_bundle.clone();
        let client = build(region, &settings, bundle.as_ref()).map_err(SetupError::Connector)?;
        Ok(Self { region: region.to_owned(), settings, endpoint, current: Mutex::new((bundle, client)) })
    }

    /// Where calls go, as the SDK resolved it.
    pub fn url(&self) -> &str {
        &self.endpoint.url
    }

    /// The client for the next call: it believes what the CA bundle holds now.
    async fn client(&self) -> aws_sdk_sts::Client {
        let (bundle, client) = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(bundle) = bundle else { return client };
        let changed = match bundle.changed().await {
            Ok(None) => return client,
            Ok(Some(changed)) => {
                build(&self.region, &self.settings, Some(&changed)).map(|client| (changed, client))
            }
            Err(why) => Err(why),
        };
        match changed {
            Ok((changed, client)) => {
                tracing::info!(bundle = ?changed, "--sts-ca-bundle has changed: from now on its new roots are believed");
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) =
                    (Some(changed), client.clone());
                client
            }
            // Half of a renewal, perhaps: what was good a call ago still is.
            Err(why) => {
                tracing::warn!(
                    error = why,
                    "--sts-ca-bundle has changed and cannot be used: the last one stays"
                );
                client
            }
        }
    }
}

impl StsClient {
    /// Where this plan's calls go, if not to where all others go.
    fn of_plan(&self, plan: &RolePlan) -> aws_sdk_sts::config::Builder {
        let config = aws_sdk_sts::Config::builder();
        match self.endpoint.global.as_deref().filter(|_| plan.global_endpoint()) {
            // What `sts-regional-endpoints: "false"` asks for.
            Some(global) => config.endpoint_url(global).region(Region::new(GLOBAL_REGION)),
            None => config,
        }
    }
}

fn policies(plan: &RolePlan) -> Option<Vec<PolicyDescriptorType>> {
    let arns = plan.policy_arns.iter().map(|arn| PolicyDescriptorType::builder().arn(arn).build());
    (!plan.policy_arns.is_empty()).then(|| arns.collect())
}

fn build(
    region: &str,
    settings: &Settings,
    bundle: Option<&CaBundle>,
) -> Result<aws_sdk_sts::Client, String> {
    let mut config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(region.to_owned()))
        .use_fips(settings.fips)
        .use_dual_stack(settings.dual_stack)
        .http_client(connector::http_client(bundle, settings.proxy.as_ref())?)
        .sleep_impl(TokioSleep::new())
        .time_source(SystemTimeSource::new())
        // One attempt: the SDK would retry inside our deadline and lose the error that explains it.
        .retry_config(RetryConfig::disabled())
        .timeout_config(
            TimeoutConfig::builder().connect_timeout(CONNECT).operation_timeout(CONNECT + ANSWER).build(),
        );
    config.set_endpoint_url(settings.url.clone());
    Ok(aws_sdk_sts::Client::from_conf(config.build()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::pods::ServiceAccountName;
    use crate::role::Defaults;

    fn plan(annotations: &[(&str, &str)]) -> RolePlan {
        let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let account = ServiceAccountName { namespace: "shop".into(), name: "web".into() };
        RolePlan::from_annotations(&account, "uid-1", &annotations, &Defaults::of_node("node-1")).unwrap()
    }

    const FIRST: (&str, &str) = ("rolecall.dev/role-arn", "arn:aws:iam::123456789012:role/demo");
    const SECOND: (&str, &str) = ("rolecall.dev/assume-role-arn", "arn:aws:iam::999988887777:role/team");

    fn sorted(status: u16, code: &str, message: &str) -> &'static str {
        Error::from_answer(&plan(&[FIRST]), status, Some(code), message).code()
    }

    #[test]
    fn a_refused_second_hop_names_both_roles_and_what_each_must_allow() {
        let said = |message: &str| {
            Error::from_answer(&plan(&[FIRST, SECOND]), 403, Some("AccessDenied"), message).to_string()
        };
        let about =
            "User: arn:aws:sts::123456789012:assumed-role/demo/shop.web is not authorized to perform:";
        for (action, fix) in [
            ("sts:AssumeRole", "must allow sts:AssumeRole on the former"),
            ("sts:TagSession", "must allow sts:TagSession"),
            ("sts:SetSourceIdentity", "must allow sts:SetSourceIdentity"),
        ] {
            let said = said(&format!("{about} {action} on resource: {}", SECOND.1));
            assert!(said.contains(&format!("{} to {}: AccessDenied", SECOND.1, FIRST.1)), "{said}");
            assert!(said.contains(fix), "{said}");
        }
    }

    #[test]
    fn codes_are_sorted_into_refused_throttled_and_passing() {
        for (status, code) in [
            (403, "AccessDenied"),
            (400, "InvalidIdentityToken"),
            (403, "IDPRejectedClaim"),
            (400, "ValidationError"),
            (400, "ExpiredTokenException"),
            (403, "RegionDisabledException"),
            (400, "SomethingNew"),
        ] {
            assert_eq!(sorted(status, code, ""), "StsDenied", "{code}");
        }
        for (status, code) in [(400, "Throttling"), (503, "RequestLimitExceeded"), (429, "Whatever")] {
            assert_eq!(sorted(status, code, ""), "StsThrottled", "{code}");
        }
        for (status, code) in [(400, "IDPCommunicationError"), (500, "InternalFailure"), (502, "Whatever")] {
            assert_eq!(sorted(status, code, ""), "StsUnavailable", "{code}");
        }
        assert_eq!(
            sorted(
                400,
                "InvalidIdentityToken",
                "Couldn't retrieve verification key from your identity provider"
            ),
            "StsUnavailable"
        );
        assert_eq!(Error::from_answer(&plan(&[FIRST]), 200, None, "").code(), "StsUnavailable");
    }
}

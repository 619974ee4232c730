//! RolePlan + BoundToken, or the keys of the hop before -> Credentials: endpoint, region, CA, deadlines, and what a
//! refusal means.

mod answer;
mod assume_role;
mod web_identity;

use std::time::Duration;

use aws_sdk_sts::config::{BehaviorVersion, Region};
use aws_sdk_sts::types::PolicyDescriptorType;
use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_async::time::SystemTimeSource;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use futures_util::future::BoxFuture;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::base_credentials::BaseCredentials;
use crate::credentials::{Credentials, Keys};
use crate::role::{Base, By, Operation, RolePlan};
use crate::token::BoundToken;

/// One hop: enough for a slow region, short enough that a renewal can try again.
const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(8);
/// STS closes idle connections, and a dead pooled one stalls the next call; renewals are far apart anyway.
const POOL_IDLE: Duration = Duration::from_secs(20);
/// What `sts-regional-endpoints: "false"` asks for, in the aws partition, and the region that signatures for it name.
const GLOBAL_ENDPOINT: (&str, &str) = ("https://sts.amazonaws.com", "us-east-1");

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
    /// STS could not be reached, failed, or answered with something that is not an answer.
    #[error("STS is not available: {0}")]
    Away(String),
}

impl Error {
    /// The fixed word of the README's table of answers.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Denied { .. } => "StsDenied",
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

/// The real STS, or whatever speaks its protocol.
pub struct StsClient {
    client: aws_sdk_sts::Client,
    custom_endpoint: bool,
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
    /// A client of the regional endpoint, or of `endpoint_url` with the roots in `ca_bundle` beside the system's.
    ///
    /// # Errors
    /// A CA bundle that is not PEM, as a phrase for the message.
    pub fn new(region: &str, endpoint_url: Option<&str>, ca_bundle: Option<&[u8]>) -> Result<Self, String> {
        let mut roots = TrustStore::default();
        if let Some(pem) = ca_bundle {
            check_pem(pem)?;
            roots.add_pem_certificate(pem);
        }
        let tls = TlsContext::builder().with_trust_store(roots).build().map_err(|err| err.to_string())?;
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .tls_context(tls)
            .pool_idle_timeout(POOL_IDLE)
            .build_https();
        let mut config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(region.to_owned()))
            .http_client(http)
            .sleep_impl(TokioSleep::new())
            .time_source(SystemTimeSource::new())
            // One attempt: the SDK would retry inside our deadline and lose the error that explains it.
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder().connect_timeout(CONNECT).operation_timeout(CONNECT + ANSWER).build(),
            );
        config.set_endpoint_url(endpoint_url.map(str::to_owned));
        Ok(Self {
            client: aws_sdk_sts::Client::from_conf(config.build()),
            custom_endpoint: endpoint_url.is_some(),
        })
    }
}

impl StsClient {
    /// Where this plan's calls go, if not to where all others go, and whose keys sign them.
    fn of_plan(&self, plan: &RolePlan) -> aws_sdk_sts::config::Builder {
        let config = aws_sdk_sts::Config::builder();
        if plan.global_endpoint() && !self.custom_endpoint {
            let (url, region) = GLOBAL_ENDPOINT;
            return config.endpoint_url(url).region(Region::new(region));
        }
        config
    }
}

fn policies(plan: &RolePlan) -> Option<Vec<PolicyDescriptorType>> {
    let arns = plan.policy_arns.iter().map(|arn| PolicyDescriptorType::builder().arn(arn).build());
    (!plan.policy_arns.is_empty()).then(|| arns.collect())
}

/// The SDK panics on a bad bundle, so it is read here first.
pub(crate) fn check_pem(pem: &[u8]) -> Result<(), String> {
    let mut certificates = 0;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots
            .add(certificate.map_err(|err| format!("it is not PEM: {err:?}"))?)
            .map_err(|err| format!("it holds a bad certificate: {err}"))?;
        certificates += 1;
    }
    if certificates == 0 { Err("it holds no certificate".into()) } else { Ok(()) }
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

    #[test]
    fn a_ca_bundle_that_is_none_is_refused_not_a_panic() {
        for bundle in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(StsClient::new("eu-west-1", None, Some(bundle.as_bytes())).is_err(), "{bundle}");
        }
    }
}

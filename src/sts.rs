//! RolePlan + BoundToken -> Credentials: endpoint, region, CA, deadlines, and what a refusal means.

pub mod web_identity;

use std::time::Duration;

use aws_sdk_sts::config::{BehaviorVersion, Region};
use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_async::time::SystemTimeSource;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use futures_util::future::BoxFuture;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::credentials::Credentials;
use crate::role::RolePlan;
use crate::token::BoundToken;

/// One hop: enough for a slow region, short enough that a renewal can try again.
const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(8);
/// STS closes idle connections, and a dead pooled one stalls the next call; renewals are far apart anyway.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// Why STS gave no credentials. What it means for the caller is decided by STS's own code.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// STS will say the same until somebody changes something: trust policy, provider, plan.
    #[error("STS refused {role}: {code}. {fix}")]
    Denied {
        /// The role that was asked for.
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
    fn from_answer(role: &str, status: u16, code: Option<&str>, message: &str) -> Self {
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
            _ => Self::Denied { role: role.into(), code: code.into(), fix: likely_fix(code) },
        }
    }
}

/// What an operator most often has to do, by STS's code. The upstream text stays in the log.
fn likely_fix(code: &str) -> &'static str {
    match code {
        "AccessDenied" | "AccessDeniedException" => {
            "The role's trust policy must allow sts:AssumeRoleWithWebIdentity to this cluster's OIDC provider for this ServiceAccount and audience"
        }
        "InvalidIdentityToken" => {
            "IAM needs an OIDC provider for this cluster's issuer that lists the token's audience, and must be able to fetch its keys"
        }
        "IDPRejectedClaim" => {
            "The OIDC provider rejected the token: check the issuer's keys and the audience"
        }
        "ExpiredTokenException" | "ExpiredToken" => {
            "The token was fresh: check the clocks of this node and of the API server"
        }
        "ValidationError" => {
            "Check the ARN, and that the session's duration is at most the role's MaxSessionDuration"
        }
        "RegionDisabledException" => "Activate STS in this region, or set --region to one where it is active",
        "PackedPolicyTooLarge" | "MalformedPolicyDocument" => "Check the rolecall.dev/policy-arns annotation",
        _ => "The agent's log has STS's own words",
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
}

/// The real STS, or whatever speaks its protocol.
pub struct StsClient {
    client: aws_sdk_sts::Client,
    custom_endpoint: bool,
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

    fn sorted(status: u16, code: &str, message: &str) -> &'static str {
        Error::from_answer("arn:aws:iam::123456789012:role/demo", status, Some(code), message).code()
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
        assert_eq!(Error::from_answer("r", 200, None, "").code(), "StsUnavailable");
    }

    #[test]
    fn a_ca_bundle_that_is_none_is_refused_not_a_panic() {
        for bundle in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(StsClient::new("eu-west-1", None, Some(bundle.as_bytes())).is_err(), "{bundle}");
        }
    }
}

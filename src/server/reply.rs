//! Refusal -> status, code, body: the only such table. A new error must choose its answer here.
//!
//! What an SDK does on each status is measured: 5xx is retried by all of them, 4xx by few, 429 by some and never by
//! others, so it is never used. An error body is JSON with both spellings, under exactly `application/json`: Go v2
//! and Kotlin compare that string, and show the raw body with an empty code otherwise.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;

use crate::identity::authorization::Fault;
use crate::identity::evidence::Doubt;
use crate::{broker, cluster, exchange, identity, role, sts};

/// `Content-Type` of every answer.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// The same of instance metadata, as the real service has it.
pub const TEXT: HeaderValue = HeaderValue::from_static("text/plain");
/// How long a token is to live, or lives: IMDSv2.
pub const METADATA_TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
/// Credentials must not be kept by anything on the way.
pub const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// By this `rolecall net verify` knows that the answer is this very agent's: `/statusz` shows the same value.
pub const INSTANCE: HeaderName = HeaderName::from_static("x-rolecall-instance");

/// A request that is refused for what it is, before anybody asks who sent it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RequestError {
    /// Another path than `/v1/credentials` and `/v1/credentials/NAME`.
    #[error("only /v1/credentials is served here, and /v1/credentials/NAME for further roles")]
    NotFound,
    /// Another method than GET.
    #[error("only GET is answered here")]
    MethodNotAllowed,
    /// More than any SDK sends.
    #[error("the request's headers are over 8 KiB")]
    HeadersTooLarge,
    /// A browser, a proxy or a rebound name sent it, not an SDK.
    #[error("{0}: credentials are given only to a direct request for this address")]
    NotDirect(&'static str),
    /// Another path than those of instance metadata that pods are answered, or another role than the pod's.
    #[error("of instance metadata, pods are answered no such path")]
    NoSuchMetadata,
    /// Version 1 of instance metadata.
    #[error("the request needs a token: PUT /latest/api/token gives one (IMDSv2)")]
    MetadataTokenRequired,
    /// Forged, expired, of another pod or of another node.
    #[error("the token of the request is no good: PUT /latest/api/token gives a new one")]
    MetadataTokenInvalid,
    /// As the real service has it.
    #[error("the header X-aws-ec2-metadata-token-ttl-seconds must be a number from 1 to 21600")]
    MetadataTokenTtl,
    /// `--imds-passthrough-namespace`: the node has none, or it is slow.
    #[error("the node's own instance metadata does not answer: {0}")]
    NodeMetadata(String),
    /// Its origin has more than its share of the agent under way.
    #[error("{0}; ask again")]
    Overloaded(&'static str),
}

impl RequestError {
    /// The fixed word.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound | Self::NoSuchMetadata => "NotFound",
            Self::MetadataTokenRequired => "MetadataTokenRequired",
            Self::MetadataTokenInvalid => "MetadataTokenInvalid",
            Self::MetadataTokenTtl => "MetadataTokenTtl",
            Self::NodeMetadata(_) => "NodeMetadataUnavailable",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::HeadersTooLarge => "HeadersTooLarge",
            Self::NotDirect(_) => "RequestNotDirect",
            Self::Overloaded(_) => "Overloaded",
        }
    }
}

/// Everything but credentials.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// The request itself.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A step of the path.
    #[error(transparent)]
    Broker(#[from] broker::Error),
}

impl Refusal {
    /// The fixed word: metric label, log field and response code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Request(err) => err.code(),
            Self::Broker(err) => err.code(),
        }
    }

    /// The status, and what an SDK does on seeing it.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Request(err) => match err {
                // Asked for a role list, every SDK stops at once but botocore, JS and Ruby.
                RequestError::NotFound | RequestError::NoSuchMetadata => StatusCode::NOT_FOUND,
                // Go v2, Rust and C++ get a new token and ask again; the others fail that call.
                RequestError::MetadataTokenRequired | RequestError::MetadataTokenInvalid => {
                    StatusCode::UNAUTHORIZED
                }
                // Fatal in all, as it should be: no SDK sends such a thing.
                RequestError::MetadataTokenTtl => StatusCode::BAD_REQUEST,
                RequestError::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
                RequestError::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                RequestError::NotDirect(_) => StatusCode::FORBIDDEN,
                // Never 429, which Rust, Java and PHP do not ask again after.
                RequestError::Overloaded(_) | RequestError::NodeMetadata(_) => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
            },
            Self::Broker(err) => match err {
                broker::Error::Identity(err) => match err {
                    // Go, Rust, Java, C++ stop at once; botocore and JS ask three or four times.
                    identity::Error::Host { .. }
                    | identity::Error::Ambiguous { .. }
                    | identity::Error::Gone { .. }
                    | identity::Error::NoSuchPod { .. }
                    | identity::Error::NotItsAddress { .. }
                    | identity::Error::NotItsToken { .. } => StatusCode::FORBIDDEN,
                    // Go, Rust, Java, C++ stop at once; every SDK reads its token file again for the next try.
                    identity::Error::AuthorizationRequired | identity::Error::AuthorizationInvalid(_) => {
                        StatusCode::UNAUTHORIZED
                    }
                    // The pod's next connection may find its bucket filled again.
                    identity::Error::Unattested { doubt: Doubt::Busy, .. }
                    | identity::Error::TooManyReviews => StatusCode::SERVICE_UNAVAILABLE,
                    identity::Error::Unattested {
                        doubt:
                            Doubt::Host
                            | Doubt::NotAPod { .. }
                            | Doubt::NoPod
                            | Doubt::SeveralPods
                            | Doubt::SeveralHaveIt { .. }
                            | Doubt::StaticPod
                            | Doubt::NotItsAddress { .. }
                            | Doubt::NoSuchConnection { .. }
                            | Doubt::Unreadable(_),
                        ..
                    } => StatusCode::FORBIDDEN,
                    // Retried by all: the next try finds the pod, or the API server.
                    identity::Error::NotKnownYet { .. }
                    | identity::Error::Terminating { .. }
                    | identity::Error::NotSynced
                    | identity::Error::Unconfirmed { .. }
                    | identity::Error::NotReviewed { .. } => StatusCode::SERVICE_UNAVAILABLE,
                },
                broker::Error::NotWatchedYet(_) => StatusCode::SERVICE_UNAVAILABLE,
                broker::Error::Role(err) => match err {
                    // 404 ends it for every SDK but botocore, JS and Ruby: nothing here will change by asking again.
                    role::Error::NoRole { .. }
                    | role::Error::NoDefaultRole { .. }
                    | role::Error::NoServiceAccount { .. }
                    | role::Error::NoPodRole { .. } => StatusCode::NOT_FOUND,
                    role::Error::InvalidRole { .. }
                    | role::Error::InvalidPlan { .. }
                    | role::Error::TooManyRoles { .. } => StatusCode::BAD_REQUEST,
                    role::Error::NotPermitted { .. } | role::Error::NotAllowed { .. } => {
                        StatusCode::FORBIDDEN
                    }
                },
                broker::Error::Exchange(err) => match err {
                    exchange::Error::Sts(sts::Error::Denied { .. }) => StatusCode::FORBIDDEN,
                    exchange::Error::Sts(sts::Error::Foreign { .. }) => StatusCode::BAD_REQUEST,
                    exchange::Error::Token { source: cluster::Error::NotShown(_), .. } => {
                        StatusCode::UNAUTHORIZED
                    }
                    // The flight goes on: the retry finds what it brought.
                    exchange::Error::NoAnswerYet
                    | exchange::Error::NoPod(_)
                    | exchange::Error::Token { .. }
                    | exchange::Error::Base(_)
                    | exchange::Error::Sts(sts::Error::Throttled { .. } | sts::Error::Away(_)) => {
                        StatusCode::SERVICE_UNAVAILABLE
                    }
                },
            },
        }
    }

    /// One sentence for the pod, about itself. Upstream texts stay in the log.
    pub fn sentence(&self) -> Cow<'static, str> {
        match self {
            Self::Broker(broker::Error::Exchange(exchange::Error::Token { account, source })) => match source {
                cluster::Error::Refused(_) => format!(
                    "the kube API refuses the agent a token for ServiceAccount {account}: the agent's log says why \
                     (is ClusterRole rolecall-mint bound in the namespace?)"
                )
                .into(),
                cluster::Error::Away(_) => "the kube API does not answer; ask again".into(),
                cluster::Error::PodGone(_) => "the kube API no longer has the pod".into(),
                cluster::Error::IssuerAway(_) => "the token issuer does not answer; ask again".into(),
                cluster::Error::IssuerRefused(_) => format!(
                    "the token issuer refuses a token for ServiceAccount {account}: the agent's log and the issuer's say why"
                )
                .into(),
                cluster::Error::NotShown(audience) => format!(
                    "this agent mints no tokens: mount a projected token for audience {audience}, and name its file in AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"
                )
                .into(),
            },
            Self::Broker(broker::Error::Exchange(exchange::Error::Base(_))) => {
                "the agent has no credentials of its own to assume roles with: its log says why".into()
            }
            Self::Broker(broker::Error::Exchange(exchange::Error::Sts(sts::Error::Away(_)))) => {
                "STS does not answer; ask again".into()
            }
            Self::Broker(broker::Error::Identity(identity::Error::Unconfirmed { address, .. })) => {
                format!("the kube API did not confirm {address} in time; ask again").into()
            }
            Self::Broker(broker::Error::Identity(identity::Error::NotReviewed { .. })) => {
                "the kube API did not say in time whose token it is; ask again".into()
            }
            Self::Broker(broker::Error::Identity(identity::Error::AuthorizationInvalid(
                Fault::NotAccepted(_),
            ))) => "the API server does not accept the token in Authorization: it may have expired".into(),
            other => other.to_string().into(),
        }
    }

    /// A failure to identify is never remembered: its connection ends with its answer.
    fn closes(&self) -> bool {
        matches!(
            self,
            Self::Broker(broker::Error::Identity(_)) | Self::Request(RequestError::HeadersTooLarge)
        )
    }
}

/// 200 with the prebuilt document.
pub fn credentials(body: Bytes) -> Response<Full<Bytes>> {
    ok(body, JSON)
}

/// 200 of instance metadata: text, as the real service sends even its documents.
pub fn metadata(body: Bytes) -> Response<Full<Bytes>> {
    ok(body, TEXT)
}

/// 200 with a token of IMDSv2. Without the header Rust fails, and Go v2 takes a new token for each request.
pub fn metadata_token(token: String, ttl: u64) -> Response<Full<Bytes>> {
    let mut response = metadata(token.into());
    response.headers_mut().insert(METADATA_TOKEN_TTL, ttl.into());
    response
}

fn ok(body: Bytes, content_type: HeaderValue) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, NO_STORE);
    response
}

/// The answer of instance metadata to a refusal: status and a line of text. SDKs look at the status alone; the line is for people.
pub fn metadata_refusal(
    refusal: &Refusal,
    request_id: &str,
    instance: &HeaderValue,
) -> Response<Full<Bytes>> {
    let line = format!("{}: {} (request {request_id})", refusal.code(), refusal.sentence());
    with_headers(refusal, line.into(), TEXT, instance).map(Full::new)
}

/// The same answer, and the end of its connection.
pub fn last(mut answer: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// The answer to a refusal; `request_id` is the same in the audit line.
pub fn refusal(refusal: &Refusal, request_id: &str, instance: &HeaderValue) -> Response<Full<Bytes>> {
    answer(refusal, request_id, instance).map(Full::new)
}

/// The same as bytes, for a connection of which nothing is read and that is closed after it.
pub fn unread(refusal: &Refusal, request_id: &str, instance: &HeaderValue) -> Vec<u8> {
    bytes_of(&answer(refusal, request_id, instance))
}

fn bytes_of(answer: &Response<Bytes>) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {}\r\nconnection: close\r\n", answer.status()).into_bytes();
    for (name, value) in answer.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", answer.body().len()).as_bytes());
    bytes.extend_from_slice(answer.body());
    bytes
}

fn answer(refusal: &Refusal, request_id: &str, instance: &HeaderValue) -> Response<Bytes> {
    let (code, message) = (refusal.code(), refusal.sentence());
    let body = serde_json::json!({
        "code": code, "message": message, "Code": code, "Message": message, "RequestId": request_id,
    });
    with_headers(refusal, body.to_string().into(), JSON, instance)
}

fn with_headers(
    refusal: &Refusal,
    body: Bytes,
    content_type: HeaderValue,
    instance: &HeaderValue,
) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = refusal.status();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, NO_STORE);
    headers.insert(INSTANCE, instance.clone());
    if refusal.status() == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if refusal.status() == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET"));
    }
    if refusal.closes() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

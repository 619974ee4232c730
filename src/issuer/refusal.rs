//! Refusal -> status, code, body: the only such table of the issuer.

use http::StatusCode;

use crate::cluster;
use crate::identity::pods::ServiceAccountName;

/// Why there is no token. What the API server says of a token stays in the log; the agent's own log has our code.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Another path.
    #[error("there is nothing here")]
    NotFound,
    /// Another method.
    #[error("tokens are asked for by POST, documents by GET")]
    MethodNotAllowed,
    /// More than a request has.
    #[error("the request is too long")]
    TooLong,
    /// It did not arrive in time, or broke off.
    #[error("the request did not arrive whole")]
    Incomplete,
    /// Not what an agent of this version sends. What is not understood may be a restriction.
    #[error("the request is not understood: {0}")]
    NotUnderstood(String),
    /// No token in Authorization.
    #[error("the agent's own token is missing in Authorization")]
    AgentTokenRequired,
    /// It is none, or not good any more, or for somebody else.
    #[error("the agent's own token is not good: {0}")]
    AgentTokenInvalid(String),
    /// A good token of somebody else.
    #[error("{0} is not the agent")]
    NotTheAgent(String),
    /// The pod's token is not good: forged, expired, for somebody else, or its pod has gone.
    #[error("the pod's token is not good: {0}")]
    PodTokenInvalid(String),
    /// The agent of one node asks for a pod of another.
    #[error("the pod of {account} is on node {pod:?}, its token came from node {agent:?}")]
    OtherNode {
        /// Whose token.
        account: ServiceAccountName,
        /// The pod's node.
        pod: String,
        /// The agent's node.
        agent: String,
    },
    /// `--allow-audience` does not have it.
    #[error("{0:?} is not in the issuer's --allow-audience")]
    AudienceNotAllowed(String),
    /// A claim that the issuer does not put into tokens.
    #[error("{0}")]
    ClaimNotAllowed(String),
    /// The API server did not say whose tokens they are.
    #[error("whose token it is could not be asked: {0}")]
    KubeUnavailable(cluster::Error),
    /// Too many at once, or no answer in time.
    #[error("{0}")]
    Overloaded(&'static str),
}

impl Refusal {
    /// The fixed word: metric label, log field and response code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound => "NotFound",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::TooLong => "RequestTooLong",
            Self::Incomplete => "RequestIncomplete",
            Self::NotUnderstood(_) => "RequestNotUnderstood",
            Self::AgentTokenRequired => "AgentTokenRequired",
            Self::AgentTokenInvalid(_) => "AgentTokenInvalid",
            Self::NotTheAgent(_) => "NotTheAgent",
            Self::PodTokenInvalid(_) => "PodTokenInvalid",
            Self::OtherNode { .. } => "OtherNode",
            Self::AudienceNotAllowed(_) => "AudienceNotAllowed",
            Self::ClaimNotAllowed(_) => "ClaimNotAllowed",
            Self::KubeUnavailable(_) => "KubeUnavailable",
            Self::Overloaded(_) => "Overloaded",
        }
    }

    /// The agent's client sorts by these; see `token::issued`.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Incomplete | Self::NotUnderstood(_) => StatusCode::BAD_REQUEST,
            Self::AgentTokenRequired | Self::AgentTokenInvalid(_) => StatusCode::UNAUTHORIZED,
            Self::NotTheAgent(_)
            | Self::OtherNode { .. }
            | Self::AudienceNotAllowed(_)
            | Self::ClaimNotAllowed(_) => StatusCode::FORBIDDEN,
            // For the agent it is a pod that has gone, and the next of its plan may do.
            Self::PodTokenInvalid(_) => StatusCode::GONE,
            Self::KubeUnavailable(_) | Self::Overloaded(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// One sentence for whoever asked. What the API server says is for the log.
    pub fn sentence(&self) -> String {
        match self {
            Self::AgentTokenInvalid(_) => {
                "the agent's own token is not good; the issuer's log says why".into()
            }
            Self::PodTokenInvalid(_) => "the pod's token is not good; the issuer's log says why".into(),
            Self::KubeUnavailable(_) => "the API server did not say whose tokens they are; ask again".into(),
            other => other.to_string(),
        }
    }
}

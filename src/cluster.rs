//! The door to the kube API: what a request may need of it, and how it says no.
//!
//! The real one is `cluster::api`; `rolecall dev` has a cluster of one pod behind the same door.

pub mod api;
pub mod client;
pub mod list;
pub mod node;
pub mod objects;
mod review;
pub mod slim;
pub mod version;
pub mod watch;

use std::time::Duration;

use futures_util::future::BoxFuture;
use secrecy::SecretString;

use crate::identity::pods::Pod;
use crate::token::BoundToken;

/// Why the kube API did not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be reached, is overloaded, or did not answer in time: passing trouble.
    #[error("the kube API does not answer: {0}")]
    Away(String),
    /// The pod has gone, or another one has its name now (409 or 404 on a bound token).
    #[error("the kube API no longer has the pod: {0}")]
    PodGone(String),
    /// It answered, and refused: RBAC, admission, or a request it will never accept.
    #[error("the kube API refuses: {0}")]
    Refused(String),
    /// `--token-source=caller`: the pod has shown no token of this audience that still lives. The kube API was not asked.
    #[error("the pod has shown no token for {0}")]
    NotShown(String),
    /// `--token-source=issuer`: the issuer cannot be reached, or did not answer in time: passing trouble.
    #[error("the issuer does not answer: {0}")]
    IssuerAway(String),
    /// `--token-source=issuer`: it answered, and refused.
    #[error("the issuer refuses: {0}")]
    IssuerRefused(String),
}

/// What the API server says of a token that somebody else presents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is good, and this is whose it is.
    Good(Reviewed),
    /// It is not; the API server's reason, for the log.
    Bad(String),
}

/// The `status` of a TokenReview, as the API server wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reviewed {
    /// `user.username`
    pub user: String,
    /// `user.uid`: of a ServiceAccount's token, the ServiceAccount's.
    pub user_uid: String,
    /// `audiences`: those of the question that the token is meant for.
    pub audiences: Vec<String>,
    /// `user.extra["authentication.kubernetes.io/pod-name"]`: of a token that is bound to a pod.
    pub pod_name: Option<String>,
    /// `user.extra["authentication.kubernetes.io/pod-uid"]`
    pub pod_uid: Option<String>,
    /// `user.extra["authentication.kubernetes.io/node-name"]`: the pod's, since Kubernetes 1.30.
    pub node_name: Option<String>,
    /// `user.extra["authentication.kubernetes.io/credential-id"]`: `JTI=…`
    pub credential_id: Option<String>,
}

/// What the path of a request asks of the kube API. The watches stand beside it.
pub trait Cluster: Send + Sync + 'static {
    /// This node's pods as etcd has them now (a quorum read: `resourceVersion` unset), never a cache's view.
    fn pods_now(&self) -> BoxFuture<'_, Result<Vec<Pod>, Error>>;

    /// A token of the pod's ServiceAccount for exactly `audience`, bound to the pod's name and UID.
    /// <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-request-v1/>
    fn request_token<'a>(
        &'a self,
        pod: &'a Pod,
        audience: &'a str,
        life: Duration,
    ) -> BoxFuture<'a, Result<BoundToken, Error>>;

    /// Whose token this is, if it is good and meant for one of `audiences`.
    /// <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/>
    fn review_token<'a>(
        &'a self,
        token: &'a SecretString,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Verdict, Error>>;
}

impl Error {
    /// Is somebody away who will be back? Then known pods are served on, as far as possible.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Away(_) | Self::IssuerAway(_))
    }

    /// The label of `rolecall_token_requests_total{result}`.
    pub fn result(&self) -> &'static str {
        match self {
            Self::Away(_) => "away",
            Self::PodGone(_) => "pod_gone",
            Self::Refused(_) => "refused",
            Self::NotShown(_) => "not_shown",
            Self::IssuerAway(_) => "issuer_away",
            Self::IssuerRefused(_) => "issuer_refused",
        }
    }
}

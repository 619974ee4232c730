//! The door to the kube API: what a request may need of it, and how it says no.
//!
//! The real one is `cluster::api`; `rolecall dev` has a cluster of one pod behind the same door.

pub mod api;
pub mod client;
pub mod slim;
pub mod watch;

use std::time::Duration;

use futures_util::future::BoxFuture;

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
}

/// The two things that the path of a request asks of the kube API. The watches stand beside it.
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
}

impl Error {
    /// The label of `rolecall_token_requests_total{result}`.
    pub fn result(&self) -> &'static str {
        match self {
            Self::Away(_) => "away",
            Self::PodGone(_) => "pod_gone",
            Self::Refused(_) => "refused",
        }
    }
}

//! The calls to the API server that a request waits for: this node's pods, a bound token. Each has a deadline.
//!
//! Bodies are read here and not by kube's own methods: those log the whole text of an answer that they cannot
//! decode, which is a token, or the environment of every pod.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::StatusCode;
use http::header::DATE;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use kube::api::{GetParams, PostParams};
use kube::client::Body;
use kube::core::Request;
use secrecy::SecretString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::node::{Facts, SlimNode};
use super::slim::SlimPod;
use super::{Cluster, Error, Verdict, list, review};
use crate::identity::pods::Pod;
use crate::telemetry::in_full;
use crate::token::BoundToken;

/// Whoever waits for an answer has given up long before; a flight that goes on must still end.
const DEADLINE: Duration = Duration::from_secs(5);
/// For a list in pieces, all together.
const LIST: Duration = Duration::from_secs(20);
/// 250 pods of 100 KiB. The API server is trusted, but a proxy's endless answer should not be our end, nor the pods of a tenant who
/// makes them large: see [`list::some`].
const MAX_ANSWER: usize = 32 << 20;
/// What is kept of an upstream's text.
const MAX_MESSAGE: usize = 300;

/// What the Node authorizer says of a pod that it does not know: no longer, or not yet. It has the pods from a watch of
/// its own, and 2 of 60 new ones were asked for before it had them; half a second is enough for another API server's.
/// <https://github.com/kubernetes/kubernetes/blob/v1.36.3/plugin/pkg/auth/authorizer/node/node_authorizer.go>
const UNKNOWN_TO_NODE: &str = "no relationship found between node";
const UNKNOWN_PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// What NodeRestriction says of a pod that has another's name now; those who are no node get 409.
const ANOTHER_UID: &str = "does not match the UID in record";

/// The kube API as an agent on one node uses it.
pub struct KubeApi {
    client: kube::Client,
    node: String,
}

impl KubeApi {
    /// The door for the agent on the node `node`.
    pub fn new(client: kube::Client, node: impl Into<String>) -> Self {
        Self { client, node: node.into() }
    }

    /// What the node's own object tells of it.
    ///
    /// # Errors
    /// [`Error::Refused`] without the right to get nodes, or for a node that is not there.
    pub async fn facts(&self) -> Result<Facts, Error> {
        let request = Request::new("/api/v1/nodes").get(&self.node, &GetParams::default());
        let node: SlimNode = fetch(&self.client, request.map_err(unsendable)?, DEADLINE).await?;
        Ok(node.into())
    }

    async fn list_pods(&self) -> Result<Vec<Pod>, Error> {
        let fields = format!("spec.nodeName={}", self.node);
        let list = list::some::<SlimPod>(&self.client, "/api/v1/pods", &fields, false, DEADLINE);
        let listed = timeout(LIST, list).await;
        let (pods, _) = listed
            .unwrap_or_else(|_| Err(Error::Away("the list of this node's pods takes too long".into())))?;
        Ok(pods.into_iter().filter_map(SlimPod::understood).collect())
    }

    async fn create_token(&self, pod: &Pod, audience: &str, life: Duration) -> Result<BoundToken, Error> {
        let path = format!("/api/v1/namespaces/{}/serviceaccounts", pod.namespace());
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [audience],
                "expirationSeconds": life.as_secs(),
                "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": &*pod.name, "uid": pod.uid.as_str() },
            },
        });
        let request = Request::new(path)
            .create_subresource(
                "token",
                &pod.service_account.name,
                &PostParams::default(),
                body.to_string().into(),
            )
            .map_err(unsendable)?;
        let mut pause = UNKNOWN_PAUSES.0;
        let (asked, sent, body) = loop {
            let asked = Instant::now();
            match call(&self.client, request.clone(), DEADLINE).await {
                Ok((sent, body)) => break (asked, sent, body),
                Err(CallError::Status(StatusCode::FORBIDDEN, message))
                    if message.contains(UNKNOWN_TO_NODE) && pause < UNKNOWN_PAUSES.1 =>
                {
                    sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => return Err(refusal_of_token(error)),
            }
        };
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(undecodable)?;
        let life = answer.life(life, sent).saturating_sub(asked.elapsed());
        if life.is_zero() {
            return Err(Error::Refused("the token in its answer has expired already".into()));
        }
        Ok(BoundToken::new(SecretString::from(answer.status.token), life))
    }
}

impl Cluster for KubeApi {
    fn pods_now(&self) -> BoxFuture<'_, Result<Vec<Pod>, Error>> {
        self.list_pods().boxed()
    }

    fn request_token<'a>(
        &'a self,
        pod: &'a Pod,
        audience: &'a str,
        life: Duration,
    ) -> BoxFuture<'a, Result<BoundToken, Error>> {
        self.create_token(pod, audience, life).boxed()
    }

    fn review_token<'a>(
        &'a self,
        token: &'a SecretString,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Verdict, Error>> {
        review::ask(&self.client, token, audiences, DEADLINE).boxed()
    }
}

/// What is used of a `TokenRequest` that has been answered. No `Debug`: it holds the token.
#[derive(Deserialize)]
struct TokenAnswer {
    spec: Granted,
    status: Minted,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Granted {
    expiration_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Minted {
    token: String,
    expiration_timestamp: String,
}

impl TokenAnswer {
    /// The shortest of what was asked for, what the API server granted, and what its own clock says is left.
    /// Our wall clock has no part in it: it may be wrong, and so would every life that it measures.
    fn life(&self, asked: Duration, sent: Option<Timestamp>) -> Duration {
        let granted = self.spec.expiration_seconds.map_or(asked, Duration::from_secs);
        let left =
            self.status.expiration_timestamp.parse::<Timestamp>().ok().zip(sent).map(|(expires, sent)| {
                Duration::try_from(expires.duration_since(sent)).unwrap_or_default() // Negative: it has expired.
            });
        asked.min(granted).min(left.unwrap_or(asked))
    }
}

/// Why a call has no good answer.
enum CallError {
    Away(String),
    /// More than [`MAX_ANSWER`].
    TooLarge,
    Status(StatusCode, String),
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Away(message) => Self::Away(message),
            CallError::TooLarge => Self::Away(format!("an answer of more than {MAX_ANSWER} bytes")),
            // 401 is about the agent's own token, which may be in the middle of its rotation: it says nothing
            // about what was asked for.
            CallError::Status(status, message)
                if status.is_server_error()
                    || status == StatusCode::TOO_MANY_REQUESTS
                    || status == StatusCode::UNAUTHORIZED =>
            {
                Self::Away(message)
            }
            CallError::Status(_, message) => Self::Refused(message),
        }
    }
}

/// A pod that has gone is no refusal: the next of its plan may do.
fn refusal_of_token(error: CallError) -> Error {
    match error {
        CallError::Status(StatusCode::NOT_FOUND | StatusCode::CONFLICT, message) => Error::PodGone(message),
        CallError::Status(StatusCode::FORBIDDEN, message)
            if message.contains(UNKNOWN_TO_NODE) || message.contains(ANOTHER_UID) =>
        {
            Error::PodGone(message)
        }
        error => error.into(),
    }
}

/// The decoded answer to `request`, or why there is none within `deadline`.
pub(super) async fn fetch<T: DeserializeOwned>(
    client: &kube::Client,
    request: http::Request<Vec<u8>>,
    deadline: Duration,
) -> Result<T, Error> {
    let (_, body) = call(client, request, deadline).await?;
    serde_json::from_slice(&body).map_err(undecodable)
}

/// As [`fetch`]; `None` where the answer is larger than is read.
pub(super) async fn fetch_unless_too_large<T: DeserializeOwned>(
    client: &kube::Client,
    request: http::Request<Vec<u8>>,
    deadline: Duration,
) -> Result<Option<T>, Error> {
    match call(client, request, deadline).await {
        Ok((_, body)) => serde_json::from_slice(&body).map(Some).map_err(undecodable),
        Err(CallError::TooLarge) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The answer's Date (the API server's clock) and body.
async fn call(
    client: &kube::Client,
    request: http::Request<Vec<u8>>,
    deadline: Duration,
) -> Result<(Option<Timestamp>, Bytes), CallError> {
    let answer = async {
        let answer =
            client.send(request.map(Body::from)).await.map_err(|error| CallError::Away(causes(&error)))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|error| match error.is::<LengthLimitError>() {
            true => CallError::TooLarge,
            false => CallError::Away(causes(&*error)),
        });
        let body = body?.to_bytes();
        if !head.status.is_success() {
            return Err(CallError::Status(head.status, message(head.status, &body)));
        }
        let sent = head.headers.get(DATE).and_then(|date| date.to_str().ok());
        Ok((sent.and_then(|date| rfc2822::DateTimeParser::new().parse_timestamp(date).ok()), body))
    };
    let late = |_| CallError::Away(format!("no answer within {} s", deadline.as_secs()));
    timeout(deadline, answer).await.map_err(late)?
}

/// What the API server (or whoever answers in its place) says is wrong.
fn message(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    let text = match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => refusal.message,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    format!("{}: {}", status.as_u16(), log_safe(&text))
}

/// An upstream's text, fit for a line of the log: short, and of one line. Names in it are chosen by tenants.
pub(super) fn log_safe(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE).collect()
}

/// An error and its causes in one line; hyper and kube say little at the top.
pub(super) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    log_safe(&in_full(error))
}

pub(super) fn unsendable(error: kube::core::request::Error) -> Error {
    Error::Refused(causes(&error))
}

/// Only where it broke: serde's text can quote the answer, which can be a token.
fn undecodable(error: serde_json::Error) -> Error {
    Error::Away(format!("its answer cannot be decoded (line {}, column {})", error.line(), error.column()))
}

#[cfg(test)]
#[path = "api/tests.rs"]
mod tests;

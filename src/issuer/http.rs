//! The issuer's HTTP: two public documents, and tokens for agents. Over TLS, bounded in connections, bytes and time.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};

use super::Issuer;
use super::audit::Asked;
use super::proof::Trail;
use super::refusal::Refusal;
use crate::identity::authorization::Presented;
use crate::identity::evidence::Origin;
use crate::server;
use crate::server::limits::{Admission, Limits};
use crate::shutdown::Drain;

/// Where agents ask for tokens.
pub const TOKEN: &str = "/v1/token";
/// Each costs a TLS session and its buffers, some 60 KiB: together less than the manifest's 128 MiB.
pub const CONNECTIONS: usize = 1024;
/// Two network round trips, and the CPU of a small pod.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// An agent's kept connection may idle this long.
const HEADER_READ: Duration = Duration::from_secs(30);
/// From the end of the head. An agent waits a little longer.
const DEADLINE: Duration = Duration::from_millis(4500);
/// Two tokens, of which one is in the head.
const MAX_BODY: usize = 16 * 1024;
/// What is published may be kept for as long as it takes an operator to look twice.
const PUBLIC: HeaderValue = HeaderValue::from_static("public, max-age=60");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What an agent asks for. A field of a newer agent is refused: it may be a restriction.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    /// A token of the pod, for the issuer.
    #[serde(deserialize_with = "presented")]
    pub token: Presented,
    /// Whom the new token is for.
    pub audience: String,
    /// Which session tags it shall have, as `rolecall.dev/session-tags` lists them.
    pub session_tags: Option<String>,
    /// What its source identity is made of, as `rolecall.dev/source-identity` has it.
    pub source_identity: Option<String>,
}

fn presented<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Presented, D::Error> {
    Ok(Presented::new(String::deserialize(deserializer)?.as_bytes()))
}

/// Serves `listener` until `drain` begins; connections then finish the request they are at.
pub async fn serve(listener: TcpListener, issuer: Arc<Issuer>, drain: Drain) {
    let limits = Arc::new(Limits::new(CONNECTIONS));
    while let Some((stream, peer)) = server::next(&listener, &drain).await {
        // Closed without a word: a handshake would cost more than the connection that is refused.
        let Some(admission) = limits.admit(Origin::Address(peer.ip())) else { continue };
        tokio::spawn(connection(stream, peer, Arc::clone(&issuer), admission, drain.clone()));
    }
}

pub(super) async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    issuer: Arc<Issuer>,
    admission: Admission,
    drain: Drain,
) {
    // Before the handshake, which costs a signature: more than most requests do. Who does not wait for its turn is dropped.
    if admission.turn().await.is_err() {
        return;
    }
    let _ = stream.set_nodelay(true);
    let accepting = issuer.tls().accept(stream);
    let Ok(Ok(stream)) = timeout(HANDSHAKE, accepting).await else { return };
    let answer = |request| {
        let (issuer, admission) = (Arc::clone(&issuer), &admission);
        async move { Ok::<_, Infallible>(issuer.answer(request, peer, admission).await) }
    };
    server::connection(stream, HEADER_READ, answer, drain).await;
}

impl Issuer {
    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        admission: &Admission,
    ) -> Response<Full<Bytes>> {
        let begun = Instant::now();
        let mut trail = Trail::default();
        let asked = async {
            admission.turn().await.map_err(|_| Refusal::Overloaded("too many requests from one address"))?;
            let path = request.uri().path();
            if let Some(document) = self.document(path) {
                return match *request.method() {
                    Method::GET | Method::HEAD => Ok(published(document)),
                    _ => Err(Refusal::MethodNotAllowed),
                };
            }
            if path != TOKEN {
                return Err(Refusal::NotFound);
            }
            if request.method() != Method::POST {
                return Err(Refusal::MethodNotAllowed);
            }
            let issued = self.issue(request, peer.ip(), begun + DEADLINE, &mut trail).await?;
            self.audit.issued(&Asked { begun, peer, trail: &trail }, &issued);
            let body =
                json!({"token": issued.token.expose_secret(), "expires_in": super::claims::LIFE.as_secs()});
            Ok(reply(StatusCode::OK, NO_STORE, body.to_string().into()))
        };
        match asked.await {
            Ok(answer) => answer,
            Err(refusal) => {
                let request_id = self.audit.refused(&Asked { begun, peer, trail: &trail }, &refusal);
                refused(&refusal, &request_id)
            }
        }
    }

    /// The one request that is not for everybody.
    async fn issue(
        &self,
        request: Request<Incoming>,
        source: IpAddr,
        deadline: Instant,
        trail: &mut Trail,
    ) -> Result<super::Issued, Refusal> {
        let mut headers = request.headers().get_all(AUTHORIZATION).iter();
        let agent = headers.next().map_or(Presented::Nothing, |value| Presented::new(value.as_bytes()));
        if headers.next().is_some() {
            return Err(Refusal::NotUnderstood("two Authorization headers".into()));
        }
        let body = Limited::new(request.into_body(), MAX_BODY).collect();
        let body = match timeout_at(deadline, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(err)) if err.is::<http_body_util::LengthLimitError>() => return Err(Refusal::TooLong),
            Ok(Err(_)) | Err(_) => return Err(Refusal::Incomplete),
        };
        // Only where it broke: serde's text can quote the body, which holds a token.
        let question: Question = serde_json::from_slice(&body).map_err(|err| {
            Refusal::NotUnderstood(format!("its body, at line {} column {}", err.line(), err.column()))
        })?;
        self.token(&agent, &question, source, deadline, trail).await
    }
}

fn published(document: Bytes) -> Response<Full<Bytes>> {
    reply(StatusCode::OK, PUBLIC, document)
}

fn refused(refusal: &Refusal, request_id: &str) -> Response<Full<Bytes>> {
    let body = json!({"code": refusal.code(), "message": refusal.sentence(), "request_id": request_id});
    let mut answer = reply(refusal.status(), NO_STORE, body.to_string().into());
    if refusal.status() == StatusCode::SERVICE_UNAVAILABLE {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if refusal.status() == StatusCode::METHOD_NOT_ALLOWED {
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
    }
    answer
}

fn reply(status: StatusCode, cached: HeaderValue, body: Bytes) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, JSON);
    answer.headers_mut().insert(CACHE_CONTROL, cached);
    answer
}

//! The node's own instance metadata for system pods: `--imds-passthrough-namespace`, none by default.
//!
//! What goes there can be the node's role. So only pods that the kernel proves get here ([`Passthrough::is_for`]), little of their
//! request goes on, and no more of the answer comes back than such an answer has. Our own connections are not redirected: the rule is
//! for what comes in by a link.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::{Question, TOKEN};
use crate::identity::AttestedPod;
use crate::server::reply::{METADATA_TOKEN_TTL, NO_STORE, RequestError};

/// The real service. An address of the node's own network, and not of configuration: what answers there is believed to be AWS's.
const REAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80);
/// At once: it limits each instance, and what is more than that would be refused there.
const AT_ONCE: usize = 16;
/// User data is the largest, with 16 KiB.
const MAX_ANSWER: usize = 64 * 1024;

/// Who may, and how many at once.
pub struct Passthrough {
    namespaces: Vec<String>,
    service: SocketAddr,
    places: Semaphore,
}

/// What the real service is asked.
pub(super) struct Forwarded {
    request: Request<Empty<Bytes>>,
}

/// What it answered.
pub struct Passed {
    status: StatusCode,
    content_type: Option<HeaderValue>,
    ttl: Option<HeaderValue>,
    body: Bytes,
}

impl Passthrough {
    /// For the pods of these namespaces.
    #[must_use]
    pub fn new(namespaces: Vec<String>) -> Self {
        Self { namespaces, service: REAL, places: Semaphore::new(AT_ONCE) }
    }

    /// May this pod ask the real service? Not by its address: that can be another's.
    pub(super) fn is_for(&self, attested: &AttestedPod) -> bool {
        let pod = attested.pod();
        attested.evidence() == "kernel" && self.namespaces.iter().any(|name| name == pod.namespace())
    }

    /// Asks the real service, which takes milliseconds, until `deadline`.
    ///
    /// # Errors
    /// It does not answer; or a PUT is answered that it is ill or throttles us: SDKs would take that for the end of version 2.
    pub(super) async fn ask(&self, forwarded: Forwarded, deadline: Instant) -> Result<Passed, RequestError> {
        let put = forwarded.request.method() == Method::PUT;
        let asked = async {
            let _place = self.places.acquire().await.map_err(|err| err.to_string())?;
            exchange(self.service, forwarded.request).await
        };
        let answer = timeout_at(deadline, asked).await.unwrap_or_else(|_| Err("no answer in time".into()));
        match answer.map_err(RequestError::NodeMetadata)? {
            Passed { status, .. } if put && is_trouble(status) => {
                Err(RequestError::NodeMetadata(format!("status {}", status.as_u16())))
            }
            passed => Ok(passed),
        }
    }
}

/// Not what was asked for is wrong, but the service, or how often it is asked.
fn is_trouble(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

async fn exchange(service: SocketAddr, request: Request<Empty<Bytes>>) -> Result<Passed, String> {
    let stream = TcpStream::connect(service).await.map_err(|err| err.to_string())?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|err| err.to_string())?;
    // Ends with this call, however that ends.
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let answer = sender.send_request(request).await.map_err(|err| err.to_string())?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|err| err.to_string())?;
    let header = |name| head.headers.get(name).cloned();
    Ok(Passed {
        status: head.status,
        content_type: header(CONTENT_TYPE),
        ttl: header(METADATA_TOKEN_TTL),
        body: body.to_bytes(),
    })
}

impl From<&Question> for Forwarded {
    /// Method, path and the two headers of IMDSv2. Not X-Forwarded-For, at which the service refuses: whom it would name is on this
    /// node, and audited here.
    fn from(question: &Question) -> Self {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = question.method.clone();
        // It came in a request's head, so it is fit for one.
        *request.uri_mut() = question.path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_static("169.254.169.254"));
        for (name, value) in [(TOKEN, &question.token), (METADATA_TOKEN_TTL, &question.ttl)] {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
        Self { request }
    }
}

impl Passed {
    pub(super) fn status(&self) -> u16 {
        self.status.as_u16()
    }

    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(http::header::CACHE_CONTROL, NO_STORE);
        for (name, value) in [(CONTENT_TYPE, self.content_type), (METADATA_TOKEN_TTL, self.ttl)] {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
        response
    }
}

#[cfg(test)]
#[path = "passthrough/tests.rs"]
mod tests;

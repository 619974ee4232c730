//! The container-credential endpoint: its HTTP rules, its JSON.
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, ORIGIN, REFERER};
use http::{HeaderValue, Method, Request, Response, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use secrecy::ExposeSecret;
use serde::Serialize;
use tokio::time::Instant;

use super::limits::Admission;
use super::reply::{self, Refusal, RequestError};
use crate::audit::{Asked, Audit};
use crate::broker::{Broker, Trail};
use crate::credentials::Credentials;
use crate::identity::Caller;
use crate::identity::authorization::Presented;
use crate::role::RolePlan;

/// The one path. Exact: a proxy in front that rewrites paths has no business here.
pub const PATH: &str = "/v1/credentials";
/// The shortest read timeout of an SDK is 1.0 s (Java, C++, PHP, JS v2); the answer must be there before.
pub(crate) const HOLD: Duration = Duration::from_millis(900);
/// No SDK comes near; a 4 KB token leaves room.
const MAX_HEADER_BYTES: usize = 8 * 1024;

/// What all connections of one agent share.
pub struct Endpoint {
    broker: Broker,
    audit: Arc<Audit>,
    hosts: Vec<IpAddr>,
    instance: HeaderValue,
}

impl Endpoint {
    /// An endpoint that answers to the addresses of `listeners`.
    pub fn new(broker: Broker, audit: Arc<Audit>, listeners: &[SocketAddr], instance: &str) -> Arc<Self> {
        Arc::new(Self {
            broker,
            audit,
            hosts: listeners.iter().map(SocketAddr::ip).collect(),
            instance: HeaderValue::from_str(instance).expect("an instance is hex digits"),
        })
    }
}

/// One connection: who is calling, and what that may take of the agent.
pub struct Connection {
    endpoint: Arc<Endpoint>,
    caller: Caller,
    admission: Admission,
    /// How long the connection waited for its turn, and for its evidence.
    waited: Duration,
    /// That turn was the first request's as well.
    asked: AtomicBool,
}

impl Connection {
    /// A connection from `caller` that was accepted so long ago.
    pub fn new(endpoint: Arc<Endpoint>, caller: Caller, admission: Admission, waited: Duration) -> Arc<Self> {
        Arc::new(Self { endpoint, caller, admission, waited, asked: AtomicBool::new(false) })
    }

    /// Answers one request. The deadline runs from the end of its head.
    ///
    /// # Errors
    /// Never: a refusal is an answer.
    pub fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Full<Bytes>>, Infallible>> {
        let begun = Instant::now();
        // Checked and dropped before hyper reads on: a head that lives costs a new buffer of 8 KiB each time.
        let checked = self.endpoint.check(&request);
        drop(request);
        self.checked(begun, checked)
    }

    async fn checked(
        self: Arc<Self>,
        begun: Instant,
        checked: Result<Presented, RequestError>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let endpoint = &*self.endpoint;
        let mut trail = Trail::default();
        let answer = match self.turn().await.and(checked) {
            Ok(presented) => endpoint
                .broker
                .credentials(&self.caller, &presented, begun + self.hold(), &mut trail)
                .await
                .map_err(Refusal::Broker),
            Err(refused) => Err(Refusal::Request(refused)),
        };
        self.asked.store(true, Ordering::Relaxed);
        let asked = Asked { begun, caller: &self.caller, trail: &trail };
        Ok(match answer {
            Ok(served) => {
                endpoint.audit.granted(&asked, &served);
                reply::credentials(served.body.clone())
            }
            Err(refusal) => {
                let request_id = endpoint.audit.refused(&asked, &refusal);
                reply::refusal(&refusal, &request_id, &endpoint.instance)
            }
        })
    }

    /// The first request's was the connection's.
    async fn turn(&self) -> Result<(), RequestError> {
        if self.asked.load(Ordering::Relaxed) { self.admission.turn().await } else { Ok(()) }
    }

    /// The first request, whose head mostly came with the connection, has waited with it.
    fn hold(&self) -> Duration {
        if self.asked.load(Ordering::Relaxed) { HOLD } else { HOLD.saturating_sub(self.waited) }
    }
}

impl Endpoint {
    /// The answer, as bytes, to a connection that is not even read.
    pub fn turned_away(&self, caller: &Caller, refusal: RequestError) -> Vec<u8> {
        let refusal = Refusal::Request(refusal);
        let asked = Asked { begun: Instant::now(), caller, trail: &Trail::default() };
        let request_id = self.audit.refused(&asked, &refusal);
        reply::unread(&refusal, &request_id, &self.instance)
    }
}

impl Endpoint {
    /// The rules that need no identity, in one pass over the headers. What Authorization holds is read here, and judged
    /// by [`crate::identity`].
    fn check<B>(&self, request: &Request<B>) -> Result<Presented, RequestError> {
        let (mut bytes, mut host, mut authorization) = (0, None, None);
        for (name, value) in request.headers() {
            bytes += name.as_str().len() + value.len();
            if name == HOST {
                if host.replace(value).is_some() {
                    return Err(RequestError::NotDirect("two Host headers"));
                }
            } else if name == AUTHORIZATION {
                if authorization.replace(value).is_some() {
                    return Err(RequestError::NotDirect("two Authorization headers"));
                }
            } else if name == ORIGIN || name == REFERER || name.as_str().starts_with("sec-fetch-") {
                return Err(RequestError::NotDirect("a browser sent this"));
            } else if name == "x-forwarded-for" || name == "forwarded" {
                return Err(RequestError::NotDirect("a proxy sent this"));
            }
        }
        if bytes > MAX_HEADER_BYTES {
            return Err(RequestError::HeadersTooLarge);
        }
        // A rebound DNS name shows in Host; only our literal addresses are ours. HTTP/1.0 needs no Host.
        match host {
            Some(host) if self.is_ours(host) => {}
            None if request.version() == Version::HTTP_10 => {}
            _ => return Err(RequestError::NotDirect("the Host header names another address")),
        }
        if request.uri().authority().is_some() {
            return Err(RequestError::NotDirect("the request is meant for a proxy"));
        }
        if request.uri().path() != PATH || request.uri().query().is_some() {
            return Err(RequestError::NotFound);
        }
        if request.method() != Method::GET {
            return Err(RequestError::MethodNotAllowed);
        }
        Ok(authorization.map_or(Presented::Nothing, |value| Presented::new(value.as_bytes())))
    }

    fn is_ours(&self, host: &HeaderValue) -> bool {
        let Ok(host) = host.to_str() else { return false };
        // With its port, or without: SDKs leave 80 out, and so does a redirect.
        let address = match host.parse::<SocketAddr>() {
            // A zone names a link, which none of ours does.
            Ok(_) if host.contains('%') => None,
            Ok(at) => Some(at.ip()),
            Err(_) => match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
                Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
                None => host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            },
        };
        address.is_some_and(|address| self.hosts.contains(&address))
    }
}

/// The document that SDKs parse: strings, this case, whole seconds, `Z`.
pub fn document(credentials: &Credentials, plan: &RolePlan) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Document<'a> {
        access_key_id: &'a str,
        secret_access_key: &'a str,
        token: &'a str,
        expiration: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        account_id: Option<&'a str>,
        role_arn: &'a str,
    }
    let document = Document {
        access_key_id: &credentials.access_key_id,
        secret_access_key: credentials.secret_access_key.expose_secret(),
        token: credentials.session_token.expose_secret(),
        // Cut to whole seconds: some SDKs read no fractions.
        expiration: format!("{:.0}", credentials.expiration),
        account_id: plan.role.account(),
        role_arn: plan.role.as_str(),
    };
    Bytes::from(serde_json::to_vec(&document).expect("strings always serialise"))
}

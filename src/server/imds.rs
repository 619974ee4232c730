//! Instance metadata as pods see it: IMDSv2, the pod's own role in place of the node's, and a few harmless facts.
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>
//!
//! For pods without any variable: SDKs ask 169.254.169.254 last, and a rule of `rolecall net` sends pods' requests here. An SDK asks
//! three times (token, role's name, document) and waits half a second for each, so the flight for the credentials starts at the first
//! and each of them waits for it a little.

pub mod passthrough;
pub mod paths;
pub mod token;
pub mod unadmitted;

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::Full;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::passthrough::{Passed, Passthrough};
use self::paths::Path;
use self::token::{Key, TTL_SECONDS};
use super::direct;
use super::front::Front;
use super::reply::{self, Refusal, RequestError};
use super::visitor::Visitor;
use crate::audit::Asked;
use crate::broker::{self, Trail};
use crate::cache::Served;
use crate::cluster::node::Facts;
use crate::identity::Caller;
use crate::identity::authorization::Presented;
use crate::identity::evidence::Known;
use crate::role::RolePlan;
use crate::{metrics, role, time};

const METRIC: metrics::Endpoint = metrics::Endpoint::InstanceMetadata;
/// Go v2 waits 0.5 s for the head of an answer; three requests of this length are longer than most calls to STS.
pub(crate) const HOLD: Duration = Duration::from_millis(450);
/// What SDKs write into Host: the redirect leaves it as it is.
const HOSTS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];
const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");

/// What instance metadata needs beside the broker.
pub struct Settings {
    /// Signs the session tokens.
    pub key: Key,
    /// `--imds-v1`: without a token, too.
    pub v1: bool,
    /// The node's facts, once the kube API has told them.
    pub facts: Arc<ArcSwap<Facts>>,
    /// `--imds-passthrough-namespace`
    pub passthrough: Option<Passthrough>,
}

/// What all connections of one agent share.
pub struct Endpoint {
    front: Front,
    settings: Settings,
}

/// A request, as far as it can be understood without knowing who sent it.
struct Question {
    method: Method,
    /// As it was written, without its query.
    path: String,
    query: bool,
    /// The session token. It grants nothing, and is in no line of the log all the same.
    token: Option<HeaderValue>,
    ttl: Option<HeaderValue>,
}

/// A good answer.
enum Answer {
    /// A session token, and for how many seconds.
    Token(String, u64),
    Text(Bytes),
    Credentials(Arc<Served>),
    /// The node's own.
    Passed(Passed),
    /// A session token of ours, and why it is not the node's.
    StoodIn(String, u64, RequestError),
}

impl Endpoint {
    /// The endpoint behind `front`, which answers to instance metadata's addresses as well.
    pub fn new(mut front: Front, settings: Settings) -> Arc<Self> {
        front.hosts.extend(HOSTS);
        Arc::new(Self { front, settings })
    }

    /// Answers one request of `visitor`. The deadline runs from the end of its head.
    ///
    /// # Errors
    /// Never: a refusal is an answer.
    pub fn answer<B>(
        &self,
        visitor: &Visitor,
        request: Request<B>,
    ) -> impl Future<Output = Result<Response<Full<Bytes>>, Infallible>> {
        let begun = Instant::now();
        // Read and dropped before hyper reads on, as in `ecs`.
        let question = self.read(&request);
        drop(request);
        self.answered(visitor, begun, question)
    }

    async fn answered(
        &self,
        visitor: &Visitor,
        begun: Instant,
        question: Result<Question, RequestError>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (front, caller) = (&self.front, visitor.caller());
        let mut trail = Trail::default();
        let deadline = begun + visitor.left_of(HOLD);
        let turn = visitor.turn().await;
        let answer = match (turn, &question) {
            (_, Err(refused)) => Err(refused.clone().into()),
            // Whoever asks too often has waited; but SDKs take a PUT that fails with 5xx for the end of version 2.
            (Err(refused), Ok(question)) if question.method != Method::PUT => Err(refused.into()),
            (_, Ok(question)) => self.find(caller, question, deadline, &mut trail).await,
        };
        visitor.answered();
        let asked = Asked { endpoint: METRIC, begun, caller, trail: &trail };
        Ok(match answer {
            Ok(Answer::Credentials(served)) => {
                front.audit.granted(&asked, &served);
                reply::metadata(served.metadata())
            }
            Ok(Answer::Text(text)) => {
                front.audit.answered(&asked);
                reply::metadata(text)
            }
            Ok(Answer::Token(token, ttl)) => {
                front.audit.answered(&asked);
                reply::metadata_token(token, ttl)
            }
            Ok(Answer::StoodIn(token, ttl, why)) => {
                front.audit.stood_in(&asked, &why);
                reply::metadata_token(token, ttl)
            }
            Ok(Answer::Passed(passed)) => {
                let what = question.map(|question| question.to_string()).unwrap_or_default();
                front.audit.passed_through(&asked, passed.status(), &what);
                passed.into_response()
            }
            Err(refusal) => {
                let request_id = front.audit.refused(&asked, &refusal);
                reply::metadata_refusal(&refusal, &request_id, &front.instance)
            }
        })
    }

    fn read<B>(&self, request: &Request<B>) -> Result<Question, RequestError> {
        direct::check(request, &self.front.hosts)?;
        let header = |name: &HeaderName| request.headers().get(name).cloned();
        Ok(Question {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().is_some(),
            token: header(&TOKEN),
            ttl: header(&reply::METADATA_TOKEN_TTL),
        })
    }

    async fn find(
        &self,
        caller: &Caller,
        question: &Question,
        deadline: Instant,
        trail: &mut Trail,
    ) -> Result<Answer, Refusal> {
        let known = caller.known().map_err(broker::Error::Identity)?;
        if let Some(passed) = self.pass_through(caller, &known, question, deadline, trail).await {
            return passed;
        }
        let asked = question.ask()?;
        if let Ask::Token(ttl) = asked {
            return Ok(self.begin(caller, &known, ttl, deadline, trail).await);
        }
        let presented = self.admit(caller, known, question)?;
        let facts = self.settings.facts.load();
        let text = match asked {
            Ask::Token(_) => unreachable!("it is answered above"),
            Ask::Path(Path::Roles) => {
                let plan = self.role(caller, &presented, deadline, trail).await?;
                Some(paths::role_name(&plan.role).to_owned())
            }
            Ask::Path(Path::Role(name)) => {
                let served = self.front.broker.credentials(caller, &presented, deadline, trail).await;
                // Also while the credentials are not there yet: that name will never be the right one.
                if trail.plan.as_ref().is_some_and(|plan| paths::role_name(&plan.role) != name) {
                    return Err(RequestError::NoSuchMetadata.into());
                }
                return Ok(Answer::Credentials(served?));
            }
            Ask::Path(Path::Fact(fact)) => paths::fact(fact, &facts).map(str::to_owned),
            Ask::Path(Path::IdentityDocument) => paths::identity_document(&facts),
            Ask::Path(Path::Listing(listing)) => Some(paths::list(listing, &facts)),
            Ask::Path(Path::Token) => return Err(RequestError::MethodNotAllowed.into()),
        };
        text.map(|text| Answer::Text(text.into())).ok_or_else(|| RequestError::NoSuchMetadata.into())
    }

    /// A session's first request. What is asked next is asked for already; but whatever becomes of that, the token is given: SDKs
    /// take its absence for a service of version 1, or for none.
    async fn begin(
        &self,
        caller: &Caller,
        known: &Known,
        ttl: u64,
        deadline: Instant,
        trail: &mut Trail,
    ) -> Answer {
        let token = self.mint(known, ttl);
        // It stands where Authorization would: it, too, is a header that a forged request has not.
        let presented = Presented::new(token.as_bytes());
        let _ = self.front.broker.credentials(caller, &presented, deadline, trail).await;
        Answer::Token(token, ttl)
    }

    fn mint(&self, known: &Known, ttl: u64) -> String {
        self.settings.key.mint(known, Duration::from_secs(ttl), time::now())
    }

    /// The session that a request belongs to.
    fn admit(&self, caller: &Caller, known: Known, question: &Question) -> Result<Presented, RequestError> {
        match &question.token {
            Some(token) if self.is_ours(caller, known, token) => Ok(Presented::new(token.as_bytes())),
            Some(_) => Err(RequestError::MetadataTokenInvalid),
            None if self.settings.v1 => Ok(Presented::Nothing),
            None => Err(RequestError::MetadataTokenRequired),
        }
    }

    fn is_ours(&self, caller: &Caller, known: Known, token: &HeaderValue) -> bool {
        // By its address too: it may have been known by nothing else when it asked for the token.
        let holders = [known, Known::Address(caller.address())];
        self.settings.key.accepts(token.as_bytes(), &holders, time::now())
    }

    /// The plan, whose role is listed also while STS refuses it: the document then says why not.
    async fn role(
        &self,
        caller: &Caller,
        presented: &Presented,
        deadline: Instant,
        trail: &mut Trail,
    ) -> Result<Arc<RolePlan>, Refusal> {
        let fetched = self.front.broker.credentials(caller, presented, deadline, trail).await;
        match &trail.plan {
            Some(plan) => Ok(Arc::clone(plan)),
            None => Err(fetched.err().map_or(RequestError::NoSuchMetadata.into(), Refusal::Broker)),
        }
    }

    /// What the node's own service answers, for the pods that may ask it: those of a namespace of the operator's choice, proved by
    /// the kernel, and without a role of their own. A role that is wrong, that has a name, or whose ServiceAccount is gone is one of
    /// their own: it never turns into the node's.
    async fn pass_through(
        &self,
        caller: &Caller,
        known: &Known,
        question: &Question,
        deadline: Instant,
        trail: &mut Trail,
    ) -> Option<Result<Answer, Refusal>> {
        let passthrough = self.settings.passthrough.as_ref()?;
        let presented = match &question.token {
            Some(token) => Presented::new(token.as_bytes()),
            None if question.method == Method::PUT => Presented::new(b"PUT"),
            None => Presented::Nothing,
        };
        let planned = self.front.broker.planned(caller, &presented, deadline, trail).await;
        let Err(broker::Error::Role(role::Error::NoRole { .. } | role::Error::NoPodRole { .. })) = planned
        else {
            return None;
        };
        let attested = trail.attested.as_ref()?;
        if !passthrough.is_for(attested) {
            return None;
        }
        // From before the pod was known, or before its namespace was one of these. The real service gives it a new one.
        if question.token.as_ref().is_some_and(|token| self.is_ours(caller, known.clone(), token)) {
            return Some(Err(RequestError::MetadataTokenInvalid.into()));
        }
        if question.token.is_none() && question.method != Method::PUT && !self.settings.v1 {
            return Some(Err(RequestError::MetadataTokenRequired.into()));
        }
        let why = match passthrough.ask(question.into(), deadline).await {
            Ok(passed) => return Some(Ok(Answer::Passed(passed))),
            Err(why) if question.method != Method::PUT => return Some(Err(why.into())),
            Err(why) => why,
        };
        // SDKs take a PUT that fails for the end of version 2. So they get a token of ours, and with that are sent for another.
        let Ok(Ask::Token(ttl)) = question.ask() else { return None };
        Some(Ok(Answer::StoodIn(self.mint(known, ttl), ttl, why)))
    }
}

/// What is asked of us.
enum Ask {
    /// A token that lives so many seconds.
    Token(u64),
    Path(Path),
}

impl Question {
    fn ask(&self) -> Result<Ask, RequestError> {
        let path = Path::read(&self.path).filter(|_| !self.query).ok_or(RequestError::NoSuchMetadata)?;
        match (path, &self.method) {
            (Path::Token, &Method::PUT) => Ok(Ask::Token(self.ttl().ok_or(RequestError::MetadataTokenTtl)?)),
            (Path::Token, _) => Err(RequestError::MethodNotAllowed),
            (path, &Method::GET) => Ok(Ask::Path(path)),
            _ => Err(RequestError::MethodNotAllowed),
        }
    }

    fn ttl(&self) -> Option<u64> {
        let ttl = self.ttl.as_ref()?.to_str().ok()?.trim().parse().ok()?;
        TTL_SECONDS.contains(&ttl).then_some(ttl)
    }
}

impl std::fmt::Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path: String = self.path.chars().take(200).collect();
        write!(f, "{} {path}", self.method)
    }
}

/// The document that SDKs parse, from the other endpoint's, which is our own. Without `Code` Go and PHP fail; minio and .NET read
/// `LastUpdated` if it is there.
pub fn document(of_ecs: &[u8], issued: Timestamp) -> Bytes {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Given {
        access_key_id: String,
        secret_access_key: String,
        token: String,
        expiration: String,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Document {
        code: &'static str,
        last_updated: String,
        r#type: &'static str,
        access_key_id: String,
        secret_access_key: String,
        token: String,
        expiration: String,
    }
    let given: Given = serde_json::from_slice(of_ecs).expect("we wrote it");
    let document = Document {
        code: "Success",
        last_updated: format!("{issued:.0}"),
        r#type: "AWS-HMAC",
        access_key_id: given.access_key_id,
        secret_access_key: given.secret_access_key,
        token: given.token,
        expiration: given.expiration,
    };
    Bytes::from(serde_json::to_vec(&document).expect("strings always serialise"))
}

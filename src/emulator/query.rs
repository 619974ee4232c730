//! Requests in, answers out: the Query protocol at `/`, the control endpoint under `/_emulator/`.

use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use secrecy::ExposeSecret as _;
use serde::Serialize;

use super::actions::{self, Record};
use super::error::{Refusal, status_of};
use super::faults::{Fault, Instead};
use super::params::Params;
use super::xml::{self, Answer};
use super::{ACTIONS, World};

/// A token of 20,000 characters, a policy and fifty tags, all escaped, fit well within.
const MAX_BODY: usize = 256 * 1024;

/// For a body to arrive; a caller that stops halfway must not keep its connection for ever.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

const STS_VERSION: &str = "2011-06-15";

/// Answers one request, whatever it is.
pub(crate) async fn answer(world: &World, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let mut response = match path.strip_prefix("/_emulator/") {
        Some(control) => steer(world, control, request).await,
        None => call(world, request).await,
    };
    // The emulator's own clock, which tests may move: a client learns from this header how far off it is.
    let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&world.now());
    if let Ok(date) = date.unwrap_or_default().parse() {
        response.headers_mut().insert(DATE, date);
    }
    response
}

/// One call of STS, counted and logged.
async fn call(world: &World, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let request_id = request_id();
    let (parts, body) = request.into_parts();
    let mut record = Record::default();
    let read = match read_body(body).await {
        Ok(body) => Params::read(parts.uri.query().unwrap_or(""), &body).map(|params| (body, params)),
        Err(refusal) => Err(refusal),
    };
    let asked = read.as_ref().ok().and_then(|(_, params)| params.text("Action").map(str::to_owned));
    let action = ACTIONS.iter().find(|action| asked.as_deref() == Some(**action)).copied().unwrap_or("other");
    // Only the file's own roles are counted by name: anybody can make names up.
    let role = read.as_ref().ok().and_then(|(_, params)| world.role_named(params.text("RoleArn")?));
    let role = role.map_or("", |role| role.arn.as_str());

    let (delay, instead) = {
        let mut state = world.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.counters.arrived(action, role);
        state.faults.take(action, role)
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let mut reason = None;
    let (result, response) = match instead {
        Some(Instead::Raw { body, status }) => ("fault".to_owned(), reply(status, body.into(), &request_id)),
        Some(Instead::Refuse { code, status }) => {
            let body = xml::refusal(&code, fault_message(&code), status.is_client_error(), &request_id);
            (code, reply(status, body.into(), &request_id))
        }
        None => {
            let done = match read {
                Ok((body, params)) => {
                    act(world, action, asked.as_deref(), &parts, &body, params, &mut record).await
                }
                Err(refusal) => Err(refusal),
            };
            match done {
                Ok(answer) => {
                    let body = xml::answer(action, &answer, &request_id);
                    (
                        "ok".to_owned(),
                        reply(StatusCode::OK, body.expose_secret().to_owned().into(), &request_id),
                    )
                }
                Err(refusal) => {
                    reason.clone_from(&refusal.reason);
                    (refusal.code.to_owned(), refuse(&refusal, &request_id))
                }
            }
        }
    };
    let mut state = world.state.lock().unwrap_or_else(PoisonError::into_inner);
    state.counters.answered(action, role, &result);
    drop(state);
    let Record { role, session, subject } = record;
    // Debug form: what a caller chose is quoted, so that it cannot write a line of its own.
    tracing::info!(action, role.arn = ?role, role.session = ?session, ?subject, result, reason, request_id, "sts call");
    response
}

async fn act(
    world: &World,
    action: &str,
    asked: Option<&str>,
    parts: &http::request::Parts,
    body: &[u8],
    params: Params,
    record: &mut Record,
) -> Result<Answer, Refusal> {
    if parts.uri.path() != "/" || !matches!(parts.method, Method::GET | Method::POST) {
        return Err(Refusal::new("InvalidAction", "STS is called with GET or POST at the path /"));
    }
    let Some(asked) = asked else {
        return Err(Refusal::new(
            "MissingAction",
            "The request is missing an action or a required parameter.",
        ));
    };
    let version = params.text("Version").unwrap_or("NO_VERSION_SPECIFIED");
    match action {
        _ if version != STS_VERSION => Err(Refusal::new(
            "InvalidAction",
            format!("Could not find operation {asked} for version {version}"),
        )),
        "AssumeRoleWithWebIdentity" => actions::assume_role_with_web_identity(world, params, record).await,
        "AssumeRole" => actions::assume_role(world, parts, body, params, record),
        "GetCallerIdentity" => actions::caller_identity(world, parts, body, record),
        _ => Err(Refusal::new(
            "InvalidAction",
            format!("Could not find operation {asked} for version {version}"),
        )),
    }
}

/// The control endpoint: faults in, counts out.
async fn steer(world: &World, path: &str, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let locked = || world.state.lock().unwrap_or_else(PoisonError::into_inner);
    match (path, parts.method.as_str()) {
        ("calls", "GET") => json(StatusCode::OK, &serde_json::json!({"calls": locked().counters.list()})),
        ("faults", "GET") => json(StatusCode::OK, &serde_json::json!({"faults": locked().faults.list()})),
        ("faults", "DELETE") => {
            locked().faults.clear();
            json(StatusCode::OK, &serde_json::json!({"faults": []}))
        }
        ("faults", "POST") => {
            // A web page can send a form to loopback, but not this type without asking first (CORS).
            if parts.headers.get(CONTENT_TYPE).is_none_or(|kind| kind != "application/json") {
                return wrong(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json");
            }
            let body = match read_body(body).await {
                Ok(body) => body,
                Err(refusal) => return wrong(StatusCode::BAD_REQUEST, &refusal.message),
            };
            let fault = serde_json::from_slice::<Fault>(&body).map_err(|err| err.to_string());
            match fault.and_then(|fault| fault.check().map(|()| fault)) {
                Ok(fault) => {
                    let mut state = locked();
                    state.faults.add(fault);
                    json(StatusCode::OK, &serde_json::json!({"faults": state.faults.list()}))
                }
                Err(mistake) => wrong(StatusCode::BAD_REQUEST, &mistake),
            }
        }
        _ => wrong(StatusCode::NOT_FOUND, "GET /_emulator/calls, GET | POST | DELETE /_emulator/faults"),
    }
}

async fn read_body(body: Incoming) -> Result<Bytes, Refusal> {
    let collect = Limited::new(body, MAX_BODY).collect();
    match tokio::time::timeout(BODY_TIMEOUT, collect).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err(Refusal::new("MalformedInput", "The body is too long, or was cut short")),
        Err(_) => Err(Refusal::new("MalformedInput", "The body did not arrive")),
    }
}

fn refuse(refusal: &Refusal, request_id: &str) -> Response<Full<Bytes>> {
    let status = status_of(refusal.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = xml::refusal(refusal.code, &refusal.message, status.is_client_error(), request_id);
    reply(status, body.into(), request_id)
}

fn reply(status: StatusCode, body: Bytes, request_id: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/xml"));
    if let Ok(id) = request_id.parse() {
        response.headers_mut().insert("x-amzn-requestid", id);
    }
    response
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn wrong(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    json(status, &serde_json::json!({"message": message}))
}

fn fault_message(code: &str) -> &'static str {
    match code {
        "Throttling" => "Rate exceeded",
        "ServiceUnavailable" => "The request has failed due to a temporary failure of the server.",
        "InternalFailure" => {
            "The request processing has failed because of an unknown error, exception or failure."
        }
        "IDPCommunicationError" => "An error occurred when calling the identity provider",
        "IDPRejectedClaim" => "The identity provider rejected the claim",
        _ => "This answer was asked for on the emulator's control endpoint",
    }
}

/// A random UUID; it is no secret, and needs no better random numbers.
fn request_id() -> String {
    let bits = fastrand::u128(..);
    let digits = format!("{bits:032x}");
    format!("{}-{}-4{}-a{}-{}", &digits[..8], &digits[8..12], &digits[13..16], &digits[17..20], &digits[20..])
}

//! Credentials over HTTP: a container's endpoint (ECS, EKS Pod Identity) and instance metadata (IMDSv2).
//!
//! Both could be ourselves: our addresses are the ones that containers ask. Base credentials from there would be made of
//! themselves, so a listener of ours is refused before it is asked. By any other
//! name we would ask an agent that waits for those very credentials, and its refusal says that it is one of ours.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;

use super::BaseKeys;
use crate::server::reply::INSTANCE as OURS;
use crate::telemetry::in_full;

/// One request: these servers are on this machine, or next to it.
const DEADLINE: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 64 * 1024;
/// What the SDKs take over plain HTTP, beside loopback.
const PLAIN: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];

const RELATIVE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
const FULL: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
const INSTANCE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";

/// `AWS_CONTAINER_CREDENTIALS_…`
#[derive(Clone)]
pub(super) struct Container {
    uri: Uri,
    token: Option<String>,
    token_file: Option<PathBuf>,
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container credentials of {}", self.uri)
    }
}

impl Container {
    pub(super) const VARIABLES: [&str; 2] = [RELATIVE, FULL];

    /// `None` where neither variable is set.
    pub(super) fn from_variables(
        variable: &impl Fn(&str) -> Option<String>,
        ours: &[SocketAddr],
    ) -> Result<Option<Self>, String> {
        let (name, text) = match (variable(RELATIVE), variable(FULL)) {
            (Some(path), _) => (RELATIVE, format!("http://169.254.170.2{path}")),
            (None, Some(uri)) => (FULL, uri),
            (None, None) => return Ok(None),
        };
        let uri: Uri = text.parse().map_err(|_| format!("{name}: {text:?} is not a URL"))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let address: Option<IpAddr> = host.parse().ok();
        let plain = host == "localhost"
            || address.is_some_and(|address| address.is_loopback())
            || PLAIN.iter().any(|plain| plain.parse().ok() == address && address.is_some());
        if uri.scheme_str() != Some("http") || !plain {
            return Err(format!(
                "{name}: {text:?} is neither http to a loopback address nor to {}",
                PLAIN.join(", ")
            ));
        }
        not_ourselves(name, &uri, ours)?;
        Ok(Some(Self { uri, token: variable(TOKEN), token_file: variable(TOKEN_FILE).map(PathBuf::from) }))
    }

    pub(super) fn token_file(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }

    pub(super) async fn keys(&self) -> Result<BaseKeys, String> {
        // The file wins, and is read each time: whoever wrote it renews it.
        let token = match &self.token_file {
            None => self.token.clone(),
            Some(path) => {
                let read = std::fs::read_to_string(path);
                Some(read.map_err(|err| format!("{}: {err}", path.display()))?.trim().to_owned())
            }
        };
        let mut request = Request::get(self.uri.clone());
        if let Some(token) = token {
            let mut value = http::HeaderValue::from_str(&token)
                .map_err(|_| format!("{TOKEN} or its file holds what no header may"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let document = ask(request).await?;
        BaseKeys::from_document(&document).map_err(|why| format!("what it answers: {why}"))
    }
}

/// Instance metadata, version 2 alone: version 1 answers whoever can make somebody else's program ask a URL.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    endpoint: String,
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instance metadata at {}", self.endpoint)
    }
}

impl Instance {
    pub(super) fn from_variables(
        variable: &impl Fn(&str) -> Option<String>,
        ours: &[SocketAddr],
    ) -> Result<Self, String> {
        let endpoint = variable(INSTANCE).unwrap_or_else(|| "http://169.254.169.254".into());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let uri = endpoint.parse::<Uri>().ok();
        let uri = uri.filter(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
        let uri = uri.ok_or_else(|| format!("{INSTANCE}: {endpoint:?} is not http://HOST"))?;
        not_ourselves(INSTANCE, &uri, ours)?;
        Ok(Self { endpoint })
    }

    /// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html>
    pub(super) async fn keys(&self) -> Result<BaseKeys, String> {
        let Self { endpoint } = self;
        let session = Request::builder()
            .method(Method::PUT)
            .uri(format!("{endpoint}/latest/api/token"))
            .header("x-aws-ec2-metadata-token-ttl-seconds", "300");
        let session = ask(session).await.map_err(|why| format!("no session (IMDSv2): {why}"))?;
        let session = http::HeaderValue::from_bytes(&session).map_err(|_| "its session is no header")?;
        let get = async |path: &str| {
            let uri = format!("{endpoint}/latest/meta-data/iam/security-credentials/{path}");
            ask(Request::get(uri).header("x-aws-ec2-metadata-token", session.clone())).await
        };
        let role = get("").await.map_err(|why| format!("no role of the instance: {why}"))?;
        let role = std::str::from_utf8(&role).unwrap_or_default().lines().next().unwrap_or_default().trim();
        if role.is_empty() || role.contains(['/', '?', '#', ' ']) {
            return Err("the instance has no instance profile".into());
        }
        let document = get(role).await.map_err(|why| format!("no credentials of role {role}: {why}"))?;
        BaseKeys::from_document(&document).map_err(|why| format!("the document of role {role}: {why}"))
    }
}

/// Refuses a URL that leads to one of our own listeners.
fn not_ourselves(variable: &str, uri: &Uri, ours: &[SocketAddr]) -> Result<(), String> {
    let address: Option<IpAddr> = uri.host().and_then(|host| host.trim_matches(['[', ']']).parse().ok());
    let port = uri.port_u16().unwrap_or(80);
    let is_it = |listener: &SocketAddr| {
        // `localhost` is the one name that gets here for a container; any other is found out by its answer.
        let same = address.map_or(listener.ip().is_loopback(), |address| address == listener.ip());
        same && listener.port() == port
    };
    if ours.iter().any(is_it) {
        return Err(format!(
            "{variable}: {uri} is this agent itself, whose credentials would be made of themselves. Give the agent's pod no \
             such variable (leave its namespace without rolecall.dev/inject)"
        ));
    }
    Ok(())
}

/// One request and its answer, which must be 200. Redirects are not followed, and no proxy is asked.
async fn ask(request: http::request::Builder) -> Result<Bytes, String> {
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| "the request cannot be made")?;
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(DEADLINE / 2));
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
    let asked = async {
        let answer = client.request(request).await.map_err(|err| in_full(&err))?;
        if answer.headers().contains_key(OURS) {
            return Err("it is an agent of rolecall, whose credentials would be made of themselves".into());
        }
        if answer.status() != http::StatusCode::OK {
            return Err(format!("HTTP status {}", answer.status().as_u16()));
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        Ok(body.map_err(|err| err.to_string())?.to_bytes())
    };
    timeout(DEADLINE, asked).await.map_err(|_| format!("no answer within {} s", DEADLINE.as_secs()))?
}

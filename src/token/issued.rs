//! `--token-source=issuer`: the pod's token is for the central issuer, and STS is shown what that signs instead.
//!
//! The issuer believes nobody for one token: it is shown the agent's own, too, which the kubelet renews in a file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::BoundToken;
use crate::cluster::{Cluster, Error};
use crate::identity::pods::Pod;
use crate::issuer::claims::LIFE;
use crate::oidc::fetch::trust_only;
use crate::role::Claims;
use crate::role::tags::Tag;
use crate::telemetry::in_full;

/// Where the issuer answers.
const PATH: &str = "v1/token";
/// A new connection, or an answer that waits for the API server: the issuer gives up a little earlier.
const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(5);
/// Shorter than the issuer keeps an idle one.
const POOL_IDLE: Duration = Duration::from_secs(20);
/// A node that starts asks for all of its plans; one address may not have all of the issuer's connections.
const FLIGHTS: usize = 8;
/// A token, or a refusal's sentence.
const MAX_ANSWER: usize = 16 * 1024;

/// Where the issuer is, and what it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    /// `--issuer-url`
    pub url: String,
    /// `--issuer-ca-bundle`: the only roots that are believed. Read again when it changes.
    pub ca_bundle: Option<PathBuf>,
    /// `--issuer-token-file`: the agent's own token for the issuer, read each time.
    pub token_file: PathBuf,
    /// `--issuer-audience`: of both tokens that it is shown.
    pub audience: Arc<str>,
}

/// The issuer, and the kube API whose tokens it is shown.
pub struct Issued {
    cluster: Arc<dyn Cluster>,
    door: Door,
    client: Mutex<Option<(Vec<u8>, HttpClient)>>,
    flights: Semaphore,
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

#[derive(Deserialize)]
struct Answer {
    token: SecretText,
    expires_in: u64,
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
    message: String,
}

/// Never printed.
#[derive(Deserialize)]
#[serde(transparent)]
struct SecretText(String);

impl Issued {
    /// Nothing is asked yet. The pods' tokens for the issuer come from `cluster`.
    pub fn new(cluster: Arc<dyn Cluster>, door: Door) -> Self {
        Self { cluster, door, client: Mutex::default(), flights: Semaphore::new(FLIGHTS) }
    }

    /// What the issuer signs for `pod`: a token for `audience` that lives for [`LIFE`].
    ///
    /// # Errors
    /// The kube API's, the issuer's, or those of the files that it is asked with.
    pub async fn request(&self, pod: &Pod, audience: &str, claims: &Claims) -> Result<BoundToken, Error> {
        // Used at once, so it lives no longer than the API server makes it.
        let pods = self.cluster.request_token(pod, &self.door.audience, LIFE).await?;
        self.exchange(&pods, audience, claims).await
    }

    /// What the issuer signs for the pod of this token.
    async fn exchange(
        &self,
        pods: &BoundToken,
        audience: &str,
        claims: &Claims,
    ) -> Result<BoundToken, Error> {
        let _flight = self.flights.acquire().await.expect("nobody closes it");
        let asked = Instant::now();
        let (status, body) =
            timeout(CONNECT + ANSWER, self.ask(pods, audience, claims)).await.map_err(|_| {
                Error::IssuerAway(format!("no answer within {} s", (CONNECT + ANSWER).as_secs()))
            })??;
        if status != StatusCode::OK {
            return Err(refusal(status, &body));
        }
        // Only where it broke: serde's text can quote the answer, which is a token.
        let Answer { token, expires_in } = serde_json::from_slice(&body).map_err(|err| {
            Error::IssuerAway(format!(
                "its answer cannot be decoded (line {}, column {})",
                err.line(),
                err.column()
            ))
        })?;
        let life = Duration::from_secs(expires_in).min(LIFE).saturating_sub(asked.elapsed());
        Ok(BoundToken::new(SecretString::from(token.0), life))
    }

    async fn ask(
        &self,
        pods: &BoundToken,
        audience: &str,
        claims: &Claims,
    ) -> Result<(StatusCode, Bytes), Error> {
        let Door { url, token_file, .. } = &self.door;
        // The issuer makes the values itself, of what the API server says of the pod.
        let tags: Vec<String> = claims.tags.iter().map(Tag::asked).collect();
        let mut body = json!({"token": pods.expose(), "audience": audience});
        // What is not asked for is not named: an issuer that does not know it refuses it.
        if !tags.is_empty() {
            body["session_tags"] = tags.join(",").into();
        }
        if let Some(source_identity) = &claims.source_identity {
            body["source_identity"] = source_identity.template().into();
        }
        let body = body.to_string();
        let request = Request::post(format!("{}/{PATH}", url.trim_end_matches('/')))
            .header(CONTENT_TYPE, "application/json")
            .header(AUTHORIZATION, own_token(token_file)?)
            .body(Full::new(Bytes::from(body)))
            .map_err(|err| Error::IssuerRefused(err.to_string()))?;
        let away = |err: &dyn std::error::Error| Error::IssuerAway(in_full(err));
        let answer = self.client()?.request(request).await.map_err(|err| away(&err))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        Ok((status, body.map_err(|err| away(&*err))?.to_bytes()))
    }

    /// The client that believes the CA bundle as it is now.
    fn client(&self) -> Result<HttpClient, Error> {
        let wrong = |why: String| Error::IssuerRefused(format!("--issuer-ca-bundle: {why}"));
        let bundle = match &self.door.ca_bundle {
            None => Vec::new(),
            Some(path) => std::fs::read(path).map_err(|err| wrong(format!("{}: {err}", path.display())))?,
        };
        let mut client = self.client.lock().expect("nothing panics while it holds this lock");
        if let Some((_, client)) = client.as_ref().filter(|(built, _)| *built == bundle) {
            return Ok(client.clone());
        }
        let builder = HttpsConnectorBuilder::new();
        let tls = match &self.door.ca_bundle {
            Some(path) => builder.with_tls_config(trust_only(path).map_err(|err| wrong(in_full(&err)))?),
            None => builder.with_native_roots().map_err(|err| wrong(err.to_string()))?,
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let built = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .build(tls.https_only().enable_http1().wrap_connector(tcp));
        *client = Some((bundle, built.clone()));
        Ok(built)
    }
}

/// The agent's own token, as a header that no log shows.
fn own_token(path: &Path) -> Result<HeaderValue, Error> {
    let wrong = |why: String| Error::IssuerRefused(format!("--issuer-token-file {}: {why}", path.display()));
    let token = std::fs::read_to_string(path).map_err(|err| wrong(err.to_string()))?;
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
        .map_err(|_| wrong("it holds no token".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What the issuer's refusal means for the pod; see `issuer::refusal`.
fn refusal(status: StatusCode, body: &[u8]) -> Error {
    let said = match serde_json::from_slice(body) {
        Ok(Refusal { code, message }) => format!("{code}: {message}"),
        Err(_) => format!("HTTP status {}", status.as_u16()),
    };
    let said: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    match status {
        // The pod of that token, and the next of its plan may do.
        StatusCode::GONE => Error::PodGone(said),
        // About our own token, which may be in the middle of its renewal: it says nothing about the pod.
        StatusCode::UNAUTHORIZED => Error::IssuerAway(said),
        status if status.is_server_error() => Error::IssuerAway(said),
        _ => Error::IssuerRefused(said),
    }
}

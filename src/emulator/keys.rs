//! Where an issuer's public keys come from: given, a file, or OpenID Connect discovery.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::jwt::{self, Jwks, Unverified};

/// An unknown key id makes us look again, at most this often: key ids come from whoever calls.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// A key that its issuer withdrew counts no longer than this, while the issuer answers.
const MAX_AGE: Duration = Duration::from_secs(300);

/// For one document, connection included.
const FETCH: Duration = Duration::from_secs(5);

/// Documents of an issuer are a few kilobytes.
const MAX_DOCUMENT: usize = 256 * 1024;

/// Why there are no keys to verify with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{} is not a JWKS with a key that can verify a token", path.display())]
    FileContent { path: PathBuf },
    #[error("{} holds no certificate in PEM", path.display())]
    CaFile { path: PathBuf },
    #[error("this system's root certificates cannot be read; name a ca_file")]
    SystemRoots(#[source] std::io::Error),
    #[error("TLS of the discovery client")]
    Tls(#[source] rustls::Error),
    #[error("{url}: no answer within {} s", FETCH.as_secs())]
    Timeout { url: String },
    #[error("{url}: {message}")]
    Fetch { url: String, message: String },
    #[error("{url}: status {status}")]
    Status { url: String, status: u16 },
    #[error("{url} is for the issuer {found:?}, not {expected:?}")]
    OtherIssuer { url: String, found: String, expected: String },
    #[error("{url} is not what an issuer publishes there")]
    Content { url: String },
}

/// The keys of one issuer, looked up when they are needed.
pub(crate) struct KeySource {
    origin: Origin,
    known: Mutex<Known>,
}

enum Origin {
    Given,
    File(PathBuf),
    Discovery {
        issuer: String,
        url: String,
        client: Box<Client<HttpsConnector<HttpConnector>, Empty<Bytes>>>,
    },
}

#[derive(Default)]
struct Known {
    keys: Jwks,
    looked: Option<Instant>,
    fetched: Option<Instant>,
}

/// Why a token could not be verified.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unproved {
    #[error(transparent)]
    Token(#[from] jwt::Error),
    #[error(transparent)]
    Keys(#[from] Error),
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl KeySource {
    pub(crate) fn given(keys: Jwks) -> Self {
        let known = Known { keys, ..Known::default() };
        Self { origin: Origin::Given, known: Mutex::new(known) }
    }

    pub(crate) fn file(path: PathBuf) -> Result<Self, Error> {
        let known = Known { keys: read_file(&path)?, ..Known::default() };
        Ok(Self { origin: Origin::File(path), known: Mutex::new(known) })
    }

    /// `url` is the discovery document; nothing is fetched before the first token comes.
    pub(crate) fn discovery(issuer: &str, url: String, ca_file: Option<PathBuf>) -> Result<Self, Error> {
        let builder = HttpsConnectorBuilder::new();
        let tls = match ca_file {
            Some(path) => builder.with_tls_config(trust_only(path)?),
            None => builder.with_native_roots().map_err(Error::SystemRoots)?,
        };
        let client = Client::builder(TokioExecutor::new()).build(tls.https_or_http().enable_http1().build());
        let origin = Origin::Discovery { issuer: issuer.to_owned(), url, client: Box::new(client) };
        Ok(Self { origin, known: Mutex::default() })
    }

    /// The claims of `token`, if one of this issuer's keys signed it.
    pub(crate) async fn verify(&self, token: &Unverified<'_>) -> Result<jwt::Claims, Unproved> {
        // Held while fetching, so that a hundred tokens with a new key id cause one look.
        let mut known = self.known.lock().await;
        let fresh =
            known.fetched.is_some_and(|at| at.elapsed() < MAX_AGE) || matches!(self.origin, Origin::Given);
        if fresh {
            match token.verify(&known.keys) {
                Err(jwt::Error::UnknownKey { .. }) => {}
                verified => return Ok(verified?.clone()),
            }
        }
        let mut failed = None;
        if known.looked.is_none_or(|at| at.elapsed() >= LOOK_AGAIN) {
            known.looked = Some(Instant::now());
            match self.fetch().await {
                Ok(None) => {}
                Ok(Some(keys)) => {
                    known.keys = keys;
                    known.fetched = Some(Instant::now());
                }
                // While the issuer does not answer, the keys it had go on counting.
                Err(error) => failed = Some(error),
            }
        }
        match (token.verify(&known.keys), failed) {
            (Err(jwt::Error::UnknownKey { .. }), Some(error)) => Err(error.into()),
            (verified, _) => Ok(verified?.clone()),
        }
    }

    async fn fetch(&self) -> Result<Option<Jwks>, Error> {
        match &self.origin {
            Origin::Given => Ok(None),
            Origin::File(path) => read_file(path).map(Some),
            Origin::Discovery { issuer, url, client } => {
                let document: Discovery = serde_json::from_slice(&get(client, url).await?)
                    .map_err(|_| Error::Content { url: url.clone() })?;
                // OpenID Connect Discovery 4.3: another issuer's document must not vouch for this one.
                if document.issuer != *issuer {
                    let (found, expected) = (document.issuer, issuer.clone());
                    return Err(Error::OtherIssuer { url: url.clone(), found, expected });
                }
                let keys = get(client, &document.jwks_uri).await?;
                Jwks::parse(&keys).map(Some).map_err(|_| Error::Content { url: document.jwks_uri })
            }
        }
    }
}

fn read_file(path: &PathBuf) -> Result<Jwks, Error> {
    let json = std::fs::read(path).map_err(|source| Error::File { path: path.clone(), source })?;
    let keys = Jwks::parse(&json).ok().filter(|keys| keys.len() > 0);
    keys.ok_or_else(|| Error::FileContent { path: path.clone() })
}

fn trust_only(path: PathBuf) -> Result<rustls::ClientConfig, Error> {
    let no_certificate = || Error::CaFile { path: path.clone() };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&path).map_err(|_| no_certificate())? {
        roots.add(certificate.map_err(|_| no_certificate())?).map_err(|_| no_certificate())?;
    }
    if roots.is_empty() {
        return Err(no_certificate());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

async fn get(
    client: &Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    url: &str,
) -> Result<Bytes, Error> {
    let failed = |message: String| Error::Fetch { url: url.to_owned(), message };
    let uri = url.parse().map_err(|_| failed("not a URL".to_owned()))?;
    let fetch = async {
        let answer = client.get(uri).await.map_err(|err| failed(chain(&err)))?;
        if !answer.status().is_success() {
            return Err(Error::Status { url: url.to_owned(), status: answer.status().as_u16() });
        }
        let body = Limited::new(answer.into_body(), MAX_DOCUMENT).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|err| failed(err.to_string()))
    };
    tokio::time::timeout(FETCH, fetch).await.map_err(|_| Error::Timeout { url: url.to_owned() })?
}

/// The client's own errors say `client error (Connect)` and keep the cause for whoever asks.
fn chain(err: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(err), |err| err.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

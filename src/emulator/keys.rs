//! Where an issuer's public keys come from: given, a file, or OpenID Connect discovery.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::jwt::{self, Jwks, Unverified};
use crate::oidc::documents::{self, ApiServer};
use crate::oidc::fetch::{self, Fetcher};

/// An unknown key id makes us look again, at most this often: key ids come from whoever calls.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// A key that its issuer withdrew counts no longer than this, while the issuer answers.
const MAX_AGE: Duration = Duration::from_secs(300);

/// Why there are no keys to verify with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{} is not a JWKS with a key that can verify a token", path.display())]
    FileContent { path: PathBuf },
    #[error(transparent)]
    Fetch(#[from] fetch::Error),
    #[error(transparent)]
    ApiServer(#[from] documents::Error),
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
    Discovery { issuer: String, url: String, fetcher: Box<Fetcher> },
    ApiServer { issuer: String, kubeconfig: Option<PathBuf> },
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
        let fetcher = Box::new(Fetcher::new(ca_file.as_deref())?);
        let origin = Origin::Discovery { issuer: issuer.to_owned(), url, fetcher };
        Ok(Self { origin, known: Mutex::default() })
    }

    /// The API server of `kubeconfig`, or in a pod the pod's own; asked when the first token comes.
    pub(crate) fn api_server(issuer: &str, kubeconfig: Option<PathBuf>) -> Self {
        let origin = Origin::ApiServer { issuer: issuer.to_owned(), kubeconfig };
        Self { origin, known: Mutex::default() }
    }

    /// The claims of `token`, if one of this issuer's keys signed it.
    pub(crate) async fn verify(&self, token: &Unverified<'_>) -> Result<jwt::Claims, Unproved> {
        // Held while fetching, so that a hundred tokens with a new key id cause one look.
        let mut known = self.known.lock().await;
        let fresh =
            known.fetched.is_some_and(|at| at.elapsed() < MAX_AGE) || matches!(self.origin, Origin::Given);
        if fresh {
            match token.verify(&known.keys) {
                Err(jwt::Error::UnknownKey { .. } | jwt::Error::NoKeyId) => {}
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
            (Err(jwt::Error::UnknownKey { .. } | jwt::Error::NoKeyId), Some(error)) => Err(error.into()),
            (verified, _) => Ok(verified?.clone()),
        }
    }

    async fn fetch(&self) -> Result<Option<Jwks>, Error> {
        match &self.origin {
            Origin::Given => Ok(None),
            Origin::File(path) => read_file(path).map(Some),
            Origin::ApiServer { issuer, kubeconfig } => {
                let asked = ApiServer::ask(kubeconfig.as_deref()).await?;
                if asked.issuer != *issuer {
                    let (found, expected) = (asked.issuer, issuer.clone());
                    return Err(Error::OtherIssuer { url: "the API server".into(), found, expected });
                }
                let keys = documents::jwks(&asked.keys).to_string();
                let content = || Error::Content { url: "the API server".into() };
                Jwks::parse(keys.as_bytes()).map(Some).map_err(|_| content())
            }
            Origin::Discovery { issuer, url, fetcher } => {
                let document: Discovery = serde_json::from_slice(&get(fetcher, url).await?)
                    .map_err(|_| Error::Content { url: url.clone() })?;
                // OpenID Connect Discovery 4.3: another issuer's document must not vouch for this one.
                if document.issuer != *issuer {
                    let (found, expected) = (document.issuer, issuer.clone());
                    return Err(Error::OtherIssuer { url: url.clone(), found, expected });
                }
                let keys = get(fetcher, &document.jwks_uri).await?;
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

async fn get(fetcher: &Fetcher, url: &str) -> Result<Bytes, Error> {
    let document = fetcher.get(url).await?;
    match document.status {
        200..300 => Ok(document.body),
        status => Err(Error::Status { url: url.to_owned(), status }),
    }
}

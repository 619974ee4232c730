//! One document over HTTP, for whoever reads an issuer's: bounded in time and size, redirects not followed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::in_full;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// For one document, connection included.
const FETCH: Duration = Duration::from_secs(5);

/// Documents of an issuer are a few kilobytes.
const MAX_DOCUMENT: usize = 256 * 1024;

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{} holds no certificate in PEM", path.display())]
    CaFile { path: PathBuf },
    #[error("this system's root certificates cannot be read; name a CA file")]
    SystemRoots(#[source] std::io::Error),
    #[error("TLS of the discovery client")]
    Tls(#[source] rustls::Error),
    #[error("{url}: no answer within {} s", FETCH.as_secs())]
    Timeout { url: String },
    #[error("{url}: {message}")]
    Failed { url: String, message: String },
}

/// A client that trusts the system's root certificates, or those of one file alone.
pub(crate) struct Fetcher(Client<HttpsConnector<HttpConnector>, Empty<Bytes>>);

/// What came, whatever its status.
pub(crate) struct Document {
    pub status: u16,
    pub content_type: Option<String>,
    pub location: Option<String>,
    pub body: Bytes,
}

impl Fetcher {
    pub(crate) fn new(ca_file: Option<&Path>) -> Result<Self, Error> {
        let builder = HttpsConnectorBuilder::new();
        let tls = match ca_file {
            Some(path) => builder.with_tls_config(trust_only(path)?),
            None => builder.with_native_roots().map_err(Error::SystemRoots)?,
        };
        Ok(Self(Client::builder(TokioExecutor::new()).build(tls.https_or_http().enable_http1().build())))
    }

    pub(crate) async fn get(&self, url: &str) -> Result<Document, Error> {
        let failed = |message: String| Error::Failed { url: url.to_owned(), message };
        let uri = url.parse().map_err(|_| failed("not a URL".to_owned()))?;
        let fetch = async {
            let answer = self.0.get(uri).await.map_err(|err| failed(in_full(&err)))?;
            let header = |name| answer.headers().get(name)?.to_str().ok().map(str::to_owned);
            let (status, content_type, location) =
                (answer.status().as_u16(), header(CONTENT_TYPE), header(LOCATION));
            let body = Limited::new(answer.into_body(), MAX_DOCUMENT).collect().await;
            let body = body.map_err(|err| failed(err.to_string()))?.to_bytes();
            Ok(Document { status, content_type, location, body })
        };
        tokio::time::timeout(FETCH, fetch).await.map_err(|_| Error::Timeout { url: url.to_owned() })?
    }
}

/// TLS that believes the certificates of one file alone.
pub(crate) fn trust_only(path: &Path) -> Result<rustls::ClientConfig, Error> {
    let no_certificate = || Error::CaFile { path: path.to_owned() };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|_| no_certificate())? {
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

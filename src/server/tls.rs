//! A certificate chain and its key in PEM -> what accepts TLS with it: HTTP/1.1, TLS 1.2 and later, ring.

use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// What cannot be served. No text of a file is in it: one of them is a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("it holds no certificate in PEM: {0}")]
    Certificate(pem::Error),
    #[error("it holds no private key in PEM: {0}")]
    Key(pem::Error),
    #[error("certificate and key cannot be served: {0}")]
    Pair(rustls::Error),
}

/// Serves `chain` with its `key`.
pub(crate) fn acceptor(chain: &[u8], key: &[u8]) -> Result<TlsAcceptor, Error> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(Error::Certificate)?;
    if certificates.is_empty() {
        return Err(Error::Certificate(pem::Error::NoItemsFound));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(Error::Key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
        .map_err(Error::Pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

//! The thumbprint of a server as IAM wants it: SHA-1 of the last certificate of the chain that it sends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ring::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Name resolution, TCP and TLS together.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Why there is no thumbprint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing listens, or the name is unknown.
    #[error("{server}: no connection")]
    Connect {
        /// `HOST:PORT`
        server: String,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// What listens does not speak TLS with us.
    #[error("{server}: no TLS")]
    Tls {
        /// `HOST:PORT`
        server: String,
        /// What rustls says.
        source: std::io::Error,
    },
    /// Too slow.
    #[error("{server}: no TLS within {} s", HANDSHAKE.as_secs())]
    Timeout {
        /// `HOST:PORT`
        server: String,
    },
    /// rustls cannot be set up.
    #[error("TLS")]
    Setup(#[source] rustls::Error),
}

/// Where to look.
pub(super) struct Server {
    host: String,
    port: u16,
}

impl Server {
    /// `https://HOST[:PORT][/…]` or `HOST[:PORT]`; port 443 where none is given.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let wrong = || format!("{text:?} is neither an https URL nor HOST[:PORT]");
        let url: http::Uri = url.parse().map_err(|_| wrong())?;
        let (Some("https"), Some(authority)) = (url.scheme_str(), url.authority()) else {
            return Err(wrong());
        };
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(wrong());
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 443,
            _ => authority.port_u16().ok_or_else(wrong)?,
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port })
    }
}

/// What a server showed of itself.
pub(super) struct Chain {
    /// How many certificates it sent.
    pub length: usize,
    /// 40 hexadecimal digits.
    pub thumbprint: String,
}

/// Dials `server` and records what it sends, trusted or not: IAM wants a thumbprint exactly where nobody's roots help.
/// Whoever sits on the way could show a chain of their own, so this is worth as much as the network it is asked on.
pub(super) async fn chain(server: &Server) -> Result<Chain, Error> {
    let name = || format!("{}:{}", server.host, server.port);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let recorder = Arc::new(Recorder { provider: Arc::clone(&provider), seen: Mutex::default() });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&recorder) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let handshake = async {
        let stream = TcpStream::connect((server.host.as_str(), server.port)).await;
        let stream = stream.map_err(|source| Error::Connect { server: name(), source })?;
        let tls = |source| Error::Tls { server: name(), source };
        let sni = ServerName::try_from(server.host.clone()).map_err(|err| tls(std::io::Error::other(err)))?;
        TlsConnector::from(Arc::new(config)).connect(sni, stream).await.map_err(tls)
    };
    tokio::time::timeout(HANDSHAKE, handshake).await.map_err(|_| Error::Timeout { server: name() })??;
    let seen = recorder.seen.lock().unwrap_or_else(PoisonError::into_inner);
    let last = seen.last().expect("a handshake ends well after the server's certificate alone");
    Ok(Chain { length: seen.len(), thumbprint: sha1(last) })
}

/// SHA-1 is what IAM's API has; nothing here relies on it.
fn sha1(certificate: &CertificateDer) -> String {
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, certificate);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 40 hexadecimal digits, as IAM has them; colons and capitals of other tools are understood.
pub(super) fn parse(text: &str) -> Result<String, String> {
    let hex: String = text.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
    match hex.len() == 40 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => Ok(hex),
        false => Err(format!("{text:?} is not a SHA-1 of 40 hexadecimal digits")),
    }
}

/// Believes every chain and keeps it; the handshake's signature must still be right, so the server has the key.
#[derive(Debug)]
struct Recorder {
    provider: Arc<CryptoProvider>,
    seen: Mutex<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let sent = std::iter::once(end_entity).chain(intermediates);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) =
            sent.map(|certificate| certificate.clone().into_owned()).collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

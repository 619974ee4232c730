//! The way to STS: which roots are believed, by which proxy, how long anything may take.
//!
//! A CA bundle may be put in another's place at any moment (cert-manager renews it in a mounted Secret), and the SDK takes
//! its roots once: so the file is read again before each call, which there are few of, and a new one makes a new client.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::{
    HttpConnectorSettings, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};

use super::CONNECT;
use crate::config;

/// STS closes idle connections, and a dead pooled one stalls the next call; renewals are far apart anyway.
const POOL_IDLE: Duration = Duration::from_secs(20);
/// What is on this machine or this link is not asked for at a proxy, whatever NO_PROXY says: to a proxy these names mean
/// the proxy's own.
const DIRECT: &str = "localhost,127.0.0.0/8,::1,169.254.0.0/16,fe80::/10";

/// `--sts-ca-bundle`: the file, and what it held when it was last read.
#[derive(Clone)]
pub struct CaBundle {
    /// Read again before each call.
    pub path: PathBuf,
    pub(super) pem: Vec<u8>,
}

impl CaBundle {
    /// Reads `path` and checks what it holds.
    ///
    /// # Errors
    /// That it cannot be read, or is no bundle, as a phrase for the message.
    pub fn read(path: PathBuf) -> Result<Self, String> {
        let pem = std::fs::read(&path).map_err(|err| format!("{}: {err}", path.display()))?;
        check_pem(&pem)?;
        Ok(Self { path, pem })
    }

    /// The bundle as it is now, if it is another.
    ///
    /// # Errors
    /// As [`CaBundle::read`].
    pub(super) async fn changed(&self) -> Result<Option<Self>, String> {
        let path = self.path.clone();
        // Whatever the file is on, the agent does not wait for it.
        let now =
            tokio::task::spawn_blocking(move || Self::read(path)).await.map_err(|err| err.to_string())??;
        Ok((now.pem != self.pem).then_some(now))
    }
}

/// The configuration is logged, and the certificates would be most of it.
impl fmt::Debug for CaBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.path.display(), self.pem.len())
    }
}

/// The proxy of STS's calls, from the variables that AWS's SDKs know: `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`.
#[derive(Clone)]
pub struct Proxy {
    /// With user and password, if it has any.
    url: SecretString,
    /// Without them.
    shown: String,
    no_proxy: String,
}

impl Proxy {
    /// Takes `url` apart: `http://proxy:3128`, `https://user:password@proxy`, or `proxy:3128` alone.
    ///
    /// # Errors
    /// What is wrong with it, as a phrase for the message; the password is not in it.
    pub fn parse(url: &str, no_proxy: &str) -> Result<Self, &'static str> {
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let parsed = config::url::parse(&url).ok_or("is not a URL, such as http://proxy.example.com:3128")?;
        let (scheme, host) = match (parsed.scheme_str(), parsed.host()) {
            (Some(scheme @ ("http" | "https")), Some(host)) if !host.is_empty() => (scheme, host),
            _ => return Err("must be http://HOST:PORT or https://HOST:PORT; no other proxy is supported"),
        };
        let port = parsed.port().map(|port| format!(":{port}")).unwrap_or_default();
        let shown = format!("{scheme}://{host}{port}");
        Ok(Self { url: url.into(), shown, no_proxy: no_proxy.to_owned() })
    }

    fn config(&self) -> Result<ProxyConfig, String> {
        // The error would show the URL.
        let config = ProxyConfig::all(self.url.expose_secret()).map_err(|_| "the proxy's URL is no URL")?;
        Ok(config.no_proxy(format!("{DIRECT},{}", self.no_proxy)))
    }
}

/// For the log: never the password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} no-proxy={:?}", self.shown, self.no_proxy)
    }
}

/// A client that believes the system's roots and the bundle's, by way of `proxy`.
///
/// # Errors
/// What the SDK does not take, as a phrase for the message.
pub(super) fn http_client(
    bundle: Option<&CaBundle>,
    proxy: Option<&Proxy>,
) -> Result<SharedHttpClient, String> {
    let mut roots = TrustStore::default();
    if let Some(bundle) = bundle {
        roots.add_pem_certificate(bundle.pem.as_slice());
    }
    let tls = TlsContext::builder().with_trust_store(roots).build().map_err(|err| err.to_string())?;
    let proxy = proxy.map(Proxy::config).transpose()?.unwrap_or_else(ProxyConfig::disabled);
    // The whole way counts: the proxy, its tunnel, and TLS inside of it.
    let settings = HttpConnectorSettings::builder().connect_timeout(CONNECT).build();
    let connector = Connector::builder()
        .connector_settings(settings)
        .sleep_impl(TokioSleep::new())
        .pool_idle_timeout(POOL_IDLE)
        .proxy_config(proxy)
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(tls)
        .build();
    let connector = SharedHttpConnector::new(connector);
    Ok(http_client_fn(move |_, _| connector.clone()))
}

/// The SDK panics on a bad bundle, so it is read here first.
fn check_pem(pem: &[u8]) -> Result<(), String> {
    let mut certificates = 0;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots
            .add(certificate.map_err(|err| format!("it is not PEM: {err:?}"))?)
            .map_err(|err| format!("it holds a bad certificate: {err}"))?;
        certificates += 1;
    }
    if certificates == 0 { Err("it holds no certificate".into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_bundle_that_is_none_is_refused_not_a_panic() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for bundle in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(file.path(), bundle).unwrap();
            assert!(CaBundle::read(file.path().to_owned()).is_err(), "{bundle}");
        }
        assert!(CaBundle::read("/nonexistent/ca.pem".into()).unwrap_err().contains("/nonexistent/ca.pem"));
    }

    #[test]
    fn a_proxys_password_is_shown_nowhere() {
        let proxy = Proxy::parse("https://me:s3cr3t@proxy.example.com:3129", "10.0.0.0/8").unwrap();
        assert_eq!(proxy.to_string(), "https://proxy.example.com:3129");
        assert_eq!(format!("{proxy:?}"), "https://proxy.example.com:3129 no-proxy=\"10.0.0.0/8\"");
        assert_eq!(Proxy::parse("proxy:3128", "").unwrap().to_string(), "http://proxy:3128");
        assert_eq!(Proxy::parse("[fd00::1]:3128", "").unwrap().to_string(), "http://[fd00::1]:3128");
        for wrong in
            ["socks5://me:s3cr3t@proxy:1080", "http://me:s3cr3t@", "me:s3cr3t@", "http://", "://s3cr3t"]
        {
            let why = Proxy::parse(wrong, "").unwrap_err();
            assert!(!why.contains("s3cr3t"), "{why}");
        }
    }
}

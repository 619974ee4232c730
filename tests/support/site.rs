//! A static web host on loopback, over TLS with the certificate of tests/emulator or plain; and `rolecall oidc` beside it.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_rustls::TlsAcceptor;

/// A file of this repository.
pub(crate) fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path)
}

/// Why the site's certificate is believed.
pub(crate) fn ca_file() -> PathBuf {
    file("emulator/ca.pem")
}

/// One answer.
#[derive(Clone)]
pub(crate) struct Page {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
}

impl Page {
    pub(crate) fn json(body: impl ToString) -> Self {
        Self {
            status: 200,
            headers: vec![("content-type", "application/json".into())],
            body: body.to_string(),
        }
    }
}

/// What is served, by path; everything else is 404. Changes count at once.
#[derive(Clone, Default)]
pub(crate) struct Pages(Arc<Mutex<HashMap<String, Page>>>);

impl Pages {
    pub(crate) fn put(&self, path: &str, page: Page) {
        self.0.lock().unwrap().insert(path.to_owned(), page);
    }

    pub(crate) fn remove(&self, path: &str) {
        self.0.lock().unwrap().remove(path);
    }

    /// A folder as `rolecall oidc discovery --out` wrote it, below `prefix`.
    pub(crate) fn put_folder(&self, prefix: &str, folder: &Path, paths: &[&str]) {
        for path in paths {
            let body = std::fs::read_to_string(folder.join(path)).unwrap();
            self.put(&format!("{prefix}/{path}"), Page::json(body));
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let page = self.0.lock().unwrap().get(request.uri().path()).cloned();
        let page = page.unwrap_or(Page { status: 404, headers: Vec::new(), body: String::new() });
        let mut answer = Response::builder().status(page.status);
        for (name, value) in page.headers {
            answer = answer.header(name, value);
        }
        Ok(answer.body(Full::new(page.body.into())).unwrap())
    }
}

/// A running host; it ends with the test's runtime.
pub(crate) struct Site {
    pub(crate) pages: Pages,
    pub(crate) addr: SocketAddr,
    tls: bool,
}

impl Site {
    /// With `chain` (files of tests/emulator) it speaks TLS.
    pub(crate) async fn serve(chain: &[&str]) -> Self {
        Self::serve_at("127.0.0.1:0", chain).await
    }

    async fn serve_at(address: &str, chain: &[&str]) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let (pages, addr) = (Pages::default(), listener.local_addr().unwrap());
        let tls = (!chain.is_empty()).then(|| acceptor(chain));
        let site = Self { pages: pages.clone(), addr, tls: tls.is_some() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (pages, tls) = (pages.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => connection(stream, pages).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                connection(stream, pages).await;
                            }
                        }
                    }
                });
            }
        });
        site
    }

    /// With TLS, as an issuer must have it.
    pub(crate) async fn https() -> Self {
        Self::https_at(0).await
    }

    /// The same where a URL that was chosen before leads to: on a node of a test's own every port is free.
    pub(crate) async fn https_at(port: u16) -> Self {
        Self::serve_at(&format!("127.0.0.1:{port}"), &["cert.pem"]).await
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://localhost:{}", if self.tls { "https" } else { "http" }, self.addr.port())
    }
}

fn acceptor(chain: &[&str]) -> TlsAcceptor {
    let certificate = |name: &&str| CertificateDer::from_pem_file(file("emulator").join(name)).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("emulator/key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.iter().map(certificate).collect(), key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, pages: Pages) {
    let service = service_fn(move |request| {
        let pages = pages.clone();
        async move { pages.answer(request).await }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// What `rolecall oidc` said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// Its standard output, if it succeeded.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// The same, as JSON.
    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.good()).unwrap()
    }
}

/// Runs `rolecall oidc`. Paths are taken as text, since all of them are.
pub(crate) async fn oidc<A: AsRef<std::ffi::OsStr>>(args: &[A]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolecall"));
    // Neither a pod's API server nor other root certificates.
    for name in ["KUBERNETES_SERVICE_HOST", "SSL_CERT_FILE", "SSL_CERT_DIR"] {
        command.env_remove(name);
    }
    let output = command.arg("oidc").args(args).output().await.unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

//! `rolecall issuer` as a process beside a real API server, with the rights that daemonset/issuer ships.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::time::{Instant, interval};

use crate::apiserver::{ApiServer, Pod};

/// For what should take milliseconds, on a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(30);
/// How often a file is looked at that nothing tells of.
const LOOK: Duration = Duration::from_millis(20);
/// Of the tokens that the issuer is shown.
pub(crate) const AUDIENCE: &str = rolecall::issuer::AUDIENCE;

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path)
}

/// The API server with daemonset/issuer applied, but for the list of audiences: other tests beside this one need the old one.
pub(crate) fn server() -> &'static ApiServer {
    static APPLIED: OnceLock<()> = OnceLock::new();
    let server = ApiServer::shared();
    APPLIED.get_or_init(|| {
        let manifest = format!("{}/daemonset/issuer/issuer.yaml", env!("CARGO_MANIFEST_DIR"));
        server.kubectl(&["apply", "--server-side", "--validate=strict", "-f", &manifest]);
        server.documented("kubectl patch clusterrole rolecall-audiences ", &[("AUDIENCE", AUDIENCE)]);
    });
    server
}

/// Its keys, certificate and process; gone when dropped.
pub(crate) struct Issuer {
    folder: tempfile::TempDir,
    process: Child,
    /// Where it answers.
    pub(crate) addr: SocketAddr,
    /// The `iss` of its tokens.
    pub(crate) url: String,
}

/// What it answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Answer {
    /// `200`, or the code of the refusal.
    pub(crate) fn code(&self) -> &str {
        if self.status == 200 { "ok" } else { self.body["code"].as_str().unwrap_or("no code") }
    }

    /// The token.
    #[track_caller]
    pub(crate) fn token(&self) -> String {
        self.body["token"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }
}

impl Issuer {
    /// Signs with `key`, a PEM text. Its URL is where it answers, so that its documents can be fetched from there. In the network
    /// namespace of the calling thread.
    pub(crate) async fn start(name: &str, key: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("signing.pem"), key).unwrap();
        for (from, to) in [("emulator/cert.pem", "tls.crt"), ("emulator/key.pem", "tls.key")] {
            fs::copy(file(from), folder.path().join(to)).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (addr, url) =
            (SocketAddr::from(([127, 0, 0, 1], port)), format!("https://localhost:{port}/{name}"));
        let kubeconfig = server().kubeconfig_of_agent("rolecall-issuer", "", &format!("issuer-{name}"));
        let output = fs::File::create(folder.path().join("output")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_rolecall"))
            .args([
                "issuer",
                "--issuer",
                &url,
                "--listen",
                &addr.to_string(),
                "--admin-listen",
                "127.0.0.1:0",
            ])
            .args(["--keys".as_ref(), folder.path().as_os_str(), "--tls".as_ref(), folder.path().as_os_str()])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let issuer = Self { folder, process, addr, url };
        issuer.until_it_says("\"message\":\"ready\"").await;
        issuer
    }

    /// All that it wrote.
    pub(crate) fn output(&self) -> String {
        fs::read_to_string(self.folder.path().join("output")).unwrap()
    }

    /// Waits for a line of its log.
    pub(crate) async fn until_it_says(&self, text: &str) {
        let (begun, mut looks) = (Instant::now(), interval(LOOK));
        while !self.output().contains(text) {
            assert!(begun.elapsed() < SOON, "no {text}: {}", self.output());
            looks.tick().await;
        }
    }

    /// Puts a file into its folder of keys.
    pub(crate) fn put(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// Why its certificate is believed.
    pub(crate) fn ca(&self) -> PathBuf {
        file("emulator/ca.pem")
    }

    /// Where agents find it.
    pub(crate) fn door(&self) -> String {
        format!("https://localhost:{}", self.addr.port())
    }

    /// One request, as an agent makes it.
    pub(crate) async fn ask(&self, authorization: Option<&str>, body: &Value) -> Answer {
        let mut request = hyper::Request::post(format!("{}/v1/token", self.door()));
        if let Some(token) = authorization {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.send(request.body(Full::new(Bytes::from(body.to_string()))).unwrap()).await
    }

    /// A token for STS, with these two.
    pub(crate) async fn token(&self, agent: &str, pod: &str) -> Answer {
        self.ask(Some(agent), &json!({"token": pod, "audience": "sts.amazonaws.com"})).await
    }

    pub(crate) async fn send(&self, request: hyper::Request<Full<Bytes>>) -> Answer {
        let tls = trusting(&self.ca());
        let https =
            hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1();
        let client = Client::builder(TokioExecutor::new()).build(https.build());
        let answer = client.request(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        Answer { status, body: serde_json::from_slice(&body).unwrap() }
    }
}

/// A client that believes this certificate alone.
pub(crate) fn trusting(pem: &Path) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pem).unwrap()).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

impl Drop for Issuer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A token of `account` (`NAMESPACE/NAME`), bound to `pod` if that is not empty, as the API server makes them.
pub(crate) fn token(account: &str, pod: &str, audience: &str) -> String {
    let (namespace, name) = account.split_once('/').unwrap();
    let mut args = vec!["create", "token", name, "-n", namespace, "--audience", audience];
    if !pod.is_empty() {
        args.extend(["--bound-object-kind=Pod", "--bound-object-name", pod]);
    }
    server().kubectl(&args).trim().to_owned()
}

/// The agent's own pod on `node`; returns its name.
pub(crate) fn agent_on(node: &str) -> String {
    server().node(node, &[]);
    let name = format!("rolecall-{node}");
    server().pod(&Pod {
        namespace: "rolecall",
        name: &name,
        service_account: "rolecall",
        node,
        ..Pod::default()
    });
    name
}

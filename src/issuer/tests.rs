//! Changed folders, and where the documents are.

use std::fs;

use super::keys::SIGNING;
use super::*;
use crate::fakes::FakeCluster;
use crate::identity::evidence::Origin;
use crate::server::limits::Limits;

const RSA: &str = include_str!("../../tests/oidc/rsa.key");
const CERTIFICATE: &str = include_str!("../../tests/emulator/cert.pem");
const CERTIFICATE_KEY: &str = include_str!("../../tests/emulator/key.pem");

struct World {
    folder: tempfile::TempDir,
    config: Config,
    issuer: Arc<Issuer>,
    mounted: Mounted,
    metrics: Arc<Metrics>,
}

impl World {
    /// It signs with the RSA key.
    fn new(url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        for (file, text) in [(SIGNING, RSA), (CHAIN, CERTIFICATE), (KEY, CERTIFICATE_KEY)] {
            fs::write(folder.path().join(file), text).unwrap();
        }
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        let flags = ["rolecall", "--issuer", url, "--keys", path, "--tls", path];
        let Cli { args } = <Cli as clap::Parser>::try_parse_from(flags).unwrap();
        let config = Config::from_args(args).unwrap();
        let metrics = Arc::new(Metrics::new());
        let lines = Lines::start(std::io::sink(), metrics.dropped_lines.clone()).unwrap();
        let cluster = Arc::new(FakeCluster::default());
        let (issuer, mounted) = Issuer::new(&config, cluster, Arc::clone(&metrics), lines).unwrap();
        Self { folder, config, issuer, mounted, metrics }
    }

    fn put(&mut self, file: &str, text: &str) {
        fs::write(self.folder.path().join(file), text).unwrap();
        self.issuer.renew(&self.config, &mut self.mounted);
    }

    /// The signing key's id, and how many are published.
    fn keys(&self) -> (String, usize) {
        let current = self.issuer.current.load();
        (current.keys.signing.kid().to_owned(), current.keys.published.len())
    }

    fn failures(&self, what: &str) -> String {
        let text = self.metrics.render();
        let series = format!("rolecall_issuer_reload_failures_total{{what=\"{what}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().to_owned()
    }
}

/// A new P-256 key in PEM, and its id.
fn p256() -> (String, String) {
    use base64::Engine as _;
    let random = ring::rand::SystemRandom::new();
    let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let der = ring::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
    let kid = keys::SigningKey::parse_pem(pem.as_bytes()).unwrap().kid().to_owned();
    (pem, kid)
}

#[test]
fn a_key_is_published_before_it_signs_and_the_old_one_after() {
    let mut world = World::new("https://oidc.example.com");
    let (old, (next, kid)) = (world.keys().0, p256());
    world.put("next.pem", &next);
    assert_eq!(world.keys(), (old.clone(), 2));
    fs::write(world.folder.path().join("next.pem"), RSA).unwrap();
    world.put(SIGNING, &next);
    assert_eq!(world.keys(), (kid.clone(), 2));
    fs::remove_file(world.folder.path().join("next.pem")).unwrap();
    world.issuer.renew(&world.config, &mut world.mounted);
    assert_eq!(world.keys(), (kid, 1));
    assert_eq!(world.failures("keys"), "0");
}

#[test]
fn a_key_that_was_never_published_does_not_sign() {
    let mut world = World::new("https://oidc.example.com");
    let before = world.keys();
    let (next, _) = p256();
    world.put(SIGNING, &next);
    assert_eq!((world.keys(), world.failures("keys")), (before.clone(), "1".into()));
    world.issuer.renew(&world.config, &mut world.mounted);
    assert_eq!(world.failures("keys"), "1", "said once");
    world.put(SIGNING, "oops");
    assert_eq!((world.keys(), world.failures("keys")), (before, "2".into()));
}

#[test]
fn a_certificate_is_taken_when_it_changes_and_kept_when_the_new_one_is_not_good() {
    let mut world = World::new("https://oidc.example.com");
    let before = world.issuer.tls();
    world.put(CHAIN, "oops");
    assert!(Arc::ptr_eq(&before, &world.issuer.tls()) && world.failures("tls") == "1");
    world.put(CHAIN, &format!("{CERTIFICATE}\n"));
    assert!(!Arc::ptr_eq(&before, &world.issuer.tls()));
}

#[test]
fn the_documents_are_below_the_issuers_url_and_nowhere_else() {
    for (url, prefix) in [
        ("https://oidc.example.com", ""),
        ("https://oidc.example.com/", ""),
        ("https://oidc.example.com/a/b", "/a/b"),
        ("https://oidc.example.com:8443/a/", "/a"),
    ] {
        let issuer = World::new(url).issuer;
        for document in [DISCOVERY, JWKS] {
            let text = issuer.document(&format!("{prefix}/{document}"));
            assert!(text.is_some(), "{url} {document}");
            for path in [format!("/x{prefix}/{document}"), format!("//{document}"), document.to_owned()] {
                assert_eq!(issuer.document(&path), None, "{url} {path}");
            }
        }
        let discovery = issuer.document(&format!("{prefix}/{DISCOVERY}")).unwrap();
        let discovery: serde_json::Value = serde_json::from_slice(&discovery).unwrap();
        assert_eq!(discovery["issuer"], url);
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_that_has_no_turn_left_costs_no_handshake() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let issuer = World::new("https://oidc.example.com").issuer;
    let limits = Arc::new(Limits::new(http::CONNECTIONS));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for (flooded, answered) in [(false, true), (true, false)] {
        let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        // Rustls answers what is no TLS with an alert.
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        stream.readable().await.unwrap();
        let admission = limits.admit(Origin::Address(peer.ip())).unwrap();
        for _ in 0..if flooded { 10_000 } else { 0 } {
            let _ = futures_util::FutureExt::now_or_never(admission.turn());
        }
        let (_stop, drain) = shutdown::drain();
        http::connection(stream, peer, Arc::clone(&issuer), admission, drain).await;
        let mut answer = Vec::new();
        // Closing what was not read resets the connection.
        let _ = client.read_to_end(&mut answer).await;
        assert_eq!(!answer.is_empty(), answered, "{answer:?}");
    }
}

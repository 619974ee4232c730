//! `rolecall oidc` on loopback: what it writes is served, fetched, believed by an STS, and checked.

#[path = "oidc/check.rs"]
mod check;
#[path = "support/http.rs"]
mod http;
#[path = "support/site.rs"]
mod site;
#[path = "support/web_identity.rs"]
mod web_identity;

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use rolecall::emulator::{Issuer, IssuerConfig};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use site::{Said, Site, ca_file, file, oidc};
use web_identity::{ACCOUNT, Sts, claims};

const STS: &str = "sts.amazonaws.com";
const DISCOVERY: &str = ".well-known/openid-configuration";
const JWKS: &str = "openid/v1/jwks";
const RSA_KID: &str = "aIGdbewUWj25G3G5XX_CxJNox1XRYpaJqjxpFeUWcbc";

fn key(name: &str) -> String {
    file("oidc").join(name).to_str().unwrap().to_owned()
}

async fn jwks(files: &[&str], flags: &[&str]) -> Said {
    let keys = files.iter().flat_map(|name| ["--public-key".to_owned(), key(name)]);
    let args =
        std::iter::once("jwks".to_owned()).chain(keys).chain(flags.iter().map(|&flag| flag.to_owned()));
    oidc(&args.collect::<Vec<_>>()).await
}

fn kids(jwks: &Value) -> Vec<&str> {
    jwks["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap()).collect()
}

// As `openssl pkey -pubin -outform DER | openssl dgst -sha256 -binary | basenc --base64url` prints them, which is what
// Kubernetes computes (tests/oidc_cluster.rs asks a real one).
#[tokio::test]
async fn key_ids_and_algorithms_are_those_of_kubernetes() {
    for (name, kid, alg, curve) in [
        ("rsa.pem", RSA_KID, "RS256", None),
        ("rsa-pkcs1.pem", RSA_KID, "RS256", None),
        ("p256.pem", "FCBZJ7SQtFvP_oMuOm1zWjIsHMVy0XBjWcNgEjabxb0", "ES256", Some("P-256")),
        ("p384.pem", "n9XO_--M1J1514wOxD4VvX5yCMThbskFF9atB9Q5CeY", "ES384", Some("P-384")),
        ("p521.pem", "Ufsv8w9fNCL-35cLVu4k6NxN0IFaoTGVhhQwh8pJC7w", "ES512", Some("P-521")),
    ] {
        let jwks = jwks(&[name], &[]).await.json();
        let key = &jwks["keys"][0];
        assert_eq!(
            (&key["kid"], &key["alg"], &key["use"]),
            (&json!(kid), &json!(alg), &json!("sig")),
            "{name}"
        );
        assert_eq!(key["crv"].as_str(), curve, "{name}");
    }
    let p521 = jwks(&["p521.pem"], &[]).await.json();
    // 66 octets each, zeros in front included (RFC 7518, 6.2.1.2): this x begins with one.
    for coordinate in ["x", "y"] {
        let octets = URL_SAFE_NO_PAD.decode(p521["keys"][0][coordinate].as_str().unwrap()).unwrap();
        assert_eq!(octets.len(), 66);
    }
}

#[tokio::test]
async fn a_key_is_published_once_and_with_an_empty_id_if_asked() {
    let keys = jwks(&["rsa.pem", "p384.pem", "rsa-pkcs1.pem"], &["--empty-kid"]).await.json();
    assert_eq!(kids(&keys), [RSA_KID, "n9XO_--M1J1514wOxD4VvX5yCMThbskFF9atB9Q5CeY", "", ""]);
    let (named, nameless) = (&keys["keys"][0], &keys["keys"][2]);
    assert_eq!((&named["n"], &named["alg"]), (&nameless["n"], &nameless["alg"]));
    let one = jwks(&["rsa.pem"], &[]).await.json();
    assert_eq!(kids(&one), [RSA_KID]);
}

#[tokio::test]
async fn a_private_key_is_refused_and_not_a_word_of_it_is_printed() {
    let secret = std::fs::read_to_string(key("rsa.key")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let written = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).to_str().unwrap().to_owned()
    };
    let public = std::fs::read_to_string(key("rsa.pem")).unwrap();
    for path in [
        key("rsa.key"),
        written("both", &format!("{public}{secret}")),
        written("legacy", &secret.replace("PRIVATE", "RSA PRIVATE")),
        written("cut", secret.split_once("-----END").unwrap().0),
    ] {
        let said = oidc(&["jwks", "--public-key", &path]).await;
        assert_eq!((said.code, said.out.as_str()), (64, ""), "{path}");
        assert!(said.err.contains("holds a private key"), "{}", said.err);
        for line in secret.lines().filter(|line| !line.starts_with('-')) {
            assert!(!said.err.contains(line), "{}", said.err);
        }
    }
}

#[tokio::test]
async fn files_that_are_no_key_are_refused_all_together() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = vec!["discovery".to_owned()];
    let mut add = |path: String| args.extend(["--public-key".to_owned(), path]);
    let rsa = std::fs::read_to_string(key("rsa.pem")).unwrap();
    // The length of the outer SEQUENCE is at the front, and the last octets are the exponent.
    let (cut, long) = (rsa.replacen("IDAQAB", "", 1), rsa.replacen("MIIBI", "MIMAA", 1));
    for (name, text) in [
        ("cut", cut.as_str()),
        ("long", long.as_str()),
        ("no-base64", &rsa.replacen("MII", "M*I", 1)),
        ("endless", rsa.split_once("-----END").unwrap().0),
        ("ssh", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQAB somebody@somewhere"),
        ("empty", ""),
        ("pkcs7", "-----BEGIN PKCS7-----\nAAAA\n-----END PKCS7-----\n"),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
        add(folder.path().join(name).to_str().unwrap().to_owned());
    }
    for path in
        [key("ed25519.pem"), key("secp256k1.pem"), ca_file().to_str().unwrap().to_owned(), key("absent")]
    {
        add(path);
    }
    args.extend(["--issuer", "http://oidc.example.com", "--jwks-path", "../keys.json"].map(str::to_owned));
    let said = oidc(&args).await;
    assert_eq!((said.code, said.out.as_str()), (64, ""), "{said:?}");
    for mistake in [
        "/cut: its public key is damaged",
        "/long: its public key is damaged",
        "/no-base64: its public key is damaged",
        "/endless: its public key is damaged",
        "/ssh: it is in OpenSSH's own form",
        "/empty: it holds no public key",
        "/pkcs7: it holds no public key",
        "ed25519.pem: its key is neither RSA nor ECDSA",
        "secp256k1.pem: its key is neither RSA nor ECDSA",
        "ca.pem: it holds a certificate",
        "absent: it cannot be read: No such file",
        "--issuer: \"http://oidc.example.com\" is not an issuer",
        "--jwks-path: \"../keys.json\" is not a path",
    ] {
        assert!(said.err.contains(mistake), "{mistake}: {}", said.err);
    }
    let alone = oidc(&["discovery", "--public-key", &key("rsa.pem")]).await;
    assert_eq!(alone.code, 64);
    assert!(alone.err.contains("name the issuer with --issuer"), "{}", alone.err);
    let nowhere = oidc(&["jwks"]).await;
    assert_eq!(nowhere.code, 1);
    assert!(nowhere.err.contains("name the cluster by --kubeconfig"), "{}", nowhere.err);
}

/// Two keys of an issuer, as a rotation has them, and a way to sign with each.
struct Signer {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let rsa = PrivatePkcs8KeyDer::from_pem_file(key("rsa.key")).unwrap();
        let ec = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        Self {
            rsa: RsaKeyPair::from_pkcs8(rsa.secret_pkcs8_der()).unwrap(),
            ec: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, ec.as_ref(), &random).unwrap(),
            random,
        }
    }

    /// The EC key's public half in PEM.
    fn ec_pem(&self) -> String {
        let head = STANDARD.decode("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE").unwrap();
        let point = &self.ec.public_key().as_ref()[1..];
        let der = STANDARD.encode([head.as_slice(), point].concat());
        format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n")
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = if header["alg"] == "RS256" {
            let mut signature = vec![0; self.rsa.public().modulus_len()];
            self.rsa.sign(&RSA_PKCS1_SHA256, &self.random, signed.as_bytes(), &mut signature).unwrap();
            signature
        } else {
            self.ec.sign(&self.random, signed.as_bytes()).unwrap().as_ref().to_vec()
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

#[tokio::test]
async fn an_sts_believes_tokens_by_the_files_on_a_static_host() {
    let (site, signer, folder) = (Site::https().await, Signer::new(), tempfile::tempdir().unwrap());
    let issuer = format!("{}/clusters/a", site.url());
    let ec = folder.path().join("ec.pem");
    std::fs::write(&ec, signer.ec_pem()).unwrap();
    let out = folder.path().join("out");
    let (rsa, ec, out) = (key("rsa.pem"), ec.to_str().unwrap(), out.to_str().unwrap());
    let publish = ["discovery", "--issuer", &issuer, "--public-key", &rsa, "--public-key", ec, "--out", out];
    let said = oidc(&publish).await;
    assert!(
        said.err.contains(&format!("{out}/{JWKS} -> {issuer}/{JWKS} (application/json)")),
        "{}",
        said.err
    );
    assert_eq!(said.good(), "");
    site.pages.put_folder("/clusters/a", Path::new(out), &[DISCOVERY, JWKS]);
    let keys: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{out}/{JWKS}")).unwrap()).unwrap();
    let [rsa_kid, ec_kid] = kids(&keys)[..] else { panic!("{keys}") };

    let policy =
        ["trust-policy", "--account", ACCOUNT, "--cluster", &issuer, "--service-account", "shop/web"];
    let policy = oidc(&policy).await.json();
    let provider =
        || IssuerConfig { url: issuer.clone(), ca_file: Some(ca_file()), ..IssuerConfig::default() };
    let sts = Sts::with(vec![provider()], policy.clone()).await;
    let header = |alg: &str, kid: &str| json!({"alg": alg, "kid": kid});
    let web = claims(&issuer, "shop/web", STS);
    assert_eq!(sts.assume(&signer.sign(&header("RS256", rsa_kid), &web)).await, "OK");
    assert_eq!(sts.assume(&signer.sign(&header("ES256", ec_kid), &web)).await, "OK");
    let other = signer.sign(&header("RS256", rsa_kid), &claims(&issuer, "shop/api", STS));
    assert_eq!(sts.assume(&other).await, "AccessDenied");
    let vault = signer.sign(&header("RS256", rsa_kid), &claims(&issuer, "shop/web", "vault"));
    assert_eq!(sts.assume(&vault).await, "InvalidIdentityToken");

    // Kubernetes before 1.16 named no key.
    let nameless = signer.sign(&json!({"alg": "RS256"}), &web);
    assert_eq!(sts.assume(&nameless).await, "InvalidIdentityToken");
    oidc(&[&publish[..], &["--empty-kid"]].concat()).await.good();
    site.pages.put_folder("/clusters/a", Path::new(out), &[JWKS]);
    let sts = Sts::with(vec![provider()], policy).await;
    assert_eq!(sts.assume(&nameless).await, "OK");
}

#[tokio::test]
async fn the_keys_can_be_elsewhere_below_the_issuer() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let rsa = key("rsa.pem");
    let args = ["discovery", "--public-key", &rsa, "--issuer", "https://s3.example.com/bucket/"];
    let document = oidc(&args).await.json();
    assert_eq!(document["issuer"], "https://s3.example.com/bucket/", "exactly as in the tokens");
    assert_eq!(document["jwks_uri"], format!("https://s3.example.com/bucket/{JWKS}"));
    assert_eq!(document["id_token_signing_alg_values_supported"], json!(["RS256"]));
    oidc(&[&args[..], &["--jwks-path", "keys.json", "--out", out]].concat()).await.good();
    let read = |path: &str| {
        serde_json::from_str::<Value>(&std::fs::read_to_string(folder.path().join(path)).unwrap()).unwrap()
    };
    assert_eq!(read(DISCOVERY)["jwks_uri"], "https://s3.example.com/bucket/keys.json");
    assert_eq!(kids(&read("keys.json")), [RSA_KID]);
}

#[tokio::test]
async fn one_policy_serves_several_clusters_and_whole_namespaces() {
    let clusters = ["https://oidc.example.com/a", "https://oidc.example.com/b"].map(Issuer::generate);
    let stranger = Issuer::generate("https://oidc.example.com/c");
    let policy = oidc(&[
        "trust-policy",
        "--account",
        ACCOUNT,
        "--cluster",
        clusters[0].url(),
        "--cluster",
        clusters[1].url(),
        "--service-account",
        "shop/web",
        "--service-account",
        "batch/*",
        "--audience",
        "sts.amazonaws.com",
        "--audience",
        "https://kubernetes.default.svc",
    ])
    .await;
    assert!(
        policy.err.contains("https://kubernetes.default.svc is an API server's own audience"),
        "{}",
        policy.err
    );
    let issuers = clusters.iter().chain([&stranger]).map(|issuer| IssuerConfig {
        url: issuer.url().to_owned(),
        audiences: Some([STS, "https://kubernetes.default.svc", "vault"].map(str::to_owned).to_vec()),
        jwks: Some(issuer.jwks_json().into()),
        ..IssuerConfig::default()
    });
    let sts = Sts::with(issuers.collect(), policy.json()).await;
    let assume = async |issuer: &Issuer, account: &str, audience: &str| {
        sts.assume(issuer.sign(&claims(issuer.url(), account, audience)).expose_secret()).await
    };
    for cluster in &clusters {
        assert_eq!(assume(cluster, "shop/web", STS).await, "OK");
        assert_eq!(
            assume(cluster, "shop/web", "https://kubernetes.default.svc").await,
            "OK",
            "as MicroK8s has it"
        );
        assert_eq!(assume(cluster, "batch/anything", STS).await, "OK");
        assert_eq!(assume(cluster, "shop/api", STS).await, "AccessDenied");
        assert_eq!(assume(cluster, "batches/web", STS).await, "AccessDenied");
        assert_eq!(assume(cluster, "shop/web", "vault").await, "AccessDenied");
    }
    assert_eq!(assume(&stranger, "shop/web", STS).await, "AccessDenied");
}

#[tokio::test]
async fn the_length_is_counted_as_iam_counts_and_strategies_are_named_in_time() {
    let policy = async |clusters: usize, accounts: &[&str]| {
        let mut args = ["trust-policy", "--account", ACCOUNT].map(str::to_owned).to_vec();
        for cluster in 0..clusters {
            let url = format!("https://oidc.eks.eu-central-1.amazonaws.com/id/{cluster:032X}");
            args.extend(["--cluster".to_owned(), url]);
        }
        args.extend(
            accounts.iter().flat_map(|&account| ["--service-account".to_owned(), account.to_owned()]),
        );
        oidc(&args).await
    };
    let length = |said: &Said| said.out.chars().filter(|c| !c.is_whitespace()).count();
    let figure = |said: &Said| said.err.split(' ').next().unwrap().parse::<usize>().unwrap();

    // Four of EKS's long names fit, and each policy says how many more.
    for (clusters, room) in [(1, 3), (2, 2), (3, 1), (4, 0)] {
        let said = policy(clusters, &["shop/web"]).await;
        assert_eq!((said.code, figure(&said)), (0, length(&said)), "{said:?}");
        assert!(length(&said) <= 2048);
        assert!(said.err.contains(&format!("room for {room} more clusters like these")), "{}", said.err);
    }
    assert!(length(&policy(5, &["shop/web"]).await) > 2048);
    let last = policy(4, &["shop/web"]).await;
    assert!(last.err.contains("room for 0 more clusters like these. Before there is one:"), "{}", last.err);

    let accounts = ["shop/web", "shop/api", "shop/jobs", "billing/web"];
    let raised = policy(5, &accounts).await;
    assert!(length(&raised) > 2048 && raised.code == 0, "{raised:?}");
    assert!(raised.err.contains("unless the quota L-C07B4B0D"), "{}", raised.err);
    let whole = policy(5, &["shop/*", "billing/web"]).await;
    assert!(raised.err.contains(&format!("'NAMESPACE/*': {} characters", length(&whole))), "{}", raised.err);
    let alone = policy(1, &accounts).await;
    assert!(raised.err.contains(&format!(
        "a role for each cluster, named in that cluster's annotations: {} ",
        length(&alone)
    )));
    assert!(raised.err.contains("a second hop"), "{}", raised.err);

    let never = policy(9, &accounts).await;
    assert_eq!(never.code, 1);
    assert!(length(&never) > 4096, "it is printed all the same");
    assert!(never.err.contains("IAM never takes more than 4096"), "{}", never.err);
}

#[tokio::test]
async fn every_mistake_in_a_policys_arguments_is_reported() {
    let said = oidc(&[
        "trust-policy",
        "--account",
        "1",
        "--partition",
        "AWS",
        "--cluster",
        "http://a.example.com",
        "--cluster",
        "none.yaml",
        "--service-account",
        "shop",
        "--service-account",
        "*/web",
        "--service-account",
        "Shop/web",
        "--audience",
        "a b",
    ])
    .await;
    assert_eq!((said.code, said.out.as_str()), (64, ""), "{said:?}");
    for mistake in [
        "--account: \"1\"",
        "--partition: \"AWS\"",
        "--cluster: \"http://a.example.com\" is not an issuer",
        "--cluster: \"none.yaml\" is neither",
        "--service-account: \"shop\"",
        "--service-account: \"*/web\"",
        "--service-account: \"Shop/web\"",
        "--audience: \"a b\"",
    ] {
        assert!(said.err.contains(mistake), "{mistake}: {}", said.err);
    }
}

#[tokio::test]
async fn the_provider_is_what_iam_takes() {
    let sha1 = "C9:BB:5B:BC:A8:82:3F:0D:CF:6B:3E:64:A5:23:7F:F4:68:67:79:BB";
    let plain = oidc(&["provider", "--issuer", "https://oidc.example.com/a"]).await.json();
    assert_eq!(plain, json!({"Url": "https://oidc.example.com/a", "ClientIDList": [STS]}));
    let args = ["provider", "--issuer", "https://oidc.example.com", "--audience", "a", "--audience", "b"];
    let full = oidc(&[&args[..], &["--thumbprint", sha1]].concat()).await.json();
    assert_eq!(full["ClientIDList"], json!(["a", "b"]));
    assert_eq!(full["ThumbprintList"], json!(["c9bb5bbca8823f0dcf6b3e64a5237ff4686779bb"]));
    let wrong = oidc(&["provider", "--issuer", "oidc.example.com", "--thumbprint", "abc"]).await;
    assert_eq!(wrong.code, 64);
    for mistake in ["--cluster: \"oidc.example.com\"", "--thumbprint: \"abc\""] {
        assert!(wrong.err.contains(mistake), "{}", wrong.err);
    }
}

// As `openssl x509 -fingerprint -sha1` prints them for the files of tests/emulator.
#[tokio::test]
async fn the_thumbprint_is_of_the_last_certificate_that_the_server_sends() {
    let (ca, own) =
        ("c9bb5bbca8823f0dcf6b3e64a5237ff4686779bb\n", "b7ce4cbbf5704625b86f1ffaa4245a0c7f4e9189\n");
    let whole = Site::serve(&["cert.pem", "ca.pem"]).await;
    for server in [
        format!("{}/some/path", whole.url()),
        format!("localhost:{}", whole.addr.port()),
        whole.addr.to_string(),
    ] {
        let said = oidc(&["thumbprint", &server]).await;
        assert!(said.err.contains("of the last of 2 certificates"), "{}", said.err);
        assert!(said.err.contains("AWS looks at a thumbprint only if"), "{}", said.err);
        assert_eq!(said.good(), ca, "{server}");
    }
    let alone = Site::https().await;
    let said = oidc(&["thumbprint", &alone.url()]).await;
    assert!(said.err.contains("its own certificate alone"), "{}", said.err);
    assert_eq!(said.good(), own);

    let plain = Site::serve(&[]).await;
    let said = oidc(&["thumbprint", &plain.addr.to_string()]).await;
    assert_eq!((said.code, said.out.as_str()), (1, ""), "{said:?}");
    assert!(said.err.contains("no TLS"), "{}", said.err);
    for wrong in ["http://oidc.example.com", "user@oidc.example.com", "oidc.example.com:https", ""] {
        assert_eq!(oidc(&["thumbprint", wrong]).await.code, 64, "{wrong}");
    }
}

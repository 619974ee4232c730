//! Which keys sign, which are published, and which folders are refused.

use std::fs;

use base64::engine::general_purpose::STANDARD;

use super::*;

/// Its private half is public by being in this repository.
const RSA: &str = include_str!("../../../tests/oidc/rsa.key");
const PUBLIC: &str = include_str!("../../../tests/oidc/p384.pem");

fn p256() -> String {
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der))
}

fn keys(files: &[(&str, &str)]) -> Result<Keys, Error> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    Keys::from_files(&Keys::files(folder.path()).unwrap())
}

#[test]
fn the_algorithm_is_the_keys_own_and_the_header_names_the_key() {
    let header = |pem: &str| {
        let key = SigningKey::parse_pem(pem.as_bytes()).unwrap();
        let token = secrecy::ExposeSecret::expose_secret(&key.sign(&json!({}))).to_owned();
        let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        assert_eq!(header["kid"], key.public().jwk()["kid"]);
        assert_eq!(header["alg"], key.public().jwk()["alg"]);
        header["alg"].as_str().unwrap().to_owned()
    };
    assert_eq!((header(RSA), header(&p256())), ("RS256".into(), "ES256".into()));
}

#[test]
fn one_key_signs_and_all_are_published_once() {
    let next = p256();
    let files = [
        (SIGNING, RSA),
        ("next.pem", &*next),
        ("old.pem", PUBLIC),
        ("again.pem", include_str!("../../../tests/oidc/rsa.pem")),
        ("README", "not a key"),
    ];
    let keys = keys(&files).unwrap();
    let kids: Vec<String> = keys.published.iter().map(PublicKey::kid).collect();
    assert_eq!(kids.len(), 3);
    assert_eq!(kids[0], keys.signing.kid());
    assert_eq!(kids[1], SigningKey::parse_pem(next.as_bytes()).unwrap().kid());
}

#[test]
fn a_folder_without_the_signing_key_or_with_a_bad_one_is_refused_by_name() {
    let pkcs1 = RSA.replace("PRIVATE KEY", "RSA PRIVATE KEY");
    for (files, said) in [
        (&[("next.pem", RSA)][..], "signing.pem is missing"),
        (&[(SIGNING, PUBLIC)], "signing.pem: it holds no private key in PKCS#8"),
        (&[(SIGNING, &*pkcs1)], "openssl pkcs8 -topk8 -nodes"),
        (&[(SIGNING, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")], "neither RSA"),
        (&[(SIGNING, RSA), ("next.pem", "oops")], "next.pem: it holds no public key"),
    ] {
        let why = keys(files).unwrap_err().to_string();
        assert!(why.contains(said), "{why}");
        assert!(!why.contains("MII"), "no text of a file: {why}");
    }
}

#[test]
fn a_key_shows_its_id_and_nothing_else() {
    let key = SigningKey::parse_pem(RSA.as_bytes()).unwrap();
    assert_eq!(format!("{key:?}"), format!("SigningKey {{ kid: {:?}, .. }}", key.kid()));
}

//! An issuer of web-identity tokens with a key of its own: what an API server is to a cluster, for tests and
//! `rolecall dev`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use secrecy::SecretString;
use serde_json::json;

use crate::oidc::keys::PublicKey;

/// Signs tokens with an ES256 key that it made itself and keeps in memory.
pub struct Issuer {
    url: String,
    kid: String,
    public: PublicKey,
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("url", &self.url).field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl Issuer {
    /// An issuer named `url` (the `iss` claim), with a new key.
    pub fn generate(url: impl Into<String>) -> Self {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .ok()
            .and_then(|der| {
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref(), &random).ok()
            })
            .expect("the kernel gives random numbers, and ring reads the key that it wrote");
        let public =
            PublicKey::from_point(key.public_key().as_ref()).expect("ring's points are uncompressed");
        Self { url: url.into(), kid: public.kid(), public, key, random }
    }

    /// The `iss` claim that its tokens need.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The id of its key, as the JWKS and the tokens' headers name it.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Its public key, as `/openid/v1/jwks` would publish it.
    pub fn jwks_json(&self) -> String {
        json!({"keys": [self.public.jwk()]}).to_string()
    }

    /// A token with exactly these claims: nothing is added, so that a test can leave out what it wants.
    pub fn sign(&self, claims: &serde_json::Value) -> SecretString {
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": self.kid}).to_string();
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature =
            self.key.sign(&self.random, signed.as_bytes()).expect("the kernel gives random numbers");
        SecretString::from(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

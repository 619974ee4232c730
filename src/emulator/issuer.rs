//! An issuer of web-identity tokens with a key of its own: what an API server is to a cluster, for tests and
//! `rolecall dev`.

use secrecy::SecretString;
use serde_json::json;

use crate::issuer::keys::SigningKey;

/// Signs tokens with an ES256 key that it made itself and keeps in memory.
#[derive(Debug)]
pub struct Issuer {
    url: String,
    key: SigningKey,
}

impl Issuer {
    /// An issuer named `url` (the `iss` claim), with a new key.
    pub fn generate(url: impl Into<String>) -> Self {
        Self { url: url.into(), key: SigningKey::generate() }
    }

    /// The `iss` claim that its tokens need.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The id of its key, as the JWKS and the tokens' headers name it.
    pub fn kid(&self) -> &str {
        self.key.kid()
    }

    /// Its public key, as `/openid/v1/jwks` would publish it.
    pub fn jwks_json(&self) -> String {
        json!({"keys": [self.key.public().jwk()]}).to_string()
    }

    /// A token with exactly these claims: nothing is added, so that a test can leave out what it wants.
    pub fn sign(&self, claims: &serde_json::Value) -> SecretString {
        self.key.sign(claims)
    }
}

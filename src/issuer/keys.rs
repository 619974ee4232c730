//! The issuer's keys: one signs, all of them are published. Read from a folder, such as a mounted Secret.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::rsa;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::files::{self, Files};
use crate::oidc::keys::{self, PublicKey};

/// The file whose key signs; every other `*.pem` of the folder is published only.
pub const SIGNING: &str = "signing.pem";

/// Why a folder gives no keys. No text of a file is in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be read.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// Nothing to sign with.
    #[error("{SIGNING} is missing: it holds the private key that signs")]
    NoSigningKey,
    /// A private key that nobody here signs with.
    #[error("{file}: {source}")]
    Private {
        /// Its name in the folder.
        file: String,
        /// What is wrong with it.
        source: KeyError,
    },
    /// A public key that cannot be published.
    #[error("{file}: {source}")]
    Public {
        /// Its name in the folder.
        file: String,
        /// What is wrong with it.
        source: keys::Error,
    },
}

/// Why a private key is not good.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// `BEGIN RSA PRIVATE KEY`, encrypted, damaged, or no key at all.
    #[error(
        "it holds no private key in PKCS#8 (BEGIN PRIVATE KEY): `openssl pkcs8 -topk8 -nodes` writes it so"
    )]
    NotPkcs8,
    /// Ed25519, another curve, a short RSA key.
    #[error("its key is neither RSA of 2048 to 4096 bits (RS256) nor ECDSA on P-256 (ES256)")]
    Algorithm,
}

/// A private key, and the public half that proves what it signed.
pub struct SigningKey {
    public: PublicKey,
    kid: String,
    pair: Pair,
    random: SystemRandom,
}

enum Pair {
    Rsa(Box<rsa::KeyPair>),
    P256(Box<EcdsaKeyPair>),
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// The first private key of a PEM text.
    ///
    /// # Errors
    /// [`KeyError`]: another form, or another algorithm.
    pub fn parse_pem(text: &[u8]) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(text).map_err(|_| KeyError::NotPkcs8)?;
        Self::from_pkcs8(der.secret_pkcs8_der()).ok_or(KeyError::Algorithm)
    }

    /// A new key for ES256, which is never written anywhere.
    pub(crate) fn generate() -> Self {
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        der.ok()
            .and_then(|der| Self::from_pkcs8(der.as_ref()))
            .expect("the kernel gives random numbers, and ring reads the key that it wrote")
    }

    fn from_pkcs8(der: &[u8]) -> Option<Self> {
        let random = SystemRandom::new();
        let (pair, public) = if let Ok(pair) = rsa::KeyPair::from_pkcs8(der) {
            let public = PublicKey::from_pkcs1(pair.public_key().as_ref()).ok()?;
            (Pair::Rsa(Box::new(pair)), public)
        } else {
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random).ok()?;
            let public = PublicKey::from_point(pair.public_key().as_ref())?;
            (Pair::P256(Box::new(pair)), public)
        };
        Some(Self { kid: public.kid(), public, pair, random })
    }

    /// The key's id, as the JWKS and the tokens' headers name it.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Its public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// A token with exactly these claims (RFC 7515, compact).
    pub fn sign(&self, claims: &Value) -> SecretString {
        let alg = match self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::P256(_) => "ES256",
        };
        let header = json!({"alg": alg, "typ": "JWT", "kid": self.kid}).to_string();
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &self.random, signed.as_bytes(), &mut signature)
                    .map(|()| signature)
            }
            Pair::P256(pair) => {
                pair.sign(&self.random, signed.as_bytes()).map(|signature| signature.as_ref().to_vec())
            }
        };
        let signature =
            signature.expect("the kernel gives random numbers, and the buffer has the key's length");
        SecretString::from(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// All keys of the folder.
#[derive(Debug)]
pub struct Keys {
    /// Signs.
    pub signing: SigningKey,
    /// The one that signs, and the others by their files' names; each once.
    pub published: Vec<PublicKey>,
}

impl Keys {
    /// The files that matter to [`Keys::from_files`].
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn files(folder: &Path) -> Result<Files, files::Error> {
        Files::read(folder, |name| name.ends_with(".pem"))
    }

    /// The keys in `files`: private keys, or public ones for those that shall not sign.
    ///
    /// # Errors
    /// The first file that is not good: one that was left out silently would be missing when tokens need it.
    pub fn from_files(files: &Files) -> Result<Self, Error> {
        let private = |file: &str, text: &[u8]| {
            SigningKey::parse_pem(text).map_err(|source| Error::Private { file: file.to_owned(), source })
        };
        let signing = private(SIGNING, files.get(SIGNING).ok_or(Error::NoSigningKey)?)?;
        let mut published = vec![signing.public.clone()];
        for (file, text) in files.iter().filter(|(file, _)| *file != SIGNING) {
            let more = match PublicKey::parse_pem(text) {
                Err(keys::Error::PrivateKey) => vec![private(file, text)?.public],
                public => public.map_err(|source| Error::Public { file: file.to_owned(), source })?,
            };
            for key in more {
                if !published.contains(&key) {
                    published.push(key);
                }
            }
        }
        Ok(Self { signing, published })
    }
}

#[cfg(test)]
#[path = "keys/tests.rs"]
mod tests;

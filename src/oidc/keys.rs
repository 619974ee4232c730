//! Public keys in PEM, as an issuer publishes them: a JWK with the key id that Kubernetes computes.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::digest;
use serde_json::{Value, json};

use super::der::{self, Der};

/// `rsaEncryption` with its NULL (RFC 8017, A.1), as `AlgorithmIdentifier` holds it.
const RSA: &[u8] = &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0];
/// `id-ecPublicKey` (RFC 5480); the curve's identifier follows.
const EC: &[u8] = &[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];

/// Why a file gives no key. No text of the file is in it: the file may be a private key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("it cannot be read")]
    Read(#[source] std::io::Error),
    /// The secret half, given by mistake.
    #[error(
        "it holds a private key, which nobody but the API server needs; give the public half, from `openssl pkey -pubout`"
    )]
    PrivateKey,
    /// A certificate, which has a key in it.
    #[error("it holds a certificate; take the key out with `openssl x509 -pubkey -noout`")]
    Certificate,
    /// A line such as `ssh-rsa AAAA…`.
    #[error("it is in OpenSSH's own form; `ssh-keygen -e -m PKCS8 -f FILE` writes it as PEM")]
    Ssh,
    /// Something else.
    #[error("it holds no public key in PEM (BEGIN PUBLIC KEY or BEGIN RSA PUBLIC KEY)")]
    NoKey,
    /// The block is there and its content is not what it says.
    #[error("its public key is damaged, or not written as DER demands")]
    Damaged,
    /// Ed25519, another curve.
    #[error("its key is neither RSA nor ECDSA on P-256, P-384 or P-521: Kubernetes signs with no other")]
    Algorithm,
}

/// A curve that Kubernetes signs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Curve {
    name: &'static str,
    alg: &'static str,
    /// Octets of a coordinate.
    width: usize,
    oid: &'static [u8],
}

const CURVES: [Curve; 3] = [
    Curve { name: "P-256", alg: "ES256", width: 32, oid: &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07] },
    Curve { name: "P-384", alg: "ES384", width: 48, oid: &[0x2b, 0x81, 0x04, 0x00, 0x22] },
    Curve { name: "P-521", alg: "ES512", width: 66, oid: &[0x2b, 0x81, 0x04, 0x00, 0x23] },
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Ec { curve: Curve, x: Vec<u8>, y: Vec<u8> },
}

/// A public key that can verify ServiceAccount tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// The SubjectPublicKeyInfo, which the key id is made of.
    spki: Vec<u8>,
    material: Material,
}

impl PublicKey {
    /// All public keys of a PEM file; there is at least one.
    ///
    /// # Errors
    /// The first thing in it that is no public key.
    pub fn read_file(path: &Path) -> Result<Vec<Self>, Error> {
        Self::parse_pem(&std::fs::read(path).map_err(Error::Read)?)
    }

    /// All public keys of a PEM text; there is at least one.
    ///
    /// # Errors
    /// The first thing in it that is no public key.
    pub fn parse_pem(text: &[u8]) -> Result<Vec<Self>, Error> {
        let text = std::str::from_utf8(text).map_err(|_| Error::NoKey)?;
        // Before anything else: a file with both halves is refused as well, and so is a block that never ends.
        if text.contains("PRIVATE KEY-----") {
            return Err(Error::PrivateKey);
        }
        let mut keys = Vec::new();
        let mut rest = text;
        while let Some((_, block)) = rest.split_once("-----BEGIN ") {
            let (label, body) = block.split_once("-----").ok_or(Error::Damaged)?;
            let (body, after) = body.split_once(&format!("-----END {label}-----")).ok_or(Error::Damaged)?;
            let body: String = body.split_whitespace().collect();
            let der = STANDARD.decode(body).map_err(|_| Error::Damaged);
            keys.push(match label {
                "PUBLIC KEY" => Self::from_spki(der?)?,
                "RSA PUBLIC KEY" => Self::from_pkcs1(&der?)?,
                "CERTIFICATE" => return Err(Error::Certificate),
                _ => return Err(Error::NoKey),
            });
            rest = after;
        }
        match text.trim_start() {
            _ if !keys.is_empty() => Ok(keys),
            ssh if ssh.starts_with("ssh-") || ssh.starts_with("ecdsa-sha2-") => Err(Error::Ssh),
            _ => Err(Error::NoKey),
        }
    }

    fn from_spki(spki: Vec<u8>) -> Result<Self, Error> {
        let (algorithm, bits) = split_spki(&spki).ok_or(Error::Damaged)?;
        let material = if algorithm == RSA {
            rsa(bits).ok_or(Error::Damaged)?
        } else if let Some(curve) = algorithm.strip_prefix(EC) {
            let oid = Der::new(curve).only(der::OID).ok_or(Error::Damaged)?;
            let curve = CURVES.into_iter().find(|curve| curve.oid == oid).ok_or(Error::Algorithm)?;
            point(curve, bits).ok_or(Error::Damaged)?
        } else {
            return Err(Error::Algorithm);
        };
        Ok(Self { spki, material })
    }

    /// PKCS#1's form of an RSA key, which says nothing of the algorithm: as ring has one.
    pub(crate) fn from_pkcs1(key: &[u8]) -> Result<Self, Error> {
        let material = rsa(key).ok_or(Error::Damaged)?;
        Ok(Self { spki: join_spki(RSA, key), material })
    }

    /// An uncompressed point of one of the curves, as ring has an EC key: its length says which.
    pub(crate) fn from_point(bits: &[u8]) -> Option<Self> {
        let curve = CURVES.into_iter().find(|curve| bits.len() == 1 + 2 * curve.width)?;
        let algorithm = [EC, &der::element(der::OID, curve.oid)].concat();
        Some(Self { spki: join_spki(&algorithm, bits), material: point(curve, bits)? })
    }

    /// The key id that Kubernetes puts into tokens and into its JWKS.
    /// <https://github.com/kubernetes/kubernetes/blob/v1.36.0/pkg/serviceaccount/jwt.go> (`keyIDFromPublicKey`)
    pub fn kid(&self) -> String {
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &self.spki))
    }

    /// The key as a JWKS holds it (RFC 7517, RFC 7518 section 6).
    pub fn jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match &self.material {
            // Kubernetes signs with RS256 whatever the key's length.
            Material::Rsa { n, e } => json!({
                "use": "sig", "kty": "RSA", "kid": self.kid(), "alg": "RS256", "n": text(n), "e": text(e),
            }),
            Material::Ec { curve, x, y } => json!({
                "use": "sig", "kty": "EC", "kid": self.kid(), "alg": curve.alg, "crv": curve.name,
                "x": text(x), "y": text(y),
            }),
        }
    }
}

/// The algorithm, identifier and parameters, and the key's bits. Strict: Go hashes the form that it writes itself,
/// so another spelling of the same key would get another key id here than in Kubernetes.
fn split_spki(spki: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut info = Der::new(Der::new(spki).only(der::SEQUENCE)?);
    let algorithm = info.next(der::SEQUENCE)?;
    // The first octet counts unused bits, of which a key has none.
    let bits = info.only(der::BIT_STRING)?.strip_prefix(&[0])?;
    Some((algorithm, bits))
}

fn join_spki(algorithm: &[u8], bits: &[u8]) -> Vec<u8> {
    let key = der::element(der::BIT_STRING, &[&[0], bits].concat());
    der::element(der::SEQUENCE, &[der::element(der::SEQUENCE, algorithm), key].concat())
}

fn rsa(key: &[u8]) -> Option<Material> {
    let mut key = Der::new(Der::new(key).only(der::SEQUENCE)?);
    let (n, e) = (key.positive()?, key.positive()?);
    key.is_empty().then(|| Material::Rsa { n: n.to_vec(), e: e.to_vec() })
}

/// Uncompressed alone: Go writes no other form.
fn point(curve: Curve, bits: &[u8]) -> Option<Material> {
    let point = bits.strip_prefix(&[4])?;
    let (x, y) = (point.len() == 2 * curve.width).then(|| point.split_at(curve.width))?;
    Some(Material::Ec { curve, x: x.to_vec(), y: y.to_vec() })
}

//! Web-identity tokens: is this JWT signed by one of these keys, and what does it claim?

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, UnparsedPublicKey};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::session_claims::AWS;

/// Why a token is not believed. The text is ours: AWS's own says less.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("the token is not a JWT of three base64url parts")]
    Malformed,
    #[error("the token's header asks for the algorithm {alg:?}; RS256, ES256 and ES384 are accepted")]
    Algorithm { alg: String },
    #[error("the token's header has critical extensions, which nobody here understands")]
    Critical,
    #[error("the token's header names no key, and the issuer has none without a name")]
    NoKeyId,
    #[error("the issuer has no key {kid:?}")]
    UnknownKey { kid: String },
    #[error("key {kid:?} cannot verify {alg}")]
    WrongKeyType { kid: String, alg: &'static str },
    #[error("the signature does not match key {kid:?}")]
    BadSignature { kid: String },
    #[error("the token lacks the claim {claim}, or it has another type")]
    Claim { claim: &'static str },
    #[error("the JWKS is not a JSON object with a list of keys")]
    Jwks,
}

/// The algorithms that rolecall meets: Kubernetes signs with RS256, ES256 or ES384.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Rs256,
    Es256,
    Es384,
}

impl Algorithm {
    fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "RS256" => Ok(Self::Rs256),
            "ES256" => Ok(Self::Es256),
            "ES384" => Ok(Self::Es384),
            // Above all `none`, and HS256: whoever has the public key could sign with it.
            _ => Err(Error::Algorithm { alg: name.chars().take(20).collect() }),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
        }
    }
}

/// A token taken apart; nothing of it is proved yet.
pub(crate) struct Unverified<'a> {
    signed: &'a str,
    signature: Vec<u8>,
    algorithm: Algorithm,
    kid: String,
    claims: Claims,
}

/// What a token says. Only [`Unverified::verify`] makes it worth anything.
#[derive(Debug, Clone)]
pub(crate) struct Claims {
    pub iss: String,
    pub sub: String,
    pub aud: Vec<String>,
    /// Seconds since 1970, fractions allowed (RFC 7519, NumericDate).
    pub exp: f64,
    pub iat: f64,
    pub nbf: Option<f64>,
    /// AWS's own, by their full names.
    pub aws: Map<String, Value>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

#[derive(Deserialize)]
struct RawClaims {
    iss: Option<Value>,
    sub: Option<Value>,
    aud: Option<Value>,
    exp: Option<Value>,
    iat: Option<Value>,
    nbf: Option<Value>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl<'a> Unverified<'a> {
    /// Takes a compact JWS apart.
    ///
    /// # Errors
    /// Anything but three base64url parts with a known algorithm and the claims that AWS requires.
    pub(crate) fn parse(token: &'a str) -> Result<Self, Error> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Error::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Error::Malformed)?;
        if claims.contains('.') {
            return Err(Error::Malformed);
        }
        let header: Header = decode(header)?;
        let raw: RawClaims = decode(claims)?;
        if header.crit.is_some() {
            return Err(Error::Critical);
        }
        let algorithm = Algorithm::parse(&header.alg)?;
        // A token without a key id is good if the issuer publishes a key with an empty one: Kubernetes before 1.16
        // named none, and the self-hosted walkthrough of EKS's webhook has such an entry for them.
        let kid = header.kid.unwrap_or_default();
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Error::Malformed)?;
        Ok(Self { signed, signature, algorithm, kid, claims: Claims::read(raw)? })
    }

    /// The issuer that the token claims to come from: good for choosing the keys that will prove it, for no more.
    pub(crate) fn issuer(&self) -> &str {
        &self.claims.iss
    }

    /// The claims, once the signature has proved that the issuer made them.
    ///
    /// # Errors
    /// No such key, a key of another type, or a signature that does not match.
    pub(crate) fn verify(&self, keys: &Jwks) -> Result<&Claims, Error> {
        let kid = || self.kid.clone();
        let mut named = keys.keys.iter().filter(|key| key.kid == self.kid).peekable();
        if named.peek().is_none() {
            return Err(if self.kid.is_empty() { Error::NoKeyId } else { Error::UnknownKey { kid: kid() } });
        }
        let mut fitting = named.filter(|key| key.algorithm == self.algorithm).peekable();
        if fitting.peek().is_none() {
            return Err(Error::WrongKeyType { kid: kid(), alg: self.algorithm.name() });
        }
        // Two keys of one id are two candidates; the signature says which it was.
        if fitting.any(|key| key.verify(self.signed.as_bytes(), &self.signature)) {
            Ok(&self.claims)
        } else {
            Err(Error::BadSignature { kid: kid() })
        }
    }
}

impl Claims {
    fn read(raw: RawClaims) -> Result<Self, Error> {
        fn text(value: Option<&Value>, claim: &'static str) -> Result<String, Error> {
            let text = value.and_then(|value| value.as_str()).filter(|text| !text.is_empty());
            text.map(str::to_owned).ok_or(Error::Claim { claim })
        }
        fn number(value: Option<&Value>, claim: &'static str) -> Result<f64, Error> {
            value.and_then(Value::as_f64).ok_or(Error::Claim { claim })
        }
        let aud = match &raw.aud {
            Some(Value::Array(list)) if !list.is_empty() => {
                list.iter().map(|one| text(Some(one), "aud")).collect::<Result<_, _>>()?
            }
            one => vec![text(one.as_ref(), "aud")?],
        };
        Ok(Self {
            iss: text(raw.iss.as_ref(), "iss")?,
            sub: text(raw.sub.as_ref(), "sub")?,
            aud,
            exp: number(raw.exp.as_ref(), "exp")?,
            iat: number(raw.iat.as_ref(), "iat")?,
            nbf: raw.nbf.as_ref().map(|nbf| number(Some(nbf), "nbf")).transpose()?,
            aws: raw.others.into_iter().filter(|(name, _)| name.starts_with(AWS)).collect(),
        })
    }
}

fn decode<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, Error> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| Error::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| Error::Malformed)
}

/// The public keys of an issuer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Jwks {
    keys: Vec<Key>,
}

#[derive(Debug, Clone)]
struct Key {
    kid: String,
    /// The key's own type decides, never the token's header alone (RFC 8725, 3.1).
    algorithm: Algorithm,
    public: Public,
}

#[derive(Debug, Clone)]
enum Public {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// 0x04, x, y
    Point(Vec<u8>),
}

#[derive(Deserialize)]
struct RawJwks {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct RawKey {
    kty: String,
    kid: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwks {
    /// Reads a JWKS. Keys of other types and uses are left out: issuers publish keys for others too.
    ///
    /// # Errors
    /// [`Error::Jwks`] if it is no JWKS at all.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Error> {
        let raw: RawJwks = serde_json::from_slice(json).map_err(|_| Error::Jwks)?;
        Ok(Self { keys: raw.keys.into_iter().filter_map(Key::read).collect() })
    }

    /// How many keys can verify a token.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }
}

impl Key {
    fn read(raw: Value) -> Option<Self> {
        let raw: RawKey = serde_json::from_value(raw).ok()?;
        if raw.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        let bytes = |part: Option<String>| URL_SAFE_NO_PAD.decode(part?).ok();
        let (algorithm, public) = match (raw.kty.as_str(), raw.crv.as_deref()) {
            ("RSA", _) => (Algorithm::Rs256, Public::Rsa { n: bytes(raw.n)?, e: bytes(raw.e)? }),
            ("EC", Some("P-256")) => (Algorithm::Es256, point(bytes(raw.x)?, bytes(raw.y)?, 32)?),
            ("EC", Some("P-384")) => (Algorithm::Es384, point(bytes(raw.x)?, bytes(raw.y)?, 48)?),
            _ => return None,
        };
        if raw.alg.as_deref().is_some_and(|alg| alg != algorithm.name()) {
            return None;
        }
        Some(Self { kid: raw.kid, algorithm, public })
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let checked = match (&self.public, self.algorithm) {
            (Public::Rsa { n, e }, _) => signature::RsaPublicKeyComponents { n, e }.verify(
                &signature::RSA_PKCS1_2048_8192_SHA256,
                message,
                signature,
            ),
            (Public::Point(point), Algorithm::Es384) => {
                UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point).verify(message, signature)
            }
            (Public::Point(point), _) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
        };
        checked.is_ok()
    }
}

fn point(x: Vec<u8>, y: Vec<u8>, width: usize) -> Option<Public> {
    (x.len() == width && y.len() == width).then(|| Public::Point([&[4][..], &x, &y].concat()))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;
    use serde_json::json;

    use super::*;
    use crate::emulator::Issuer;

    /// A key and a token that OpenSSL made, whose private half nobody kept.
    const RSA_N: &str = "r_B_85973x_14_4vKEWk2cSkqr1Ldpdj6zovWNkV693TQ0rHwrE1ubD8aCN7V0ZcgTxNQhVReTikjkfdusDDapVdTntQ\
         iXCMd6rG3zJlzl0aZTotOfczDDO39B5XatrbMdEgdyyZnjRqSXJdfsR364NtWtq7L-g_5fjXSP5ewNYKoVDmxSTCIA_c\
         fMtsmAFTcr1Qs_ew0OnJUm1dCZX_uMeGYX_bOv5bVyvcb6t_vv4n-G0-3iY_os_913Ay5fA1kFVioOypSfHWofA34EVz\
         ZLy00Sys0p7FLw55UoGA-hn7_9hAJGrvaXqebXiGCezlOuftGQPTdS5jVwDlJoWGJw";
    const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6InIxIn0.eyJpc3MiOiJodHRwczovL29pZGMuZXhhbXBsZS5jb20iLCJzdWIiOiJz\
         eXN0ZW06c2VydmljZWFjY291bnQ6c2hvcDp3ZWIiLCJhdWQiOlsic3RzLmFtYXpvbmF3cy5jb20iXSwiaWF0IjoxLCJl\
         eHAiOjJ9.cFWVHUuQkCXGFoVRPCmxjeywRJjhuAxL9Px7wvdyaCi4Mb5c04M98xYSU80h58hxx_bmVi5MtS5jw8AHoEE\
         UaA7Ce0OYP5bCNT2pq5cb89TdN_DRUbiiGrvCXOyUr7YS_VEsCWsv9byB2Z5T4bH-3Ivayryer5UGNEtUcJi1F0d8FmM\
         efG33VaqLIpjVorBcTbQ6KZTWL7eZdTw94oqoqOoqz9OOEnYsAZjvtQhYqlUs_OdDWB9us4I34cat31zkgqvpqKCCJPZ\
         SjxScNlmhGzPE7hEoL9Xl3EloCxlZItotFOqM4-cojq0U4_fevya1uJK3_aLdmhQoiwJR8c-86A";

    fn rsa_jwks() -> String {
        json!({"keys": [{"kty": "RSA", "kid": "r1", "use": "sig", "alg": "RS256", "n": RSA_N, "e": "AQAB"}]})
            .to_string()
    }

    fn verify(token: &str, jwks: &str) -> Result<Claims, Error> {
        Unverified::parse(token)?.verify(&Jwks::parse(jwks.as_bytes())?).cloned()
    }

    /// The token with another header, signature kept.
    fn with_header(token: &str, header: &Value) -> String {
        let (_, rest) = token.split_once('.').unwrap();
        format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()))
    }

    fn claims() -> Value {
        json!({"iss": "https://oidc.example.com", "sub": "system:serviceaccount:shop:web",
               "aud": "sts.amazonaws.com", "iat": 1, "exp": 2.5})
    }

    fn es256() -> (Issuer, String) {
        let issuer = Issuer::generate("https://oidc.example.com");
        let token = issuer.sign(&claims()).expose_secret().to_owned();
        (issuer, token)
    }

    #[test]
    fn what_openssl_signs_with_rsa_is_believed() {
        let claims = verify(RSA_TOKEN, &rsa_jwks()).unwrap();
        assert_eq!(claims.sub, "system:serviceaccount:shop:web");
        assert_eq!(claims.aud, ["sts.amazonaws.com"]);
    }

    #[test]
    fn what_our_issuer_signs_is_believed() {
        let (issuer, token) = es256();
        assert_eq!(verify(&token, &issuer.jwks_json()).unwrap().exp, 2.5);
    }

    #[test]
    fn every_changed_part_breaks_the_signature() {
        let (issuer, token) = es256();
        let parts: Vec<&str> = token.split('.').collect();
        let other = URL_SAFE_NO_PAD.encode(
            json!({"iss": "https://oidc.example.com", "sub": "system:serviceaccount:kube-system:admin",
            "aud": "sts.amazonaws.com", "iat": 1, "exp": 2})
            .to_string(),
        );
        let kid = issuer.kid().to_owned();
        let bad = Err(Error::BadSignature { kid: kid.clone() });
        let claims = format!("{}.{other}.{}", parts[0], parts[2]);
        let header = with_header(&token, &json!({"alg": "ES256", "kid": kid, "typ": "at+jwt"}));
        let signature = format!("{}.{}.{}", parts[0], parts[1], URL_SAFE_NO_PAD.encode([0; 64]));
        for token in [claims, header, signature] {
            assert_eq!(verify(&token, &issuer.jwks_json()).map(|_| ()), bad);
        }
    }

    #[test]
    fn the_algorithm_must_be_known_and_the_keys_own() {
        let (issuer, token) = es256();
        let kid = issuer.kid();
        for alg in ["none", "None", "HS256", "PS256", "EdDSA", ""] {
            let forged = with_header(&token, &json!({"alg": alg, "kid": kid}));
            assert_eq!(
                verify(&forged, &issuer.jwks_json()).map(|_| ()),
                Err(Error::Algorithm { alg: alg.to_owned() })
            );
        }
        for alg in ["RS256", "ES384"] {
            let forged = with_header(&token, &json!({"alg": alg, "kid": kid}));
            let wrong = verify(&forged, &issuer.jwks_json()).map(|_| ()).unwrap_err();
            assert!(matches!(wrong, Error::WrongKeyType { .. }), "{wrong}");
        }
        // The public modulus as an HMAC secret is the classic forgery; no HMAC is ever computed here.
        let forged = with_header(RSA_TOKEN, &json!({"alg": "HS256", "kid": "r1"}));
        assert!(matches!(verify(&forged, &rsa_jwks()), Err(Error::Algorithm { .. })));
    }

    #[test]
    fn keys_are_found_by_id_alone() {
        let (issuer, token) = es256();
        let (stranger, _) = es256();
        let unknown = Err(Error::UnknownKey { kid: issuer.kid().to_owned() });
        assert_eq!(verify(&token, &stranger.jwks_json()).map(|_| ()), unknown);
        let nameless = with_header(&token, &json!({"alg": "ES256"}));
        assert_eq!(verify(&nameless, &issuer.jwks_json()).map(|_| ()), Err(Error::NoKeyId));
    }

    #[test]
    fn keys_for_encryption_and_of_other_types_are_left_out() {
        let keys = json!({"keys": [
            {"kty": "oct", "kid": "a", "k": "AAAA"},
            {"kty": "RSA", "kid": "b", "use": "enc", "n": RSA_N, "e": "AQAB"},
            {"kty": "RSA", "kid": "c", "alg": "RS512", "n": RSA_N, "e": "AQAB"},
            {"kty": "EC", "kid": "d", "crv": "P-256", "x": "AAAA", "y": "AAAA"},
        ]});
        assert_eq!(Jwks::parse(keys.to_string().as_bytes()).unwrap().len(), 0);
        assert!(matches!(Jwks::parse(b"{}"), Err(Error::Jwks)));
    }

    #[test]
    fn malformed_tokens_are_refused() {
        let (issuer, token) = es256();
        let padded = format!("{token}=");
        let four = format!("{token}.e30");
        for text in ["", "a", "a.b", "a.b.c", "..", padded.as_str(), four.as_str()] {
            assert_eq!(verify(text, &issuer.jwks_json()).map(|_| ()), Err(Error::Malformed), "{text}");
        }
        let critical = with_header(&token, &json!({"alg": "ES256", "kid": issuer.kid(), "crit": ["b64"]}));
        assert_eq!(verify(&critical, &issuer.jwks_json()).map(|_| ()), Err(Error::Critical));
    }

    #[test]
    fn the_claims_that_aws_requires_must_be_there_with_their_type() {
        let (issuer, _) = es256();
        for claim in ["iss", "sub", "aud", "exp", "iat"] {
            for wrong in [json!(null), json!(""), json!({}), json!([])] {
                let mut claims = claims();
                claims[claim] = wrong;
                let token = issuer.sign(&claims);
                let refused = verify(token.expose_secret(), &issuer.jwks_json()).map(|_| ());
                assert_eq!(refused, Err(Error::Claim { claim }));
            }
        }
    }
}

//! The Authorization header: what it holds, and whether its holder may go on. The one place that judges it.
//!
//! An SDK sends what `AWS_CONTAINER_AUTHORIZATION_TOKEN` or the file `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE` holds, as it
//! is; others put `Bearer ` before it.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::Error;
use super::pods::{Pod, PodUid};
use crate::time;
use crate::token::issued::Door;

/// The default audience of tokens for the agent: nobody else takes it for his own, so the token is of no use elsewhere.
pub const AUDIENCE: &str = "rolecall";
/// Names the scheme that may stand before the value.
const BEARER: &[u8] = b"bearer";

/// What is asked of the header: `--require-authorization`, `--authorization-audience` and `--token-source`.
#[derive(Clone, Debug)]
pub struct Authorization {
    /// Who is answered at all.
    pub required: Required,
    /// A token for one of these is shown to the API server, whoever sends it.
    pub audiences: Vec<String>,
    /// Where the tokens come from that STS is shown.
    pub tokens: TokenSource,
}

/// Where the tokens come from that STS is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TokenSource {
    /// The agent mints them.
    #[default]
    Kubernetes,
    /// The pods show their own: [`crate::token::shown`].
    Caller,
    /// The agent mints one for the issuer, and that signs another for STS: [`crate::token::issued`].
    Issuer(Door),
}

impl Default for Authorization {
    fn default() -> Self {
        Self { required: Required::Off, audiences: vec![AUDIENCE.into()], tokens: TokenSource::Kubernetes }
    }
}

/// What every request must carry.
#[derive(Clone, Debug)]
pub enum Required {
    /// Nothing; callers on the host network need a token all the same.
    Off,
    /// Anything: a request that was forged on the server's side rarely has a header of the forger's choice.
    Present,
    /// A token of the very pod that the evidence shows.
    Token,
    /// This word: `rolecall dev`, whose loopback is shared with every user of the machine.
    Word(SecretString),
}

impl Authorization {
    /// Before anybody asks who is calling: is there what must be there?
    pub(super) fn admits(&self, presented: &Presented) -> Result<(), Error> {
        match (&self.required, presented) {
            (Required::Off, _) => Ok(()),
            (Required::Present | Required::Token | Required::Word(_), Presented::Nothing) => {
                Err(Error::AuthorizationRequired)
            }
            (Required::Present, _) | (Required::Token, Presented::Token(_)) => Ok(()),
            (Required::Token, Presented::Word(_)) => Err(Error::AuthorizationInvalid(Fault::NotAToken)),
            (Required::Word(expected), Presented::Word(word)) => {
                let same = word.expose_secret().ct_eq(expected.expose_secret().as_bytes());
                if same.into() { Ok(()) } else { Err(Error::AuthorizationInvalid(Fault::NotTheWord)) }
            }
            (Required::Word(_), Presented::Token(_)) => Err(Error::AuthorizationInvalid(Fault::NotTheWord)),
        }
    }

    /// Must the API server be asked about this token, though other evidence names the pod? What is meant for somebody
    /// else (EKS's own agent) is none of our business; who forges the claim has only itself to be refused.
    pub(super) fn judges(&self, token: &Token) -> bool {
        matches!(self.required, Required::Token) || token.is_for(&self.audiences)
    }
}

/// Why a header is not good.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    /// `rolecall dev` gave out another one.
    #[error("it is not the word that this server gave out")]
    NotTheWord,
    /// A word, where a token is needed.
    #[error("it is no ServiceAccount token")]
    NotAToken,
    /// Meant for somebody else. The token says so itself.
    #[error("the token's audience is not {0}")]
    OtherAudience(String),
    /// TokenReview says no: forged, expired, its pod or its ServiceAccount is gone, or of another audience after all.
    #[error("the API server does not accept the token: {0}")]
    NotAccepted(String),
    /// A good token, but of no pod: of a user, a node, or a ServiceAccount alone.
    #[error("the token is not bound to a pod")]
    NotOfAPod,
    /// A good token of a pod that is not here.
    #[error("the token is of pod {0}, which is not a live pod of this node")]
    NotHere(PodUid),
    /// `--token-source=caller`: STS would be shown it, and it names another.
    #[error("the token does not say that it is of the pod that sent it")]
    OfAnother,
    /// `--token-source=caller`: it would not outlive the call.
    #[error("by this node's clock, the token has expired or is about to")]
    Expired,
}

/// What the header of one request holds. Never its text in a log: `Debug` says only what kind it is.
#[derive(Default)]
pub enum Presented {
    /// No header, or an empty one.
    #[default]
    Nothing,
    /// No token: a fixed word.
    Word(SecretSlice<u8>),
    /// A token, of whomever.
    Token(Token),
}

impl Presented {
    /// Reads the header's value. The caller wrote it, and may have written anything.
    pub fn new(value: &[u8]) -> Self {
        let value = value.trim_ascii();
        let value = match value.split_at_checked(BEARER.len()) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case(BEARER) => match rest.first() {
                None | Some(b' ') => rest.trim_ascii_start(),
                Some(_) => value,
            },
            _ => value,
        };
        match Token::read(value) {
            _ if value.is_empty() => Self::Nothing,
            Some(token) => Self::Token(token),
            None => Self::Word(value.to_vec().into()),
        }
    }

    /// The token, if it is one.
    pub fn token(&self) -> Option<&Token> {
        match self {
            Self::Token(token) => Some(token),
            Self::Nothing | Self::Word(_) => None,
        }
    }
}

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Word(_) => "Word(<redacted>)",
            Self::Token(_) => "Token(<redacted>)",
        })
    }
}

/// A JWT, and what it says of itself. Nobody has checked its signature here: the claims may refuse, and decide whether
/// somebody is asked who can tell; they never grant.
pub struct Token {
    text: SecretString,
    claims: Claims,
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    aud: Option<Audiences>,
    exp: Option<i64>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    pod: Option<BoundPod>,
}

#[derive(Deserialize)]
struct BoundPod {
    uid: String,
}

impl Token {
    /// A token, or nothing that we would take for one.
    fn read(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let mut parts = text.split('.');
        let (_, claims, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
            return None;
        };
        let claims = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        Some(Self { text: text.into(), claims })
    }

    /// The token itself, for those who can judge it: the API server, STS.
    pub fn text(&self) -> &SecretString {
        &self.text
    }

    /// Does it say that it is meant for one of these?
    pub fn is_for(&self, audiences: &[impl AsRef<str>]) -> bool {
        let own = match &self.claims.aud {
            Some(Audiences::One(one)) => std::slice::from_ref(one),
            Some(Audiences::Several(several)) => several,
            None => &[],
        };
        own.iter().any(|one| audiences.iter().any(|audience| audience.as_ref() == one))
    }

    /// Does it say that it is of this very pod, and of its ServiceAccount?
    pub fn says_it_is_of(&self, pod: &Pod) -> bool {
        let account = &pod.service_account;
        let subject = format!("system:serviceaccount:{}:{}", account.namespace, account.name);
        let bound = self.claims.kubernetes.as_ref().and_then(|claims| claims.pod.as_ref());
        self.claims.sub.as_deref() == Some(&*subject)
            && bound.is_some_and(|bound| bound.uid == pod.uid.as_str())
    }

    /// What it says is left of its life, by this node's clock; nothing, if it does not say.
    pub fn remaining(&self) -> Duration {
        let expires = self.claims.exp.and_then(|exp| Timestamp::from_second(exp).ok());
        expires.map_or(Duration::ZERO, |expires| time::between(time::now(), expires))
    }
}

#[cfg(test)]
#[path = "authorization/tests.rs"]
mod tests;

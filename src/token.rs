//! A ServiceAccount token bound to one pod: what STS is shown, and where it comes from. One that the agent mints exists only
//! between two calls.

pub mod issued;
pub mod shown;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::time::Instant;

use self::issued::Issued;
use self::shown::ShownTokens;
use crate::cluster::{Cluster, Error};
use crate::identity::pods::Pod;
use crate::role::Claims;

/// An id that is longer is none of the API server's, whose are UUIDs.
const MAX_ID: usize = 64;

/// A web-identity token and how long it may still be used.
pub struct BoundToken {
    token: SecretString,
    id: Option<Arc<str>>,
    expires: Instant,
}

impl BoundToken {
    /// A token that lives for `life` from now.
    pub fn new(token: SecretString, life: Duration) -> Self {
        Self { id: id(token.expose_secret()), token, expires: Instant::now() + life }
    }

    /// Its `jti`, by which the API server's own audit log names it. Not a secret.
    pub fn id(&self) -> Option<&Arc<str>> {
        self.id.as_ref()
    }

    /// The token itself, for STS alone.
    pub fn expose(&self) -> &str {
        self.token.expose_secret()
    }

    /// What is left of its life.
    pub fn remaining(&self) -> Duration {
        self.expires.saturating_duration_since(Instant::now())
    }
}

/// Where the tokens come from that STS is shown: `--token-source`.
#[expect(clippy::large_enum_variant, reason = "there is one of them in a process")]
pub enum Tokens {
    /// The kube API mints them for the agent.
    Minted(Arc<dyn Cluster>),
    /// The pods show their own, and the agent has no right to mint.
    Shown(Arc<ShownTokens>),
    /// The issuer signs them.
    Issued(Issued),
}

impl Tokens {
    /// A token of the pod's ServiceAccount for exactly `audience`, which says `claims` to AWS as well. The kube API is asked for one
    /// that lives for `life`.
    ///
    /// # Errors
    /// Of whoever makes them.
    pub async fn request(
        &self,
        pod: &Pod,
        audience: &str,
        life: Duration,
        claims: &Claims,
    ) -> Result<BoundToken, Error> {
        match self {
            Self::Issued(issued) => issued.request(pod, audience, claims).await,
            // A token without them would be one without the restrictions that stand on them.
            _ if !claims.is_empty() => Err(Error::Refused(
                "tokens with session tags or a source identity need --token-source=issuer".into(),
            )),
            Self::Minted(cluster) => cluster.request_token(pod, audience, life).await,
            Self::Shown(shown) => {
                shown.newest(pod, audience).ok_or_else(|| Error::NotShown(audience.to_owned()))
            }
        }
    }
}

/// The `jti` of a JWT. The API server has just made it for us, so nothing is verified.
fn id(token: &str) -> Option<Arc<str>> {
    #[derive(Deserialize)]
    struct Claims {
        jti: String,
    }
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let Claims { jti } = serde_json::from_slice(&claims).ok()?;
    (jti.len() <= MAX_ID).then(|| jti.into())
}

impl fmt::Debug for BoundToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundToken")
            .field("token", &"<redacted>")
            .field("remaining", &self.remaining())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_the_jti_and_what_is_no_jwt_has_none() {
        let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        assert_eq!(id(&token(r#"{"aud":["a"],"jti":"7f1d"}"#)).as_deref(), Some("7f1d"));
        let long = format!(r#"{{"jti":"{}"}}"#, "x".repeat(MAX_ID + 1));
        for none in [token("{}"), token(r#"{"jti":7}"#), token("{"), token(&long)] {
            assert_eq!(id(&none), None, "{none}");
        }
        for none in ["", "e30", "e30.!.c2ln", "e30..c2ln", "token of uid-web"] {
            assert_eq!(id(none), None, "{none}");
        }
    }
}

//! What an issuer publishes, its discovery document and its keys: made here, or asked of an API server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::client;

/// Where an issuer's discovery document is, below its URL (OpenID Connect Discovery 4.1).
pub(crate) const DISCOVERY: &str = ".well-known/openid-configuration";
/// Where an API server has its keys; ours are at the same place below the issuer unless asked for elsewhere.
pub(crate) const JWKS: &str = "openid/v1/jwks";

/// For both documents together; the API server has them ready.
const ASK: Duration = Duration::from_secs(10);

/// The `iss` of an issuer's tokens: `https://HOST[/PATH]`, exactly as it stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IssuerUrl(String);

impl IssuerUrl {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let url = text.parse::<http::Uri>().ok().filter(|url| {
            let plain = url.authority().is_some_and(|host| !host.as_str().contains('@'));
            plain && url.scheme_str() == Some("https") && !text.contains(['?', '#'])
        });
        // The scheme in capitals is the same to a URL parser, and another `iss` to whoever compares.
        match url {
            Some(_) if text.starts_with("https://") => Ok(Self(text.to_owned())),
            _ => Err(format!("{text:?} is not an issuer: https://HOST[/PATH], without query")),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// As IAM names it, in the provider's ARN and in condition keys.
    pub(super) fn name(&self) -> &str {
        self.0.strip_prefix("https://").unwrap_or(&self.0)
    }

    /// The URL of `path` below the issuer.
    pub(crate) fn below(&self, path: &str) -> String {
        below(&self.0, path)
    }
}

/// The URL of `path` below `base`, whether that ends in a slash or not.
pub(super) fn below(base: &str, path: &str) -> String {
    format!("{}/{path}", base.trim_end_matches('/'))
}

/// The documents of one issuer, as they will be published.
pub(crate) struct Documents {
    pub issuer: IssuerUrl,
    /// Where the keys will be, below the issuer.
    pub jwks_path: String,
    pub keys: Vec<Value>,
}

impl Documents {
    pub(crate) fn discovery(&self) -> Value {
        json!({
            "issuer": self.issuer.as_str(),
            "jwks_uri": self.issuer.below(&self.jwks_path),
            // Required by the specification. Kubernetes leaves it out; EKS publishes this word, as nobody can log in.
            "authorization_endpoint": "urn:kubernetes:programmatic_authorization",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms(&self.keys),
            "claims_supported": ["sub", "iss"],
        })
    }

    /// Writes both below `folder`, which stands for the issuer's URL; returns what was written.
    pub(super) fn write(&self, folder: &Path) -> Result<[PathBuf; 2], (PathBuf, std::io::Error)> {
        let write = |path: &str, document: &Value| {
            let path = folder.join(path);
            let written = std::fs::create_dir_all(path.parent().unwrap_or(folder))
                .and_then(|()| std::fs::write(&path, pretty(document)));
            written.map(|()| path.clone()).map_err(|err| (path, err))
        };
        Ok([write(&self.jwks_path, &jwks(&self.keys))?, write(DISCOVERY, &self.discovery())?])
    }
}

/// A path below an issuer: plain segments, so that it is the same in a folder, in a bucket and in a URL.
pub(super) fn check_path(path: &str) -> Result<(), String> {
    let plain = |segment: &str| {
        let known = segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        known && !["", ".", ".."].contains(&segment)
    };
    match path.split('/').all(plain) && path != DISCOVERY {
        true => Ok(()),
        false => Err(format!("{path:?} is not a path such as {JWKS} or keys.json")),
    }
}

pub(crate) fn jwks(keys: &[Value]) -> Value {
    json!({"keys": keys})
}

/// Each key once more with an empty id, for tokens that name no key.
pub(super) fn add_empty_kids(keys: &mut Vec<Value>) {
    let nameless = keys.iter().cloned().map(|mut key| {
        key["kid"] = "".into();
        key
    });
    keys.extend(nameless.collect::<Vec<_>>());
}

/// The signature algorithms of these keys, each once.
pub(super) fn algorithms(keys: &[Value]) -> Vec<&str> {
    let mut names: Vec<&str> = keys.iter().filter_map(|key| key["alg"].as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

pub(crate) fn pretty(document: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string_pretty(document).expect("keys are text, and nothing in it can fail");
    text.push('\n');
    text
}

/// Why the API server's documents cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kubeconfig or certificates.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// Nobody answers in time.
    #[error("the API server does not answer within {} s", ASK.as_secs())]
    Timeout,
    /// The API server serves neither document.
    #[error(
        "the API server publishes nothing at {path}: its --service-account-issuer must be an https URL (kube-apiserver's log says what it dislikes)"
    )]
    NotServed {
        /// The document's path.
        path: &'static str,
    },
    /// The kubeconfig's user may not read it.
    #[error(
        "the API server lets this user not read {path}; the ClusterRole system:service-account-issuer-discovery allows it"
    )]
    Forbidden {
        /// The document's path.
        path: &'static str,
    },
    /// Any other failure.
    #[error("the API server's {path}")]
    Failed {
        /// The document's path.
        path: &'static str,
        /// What kube says.
        source: kube::Error,
    },
    /// It answers with something else.
    #[error("the API server's {path} is not what an issuer publishes there")]
    Content {
        /// The document's path.
        path: &'static str,
    },
}

/// What an API server says of itself.
pub(crate) struct ApiServer {
    /// The `iss` of the tokens that it signs.
    pub issuer: String,
    pub jwks_uri: String,
    /// The keys that it signs and verifies with, as it publishes them.
    pub keys: Vec<Value>,
}

impl ApiServer {
    /// Asks the one of `kubeconfig`, or in a pod the pod's own.
    pub(crate) async fn ask(kubeconfig: Option<&Path>) -> Result<Self, Error> {
        const CONFIGURATION: &str = "/.well-known/openid-configuration";
        const KEYS: &str = "/openid/v1/jwks";
        let client = client::client(&client::config(kubeconfig).await?)?;
        let documents =
            async { Ok::<_, Error>((get(&client, CONFIGURATION).await?, get(&client, KEYS).await?)) };
        let (discovery, mut jwks) =
            tokio::time::timeout(ASK, documents).await.map_err(|_| Error::Timeout)??;
        let text = |member: &str| {
            let text = discovery[member].as_str().map(str::to_owned);
            text.ok_or(Error::Content { path: CONFIGURATION })
        };
        let keys = match jwks["keys"].take() {
            Value::Array(keys) if !keys.is_empty() => keys,
            _ => return Err(Error::Content { path: KEYS }),
        };
        Ok(Self { issuer: text("issuer")?, jwks_uri: text("jwks_uri")?, keys })
    }
}

async fn get(client: &kube::Client, path: &'static str) -> Result<Value, Error> {
    let request = http::Request::get(path).body(Vec::new()).expect("the path is a constant");
    let text = client.request_text(request).await.map_err(|err| match err {
        kube::Error::Api(status) if status.code == 404 => Error::NotServed { path },
        kube::Error::Api(status) if status.code == 403 => Error::Forbidden { path },
        source => Error::Failed { path, source },
    })?;
    serde_json::from_str(&text).map_err(|_| Error::Content { path })
}

//! Which Kubernetes answers, and what the agent was told that it is too old for.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::sleep;

use super::{Error, api};

/// `GET /version` asks nothing of etcd.
const DEADLINE: Duration = Duration::from_secs(5);
/// While the API server cannot be reached.
const RETRY: Duration = Duration::from_secs(5);

/// The 36 of 1.36.
type Minor = u32;

/// `GET /version`; the API server answers it to everybody, unless somebody took `system:public-info-viewer` away.
#[derive(Deserialize)]
struct Version {
    major: String,
    /// Some providers write `27+`.
    minor: String,
}

impl Version {
    fn minor(&self) -> Option<Minor> {
        let digits = self.minor.trim_end_matches(|c: char| !c.is_ascii_digit());
        (self.major == "1").then(|| digits.parse().ok()).flatten()
    }
}

/// What an agent was told that depends on the version.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// `--impersonate-node`
    pub as_node: bool,
    /// `--token-source=kubernetes`, where tokens are needed at all.
    pub mints: bool,
    /// `--token-source=issuer`
    pub has_issuer: bool,
}

/// Says in the log, once, what this Kubernetes is too old for: by itself it refuses with words that name no version, or lacks what
/// would limit the agent and says nothing. It decides nothing.
pub async fn advise(client: &kube::Client, told: Told) {
    let version = loop {
        let request = http::Request::get("/version").body(Vec::new()).expect("it has a path alone");
        match api::fetch::<Version>(client, request, DEADLINE).await {
            Ok(version) => break version,
            Err(Error::Away(_)) => sleep(RETRY).await,
            Err(error) => return tracing::debug!(%error, "the version of Kubernetes is not known"),
        }
    };
    let Some(minor) = version.minor() else { return };
    tracing::info!(kubernetes.version = format!("1.{minor}"), "kube API");
    for advice in told.advice(minor) {
        tracing::warn!(kubernetes.version = format!("1.{minor}"), "{advice}");
    }
}

impl Told {
    fn advice(self, minor: Minor) -> impl Iterator<Item = &'static str> {
        let as_node = (self.as_node && minor < 36).then_some(
            "--impersonate-node needs Kubernetes 1.36 and the rights of daemonset/2-rbac.yaml; here: without it, and \
             the rights of daemonset/before-1.36 (daemonset/README.md, \"Kubernetes before 1.36\")",
        );
        // By TokenReview the issuer must learn of which node the agent is.
        let issuer = (self.has_issuer && minor < 30).then_some(
            "--token-source=issuer needs Kubernetes 1.30: older tokens do not name their node, and the issuer refuses \
             them. Take --token-source=kubernetes or caller",
        );
        let minting = (self.mints && !self.as_node && minor < 30).then_some(
            "before Kubernetes 1.30 no admission policy limits the tokens that the agent may mint. Only for a cluster \
             whose roles are worth nothing (docs/local-cluster.md); elsewhere --token-source=caller, which mints none",
        );
        [as_node, issuer, minting].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(told: Told, minor: Minor) -> Vec<&'static str> {
        told.advice(minor).map(|advice| advice.split(' ').next().unwrap()).collect()
    }

    #[test]
    fn each_thing_that_is_too_new_is_said_and_nothing_else() {
        let none = Told { as_node: false, mints: false, has_issuer: false };
        assert_eq!(words(none, 27), [""; 0]);
        let as_node = Told { as_node: true, mints: true, ..none };
        assert_eq!(words(as_node, 36), [""; 0]);
        assert_eq!(words(as_node, 35), ["--impersonate-node"]);
        let mints = Told { mints: true, ..none };
        assert_eq!(words(mints, 30), [""; 0]);
        assert_eq!(words(mints, 29), ["before"]);
        let has_issuer = Told { has_issuer: true, ..none };
        assert_eq!(words(has_issuer, 30), [""; 0]);
        assert_eq!(
            words(Told { as_node: true, ..has_issuer }, 27),
            ["--impersonate-node", "--token-source=issuer"]
        );
    }

    #[test]
    fn a_version_is_read_as_providers_write_it() {
        let minor = |major: &str, minor: &str| {
            serde_json::from_value::<Version>(json!({"major": major, "minor": minor})).unwrap().minor()
        };
        assert_eq!(minor("1", "27"), Some(27));
        assert_eq!(minor("1", "27+"), Some(27));
        for (major, rest) in [("2", "0"), ("1", ""), ("1", "+"), ("1", "x7")] {
            assert_eq!(minor(major, rest), None, "{major}.{rest}");
        }
    }
}

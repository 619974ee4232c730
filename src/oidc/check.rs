//! `rolecall oidc discovery --check`: what is published, against what tokens are signed with.

use serde_json::Value;

use super::documents::{DISCOVERY, algorithms, below};
use super::fetch::Fetcher;
use crate::telemetry::in_full;

/// What whoever verifies tokens would find wrong, and what is only worth knowing.
#[derive(Default)]
pub(super) struct Findings {
    pub differences: Vec<String>,
    pub notes: Vec<String>,
}

/// Members of a JWK that make it what it is (RFC 7518, section 6).
const MATERIAL: [&str; 6] = ["kty", "n", "e", "crv", "x", "y"];
/// Members that only a private key has.
const PRIVATE: [&str; 6] = ["d", "p", "q", "dp", "dq", "qi"];

/// Fetches what is published below `url` and holds it against the issuer and the keys of the tokens.
pub(super) async fn check(url: &str, issuer: &str, keys: &[Value], fetcher: &Fetcher) -> Findings {
    let mut findings = Findings::default();
    let discovery_url = below(url, DISCOVERY);
    let Some(discovery) = findings.fetch(&discovery_url, &["application/json"], fetcher).await else {
        return findings;
    };
    let (Some(published), Some(jwks_uri)) = (discovery["issuer"].as_str(), discovery["jwks_uri"].as_str())
    else {
        findings.differs(format!("{discovery_url}: it has no issuer or no jwks_uri"));
        return findings;
    };
    if published != issuer {
        findings
            .differs(format!("{discovery_url}: it is for the issuer {published:?}; tokens say {issuer:?}"));
    }
    let named = discovery["id_token_signing_alg_values_supported"].as_array();
    for missing in algorithms(keys)
        .into_iter()
        .filter(|alg| !named.is_some_and(|named| named.iter().any(|name| name == alg)))
    {
        findings.differs(format!(
            "{discovery_url}: id_token_signing_alg_values_supported lacks {missing}, which tokens are signed with"
        ));
    }
    let types = ["application/json", "application/jwk-set+json"];
    let Some(jwks) = findings.fetch(jwks_uri, &types, fetcher).await else { return findings };
    match jwks["keys"].as_array() {
        Some(published) => findings.compare(jwks_uri, keys, published),
        None => findings.differs(format!("{jwks_uri}: it is no JWKS")),
    }
    findings
}

impl Findings {
    fn differs(&mut self, what: String) {
        self.differences.push(printable(&what));
    }

    /// The JSON document at `url`, if there is one; everything odd about how it is served is noted on the way.
    async fn fetch(&mut self, url: &str, types: &[&str], fetcher: &Fetcher) -> Option<Value> {
        if !url.starts_with("https://") {
            self.differs(format!("{url:?} is not https, and STS fetches over nothing else"));
        }
        let document = match fetcher.get(url).await {
            Ok(document) => document,
            Err(err) => {
                self.differs(format!("it cannot be fetched: {}", in_full(&err)));
                return None;
            }
        };
        match (document.status, document.location) {
            (200, _) => {}
            (status @ 300..=399, Some(location)) => {
                self.differs(format!(
                    "{url}: status {status} sends on to {location}; the document must be here, as not everybody follows"
                ));
                return None;
            }
            (status @ (401 | 403), _) => {
                self.differs(format!("{url}: status {status}; everybody must be able to read it"));
                return None;
            }
            (status, _) => {
                self.differs(format!("{url}: status {status}"));
                return None;
            }
        }
        let content_type = document.content_type.unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if !types.iter().any(|known| essence.eq_ignore_ascii_case(known)) {
            self.differs(format!("{url}: its Content-Type is {content_type:?}, not {}", types.join(" or ")));
        }
        let json = serde_json::from_slice(&document.body).ok();
        if json.is_none() {
            self.differs(format!("{url}: it is not JSON"));
        }
        json
    }

    fn compare(&mut self, url: &str, signing: &[Value], published: &[Value]) {
        for key in signing {
            let same_id = || published.iter().filter(|other| other["kid"] == key["kid"]);
            let same = |other: &&Value| MATERIAL.iter().all(|member| other[*member] == key[*member]);
            let agrees =
                |other: &Value, member: &str| other[member].is_null() || other[member] == key[member];
            let (name, alg) = (named(key), &key["alg"]);
            match same_id().find(same) {
                Some(other) if agrees(other, "use") && agrees(other, "alg") => {}
                Some(_) => {
                    self.differs(format!("{url}: {name} is published for another use than {alg} signatures"))
                }
                None if same_id().next().is_some() => {
                    self.differs(format!(
                        "{url}: {name} is another key there; tokens signed with ours are refused"
                    ));
                }
                None => self.differs(format!("{url}: {name} is missing; tokens signed with it are refused")),
            }
        }
        for key in published {
            let name = named(key);
            if PRIVATE.iter().any(|member| !key[*member].is_null()) {
                self.differs(format!(
                    "{url}: {name} is published with its PRIVATE half; replace that key now"
                ));
            }
            if !signing.iter().any(|ours| ours["kid"] == key["kid"]) {
                self.notes.push(printable(&format!(
                    "{url}: {name} is published too; whoever holds it can sign tokens. Fine while keys are rotated"
                )));
            }
        }
    }
}

/// Parts of it came from whoever publishes, who could steer the operator's terminal with them.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "?")
}

fn named(key: &Value) -> String {
    match key["kid"].as_str() {
        Some("") => "the key with the empty id".to_owned(),
        Some(kid) => format!("key {kid:?}"),
        None => "a key without an id".to_owned(),
    }
}

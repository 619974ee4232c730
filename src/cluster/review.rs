//! TokenReview: the question as it is sent, and what is read of the answer.
//! <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/>

use std::collections::BTreeMap;
use std::time::Duration;

use kube::api::PostParams;
use kube::core::Request;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;

use super::api::{fetch, log_safe};
use super::{Error, Reviewed, Verdict};

/// What the API server adds to a user who is known by a ServiceAccount token.
const EXTRA: &str = "authentication.kubernetes.io/";

/// Of a token, this much names no more than its algorithm.
const BEGINNING: usize = 16;

/// Asks whose token this is.
pub(super) async fn ask(
    client: &kube::Client,
    token: &SecretString,
    audiences: &[String],
    deadline: Duration,
) -> Result<Verdict, Error> {
    let question = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": { "token": token.expose_secret(), "audiences": audiences },
    });
    let request = Request::new("/apis/authentication.k8s.io/v1/tokenreviews")
        .create(&PostParams::default(), question.to_string().into())
        .map_err(|error| Error::Refused(error.to_string()))?;
    let answer: Answer = fetch(client, request, deadline).await.map_err(|error| error.without(token))?;
    Ok(answer.status.verdict().without(token))
}

impl Error {
    /// The question holds a secret, and whoever answers in the API server's place may repeat it.
    fn without(self, token: &SecretString) -> Self {
        let cut = |text| redacted(text, token);
        match self {
            Self::Away(text) => Self::Away(cut(text)),
            Self::PodGone(text) => Self::PodGone(cut(text)),
            Self::Refused(text) => Self::Refused(cut(text)),
            Self::NotShown(text) => Self::NotShown(cut(text)),
            Self::IssuerAway(text) => Self::IssuerAway(cut(text)),
            Self::IssuerRefused(text) => Self::IssuerRefused(cut(text)),
        }
    }
}

/// What is used of the answer; its `spec`, which repeats the token, is skipped.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    authenticated: bool,
    user: User,
    audiences: Vec<String>,
    error: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

impl Verdict {
    /// As for an error: the reason is written to the log.
    fn without(self, token: &SecretString) -> Self {
        match self {
            Self::Bad(why) => Self::Bad(redacted(why, token)),
            good => good,
        }
    }
}

/// `text` up to where the token begins. It has been cut to a line's length before, and the token in it with it: so its
/// beginning alone is looked for, and nothing behind that is kept.
fn redacted(mut text: String, token: &SecretString) -> String {
    let token = token.expose_secret();
    let beginning = token.get(..BEGINNING).unwrap_or(token);
    if let Some(at) = text.find(beginning) {
        text.truncate(at);
        text.push_str("<redacted>");
    }
    text
}

impl Status {
    fn verdict(self) -> Verdict {
        let Self { authenticated, user: User { username, uid, mut extra }, audiences, error } = self;
        if !authenticated {
            // With an error or without: it was not recognised.
            return Verdict::Bad(log_safe(if error.is_empty() { "not authenticated" } else { &error }));
        }
        let mut one = |name: &str| {
            let mut values = extra.remove(&format!("{EXTRA}{name}")).unwrap_or_default();
            // Two values would be two pods; which of them it is, nobody could say.
            if values.len() == 1 { values.pop().filter(|value| !value.is_empty()) } else { None }
        };
        Verdict::Good(Reviewed {
            pod_name: one("pod-name"),
            pod_uid: one("pod-uid"),
            node_name: one("node-name"),
            credential_id: one("credential-id"),
            user: username,
            user_uid: uid,
            audiences,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: serde_json::Value) -> Verdict {
        let answer = json!({"kind": "TokenReview", "spec": {"token": "the-token"}, "status": status});
        serde_json::from_value::<Answer>(answer).unwrap().status.verdict()
    }

    #[test]
    fn a_good_token_is_read_with_its_pod() {
        let verdict = verdict(json!({
            "authenticated": true, "audiences": ["rolecall"],
            "user": {"username": "system:serviceaccount:shop:web", "uid": "u", "groups": ["g"], "extra": {
                "authentication.kubernetes.io/pod-name": ["web-1"],
                "authentication.kubernetes.io/pod-uid": ["uid-web-1"],
                "authentication.kubernetes.io/node-name": ["node-1"],
                "authentication.kubernetes.io/credential-id": ["JTI=7"],
            }},
        }));
        let Verdict::Good(reviewed) = verdict else { panic!("{verdict:?}") };
        assert_eq!(reviewed.user, "system:serviceaccount:shop:web");
        assert_eq!(
            (reviewed.pod_name.as_deref(), reviewed.pod_uid.as_deref()),
            (Some("web-1"), Some("uid-web-1"))
        );
        assert_eq!(
            (reviewed.credential_id.as_deref(), reviewed.audiences),
            (Some("JTI=7"), vec!["rolecall".into()])
        );
        assert_eq!((reviewed.node_name.as_deref(), &*reviewed.user_uid), (Some("node-1"), "u"));
    }

    #[test]
    fn two_pods_in_one_token_are_none() {
        let verdict = verdict(json!({"authenticated": true, "user": {"username": "x", "extra": {
            "authentication.kubernetes.io/pod-uid": ["a", "b"],
        }}}));
        assert_eq!(verdict, Verdict::Good(Reviewed { user: "x".into(), ..Reviewed::default() }));
    }

    #[test]
    fn whatever_does_not_say_authenticated_is_not() {
        let expired =
            json!({"user": {"username": "system:serviceaccount:shop:web"}, "error": "token\nhas expired"});
        assert_eq!(verdict(expired), Verdict::Bad("token has expired".into()));
        assert_eq!(verdict(json!({})), Verdict::Bad("not authenticated".into()));
    }

    #[test]
    fn an_error_never_repeats_the_token() {
        let error = Error::Refused("400: cannot handle \"the-token\"".into()).without(&"the-token".into());
        assert!(!error.to_string().contains("the-token"), "{error}");
    }

    #[test]
    fn an_error_repeats_no_part_of_a_token_that_was_cut() {
        let token = format!("eyJhbGciOiJSUzI1NiJ9.{}.{}", "c".repeat(700), "s".repeat(342));
        let cut = log_safe(&format!("400: cannot handle {token}"));
        let error = Error::Refused(cut).without(&token.into());
        assert_eq!(error.to_string(), Error::Refused("400: cannot handle <redacted>".into()).to_string());
    }

    #[test]
    fn the_reason_why_a_token_is_bad_never_repeats_it() {
        let bad = Verdict::Bad("invalid bearer token the-token".into()).without(&"the-token".into());
        assert_eq!(bad, Verdict::Bad("invalid bearer token <redacted>".into()));
    }
}

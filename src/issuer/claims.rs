//! What a web-identity token says: of a proved pod, in Kubernetes' own words, so that trust policies need not know who signed.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::proof::Bound;
use crate::identity::pods::PodUid;
use crate::role::Claims;
use crate::role::session_name::{self, Name, Template};
use crate::role::tags::Tag;

/// AWS wants no less of a token that is used at once, and a stolen one should be worth no more.
pub const LIFE: Duration = Duration::from_secs(600);

/// The claims of a token for `pod`, as the API server writes them into its own.
/// <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens>
pub fn claims(issuer: &str, audience: &str, pod: &Bound, of_session: &Claims, now: Timestamp) -> Value {
    let Bound { account, account_uid, pod_name, pod_uid, node, .. } = pod;
    let now = now.as_second();
    let mut claims = json!({
        "iss": issuer,
        "sub": format!("system:serviceaccount:{}:{}", account.namespace, account.name),
        "aud": [audience],
        "iat": now,
        "nbf": now,
        "exp": now + i64::try_from(LIFE.as_secs()).expect("ten minutes"),
        "jti": id(),
        "kubernetes.io": {
            "namespace": &*account.namespace,
            "serviceaccount": {"name": &*account.name, "uid": account_uid},
            "pod": {"name": pod_name, "uid": pod_uid},
            "node": {"name": node},
        },
    });
    let Claims { tags, source_identity } = of_session;
    if !tags.is_empty() {
        let values: Map<String, Value> =
            tags.iter().map(|tag| (tag.key().to_owned(), json!([tag.value()]))).collect();
        let transitive: Vec<&str> = tags.iter().filter(|tag| tag.transitive).map(Tag::key).collect();
        claims["https://aws.amazon.com/tags"] =
            json!({"principal_tags": values, "transitive_tag_keys": transitive});
    }
    if let Some(source_identity) = source_identity {
        claims["https://aws.amazon.com/source_identity"] = source_identity.as_str().into();
    }
    claims
}

/// What the token of `pod` says to AWS of the session: the agent chooses by the ServiceAccount's annotations which tags there are, and
/// every value is of what the API server has said, or of our own configuration.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/id_session-tags.html#id_session-tags_adding-assume-role-idp>
///
/// # Errors
/// What cannot be a claim, as a phrase.
pub fn of_session(
    pod: &Bound,
    cluster: &str,
    session_tags: Option<&str>,
    source_identity: Option<&str>,
) -> Result<Claims, String> {
    let place = |text: &str| Template::parse(text, &pod.node, cluster);
    let tags = session_tags.map(|list| Tag::parse_list(list, &pod.account, &place("{namespace}")?));
    let source_identity = source_identity.map(|text| {
        session_name::proves(text)?;
        Ok::<_, String>(Name::new(place(text)?, &pod.account))
    });
    let mut claims = Claims {
        tags: tags.transpose().map_err(|why| format!("session tags: {why}"))?.unwrap_or_default(),
        source_identity: source_identity.transpose().map_err(|why| format!("source identity: {why}"))?,
    };
    claims.fill(&pod.account, &pod.pod_name, &PodUid::new(pod.pod_uid.clone()));
    Ok(claims)
}

/// A UUID for the audit line and for CloudTrail; it is no secret.
fn id() -> String {
    let digits = format!("{:032x}", fastrand::u128(..));
    format!("{}-{}-4{}-a{}-{}", &digits[..8], &digits[8..12], &digits[13..16], &digits[17..20], &digits[20..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::pods::ServiceAccountName;

    fn web() -> Bound {
        Bound {
            account: ServiceAccountName { namespace: "shop".into(), name: "web".into() },
            account_uid: "uid-of-web".into(),
            pod_name: "web-1".into(),
            pod_uid: "uid-of-web-1".into(),
            node: "here".into(),
            credential_id: None,
        }
    }

    #[test]
    fn tags_and_source_identity_are_written_as_aws_reads_them_with_values_that_were_proved() {
        let all = "kubernetes-namespace:transitive,kubernetes-service-account,kubernetes-pod-name,kubernetes-pod-uid,\
                   kubernetes-node,eks-cluster-name";
        let asked =
            of_session(&web(), "berlin", Some(all), Some("{namespace}.{service-account}@{node}")).unwrap();
        let claims = claims("https://oidc.example.com", "sts", &web(), &asked, Timestamp::UNIX_EPOCH);
        assert_eq!(
            claims["https://aws.amazon.com/tags"],
            json!({
                "principal_tags": {
                    "kubernetes-namespace": ["shop"], "kubernetes-service-account": ["web"],
                    "kubernetes-pod-name": ["web-1"], "kubernetes-pod-uid": ["uid-of-web-1"],
                    "kubernetes-node": ["here"], "eks-cluster-name": ["berlin"],
                },
                "transitive_tag_keys": ["kubernetes-namespace"],
            })
        );
        assert_eq!(claims["https://aws.amazon.com/source_identity"], "shop.web@here");
    }

    #[test]
    fn a_token_says_nothing_to_aws_that_nobody_asked_for() {
        let asked = of_session(&web(), "", None, None).unwrap();
        assert!(asked.is_empty());
        let claims = claims("https://oidc.example.com", "sts", &web(), &asked, Timestamp::UNIX_EPOCH);
        assert!(claims.as_object().unwrap().keys().all(|name| !name.contains("aws")), "{claims}");
    }

    #[test]
    fn what_nobody_has_proved_is_no_claim() {
        for (tags, identity) in [
            (Some("team"), None),
            (Some("kubernetes-namespace=bank"), None),
            (Some("eks-cluster-name"), None),
            (Some(""), None),
            (None, Some("root")),
            (None, Some("{namespace}.admin")),
            (None, Some("{service-account}")),
            (None, Some("{service-account}.{namespace}.")),
            (None, Some("{namespace}.{cluster}")),
            (None, Some("{namespace}.{pod}")),
            (None, Some("{namespace}.{service-account}.{pod}")),
            (None, Some("{user}")),
        ] {
            of_session(&web(), "", tags, identity).unwrap_err();
        }
    }
}

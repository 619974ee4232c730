//! What a web-identity token says: of a proved pod, in Kubernetes' own words, so that trust policies need not know who signed.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::proof::Bound;

/// AWS wants no less of a token that is used at once, and a stolen one should be worth no more.
pub const LIFE: Duration = Duration::from_secs(600);

/// The claims of a token for `pod`, as the API server writes them into its own.
/// <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens>
pub fn claims(issuer: &str, audience: &str, pod: &Bound, now: Timestamp) -> Value {
    let Bound { account, account_uid, pod_name, pod_uid, node, .. } = pod;
    let now = now.as_second();
    json!({
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
    })
}

/// A UUID for the audit line and for CloudTrail; it is no secret.
fn id() -> String {
    let digits = format!("{:032x}", fastrand::u128(..));
    format!("{}-{}-4{}-a{}-{}", &digits[..8], &digits[8..12], &digits[13..16], &digits[17..20], &digits[20..])
}

//! Manifests written for IRSA, as they are: `eks.amazonaws.com/role-arn` with its other annotations. The pod reads a secret.

use serde_json::json;

use crate::aws::allow;
use crate::scenario::scenario;

#[test]
fn irsa_annotation_untouched() {
    scenario("irsa_annotation_untouched", async |it| {
        let secret = it.aws.secret("database", "hunter2");
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        let role = it.aws.role("web", &trusted, &allow("secretsmanager:GetSecretValue", "*"));
        let (_, sts) = it.aws.open();
        let _agent = it.agent(&["--sts-endpoint-url", &sts]).await;

        let annotations = json!({
            "eks.amazonaws.com/role-arn": role,
            "eks.amazonaws.com/audience": "sts.amazonaws.com",
            "eks.amazonaws.com/sts-regional-endpoints": "true",
            "eks.amazonaws.com/token-expiration": "86400",
        });
        it.account_with("web", annotations.clone()).await;
        let pod = it.pod("web").await;
        let read = pod.must("secretsmanager", "get_secret_value", &json!({"SecretId": secret}));
        assert_eq!(read["SecretString"], "hunter2");
        pod.is_denied_by("secretsmanager", "delete_secret", &json!({"SecretId": secret}));

        it.account_with("api", annotations).await;
        it.pod("api").await.is_refused_with("StsDenied").await;
    });
}

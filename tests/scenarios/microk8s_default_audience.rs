//! The API server's own audience, which tokens have on clusters whose IAM provider was made for it: the operator allows it, and the
//! ServiceAccount asks for it. The pod encrypts with a KMS key.

use serde_json::json;

use crate::scenario::{allow, scenario};

const AUDIENCE: &str = "https://kubernetes.default.svc";

#[test]
fn microk8s_default_audience() {
    scenario("microk8s_default_audience", async |it| {
        let key = it.aws.key();
        it.aws.configure(|aws| aws.issuers[0].audiences = Some(vec![AUDIENCE.to_owned()]));
        let trusted = it.aws.trusts(it, "web", AUDIENCE);
        let role = it.aws.role("web", &trusted, &allow("kms:Encrypt", "*"));
        // Whoever holds such a token is the ServiceAccount at the API server: it goes to loopback, or over https, and nowhere else.
        let (_, at) = it.aws.open_at("127.0.0.1:0", None);
        let sts = format!("http://{at}");
        let _agent = it
            .agent(&[
                "--sts-endpoint-url",
                &sts,
                "--allow-audience",
                &format!("sts.amazonaws.com,{AUDIENCE}"),
            ])
            .await;

        it.server.documented("kubectl patch clusterrole rolecall-audiences ", &[("AUDIENCE", AUDIENCE)]);

        let asks = json!({"rolecall.dev/role-arn": role, "eks.amazonaws.com/audience": AUDIENCE});
        it.account_with("web", asks).await;
        let pod = it.pod("web").await;
        pod.has_role(&role).await;
        let secret = pod.must("kms", "encrypt", &json!({"KeyId": key, "Plaintext": "hunter2"}));
        pod.is_denied_by("kms", "decrypt", &json!({"CiphertextBlob": secret["CiphertextBlob"]}));

        // The role's provider takes no other audience.
        it.account_with("api", json!({"rolecall.dev/role-arn": role})).await;
        it.pod("api").await.is_refused_with("StsDenied").await;
        // And nobody gets one that the operator does not allow.
        let asks = json!({"rolecall.dev/role-arn": role, "eks.amazonaws.com/audience": "https://elsewhere"});
        it.account_with("other", asks).await;
        it.pod("other").await.is_refused_with("InvalidPlan").await;
    });
}

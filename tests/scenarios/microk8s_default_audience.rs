//! The API server's own audience, which tokens have on clusters whose IAM provider was made for it: the operator allows it, and the
//! ServiceAccount asks for it. The pod encrypts with a KMS key.

use serde_json::json;

use crate::agent::{Agent, ROLECALL, SOON};
use crate::aws::allow;
use crate::scenario::scenario;

#[test]
fn microk8s_default_audience() {
    scenario("microk8s_default_audience", async |it| {
        let key = it.aws.key();
        // What tokens are for that nobody asked anything else of: without --api-audiences, the API server's issuer.
        let audience = &*it.server.issuer();
        it.aws.configure(|aws| aws.issuers[0].audiences = Some(vec![audience.to_owned()]));
        let mut trusted = it.aws.trusts(it, "web", audience);
        let subject = format!("{}:sub", it.aws.issuer);
        let subjects = ["web", "api"].map(|account| format!("system:serviceaccount:{}:{account}", it.name));
        trusted["Condition"]["StringEquals"][subject] = json!(subjects);
        let role = it.aws.role("web", &trusted, &allow("kms:Encrypt", "*"));
        // Whoever holds such a token is the ServiceAccount at the API server: it goes to loopback, or over https, and nowhere else.
        let (_, at) = it.aws.open_at("127.0.0.1:0", None);
        let sts = format!("http://{at}");
        // As the audience of every token it must be listed, too: the agent's own token has told which it is.
        let mut command = it.node.command(ROLECALL);
        command.env("ROLECALL_IMPERSONATE_NODE", it.server.impersonation.to_string());
        let (kubeconfig, args) =
            (it.server.agent_kubeconfig("unlisted"), ["--sts-endpoint-url", &sts, "--audience", audience]);
        let mut unlisted = Agent::start_by(command, "unlisted", "/run/unlisted.sock", &kubeconfig, &args);
        assert_eq!(unlisted.ended().await.code(), Some(64), "{}", unlisted.output());
        unlisted.until_it_says(&format!("--audience: \"{audience}\" is the API server's own audience")).await;
        let _agent = it
            .agent(&[
                "--sts-endpoint-url",
                &sts,
                "--allow-audience",
                &format!("sts.amazonaws.com,{audience}"),
            ])
            .await;

        it.server.documented("kubectl patch clusterrole rolecall-audiences ", &[("AUDIENCE", audience)]);

        let asks = json!({"rolecall.dev/role-arn": role, "eks.amazonaws.com/audience": audience});
        it.account_with("web", asks).await;
        let pod = it.pod("web").await;
        pod.has_role(&role).await;
        let token = it.token("web", &pod.name, &pod.uid, audience).await;
        let review = it.review(&token, &[]).await;
        assert_eq!(review["authenticated"], true, "whoever holds it is the ServiceAccount there: {review}");
        let secret = pod.must("kms", "encrypt", &json!({"KeyId": key, "Plaintext": "hunter2"}));
        pod.is_denied_by("kms", "decrypt", &json!({"CiphertextBlob": secret["CiphertextBlob"]}));

        // The role's provider takes no other audience, though the role trusts this ServiceAccount as well.
        it.account_with("api", json!({"rolecall.dev/role-arn": role})).await;
        let api = it.pod("api").await;
        api.is_refused_saying("StsDenied", ": InvalidIdentityToken. ").await;
        it.annotate("api", json!({"eks.amazonaws.com/audience": audience})).await;
        let to = "169.254.170.23:9902".parse().unwrap();
        api.until(to, SOON, |answer| answer.status == 200).await;
        // And nobody gets one that the operator does not allow.
        let asks = json!({"rolecall.dev/role-arn": role, "eks.amazonaws.com/audience": "https://elsewhere"});
        it.account_with("other", asks).await;
        it.pod("other").await.is_refused_with("InvalidPlan").await;
    });
}

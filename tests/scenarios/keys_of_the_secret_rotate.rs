//! The keys in the agent's Secret are others from one moment to the next: no restart, and whom the old ones were refused for has its role.

use serde_json::json;

use crate::agent::SOON;
use crate::aws::allow;
use crate::irsa_emu_style_iam_user::{Secret, agent, assumes_k8s_roles, trusts, without_tokens};
use crate::scenario::scenario;

#[test]
fn keys_of_the_secret_rotate() {
    scenario("keys_of_the_secret_rotate", async |it| {
        let arn = it.aws.secret("team/db", "hunter2");
        let (old, new) = (it.aws.user("old", &assumes_k8s_roles()), it.aws.user("new", &assumes_k8s_roles()));
        let may_read = allow("secretsmanager:GetSecretValue", "*");
        let both = it.aws.role("k8s-both", &trusts(&["old", "new"]), &may_read);
        let later = it.aws.role("k8s-later", &trusts(&["new"]), &may_read);
        let (emulator, sts) = it.aws.open();
        let secret = Secret::new();
        let agent = agent(it, &sts, &secret.file());
        // Without any it is not ready, and names what it tried.
        let why = agent.until_page("/readyz", |status, why| status == 503 && why.contains("tried")).await;
        let file = secret.file().display().to_string();
        for part in ["AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY not set", &file, "No such file"] {
            assert!(why.contains(part), "{why}");
        }
        assert!(!why.contains("instance metadata"), "nothing is tried after what is set up: {why}");

        secret.write("..1", &old);
        agent.until_ready().await;
        it.account_with("web", json!({"rolecall.dev/role-arn": both})).await;
        it.account_with("late", json!({"rolecall.dev/role-arn": later})).await;
        let (web, late) = (it.pod("web").await, it.pod("late").await);
        let read = web.must("secretsmanager", "get_secret_value", &json!({"SecretId": arn}));
        assert_eq!(read["SecretString"], "hunter2");
        late.is_refused_with("StsDenied").await;

        // The file is looked at every 5 s. That a refusal of the old keys ends with them, however long it would hold, is the cache's own test.
        secret.write("..2", &new);
        let to = "169.254.170.23:9902".parse().unwrap();
        late.until(to, SOON, |answer| answer.status == 200).await;
        let read = late.must("secretsmanager", "get_secret_value", &json!({"SecretId": arn}));
        assert_eq!(read["SecretString"], "hunter2");
        web.has_role(&both).await;
        late.is_denied_by("secretsmanager", "list_secrets", &json!({}));
        without_tokens(&emulator);
    });
}

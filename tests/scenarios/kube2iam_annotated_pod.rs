//! Pods as kube2iam served them: an ARN or a name on the pod, a JSON list on its namespace. The pod decrypts with KMS.

use serde_json::{Value, json};

use crate::aws::allow;
use crate::moto;
use crate::scenario::{Scenario, VARIABLES, scenario};

fn wants(it: &Scenario, account: &str, role: &str) -> Value {
    let mut object = it.object(account, &VARIABLES);
    object["metadata"]["annotations"] = json!({"iam.amazonaws.com/role": role});
    object
}

#[test]
fn kube2iam_annotated_pod() {
    scenario("kube2iam_annotated_pod", async |it| {
        let key = it.aws.key();
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        let allowed = json!([allow("kms:Encrypt", "*"), allow("kms:Decrypt", "*")]);
        let role = it.aws.role("k2i-web", &trusted, &allowed);
        let (_, sts) = it.aws.open();
        let base = format!("arn:aws:iam::{}:role/", moto::ACCOUNT);
        it.server.may_read_namespaces();
        let allow_role = format!("{}={base}k2i-*", it.name);
        let flags = ["--role-source=pod-annotation", "--base-role-arn", &base, "--allow-role", &allow_role];
        let _agent = it.agent(&[&flags[..], &["--sts-endpoint-url", &sts]].concat()).await;
        it.annotate_namespace(json!({"iam.amazonaws.com/allowed-roles": r#"["k2i-w*"]"#})).await;

        it.account_with("web", Value::Null).await;
        for by in ["k2i-web", &*role] {
            let pod = it.start(it, &wants(it, "web", by)).await;
            let sealed = pod.must("kms", "encrypt", &json!({"KeyId": key, "Plaintext": "42"}));
            let opened = pod.must("kms", "decrypt", &json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
            assert_eq!(opened["Plaintext"], "42");
            pod.is_denied_by("kms", "schedule_key_deletion", &json!({"KeyId": key}));
        }

        // kube2iam's default role for pods that ask for none is what rolecall does not have.
        it.pod("web").await.is_refused_with("NoRole").await;
        it.start(it, &wants(it, "web", "k2i-other")).await.is_refused_with("RoleNotAllowed").await;
        it.start(it, &wants(it, "web", "arn:aws:iam::999999999999:role/k2i-web"))
            .await
            .is_refused_with("RoleNotAllowed")
            .await;
        it.account_with("api", Value::Null).await;
        it.start(it, &wants(it, "api", "k2i-web")).await.is_refused_with("StsDenied").await;
    });
}

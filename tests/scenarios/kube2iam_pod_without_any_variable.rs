//! Pods as kube2iam left them: the role's name on the pod, no variable at all, and an SDK that asks instance metadata. The pod decrypts with KMS.

use serde_json::{Value, json};

use crate::aws::allow;
use crate::moto;
use crate::net;
use crate::scenario::{Scenario, scenario};

/// Where the SDK finds KMS, as in every pod that kube2iam served. Nothing of it leads to credentials.
const REGION: [(&str, &str); 1] = [("AWS_DEFAULT_REGION", moto::REGION)];

fn wants(it: &Scenario, account: &str, role: &str) -> Value {
    let mut object = it.object(account, &REGION);
    object["metadata"]["annotations"] = json!({"iam.amazonaws.com/role": role});
    object
}

#[test]
fn kube2iam_pod_without_any_variable() {
    scenario("kube2iam_pod_without_any_variable", async |it| {
        let key = it.aws.key();
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        let allowed = json!([allow("kms:Encrypt", "*"), allow("kms:Decrypt", "*")]);
        it.aws.role("k2i-web", &trusted, &allowed);
        let (_, sts) = it.aws.open();
        let base = format!("arn:aws:iam::{}:role/", moto::ACCOUNT);
        it.server.may_read_namespaces();
        let imds = ["--imds-listen", "169.254.170.2:9904"];
        net::install(it.node, &imds);
        let allow_role = format!("{}={base}k2i-*", it.name);
        let flags = ["--role-source=pod-annotation", "--base-role-arn", &base, "--allow-role", &allow_role];
        let agent = it.agent(&[&flags[..], &imds, &["--sts-endpoint-url", &sts]].concat()).await;

        it.account_with("web", Value::Null).await;
        let pod = it.start(it, &wants(it, "web", "k2i-web")).await;
        let sealed = pod.must("kms", "encrypt", &json!({"KeyId": key, "Plaintext": "42"}));
        let opened = pod.must("kms", "decrypt", &json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
        assert_eq!(opened["Plaintext"], "42");
        pod.is_denied_by("kms", "schedule_key_deletion", &json!({"KeyId": key}));

        // Neither another's role nor, as with kube2iam, a default one or the node's.
        it.account_with("api", Value::Null).await;
        let none = it.start(it, &it.object("web", &REGION)).await;
        let other = it.start(it, &wants(it, "web", "k3i-web")).await;
        let distrusted = it.start(it, &wants(it, "api", "k2i-web")).await;
        for (pod, code) in [(none, "NoRole"), (other, "RoleNotAllowed"), (distrusted, "StsDenied")] {
            let said = pod.call("kms", "list_keys", &json!({})).unwrap_err();
            assert!(said.contains("Unable to locate credentials"), "{said}");
            agent.line_about(&pod.uid, |line| line["code"] == code).await;
        }
    });
}

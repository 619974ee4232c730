//! The variable by `envFrom`: a ConfigMap in the namespace and three lines in the container. The pod encrypts with a KMS key.

use serde_json::json;

use crate::aws::allow;
use crate::moto;
use crate::scenario::{VARIABLES, scenario};

const PAGE: &str = include_str!("../../docs/injection.md");

#[test]
fn variable_by_envfrom() {
    scenario("variable_by_envfrom", async |it| {
        let key = it.aws.key();
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        let role = it.aws.role("web", &trusted, &allow("kms:Encrypt", "*"));
        let (_, sts) = it.aws.open();
        // The ConfigMap has the word that this asks for.
        let args = ["--sts-endpoint-url", &sts, "--require-authorization", "present"];
        let _agent = it.agent(&args).await;
        let apply = "kubectl apply -n NAMESPACE -f daemonset/inject/envfrom/";
        it.server.documented_in(PAGE, apply, &[("NAMESPACE", &it.namespace)]);

        it.account_with("web", json!({"rolecall.dev/role-arn": role})).await;
        // What the container sets itself wins.
        let region = [("AWS_REGION", moto::REGION), ("AWS_DEFAULT_REGION", moto::REGION)];
        let mut object = it.object("web", &region);
        object["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "rolecall"}}]);
        let pod = it.start(it, &object).await;
        let secret = pod.must("kms", "encrypt", &json!({"KeyId": key, "Plaintext": "hunter2"}));
        pod.is_denied_by("kms", "decrypt", &json!({"CiphertextBlob": secret["CiphertextBlob"]}));

        let plain = [&region[..], &[VARIABLES[0]]].concat();
        it.start(it, &it.object("web", &plain)).await.is_refused_with("AuthorizationRequired").await;
        it.account_with("api", json!({"rolecall.dev/role-arn": role})).await;
        let mut object = it.object("api", &region);
        object["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "rolecall"}}]);
        it.start(it, &object).await.is_refused_with("StsDenied").await;
    });
}

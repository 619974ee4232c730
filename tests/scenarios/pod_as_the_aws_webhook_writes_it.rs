//! The variable by amazon-eks-pod-identity-webhook: our address, and a token for the agent in a volume.
//!
//! The webhook is not run. The pod is as its source writes it (`container-credentials-…` flags, version 0.6); what tells it so,
//! daemonset/inject/aws-webhook/, is applied to a Deployment with the parts that are patched.

use serde_json::{Value, json};

use crate::aws::allow;
use crate::moto;
use crate::scenario::{Scenario, scenario};

const PAGE: &str = include_str!("../../docs/injection.md");
const FOLDER: &str = "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount";

#[test]
fn pod_as_the_aws_webhook_writes_it() {
    scenario("pod_as_the_aws_webhook_writes_it", async |it| {
        let secret = it.aws.secret("database", "hunter2");
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        let role = it.aws.role("web", &trusted, &allow("secretsmanager:GetSecretValue", "*"));
        let (_, sts) = it.aws.open();
        // Its token is good: nobody is answered without one.
        let args = ["--sts-endpoint-url", &sts, "--require-authorization", "token"];
        let _agent = it.agent(&args).await;
        let flags = flags_of_the_patched_webhook(it).await;
        let flag = |name: &str| {
            let value =
                flags.iter().find_map(|flag| flag.strip_prefix(&format!("--container-credentials-{name}=")));
            value.unwrap_or_else(|| panic!("no {name}: {flags:?}"))
        };
        let written = |account: &str| written(it, account, flag("full-uri"), flag("audience"));

        it.account_with("web", json!({"rolecall.dev/role-arn": role})).await;
        it.account_with("api", json!({"rolecall.dev/role-arn": role})).await;
        let pod = it.start(it, &written("web")).await;
        let read = pod.must("secretsmanager", "get_secret_value", &json!({"SecretId": secret}));
        assert_eq!(read["SecretString"], "hunter2");
        pod.is_denied_by("secretsmanager", "delete_secret", &json!({"SecretId": secret}));
        it.pod("web").await.is_refused_with("AuthorizationInvalid").await;
        it.start(it, &written("api")).await.is_refused_with("StsDenied").await;
    });
}

/// What the documented commands make of the webhook's Deployment.
async fn flags_of_the_patched_webhook(it: &Scenario<'_>) -> Vec<String> {
    let container = json!({
        "name": "pod-identity-webhook", "image": "none:1", "command": ["/webhook", "--in-cluster=false"],
        "volumeMounts": [{"name": "cert", "mountPath": "/etc/webhook/certs"}],
    });
    let deployment = json!({"metadata": {"name": "pod-identity-webhook"}, "spec": {
        "selector": {"matchLabels": {"app": "webhook"}},
        "template": {"metadata": {"labels": {"app": "webhook"}}, "spec": {
            "containers": [container], "volumes": [{"name": "cert", "secret": {"secretName": "cert"}}],
        }},
    }});
    let path = format!("/apis/apps/v1/namespaces/{}/deployments", it.namespace);
    it.post(&path, &deployment).await;
    for start in ["kubectl apply -n NAMESPACE -f daemonset/inject/aws-webhook/", "kubectl patch -n NAMESPACE"]
    {
        it.server.documented_in(PAGE, start, &[("NAMESPACE", &it.namespace)]);
    }
    let list = it.get(&it.path("configmaps", "rolecall-identities")).await;
    let list: Value = serde_json::from_str(list["data"]["identities.json"].as_str().unwrap()).unwrap();
    assert_eq!(list["identities"][0], json!({"namespace": "shop", "serviceAccount": "web"}));

    let patched = it.get(&format!("{path}/pod-identity-webhook")).await;
    let spec = &patched["spec"]["template"]["spec"];
    let names =
        |what: &Value| what.as_array().unwrap().iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&spec["volumes"]), ["cert", "rolecall"]);
    assert_eq!(names(&spec["containers"][0]["volumeMounts"]), ["cert", "rolecall"]);
    let command = spec["containers"][0]["command"].as_array().unwrap().iter();
    command.map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// A pod of `account` after the webhook with these two `--container-credentials-…` flags and `--aws-default-region`.
pub(crate) fn written(it: &Scenario<'_>, account: &str, full_uri: &str, audience: &str) -> Value {
    let mut object = it.object(
        account,
        &[
            ("AWS_DEFAULT_REGION", moto::REGION),
            ("AWS_REGION", moto::REGION),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", full_uri),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &format!("{FOLDER}/eks-pod-identity-token")),
        ],
    );
    let token = json!({"audience": audience, "expirationSeconds": 86400, "path": "eks-pod-identity-token"});
    object["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "eks-pod-identity-token", "readOnly": true, "mountPath": FOLDER}]);
    object["spec"]["volumes"] = json!([{"name": "eks-pod-identity-token", "projected": {"sources": [{"serviceAccountToken": token}]}}]);
    object
}

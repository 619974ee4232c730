//! The variable by the API server itself: a MutatingAdmissionPolicy and a label, on Kubernetes 1.36 and, by the beta API, on 1.34.

use serde_json::json;

use crate::apiserver::ApiServer;
use crate::aws::allow;
use crate::scenario::{Scenario, scenario, scenario_on};

const PAGE: &str = include_str!("../../docs/injection.md");

#[test]
fn variable_by_admission_policy() {
    scenario("variable_by_admission_policy", async |it| {
        labelled_pods_read_their_bucket(it, "kubectl apply -f daemonset/inject/").await;
    });
}

#[test]
fn variable_by_admission_policy_on_1_34() {
    let server = ApiServer::before_1_36_with_policies;
    scenario_on("variable_by_admission_policy_on_1_34", server, async |it| {
        it.server.opt_in(&it.namespace);
        labelled_pods_read_their_bucket(it, "sed 's|k8s.io/v1$|&beta1|'").await;
    });
}

async fn labelled_pods_read_their_bucket(it: &Scenario<'_>, apply: &str) {
    it.aws.bucket("shop", "prices", "42");
    let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
    let role = it.aws.role("web", &trusted, &allow("s3:GetObject", "arn:aws:s3:::shop/*"));
    let (_, sts) = it.aws.open();
    let args = ["--sts-endpoint-url", &sts, "--require-authorization", "present"];
    let _agent = it.agent(&args).await;
    it.account_with("web", json!({"rolecall.dev/role-arn": role})).await;
    it.account_with("api", json!({"rolecall.dev/role-arn": role})).await;
    it.server.documented_in(PAGE, apply, &[]);

    // Nothing is written into a pod that nobody labelled, and its SDK finds no credentials.
    let read = json!({"Bucket": "shop", "Key": "prices"});
    let plain = it.start(it, &it.object("web", &[])).await;
    assert!(plain.variables.is_empty(), "{:?}", plain.variables);
    let said = plain.call("s3", "get_object", &read).expect_err("there is no variable");
    assert!(said.contains("NoCredentialsError"), "{said}");

    it.server.documented_in(PAGE, "kubectl label namespace", &[("NAMESPACE", &it.namespace)]);
    it.until_injected(it, &it.object("web", &[])).await;
    let pod = it.start(it, &it.object("web", &[])).await;
    assert_eq!(pod.must("s3", "get_object", &read)["Body"], "42");
    pod.is_denied_by("s3", "put_object", &json!({"Bucket": "shop", "Key": "prices", "Body": "1"}));
    it.start(it, &it.object("api", &[])).await.is_refused_with("StsDenied").await;
}

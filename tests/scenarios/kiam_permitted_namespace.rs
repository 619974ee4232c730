//! Pods as kiam served them: the role's name on the pod, one expression on its namespace, nothing on the ServiceAccount. The pod reads from S3.

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
fn kiam_permitted_namespace() {
    scenario("kiam_permitted_namespace", async |it| {
        it.aws.bucket("team-a", "prices", "42");
        it.aws.bucket("team-b", "salaries", "secret");
        // Another way than with kiam: the role trusts the ServiceAccount, and no server of ours.
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        it.aws.role("team-a-web", &trusted, &allow("s3:GetObject", "arn:aws:s3:::team-a/*"));
        it.aws.role("team-b-web", &trusted, &allow("s3:GetObject", "arn:aws:s3:::team-b/*"));
        let (_, sts) = it.aws.open();
        let base = format!("arn:aws:iam::{}:role/", moto::ACCOUNT);
        it.server.may_read_namespaces();
        let kiams = ["--role-source=pod-annotation", "--namespace-restrictions", "--allow-role", "*=*"];
        let flags = [&kiams[..], &["--base-role-arn", &base, "--sts-endpoint-url", &sts]].concat();
        let _agent = it.agent(&flags).await;
        it.annotate_namespace(json!({"iam.amazonaws.com/permitted": format!("{base}team-a-.*")})).await;

        it.account_with("web", Value::Null).await;
        let pod = it.start(it, &wants(it, "web", "team-a-web")).await;
        let read = pod.must("s3", "get_object", &json!({"Bucket": "team-a", "Key": "prices"}));
        assert_eq!(read["Body"], "42");
        pod.is_denied_by("s3", "get_object", &json!({"Bucket": "team-b", "Key": "salaries"}));

        // The namespace does not permit it, although STS would.
        it.start(it, &wants(it, "web", "team-b-web")).await.is_refused_with("RoleNotAllowed").await;
        // STS does not trust this ServiceAccount, although the namespace permits the role.
        it.account_with("api", Value::Null).await;
        it.start(it, &wants(it, "api", "team-a-web")).await.is_refused_with("StsDenied").await;
        // A namespace that says nothing permits nothing.
        let silent = it.namespace("kiam-silent-namespace", json!({})).await;
        silent.account_with("web", Value::Null).await;
        it.start(&silent, &wants(it, "web", "team-a-web")).await.is_refused_with("RoleNotAllowed").await;
    });
}

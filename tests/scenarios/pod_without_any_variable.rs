//! A pod with no variable at all, as for kube2iam and kiam: its SDK asks instance metadata, and finds its own role in the node's place.

use serde_json::json;

use crate::aws::allow;
use crate::net;
use crate::netns::Node;
use crate::node_metadata::Metadata;
use crate::scenario::{Scenario, scenario};

const IMDS: [&str; 2] = ["--imds-listen", "169.254.170.2:9904,[fd00:ec2::23]:9904"];

fn redirect(node: &Node) {
    net::install(node, &[IMDS[0], IMDS[1], "--metadata-guard", "enforce"]);
}

/// A pod whose environment says nothing of credentials.
async fn plain(it: &Scenario<'_>, account: &str) -> crate::scenario::App {
    it.start(it, &it.object(account, &[])).await
}

#[test]
fn pod_without_any_variable() {
    scenario("pod_without_any_variable", async |it| {
        let outside = it.node.outside();
        let node = Metadata::start(&outside);
        it.aws.bucket("shop", "prices", "42");
        it.aws.bucket("staff", "salaries", "secret");
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        let role = it.aws.role("shop-web", &trusted, &allow("s3:GetObject", "arn:aws:s3:::shop/*"));
        let (_, sts) = it.aws.open();
        redirect(it.node);
        let agent = it.agent(&[&["--sts-endpoint-url", &*sts][..], &IMDS].concat()).await;

        it.account_with("web", json!({"rolecall.dev/role-arn": role})).await;
        let pod = plain(it, "web").await;
        let read = pod.must("s3", "get_object", &json!({"Bucket": "shop", "Key": "prices"}));
        assert_eq!(read["Body"], "42");
        pod.is_denied_by("s3", "get_object", &json!({"Bucket": "staff", "Key": "salaries"}));

        // Whom the role does not trust, and who has none: neither finds the node's.
        it.account_with("api", json!({"rolecall.dev/role-arn": role})).await;
        it.account_with("nobody", json!({})).await;
        for (account, code) in [("api", "StsDenied"), ("nobody", "NoRole")] {
            let pod = plain(it, account).await;
            let said = pod.call("s3", "list_buckets", &json!({})).expect_err("there are no credentials");
            assert!(said.contains("NoCredentialsError"), "{account}: {said}");
            agent.line_about(&pod.uid, |line| line["code"] == code).await;
        }
        assert_eq!(node.asked(), Vec::<String>::new());
    });
}

//! The default way: the ServiceAccount names the role, STS trusts it by a web-identity token, the pod reads what the role may read in S3.

use serde_json::json;

use crate::aws::allow;
use crate::scenario::{VARIABLES, scenario};

const README: &str = include_str!("../../README.md");

#[test]
fn annotated_service_account() {
    scenario("annotated_service_account", async |it| {
        it.aws.bucket("shop", "prices", "42");
        it.aws.bucket("staff", "salaries", "secret");
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        let role = it.aws.role("shop-web", &trusted, &allow("s3:GetObject", "arn:aws:s3:::shop/*"));
        let (_, sts) = it.aws.open();
        let _agent = it.agent(&["--sts-endpoint-url", &sts]).await;

        it.account_with("web", json!({"rolecall.dev/role-arn": role})).await;
        for (name, value) in VARIABLES {
            assert!(README.contains(&format!("\n    {name}={value}")), "the README tells users of {name}");
        }
        let pod = it.pod("web").await;
        let read = pod.must("s3", "get_object", &json!({"Bucket": "shop", "Key": "prices"}));
        assert_eq!(read["Body"], "42");
        // S3 refuses what the role's policy does not name.
        pod.is_denied_by("s3", "get_object", &json!({"Bucket": "staff", "Key": "salaries"}));
        pod.is_denied_by("s3", "put_object", &json!({"Bucket": "shop", "Key": "prices", "Body": "1"}));

        // STS refuses whom the role does not trust, though the annotation is the same.
        it.account_with("api", json!({"rolecall.dev/role-arn": role})).await;
        it.pod("api").await.is_refused_with("StsDenied").await;
    });
}

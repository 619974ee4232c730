//! One ServiceAccount, one role that may only assume, and a role for each team, each at its own path. Containers choose by a variable.

use serde_json::{Value, json};

use crate::agent::SOON;
use crate::aws::allow;
use crate::scenario::{App, VARIABLES, scenario};

#[test]
fn several_roles_of_one_service_account() {
    scenario("several_roles_of_one_service_account", async |it| {
        it.aws.bucket("red", "plan", "red's");
        it.aws.bucket("blue", "plan", "blue's");
        let trusted = it.aws.trusts(it, "runner", "sts.amazonaws.com");
        let runner = "arn:aws:iam::123456789012:role/runner";
        let by_runner = |condition: Value| json!({"Effect": "Allow", "Principal": {"AWS": runner}, "Action": "sts:AssumeRole", "Condition": condition});
        let red = it.aws.role("red", &by_runner(json!({})), &allow("s3:GetObject", "arn:aws:s3:::red/*"));
        let with_id = by_runner(json!({"StringEquals": {"sts:ExternalId": "blue-7"}}));
        let blue = it.aws.role("blue", &with_id, &allow("s3:GetObject", "arn:aws:s3:::blue/*"));
        // One hop: its trust policy names the ServiceAccount, as the runner's does.
        let list = it.aws.role("list", &trusted, &allow("s3:ListAllMyBuckets", "*"));
        assert_eq!(it.aws.role("runner", &trusted, &allow("sts:AssumeRole", "*")), runner);
        let (emulator, sts) = it.aws.open();
        let _agent = it.agent(&["--sts-endpoint-url", &sts]).await;

        let annotations = json!({
            "rolecall.dev/role-arn": runner,
            "rolecall.dev/assume-role-arn.red": red,
            "rolecall.dev/assume-role-arn.blue": blue,
            "rolecall.dev/external-id.blue": "blue-7",
            "rolecall.dev/role-arn.list": list,
            "rolecall.dev/role-arn.typo": "list",
        });
        it.account_with("runner", annotations).await;
        let container = async |account: &str, role: &str| -> App {
            let url = format!("{}/{role}", VARIABLES[0].1);
            let variables = [&[(VARIABLES[0].0, url.as_str())], &VARIABLES[1..]].concat();
            it.start(it, &it.object(account, &variables)).await
        };
        let read = |bucket: &str| json!({"Bucket": bucket, "Key": "plan"});
        let in_red = container("runner", "red").await;
        assert_eq!(in_red.must("s3", "get_object", &read("red"))["Body"], "red's");
        in_red.is_denied_by("s3", "get_object", &read("blue"));
        let in_blue = container("runner", "blue").await;
        assert_eq!(in_blue.must("s3", "get_object", &read("blue"))["Body"], "blue's");
        in_blue.is_denied_by("s3", "get_object", &read("red"));
        let in_list = container("runner", "list").await;
        in_list.must("s3", "list_buckets", &json!({}));
        in_list.is_denied_by("s3", "get_object", &read("red"));
        // The role without a name may do nothing but assume.
        let plain = it.pod("runner").await;
        plain.has_role(runner).await;
        plain.is_denied_by("s3", "get_object", &read("red"));
        // Three roles stand on the runner's session, and have cost it one call.
        let calls = emulator.calls().into_iter().filter(|calls| calls.role == runner);
        assert_eq!(calls.map(|calls| calls.received).sum::<u64>(), 1);

        for (role, refused) in [("green", "NoRole"), ("typo", "InvalidRole")] {
            let said = container("runner", role).await.call("s3", "list_buckets", &json!({})).unwrap_err();
            assert!(
                said.contains(refused) && said.contains(&format!("rolecall.dev/role-arn.{role}")),
                "{said}"
            );
        }
        // Another account with the same annotations, while all of that is warm, gets none of it.
        it.account_with(
            "stranger",
            json!({
                "rolecall.dev/role-arn": runner,
                "rolecall.dev/assume-role-arn.red": red,
            }),
        )
        .await;
        let to = "169.254.170.23:9902".parse().unwrap();
        let stranger = container("stranger", "red").await;
        stranger.until(to, SOON, |answer| answer.status == 403 && answer.code() == "StsDenied").await;
        let said = stranger.call("s3", "get_object", &read("red")).unwrap_err();
        assert!(said.contains("StsDenied"), "{said}");
    });
}

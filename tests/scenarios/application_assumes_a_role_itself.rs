//! An application that changes roles by itself, with the keys that it was served: its own AssumeRole, as Terraform or Velero configure it.

use serde_json::{Value, json};

use crate::aws::allow;
use crate::scenario::scenario;

#[test]
fn application_assumes_a_role_itself() {
    scenario("application_assumes_a_role_itself", async |it| {
        it.aws.bucket("state", "main", "{}");
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        let first = "arn:aws:iam::123456789012:role/pipeline";
        let by =
            |who: &str| json!({"Effect": "Allow", "Principal": {"AWS": who}, "Action": "sts:AssumeRole"});
        let state = it.aws.role("state", &by(first), &allow("s3:GetObject", "arn:aws:s3:::state/*"));
        let deploy = it.aws.role("deploy", &by(first), &allow("s3:PutObject", "*"));
        let others = it.aws.role("others", &by("arn:aws:iam::123456789012:role/other"), &allow("s3:*", "*"));
        let may = json!([allow("sts:AssumeRole", &state), allow("sts:AssumeRole", &others)]);
        assert_eq!(it.aws.role("pipeline", &trusted, &may), first);
        let (_, sts) = it.aws.open();
        let _agent = it.agent(&["--sts-endpoint-url", &sts]).await;

        it.account_with("web", json!({"rolecall.dev/role-arn": first})).await;
        let mut pod = it.pod("web").await;
        let object = json!({"Bucket": "state", "Key": "main"});
        pod.is_denied_by("s3", "get_object", &object);
        pod.variables.insert("AWS_ENDPOINT_URL_STS".into(), sts);
        let wanted = |role: &str| json!({"RoleArn": role, "RoleSessionName": "terraform"});
        let keys: Value = pod.must("sts", "assume_role", &wanted(&state))["Credentials"].clone();
        // Its own role may not, for moto; the other does not trust it, for the emulator.
        pod.is_denied_by("sts", "assume_role", &wanted(&deploy));
        pod.is_denied_by("sts", "assume_role", &wanted(&others));

        for (name, field) in [
            ("AWS_ACCESS_KEY_ID", "AccessKeyId"),
            ("AWS_SECRET_ACCESS_KEY", "SecretAccessKey"),
            ("AWS_SESSION_TOKEN", "SessionToken"),
        ] {
            pod.variables.insert(name.into(), keys[field].as_str().unwrap().into());
        }
        assert_eq!(pod.must("s3", "get_object", &object)["Body"], "{}");
        pod.is_denied_by("s3", "put_object", &json!({"Bucket": "state", "Key": "main", "Body": ""}));
    });
}

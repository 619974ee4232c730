//! As kube2iam and kiam work themselves: the pod names its role, and the node's instance profile assumes it. No token, no OIDC, no keys to keep.

use serde_json::{Value, json};

use crate::agent::ROLECALL;
use crate::aws::allow;
use crate::moto::ACCOUNT;
use crate::roles_anywhere_style_credential_process::session_of;
use crate::scenario::{Scenario, VARIABLES, scenario};
use crate::site::{Page, Site};

fn wants(it: &Scenario, account: &str, annotations: Value) -> Value {
    let mut object = it.object(account, &VARIABLES);
    object["metadata"]["annotations"] = annotations;
    object
}

#[test]
fn kube2iam_by_the_nodes_role() {
    scenario("kube2iam_by_the_nodes_role", async |it| {
        it.aws.bucket("shop", "prices", "42");
        let by = |who: &str| json!({"Effect": "Allow", "Principal": {"AWS": format!("arn:aws:iam::{ACCOUNT}:{who}")}, "Action": "sts:AssumeRole"});
        let any_role = allow("sts:AssumeRole", &format!("arn:aws:iam::{ACCOUNT}:role/*"));
        // EC2 would be who assumes the node's role; here a user is.
        let ec2 = it.aws.user("ec2", &any_role);
        let node = it.aws.role("node", &by("user/ec2"), &any_role);
        let may_read = allow("s3:GetObject", "arn:aws:s3:::shop/*");
        let web = it.aws.role("k2i-web", &by("role/node"), &may_read);
        it.aws.role("k2i-closed", &by("role/another"), &may_read);
        let (emulator, sts) = it.aws.open();
        let session = session_of(&node, ec2, &sts).await;

        // Its answers alone; that the agent asks by version 2, a unit test holds it to.
        let metadata = Site::serve(&[]).await;
        let word = Page { status: 200, headers: Vec::new(), body: "word".into() };
        metadata.pages.put("/latest/api/token", word);
        let role = Page { status: 200, headers: Vec::new(), body: "node".into() };
        metadata.pages.put("/latest/meta-data/iam/security-credentials/", role);
        let document = json!({
            "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": session.access_key_id,
            "SecretAccessKey": session.secret_access_key, "Token": session.session_token,
            "Expiration": session.expiration.to_string(),
        });
        metadata.pages.put("/latest/meta-data/iam/security-credentials/node", Page::json(document));

        it.server.may_read_namespaces();
        let base = format!("arn:aws:iam::{ACCOUNT}:role/");
        let allowed = format!("{}={base}k2i-*", it.name);
        let flags = ["--role-source=pod-annotation", "--base-role-arn", &base, "--allow-role", &allowed];
        let mut command = it.node.command(ROLECALL);
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{}", metadata.addr));
        let flags = [&flags[..], &["--sts-mode=assume-role", "--sts-endpoint-url", &sts]].concat();
        let agent = it.agent_by(command, &flags).await;
        agent.until_it_says("instance metadata at http://127.0.0.1").await;

        it.account_with("web", Value::Null).await;
        let pod = it.start(it, &wants(it, "web", json!({"iam.amazonaws.com/role": "k2i-web"}))).await;
        pod.has_role(&web).await;
        assert_eq!(pod.must("s3", "get_object", &json!({"Bucket": "shop", "Key": "prices"}))["Body"], "42");
        pod.is_denied_by("s3", "put_object", &json!({"Bucket": "shop", "Key": "prices", "Body": "1"}));
        let refused = async |annotations: Value, code: &str| {
            it.start(it, &wants(it, "web", annotations)).await.is_refused_with(code).await;
        };
        // It trusts another; the node's own role is not for pods; who it is, kiam's pods do not say themselves here.
        refused(json!({"iam.amazonaws.com/role": "k2i-closed"}), "StsDenied").await;
        refused(json!({"iam.amazonaws.com/role": "node"}), "RoleNotAllowed").await;
        let forged =
            json!({"iam.amazonaws.com/role": "k2i-web", "iam.amazonaws.com/session-name": "other.web"});
        refused(forged, "InvalidPlan").await;
        assert_eq!(emulator.received("AssumeRoleWithWebIdentity"), 0);
    });
}

//! IAM Roles Anywhere: a program prints a session's credentials, and the agent assumes the pods' roles by them.
//!
//! AWS's own helper shows a certificate to a service that does not exist here. What the agent sees of it is a program, its arguments and its
//! document, and those are real: the program is `cat`, and the document a session that STS has issued.

use std::fs;

use aws_sdk_sts::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sts::types::Credentials as Session;
use serde_json::json;

use crate::agent::ROLECALL;
use crate::aws::allow;
use crate::moto::{ACCOUNT, REGION};
use crate::scenario::scenario;

/// A session of `role`, as the user with these keys gets it of STS.
pub(crate) async fn session_of(role: &str, (id, secret): (String, String), sts: &str) -> Session {
    let config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(sts)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .credentials_provider(Credentials::new(id, secret, None, None, "user"))
        .build();
    let call =
        aws_sdk_sts::Client::from_conf(config).assume_role().role_arn(role).role_session_name("node-1");
    call.send().await.unwrap().credentials.unwrap()
}

#[test]
fn roles_anywhere_style_credential_process() {
    scenario("roles_anywhere_style_credential_process", async |it| {
        let key = it.aws.key();
        let by = |who: &str| json!({"Effect": "Allow", "Principal": {"AWS": format!("arn:aws:iam::{ACCOUNT}:{who}")}, "Action": "sts:AssumeRole"});
        let any_role = allow("sts:AssumeRole", &format!("arn:aws:iam::{ACCOUNT}:role/*"));
        let (id, secret) = it.aws.user("anywhere", &any_role);
        let node = it.aws.role("node", &by("user/anywhere"), &any_role);
        let web = it.aws.role("web", &by("role/node"), &allow("kms:Encrypt", "*"));
        let closed = it.aws.role("closed", &by("user/anywhere"), &allow("kms:Encrypt", "*"));
        let (emulator, sts) = it.aws.open();

        let session = session_of(&node, (id, secret), &sts).await;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let document = json!({
            "Version": 1, "AccessKeyId": session.access_key_id, "SecretAccessKey": session.secret_access_key,
            "SessionToken": session.session_token, "Expiration": session.expiration.to_string(),
        });
        fs::write(at("document.json"), document.to_string()).unwrap();
        let process = format!("[default]\ncredential_process = /bin/cat {}\n", at("document.json").display());
        fs::write(at("config"), process).unwrap();

        let mut command = it.node.command(ROLECALL);
        command.env("AWS_CONFIG_FILE", at("config"));
        let allowed = format!("{}=arn:aws:iam::{ACCOUNT}:role/*", it.name);
        let args = ["--sts-endpoint-url", &sts, "--sts-mode", "assume-role", "--allow-role", &allowed];
        let agent = it.agent_by(command, &args).await;

        // A session makes sessions of an hour at most, which is asked for instead of twelve.
        it.account_with("web", json!({"rolecall.dev/role-arn": web, "rolecall.dev/session-duration": "12h"}))
            .await;
        let pod = it.pod("web").await;
        pod.must("kms", "encrypt", &json!({"KeyId": key, "Plaintext": "text"}));
        pod.is_denied_by("kms", "list_keys", &json!({}));
        // It trusts whoever holds the certificate, not what that one has become.
        it.account_with("api", json!({"rolecall.dev/role-arn": closed})).await;
        it.pod("api").await.is_refused_with("StsDenied").await;
        assert_eq!(emulator.received("AssumeRoleWithWebIdentity"), 0);
        let said = agent.output();
        for secret in [session.secret_access_key, session.session_token] {
            assert!(!said.contains(&secret), "{said}");
        }
    });
}

//! An operator as external-secrets, Flux and KEDA are: it mints tokens of the ServiceAccounts that tenants name to it, and shows them to STS
//! itself. Beside us nothing changes for it, our policy about tokens included; and its own pod may have a role by us at the same time.

use std::io::Write;

use serde_json::{Value, json};

use crate::aws::allow;
use crate::scenario::{VARIABLES, scenario};

#[test]
fn external_secrets_like_operator_mints_its_own_tokens() {
    scenario("external_secrets_like_operator_mints_its_own_tokens", async |it| {
        let secret = it.aws.secret("database", "hunter2");
        let tenant = it.namespace("external-secrets-tenant", json!({})).await;
        let trusted = it.aws.trusts(&tenant, "store", "sts.amazonaws.com");
        let of_tenant = it.aws.role("tenant", &trusted, &allow("secretsmanager:GetSecretValue", "*"));
        let trusted = it.aws.trusts(it, "operator", "sts.amazonaws.com");
        let of_operator = it.aws.role("operator", &trusted, &allow("secretsmanager:ListSecrets", "*"));
        let (_, sts) = it.aws.open();
        let _agent = it.agent(&["--sts-endpoint-url", &sts]).await;

        it.account_with("operator", json!({"rolecall.dev/role-arn": of_operator})).await;
        for account in ["store", "other"] {
            tenant.account_with(account, Value::Null).await;
        }
        it.server.kubectl(&[
            "create",
            "clusterrole",
            "external-secrets-like",
            "--verb=create",
            "--resource=serviceaccounts/token",
        ]);
        let to = format!("--serviceaccount={}:operator", it.name);
        it.server.kubectl(&[
            "create",
            "clusterrolebinding",
            "external-secrets-like",
            "--clusterrole=external-secrets-like",
            &to,
        ]);
        let itself = format!("--as=system:serviceaccount:{}:operator", it.name);
        let mint = |account: &str| {
            let tenant = ["-n", &tenant.namespace, "--audience=sts.amazonaws.com", "--duration=2h"];
            it.server.kubectl(&[&["create", "token", account, &itself], &tenant[..]].concat())
        };

        // As its own library does it: AssumeRoleWithWebIdentity with the token that it has just minted.
        let for_tenant = async |account: &str| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(mint(account).trim().as_bytes()).unwrap();
            let path = file.path().to_str().unwrap().to_owned();
            let variables = [
                ("AWS_ROLE_ARN", &*of_tenant),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", &path),
                ("AWS_ENDPOINT_URL_STS", &sts),
            ];
            let pod = it.start(it, &it.object("operator", &[&VARIABLES[..], &variables].concat())).await;
            (file, pod)
        };
        let (_file, pod) = for_tenant("store").await;
        let read = pod.must("secretsmanager", "get_secret_value", &json!({"SecretId": secret}));
        assert_eq!(read["SecretString"], "hunter2");
        pod.is_denied_by("secretsmanager", "list_secrets", &json!({}));
        let (_file, pod) = for_tenant("other").await;
        let said = pod.call("secretsmanager", "get_secret_value", &json!({"SecretId": secret})).unwrap_err();
        assert!(said.contains("AccessDenied") && said.contains("AssumeRoleWithWebIdentity"), "{said}");

        // For itself it has what its own ServiceAccount has, by us.
        let own = it.pod("operator").await;
        own.must("secretsmanager", "list_secrets", &json!({}));
        own.is_denied_by("secretsmanager", "get_secret_value", &json!({"SecretId": secret}));
    });
}

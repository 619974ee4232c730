//! A real LocalStack as the STS and as the services: an application knows its address and nothing else. LocalStack judges neither tokens nor
//! policies, so whoever may have a role is the agent's business alone; what it does keep apart is accounts.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command};

use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::moto::REGION;
use crate::netns::NODE_IP;
use crate::scenario::{Scenario, VARIABLES, boto3, scenario};
use crate::sdk::{Environment, tool};

/// LocalStack's own, which the keys `test` have, too.
const ROLE: &str = "arn:aws:iam::000000000000:role/web";
const TEAM: &str = "arn:aws:iam::111122223333:role/team";

#[test]
fn localstack_as_the_sts() {
    scenario("localstack_as_the_sts", async |it| {
        let localstack = LocalStack::start(it);
        let key = localstack.owner("kms", "create_key", &json!({}))["KeyMetadata"]["KeyId"].clone();
        let secret = json!({"Name": "shop/database", "SecretString": "hunter2"});
        let secret = localstack.owner("secretsmanager", "create_secret", &secret)["ARN"].clone();
        let here = json!({"LocationConstraint": REGION});
        let bucket = json!({"Bucket": "shop", "CreateBucketConfiguration": here});
        localstack.owner("s3", "create_bucket", &bucket);
        localstack.owner("s3", "put_object", &json!({"Bucket": "shop", "Key": "prices", "Body": "42"}));

        let allowed = [ROLE, TEAM].map(|role| format!("{}={role}", it.namespace));
        let _agent = it
            .agent(&[
                "--sts-endpoint-url",
                &localstack.url,
                "--allow-role",
                &allowed[0],
                "--allow-role",
                &allowed[1],
            ])
            .await;
        let variables = [&VARIABLES[..], &[("AWS_ENDPOINT_URL", &localstack.url)]].concat();

        it.account_with("web", json!({"rolecall.dev/role-arn": ROLE})).await;
        let web = it.start(it, &it.object("web", &variables)).await;
        web.has_role(ROLE).await;
        let identity = web.must("sts", "get_caller_identity", &json!({}));
        let session = format!("arn:aws:sts::000000000000:assumed-role/web/{}.web", it.namespace);
        assert_eq!(identity["Arn"], session.as_str());
        let sealed = web.must("kms", "encrypt", &json!({"KeyId": key, "Plaintext": "the root key"}));
        let opened = web.must("kms", "decrypt", &json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
        assert_eq!(opened["Plaintext"], "the root key");
        let wanted = json!({"SecretId": secret});
        assert_eq!(web.must("secretsmanager", "get_secret_value", &wanted)["SecretString"], "hunter2");
        let prices = json!({"Bucket": "shop", "Key": "prices"});
        assert_eq!(web.must("s3", "get_object", &prices)["Body"], "42");

        // By a second hop the account is another, and its keys open nothing of the first.
        let chain = json!({
            "rolecall.dev/role-arn": ROLE,
            "rolecall.dev/assume-role-arn": TEAM,
            "rolecall.dev/external-id": "shop-42",
            "rolecall.dev/session-tags": "kubernetes-namespace",
        });
        it.account_with("team", chain).await;
        let team = it.start(it, &it.object("team", &variables)).await;
        team.has_role(TEAM).await;
        assert_eq!(team.must("sts", "get_caller_identity", &json!({}))["Account"], "111122223333");
        let said = team.call("secretsmanager", "get_secret_value", &wanted).expect_err("another account's");
        assert!(said.contains("You can't access a secret from a different AWS account"), "{said}");
        let said =
            team.call("kms", "encrypt", &json!({"KeyId": key, "Plaintext": "x"})).expect_err("the same");
        assert!(said.contains("NotFoundException"), "{said}");

        // What docs/other-sts.md says that it does not judge: tokens, roles, policies.
        let nobody = json!({"RoleArn": TEAM, "RoleSessionName": "me", "WebIdentityToken": "no token"});
        web.must("sts", "assume_role_with_web_identity", &nobody);
        let deny = json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "*"}]});
        localstack.owner("s3", "put_bucket_policy", &json!({"Bucket": "shop", "Policy": deny.to_string()}));
        web.must("s3", "get_object", &prices);

        // So the agent refuses: a role that the namespace may not have, a namespace that may have none, an account without one.
        it.account_with("admin", json!({"rolecall.dev/role-arn": "arn:aws:iam::000000000000:role/admin"}))
            .await;
        it.start(it, &it.object("admin", &variables)).await.is_refused_with("RoleNotAllowed").await;
        let elsewhere = it.namespace("localstack-elsewhere", json!({})).await;
        elsewhere.account_with("web", json!({"rolecall.dev/role-arn": ROLE})).await;
        it.start(&elsewhere, &it.object("web", &variables)).await.is_refused_with("RoleNotAllowed").await;
        it.account_with("nobody", json!({})).await;
        it.start(it, &it.object("nobody", &variables)).await.is_refused_with("NoRole").await;
    });
}

/// Those of the container in daemonset/local/localstack.yaml.
fn variables(server: &ApiServer) -> Vec<(String, String)> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/daemonset/local/localstack.yaml");
    let objects: Value = server.json(&["apply", "--dry-run=client", "-f", file]);
    let env = &objects["items"][0]["spec"]["template"]["spec"]["containers"][0]["env"];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    env.as_array().unwrap().iter().map(|one| (text(&one["name"]), text(&one["value"]))).collect()
}

/// Ends with this value.
struct LocalStack {
    process: Child,
    url: String,
    _home: tempfile::TempDir,
}

impl LocalStack {
    /// On the node, which has no way to the Internet: it asks nobody.
    fn start(it: &Scenario<'_>) -> Self {
        let (home, at) = (tempfile::tempdir().unwrap(), format!("{NODE_IP}:4566"));
        let (log, writer) = std::io::pipe().unwrap();
        let mut command = Command::new(tool("localstack", "localstack_python"));
        command
            .args(["-m", "localstack.runtime.main"])
            .env_clear()
            .envs([
                ("PATH", std::env::var_os("PATH").unwrap()),
                ("HOME", home.path().into()),
                ("TMPDIR", home.path().into()),
                ("PYTHONUNBUFFERED", "1".into()),
                ("GATEWAY_LISTEN", (&at).into()),
            ])
            .envs(variables(it.server))
            .stdout(writer.try_clone().unwrap())
            .stderr(writer);
        let mut process = command.spawn().unwrap();
        // It holds the other end of the pipe, too.
        drop(command);
        let mut lines = BufReader::new(log).lines().map_while(Result::ok);
        let mut said = String::new();
        let ready = lines.by_ref().inspect(|line| said += &format!("{line}\n")).any(|line| line == "Ready.");
        std::thread::spawn(move || lines.for_each(|line| eprintln!("localstack: {line}")));
        assert!(ready, "localstack ended: {:?}: {said}", process.wait());
        Self { process, url: format!("http://{at}"), _home: home }
    }

    /// As whoever has LocalStack at hand: any key is good.
    fn owner(&self, service: &str, operation: &str, parameters: &Value) -> Value {
        let environment = Environment::new()
            .region(REGION)
            .with("AWS_ENDPOINT_URL", &self.url)
            .with("AWS_ACCESS_KEY_ID", "test")
            .with("AWS_SECRET_ACCESS_KEY", "test");
        boto3(&environment, service, operation, parameters)
    }
}

impl Drop for LocalStack {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

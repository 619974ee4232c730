//! A real MinIO as the STS and as the S3: it believes the API server's tokens as those of an OpenID provider, and its role's ARN has no
//! account. The agent asks it through a gateway that has it below a path.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::netns::NODE_IP;
use crate::scenario::{Scenario, VARIABLES, boto3, scenario};
use crate::sdk::{Environment, tool};
use crate::stub::{Does, Stub};

const ROOT: (&str, &str) = ("root", "rootpassword");

#[test]
fn minio_style_arn_behind_a_path_prefix() {
    scenario("minio_style_arn_behind_a_path_prefix", async |it| {
        let minio = Minio::start(it);
        minio.root("create_bucket", &json!({"Bucket": "shop"}));
        minio.root("put_object", &json!({"Bucket": "shop", "Key": "prices", "Body": "42"}));
        assert!(minio.role.starts_with("arn:minio:iam:::role/"), "{}", minio.role);

        let at = minio.at.parse().unwrap();
        let gateway = Stub::at("127.0.0.1:0", None, Does::Below("/tenants/a/sts", at)).await;
        let sts = format!("http://{}/tenants/a/sts/", gateway.addr);
        let allowed = format!("{}=arn:minio:iam:::role/*", it.namespace);
        let _agent = it.agent(&["--sts-endpoint-url", &sts, "--allow-role", &allowed]).await;

        it.account_with("web", json!({"rolecall.dev/role-arn": minio.role})).await;
        let s3 = format!("http://{}", minio.at);
        let variables = [&VARIABLES[..], &[("AWS_ENDPOINT_URL_S3", &s3)]].concat();
        let pod = it.start(it, &it.object("web", &variables)).await;
        pod.has_role(&minio.role).await;
        let document = pod.credentials("169.254.170.23:9902".parse().unwrap()).await;
        assert_eq!(document.get("AccountId"), None, "{document}");
        assert_eq!(gateway.only_request().line(), "POST /tenants/a/sts/ HTTP/1.1");
        let read = pod.must("s3", "get_object", &json!({"Bucket": "shop", "Key": "prices"}));
        assert_eq!(read["Body"], "42");
        // The provider's role policy is `readonly`.
        pod.is_denied_by("s3", "put_object", &json!({"Bucket": "shop", "Key": "prices", "Body": "1"}));

        // MinIO's own refusal, and the agent's: MinIO would give its one role to any ServiceAccount.
        it.account_with("typo", json!({"rolecall.dev/role-arn": "arn:minio:iam:::role/nobody-has-this"}))
            .await;
        let why = "STS refused arn:minio:iam:::role/nobody-has-this: ";
        it.pod("typo").await.comes_to_be_refused_saying("StsDenied", why).await;
        let elsewhere = it.namespace("minio-elsewhere", json!({})).await;
        elsewhere.account_with("web", json!({"rolecall.dev/role-arn": minio.role})).await;
        it.start(&elsewhere, &it.object("web", &variables)).await.is_refused_with("RoleNotAllowed").await;
    });
}

/// Ends with this value.
struct Minio {
    process: Child,
    at: String,
    /// As it prints it.
    role: String,
    _data: tempfile::TempDir,
}

impl Minio {
    fn start(it: &Scenario<'_>) -> Self {
        let (data, at) = (tempfile::tempdir().unwrap(), format!("{NODE_IP}:9000"));
        let mut process = Command::new(tool("minio", "minio"))
            .args(["server", "--address", &at, "--console-address", "127.0.0.1:9001"])
            .arg(data.path())
            .envs([
                ("MINIO_ROOT_USER", ROOT.0),
                ("MINIO_ROOT_PASSWORD", ROOT.1),
                ("MINIO_IDENTITY_OPENID_CONFIG_URL", &discovery(it)),
                ("MINIO_IDENTITY_OPENID_CLIENT_ID", "sts.amazonaws.com"),
                ("MINIO_IDENTITY_OPENID_ROLE_POLICY", "readonly"),
            ])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let role = log.by_ref().map_while(Result::ok).find_map(|line| {
            said += &format!("{line}\n");
            let (_, rest) = line.split_once("arn:minio:iam:::role/")?;
            let name: String =
                rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
            Some(format!("arn:minio:iam:::role/{name}"))
        });
        std::thread::spawn(move || log.map_while(Result::ok).for_each(|line| eprintln!("minio: {line}")));
        let Some(role) = role else { panic!("minio ended: {:?}: {said}", process.wait()) };
        Self { process, at, role, _data: data }
    }

    /// As MinIO's own root user.
    fn root(&self, operation: &str, parameters: &Value) {
        let environment = Environment::new()
            .region("us-east-1")
            .with("AWS_ENDPOINT_URL_S3", format!("http://{}", self.at))
            .with("AWS_ACCESS_KEY_ID", ROOT.0)
            .with("AWS_SECRET_ACCESS_KEY", ROOT.1);
        boto3(&environment, "s3", operation, parameters);
    }
}

impl Drop for Minio {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The API server's issuer as it would be published, on loopback: any path of a host has what that host is for.
fn discovery(it: &Scenario<'_>) -> String {
    let (issuer, jwks) = (it.server.issuer(), it.server.jwks());
    let (sender, started) = std::sync::mpsc::channel();
    let page = |body: String| {
        let length = body.len();
        Does::Answer(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        ))
    };
    it.node.serve(async move || {
        let keys = Stub::at("127.0.0.1:0", None, page(jwks)).await;
        let document = json!({"issuer": issuer, "jwks_uri": format!("http://{}/keys", keys.addr)});
        let site = Stub::at("127.0.0.1:0", None, page(document.to_string())).await;
        sender.send(site.addr).unwrap();
        std::future::pending::<()>().await;
        drop((keys, site));
    });
    format!("http://{}/.well-known/openid-configuration", started.recv().unwrap())
}

//! A kind cluster with an issuer of its own, as docs/oidc.md walks through it: `rolecall oidc` writes the documents, a static web host serves
//! them, STS fetches the keys from there. The pod reads an object from S3.

use std::process::Command;

use rolecall::emulator::IssuerConfig;
use serde_json::{Value, json};

use crate::agent::ROLECALL;
use crate::scenario::{allow, scenario};
use crate::site::{Page, Site, ca_file};

const DISCOVERY: &str = "/.well-known/openid-configuration";

/// What `rolecall oidc` prints.
fn oidc(args: &[&str]) -> Value {
    let output = Command::new(ROLECALL).arg("oidc").args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn kind_walkthrough_self_hosted_issuer() {
    scenario("kind_walkthrough_self_hosted_issuer", async |it| {
        let kubeconfig = it.server.kubeconfig();
        let kubeconfig = kubeconfig.to_str().unwrap();
        let site = Site::https().await;
        let mut discovery = oidc(&["discovery", "--kubeconfig", kubeconfig]);
        // The test's issuer is a name that nothing on this machine answers to, so the document names the host that does.
        discovery["jwks_uri"] = format!("{}/keys.json", site.url()).into();
        let keys = oidc(&["jwks", "--kubeconfig", kubeconfig]);
        site.pages.put(DISCOVERY, Page::json(&discovery));
        site.pages.put("/keys.json", Page::json(&keys));

        let account = format!("{}/web", it.name);
        let trust = ["trust-policy", "--account", crate::moto::ACCOUNT, "--cluster", kubeconfig];
        let trust = oidc(&[&trust[..], &["--service-account", &account]].concat());
        it.aws.configure(|aws| {
            aws.issuers[0] = IssuerConfig {
                url: it.server.issuer(),
                discovery_url: Some(format!("{}{DISCOVERY}", site.url())),
                ca_file: Some(ca_file()),
                ..IssuerConfig::default()
            };
        });
        it.aws.bucket("walkthrough", "hello", "world");
        let may = allow("s3:GetObject", "arn:aws:s3:::walkthrough/*");
        let role = it.aws.role("walkthrough", &trust["Statement"][0], &may);
        let (_, sts) = it.aws.open();
        let _agent = it.agent(&["--sts-endpoint-url", &sts]).await;

        it.account_with("web", json!({"rolecall.dev/role-arn": role})).await;
        let pod = it.pod("web").await;
        // The web host is on this thread, which a call of the SDK blocks: STS fetches the keys now.
        pod.has_role(&role).await;
        let read = pod.must("s3", "get_object", &json!({"Bucket": "walkthrough", "Key": "hello"}));
        assert_eq!(read["Body"], "world");
        pod.is_denied_by("s3", "put_object", &json!({"Bucket": "walkthrough", "Key": "hello", "Body": "x"}));

        it.account_with("api", json!({"rolecall.dev/role-arn": role})).await;
        it.pod("api").await.is_refused_with("StsDenied").await;
    });
}

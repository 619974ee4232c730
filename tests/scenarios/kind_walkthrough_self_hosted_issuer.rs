//! A kind cluster with an issuer of its own, step by step as docs/oidc.md walks through it: `rolecall oidc` writes the documents, a static
//! web host serves them, kube-apiserver has the page's flags, `--check` finds nothing wrong, and STS fetches the keys from the host that the
//! tokens name. The pod reads an object from S3.

use rolecall::emulator::IssuerConfig;
use serde_json::json;

use crate::apiserver::ApiServer;
use crate::aws::allow;
use crate::scenario::scenario_on;
use crate::site::{Site, ca_file, oidc};

/// On the scenario's own node, whose loopback is nobody else's.
const HOST: (&str, u16) = ("https://localhost:8444", 8444);
const BELOW: &str = "/cluster-a";

#[test]
fn kind_walkthrough_self_hosted_issuer() {
    let url = format!("{}{BELOW}", HOST.0);
    scenario_on(
        "kind_walkthrough_self_hosted_issuer",
        || ApiServer::self_hosted(&url),
        async |it| {
            let kubeconfig = it.server.kubeconfig();
            let (kubeconfig, ca) = (kubeconfig.to_str().unwrap(), ca_file());
            let check =
                ["discovery", "--kubeconfig", kubeconfig, "--check", &url, "--ca-file", ca.to_str().unwrap()];
            let site = Site::https_at(HOST.1).await;
            let unpublished = oidc(&check).await;
            assert!(unpublished.code == 1 && unpublished.out.contains("status 404"), "{unpublished:?}");
            // Steps 1 and 2. Step 3 is how the API server was started.
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().to_str().unwrap();
            oidc(&["discovery", "--kubeconfig", kubeconfig, "--issuer", &url, "--out", out]).await.good();
            site.pages.put_folder(
                BELOW,
                folder.path(),
                &[".well-known/openid-configuration", "openid/v1/jwks"],
            );
            // Step 4.
            oidc(&check).await.good();
            // Step 5; `--cluster` may be a kubeconfig, whose API server says by which issuer it signs.
            let provider = oidc(&["provider", "--cluster", kubeconfig]).await.json();
            assert_eq!(provider["Url"], *url);
            let trust = ["trust-policy", "--account", crate::moto::ACCOUNT, "--cluster", kubeconfig];
            let account = format!("{}/web", it.name);
            let trust = oidc(&[&trust[..], &["--service-account", &account]].concat()).await.json();

            it.aws.configure(|aws| {
                aws.issuers[0] =
                    IssuerConfig { url: url.clone(), ca_file: Some(ca_file()), ..IssuerConfig::default() };
            });
            it.aws.bucket("walkthrough", "hello", "world");
            let may = allow("s3:GetObject", "arn:aws:s3:::walkthrough/*");
            let role = it.aws.role("walkthrough", &trust["Statement"][0], &may);
            let (_, sts) = it.aws.open();
            // The agent's own token, which the API server made for its old issuer's audience, is as good as before.
            let _agent = it.agent(&["--sts-endpoint-url", &sts]).await;

            it.account_with("web", json!({"rolecall.dev/role-arn": role})).await;
            let pod = it.pod("web").await;
            // The web host is on this thread, which a call of the SDK blocks: STS fetches the keys now.
            pod.has_role(&role).await;
            let read = pod.must("s3", "get_object", &json!({"Bucket": "walkthrough", "Key": "hello"}));
            assert_eq!(read["Body"], "world");
            pod.is_denied_by(
                "s3",
                "put_object",
                &json!({"Bucket": "walkthrough", "Key": "hello", "Body": "x"}),
            );

            it.account_with("api", json!({"rolecall.dev/role-arn": role})).await;
            it.pod("api").await.is_refused_with("StsDenied").await;
        },
    );
}

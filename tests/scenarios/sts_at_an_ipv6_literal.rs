//! An STS without a name: an IPv6 address, a port and a path behind a gateway, whose certificate is for that address and by a private CA.
//! The pod reads a secret.

use serde_json::json;

use crate::aws::allow;
use crate::netns::NODE_IP_V6;
use crate::pki::Authority;
use crate::scenario::scenario;
use crate::stub::{Does, Stub};

#[test]
fn sts_at_an_ipv6_literal() {
    scenario("sts_at_an_ipv6_literal", async |it| {
        let secret = it.aws.secret("shop/database", "hunter2");
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        let role = it.aws.role("web", &trusted, &allow("secretsmanager:GetSecretValue", "*"));
        let (_, sts) = it.aws.open_at("127.0.0.1:0", None);
        let authority = Authority::new();
        let leaf = authority.leaf(&format!("IP:{NODE_IP_V6}"));
        // On a thread of its own: boto3's calls block this one.
        let (sender, started) = std::sync::mpsc::channel();
        it.node.serve(async move || {
            let gateway =
                Stub::at(&format!("[{NODE_IP_V6}]:0"), Some(&leaf), Does::Below("/tenants/a", sts)).await;
            sender.send((gateway.addr, gateway.seen())).unwrap();
            std::future::pending::<()>().await;
        });
        let (at, seen) = started.recv().unwrap();
        let url = format!("https://{at}/tenants/a");
        assert!(url.starts_with("https://[fd00:"), "{url}");
        let bundle = authority.bundle();
        let _agent =
            it.agent(&["--sts-endpoint-url", &url, "--sts-ca-bundle", bundle.to_str().unwrap()]).await;

        it.account_with("web", json!({"rolecall.dev/role-arn": role})).await;
        let pod = it.pod("web").await;
        pod.has_role(&role).await;
        let read = pod.must("secretsmanager", "get_secret_value", &json!({"SecretId": secret}));
        assert_eq!(read["SecretString"], "hunter2");
        pod.is_denied_by("secretsmanager", "delete_secret", &json!({"SecretId": secret}));
        it.account_with("api", json!({"rolecall.dev/role-arn": role})).await;
        it.pod("api").await.is_refused_with("StsDenied").await;
        let seen = seen.lock().unwrap();
        assert_eq!(seen[0].line(), "POST /tenants/a/ HTTP/1.1");
        assert!(
            seen[0].head.to_ascii_lowercase().contains(&format!("\r\nhost: {at}\r\n")),
            "{:?}",
            seen[0].head
        );
    });
}

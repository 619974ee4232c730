//! A node whose only way out is a proxy that asks for a password: the region's own endpoint is asked through a tunnel. Pods know nothing of it.

use serde_json::json;

use crate::agent::{SOON, until};
use crate::aws::allow;
use crate::scenario::scenario;
use crate::tunnel::Tunnel;

const STS: &str = "sts.eu-central-1.amazonaws.com";

#[test]
fn regional_call_through_an_https_proxy() {
    scenario("regional_call_through_an_https_proxy", async |it| {
        it.aws.bucket("shop", "prices", "42");
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        let role = it.aws.role("web", &trusted, &allow("s3:GetObject", "arn:aws:s3:::shop/*"));
        let tunnel = Tunnel::open(it, &[STS]);
        let agent = it.agent_by(tunnel.agent(it, "node:s3cr3t@"), &[]).await;
        agent.until_it_says(&format!("https://{STS}")).await;

        it.account_with("web", json!({"rolecall.dev/role-arn": role})).await;
        let pod = it.pod("web").await;
        pod.has_role(&role).await;
        let asked = tunnel.asked()[0].clone();
        assert_eq!(asked.line(), format!("CONNECT {STS}:443 HTTP/1.1"));
        // node:s3cr3t
        assert!(asked.head.contains("Proxy-Authorization: Basic bm9kZTpzM2NyM3Q=\r\n"), "{asked:?}");
        let read = pod.must("s3", "get_object", &json!({"Bucket": "shop", "Key": "prices"}));
        assert_eq!(read["Body"], "42");
        pod.is_denied_by("s3", "put_object", &json!({"Bucket": "shop", "Key": "prices", "Body": "1"}));
        it.account_with("api", json!({"rolecall.dev/role-arn": role})).await;
        it.pod("api").await.is_refused_with("StsDenied").await;

        // Without the proxy there is no way, and the log says which one was tried.
        let hint = format!("by way of the proxy http://{}: the proxy cannot be reached", tunnel.proxy);
        tunnel.close();
        it.account_with("late", json!({"rolecall.dev/role-arn": role})).await;
        let late = it.pod("late").await;
        let answer = until(
            SOON,
            || agent.output(),
            async || {
                let answer = late.get("169.254.170.23:9902".parse().unwrap()).await;
                agent.output().contains(&hint).then_some(answer)
            },
        )
        .await;
        assert_eq!(answer.code(), "StsUnavailable");
        assert!(!agent.output().contains("s3cr3t") && !agent.output().contains("bm9kZTpzM2NyM3Q"));
    });
}

//! A node whose only way out is a proxy that asks for a password: the region's own endpoint is asked through a tunnel. Pods know nothing of it.

use serde_json::json;

use crate::agent::{ROLECALL, SOON, until};
use crate::pki::Authority;
use crate::scenario::{allow, scenario};
use crate::stub::{Does, Stub, acceptor};

const STS: &str = "sts.eu-central-1.amazonaws.com";

#[test]
fn regional_call_through_an_https_proxy() {
    scenario("regional_call_through_an_https_proxy", async |it| {
        it.aws.bucket("shop", "prices", "42");
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        let role = it.aws.role("web", &trusted, &allow("s3:GetObject", "arn:aws:s3:::shop/*"));
        let authority = Authority::new();
        let (_, sts) = it.aws.open_at("127.0.0.1:0", Some(acceptor(&authority.leaf(&format!("DNS:{STS}")))));
        // On a thread of its own: boto3's calls block this one.
        let (sender, started) = std::sync::mpsc::channel();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let (closed, gone) = std::sync::mpsc::channel();
        it.node.serve(async move || {
            let proxy = Stub::at("127.0.0.1:0", None, Does::Proxy(sts)).await;
            sender.send((proxy.addr, proxy.seen())).unwrap();
            let _ = ended.await;
            proxy.close().await;
            let _ = closed.send(());
        });
        let (proxy, seen) = started.recv().unwrap();
        let mut command = it.node.command(ROLECALL);
        command
            .env("HTTPS_PROXY", format!("http://node:s3cr3t@{proxy}"))
            .env("NO_PROXY", ".cluster.local,10.0.0.0/8")
            .env("AWS_CA_BUNDLE", authority.bundle());
        let agent = it.agent_by(command, &[]).await;
        agent.until_it_says(&format!("https://{STS}")).await;

        it.account_with("web", json!({"rolecall.dev/role-arn": role})).await;
        let pod = it.pod("web").await;
        pod.has_role(&role).await;
        let tunnel = seen.lock().unwrap()[0].clone();
        assert_eq!(tunnel.line(), format!("CONNECT {STS}:443 HTTP/1.1"));
        // node:s3cr3t
        assert!(tunnel.head.contains("Proxy-Authorization: Basic bm9kZTpzM2NyM3Q=\r\n"), "{tunnel:?}");
        let read = pod.must("s3", "get_object", &json!({"Bucket": "shop", "Key": "prices"}));
        assert_eq!(read["Body"], "42");
        pod.is_denied_by("s3", "put_object", &json!({"Bucket": "shop", "Key": "prices", "Body": "1"}));
        it.account_with("api", json!({"rolecall.dev/role-arn": role})).await;
        it.pod("api").await.is_refused_with("StsDenied").await;

        // Without the proxy there is no way, and the log says which one was tried.
        drop(end);
        gone.recv().unwrap();
        let hint = format!("by way of the proxy http://{proxy}: the proxy cannot be reached");
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

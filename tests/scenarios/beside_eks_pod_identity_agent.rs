//! A node of EKS, whose own Pod Identity agent has the common address and its port 80. Pods with our variable have their roles from us; a pod
//! as EKS's webhook writes it, of the same ServiceAccount, goes on asking that agent, even where our flags want its port.
//!
//! EKS's agent and the service behind it are not run: in their place a session of a role is answered at that port.

use serde_json::{Value, json};

use crate::aws::allow;
use crate::moto::ACCOUNT;
use crate::net;
use crate::pod_as_the_aws_webhook_writes_it::written;
use crate::roles_anywhere_style_credential_process::session_of;
use crate::scenario::scenario;
use crate::stub::{Does, Stub};

#[test]
fn beside_eks_pod_identity_agent() {
    scenario("beside_eks_pod_identity_agent", async |it| {
        it.aws.bucket("shop", "prices", "42");
        it.aws.bucket("archive", "prices", "41");
        let service = it.aws.user("eks", &allow("sts:AssumeRole", "*"));
        let by = json!({"Effect": "Allow", "Principal": {"AWS": format!("arn:aws:iam::{ACCOUNT}:user/eks")}, "Action": "sts:AssumeRole"});
        let associated = it.aws.role("associated", &by, &allow("s3:GetObject", "arn:aws:s3:::archive/*"));
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        let role = it.aws.role("web", &trusted, &allow("s3:GetObject", "arn:aws:s3:::shop/*"));
        let (_, sts) = it.aws.open();

        // It was there first.
        net::remove(it.node);
        net::their_link(it.node);
        let session = session_of(&associated, service, &sts).await;
        let document = json!({
            "AccessKeyId": session.access_key_id, "SecretAccessKey": session.secret_access_key,
            "Token": session.session_token, "AccountId": ACCOUNT, "Expiration": session.expiration.to_string(),
        })
        .to_string();
        // On a thread of its own: boto3's calls block this one.
        let (sender, started) = std::sync::mpsc::channel();
        it.node.serve(async move || {
            let length = document.len();
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
            let answer = format!("{head}Content-Length: {length}\r\n\r\n{document}");
            let agent = Stub::at("169.254.170.23:80", None, Does::Answer(answer)).await;
            sender.send(agent.seen()).unwrap();
            std::future::pending::<()>().await;
        });
        let asked = started.recv().unwrap();

        // Each of ours says what it leaves.
        let said = net::install(it.node, &["--redirect-eks-port"]);
        assert!(said.contains("warning 169.254.170.23: held by link pod-id-link0, not ours"), "{said}");
        assert!(said.contains("its port 80 is another agent's (EKS Pod Identity?) and left alone"), "{said}");
        let listen = "169.254.170.23:80,169.254.170.23:9902";
        let agent = it.agent(&["--sts-endpoint-url", &sts, "--listen", listen]).await;
        agent.until_it_says(r#""message":"not listening here","address":"169.254.170.23:80""#).await;

        // In the middle of moving: annotated, and not every pod is restarted.
        it.account_with("web", json!({"rolecall.dev/role-arn": role})).await;
        let (theirs, audience) = ("http://169.254.170.23/v1/credentials", "pods.eks.amazonaws.com");
        let old = it.start(it, &written(it, "web", theirs, audience)).await;
        let new = it.pod("web").await;
        let read = |bucket: &str| -> Value { json!({"Bucket": bucket, "Key": "prices"}) };
        assert_eq!(old.must("s3", "get_object", &read("archive"))["Body"], "41");
        old.is_denied_by("s3", "get_object", &read("shop"));
        for request in asked.lock().unwrap().iter() {
            let token = request.head.lines().find_map(|line| line.strip_prefix("Authorization: "));
            assert!(token.is_some_and(|token| token.starts_with("eyJ")), "{}", request.line());
        }
        let before = asked.lock().unwrap().len();
        assert_eq!(before, 2, "each call asks once");

        assert_eq!(new.must("s3", "get_object", &read("shop"))["Body"], "42");
        new.is_denied_by("s3", "get_object", &read("archive"));
        it.account_with("api", json!({"rolecall.dev/role-arn": role})).await;
        let api = it.pod("api").await;
        api.is_refused_with("StsDenied").await;
        assert_eq!(asked.lock().unwrap().len(), before, "ours ask us alone");
        // What it had been asked before would stand before this.
        agent.line_about(&api.uid, |line| line["code"] == "StsDenied").await;
        assert!(agent.lines_about(&old.uid).is_empty(), "{}", agent.output());
    });
}

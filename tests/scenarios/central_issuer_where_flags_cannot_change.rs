//! A managed control plane whose flags nobody can change, and whose issuer STS cannot reach: the central issuer signs for the agents,
//! STS believes its key, and the pod reads a secret from Secrets Manager.

use std::fs;

use serde_json::{Value, json};

use crate::aws::allow;
use crate::issuer::{self, Issuer};
use crate::scenario::scenario;
use rolecall::emulator::IssuerConfig;

const KEY: &str = include_str!("../oidc/rsa.key");

#[test]
fn central_issuer_where_flags_cannot_change() {
    scenario("central_issuer_where_flags_cannot_change", async |it| {
        issuer::server();
        let issuer = Issuer::start("central", KEY).await;
        // IAM knows this provider, and not the cluster's own.
        it.aws.configure(|aws| {
            aws.issuers[0] = IssuerConfig {
                url: issuer.url.clone(),
                ca_file: Some(issuer.ca()),
                ..IssuerConfig::default()
            };
        });
        let provider = issuer.url.trim_start_matches("https://");
        let trusts = |account: &str, namespace: &str| -> Value {
            let of_cluster = it.aws.trusts(it, account, "sts.amazonaws.com").to_string();
            let text = of_cluster.replace(&it.aws.issuer, provider).replace(&it.name, namespace);
            serde_json::from_str(&text).unwrap()
        };
        let secret = it.aws.secret("shop/db", "hunter2");
        let read = allow("secretsmanager:GetSecretValue", "*");
        let role = it.aws.role("web", &trusts("web", &it.name), &read);
        // This one counts by tags as well, and whoever comes without them is refused.
        let mut counted = trusts("tagged", &it.name);
        counted["Action"] =
            json!(["sts:AssumeRoleWithWebIdentity", "sts:TagSession", "sts:SetSourceIdentity"]);
        counted["Condition"]["StringEquals"]["aws:RequestTag/kubernetes-namespace"] = it.name.clone().into();
        counted["Condition"]["StringEquals"]["sts:SourceIdentity"] = format!("{}.tagged", it.name).into();
        let tagged = it.aws.role("tagged", &counted, &allow("secretsmanager:GetSecretValue", "*"));
        let (_, sts) = it.aws.open();

        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("token");
        let (door, ca) = (issuer.door(), issuer.ca());
        let agent = it
            .agent(&[
                "--sts-endpoint-url",
                &sts,
                "--token-source=issuer",
                "--issuer-url",
                &door,
                "--issuer-ca-bundle",
                ca.to_str().unwrap(),
                "--issuer-token-file",
                own.to_str().unwrap(),
            ])
            .await;
        // As the kubelet does, of the agent's own pod.
        let agents = format!("agent-{}", it.name);
        fs::write(&own, issuer::token("rolecall/rolecall", &agents, issuer::AUDIENCE)).unwrap();

        it.account_with("web", json!({"rolecall.dev/role-arn": role})).await;
        let pod = it.pod("web").await;
        pod.has_role(&role).await;
        let value = pod.must("secretsmanager", "get_secret_value", &json!({"SecretId": secret}));
        assert_eq!(value["SecretString"], "hunter2");
        pod.is_denied_by("secretsmanager", "delete_secret", &json!({"SecretId": secret}));
        // Which token it was stands in both audit lines.
        let line = agent.line_about(&pod.uid, |line| line["code"] == "ok").await;
        let id = line["token.id"].as_str().unwrap();
        issuer.until_it_says(&format!("\"token.id\":\"{id}\"")).await;

        it.account_with("tagged", json!({"rolecall.dev/role-arn": tagged})).await;
        let pod = it.pod("tagged").await;
        pod.is_refused_with("StsDenied").await;
        let asks = json!({
            "rolecall.dev/role-arn": tagged,
            "rolecall.dev/session-tags": "kubernetes-namespace,kubernetes-pod-name",
            "rolecall.dev/source-identity": "{namespace}.{service-account}",
        });
        it.annotate("tagged", asks).await;
        let to = "169.254.170.23:9902".parse().unwrap();
        pod.until(to, crate::agent::SOON, |answer| answer.status == 200).await;
        pod.must("secretsmanager", "get_secret_value", &json!({"SecretId": secret}));

        // STS refuses whom the role does not trust.
        it.account_with("api", json!({"rolecall.dev/role-arn": role})).await;
        it.pod("api").await.is_refused_with("StsDenied").await;
        agent.has_told_no_secret();
        assert!(!issuer.output().contains("eyJ"));
    });
}

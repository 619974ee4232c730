//! As external-secrets does it: the operator's ServiceAccount has a role that may only assume, and a team's role, which trusts that one
//! alone, holds the rights. External id and session tags are what the team's role asks for.

use serde_json::json;

use crate::agent::SOON;
use crate::aws::allow;
use crate::http::Answer;
use crate::scenario::{VARIABLES, scenario};

#[test]
fn external_secrets_style_chain() {
    scenario("external_secrets_style_chain", async |it| {
        let secret = it.aws.secret("shop/database", "hunter2");
        let trusted = it.aws.trusts(it, "external-secrets", "sts.amazonaws.com");
        let operator = "arn:aws:iam::123456789012:role/external-secrets";
        let team = it.aws.role(
            "shop-secrets",
            &json!({
                "Effect": "Allow",
                "Principal": {"AWS": operator},
                "Action": ["sts:AssumeRole", "sts:TagSession"],
                "Condition": {"StringEquals": {
                    "sts:ExternalId": "shop-42",
                    "aws:RequestTag/kubernetes-namespace": &it.namespace,
                    "aws:RequestTag/kubernetes-service-account": "external-secrets",
                }},
            }),
            &allow("secretsmanager:GetSecretValue", "*"),
        );
        // A role that the team's role does not trust, and that may ask for it.
        let other_trusted = it.aws.trusts(it, "other", "sts.amazonaws.com");
        let other = it.aws.role("other", &other_trusted, &allow("sts:AssumeRole", &team));
        assert_eq!(it.aws.role("external-secrets", &trusted, &allow("sts:AssumeRole", &team)), operator);
        let (emulator, sts) = it.aws.open();
        let agent = it.agent(&["--sts-endpoint-url", &sts]).await;

        let annotations = json!({
            "rolecall.dev/role-arn": operator,
            "rolecall.dev/assume-role-arn": team,
            "rolecall.dev/external-id": "shop-42",
            "rolecall.dev/session-tags": "kubernetes-namespace,kubernetes-service-account",
        });
        it.account_with("external-secrets", annotations.clone()).await;
        let (pod, to) = (it.pod("external-secrets").await, "169.254.170.23:9902".parse().unwrap());
        let read = pod.must("secretsmanager", "get_secret_value", &json!({"SecretId": secret}));
        assert_eq!(read["SecretString"], "hunter2");
        pod.has_role(&team).await;
        let put = json!({"SecretId": secret, "SecretString": "x"});
        pod.is_denied_by("secretsmanager", "put_secret_value", &put);

        // A second pod costs no call at all.
        let second = it.pod("external-secrets").await;
        second.must("secretsmanager", "get_secret_value", &json!({"SecretId": secret}));
        let calls = |role: &str| {
            let calls = emulator.calls().into_iter().filter(|calls| calls.role == role);
            calls.map(|calls| calls.received).sum::<u64>()
        };
        assert_eq!((calls(operator), calls(&team)), (1, 1));

        // While that chain is warm: the same annotations, by an account that the first role does not trust.
        it.account_with("stranger", annotations.clone()).await;
        it.pod("stranger").await.is_refused_with("StsDenied").await;
        assert_eq!(calls(&team), 1, "nothing was signed for it");
        // Nor for the same name in another namespace.
        let elsewhere = it.namespace("elsewhere", json!({})).await;
        elsewhere.account_with("external-secrets", annotations.clone()).await;
        let namesake = it.start(&elsewhere, &it.object("external-secrets", &VARIABLES)).await;
        namesake.is_refused_with("StsDenied").await;
        assert_eq!(calls(&team), 1);
        // By one whose own role the team's does not trust.
        let mut by_other = annotations.clone();
        by_other["rolecall.dev/role-arn"] = other.clone().into();
        it.account_with("other", by_other).await;
        it.pod("other").await.is_refused_with("StsDenied").await;
        // The agent's log says which hop it was, and what each of the roles must allow.
        agent.until_it_says(&format!("{team} to {other}: AccessDenied")).await;

        // Without what the team's role asks for, the operator's own account is refused as well; put right, it is not.
        for (name, value) in [
            ("rolecall.dev/external-id", json!("shop-43")),
            ("rolecall.dev/session-tags", json!("kubernetes-namespace")),
        ] {
            let mut wrong = annotations.clone();
            wrong[name] = value;
            it.annotate("external-secrets", wrong).await;
            pod.until(to, SOON, |answer| answer.status == 403 && answer.code() == "StsDenied").await;
            it.annotate("external-secrets", annotations.clone()).await;
            pod.until(to, SOON, |answer| answer.status == 200).await;
        }
        // The account made again under its name is another one: for it each hop is asked for anew.
        let (before, keys) = ((calls(operator), calls(&team)), pod.credentials(to).await);
        it.send("DELETE", &it.path("serviceaccounts", "external-secrets"), "application/json", &json!({}))
            .await;
        it.account_with("external-secrets", annotations).await;
        let new =
            |answer: &Answer| answer.status == 200 && answer.json()["AccessKeyId"] != keys["AccessKeyId"];
        pod.until(to, SOON, new).await;
        assert_eq!((calls(operator), calls(&team)), (before.0 + 1, before.1 + 1));
    });
}

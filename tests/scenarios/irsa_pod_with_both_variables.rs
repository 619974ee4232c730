//! On the way from IRSA: the ServiceAccount has IRSA's annotation, the pod IRSA's variables, and ours beside them. The SDK prefers IRSA's, the
//! agent says so, and the day that the webhook is gone the same ServiceAccount's pods have the same role by us.

use std::io::Write;

use serde_json::json;

use crate::agent::{SOON, until};
use crate::aws::allow;
use crate::scenario::{VARIABLES, scenario};

#[test]
fn irsa_pod_with_both_variables() {
    scenario("irsa_pod_with_both_variables", async |it| {
        it.aws.bucket("shop", "prices", "42");
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        let role = it.aws.role("shop-web", &trusted, &allow("s3:GetObject", "arn:aws:s3:::shop/*"));
        let (_, sts) = it.aws.open();
        let agent = it.agent(&["--sts-endpoint-url", &sts]).await;
        for account in ["web", "api"] {
            it.account_with(account, json!({"eks.amazonaws.com/role-arn": role})).await;
        }

        // What the webhook adds, with the file that the kubelet would have written.
        let mut tokens = Vec::new();
        let mut with_both = Vec::new();
        for account in ["web", "api"] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            let path = file.path().to_str().unwrap().to_owned();
            let irsas = [
                ("AWS_ROLE_ARN", &*role),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", &path),
                ("AWS_ENDPOINT_URL_STS", &sts),
            ];
            let pod = it.start(it, &it.object(account, &[&VARIABLES[..], &irsas].concat())).await;
            let token = it.token(account, &pod.name, &pod.uid, "sts.amazonaws.com").await;
            file.write_all(token.as_bytes()).unwrap();
            tokens.push(file);
            with_both.push(pod);
        }
        let read = |pod: &crate::scenario::App| {
            pod.call("s3", "get_object", &json!({"Bucket": "shop", "Key": "prices"}))
        };
        assert_eq!(read(&with_both[0]).unwrap()["Body"], "42");
        with_both[0].is_denied_by(
            "s3",
            "put_object",
            &json!({"Bucket": "shop", "Key": "prices", "Body": "1"}),
        );
        // STS refuses the other ServiceAccount, and the SDK does not ask us instead.
        let said = read(&with_both[1]).unwrap_err();
        assert!(said.contains("AccessDenied") && said.contains("AssumeRoleWithWebIdentity"), "{said}");
        for pod in &with_both {
            let told = async || {
                let told = |line: &str| line.contains("SDKs prefer them") && line.contains(&pod.name);
                agent.output().lines().any(told).then_some(())
            };
            until(SOON, || agent.output(), told).await;
        }

        let ours = it.pod("web").await;
        assert_eq!(read(&ours).unwrap()["Body"], "42");
        let last = it.pod("api").await;
        last.is_refused_with("StsDenied").await;
        // What is to be absent would stand before this.
        agent.line_about(&last.uid, |line| line["code"] == "StsDenied").await;
        for pod in &with_both {
            assert!(agent.lines_about(&pod.uid).is_empty(), "the agent was asked: {}", agent.output());
        }
        let told = |line: &str| line.contains("SDKs prefer them") && line.contains(&ours.name);
        assert!(!agent.output().lines().any(told), "{}", agent.output());
    });
}

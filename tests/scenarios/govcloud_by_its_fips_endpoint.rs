//! GovCloud: a partition of its own, whose regional endpoint is the FIPS one. The pod reads a secret. Dual-stack FIPS has a name of its own,
//! and by that one it is asked from one flag to the next.

use std::collections::BTreeSet;

use serde_json::json;

use crate::aws::allow;
use crate::scenario::scenario_in;
use crate::tunnel::Tunnel;

/// With FIPS or without.
const STS: &str = "sts.us-gov-west-1.amazonaws.com";
const DUAL_STACK: &str = "sts-fips.us-gov-west-1.api.aws";

#[test]
fn govcloud_by_its_fips_endpoint() {
    scenario_in("govcloud_by_its_fips_endpoint", ("aws-us-gov", "us-gov-west-1"), async |it| {
        let secret = it.aws.secret("shop/database", "hunter2");
        assert!(secret.starts_with("arn:aws-us-gov:secretsmanager:us-gov-west-1:"), "{secret}");
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        let role = it.aws.role("web", &trusted, &allow("secretsmanager:GetSecretValue", "*"));
        let commercial = it.aws.twin_in_aws(&role);
        let tunnel = Tunnel::open(it, &[STS, DUAL_STACK]);
        let agent = it.agent_by(tunnel.agent(it, ""), &["--use-fips-endpoint"]).await;
        agent.until_it_says("use-fips-endpoint=true use-dualstack-endpoint=false").await;

        it.account_with("web", json!({"rolecall.dev/role-arn": role})).await;
        let pod = it.pod("web").await;
        pod.has_role(&role).await;
        let read = pod.must("secretsmanager", "get_secret_value", &json!({"SecretId": secret}));
        assert_eq!(read["SecretString"], "hunter2");
        pod.is_denied_by("secretsmanager", "delete_secret", &json!({"SecretId": secret}));

        // STS refuses whom the role does not trust.
        it.account_with("api", json!({"rolecall.dev/role-arn": role})).await;
        it.pod("api").await.is_refused_with("StsDenied").await;
        // This STS would give the role of `aws`; GovCloud's does not have it, and is not asked.
        let asked = tunnel.sts.received("AssumeRoleWithWebIdentity");
        it.annotate("web", json!({"rolecall.dev/role-arn": commercial})).await;
        let why = format!("{commercial} is in the partition aws, and this agent asks the STS of aws-us-gov");
        pod.comes_to_be_refused_saying("InvalidRole", &why).await;
        assert_eq!(tunnel.sts.received("AssumeRoleWithWebIdentity"), asked);
        it.annotate("web", json!({"rolecall.dev/role-arn": role})).await;
        let lines =
            || tunnel.asked().iter().map(|request| request.line().to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(lines(), [format!("CONNECT {STS}:443 HTTP/1.1")].into());
        agent.has_told_no_secret();

        drop(agent);
        let mut command = tunnel.agent(it, "");
        command.env("AWS_USE_FIPS_ENDPOINT", "true").env("AWS_USE_DUALSTACK_ENDPOINT", "true");
        let _agent = it.agent_by(command, &[]).await;
        pod.has_role(&role).await;
        assert!(lines().contains(&format!("CONNECT {DUAL_STACK}:443 HTTP/1.1")), "{:?}", lines());
        pod.must("secretsmanager", "get_secret_value", &json!({"SecretId": secret}));
    });
}

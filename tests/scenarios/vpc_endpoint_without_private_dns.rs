//! STS by a VPC endpoint's own name, on a node that is told no region: the name says it, and what signs the second hop is scoped to it.
//! The pod decrypts with KMS.

use serde_json::json;

use crate::agent::ROLECALL;
use crate::aws::allow;
use crate::netns::NODE_IP;
use crate::pki::Authority;
use crate::scenario::{knows, scenario};
use crate::stub::acceptor;

const NAME: &str = "vpce-0123456789abcdef0-abcdefgh.sts.eu-central-1.vpce.amazonaws.com";
/// What AWS's certificate names.
const CERTIFICATE: &str = "DNS:*.sts.eu-central-1.vpce.amazonaws.com";

#[test]
fn vpc_endpoint_without_private_dns() {
    scenario("vpc_endpoint_without_private_dns", async |it| {
        let key = it.aws.key();
        let trusted = it.aws.trusts(it, "vault", "sts.amazonaws.com");
        let first = it.aws.role("vault", &trusted, &allow("sts:AssumeRole", "*"));
        let by_first = json!({"Effect": "Allow", "Principal": {"AWS": first}, "Action": "sts:AssumeRole"});
        let seal = it.aws.role("seal", &by_first, &allow("kms:*crypt", "*"));
        let authority = Authority::new();
        // The private address that the name has in the VPC.
        let (sts, at) =
            it.aws.open_at(&format!("{NODE_IP}:443"), Some(acceptor(&authority.leaf(CERTIFICATE))));
        knows(NAME, &at.ip().to_string());
        let mut command = it.node.command(ROLECALL);
        command.env_remove("ROLECALL_REGION").env("AWS_CA_BUNDLE", authority.bundle());
        let url = format!("https://{NAME}");
        let agent = it.agent_by(command, &["--sts-endpoint-url", &url]).await;
        agent.until_it_says(&format!(r#""region":"eu-central-1","endpoint":"{url}""#)).await;

        let chain = json!({"rolecall.dev/role-arn": first, "rolecall.dev/assume-role-arn": seal});
        it.account_with("vault", chain.clone()).await;
        let pod = it.pod("vault").await;
        pod.has_role(&seal).await;
        assert_eq!((sts.received("AssumeRoleWithWebIdentity"), sts.received("AssumeRole")), (1, 1));
        let sealed = pod.must("kms", "encrypt", &json!({"KeyId": key, "Plaintext": "the root key"}));
        let opened = pod.must("kms", "decrypt", &json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
        assert_eq!(opened["Plaintext"], "the root key");
        pod.is_denied_by("kms", "schedule_key_deletion", &json!({"KeyId": key}));
        it.account_with("other", chain).await;
        it.pod("other").await.is_refused_with("StsDenied").await;
    });
}

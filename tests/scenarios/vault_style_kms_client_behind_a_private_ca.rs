//! What Vault's awskms seal does: encrypt and decrypt with a KMS key, by keys of an STS that has a private name and a private CA. Name and
//! CA are the agent's alone: no DNS override, no forged certificate and no bundle in the application. Then the CA is renewed.

use serde_json::json;

use crate::agent::{SOON, until};
use crate::aws::allow;
use crate::pki::{Authority, put};
use crate::scenario::{knows, scenario};
use crate::stub::acceptor;

const NAME: &str = "sts.internal.example";

#[test]
fn vault_style_kms_client_behind_a_private_ca() {
    scenario("vault_style_kms_client_behind_a_private_ca", async |it| {
        let key = it.aws.key();
        let trusted = it.aws.trusts(it, "vault", "sts.amazonaws.com");
        let role = it.aws.role("vault", &trusted, &allow("kms:*crypt", "*"));
        let (first, second) = (Authority::new(), Authority::new());
        let (_, at) = it.aws.open_at("127.0.0.1:0", Some(acceptor(&first.leaf(&format!("DNS:{NAME}")))));
        knows(NAME, "127.0.0.1");
        let mount = tempfile::tempdir_in("/run").unwrap();
        let bundle = mount.path().join("ca.crt");
        put(&first.bundle(), &bundle);
        let url = format!("https://{NAME}:{}", at.port());
        let agent =
            it.agent(&["--sts-endpoint-url", &url, "--sts-ca-bundle", bundle.to_str().unwrap()]).await;
        if !agent.output().contains("this kernel has no Landlock") {
            assert!(agent.output().contains("closed by Landlock"), "{}", agent.output());
        }

        let annotation = json!({"rolecall.dev/role-arn": role});
        it.account_with("vault", annotation.clone()).await;
        let vault = it.pod("vault").await;
        vault.has_role(&role).await;
        let sealed = vault.must("kms", "encrypt", &json!({"KeyId": key, "Plaintext": "the root key"}));
        let opened = vault.must("kms", "decrypt", &json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
        assert_eq!(opened["Plaintext"], "the root key");
        vault.is_denied_by("kms", "schedule_key_deletion", &json!({"KeyId": key}));
        it.account_with("other", annotation.clone()).await;
        it.pod("other").await.is_refused_with("StsDenied").await;

        // cert-manager renews the authority, and the kubelet mounts it; nobody restarts anything.
        put(&second.bundle(), &bundle);
        it.account_with("third", annotation).await;
        let third = it.pod("third").await;
        let hint = "put its CA into --sts-ca-bundle";
        until(
            SOON,
            || agent.output(),
            async || {
                let _ = third.get("169.254.170.23:9902".parse().unwrap()).await;
                agent.output().contains(hint).then_some(())
            },
        )
        .await;
        put(&first.bundle(), &bundle);
        third.is_refused_with("StsDenied").await;
        agent.until_it_says("--sts-ca-bundle has changed").await;
    });
}

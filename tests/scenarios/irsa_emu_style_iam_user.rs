//! No OIDC at all: one IAM user's keys in the agent's Secret, as with irsa-emu. The ServiceAccounts and pods are those that IRSA would have.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rolecall::emulator::Emulator;
use serde_json::{Value, json};

use crate::agent::{Agent, ROLECALL};
use crate::aws::allow;
use crate::moto::ACCOUNT;
use crate::scenario::{Scenario, scenario};

/// The agent's mounted Secret, which is replaced as the kubelet does it: the file is a link through `..data`, and that link is renamed.
pub(crate) struct Secret(tempfile::TempDir);

impl Secret {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        symlink("..data/credentials", folder.path().join("credentials")).unwrap();
        Self(folder)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.0.path().join("credentials")
    }

    pub(crate) fn write(&self, version: &str, (id, secret): &(String, String)) {
        let at = |name: &str| self.0.path().join(name);
        fs::create_dir(at(version)).unwrap();
        let keys = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        fs::write(at(version).join("credentials"), keys).unwrap();
        symlink(version, at("..new")).unwrap();
        fs::rename(at("..new"), at("..data")).unwrap();
    }
}

/// The agent by those keys, for the roles `k8s-…` and this namespace; not yet ready.
pub(crate) fn agent(it: &Scenario, sts: &str, file: &Path) -> Agent {
    let mut command = it.node.command(ROLECALL);
    command.env("AWS_SHARED_CREDENTIALS_FILE", file);
    command.env("ROLECALL_IMPERSONATE_NODE", "true");
    let allowed = format!("{}=arn:aws:iam::{ACCOUNT}:role/k8s-*", it.name);
    let (kubeconfig, socket) = (it.server.agent_kubeconfig(&it.name), format!("/run/{}.sock", it.name));
    let args = ["--sts-endpoint-url", sts, "--sts-mode", "assume-role", "--allow-role", &allowed];
    Agent::start_by(command, &it.name, &socket, &kubeconfig, &args)
}

/// A statement of a trust policy: that user may assume the role.
pub(crate) fn trusts(users: &[&str]) -> Value {
    let users: Vec<String> = users.iter().map(|name| format!("arn:aws:iam::{ACCOUNT}:user/{name}")).collect();
    json!({"Effect": "Allow", "Principal": {"AWS": users}, "Action": "sts:AssumeRole"})
}

pub(crate) fn assumes_k8s_roles() -> Value {
    allow("sts:AssumeRole", &format!("arn:aws:iam::{ACCOUNT}:role/k8s-*"))
}

/// STS was shown signatures, and never a token.
pub(crate) fn without_tokens(sts: &Emulator) {
    assert!(sts.received("AssumeRole") > 0);
    assert_eq!(sts.received("AssumeRoleWithWebIdentity"), 0);
}

#[test]
fn irsa_emu_style_iam_user() {
    scenario("irsa_emu_style_iam_user", async |it| {
        it.aws.bucket("shop", "prices", "42");
        it.aws.bucket("staff", "salaries", "secret");
        let keys = it.aws.user("rolecall", &assumes_k8s_roles());
        let may_read = allow("s3:GetObject", "arn:aws:s3:::shop/*");
        // What the token's subject is to web identity, the session's name is here: the role is one ServiceAccount's alone.
        let mut trusted = trusts(&["rolecall"]);
        trusted["Condition"] = json!({"StringEquals": {"sts:RoleSessionName": format!("{}.web", it.name)}});
        let web = it.aws.role("k8s-web", &trusted, &may_read);
        let others = it.aws.role("k8s-others", &trusts(&["somebody"]), &may_read);
        let admin = it.aws.role("admin", &trusts(&["rolecall"]), &allow("s3:*", "*"));
        let (emulator, sts) = it.aws.open();
        let secret = Secret::new();
        secret.write("..1", &keys);
        let agent = agent(it, &sts, &secret.file());
        agent.until_ready().await;
        agent.until_it_says(&format!("\"access_key_id\":\"{}\"", keys.0)).await;

        // As IRSA's users have it: its audience and the life of its token mean nothing here, and stop nothing.
        let irsa = json!({
            "eks.amazonaws.com/role-arn": web, "eks.amazonaws.com/audience": "sts.amazonaws.com",
            "eks.amazonaws.com/token-expiration": "86400", "eks.amazonaws.com/sts-regional-endpoints": "true",
        });
        it.account_with("web", irsa).await;
        let pod = it.pod("web").await;
        let read = pod.must("s3", "get_object", &json!({"Bucket": "shop", "Key": "prices"}));
        assert_eq!(read["Body"], "42");
        pod.is_denied_by("s3", "get_object", &json!({"Bucket": "staff", "Key": "salaries"}));
        without_tokens(&emulator);

        // Another ServiceAccount has another name, and a role that does not trust the user is none of ours.
        for (account, role) in [("api", &web), ("guest", &others)] {
            it.account_with(account, json!({"eks.amazonaws.com/role-arn": role})).await;
            it.pod(account).await.is_refused_with("StsDenied").await;
        }
        // The user may assume it; nobody has allowed it to this namespace.
        it.account_with("greedy", json!({"eks.amazonaws.com/role-arn": admin})).await;
        it.pod("greedy").await.is_refused_with("RoleNotAllowed").await;
        // A tenant does not choose the name that tells him from others.
        let forged =
            json!({"rolecall.dev/role-arn": web, "rolecall.dev/session-name": format!("{}.web", it.name)});
        it.account_with("forger", forged).await;
        it.pod("forger").await.is_refused_with("InvalidPlan").await;
        let said = agent.output();
        assert!(!said.contains(&keys.1), "the user's secret key is in the log: {said}");
    });
}

//! `--sts-mode=assume-role`: the agent's own credentials before the first hop.

use std::fs;

use tokio::task::JoinSet;

use super::*;
use crate::base_credentials::{BaseCredentials, Source};
use crate::fakes::ROLE;

const TEAM: &str = "arn:aws:iam::999988887777:role/team";

/// The agent's Secret: a file that the test writes.
struct Secret(tempfile::TempDir);

impl Secret {
    fn write(&self, id: &str) {
        let keys = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = secret\n");
        fs::write(self.0.path().join("credentials"), keys).unwrap();
    }
}

/// A world whose agent has no credentials of its own until the Secret is written.
fn by_agent() -> (World, Secret, JoinSet<()>) {
    let secret = Secret(tempfile::tempdir().unwrap());
    let file = secret.0.path().join("credentials").to_str().unwrap().to_owned();
    let variable = |name: &str| (name == "AWS_SHARED_CREDENTIALS_FILE").then(|| file.clone());
    let base = Arc::new(BaseCredentials::new(Source::choose(variable, &[]).unwrap()));
    let world = World::by_agent(&base);
    world.pod_with_role("web", "10.0.0.7");
    let mut tasks = JoinSet::new();
    world.app.keep_base(&base, &mut tasks);
    (world, secret, tasks)
}

#[tokio::test(start_paused = true)]
async fn the_agents_keys_sign_and_no_token_is_asked_for() {
    let (world, secret, _tasks) = by_agent();
    secret.write("AKIA1");
    let served = world.ask().await.1.unwrap();
    let asked = world.sts.asked_for(&served.access_key_id);
    assert_eq!((asked.signed_by.as_deref(), &*asked.token), (Some("AKIA1"), ""));
    assert_eq!((asked.plan.role.as_str(), asked.plan.session_name.as_str()), (ROLE, "shop.web"));
    assert_eq!((world.cluster.tokens().len(), served.token_id.clone()), (0, None));
    // A second hop stands on the first as it does on a token's.
    world.annotate("web", &[("rolecall.dev/role-arn", ROLE), ("rolecall.dev/assume-role-arn", TEAM)]);
    let served = world.ask().await.1.unwrap();
    let second = world.sts.asked_for(&served.access_key_id);
    assert_eq!(
        (second.plan.role.as_str(), second.signed_by.as_deref()),
        (TEAM, Some("ASIA0001.web")),
        "the first hop is the one that is cached"
    );
    assert_eq!((world.sts.calls(), world.cluster.tokens().len()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn who_asks_before_the_agent_has_credentials_is_answered_when_it_has_them() {
    let (world, secret, _tasks) = by_agent();
    let why = world.ask().await.1.unwrap_err();
    assert_eq!(why.code(), "StsUnavailable");
    assert!(
        why.to_string().contains("AWS_ACCESS_KEY_ID") && why.to_string().contains("credentials"),
        "{why}"
    );
    assert_eq!(world.sts.calls(), 0);
    secret.write("AKIA1");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.code().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_old_keys_ends_with_them() {
    let (world, secret, _tasks) = by_agent();
    secret.write("AKIAOLD");
    let unknown = sts::Error::Denied { role: ROLE.into(), code: "InvalidClientTokenId".into(), fix: "" };
    world.sts.fail(Some(unknown));
    for _ in 0..6 {
        assert_eq!(world.code().await, "StsDenied");
        tokio::time::sleep(MINUTE).await;
    }
    assert_eq!(world.code().await, "StsDenied");
    world.sts.fail(None);
    let calls = world.sts.calls();
    // In the first moments of a refusal that would hold for half a minute and more.
    secret.write("AKIANEW");
    tokio::time::sleep(Duration::from_secs(6)).await;
    let served = world.ask().await.1.unwrap();
    assert_eq!(world.sts.asked_for(&served.access_key_id).signed_by.as_deref(), Some("AKIANEW"));
    assert_eq!(world.sts.calls(), calls + 1);
}

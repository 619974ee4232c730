//! Plans follow pods: what is fetched ahead, what is dropped, and what a new pod changes.

use super::*;
use crate::fakes::{World, account, denied, pod};
use crate::identity::pods::Pod;

struct Followed {
    world: World,
    follower: tokio::task::JoinHandle<()>,
}

impl Followed {
    fn new() -> Self {
        Self::with(Ahead::Showing)
    }

    fn with(ahead: Ahead) -> Self {
        let world = World::new();
        let app = &world.app;
        let (pods, accounts) = (Arc::clone(&app.pods), Arc::clone(&app.accounts));
        let follower = tokio::spawn(follow(pods, accounts, Arc::clone(&app.cache), ahead));
        Self { world, follower }
    }

    /// Everything that is due has happened; no second passes that a back-off would notice.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    fn knows(&self, name: &str) -> bool {
        let plan = self.world.app.accounts.plan(&account(name), None).unwrap().unwrap();
        self.world.app.cache.knows(&plan.key())
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_fetch_is_ahead_of_the_first_question_for_pods_that_will_ask() {
    let node = Followed::new();
    node.world.pod_with_role("asks", "10.0.0.7");
    node.world.add_pod(pod("quiet", "10.0.0.8"));
    node.world.add_pod(Pod { asks: true, host_network: true, ..pod("host", "192.0.2.1") });
    for name in ["quiet", "host"] {
        node.world.annotate(name, &[("rolecall.dev/role-arn", crate::fakes::ROLE)]);
    }
    node.settle().await;
    let mut fetched = node.world.cluster.tokens();
    fetched.sort();
    assert_eq!(fetched, [pod("asks", "10.0.0.7").uid, pod("host", "192.0.2.1").uid]);
}

#[tokio::test(start_paused = true)]
async fn with_instance_metadata_every_pod_that_can_ask_there_is_fetched_for() {
    let node = Followed::with(Ahead::All);
    node.world.add_pod(pod("quiet", "10.0.0.8"));
    node.world.add_pod(Pod { host_network: true, ..pod("host", "192.0.2.1") });
    for name in ["quiet", "host"] {
        node.world.annotate(name, &[("rolecall.dev/role-arn", crate::fakes::ROLE)]);
    }
    node.settle().await;
    assert_eq!(node.world.cluster.tokens(), [pod("quiet", "10.0.0.8").uid]);
}

#[tokio::test(start_paused = true)]
async fn a_plan_goes_with_its_last_live_pod() {
    let node = Followed::new();
    node.world.pod_with_role("web", "10.0.0.7");
    let second = Pod { service_account: account("web"), ..pod("second", "10.0.0.8") };
    node.world.add_pod(second.clone());
    node.settle().await;
    node.world.remove_pod(&pod("web", "10.0.0.7").uid);
    node.settle().await;
    assert!(node.knows("web"), "one of its pods is still here");
    node.world.add_pod(Pod { finished: true, ..second });
    node.settle().await;
    assert!(!node.knows("web"), "a finished pod asks for nothing");
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert_eq!(node.world.sts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_changed_annotation_drops_the_old_plan_and_fetches_the_new_one() {
    let node = Followed::new();
    node.world.pod_with_role("web", "10.0.0.7");
    node.settle().await;
    let old = node.world.app.accounts.plan(&account("web"), None).unwrap().unwrap().key();
    node.world.annotate("web", &[("rolecall.dev/role-arn", "arn:aws:iam::123456789012:role/other")]);
    node.settle().await;
    assert!(node.knows("web") && !node.world.app.cache.knows(&old));
    node.world.annotate("web", &[]);
    node.settle().await;
    assert!(node.world.app.cache.status().is_empty(), "revoked: nothing is kept, nothing is renewed");
    assert_eq!(node.world.sts.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_new_pod_of_a_refused_plan_has_one_more_try() {
    let node = Followed::new();
    node.world.sts.fail(Some(denied()));
    node.world.pod_with_role("web", "10.0.0.7");
    node.settle().await;
    // The first pod was new as well; the next may count a minute later.
    tokio::time::sleep(Duration::from_secs(61)).await;
    let calls = node.world.sts.calls();
    node.world.add_pod(Pod { service_account: account("web"), ..pod("second", "10.0.0.8") });
    node.settle().await;
    assert_eq!(node.world.sts.calls(), calls + 1);
    node.world.add_pod(Pod {
        terminating: true,
        service_account: account("web"),
        ..pod("second", "10.0.0.8")
    });
    node.settle().await;
    assert_eq!(node.world.sts.calls(), calls + 1, "the same pod, changed, is no new one");
}

#[tokio::test(start_paused = true)]
async fn a_role_with_a_name_is_fetched_when_it_is_asked_for_and_kept_from_then_on() {
    let node = Followed::new();
    let (role, team) = (crate::fakes::ROLE, "arn:aws:iam::123456789012:role/team");
    node.world.pod_with_role("web", "10.0.0.7");
    let annotations = [("rolecall.dev/role-arn", role), ("rolecall.dev/assume-role-arn.team", team)];
    node.world.annotate("web", &annotations);
    node.settle().await;
    assert!(node.knows("web") && node.world.sts.calls_for(team).is_empty());
    let name = crate::role::RoleName::parse("team").unwrap();
    let plan = node.world.app.accounts.plan(&account("web"), Some(&name)).unwrap().unwrap();
    let ask = async || {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(900);
        node.world.app.cache.fresh_or_fetch(&plan, deadline).await.0
    };
    assert_eq!(ask().await, crate::cache::Lookup::Miss);
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    assert_eq!(ask().await, crate::cache::Lookup::Hit, "renewed, though nobody asked");
    assert!(node.world.sts.calls_for(team).iter().all(|call| call.signed_by.is_some()));
    node.world.annotate("web", &annotations[..1]);
    node.settle().await;
    assert!(node.knows("web") && !node.world.app.cache.knows(&plan.key()));
}

#[tokio::test(start_paused = true)]
async fn the_first_hop_of_a_default_role_is_fetched_ahead_as_well_and_goes_with_its_last_pod() {
    let node = Followed::new();
    let (role, team) = (crate::fakes::ROLE, "arn:aws:iam::123456789012:role/team");
    node.world.add_pod(Pod { asks: true, ..pod("web", "10.0.0.7") });
    node.world.annotate("web", &[("rolecall.dev/role-arn", role), ("rolecall.dev/assume-role-arn", team)]);
    node.settle().await;
    assert_eq!((node.world.sts.calls_for(role).len(), node.world.sts.calls_for(team).len()), (1, 1));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(node.world.app.cache.status().len(), 2, "the sweep lets the first hop be");
    node.world.remove_pod(&pod("web", "10.0.0.7").uid);
    node.settle().await;
    assert!(node.world.app.cache.status().is_empty());
}

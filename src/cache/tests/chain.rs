//! Two hops: what they share, what each remembers, and what ends both.

use super::*;
use crate::fakes::ROLE;
use crate::identity::pods::Pod;
use crate::role::By;

const TEAM: &str = "arn:aws:iam::999988887777:role/team";
const OTHER: &str = "arn:aws:iam::999988887777:role/other";
const CHAIN: [(&str, &str); 2] = [("rolecall.dev/role-arn", ROLE), ("rolecall.dev/assume-role-arn", TEAM)];

fn chain() -> World {
    let world = world();
    world.annotate("web", &CHAIN);
    world
}

fn spent() -> sts::Error {
    sts::Error::Denied { role: TEAM.into(), code: "ExpiredToken".into(), fix: "" }
}

impl World {
    /// Calls for the first role, and for the second.
    fn hops(&self) -> (usize, usize) {
        (self.sts.calls_for(ROLE).len(), self.sts.calls_for(TEAM).len())
    }

    async fn ask_for(&self, plan: &Arc<RolePlan>) -> Arc<Served> {
        self.app.cache.fresh_or_fetch(plan, Instant::now() + HOLD).await.1.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn the_second_hop_is_signed_with_the_session_of_the_first() {
    let world = chain();
    let served = world.ask().await.1.unwrap();
    let (first, second) = (&world.sts.calls_for(ROLE)[0], &world.sts.calls_for(TEAM)[0]);
    assert_eq!(first.token, crate::fakes::minted_for(&pod("web", "10.0.0.7").uid));
    assert_eq!((second.token.as_str(), second.signed_by.as_deref()), ("", Some("ASIA0001.web")));
    assert_eq!(served.access_key_id, "ASIA0002.web");
    assert!(served.token_id.is_some(), "the audit line joins the answer to the token that began it");
    let document: serde_json::Value = serde_json::from_slice(&served.body).unwrap();
    assert_eq!((&document["RoleArn"], &document["AccountId"]), (&TEAM.into(), &"999988887777".into()));
}

#[tokio::test(start_paused = true)]
async fn any_number_of_callers_of_several_plans_cause_one_flight_for_each_hop() {
    let world = chain();
    world.annotate(
        "web",
        &[
            CHAIN[0],
            CHAIN[1],
            ("rolecall.dev/assume-role-arn.other", OTHER),
            ("rolecall.dev/role-arn.first", ROLE),
        ],
    );
    world.sts.slow(Duration::from_millis(400));
    let roles = world.app.accounts.roles_of(&pod("web", "10.0.0.7")).unwrap();
    let plans: Vec<_> = roles.plans().cloned().collect();
    assert_eq!(plans.len(), 3);
    let asking = plans.iter().cycle().take(300).map(|plan| world.ask_for(plan));
    futures_util::future::join_all(asking).await;
    assert_eq!(world.hops(), (1, 1));
    assert_eq!((world.sts.calls_for(OTHER).len(), world.cluster.tokens().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn only_the_hop_that_has_something_of_the_pod_is_the_pods_own() {
    let world = chain();
    let per_pod = ("rolecall.dev/session-tags", "kubernetes-pod-name,kubernetes-namespace");
    world.annotate("web", &[CHAIN[0], CHAIN[1], per_pod]);
    for n in 0..5 {
        let pod = Pod { service_account: account("web"), ..pod(&format!("web-{n}"), "10.0.0.9") };
        world.add_pod(pod.clone());
        let served = world.ask_for(&world.plan().for_pod(&pod)).await;
        let By::AssumeRole { tags, .. } = world.sts.asked_for(&served.access_key_id).plan.by else {
            panic!()
        };
        assert_eq!(tags[0].value(), &*pod.name);
    }
    assert_eq!(world.hops(), (1, 5));
    // A session named for its pod is so on both hops: the second role may look at the first one's name.
    world.annotate("web", &[CHAIN[0], CHAIN[1], ("rolecall.dev/session-name", "{pod}")]);
    for n in 0..2 {
        let pod = Pod { service_account: account("web"), ..pod(&format!("web-{n}"), "10.0.0.9") };
        world.ask_for(&world.plan().for_pod(&pod)).await;
        assert_eq!(world.cluster.tokens().last(), Some(&pod.uid));
    }
    assert_eq!(world.hops(), (3, 7));
}

#[tokio::test(start_paused = true)]
async fn the_warm_first_hop_of_one_account_is_of_no_use_to_another() {
    let world = chain();
    assert_eq!(world.code().await, "ok");
    world.pod_with_role("stranger", "10.0.0.8");
    world.annotate("stranger", &CHAIN);
    // The first role's trust policy names `web` alone.
    world.sts.fail_role(ROLE, Some(denied()));
    let plan = world.app.accounts.plan(&account("stranger"), None).unwrap().unwrap();
    for _ in 0..3 {
        let (_, answer) = world.app.cache.fresh_or_fetch(&plan, Instant::now() + HOLD).await;
        assert_eq!(answer.unwrap_err().code(), "StsDenied");
        tokio::time::sleep(MINUTE).await;
    }
    assert_eq!(world.hops().1, 1, "nothing was signed for the stranger");
    assert_eq!(world.code().await, "ok", "and `web` has noticed nothing");
    // Nor to the same name in another namespace, nor to an account made again under the old name.
    let elsewhere =
        crate::identity::pods::ServiceAccountName { namespace: "back".into(), name: "web".into() };
    let annotations = CHAIN.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let of = |account: &_, uid: &str| {
        let defaults = crate::role::Defaults::of_node("node-1");
        Arc::new(RolePlan::from_annotations(account, uid, &annotations, &defaults).unwrap())
    };
    for plan in [of(&elsewhere, "uid-web"), of(&account("web"), "uid-web-2")] {
        assert!(plan.hops().all(|hop| !world.app.cache.knows(&hop.key())));
    }
    assert!(of(&account("web"), "uid-web").hops().all(|hop| world.app.cache.knows(&hop.key())));
}

#[tokio::test(start_paused = true)]
async fn at_least_twenty_minutes_are_left_of_a_second_hop_whenever_a_pod_asks() {
    let world = chain();
    let begun = Instant::now();
    while begun.elapsed() < 180 * MINUTE {
        let (_, served) = world.ask().await;
        assert!(served.unwrap().good_until + LEAST_LEFT >= Instant::now() + 20 * MINUTE);
        tokio::time::advance(Duration::from_secs(20)).await;
        tokio::task::yield_now().await;
    }
    let (first, second) = world.hops();
    assert!((6..=8).contains(&first) && (6..=8).contains(&second), "{first} {second}");
    // Each renewal was signed with keys that STS had given out in the last half hour.
    for call in world.sts.calls_for(TEAM) {
        let signer = world.sts.asked_for(call.signed_by.as_ref().unwrap());
        assert!(call.at - signer.at <= 30 * MINUTE, "{:?}", call.at - signer.at);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_first_hop_is_told_as_its_own_and_costs_one_call() {
    let world = chain();
    world.sts.fail_role(
        ROLE,
        Some(sts::Error::Denied { role: ROLE.into(), code: "AccessDenied".into(), fix: "" }),
    );
    for _ in 0..5 {
        let err = world.ask().await.1.unwrap_err();
        assert_eq!(err.code(), "StsDenied");
        assert!(err.to_string().contains(ROLE) && !err.to_string().contains(TEAM), "{err}");
    }
    assert_eq!(world.hops(), (1, 0));
    world.sts.fail_role(ROLE, None);
    let mended = world.recovery(SECOND).await;
    assert!(mended < Duration::from_secs(10), "{:?}", mended);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_mended_late_is_seen_when_the_first_hops_own_refusal_ends() {
    let world = chain();
    world.sts.fail_role(ROLE, Some(denied()));
    world.refused_for(30 * MINUTE).await;
    world.sts.fail_role(ROLE, None);
    let mended = world.recovery(SECOND).await;
    assert!(mended <= Duration::from_secs(62), "not one minute for each hop: {:?}", mended);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_second_hop_leaves_the_first_alone() {
    let world = chain();
    world.sts.fail_role(TEAM, Some(denied()));
    assert_eq!(world.code().await, "StsDenied");
    world.refused_for(20 * MINUTE).await;
    let (first, second) = world.hops();
    assert_eq!(first, 1);
    assert!((18..=45).contains(&second), "{second}");
    assert_eq!(world.app.cache.states(), States { fresh: 1, stale: 0, failed: 1 });
    // A new pod forgets it, as it does for one hop.
    world.sts.fail_role(TEAM, None);
    world.app.cache.new_pod(&world.plan());
    assert_eq!(world.code().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn keys_that_sts_no_longer_takes_are_fetched_anew_in_the_same_flight() {
    let world = chain();
    world.ask_for(world.plan().before().unwrap()).await;
    world.sts.fail_next([spent()]);
    assert_eq!(world.code().await, "ok");
    assert_eq!(world.hops(), (2, 2));
    // Where new ones are refused as well, that is an answer, and no loop.
    world.sts.fail_role(OTHER, Some(spent()));
    world.annotate("web", &[CHAIN[0], ("rolecall.dev/assume-role-arn", OTHER)]);
    assert_eq!(world.code().await, "StsDenied");
    assert_eq!((world.hops().0, world.sts.calls_for(OTHER).len()), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn without_the_kube_api_a_chain_that_was_warm_lasts_as_long_as_one_hop_does() {
    let world = chain();
    assert_eq!(world.code().await, "ok");
    world.cluster.fail(Some(cluster::Error::Away("the test said so".into())));
    tokio::time::sleep(60 * MINUTE - Duration::from_secs(15)).await;
    assert_eq!(world.code().await, "ok");
    // The last token ended at an hour; what it gave lives on, and signs for the second hop to the end.
    tokio::time::sleep(58 * MINUTE).await;
    assert_eq!(world.code().await, "ok");
    tokio::time::sleep(61 * MINUTE).await;
    assert_eq!(world.code().await, "KubeUnavailable");
    world.cluster.fail(None);
    let recovered = world.recovery(Duration::ZERO).await;
    assert!(recovered < Duration::from_secs(5), "{:?}", recovered);
}

#[tokio::test(start_paused = true)]
async fn the_first_question_five_seconds_after_a_long_outage_is_answered_through_both_hops() {
    let world = chain();
    for outage in 0..8 {
        world.sts.fail(Some(away()));
        world.app.cache.retain([]);
        let begun = Instant::now();
        while begun.elapsed() < 5 * MINUTE + outage * Duration::from_millis(777) {
            assert_eq!(world.code().await, "StsUnavailable");
        }
        world.sts.fail(None);
        let recovered = world.recovery(Duration::ZERO).await;
        assert!(recovered < Duration::from_secs(5), "{:?}", recovered);
    }
}

#[tokio::test(start_paused = true)]
async fn not_before_ends_both_hops() {
    let world = chain();
    world.ask().await.1.unwrap();
    let moment = time::plus(time::now(), Duration::from_millis(20)).to_string();
    world.annotate("web", &[CHAIN[0], CHAIN[1], ("rolecall.dev/not-before", &moment)]);
    while time::now() < moment.parse().unwrap() {
        std::hint::spin_loop();
    }
    let fresh = world.ask().await.1.unwrap();
    assert_eq!(world.hops(), (2, 2));
    assert_eq!(world.sts.asked_for(&fresh.access_key_id).signed_by.as_deref(), Some("ASIA0003.web"));
}

#[tokio::test(start_paused = true)]
async fn a_second_hop_is_as_old_as_the_first() {
    let world = chain();
    let first = world.ask_for(world.plan().before().unwrap()).await;
    while time::now() <= first.issued {
        std::hint::spin_loop();
    }
    assert_eq!(world.ask().await.1.unwrap().issued, first.issued, "what revokes the one revokes the other");
}

#[tokio::test(start_paused = true)]
async fn a_first_hop_stays_while_a_plan_stands_on_it_and_no_longer() {
    let world = chain();
    assert_eq!(world.code().await, "ok");
    let plan = world.plan();
    world.app.cache.retain([&plan]);
    assert!(plan.hops().all(|hop| world.app.cache.knows(&hop.key())));
    tokio::time::sleep(100 * MINUTE).await;
    assert_eq!(world.code().await, "ok");
    world.app.cache.retain([]);
    let calls = world.sts.calls();
    tokio::time::sleep(100 * MINUTE).await;
    assert!(!plan.hops().any(|hop| world.app.cache.knows(&hop.key())));
    assert_eq!(world.sts.calls(), calls, "neither is renewed");
}

#[tokio::test(start_paused = true)]
async fn a_second_hop_whose_first_was_dropped_under_it_goes_on_with_a_new_one() {
    let world = chain();
    assert_eq!(world.code().await, "ok");
    let plan = world.plan();
    let (_, dropped) = world.app.cache.entries.remove(&plan.before().unwrap().key()).unwrap();
    dropped.stop();
    for _ in 0..4 {
        tokio::time::sleep(30 * MINUTE).await;
        assert_eq!(world.code().await, "ok");
    }
    assert!(world.app.cache.knows(&plan.before().unwrap().key()));
}

#[tokio::test(start_paused = true)]
async fn a_shown_token_helps_the_second_hop_that_waits_for_it() {
    let world = chain();
    world.cluster.fail(Some(cluster::Error::NotShown("sts.amazonaws.com".into())));
    assert_eq!(world.code().await, "AuthorizationRequired");
    world.cluster.fail(None);
    assert_eq!(world.code().await, "AuthorizationRequired", "no time changes anything");
    world.app.cache.token_shown(&world.plan());
    assert_eq!(world.code().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn passing_trouble_of_the_first_hop_is_told_for_what_it_is() {
    let world = chain();
    world.sts.fail_role(ROLE, Some(sts::Error::Throttled { code: "Throttling".into() }));
    assert_eq!(world.code().await, "StsThrottled");
    world.sts.fail_role(ROLE, None);
    world.cluster.fail(Some(cluster::Error::Away("the test said so".into())));
    tokio::time::sleep(MINUTE).await;
    world.app.cache.retain([]);
    assert_eq!(world.code().await, "KubeUnavailable");
    let (begun, calls) = (Instant::now(), world.cluster.tokens().len() as u64);
    while begun.elapsed() < 10 * MINUTE {
        world.ask().await.1.unwrap_err();
    }
    let calls = world.cluster.tokens().len() as u64 - calls;
    assert!(calls <= 10 * 60 / ASKED_FOR.as_secs() + 4, "two hops ask no more often than one: {calls}");
}

#[tokio::test(start_paused = true)]
async fn a_new_pod_forgets_a_refusal_of_the_first_hop() {
    let world = chain();
    world.sts.fail_role(ROLE, Some(denied()));
    assert_eq!(world.code().await, "StsDenied");
    world.sts.fail_role(ROLE, None);
    assert_eq!(world.code().await, "StsDenied", "it is remembered");
    world.app.cache.new_pod(&world.plan());
    assert_eq!(world.code().await, "ok");
}

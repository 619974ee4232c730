//! Credentials' life on a paused clock, between two fake doors.

use super::*;
use crate::cluster;
use crate::fakes::{World, account, denied, pod};
use crate::sts;

const HOLD: Duration = Duration::from_millis(900);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn world() -> World {
    let world = World::new();
    world.pod_with_role("web", "10.0.0.7");
    world
}

impl World {
    fn plan(&self) -> Arc<RolePlan> {
        self.app.accounts.plan(&account("web"), None).unwrap().unwrap()
    }

    async fn ask(&self) -> (Lookup, Result<Arc<Served>, Error>) {
        self.app.cache.fresh_or_fetch(&self.plan(), Instant::now() + HOLD).await
    }

    async fn code(&self) -> &'static str {
        self.ask().await.1.map_or_else(|err| err.code(), |_| "ok")
    }

    /// How long it takes until a question is answered, with so long between two of them.
    async fn recovery(&self, pause: Duration) -> Duration {
        let begun = Instant::now();
        while self.code().await != "ok" {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        begun.elapsed()
    }

    /// Asks each second for so long, and is refused each time.
    async fn refused_for(&self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.ask().await.1.unwrap_err();
            tokio::time::sleep(SECOND).await;
        }
    }
}

fn away() -> sts::Error {
    sts::Error::Away("the test said so".into())
}

#[tokio::test(start_paused = true)]
async fn callers_that_arrive_together_share_one_exchange() {
    let world = world();
    world.sts.slow(Duration::from_millis(500));
    let answers = futures_util::future::join_all((0..1000).map(|_| world.ask())).await;
    let first = answers[0].1.as_ref().unwrap();
    assert!(answers.iter().all(|(_, served)| Arc::ptr_eq(served.as_ref().unwrap(), first)));
    assert_eq!(answers.iter().filter(|(lookup, _)| *lookup == Lookup::Miss).count(), 1);
    assert_eq!((world.sts.calls(), world.cluster.tokens().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_flight_goes_on_when_its_callers_have_hung_up() {
    let world = world();
    world.sts.slow(Duration::from_secs(3));
    assert_eq!(world.code().await, "StsUnavailable");
    let hung_up = tokio::time::timeout(Duration::from_millis(1), world.ask()).await;
    assert!(hung_up.is_err());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.ask().await.0, Lookup::Hit);
    assert_eq!(world.sts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn at_least_twenty_minutes_are_left_whenever_a_pod_asks() {
    let world = world();
    let begun = Instant::now();
    while begun.elapsed() < 180 * MINUTE {
        let (_, served) = world.ask().await;
        assert!(served.unwrap().good_until + LEAST_LEFT >= Instant::now() + 20 * MINUTE);
        tokio::time::advance(Duration::from_secs(20)).await;
        tokio::task::yield_now().await;
    }
    // Renewed at 27 to 30 minutes: seven sessions at most, and no more calls than that.
    assert!((6..=8).contains(&world.sts.calls()), "{}", world.sts.calls());
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_keeps_the_old_credentials_until_a_minute_is_left() {
    let world = world();
    let served = world.ask().await.1.unwrap();
    world.sts.fail(Some(away()));
    tokio::time::sleep(58 * MINUTE).await;
    let (lookup, still) = world.ask().await;
    assert_eq!((lookup, Arc::ptr_eq(&still.unwrap(), &served)), (Lookup::Hit, true));
    assert_eq!(world.app.cache.states(), States { fresh: 0, stale: 1, failed: 0 });
    tokio::time::sleep(MINUTE + Duration::from_secs(1)).await;
    assert_eq!(world.code().await, "StsUnavailable", "expired is never served");
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_twenty_five_minutes_is_not_seen() {
    for begins in [0, 10, 26, 29, 31, 55] {
        let world = world();
        assert_eq!(world.code().await, "ok");
        tokio::time::sleep(begins * MINUTE).await;
        world.sts.fail(Some(away()));
        for _ in 0..25 {
            tokio::time::sleep(MINUTE).await;
            assert_eq!(world.ask().await.0, Lookup::Hit, "begun at {begins} min");
        }
        world.sts.fail(None);
        tokio::time::sleep(MINUTE).await;
        assert_eq!(
            world.app.cache.states(),
            States { fresh: 1, stale: 0, failed: 0 },
            "begun at {begins} min"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_question_five_seconds_after_a_long_outage_is_answered() {
    let world = world();
    world.sts.fail(Some(away()));
    let begun = Instant::now();
    while begun.elapsed() < 20 * MINUTE {
        assert_eq!(world.code().await, "StsUnavailable");
    }
    world.sts.fail(None);
    let recovered = world.recovery(Duration::ZERO).await;
    assert!(recovered < Duration::from_secs(5), "{:?}", recovered);
}

#[tokio::test(start_paused = true)]
async fn trouble_is_held_for_the_whole_deadline() {
    let world = world();
    world.sts.fail(Some(away()));
    for _ in 0..3 {
        let begun = Instant::now();
        assert_eq!(world.code().await, "StsUnavailable");
        assert_eq!(
            begun.elapsed(),
            HOLD,
            "an SDK that retries without a pause has its tries used up at once"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_one_call_per_back_off_not_one_per_question() {
    let world = world();
    world.sts.fail(Some(sts::Error::Throttled { code: "Throttling".into() }));
    let begun = Instant::now();
    while begun.elapsed() < 10 * MINUTE {
        let answers = futures_util::future::join_all((0..50).map(|_| world.ask())).await;
        assert!(answers.iter().all(|(_, answer)| answer.as_ref().unwrap_err().code() == "StsThrottled"));
    }
    assert!(world.sts.calls() <= 10 * 60 / ASKED_FOR.as_secs() + 4, "{}", world.sts.calls());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_answered_at_once_and_remembered() {
    let world = world();
    world.sts.fail(Some(denied()));
    let begun = Instant::now();
    assert_eq!(world.code().await, "StsDenied");
    for _ in 0..10 {
        assert_eq!(world.code().await, "StsDenied");
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(world.sts.calls(), 1, "botocore's three tries and JS's four cost one call");
    // Nobody asks, so nobody calls; then the policy is put right, and the next question sees it.
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(world.sts.calls(), 1);
    world.sts.fail(None);
    assert_eq!(world.code().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_mended_policy_works_within_ten_seconds() {
    let world = world();
    world.sts.fail(Some(denied()));
    assert_eq!(world.code().await, "StsDenied");
    world.sts.fail(None);
    let mended = world.recovery(SECOND).await;
    assert!(mended < Duration::from_secs(10), "{:?}", mended);
}

#[tokio::test(start_paused = true)]
async fn refusals_that_go_on_are_asked_for_at_most_once_a_minute() {
    let world = world();
    world.sts.fail(Some(denied()));
    world.refused_for(60 * MINUTE).await;
    assert!((55..=125).contains(&world.sts.calls()), "{}", world.sts.calls());
}

#[tokio::test(start_paused = true)]
async fn a_new_pod_forgets_a_refusal_once_a_minute() {
    let world = world();
    world.sts.fail(Some(denied()));
    for _ in 0..12 {
        world.ask().await.1.unwrap_err();
        tokio::time::sleep(MINUTE).await;
    }
    let before = world.sts.calls();
    world.sts.fail(None);
    world.app.cache.new_pod(&world.plan());
    assert_eq!(world.code().await, "ok");
    assert_eq!(world.sts.calls(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_second_new_pod_of_the_same_minute_forgets_nothing() {
    let world = world();
    world.sts.fail(Some(denied()));
    for _ in 0..10 {
        assert_eq!(world.code().await, "StsDenied");
        world.app.cache.new_pod(&world.plan());
    }
    assert_eq!(world.sts.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_shows_a_new_token_and_the_last_one_only_while_the_kube_api_or_the_issuer_is_away() {
    for away in [cluster::Error::Away("it hangs".into()), cluster::Error::IssuerAway("it hangs".into())] {
        let world = world();
        assert_eq!(world.code().await, "ok");
        world.cluster.fail(Some(away));
        // Half a minute before its end the token is shown for the last time.
        tokio::time::sleep(60 * MINUTE - Duration::from_secs(15)).await;
        assert_eq!(world.code().await, "ok");
        let calls = world.sts.calls();
        assert!(calls > 1 && world.sts.shown().iter().all(|token| *token == world.sts.shown()[0]));
        // The token's hour is over: nothing is left to show, and what STS gave runs out.
        tokio::time::sleep(61 * MINUTE).await;
        assert_eq!(world.sts.calls(), calls);
        assert_eq!(world.code().await, "KubeUnavailable");
        world.cluster.fail(None);
        tokio::time::sleep(Duration::from_secs(31)).await;
        assert_eq!(world.code().await, "ok");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flight_whose_pod_has_gone_goes_on_with_another() {
    let world = world();
    let gone = pod("gone", "10.0.0.8");
    let other = crate::identity::pods::Pod { service_account: account("web"), ..gone };
    world.add_pod(other.clone());
    world.cluster.lose(&other.uid);
    assert_eq!(world.code().await, "ok");
    world.remove_pod(&pod("web", "10.0.0.7").uid);
    tokio::time::sleep(59 * MINUTE + Duration::from_secs(1)).await;
    assert_eq!(world.code().await, "KubeUnavailable", "no pod of the plan is left that the kube API knows");
}

#[tokio::test(start_paused = true)]
async fn what_not_before_revokes_is_not_served_again() {
    let world = world();
    let served = world.ask().await.1.unwrap();
    let moment = time::plus(time::now(), Duration::from_millis(20)).to_string();
    world.annotate(
        "web",
        &[("rolecall.dev/role-arn", crate::fakes::ROLE), ("rolecall.dev/not-before", &moment)],
    );
    // The moment is one of the wall clock, which no test can pause.
    while time::now() < moment.parse().unwrap() {
        std::hint::spin_loop();
    }
    let (lookup, fresh) = world.ask().await;
    assert_eq!(lookup, Lookup::Miss);
    assert_ne!(fresh.unwrap().access_key_id, served.access_key_id);
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_is_no_longer_in_use_is_dropped_and_never_renewed() {
    let world = world();
    assert_eq!(world.code().await, "ok");
    world.app.cache.retain([]);
    assert!(!world.app.cache.knows(&world.plan().key()));
    tokio::time::sleep(120 * MINUTE).await;
    assert_eq!(world.sts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn no_secret_shows_in_debug_or_status() {
    let world = world();
    let served = world.ask().await.1.unwrap();
    let shown = format!("{served:?} {:?} {:?}", world.app.cache.status(), world.plan());
    assert!(!shown.contains("the-secret-key") && !shown.contains("the-session-token"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn a_session_too_short_to_be_served_is_trouble_not_a_storm_of_calls() {
    let world = world();
    world.sts.slow(Duration::from_millis(50));
    world.sts.set_life(Duration::from_secs(45));
    let begun = Instant::now();
    while begun.elapsed() < MINUTE {
        assert_eq!(world.code().await, "StsUnavailable");
    }
    assert!(world.sts.calls() <= 60 / ASKED_FOR.as_secs() + 4, "{}", world.sts.calls());
    world.sts.set_life(60 * MINUTE);
    tokio::time::sleep(ASKED_FOR).await;
    assert_eq!(world.code().await, "ok");
}

fn served(world: &World, life: Duration) -> Served {
    let credentials = Credentials {
        access_key_id: "ASIA".into(),
        secret_access_key: "the-secret-key".into(),
        session_token: "the-session-token".into(),
        expiration: time::plus(time::now(), life),
        life,
        request_id: None,
        packed_policy_percent: None,
    };
    let (asked, asked_wall) = (Instant::now(), time::now());
    let fetched = Fetched { credentials, token_id: None, asked, asked_wall, issued: asked_wall };
    Served::new(fetched, &world.plan())
}

#[tokio::test(start_paused = true)]
async fn renewals_are_spread_over_the_last_tenth_before_half_the_life() {
    let world = world();
    let renewals: Vec<Duration> =
        (0..200).map(|_| served(&world, 60 * MINUTE).renew - Instant::now()).collect();
    assert!(renewals.iter().all(|after| (27 * MINUTE..=30 * MINUTE).contains(after)), "{renewals:?}");
    let (first, last) = (renewals.iter().min().unwrap(), renewals.iter().max().unwrap());
    assert!(*last - *first > 2 * MINUTE, "all plans of a node would renew in step");
}

#[tokio::test(start_paused = true)]
async fn either_clock_ends_what_is_served() {
    // A laptop's monotonic clock stands still while it sleeps.
    let world = world();
    let mut served = served(&world, 60 * MINUTE);
    assert!(served.usable(&world.plan()));
    served.good_until_wall = time::now();
    assert!(!served.usable(&world.plan()));
}

#[tokio::test(start_paused = true)]
async fn what_a_not_before_ahead_will_revoke_is_renewed_when_it_strikes_though_nobody_asks() {
    let world = world();
    assert_eq!(world.code().await, "ok");
    let moment = time::plus(time::now(), Duration::from_millis(50));
    let text = moment.to_string();
    world.annotate(
        "web",
        &[("rolecall.dev/role-arn", crate::fakes::ROLE), ("rolecall.dev/not-before", &text)],
    );
    world.app.cache.retain([&world.plan()]);
    // The keeper takes note before the moment has come.
    tokio::task::yield_now().await;
    while time::now() < moment {
        std::hint::spin_loop();
    }
    tokio::time::sleep(MINUTE).await;
    assert_eq!(world.sts.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_asked_for_a_pod_that_stays_and_never_for_a_finished_one() {
    let world = World::new();
    let of_web =
        |name: &str| crate::identity::pods::Pod { service_account: account("web"), ..pod(name, "10.0.0.9") };
    for n in 0..8 {
        let leaving = crate::identity::pods::Pod { terminating: true, ..of_web(&format!("leaving-{n}")) };
        let done = crate::identity::pods::Pod { finished: true, ..of_web(&format!("done-{n}")) };
        world.add_pod(leaving);
        world.add_pod(done);
    }
    world.pod_with_role("web", "10.0.0.7");
    assert_eq!(world.code().await, "ok");
    assert_eq!(world.cluster.tokens(), [pod("web", "10.0.0.7").uid]);
    world.remove_pod(&pod("web", "10.0.0.7").uid);
    tokio::time::sleep(31 * MINUTE).await;
    assert!(world.cluster.tokens()[1].as_str().starts_with("uid-leaving"), "{:?}", world.cluster.tokens());
}

#[tokio::test(start_paused = true)]
async fn a_session_named_for_a_pod_is_fetched_with_that_pods_token() {
    let world = world();
    let annotations =
        [("rolecall.dev/role-arn", crate::fakes::ROLE), ("rolecall.dev/session-name", "{namespace}.{pod}")];
    world.annotate("web", &annotations);
    for n in 0..8 {
        let pod = crate::identity::pods::Pod {
            service_account: account("web"),
            ..pod(&format!("web-{n}"), "10.0.0.9")
        };
        world.add_pod(pod.clone());
        let plan = world.plan().for_pod(&pod);
        let (_, served) = world.app.cache.fresh_or_fetch(&plan, Instant::now() + HOLD).await;
        assert!(served.is_ok());
        assert_eq!(world.cluster.tokens().last(), Some(&pod.uid));
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_shown_while_a_flight_looks_for_one_is_found_by_the_next_look() {
    let world = world();
    world.cluster.fail(Some(cluster::Error::NotShown("sts.amazonaws.com".into())));
    world.cluster.slow(Duration::from_millis(100));
    let begun = Instant::now();
    let (answer, ()) = tokio::join!(world.code(), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.app.cache.token_shown(&world.plan());
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.cluster.fail(None);
    });
    assert_eq!((answer, begun.elapsed()), ("ok", Duration::from_millis(200)));
    assert_eq!(world.cluster.tokens().len(), 2);
}

mod by_agent;
mod chain;

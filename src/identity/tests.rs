//! Who is behind an address: every race that was seen on a real cluster, as data.

use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::fakes::{FakeCluster, ROLE, World, account, pod};

const HOLD: Duration = Duration::from_millis(900);

struct Node {
    pods: Arc<Pods>,
    cluster: Arc<FakeCluster>,
    identity: Identity,
}

impl Node {
    fn new() -> Self {
        let (pods, cluster) = (Arc::new(Pods::default()), Arc::new(FakeCluster::default()));
        let identity = Identity::new(
            &Source::Address,
            Authorization::default(),
            Arc::clone(&pods),
            Arc::clone(&cluster) as _,
        );
        Self { pods, cluster, identity }
    }

    /// The same where the kernel vouches for callers.
    fn kernel(pods: &[&Pod]) -> Self {
        let node = Self::over(Arc::default(), Arc::default());
        node.set(pods);
        node
    }

    fn over(pods: Arc<Pods>, cluster: Arc<FakeCluster>) -> Self {
        let confirmations = Confirmations::start(Arc::clone(&pods), Arc::clone(&cluster) as _, false);
        Self {
            identity: Identity { confirmations, pods: Arc::clone(&pods), ..Self::new().identity },
            pods,
            cluster,
        }
    }

    /// Watch and quorum list agree on these pods.
    fn with(pods: &[&Pod]) -> Self {
        let node = Self::new();
        node.set(pods);
        node
    }

    fn set(&self, pods: &[&Pod]) {
        let pods: Vec<Pod> = pods.iter().map(|pod| (*pod).clone()).collect();
        self.cluster.set_pods(pods.clone());
        self.pods.reset(pods);
    }

    async fn ask(&self, caller: &Caller) -> Result<String, Error> {
        let attested = self.identity.attest(caller, &Presented::Nothing, Instant::now() + HOLD).await?;
        Ok(attested.pod().name.to_string())
    }
}

fn caller(address: &str) -> Caller {
    Caller::new(SocketAddr::new(address.parse().unwrap(), 40000), "169.254.170.23:9902".parse().unwrap())
}

fn finished(pod: Pod) -> Pod {
    Pod { finished: true, ..pod }
}

fn terminating(pod: Pod) -> Pod {
    Pod { terminating: true, ..pod }
}

const IP: &str = "10.0.0.7";

/// At most two lists a second, and one that began before a connection confirms nothing for it.
async fn next_list_is_due() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_known_by_its_address_in_either_form() {
    let node = Node::with(&[&pod("web", IP)]);
    assert_eq!(node.ask(&caller(IP)).await.unwrap(), "web");
    assert_eq!(node.ask(&caller("::ffff:10.0.0.7")).await.unwrap(), "web");
    assert_eq!(node.ask(&caller("10.0.0.8")).await.unwrap_err().code(), "PodNotKnownYet");
}

#[tokio::test(start_paused = true)]
async fn two_pods_with_one_address_are_refused() {
    let node = Node::with(&[&pod("a", IP), &pod("b", IP)]);
    assert_eq!(
        node.ask(&caller(IP)).await.unwrap_err(),
        Error::Ambiguous { address: IP.parse().unwrap(), count: 2 }
    );
}

#[tokio::test(start_paused = true)]
async fn a_finished_pod_that_keeps_its_address_is_not_the_caller() {
    let node = Node::with(&[&finished(pod("job", IP)), &pod("web", IP)]);
    assert_eq!(node.ask(&caller(IP)).await.unwrap(), "web");
    node.set(&[&finished(pod("job", IP))]);
    assert_eq!(node.ask(&caller(IP)).await.unwrap_err().code(), "PodNotKnownYet");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_being_deleted_gives_way_to_its_addresss_next_owner() {
    let node = Node::with(&[&terminating(pod("old", IP)), &pod("new", IP)]);
    assert_eq!(node.ask(&caller(IP)).await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_whose_only_match_is_terminating_is_refused() {
    let node = Node::with(&[&terminating(pod("old", IP))]);
    assert_eq!(node.ask(&caller(IP)).await.unwrap_err(), Error::Terminating { address: IP.parse().unwrap() });
}

#[tokio::test(start_paused = true)]
async fn a_terminating_pod_keeps_the_connection_it_had() {
    let node = Node::with(&[&pod("web", IP)]);
    let kept = caller(IP);
    assert_eq!(node.ask(&kept).await.unwrap(), "web");
    node.set(&[&terminating(pod("web", IP))]);
    assert_eq!(node.ask(&kept).await.unwrap(), "web", "its shutdown hooks need credentials");
    node.set(&[&terminating(pod("web", IP)), &pod("next", IP)]);
    assert_eq!(node.ask(&kept).await.unwrap_err().code(), "CallerAmbiguous");
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_ends_with_its_pod_even_if_the_address_lives_on() {
    let node = Node::with(&[&pod("web", IP)]);
    let kept = caller(IP);
    assert_eq!(node.ask(&kept).await.unwrap(), "web");
    node.set(&[&pod("next", IP)]);
    assert_eq!(node.ask(&kept).await.unwrap_err(), Error::Gone { address: IP.parse().unwrap() });
    next_list_is_due().await;
    assert_eq!(node.ask(&caller(IP)).await.unwrap(), "next");
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_address_changed_is_not_known_by_the_old_one() {
    let node = Node::with(&[&pod("web", IP)]);
    let kept = caller(IP);
    assert_eq!(node.ask(&kept).await.unwrap(), "web");
    node.set(&[&pod("web", "10.0.0.9")]);
    assert_eq!(node.ask(&kept).await.unwrap_err().code(), "CallerNotIdentified");
    next_list_is_due().await;
    assert_eq!(node.ask(&caller("10.0.0.9")).await.unwrap(), "web");
}

#[tokio::test(start_paused = true)]
async fn host_processes_and_host_network_pods_are_not_answered_by_address() {
    let host = Pod { host_network: true, ..pod("proxy", "192.0.2.1") };
    let node = Node::with(&[&host]);
    for address in ["192.0.2.1", "169.254.170.23", "127.0.0.1", "::1"] {
        let begun = Instant::now();
        assert_eq!(node.ask(&caller(address)).await.unwrap_err().code(), "CallerNotIdentified", "{address}");
        assert_eq!(begun.elapsed(), Duration::ZERO, "it will not be known later either");
    }
    // A pod that shows the node's address as its own cannot be told apart from the node.
    node.set(&[&host, &pod("odd", "192.0.2.1")]);
    assert_eq!(node.ask(&caller("192.0.2.1")).await.unwrap_err().code(), "CallerAmbiguous");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_address_waits_for_the_watch_and_is_woken_by_it() {
    let node = Node::with(&[]);
    let caller = caller(IP);
    let (answer, took) = tokio::join!(node.ask(&caller), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.set(&[&pod("late", IP)]);
        Instant::now()
    });
    assert_eq!(answer.unwrap(), "late");
    assert_eq!(took.elapsed(), Duration::ZERO, "woken by the event, not by a timer");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_known_before_the_first_list() {
    let node = Node::new();
    assert_eq!(node.ask(&caller(IP)).await.unwrap_err(), Error::NotSynced);
}

#[tokio::test(start_paused = true)]
async fn what_a_stale_watch_shows_is_not_believed() {
    let node = Node::new();
    node.pods.reset(vec![pod("old", IP)]);
    node.cluster.set_pods(vec![pod("new", IP)]);
    assert_eq!(node.ask(&caller(IP)).await.unwrap_err().code(), "PodNotKnownYet");
    node.pods.reset(vec![pod("new", IP)]);
    assert_eq!(node.ask(&caller(IP)).await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_issued_for_an_address_that_cannot_be_confirmed() {
    let node = Node::with(&[&pod("web", IP)]);
    node.cluster.fail(Some(crate::cluster::Error::Away("the test said so".into())));
    assert_eq!(node.ask(&caller(IP)).await.unwrap_err().code(), "KubeUnavailable");
    node.cluster.fail(None);
    assert_eq!(node.ask(&caller(IP)).await.unwrap(), "web");
    // Once it is, the API server may go: known pods keep being known.
    node.cluster.fail(Some(crate::cluster::Error::Away("the test said so".into())));
    assert_eq!(node.ask(&caller(IP)).await.unwrap(), "web");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_will_ask_is_confirmed_before_it_does() {
    let node = Node::with(&[&Pod { asks: true, ..pod("web", IP) }, &pod("quiet", "10.0.0.8")]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(node.cluster.lists(), 1, "one list, and none again while nothing changes");
    let begun = Instant::now();
    node.cluster.fail(Some(crate::cluster::Error::Away("the test said so".into())));
    assert_eq!(node.ask(&caller(IP)).await.unwrap(), "web");
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_address_whose_pod_changed_is_confirmed_again() {
    let node = Node::with(&[&pod("web", IP)]);
    assert_eq!(node.ask(&caller(IP)).await.unwrap(), "web");
    next_list_is_due().await;
    // The watch shows a new pod; etcd has a third one by now.
    node.pods.reset(vec![pod("new", IP)]);
    node.cluster.set_pods(vec![pod("newer", IP)]);
    assert_eq!(node.ask(&caller(IP)).await.unwrap_err().code(), "PodNotKnownYet");
    assert_eq!(
        node.cluster.lists(),
        2,
        "what was not confirmed waits for the watch, or for the next question"
    );
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_new_pods_costs_one_list() {
    let pods: Vec<Pod> = (1..=110).map(|n| pod(&format!("p{n}"), &format!("10.0.1.{n}"))).collect();
    let node = Node::with(&pods.iter().collect::<Vec<_>>());
    let callers: Vec<Caller> = pods.iter().map(|pod| caller(&pod.addresses[0].to_string())).collect();
    let answers = futures_util::future::join_all(callers.iter().map(|caller| node.ask(caller))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(node.cluster.lists(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_was_ahead_of_the_watch_counts_when_the_watch_has_caught_up() {
    let (known, late) = (pod("known", "10.0.0.8"), pod("late", IP));
    let node = Node::new();
    node.pods.reset(vec![known.clone()]);
    node.cluster.set_pods(vec![known, late.clone()]);
    let (first, other) = (caller(IP), caller("10.0.0.8"));
    let (answer, _, ()) = tokio::join!(node.ask(&first), node.ask(&other), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.pods.apply(late);
    });
    assert_eq!(answer.unwrap(), "late", "the next list would be too late for it");
    assert_eq!(node.cluster.lists(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_began_before_a_connection_confirms_nothing_for_it() {
    let (known, old) = (pod("known", "10.0.0.8"), pod("old", IP));
    let node = Node::new();
    node.pods.reset(vec![known.clone()]);
    node.cluster.set_pods(vec![known.clone(), old.clone()]);
    assert_eq!(node.ask(&caller("10.0.0.8")).await.unwrap(), "known");
    // The address changes hands; the watch is still on its way to the pod that had it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    node.cluster.set_pods(vec![known, pod("new", IP)]);
    node.pods.apply(old);
    assert_eq!(node.ask(&caller(IP)).await.unwrap_err().code(), "PodNotKnownYet");
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_ends_when_its_pod_has_finished() {
    let node = Node::with(&[&pod("job", IP)]);
    let kept = caller(IP);
    assert_eq!(node.ask(&kept).await.unwrap(), "job");
    node.set(&[&finished(pod("job", IP))]);
    assert_eq!(node.ask(&kept).await.unwrap_err(), Error::Gone { address: IP.parse().unwrap() });
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_is_not_disturbed_by_the_addresss_last_owner() {
    let node = Node::with(&[&terminating(pod("old", IP)), &pod("web", IP)]);
    let kept = caller(IP);
    assert_eq!(node.ask(&kept).await.unwrap(), "web");
    node.set(&[&terminating(pod("old", IP)), &finished(pod("older", IP)), &pod("web", IP)]);
    assert_eq!(node.ask(&kept).await.unwrap(), "web");
}

#[tokio::test(start_paused = true)]
async fn confirmations_are_bounded_and_what_they_lose_is_confirmed_again() {
    let node = Node::new();
    for round in 0..12u32 {
        let pods: Vec<Pod> =
            (0..250u32).map(|n| pod(&format!("p{round}-{n}"), &format!("fd00::{round:x}:{n:x}"))).collect();
        node.set(&pods.iter().collect::<Vec<_>>());
        let asking = caller(&pods[0].addresses[0].to_string());
        assert!(node.ask(&asking).await.is_ok());
        next_list_is_due().await;
    }
    assert!(node.identity.confirmations.len() <= 2048);
}

// What the kernel vouches for.

/// A connection from `address` behind which the kernel shows pod `name`.
fn vouched(name: &str, address: &str) -> Caller {
    caller(address).with_evidence(Ok(PodUid::new(format!("uid-{name}"))))
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_kernel_shows_needs_no_list_and_no_address() {
    let node = Node::kernel(&[&Pod { addresses: vec![], ..pod("web", IP) }, &pod("other", "10.0.0.8")]);
    assert_eq!(node.ask(&vouched("web", IP)).await.unwrap(), "web");
    assert_eq!(node.cluster.lists(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_under_another_live_pods_address_is_refused_and_named() {
    let node = Node::kernel(&[&pod("victim", IP), &pod("attacker", "10.0.0.8")]);
    let refusal = node.ask(&vouched("attacker", IP)).await.unwrap_err();
    assert_eq!(refusal.code(), "SourceMismatch");
    assert!(refusal.to_string().contains("uid-attacker"), "{refusal}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_watch_lacks_costs_one_list_and_no_wait_for_the_watch() {
    let node = Node::kernel(&[&pod("old", IP)]);
    node.cluster.set_pods(vec![pod("new", IP), pod("newer", "10.0.0.8")]);
    let (new, newer) = (vouched("new", IP), vouched("newer", "10.0.0.8"));
    let begun = Instant::now();
    let (first, second) = tokio::join!(node.ask(&new), node.ask(&newer));
    assert_eq!((first.unwrap(), second.unwrap()), ("new".into(), "newer".into()));
    assert_eq!((begun.elapsed(), node.cluster.lists()), (Duration::ZERO, 1));
}

#[tokio::test(start_paused = true)]
async fn what_a_list_has_shown_is_known_and_what_it_lacks_is_not() {
    let node = Node::kernel(&[&pod("old", IP)]);
    node.cluster.set_pods(vec![pod("new", IP)]);
    let (kept, old) = (vouched("new", IP), vouched("old", IP));
    assert_eq!(node.ask(&kept).await.unwrap(), "new");
    // The watch still shows only the old one, for as long as it likes.
    node.cluster.fail(Some(crate::cluster::Error::Away("the test said so".into())));
    let begun = Instant::now();
    assert_eq!(node.ask(&kept).await.unwrap(), "new");
    assert_eq!(node.ask(&vouched("new", IP)).await.unwrap(), "new");
    assert_eq!((begun.elapsed(), node.cluster.lists()), (Duration::ZERO, 1));
    assert!(node.ask(&old).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn who_has_just_missed_a_list_gets_the_next_one_in_time() {
    let node = Node::kernel(&[]);
    node.cluster.set_pods(vec![pod("first", IP)]);
    assert_eq!(node.ask(&vouched("first", IP)).await.unwrap(), "first");
    node.cluster.set_pods(vec![pod("first", IP), pod("second", "10.0.0.8")]);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(node.ask(&vouched("second", "10.0.0.8")).await.unwrap(), "second");
}

/// From an attested caller to its keys, as the broker goes, while plans are kept in step with pods.
#[tokio::test(start_paused = true)]
async fn a_pod_that_only_a_list_has_shown_has_its_keys_at_once_and_keeps_them() {
    let World { cluster, sts, app } = World::new();
    let follower = crate::warm::follow(
        Arc::clone(&app.pods),
        Arc::clone(&app.accounts),
        Arc::clone(&app.cache),
        crate::warm::Ahead::Showing,
    );
    let follower = tokio::spawn(follower);
    let node = Node::over(Arc::clone(&app.pods), Arc::clone(&cluster));
    let annotations = std::collections::BTreeMap::from([("rolecall.dev/role-arn".into(), ROLE.into())]);
    app.accounts.apply(&account("new"), "uid", &annotations);
    cluster.set_pods(vec![pod("new", IP)]);
    let begun = Instant::now();
    for hour in 0..3 {
        assert_eq!(node.ask(&vouched("new", IP)).await.unwrap(), "new");
        let plan = app.accounts.plan(&account("new"), None).unwrap().unwrap();
        let (_, served) = app.cache.fresh_or_fetch(&plan, Instant::now() + HOLD).await;
        served.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_secs(3600) * hour, "nothing was waited for");
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    // Renewed at half life, and never dropped between.
    assert!((5..=8).contains(&sts.calls()), "{}", sts.calls());
    assert_eq!(cluster.lists(), 1);
    follower.abort();
}

#[tokio::test(start_paused = true)]
async fn the_watch_is_heard_while_a_list_is_awaited() {
    let node = Node::kernel(&[]);
    node.cluster.slow(Duration::from_secs(5));
    let caller = vouched("late", IP);
    let (answer, ()) = tokio::join!(node.ask(&caller), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.pods.reset(vec![pod("late", IP)]);
    });
    assert_eq!(answer.unwrap(), "late");
}

#[tokio::test(start_paused = true)]
async fn a_list_from_before_the_question_does_not_bring_a_deleted_pod_back() {
    let node = Node::kernel(&[]);
    node.cluster.set_pods(vec![pod("web", IP)]);
    let kept = vouched("web", IP);
    assert_eq!(node.ask(&kept).await.unwrap(), "web", "by the list");
    next_list_is_due().await;
    node.set(&[]);
    assert_eq!(node.ask(&kept).await.unwrap_err(), Error::NoSuchPod { uid: PodUid::new("uid-web") });
    assert_eq!(node.cluster.lists(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_list_from_between_a_connection_and_its_first_request_is_no_answer_to_that() {
    let node = Node::kernel(&[]);
    node.cluster.set_pods(vec![pod("web", IP), pod("other", "10.0.0.8")]);
    let idle = vouched("web", IP);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        node.ask(&vouched("other", "10.0.0.8")).await.unwrap(),
        "other",
        "by a list, which shows web, too"
    );
    next_list_is_due().await;
    node.set(&[&pod("other", "10.0.0.8")]);
    assert_eq!(node.ask(&idle).await.unwrap_err(), Error::NoSuchPod { uid: PodUid::new("uid-web") });
    assert_eq!(node.cluster.lists(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_shuts_down_is_still_itself_and_one_that_has_finished_is_not() {
    let node = Node::kernel(&[&terminating(pod("web", IP)), &finished(pod("job", "10.0.0.8"))]);
    let kept = vouched("web", IP);
    assert_eq!(node.ask(&kept).await.unwrap(), "web");
    // Its address is given out again while it goes.
    node.set(&[&terminating(pod("web", IP)), &pod("next", IP)]);
    assert_eq!(node.ask(&vouched("next", IP)).await.unwrap(), "next");
    assert_eq!(node.ask(&vouched("job", "10.0.0.8")).await.unwrap_err().code(), "CallerNotIdentified");
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_away_known_pods_are_known_and_others_wait() {
    let node = Node::kernel(&[&pod("web", IP)]);
    node.cluster.fail(Some(crate::cluster::Error::Away("the test said so".into())));
    assert_eq!(node.ask(&vouched("web", IP)).await.unwrap(), "web");
    assert_eq!(node.ask(&vouched("new", "10.0.0.8")).await.unwrap_err().code(), "KubeUnavailable");
}

#[tokio::test(start_paused = true)]
async fn a_doubt_is_a_refusal_whatever_the_api_shows() {
    let node = Node::kernel(&[&pod("web", IP)]);
    for (doubt, code) in [
        (Doubt::NoPod, "CallerNotIdentified"),
        (Doubt::SeveralPods, "CallerAmbiguous"),
        (Doubt::SeveralHaveIt { address: IP.parse().unwrap() }, "CallerAmbiguous"),
        (Doubt::NotItsAddress { address: IP.parse().unwrap() }, "SourceMismatch"),
        (Doubt::Busy, "Overloaded"),
    ] {
        let caller = caller(IP).with_evidence(Err(doubt));
        assert_eq!(node.ask(&caller).await.unwrap_err().code(), code);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_will_ask_is_not_confirmed_ahead_where_the_kernel_vouches() {
    let node = Node::kernel(&[&Pod { asks: true, ..pod("web", IP) }]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(node.cluster.lists(), 0);
}

//! Who is answered for a token: hostNetwork pods by it alone, every other caller only if it agrees with the evidence.

use std::net::SocketAddr;

use futures_util::future::join_all;
use serde_json::json;

use super::super::allowance::BURST;
use super::super::authorization::{AUDIENCE, Authorization, Presented, Required};
use super::super::evidence::Doubt;
use super::super::pods::Pods;
use super::super::{AttestedPod, Caller, Identity, Source};
use super::*;
use crate::cluster::Reviewed;
use crate::fakes::{FakeCluster, jwt, pod, reviewed, token_of};

const HOLD: Duration = Duration::from_millis(900);
const LIFE: Duration = Duration::from_secs(600);
const NODE: &str = "192.0.2.1";

struct Node {
    pods: Arc<Pods>,
    cluster: Arc<FakeCluster>,
    identity: Identity,
}

impl Node {
    /// Watch and quorum list agree on these pods.
    fn with(pods: &[&Pod]) -> Self {
        Self::requiring(Required::Off, pods)
    }

    fn requiring(required: Required, pods: &[&Pod]) -> Self {
        let (store, cluster) = (Arc::new(Pods::default()), Arc::new(FakeCluster::default()));
        let authorization = Authorization { required, ..Authorization::default() };
        let identity =
            Identity::new(&Source::Address, authorization, Arc::clone(&store), Arc::clone(&cluster) as _);
        let node = Self { pods: store, cluster, identity };
        node.set(pods);
        node
    }

    fn set(&self, pods: &[&Pod]) {
        let pods: Vec<Pod> = pods.iter().map(|pod| (*pod).clone()).collect();
        self.cluster.set_pods(pods.clone());
        self.pods.reset(pods);
    }

    async fn attest(&self, caller: &Caller, presented: &str) -> Result<AttestedPod, Error> {
        let presented = Presented::new(presented.as_bytes());
        self.identity.attest(caller, &presented, Instant::now() + HOLD).await
    }

    /// The name of the pod, or the code of the refusal.
    async fn ask(&self, caller: &Caller, presented: &str) -> String {
        match self.attest(caller, presented).await {
            Ok(attested) => attested.pod().name.to_string(),
            Err(refusal) => refusal.code().to_owned(),
        }
    }
}

fn host_pod(name: &str) -> Pod {
    Pod { host_network: true, ..pod(name, NODE) }
}

fn caller(address: &str) -> Caller {
    Caller::new(SocketAddr::new(address.parse().unwrap(), 40000), "169.254.170.23:9902".parse().unwrap())
}

/// A caller from the host, as each way of telling callers apart sees it.
fn from_the_host() -> [Caller; 3] {
    [caller("169.254.170.23"), caller(NODE), caller("169.254.170.23").with_evidence(Err(Doubt::Host))]
}

/// A connection from `address` behind which the kernel shows pod `name`.
fn vouched(name: &str, address: &str) -> Caller {
    caller(address).with_evidence(Ok(PodUid::new(format!("uid-{name}"))))
}

fn away() -> Option<cluster::Error> {
    Some(cluster::Error::Away("the test said so".into()))
}

// Callers on the host network.

#[tokio::test(start_paused = true)]
async fn a_host_network_pod_is_known_by_its_token_raw_and_as_bearer() {
    let proxy = host_pod("proxy");
    let node = Node::with(&[&proxy, &host_pod("other")]);
    let token = node.cluster.token_of(&proxy);
    for caller in from_the_host() {
        for presented in [token.clone(), format!("Bearer {token}"), format!("bEARER {token}")] {
            let attested = node.attest(&caller, &presented).await.unwrap();
            assert_eq!(&*attested.pod().name, "proxy");
            assert_eq!((attested.evidence(), attested.credential_id()), ("token", Some("JTI=the-token-id")));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_token_a_caller_from_the_host_is_nobody() {
    let node = Node::with(&[&host_pod("proxy")]);
    for caller in from_the_host() {
        for presented in ["", "rolecall", "Bearer rolecall"] {
            assert_eq!(node.ask(&caller, presented).await, "CallerNotIdentified", "{presented:?}");
        }
    }
    assert_eq!(node.cluster.reviews(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_the_api_server_does_not_know_is_refused() {
    let proxy = host_pod("proxy");
    let node = Node::with(&[&proxy]);
    // Whatever it says of itself: expired, forged, of a pod that is gone.
    let forged = token_of(&proxy, AUDIENCE, LIFE);
    let expired = jwt(&json!({"aud": [AUDIENCE], "exp": 1}));
    for caller in from_the_host() {
        for presented in [&forged, &expired] {
            assert_eq!(node.ask(&caller, presented).await, "AuthorizationInvalid");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_for_another_audience_is_refused_whoever_says_so() {
    let proxy = host_pod("proxy");
    let node = Node::with(&[&proxy]);
    let [_, _, caller] = from_the_host();
    // The token itself: nobody need be asked.
    let other = token_of(&proxy, "sts.amazonaws.com", LIFE);
    node.cluster.accept(&other, reviewed(&proxy, "sts.amazonaws.com"));
    assert_eq!(node.ask(&caller, &other).await, "AuthorizationInvalid");
    assert_eq!(node.cluster.reviews(), 0);
    // The API server: what a token says is only what it says. No audience at all means the API server's own.
    let lying = token_of(&proxy, AUDIENCE, LIFE);
    for audiences in [vec!["sts.amazonaws.com".to_owned()], vec![]] {
        node.cluster.accept(&lying, Reviewed { audiences, ..reviewed(&proxy, AUDIENCE) });
        assert_eq!(node.ask(&caller, &lying).await, "AuthorizationInvalid");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_not_bound_to_a_pod_is_refused() {
    let proxy = host_pod("proxy");
    let node = Node::with(&[&proxy]);
    let [_, _, caller] = from_the_host();
    let good = reviewed(&proxy, AUDIENCE);
    for odd in [
        Reviewed { pod_uid: None, ..good.clone() },
        Reviewed { pod_name: None, ..good.clone() },
        Reviewed { user: "system:node:node-1".into(), ..good.clone() },
        Reviewed { user: "jane".into(), ..good.clone() },
    ] {
        let token = token_of(&proxy, AUDIENCE, LIFE);
        node.cluster.accept(&token, odd.clone());
        assert_eq!(node.ask(&caller, &token).await, "AuthorizationInvalid", "{odd:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_of_a_pod_that_is_not_live_on_this_node_is_refused() {
    let (gone, elsewhere) = (host_pod("gone"), host_pod("elsewhere"));
    let finished = Pod { finished: true, ..host_pod("finished") };
    let node = Node::with(&[&finished]);
    let [_, _, caller] = from_the_host();
    for pod in [&gone, &elsewhere, &finished] {
        let token = node.cluster.token_of(pod);
        assert_eq!(node.ask(&caller, &token).await, "AuthorizationInvalid", "{}", pod.name);
        tokio::time::sleep(Duration::from_secs(1)).await; // At most one list a second.
    }
    assert_eq!(node.cluster.lists(), 2, "one for each that the watch does not have");
}

#[tokio::test(start_paused = true)]
async fn the_token_of_a_pod_with_a_network_of_its_own_is_refused_from_the_host() {
    let web = pod("web", "10.0.0.7");
    let node = Node::with(&[&web, &host_pod("proxy")]);
    let token = node.cluster.token_of(&web);
    for caller in from_the_host() {
        assert_eq!(node.ask(&caller, &token).await, "SourceMismatch");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pods_name_or_account_must_agree_with_its_uid() {
    let proxy = host_pod("proxy");
    let node = Node::with(&[&proxy]);
    let [_, _, caller] = from_the_host();
    let good = reviewed(&proxy, AUDIENCE);
    for odd in [
        Reviewed { pod_name: Some("proxy-2".into()), ..good.clone() },
        Reviewed { user: "system:serviceaccount:shop:admin".into(), ..good.clone() },
        Reviewed { user: "system:serviceaccount:kube-system:proxy".into(), ..good.clone() },
    ] {
        let token = token_of(&proxy, AUDIENCE, LIFE);
        node.cluster.accept(&token, odd.clone());
        assert_eq!(node.ask(&caller, &token).await, "SourceMismatch", "{odd:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_host_network_pod_costs_one_list_and_no_wait_for_the_watch() {
    let late = host_pod("late");
    let node = Node::with(&[]);
    node.cluster.set_pods(vec![late.clone()]);
    let token = node.cluster.token_of(&late);
    let [_, _, caller] = from_the_host();
    assert_eq!(node.ask(&caller, &token).await, "late");
    assert_eq!(node.cluster.lists(), 1);
}

#[tokio::test(start_paused = true)]
async fn each_request_of_a_kept_connection_is_judged_by_its_own_token() {
    let (a, b) = (host_pod("a"), host_pod("b"));
    let node = Node::with(&[&a, &b]);
    let tokens = [&a, &b].map(|pod| node.cluster.token_of(pod));
    for caller in from_the_host() {
        assert_eq!(node.ask(&caller, &tokens[0]).await, "a");
        assert_eq!(node.ask(&caller, &tokens[1]).await, "b");
        assert_eq!(node.ask(&caller, "").await, "CallerNotIdentified");
        assert_eq!(node.ask(&caller, &tokens[0]).await, "a");
    }
}

#[tokio::test(start_paused = true)]
async fn no_token_makes_up_for_a_doubt_about_the_connection() {
    let (proxy, web) = (host_pod("proxy"), pod("web", "10.0.0.7"));
    let node = Node::with(&[&proxy, &web]);
    let tokens = [&proxy, &web].map(|pod| node.cluster.token_of(pod));
    for doubt in [Doubt::NoPod, Doubt::NotAPod { link: "eth0".into() }, Doubt::SeveralPods] {
        for token in &tokens {
            let caller = caller("10.0.0.7").with_evidence(Err(doubt.clone()));
            assert_eq!(node.ask(&caller, token).await, doubt.code());
        }
    }
    // A network of its own, which the kernel shows, of a pod that has none, as the kube API has it.
    assert_eq!(node.ask(&vouched("proxy", "10.0.0.9"), &tokens[0]).await, "CallerNotIdentified");
    assert_eq!(node.cluster.reviews(), 0);
}

// Callers that other evidence names.

#[tokio::test(start_paused = true)]
async fn a_pod_that_presents_another_pods_token_is_refused() {
    let (web, api, proxy) = (pod("web", "10.0.0.7"), pod("api", "10.0.0.8"), host_pod("proxy"));
    let node = Node::with(&[&web, &api, &proxy]);
    for required in [Required::Off, Required::Present, Required::Token] {
        let node = Node::requiring(required, &[&web, &api, &proxy]);
        for other in [&api, &proxy] {
            let token = node.cluster.token_of(other);
            assert_eq!(node.ask(&vouched("web", "10.0.0.7"), &token).await, "SourceMismatch");
            assert_eq!(node.ask(&caller("10.0.0.7"), &token).await, "SourceMismatch");
        }
    }
    let own = node.cluster.token_of(&web);
    let attested = node.attest(&vouched("web", "10.0.0.7"), &own).await.unwrap();
    assert_eq!((attested.evidence(), attested.credential_id()), ("kernel", Some("JTI=the-token-id")));
    let attested = node.attest(&caller("10.0.0.7"), &own).await.unwrap();
    assert_eq!(attested.evidence(), "address");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_meant_for_the_agent_is_not_looked_at() {
    let web = pod("web", "10.0.0.7");
    let eks = token_of(&web, "pods.eks.amazonaws.com", LIFE);
    for required in [Required::Off, Required::Present] {
        let node = Node::requiring(required, &[&web]);
        for presented in ["rolecall", &eks, "a.b.c"] {
            assert_eq!(node.ask(&vouched("web", "10.0.0.7"), presented).await, "web");
        }
        assert_eq!(node.cluster.reviews(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_says_it_is_for_the_agent_must_be_good() {
    let web = pod("web", "10.0.0.7");
    let node = Node::with(&[&web]);
    let forged = token_of(&web, AUDIENCE, LIFE);
    assert_eq!(node.ask(&vouched("web", "10.0.0.7"), &forged).await, "AuthorizationInvalid");
}

#[tokio::test(start_paused = true)]
async fn where_a_header_is_required_its_lack_is_refused_whoever_calls() {
    let (web, proxy) = (pod("web", "10.0.0.7"), host_pod("proxy"));
    let node = Node::requiring(Required::Present, &[&web, &proxy]);
    let [_, _, host] = from_the_host();
    for caller in [&vouched("web", "10.0.0.7"), &caller("10.0.0.7"), &host] {
        assert_eq!(node.ask(caller, "").await, "AuthorizationRequired");
        assert_eq!(node.ask(caller, "Bearer ").await, "AuthorizationRequired");
    }
    assert_eq!(node.ask(&vouched("web", "10.0.0.7"), "any").await, "web");
    assert_eq!(node.ask(&host, "any").await, "CallerNotIdentified");
}

#[tokio::test(start_paused = true)]
async fn where_a_token_is_required_only_a_good_one_of_that_very_pod_will_do() {
    let (web, proxy) = (pod("web", "10.0.0.7"), host_pod("proxy"));
    let node = Node::requiring(Required::Token, &[&web, &proxy]);
    let [_, _, host] = from_the_host();
    let other_audience = token_of(&web, "pods.eks.amazonaws.com", LIFE);
    let forged = token_of(&web, AUDIENCE, LIFE);
    for (presented, code) in [
        ("", "AuthorizationRequired"),
        ("rolecall", "AuthorizationInvalid"),
        (&other_audience, "AuthorizationInvalid"),
        (&forged, "AuthorizationInvalid"),
        (&node.cluster.token_of(&proxy), "SourceMismatch"),
        (&node.cluster.token_of(&web), "web"),
    ] {
        assert_eq!(node.ask(&vouched("web", "10.0.0.7"), presented).await, code);
    }
    assert_eq!(node.ask(&host, &node.cluster.token_of(&proxy)).await, "proxy");
    assert_eq!(node.ask(&host, "").await, "AuthorizationRequired");
}

// What is asked of the API server.

#[tokio::test(start_paused = true)]
async fn a_good_answer_is_kept_for_a_minute() {
    let proxy = host_pod("proxy");
    let node = Node::with(&[&proxy]);
    let token = node.cluster.token_of(&proxy);
    let [_, _, caller] = from_the_host();
    for _ in 0..100 {
        assert_eq!(node.ask(&caller, &token).await, "proxy");
    }
    assert_eq!(node.cluster.reviews(), 1);
    // Meanwhile the API server may be away, or have taken the token back.
    node.cluster.reject(&token);
    tokio::time::sleep(KEEP - Duration::from_secs(1)).await;
    assert_eq!(node.ask(&caller, &token).await, "proxy");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.ask(&caller, &token).await, "AuthorizationInvalid");
    assert_eq!(node.cluster.reviews(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_good_answer_is_not_kept_past_the_tokens_own_end() {
    let proxy = host_pod("proxy");
    let node = Node::with(&[&proxy]);
    let [_, _, caller] = from_the_host();
    let token = token_of(&proxy, AUDIENCE, Duration::from_secs(10));
    node.cluster.accept(&token, reviewed(&proxy, AUDIENCE));
    assert_eq!(node.ask(&caller, &token).await, "proxy");
    node.cluster.reject(&token);
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(node.ask(&caller, &token).await, "proxy");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(node.ask(&caller, &token).await, "AuthorizationInvalid");
    // By this node's clock it has ended, by the API server's it has not: believed, and never kept.
    let ended = token_of(&proxy, AUDIENCE, Duration::ZERO);
    node.cluster.accept(&ended, reviewed(&proxy, AUDIENCE));
    let before = node.cluster.reviews();
    for _ in 0..3 {
        assert_eq!(node.ask(&caller, &ended).await, "proxy");
    }
    assert_eq!(node.cluster.reviews(), before + 3);
}

#[tokio::test(start_paused = true)]
async fn a_kept_answer_does_not_outlive_its_pod() {
    let proxy = host_pod("proxy");
    let node = Node::with(&[&proxy]);
    let token = node.cluster.token_of(&proxy);
    let [_, _, caller] = from_the_host();
    assert_eq!(node.ask(&caller, &token).await, "proxy");
    node.set(&[&Pod { terminating: true, ..proxy.clone() }]);
    assert_eq!(node.ask(&caller, &token).await, "proxy", "its shutdown hooks need credentials");
    node.set(&[&Pod { finished: true, ..proxy.clone() }]);
    assert_eq!(node.ask(&caller, &token).await, "AuthorizationInvalid");
    node.set(&[]);
    assert_eq!(node.ask(&caller, &token).await, "AuthorizationInvalid");
    assert_eq!(node.cluster.reviews(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_bad_answer_is_not_kept() {
    let proxy = host_pod("proxy");
    let node = Node::with(&[&proxy]);
    let token = token_of(&proxy, AUDIENCE, LIFE);
    let [_, _, caller] = from_the_host();
    assert_eq!(node.ask(&caller, &token).await, "AuthorizationInvalid");
    node.cluster.accept(&token, reviewed(&proxy, AUDIENCE));
    assert_eq!(node.ask(&caller, &token).await, "proxy");
}

#[tokio::test(start_paused = true)]
async fn callers_that_show_one_token_at_once_share_one_question() {
    let proxy = host_pod("proxy");
    let node = Node::with(&[&proxy]);
    node.cluster.slow(Duration::from_millis(300));
    let token = node.cluster.token_of(&proxy);
    let [_, _, caller] = from_the_host();
    let answers = join_all((0..1000).map(|_| node.ask(&caller, &token))).await;
    assert!(answers.iter().all(|answer| answer == "proxy"));
    assert_eq!(node.cluster.reviews(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_question_goes_on_when_its_caller_has_given_up() {
    let proxy = host_pod("proxy");
    let node = Node::with(&[&proxy]);
    node.cluster.slow(Duration::from_secs(2));
    let token = node.cluster.token_of(&proxy);
    let [_, _, caller] = from_the_host();
    let begun = Instant::now();
    assert_eq!(node.ask(&caller, &token).await, "KubeUnavailable");
    assert_eq!(begun.elapsed(), HOLD);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(node.ask(&caller, &token).await, "proxy");
    assert_eq!(node.cluster.reviews(), 1);
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_away_a_new_token_is_no_proof() {
    let (proxy, web) = (host_pod("proxy"), pod("web", "10.0.0.7"));
    let node = Node::with(&[&proxy, &web]);
    let tokens = [&proxy, &web].map(|pod| node.cluster.token_of(pod));
    node.cluster.fail(away());
    let [_, _, host] = from_the_host();
    assert_eq!(node.ask(&host, &tokens[0]).await, "KubeUnavailable");
    assert_eq!(node.ask(&vouched("web", "10.0.0.7"), &tokens[1]).await, "KubeUnavailable");
    node.cluster.fail(None);
    assert_eq!(node.ask(&host, &tokens[0]).await, "proxy");
}

#[tokio::test(start_paused = true)]
async fn who_shows_bad_tokens_uses_up_nobody_elses_questions() {
    let (web, proxy) = (pod("web", "10.0.0.7"), host_pod("proxy"));
    let node = Node::with(&[&web, &proxy]);
    let flooder = vouched("web", "10.0.0.7");
    let mut answers = Vec::new();
    for _ in 0..BURST + 5 {
        answers.push(node.ask(&flooder, &token_of(&web, AUDIENCE, LIFE)).await);
    }
    assert_eq!(answers.iter().filter(|answer| *answer == "AuthorizationInvalid").count(), BURST as usize);
    assert_eq!(answers.last().unwrap(), "Overloaded");
    let [_, _, host] = from_the_host();
    assert_eq!(node.ask(&host, &node.cluster.token_of(&proxy)).await, "proxy");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.ask(&flooder, &node.cluster.token_of(&web)).await, "web", "its share comes back");
}

#[tokio::test(start_paused = true)]
async fn a_slow_api_server_is_asked_a_bounded_number_of_questions_at_once() {
    let web = pod("web", "10.0.0.7");
    let node = Node::with(&[&web]);
    node.cluster.slow(Duration::from_secs(4));
    let flooder = vouched("web", "10.0.0.7");
    let tokens: Vec<String> = (0..100).map(|_| token_of(&web, AUDIENCE, LIFE)).collect();
    let answers = join_all(tokens.iter().map(|token| node.ask(&flooder, token))).await;
    assert_eq!(
        answers.iter().filter(|answer| *answer == "Overloaded").count(),
        100 - FLIGHTS_PER_SOURCE as usize
    );
    assert_eq!(node.cluster.reviews(), u64::from(FLIGHTS_PER_SOURCE));
    let flights = Arc::clone(&node.identity.reviews.flights);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(locked(&flights).under_way.is_empty());
    assert!(locked(&flights).sources.values().all(|source| source.flying == 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_bounded() {
    let known = Known::default();
    let subject = Arc::new(Subject::new(reviewed(&host_pod("proxy"), AUDIENCE), &[AUDIENCE.into()]).unwrap());
    for n in 0..10_000u32 {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&n.to_be_bytes());
        known.keep(hash, &subject, Instant::now() + KEEP);
        assert!(known.0.len() <= MAX_KEPT);
        assert!(known.get(&hash).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn no_refusal_repeats_the_token() {
    let (proxy, web) = (host_pod("proxy"), pod("web", "10.0.0.7"));
    let node = Node::with(&[&proxy, &web]);
    let [_, _, host] = from_the_host();
    for token in [
        token_of(&proxy, AUDIENCE, LIFE),
        token_of(&proxy, "another", LIFE),
        node.cluster.token_of(&web),
        node.cluster.token_of(&host_pod("elsewhere")),
    ] {
        let refusal = node.attest(&host, &token).await.unwrap_err();
        let told = format!("{refusal} {refusal:?}");
        assert!(token.split('.').all(|part| !told.contains(part)), "{told}");
    }
}

//! Who is believed: fakes stand for the API server, so that its every answer can be tried.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::future::join_all;

use super::super::AUDIENCE;
use super::*;
use crate::fakes::{self, FakeCluster};
use crate::identity::pods::Pod;

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));

struct World {
    cluster: Arc<FakeCluster>,
    prover: Prover,
}

impl World {
    fn new() -> Self {
        let cluster = Arc::new(FakeCluster::default());
        let agent = ServiceAccountName { namespace: "rolecall".into(), name: "rolecall".into() };
        Self { prover: Prover::new(Arc::clone(&cluster) as _, AUDIENCE, agent), cluster }
    }

    /// A good token of that pod on that node, as `but` changes what the API server says of it.
    fn token(&self, pod: &Pod, node: &str, but: impl FnOnce(&mut Reviewed)) -> String {
        let token = fakes::token_of(pod, AUDIENCE, Duration::from_secs(600));
        let mut reviewed = fakes::reviewed(pod, AUDIENCE);
        reviewed.node_name = Some(node.to_owned());
        but(&mut reviewed);
        self.cluster.accept(&token, reviewed);
        token
    }

    fn agents(&self, node: &str) -> String {
        self.token(&agent(), node, |_| {})
    }

    async fn prove(&self, agent: &str, pod: &str) -> Result<Proved, Refusal> {
        self.prove_from(NODE, agent, pod).await
    }

    async fn prove_from(&self, source: IpAddr, agent: &str, pod: &str) -> Result<Proved, Refusal> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let (agent, pod) = (Presented::new(agent.as_bytes()), Presented::new(pod.as_bytes()));
        self.prover.prove(&agent, &pod, source, deadline, &mut Trail::default()).await
    }

    async fn refusal(&self, agent: &str, pod: &str) -> &'static str {
        self.prove(agent, pod).await.map_or_else(|refusal| refusal.code(), |proved| panic!("{proved:?}"))
    }
}

fn agent() -> Pod {
    let account = ServiceAccountName { namespace: "rolecall".into(), name: "rolecall".into() };
    Pod { service_account: account, ..fakes::pod("rolecall-x", "10.0.0.1") }
}

fn web() -> Pod {
    fakes::pod("web", "10.0.0.2")
}

#[tokio::test]
async fn the_agent_of_the_pods_node_has_a_proof_and_any_other_has_none() {
    let world = World::new();
    let pod = world.token(&web(), "here", |_| {});
    let proved = world.prove(&world.agents("here"), &pod).await.unwrap();
    let Bound { account, pod_name, pod_uid, node, .. } = proved.pod();
    assert_eq!((account, &**pod_name), (&web().service_account, "web"));
    assert_eq!((&**pod_uid, &**node), ("uid-web", "here"));
    assert_eq!(world.refusal(&world.agents("there"), &pod).await, "OtherNode");
}

#[tokio::test]
async fn neither_token_alone_is_enough() {
    let world = World::new();
    let (agent, pod) = (world.agents("here"), world.token(&web(), "here", |_| {}));
    assert_eq!(world.refusal("", &pod).await, "AgentTokenRequired");
    assert_eq!(world.refusal("rolecall", &pod).await, "AgentTokenInvalid");
    assert_eq!(world.refusal(&pod, &pod).await, "NotTheAgent");
    assert_eq!(world.refusal(&agent, "").await, "PodTokenInvalid");
}

#[tokio::test]
async fn whoever_is_no_agent_or_a_good_one_without_a_pod_is_refused() {
    let world = World::new();
    let pod = world.token(&web(), "here", |_| {});
    for user in [
        "system:serviceaccount:rolecall:other",
        "system:serviceaccount:shop:rolecall",
        "system:serviceaccount:rolecall:rolecall:x",
        "rolecall:rolecall",
        "system:node:here",
        "",
    ] {
        let token = world.token(&agent(), "here", |reviewed| reviewed.user = user.into());
        assert_eq!(world.refusal(&token, &pod).await, "NotTheAgent", "{user}");
    }
    type But = fn(&mut Reviewed);
    let without: [But; 4] = [
        |reviewed| reviewed.pod_uid = None,
        |reviewed| reviewed.pod_name = None,
        |reviewed| reviewed.node_name = None,
        |reviewed| reviewed.audiences.clear(),
    ];
    for but in without {
        let (bad, good) = (world.token(&agent(), "here", but), world.agents("here"));
        assert_eq!(world.refusal(&bad, &pod).await, "AgentTokenInvalid");
        let bad = world.token(&web(), "here", but);
        assert_eq!(world.refusal(&good, &bad).await, "PodTokenInvalid");
    }
}

#[tokio::test]
async fn tokens_for_others_and_expired_ones_do_not_cost_a_question() {
    let world = World::new();
    let good = world.agents("here");
    let for_sts = fakes::token_of(&web(), crate::config::AUDIENCE, Duration::from_secs(600));
    let expired = fakes::token_of(&web(), AUDIENCE, Duration::ZERO);
    for bad in [&for_sts, &expired] {
        assert_eq!(world.refusal(bad, &good).await, "AgentTokenInvalid");
    }
    assert_eq!(world.cluster.reviews(), 0);
    for bad in [&for_sts, &expired] {
        assert_eq!(world.refusal(&good, bad).await, "PodTokenInvalid");
    }
    assert_eq!(world.cluster.reviews(), 2, "the agent's own");
}

#[tokio::test]
async fn what_the_api_server_does_not_accept_is_refused_and_its_silence_is_passing() {
    let world = World::new();
    let (agent, pod) = (world.agents("here"), world.token(&web(), "here", |_| {}));
    world.cluster.reject(&pod);
    assert_eq!(world.refusal(&agent, &pod).await, "PodTokenInvalid");
    world.cluster.reject(&agent);
    assert_eq!(world.refusal(&agent, &pod).await, "AgentTokenInvalid");
    for error in [cluster::Error::Away("x".into()), cluster::Error::Refused("403".into())] {
        world.cluster.fail(Some(error));
        assert_eq!(world.refusal(&agent, &pod).await, "KubeUnavailable");
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_hangs_costs_no_more_than_the_deadline() {
    let world = World::new();
    let (agent, pod) = (world.agents("here"), world.token(&web(), "here", |_| {}));
    world.cluster.slow(Duration::from_secs(60));
    let begun = Instant::now();
    assert_eq!(world.refusal(&agent, &pod).await, "Overloaded");
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
}

/// One that says all that it should, and that nobody signed.
fn forged() -> String {
    fakes::token_of(&agent(), AUDIENCE, Duration::from_secs(600))
}

#[tokio::test(start_paused = true)]
async fn who_shows_forged_tokens_uses_up_its_own_questions_and_nobody_elses() {
    let world = World::new();
    let (agent, pod) = (world.agents("here"), world.token(&web(), "here", |_| {}));
    let bad = forged();
    let answers = join_all((0..1000).map(|_| world.prove_from(OTHER, &bad, &pod))).await;
    let codes = |code| answers.iter().filter(|answer| answer.as_ref().unwrap_err().code() == code).count();
    assert_eq!((codes("AgentTokenInvalid"), codes("Overloaded")), (BURST as usize, 1000 - BURST as usize));
    assert_eq!(world.cluster.reviews(), u64::from(BURST));
    world.prove(&agent, &pod).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    world.prove_from(OTHER, &agent, &pod).await.expect("its share comes back");
}

#[tokio::test(start_paused = true)]
async fn neither_half_of_a_proof_is_free() {
    let world = World::new();
    let (agent, pod) = (world.agents("here"), world.token(&web(), "there", |_| {}));
    for (agent, pod) in [(&agent, &forged()), (&agent, &pod), (&pod, &pod)] {
        for _ in 0..100 {
            let _ = world.prove_from(OTHER, agent, pod).await.unwrap_err();
        }
        assert!(world.cluster.reviews() <= u64::from(BURST));
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_with_many_cold_pods_is_neither_refused_nor_slowed() {
    let world = World::new();
    let (agent, pod) = (world.agents("here"), world.token(&web(), "here", |_| {}));
    world.cluster.slow(Duration::from_millis(10));
    for _ in 0..4 {
        assert_eq!(world.refusal(&forged(), &pod).await, "AgentTokenInvalid");
    }
    let begun = Instant::now();
    for proved in join_all((0..110).map(|_| world.prove(&agent, &pod))).await {
        proved.unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_source_that_has_all_of_its_questions_is_forgotten() {
    let world = World::new();
    let (agent, pod) = (world.agents("here"), world.token(&web(), "here", |_| {}));
    for last in 0..100 {
        world.prove_from(Ipv4Addr::new(10, 0, 1, last).into(), &agent, &pod).await.unwrap();
    }
    assert_eq!(world.prover.sources.lock().unwrap().len(), 1);
}

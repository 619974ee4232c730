//! Who is believed: fakes stand for the API server, so that its every answer can be tried.

use std::time::Duration;

use super::super::AUDIENCE;
use super::*;
use crate::fakes::{self, FakeCluster};
use crate::identity::pods::Pod;

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
        let deadline = Instant::now() + Duration::from_secs(5);
        let (agent, pod) = (Presented::new(agent.as_bytes()), Presented::new(pod.as_bytes()));
        self.prover.prove(&agent, &pod, deadline, &mut Trail::default()).await
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

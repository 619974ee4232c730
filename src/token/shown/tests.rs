//! What a pod gets for its own token, by an agent that mints none.

use std::net::SocketAddr;

use super::*;
use crate::broker::{self, Trail};
use crate::cache::Served;
use crate::cluster::Error;
use crate::config::AUDIENCE;
use crate::fakes::{World, jwt, pod, reviewed, token_of};
use crate::identity::Caller;
use crate::identity::authorization::{Authorization, Presented, TokenSource};
use crate::identity::evidence::Source;
use crate::role::Claims;
use crate::token::Tokens;

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
const IP: &str = "10.0.0.7";

/// An agent that mints nothing, with the pod `web`, which has a role.
fn agent() -> World {
    agent_with(Authorization::default())
}

fn agent_with(authorization: Authorization) -> World {
    let authorization = Authorization { tokens: TokenSource::Caller, ..authorization };
    let world = World::with_authorization(Source::Address, authorization, std::io::sink());
    world.pod_with_role("web", IP);
    world
}

/// What the kubelet projects into that pod for STS.
fn projected(pod: &Pod, life: Duration) -> String {
    token_of(pod, AUDIENCE, life)
}

async fn ask_from(world: &World, from: &str, shows: &str) -> Result<Arc<Served>, broker::Error> {
    let peer = SocketAddr::new(from.parse().unwrap(), 40000);
    let caller = Caller::new(peer, "169.254.170.23:9902".parse().unwrap());
    let (presented, deadline) =
        (Presented::new(shows.as_bytes()), Instant::now() + Duration::from_millis(900));
    world.app.broker.credentials(&caller, &presented, deadline, &mut Trail::default()).await
}

/// The AccessKeyId, or the code of the refusal.
async fn ask(world: &World, shows: &str) -> String {
    match ask_from(world, IP, shows).await {
        Ok(served) => served.access_key_id.clone(),
        Err(refusal) => refusal.code().to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn sts_is_shown_the_pods_own_token_and_none_is_minted() {
    let world = agent();
    let token = projected(&pod("web", IP), HOUR);
    assert_eq!(ask(&world, &token).await, "ASIA0001.web");
    assert_eq!(world.sts.shown(), [token]);
    assert!(world.cluster.tokens().is_empty() && world.cluster.reviews() == 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_cached_needs_no_token_and_what_is_not_does() {
    let world = agent();
    let begun = Instant::now();
    for word in ["", "rolecall", &token_of(&pod("web", IP), "another", HOUR)] {
        assert_eq!(ask(&world, word).await, "AuthorizationRequired");
    }
    assert_eq!(begun.elapsed(), Duration::ZERO, "no time would change it");
    let refusal = ask_from(&world, IP, "").await.unwrap_err();
    assert!(refusal.to_string().contains(AUDIENCE), "{refusal}");
    assert_eq!(ask(&world, &projected(&pod("web", IP), HOUR)).await, "ASIA0001.web");
    assert_eq!(ask(&world, "rolecall").await, "ASIA0001.web");
    assert_eq!(world.sts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_names_another_is_refused_even_where_the_answer_is_cached() {
    let world = agent();
    let (web, api) = (pod("web", IP), pod("api", "10.0.0.8"));
    world.add_pod(api.clone());
    let twin = Pod { uid: PodUid::new("uid-twin"), ..web.clone() };
    let renamed = Pod { service_account: api.service_account.clone(), ..web.clone() };
    let unbound = jwt(&serde_json::json!({
        "aud": AUDIENCE, "exp": 4_000_000_000_u64, "sub": "system:serviceaccount:shop:web",
    }));
    for cached in [false, true] {
        for other in [&api, &twin, &renamed] {
            assert_eq!(ask(&world, &projected(other, HOUR)).await, "AuthorizationInvalid");
        }
        assert_eq!(ask(&world, &unbound).await, "AuthorizationInvalid");
        assert_eq!(ask(&world, &projected(&web, Duration::from_secs(29))).await, "AuthorizationInvalid");
        if !cached {
            assert_eq!(ask(&world, &projected(&web, HOUR)).await, "ASIA0001.web");
        }
    }
    assert_eq!(world.sts.shown().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_asks_with_a_token_waits_for_no_back_off() {
    let world = agent();
    // The first fetch was tried when the pod came, and by one that had no token.
    let plan = world.app.accounts.plan(&pod("web", IP).service_account, None).unwrap().unwrap();
    world.app.cache.prefetch(&plan);
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(ask(&world, "").await, "AuthorizationRequired");
    let begun = Instant::now();
    assert_eq!(ask(&world, &projected(&pod("web", IP), HOUR)).await, "ASIA0001.web");
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn renewals_show_the_newest_token_of_a_live_pod() {
    let world = agent();
    let web = pod("web", IP);
    let (first, newer) = (projected(&web, HOUR), projected(&web, HOUR + MINUTE));
    assert_eq!(ask(&world, &first).await, "ASIA0001.web");
    assert_eq!(ask(&world, &newer).await, "ASIA0001.web");
    assert_eq!(ask(&world, &first).await, "ASIA0001.web", "an older one takes nothing back");
    tokio::time::sleep(31 * MINUTE).await;
    assert_eq!(ask(&world, "").await, "ASIA0002.web");
    assert_eq!(world.sts.shown(), [first, newer]);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_goes_on_with_another_pod_of_the_plan() {
    let world = agent();
    let web = pod("web", IP);
    let second = Pod { service_account: web.service_account.clone(), ..pod("second", "10.0.0.8") };
    world.add_pod(second.clone());
    let tokens = [projected(&web, HOUR), projected(&second, HOUR)];
    assert_eq!(ask(&world, &tokens[0]).await, "ASIA0001.web");
    assert!(ask_from(&world, "10.0.0.8", &tokens[1]).await.is_ok());
    world.remove_pod(&web.uid);
    tokio::time::sleep(31 * MINUTE).await;
    assert_eq!(world.sts.shown(), tokens);
}

#[tokio::test(start_paused = true)]
async fn without_a_token_that_lives_credentials_are_served_to_their_end_and_a_token_brings_them_back() {
    let world = agent();
    let web = pod("web", IP);
    assert_eq!(ask(&world, &projected(&web, 10 * MINUTE)).await, "ASIA0001.web");
    tokio::time::sleep(50 * MINUTE).await;
    assert_eq!(ask(&world, "").await, "ASIA0001.web");
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(ask(&world, "").await, "AuthorizationRequired");
    assert_eq!(ask(&world, &projected(&web, HOUR)).await, "ASIA0002.web");
    assert_eq!(world.sts.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_watch_lacks_may_ask_again_with_its_token() {
    let audiences = vec![crate::identity::authorization::AUDIENCE.to_owned(), AUDIENCE.to_owned()];
    let world = agent_with(Authorization { audiences, ..Authorization::default() });
    // A hostNetwork pod is known by its token and a list, before the watch shows it.
    let late = Pod {
        host_network: true,
        service_account: pod("web", IP).service_account,
        ..pod("late", "192.0.2.1")
    };
    world.cluster.set_pods(vec![pod("web", IP), late.clone()]);
    let token = projected(&late, HOUR);
    world.cluster.accept(&token, reviewed(&late, AUDIENCE));
    let refusal = ask_from(&world, "169.254.170.23", &token).await.unwrap_err();
    assert_eq!(refusal.code(), "PodNotKnownYet");
    // One token for both: the agent has it reviewed, and STS is shown it.
    world.add_pod(late);
    assert!(ask_from(&world, "169.254.170.23", &token).await.is_ok());
    assert_eq!(world.sts.shown(), [token]);
}

#[tokio::test(start_paused = true)]
async fn known_pods_are_served_while_the_api_server_is_away() {
    let world = agent();
    let web = pod("web", IP);
    assert_eq!(ask(&world, &projected(&web, 2 * HOUR)).await, "ASIA0001.web");
    world.cluster.fail(Some(Error::Away("the test said so".into())));
    tokio::time::sleep(31 * MINUTE).await;
    assert_eq!(ask(&world, "").await, "ASIA0002.web");
}

#[tokio::test(start_paused = true)]
async fn tokens_of_pods_that_are_gone_are_forgotten() {
    let pods = Arc::new(Pods::default());
    let shown = ShownTokens::new(Arc::clone(&pods));
    let audience: Arc<str> = AUDIENCE.into();
    for n in 0..100 {
        let one = pod(&format!("p{n}"), IP);
        pods.reset(vec![one.clone()]);
        let token = Presented::new(projected(&one, HOUR).as_bytes());
        assert_eq!(shown.take(&one, &audience, token.token().unwrap()), Ok(true));
        assert_eq!(shown.by_pod.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_api_server_is_asked_for_everything_but_tokens() {
    let world = agent();
    let web = pod("web", IP);
    // A token for the agent is for the API server to judge, and an address for it to confirm.
    assert_eq!(ask(&world, &token_of(&web, "rolecall", HOUR)).await, "AuthorizationInvalid");
    assert!(world.cluster.lists() > 0 && world.cluster.reviews() > 0);
    let tokens = Tokens::Shown(Arc::new(ShownTokens::new(Arc::clone(&world.app.pods))));
    let refusal = tokens.request(&web, AUDIENCE, HOUR, &Claims::default()).await.unwrap_err();
    assert!(matches!(refusal, Error::NotShown(_)) && world.cluster.tokens().is_empty());
}

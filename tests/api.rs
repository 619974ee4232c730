//! The kube side of the agent against a real API server: watches, tokens, rights, one connection.
//!
//! There is no kubelet and no controller: pods are made by hand, as their status is.
// clippy.toml allows it in tests, and does not know their helpers for such.

#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "support/proxy.rs"]
mod proxy;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use rolecall::cluster::api::KubeApi;
use rolecall::cluster::client::Clients;
use rolecall::cluster::watch::WatchHealth;
use rolecall::cluster::{Cluster, Error, client};
use rolecall::identity::pods::{Pod, PodUid, Pods, ServiceAccountName};
use rolecall::policy::Policy;
use rolecall::role::session_name::Template;
use rolecall::role::{self, Defaults, Plan, RoleSource};
use rolecall::service_accounts::ServiceAccounts;
use rolecall::{identity, service_accounts};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use apiserver::ApiServer;
use proxy::Proxy;

const STS: &str = "sts.amazonaws.com";
const HOUR: Duration = Duration::from_secs(3600);
/// For what should take milliseconds, on a machine that builds three other things.
const SOON: Duration = Duration::from_secs(10);

/// What an installation's administrator does, in one namespace and on one node of the test's own.
struct World {
    admin: kube::Client,
    config: kube::Config,
    namespace: &'static str,
    node: String,
}

impl World {
    async fn new(namespace: &'static str) -> Self {
        let config = client::config(Some(&ApiServer::shared().kubeconfig())).await.unwrap();
        let admin = client::client(&config).unwrap();
        let world = Self { admin, config, namespace, node: format!("node-{namespace}") };
        world.post("/api/v1/namespaces", &json!({"metadata": {"name": namespace}})).await;
        world
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        content: &str,
        body: &Value,
    ) -> Result<Value, kube::Error> {
        let request = http::Request::builder().method(method).uri(path).header("content-type", content);
        self.admin.request(request.body(body.to_string().into_bytes()).unwrap()).await
    }

    async fn post(&self, path: &str, object: &Value) -> Value {
        self.send("POST", path, "application/json", object)
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn path(&self, kind: &str, name: &str) -> String {
        format!("/api/v1/namespaces/{}/{kind}/{name}", self.namespace)
    }

    async fn account(&self, name: &str, role: Option<&str>) {
        let annotations = role.map(|role| json!({"rolecall.dev/role-arn": arn(role)}));
        let object = json!({"metadata": {"name": name, "annotations": annotations}});
        self.post(&self.path("serviceaccounts", ""), &object).await;
    }

    async fn annotate(&self, name: &str, role: Option<&str>) {
        let patch = json!({"metadata": {"annotations": {"rolecall.dev/role-arn": role.map(arn)}}});
        let path = self.path("serviceaccounts", name);
        self.send("PATCH", &path, "application/merge-patch+json", &patch).await.unwrap();
    }

    /// A pod bound to the node; its UID.
    async fn pod(&self, name: &str, account: &str) -> PodUid {
        let object = json!({"metadata": {"name": name}, "spec": {
            "serviceAccountName": account, "nodeName": self.node, "containers": [{"name": "main", "image": "none:1"}],
        }});
        let pod = self.post(&self.path("pods", ""), &object).await;
        PodUid::new(pod["metadata"]["uid"].as_str().unwrap())
    }

    /// What a kubelet would write.
    async fn status(&self, pod: &str, phase: &str, addresses: &[&str]) {
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let patch = json!({"status": {"phase": phase, "podIP": addresses.first(), "podIPs": ips}});
        let path = format!("{}/status", self.path("pods", pod));
        self.send("PATCH", &path, "application/merge-patch+json", &patch).await.unwrap();
    }

    async fn delete(&self, kind: &str, name: &str) {
        let now = json!({"gracePeriodSeconds": 0});
        self.send("DELETE", &self.path(kind, name), "application/json", &now).await.unwrap();
    }

    /// The node's agent, as administrator, over `proxy`.
    fn agent_by(&self, proxy: &Proxy) -> Agent {
        self.agent(self.by(proxy.port))
    }

    fn by(&self, port: u16) -> kube::Config {
        let mut config = self.config.clone();
        config.cluster_url = format!("https://127.0.0.1:{port}").parse().unwrap();
        config
    }

    fn agent(&self, config: kube::Config) -> Agent {
        self.agent_of(client::clients(&config, None).unwrap())
    }

    fn agent_of(&self, kube: Clients) -> Agent {
        let pods = Arc::new(Pods::default());
        let accounts = Arc::new(ServiceAccounts::new(Defaults {
            source: RoleSource::default(),
            audience: STS.into(),
            allowed_audiences: vec![STS.into()],
            session_duration: HOUR,
            session_name: Template::parse("{namespace}.{service-account}", &self.node, "").unwrap(),
            policy: Policy::default(),
            by_agent: false,
            claims_in_tokens: false,
        }));
        let (pods_health, accounts_health) = (Arc::default(), Arc::default());
        let mut tasks = JoinSet::new();
        let follow = (kube.node.clone(), self.node.clone(), Arc::clone(&pods), Arc::clone(&pods_health));
        tasks.spawn(async move {
            let (client, node, pods, health) = follow;
            match identity::watch::follow(client, &node, pods, health, false).await {}
        });
        let follow = (kube.own, Arc::clone(&pods), Arc::clone(&accounts), Arc::clone(&accounts_health));
        tasks.spawn(async move {
            let (client, pods, accounts, health) = follow;
            match service_accounts::watch::follow(client, pods, accounts, health).await {}
        });
        let api = KubeApi::new(kube.node, &*self.node);
        Agent { pods, accounts, api, namespace: self.namespace, pods_health, accounts_health, _tasks: tasks }
    }

    fn port(&self) -> u16 {
        self.config.cluster_url.port_u16().unwrap()
    }
}

/// The parts of an agent that this file is about.
struct Agent {
    pods: Arc<Pods>,
    accounts: Arc<ServiceAccounts>,
    api: KubeApi,
    namespace: &'static str,
    pods_health: Arc<WatchHealth>,
    accounts_health: Arc<WatchHealth>,
    _tasks: JoinSet<()>,
}

impl Agent {
    /// Waits for the pods to be so, woken by their changes.
    async fn sees<T>(&self, within: Duration, mut so: impl FnMut(&Pods) -> Option<T>) -> T {
        let mut changes = self.pods.changes();
        timeout(within, async {
            loop {
                if let Some(seen) = so(&self.pods) {
                    return seen;
                }
                changes.changed().await.unwrap();
            }
        })
        .await
        .unwrap_or_else(|_| panic!("not so within {within:?}: {:?}", self.pods.all()))
    }

    async fn sees_pod(&self, uid: &PodUid) -> Arc<Pod> {
        self.sees(SOON, |pods| pods.by_uid(uid)).await
    }

    /// Waits for the plan of a ServiceAccount to be so; returns how long it took.
    async fn plan(&self, account: &str, within: Duration, so: impl Fn(Option<&Plan>) -> bool) -> Duration {
        let begun = Instant::now();
        let account = ServiceAccountName { namespace: self.namespace.into(), name: account.into() };
        let mut changes = self.accounts.changes();
        timeout(within, async {
            while !so(self.accounts.plan(&account, None).as_ref()) {
                changes.changed().await.unwrap();
            }
        })
        .await
        .unwrap_or_else(|_| panic!("not so within {within:?}: {:?}", self.accounts.plan(&account, None)));
        begun.elapsed()
    }
}

fn arn(role: &str) -> String {
    format!("arn:aws:iam::123456789012:role/{role}")
}

fn is_role(plan: Option<&Plan>, role: &str) -> bool {
    matches!(plan, Some(Ok(plan)) if plan.role.as_str() == arn(role))
}

fn no_role(plan: Option<&Plan>) -> bool {
    matches!(plan, Some(Err(role::Error::NoRole { .. } | role::Error::NoServiceAccount { .. })))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

#[tokio::test]
async fn a_pod_is_seen_with_its_service_account_then_its_addresses_then_its_end() {
    let world = World::new("life").await;
    world.account("web", None).await;
    let agent = world.agent(world.config.clone());
    agent.pods.wait_synced().await;

    let uid = world.pod("web-1", "web").await;
    let pod = agent.sees_pod(&uid).await;
    assert_eq!(pod.service_account.to_string(), "life/web");
    assert!(pod.addresses.is_empty() && pod.live() && !pod.terminating);

    world.status("web-1", "Pending", &["10.0.0.7", "fd00::7"]).await;
    agent.sees(SOON, |pods| (pods.claimants(ip("fd00::7")).len() == 1).then_some(())).await;
    assert_eq!(agent.pods.claimants(ip("10.0.0.7"))[0].uid, uid);
    assert_eq!(agent.api.pods_now().await.unwrap(), [(*agent.sees_pod(&uid).await).clone()]);

    // With a kubelet that would have to end it, a deleted pod stays for its grace period.
    world.send("DELETE", &world.path("pods", "web-1"), "application/json", &json!({})).await.unwrap();
    agent.sees(SOON, |pods| pods.by_uid(&uid)?.terminating.then_some(())).await;
    world.status("web-1", "Succeeded", &["10.0.0.7", "fd00::7"]).await;
    agent.sees(SOON, |pods| pods.by_uid(&uid)?.finished.then_some(())).await;
    assert_eq!(agent.pods.claimants(ip("10.0.0.7")).len(), 1);

    world.delete("pods", "web-1").await;
    agent.sees(SOON, |pods| pods.claimants(ip("10.0.0.7")).is_empty().then_some(())).await;
    assert!(agent.pods.is_empty());
    assert!(agent.pods_health.last_event.load(std::sync::atomic::Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn a_pod_made_again_under_its_name_is_another_pod() {
    let world = World::new("again").await;
    world.account("web", None).await;
    let agent = world.agent(world.config.clone());
    let first = world.pod("db-0", "web").await;
    agent.sees_pod(&first).await;
    world.delete("pods", "db-0").await;
    let second = world.pod("db-0", "web").await;
    agent.sees_pod(&second).await;
    assert!(agent.pods.by_uid(&first).is_none());
    assert!(matches!(
        agent
            .api
            .request_token(&Pod { uid: first, ..(*agent.sees_pod(&second).await).clone() }, STS, HOUR)
            .await,
        Err(Error::PodGone(_))
    ));
}

#[tokio::test]
async fn pods_of_other_nodes_are_not_seen() {
    let world = World::new("others").await;
    let elsewhere = World { node: "node-elsewhere".into(), ..World::new("others-too").await };
    world.account("web", None).await;
    elsewhere.account("web", None).await;
    elsewhere.pod("web-1", "web").await;
    let here = world.pod("web-1", "web").await;
    let agent = world.agent(world.config.clone());
    agent.sees_pod(&here).await;
    assert_eq!(agent.pods.len(), 1);
    assert_eq!(agent.api.pods_now().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_token_is_bound_to_its_pod_and_has_one_audience() {
    let world = World::new("token").await;
    world.account("web", None).await;
    let uid = world.pod("web-1", "web").await;
    let agent = world.agent(world.config.clone());
    let pod = agent.sees_pod(&uid).await;

    let token = agent.api.request_token(&pod, STS, Duration::from_secs(1200)).await.unwrap();
    let claims = claims(token.expose());
    assert_eq!(claims["aud"], json!([STS]));
    assert_eq!(claims["sub"], "system:serviceaccount:token:web");
    assert_eq!(claims["kubernetes.io"]["pod"], json!({"name": "web-1", "uid": uid.as_str()}));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 1200);
    // The API server's own audit log has it, too. Before 1.30 there is none.
    let id = token.id().map(|id| json!(**id));
    assert_eq!((id.as_ref(), id.is_some()), (claims.get("jti"), ApiServer::shared().minor >= 30));
    let left = token.remaining();
    assert!(left <= Duration::from_secs(1200) && left > Duration::from_secs(1180), "{left:?}");

    let short = agent.api.request_token(&pod, STS, Duration::from_secs(60)).await;
    assert!(matches!(&short, Err(Error::Refused(why)) if why.contains("expirationSeconds")), "{short:?}");
    world.account("other", None).await;
    let other = ServiceAccountName { namespace: "token".into(), name: "other".into() };
    let foreign = Pod { service_account: other, ..(*pod).clone() };
    assert!(matches!(agent.api.request_token(&foreign, STS, HOUR).await, Err(Error::Refused(_))));
    world.delete("pods", "web-1").await;
    assert!(matches!(agent.api.request_token(&pod, STS, HOUR).await, Err(Error::PodGone(_))));
}

#[tokio::test]
async fn a_changed_annotation_counts_at_once_and_a_removed_one_ends_the_plan() {
    let world = World::new("annotate").await;
    world.account("web", Some("first")).await;
    world.pod("web-1", "web").await;
    let agent = world.agent(world.config.clone());
    agent.plan("web", SOON, |plan| is_role(plan, "first")).await;

    let ((), changed) = tokio::join!(
        world.annotate("web", Some("second")),
        agent.plan("web", SOON, |plan| is_role(plan, "second"))
    );
    let ((), removed) = tokio::join!(world.annotate("web", None), agent.plan("web", SOON, no_role));
    println!("from the PATCH: changed after {changed:?}, removed after {removed:?}");

    world.annotate("web", Some("third")).await;
    agent.plan("web", SOON, |plan| is_role(plan, "third")).await;
    world.delete("serviceaccounts", "web").await;
    agent.plan("web", SOON, no_role).await;
    // The same name, another ServiceAccount: its UID is part of what answers are kept under.
    world.account("web", Some("third")).await;
    agent.plan("web", SOON, |plan| is_role(plan, "third")).await;
}

#[tokio::test]
async fn a_service_account_is_watched_from_its_first_live_pod_to_its_last() {
    let world = World::new("inuse").await;
    for account in ["web", "job", "idle"] {
        world.account(account, Some("role")).await;
    }
    world.pod("web-1", "web").await;
    world.pod("web-2", "web").await;
    let job = world.pod("job-1", "job").await;
    let agent = world.agent(world.config.clone());
    agent.plan("web", SOON, |plan| is_role(plan, "role")).await;
    agent.plan("job", SOON, |plan| is_role(plan, "role")).await;
    agent.plan("idle", SOON, |plan| plan.is_none()).await;

    world.delete("pods", "web-1").await;
    agent.sees(SOON, |pods| (pods.len() == 2).then_some(())).await;
    agent.plan("web", SOON, |plan| is_role(plan, "role")).await;
    world.delete("pods", "web-2").await;
    agent.plan("web", SOON, |plan| plan.is_none()).await;
    // A finished pod asks nothing, though it stays.
    world.status("job-1", "Succeeded", &[]).await;
    agent.plan("job", SOON, |plan| plan.is_none()).await;
    assert!(agent.pods.by_uid(&job).is_some());

    world.pod("web-3", "web").await;
    agent.plan("web", SOON, |plan| is_role(plan, "role")).await;
}

#[tokio::test]
async fn a_service_account_that_is_not_there_has_no_role_until_it_is() {
    let world = World::new("absent").await;
    world.account("web", Some("role")).await;
    world.pod("web-1", "web").await;
    world.delete("serviceaccounts", "web").await;
    let agent = world.agent(world.config.clone());
    agent.plan("web", SOON, no_role).await;
    world.account("web", Some("role")).await;
    agent.plan("web", SOON, |plan| is_role(plan, "role")).await;
}

/// An agent with this many ServiceAccounts, after a list of pods by all and a token for each.
async fn busy(world: &World, accounts: usize) -> (Proxy, Agent) {
    let names: Vec<String> = (0..accounts).map(|i| format!("sa-{i}")).collect();
    join_all(names.iter().map(async |name| {
        world.account(name, Some(name)).await;
        world.pod(name, name).await;
    }))
    .await;
    let proxy = Proxy::start(0, world.port()).await;
    let agent = world.agent_by(&proxy);
    // Before there is a connection, so that they could dial each for itself.
    for list in join_all((0..20).map(|_| agent.api.pods_now())).await {
        assert_eq!(list.unwrap().len(), accounts);
    }
    for name in &names {
        agent.plan(name, SOON * 3, |plan| is_role(plan, name)).await;
    }
    let pods = agent.pods.all();
    assert_eq!(pods.len(), accounts);
    for token in join_all(pods.iter().map(|pod| agent.api.request_token(pod, STS, HOUR))).await {
        token.unwrap();
    }
    (proxy, agent)
}

#[tokio::test]
async fn thirty_service_accounts_and_their_tokens_share_one_connection() {
    let world = World::new("one").await;
    let (proxy, agent) = busy(&world, 30).await;
    world.annotate("sa-7", Some("changed")).await;
    agent.plan("sa-7", SOON, |plan| is_role(plan, "changed")).await;
    assert_eq!(*proxy.accepted.borrow(), 1);
}

#[tokio::test]
async fn more_watches_than_a_connection_has_streams_do_not_stop_the_tokens() {
    let world = World::new("many").await;
    let (proxy, _agent) = busy(&world, 120).await;
    assert!(*proxy.accepted.borrow() <= 3, "{:?} connections", proxy.accepted.borrow());
}

#[tokio::test]
async fn a_stalled_connection_is_dropped_and_what_was_missed_is_made_good() {
    let world = World::new("stall").await;
    world.account("web", Some("role")).await;
    let gone = world.pod("gone", "web").await;
    world.status("gone", "Running", &["10.0.0.9"]).await;
    world.pod("stays", "web").await;
    let proxy = Proxy::start(0, world.port()).await;
    let agent = world.agent_by(&proxy);
    agent.sees(SOON, |pods| (pods.claimants(ip("10.0.0.9")).len() == 1).then_some(())).await;
    agent.plan("web", SOON, |plan| is_role(plan, "role")).await;

    proxy.stall(true);
    let begun = Instant::now();
    world.delete("pods", "gone").await;
    let new = world.pod("new", "web").await;
    world.status("new", "Running", &["10.0.0.9"]).await;
    world.annotate("web", None).await;
    let mut closed = proxy.closed.subscribe();
    let dropped = timeout(Duration::from_secs(30), closed.wait_for(|closed| *closed > 0)).await;
    dropped.expect("the client gives the connection up within 30 s").unwrap();
    let dropped = begun.elapsed();
    assert!(agent.pods.by_uid(&gone).is_some());
    assert!(matches!(agent.api.pods_now().await, Err(Error::Away(_))));

    proxy.stall(false);
    let healed = Instant::now();
    agent
        .sees(Duration::from_secs(30), |pods| {
            let claimants = pods.claimants(ip("10.0.0.9"));
            (claimants.len() == 1 && claimants[0].uid == new).then_some(())
        })
        .await;
    agent.plan("web", Duration::from_secs(30), no_role).await;
    assert!(agent.pods.by_uid(&gone).is_none());
    assert!(agent.accounts_health.restarts.load(std::sync::atomic::Ordering::Relaxed) > 0);
    println!("dropped after {dropped:?}, good again {:?} after it healed", healed.elapsed());
}

#[tokio::test]
async fn an_agent_that_starts_before_the_api_server_waits_for_it() {
    let world = World::new("early").await;
    world.account("web", None).await;
    let uid = world.pod("web-1", "web").await;
    let port = Proxy::start(0, world.port()).await.port;
    let agent = world.agent(world.by(port));
    assert!(matches!(agent.api.pods_now().await, Err(Error::Away(_))));
    assert!(!agent.pods.synced());
    let _proxy = Proxy::start(port, world.port()).await;
    timeout(Duration::from_secs(30), agent.pods.wait_synced()).await.unwrap();
    agent.sees_pod(&uid).await;
}

#[tokio::test]
async fn the_rights_that_ship_suffice_and_whoever_asks_shares_the_connection() {
    let world = World::new("rights").await;
    let region = json!({"metadata": {"name": world.node, "labels": {"topology.kubernetes.io/region": "eu-central-1"}}});
    world.post("/api/v1/nodes", &region).await;
    let mut config = client::config(Some(&ApiServer::shared().agent_kubeconfig(&world.node))).await.unwrap();
    let proxy = Proxy::start(0, world.port()).await;
    config.cluster_url = format!("https://127.0.0.1:{}", proxy.port).parse().unwrap();

    world.account("web", Some("role")).await;
    let uid = world.pod("web-1", "web").await;
    let agent = world.agent_of(client::clients(&config, ApiServer::shared().as_node(&world.node)).unwrap());
    agent.plan("web", SOON, |plan| is_role(plan, "role")).await;
    agent.api.request_token(&*agent.sees_pod(&uid).await, STS, HOUR).await.unwrap();
    // Its own pod is there too.
    assert_eq!(agent.api.pods_now().await.unwrap().len(), 2);
    assert_eq!(agent.api.facts().await.unwrap().region.as_deref(), Some("eu-central-1"));
    assert_eq!(*proxy.accepted.borrow(), 1);
}

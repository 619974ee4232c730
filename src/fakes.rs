//! The two outside doors, in memory: they record, are slow and fail on demand. Feature `testing` only.

pub mod log;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::app::App;
use crate::base_credentials::BaseCredentials;
use crate::broker::{self, Trail};
use crate::cache::Served;
use crate::cluster::{self, Cluster, Reviewed, Verdict};
use crate::credentials::{Credentials, Keys};
use crate::identity::authorization::{self, Authorization, Presented};
use crate::identity::evidence::{Caller, Source};
use crate::identity::pods::{Pod, PodUid, ServiceAccountName};
use crate::metrics::Metrics;
use crate::role::{Defaults, RolePlan};
use crate::sts::{self, Sts};
use crate::telemetry::Lines;
use crate::token::BoundToken;
use crate::{server, time, warm};

/// A role for every test that needs one.
pub const ROLE: &str = "arn:aws:iam::123456789012:role/demo";

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}

/// A kube API: what a quorum list shows is set apart from what the watch has shown.
#[derive(Default)]
pub struct FakeCluster {
    pods: Mutex<Vec<Pod>>,
    away: Mutex<Option<cluster::Error>>,
    gone: Mutex<Vec<PodUid>>,
    delay: Mutex<Duration>,
    lists: AtomicU64,
    tokens: Mutex<Vec<PodUid>>,
    good: Mutex<BTreeMap<String, Reviewed>>,
    reviews: AtomicU64,
}

impl FakeCluster {
    /// What etcd has.
    pub fn set_pods(&self, pods: Vec<Pod>) {
        *locked(&self.pods) = pods;
    }

    /// Every call fails like this; `None` ends it.
    pub fn fail(&self, error: Option<cluster::Error>) {
        *locked(&self.away) = error;
    }

    /// TokenRequests for this pod are answered as for one that has gone.
    pub fn lose(&self, uid: &PodUid) {
        locked(&self.gone).push(uid.clone());
    }

    /// Every call takes this long.
    pub fn slow(&self, delay: Duration) {
        *locked(&self.delay) = delay;
    }

    /// Lists so far.
    pub fn lists(&self) -> u64 {
        self.lists.load(Ordering::Relaxed)
    }

    /// The pods that tokens were asked for, in order.
    pub fn tokens(&self) -> Vec<PodUid> {
        locked(&self.tokens).clone()
    }

    /// From now on this token is good, and whose it is.
    pub fn accept(&self, token: &str, reviewed: Reviewed) {
        locked(&self.good).insert(token.to_owned(), reviewed);
    }

    /// From now on this token is not good any more.
    pub fn reject(&self, token: &str) {
        locked(&self.good).remove(token);
    }

    /// A good token of that pod for the agent's default audience.
    pub fn token_of(&self, pod: &Pod) -> String {
        let token = token_of(pod, authorization::AUDIENCE, Duration::from_secs(600));
        self.accept(&token, reviewed(pod, authorization::AUDIENCE));
        token
    }

    /// TokenReviews so far.
    pub fn reviews(&self) -> u64 {
        self.reviews.load(Ordering::Relaxed)
    }

    async fn answer(&self) -> Result<(), cluster::Error> {
        let delay = *locked(&self.delay);
        tokio::time::sleep(delay).await;
        locked(&self.away).clone().map_or(Ok(()), Err)
    }
}

impl Cluster for FakeCluster {
    fn pods_now(&self) -> BoxFuture<'_, Result<Vec<Pod>, cluster::Error>> {
        Box::pin(async {
            self.lists.fetch_add(1, Ordering::Relaxed);
            self.answer().await?;
            Ok(locked(&self.pods).clone())
        })
    }

    fn request_token<'a>(
        &'a self,
        pod: &'a Pod,
        _audience: &'a str,
        life: Duration,
    ) -> BoxFuture<'a, Result<BoundToken, cluster::Error>> {
        Box::pin(async move {
            locked(&self.tokens).push(pod.uid.clone());
            self.answer().await?;
            if locked(&self.gone).contains(&pod.uid) {
                return Err(cluster::Error::PodGone(pod.name.to_string()));
            }
            Ok(BoundToken::new(minted_for(&pod.uid).into(), life))
        })
    }

    fn review_token<'a>(
        &'a self,
        token: &'a SecretString,
        _audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Verdict, cluster::Error>> {
        Box::pin(async move {
            self.reviews.fetch_add(1, Ordering::Relaxed);
            self.answer().await?;
            let reviewed = locked(&self.good).get(token.expose_secret()).cloned();
            Ok(reviewed.map_or_else(|| Verdict::Bad("the test said so".into()), Verdict::Good))
        })
    }
}

/// A JWT with these claims, which nobody has signed.
pub fn jwt(claims: &Value) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2lnbmF0dXJl", part(&json!({"alg": "RS256"})), part(claims))
}

/// What the fake kube API mints for the pod with this UID.
pub fn minted_for(uid: &PodUid) -> String {
    jwt(&json!({"jti": format!("jti-of-{uid}")}))
}

/// What a token of that pod looks like; no two are the same.
pub fn token_of(pod: &Pod, audience: &str, life: Duration) -> String {
    let account = &pod.service_account;
    jwt(&json!({
        "aud": [audience],
        "exp": time::plus(time::now(), life).as_second(),
        "sub": format!("system:serviceaccount:{}:{}", account.namespace, account.name),
        "jti": fastrand::u64(..).to_string(),
        "kubernetes.io": {"namespace": &*account.namespace, "pod": {"name": &*pod.name, "uid": pod.uid.as_str()}},
    }))
}

/// What the API server says of a good token of that pod.
pub fn reviewed(pod: &Pod, audience: &str) -> Reviewed {
    let account = &pod.service_account;
    Reviewed {
        user: format!("system:serviceaccount:{}:{}", account.namespace, account.name),
        audiences: vec![audience.into()],
        pod_name: Some(pod.name.to_string()),
        pod_uid: Some(pod.uid.to_string()),
        credential_id: Some("JTI=the-token-id".into()),
        ..Reviewed::default()
    }
}

/// An STS: one set of keys per call, numbered.
pub struct FakeSts {
    life: Mutex<Duration>,
    delay: Mutex<Duration>,
    failures: Mutex<VecDeque<sts::Error>>,
    failing: Mutex<Option<sts::Error>>,
    failing_roles: Mutex<BTreeMap<String, sts::Error>>,
    calls: AtomicU64,
    asked: Mutex<Vec<Asked>>,
    base: Option<Arc<BaseCredentials>>,
}

/// One call of STS.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What for.
    pub plan: RolePlan,
    /// The token that was shown; empty for AssumeRole.
    pub token: String,
    /// Whose keys signed the call: an access key id.
    pub signed_by: Option<String>,
    /// When.
    pub at: Instant,
    /// The same moment on the wall clock.
    pub at_wall: Timestamp,
}

impl Default for FakeSts {
    fn default() -> Self {
        Self {
            life: Mutex::new(Duration::from_secs(3600)),
            delay: Mutex::default(),
            failures: Mutex::default(),
            failing: Mutex::default(),
            failing_roles: Mutex::default(),
            calls: AtomicU64::new(0),
            asked: Mutex::default(),
            base: None,
        }
    }
}

impl FakeSts {
    /// Every call takes this long.
    pub fn slow(&self, delay: Duration) {
        *locked(&self.delay) = delay;
    }

    /// The next calls fail like this, in turn.
    pub fn fail_next(&self, errors: impl IntoIterator<Item = sts::Error>) {
        locked(&self.failures).extend(errors);
    }

    /// Every call fails like this; `None` ends it.
    pub fn fail(&self, error: Option<sts::Error>) {
        *locked(&self.failing) = error;
    }

    /// Every call for this role fails like this; `None` ends it.
    pub fn fail_role(&self, role: &str, error: Option<sts::Error>) {
        match error {
            Some(error) => locked(&self.failing_roles).insert(role.to_owned(), error),
            None => locked(&self.failing_roles).remove(role),
        };
    }

    /// What new sessions live.
    pub fn set_life(&self, life: Duration) {
        *locked(&self.life) = life;
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// All calls for this role, in order.
    pub fn calls_for(&self, role: &str) -> Vec<Asked> {
        locked(&self.asked).iter().filter(|asked| asked.plan.role.as_str() == role).cloned().collect()
    }

    /// The tokens that were shown, in order.
    pub fn shown(&self) -> Vec<String> {
        locked(&self.asked).iter().map(|asked| asked.token.clone()).collect()
    }

    /// The call that brought the keys with this id.
    ///
    /// # Panics
    /// Where it is no id of ours.
    pub fn asked_for(&self, access_key_id: &str) -> Asked {
        let number = access_key_id.strip_prefix("ASIA").and_then(|id| id.split('.').next());
        let number: usize = number.and_then(|number| number.parse().ok()).expect("an id that was given out");
        locked(&self.asked)[number - 1].clone()
    }
}

impl FakeSts {
    async fn answer(
        &self,
        plan: &RolePlan,
        token: String,
        signed_by: Option<String>,
    ) -> Result<Credentials, sts::Error> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let (at, at_wall) = (Instant::now(), time::now());
        locked(&self.asked).push(Asked { plan: plan.clone(), token, signed_by, at, at_wall });
        let delay = *locked(&self.delay);
        tokio::time::sleep(delay).await;
        let failure = locked(&self.failures).pop_front();
        let failure = failure.or_else(|| locked(&self.failing).clone());
        if let Some(error) = failure.or_else(|| locked(&self.failing_roles).get(plan.role.as_str()).cloned())
        {
            return Err(error);
        }
        let life = *locked(&self.life);
        Ok(Credentials {
            access_key_id: format!("ASIA{number:04}.{}", plan.account.name),
            secret_access_key: "the-secret-key".into(),
            session_token: "the-session-token".into(),
            expiration: time::plus(time::now(), life),
            life,
            request_id: Some(format!("sts-request-{number}")),
            packed_policy_percent: None,
        })
    }
}

impl Sts for FakeSts {
    fn base(&self) -> Option<&BaseCredentials> {
        self.base.as_deref()
    }

    fn assume_role_with_web_identity<'a>(
        &'a self,
        plan: &'a RolePlan,
        token: &'a BoundToken,
    ) -> BoxFuture<'a, Result<Credentials, sts::Error>> {
        Box::pin(self.answer(plan, token.expose().to_owned(), None))
    }

    fn assume_role<'a>(
        &'a self,
        plan: &'a RolePlan,
        keys: &'a Keys,
    ) -> BoxFuture<'a, Result<Credentials, sts::Error>> {
        Box::pin(self.answer(plan, String::new(), Some(keys.access_key_id.clone())))
    }
}

/// STS's refusal for good, as the real client sorts it.
pub fn denied() -> sts::Error {
    sts::Error::Denied { role: ROLE.into(), code: "AccessDenied".into(), fix: "Change the trust policy" }
}

/// ServiceAccount `name` of namespace `shop`.
pub fn account(name: &str) -> ServiceAccountName {
    ServiceAccountName { namespace: "shop".into(), name: name.into() }
}

/// A live pod of ServiceAccount `shop/name` with one address; its UID is `uid-NAME`.
pub fn pod(name: &str, address: &str) -> Pod {
    Pod {
        uid: PodUid::new(format!("uid-{name}")),
        name: name.into(),
        service_account: account(name),
        addresses: vec![address.parse::<IpAddr>().expect("the test's own address")],
        host_network: false,
        finished: false,
        terminating: false,
        asks: false,
        prefers_web_identity: false,
        asked: None,
    }
}

/// A new connection from `address` that the kernel shows to be pod `uid`'s; without one, it shows nothing.
pub fn caller(address: IpAddr, uid: Option<&PodUid>) -> Caller {
    let caller = Caller::new(SocketAddr::new(address, 40000), SocketAddr::from(([169, 254, 170, 23], 9902)));
    match uid {
        Some(uid) => caller.with_evidence(Ok(uid.clone())),
        None => caller,
    }
}

/// The agent's path between the two fakes: what the watches would show is told directly.
pub struct World {
    /// The kube API's door.
    pub cluster: Arc<FakeCluster>,
    /// STS's door.
    pub sts: Arc<FakeSts>,
    /// Everything between.
    pub app: App,
}

impl World {
    /// No pods yet, but synced.
    pub fn new() -> Self {
        Self::writing_to(std::io::sink())
    }

    /// With audit lines to `out`.
    pub fn writing_to(out: impl std::io::Write + Send + 'static) -> Self {
        Self::with_evidence(Source::Address, out)
    }

    /// With evidence from `source`, and audit lines to `out`.
    pub fn with_evidence(source: Source, out: impl std::io::Write + Send + 'static) -> Self {
        Self::with_authorization(source, Authorization::default(), out)
    }

    /// With evidence from `source`, callers' Authorization judged so, and access lines to `out`.
    pub fn with_authorization(
        source: Source,
        authorization: Authorization,
        out: impl std::io::Write + Send + 'static,
    ) -> Self {
        Self::between(FakeSts::default(), source, authorization, Defaults::of_node("node-1"), out)
    }

    /// `--sts-mode=assume-role`, with `base`.
    pub fn by_agent(base: &Arc<BaseCredentials>) -> Self {
        let plan = Defaults { by_agent: true, ..Defaults::of_node("node-1") };
        let sts = FakeSts { base: Some(Arc::clone(base)), ..FakeSts::default() };
        Self::between(sts, Source::Address, Authorization::default(), plan, std::io::sink())
    }

    /// Between the fake kube API and this STS, with these flags.
    pub fn between(
        sts: FakeSts,
        source: Source,
        authorization: Authorization,
        plan: Defaults,
        out: impl std::io::Write + Send + 'static,
    ) -> Self {
        let (cluster, sts) = (Arc::new(FakeCluster::default()), Arc::new(sts));
        let metrics = Arc::new(Metrics::new());
        let lines = Lines::start(out, metrics.dropped_lines.clone()).expect("a thread can be started");
        let app = App::new(
            source,
            authorization,
            plan,
            Arc::clone(&cluster) as _,
            Arc::clone(&sts) as _,
            metrics,
            lines,
        );
        app.pods.reset(Vec::new());
        Self { cluster, sts, app }
    }

    /// The kube API has this pod, and the watch has shown it.
    pub fn add_pod(&self, pod: Pod) {
        let mut all: Vec<Pod> = locked(&self.cluster.pods).clone();
        all.retain(|other| other.uid != pod.uid);
        all.push(pod.clone());
        self.cluster.set_pods(all);
        self.app.pods.apply(pod);
    }

    /// The kube API no longer has it, and the watch has said so.
    pub fn remove_pod(&self, uid: &PodUid) {
        locked(&self.cluster.pods).retain(|pod| pod.uid != *uid);
        self.app.pods.delete(uid);
    }

    /// ServiceAccount `shop/name` has these annotations.
    pub fn annotate(&self, name: &str, annotations: &[(&str, &str)]) {
        let annotations: BTreeMap<String, String> =
            annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.app.accounts.apply(&account(name), &format!("uid-{name}"), &annotations);
    }

    /// One request on the connection of `caller`, held as long as the endpoint holds it.
    ///
    /// # Errors
    /// The broker's.
    pub async fn credentials(&self, caller: &Caller) -> Result<Arc<Served>, broker::Error> {
        let deadline = Instant::now() + server::ecs::HOLD;
        self.app.broker().credentials(caller, &Presented::Nothing, deadline, &mut Trail::default()).await
    }

    /// Keeps the plans in step with the pods, as an agent that serves does.
    pub fn follow(&self) -> JoinHandle<()> {
        let app = &self.app;
        tokio::spawn(warm::follow(
            Arc::clone(&app.pods),
            Arc::clone(&app.accounts),
            Arc::clone(&app.cache),
            warm::Ahead::Showing,
        ))
    }

    /// A pod with a role: [`World::add_pod`] and [`World::annotate`] at once.
    pub fn pod_with_role(&self, name: &str, address: &str) {
        self.add_pod(Pod { asks: true, ..pod(name, address) });
        self.annotate(name, &[("rolecall.dev/role-arn", ROLE)]);
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

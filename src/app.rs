//! Builds every part, binds every listener, owns readiness and drain.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at};

use crate::admin::{self, Status};
use crate::audit::Audit;
use crate::base_credentials::BaseCredentials;
use crate::broker::Broker;
use crate::cache::Cache;
use crate::cluster::watch::WatchHealth;
use crate::cluster::{Cluster, api, client, node, version};
use crate::config::{self, Config, Kube};
use crate::credentials::{Credentials, Keys};
use crate::exchange::Exchange;
use crate::identity::Identity;
use crate::identity::authorization::{Authorization, TokenSource};
use crate::identity::evidence::Source;
use crate::identity::pods::Pods;
use crate::metrics::Metrics;
use crate::role::{Defaults, RolePlan};
use crate::server::front::Front;
use crate::server::imds::passthrough::Passthrough;
use crate::server::imds::token::Key;
use crate::server::limits::Limits;
use crate::server::{self, Door, ecs, imds};
use crate::service_accounts::ServiceAccounts;
use crate::shutdown::{self, Drain};
use crate::sts::{self, Sts, StsClient};
use crate::telemetry::Lines;
use crate::token::BoundToken;
use crate::token::Tokens;
use crate::token::issued::Issued;
use crate::token::shown::ShownTokens;
use crate::warm::{self, Ahead};
use crate::{identity, service_accounts, sys};

/// How often memory that a burst has freed is given back.
const TRIM: Duration = Duration::from_secs(30);
/// While the API server cannot be reached, the node's label is asked for again.
const REGION_RETRY: Duration = Duration::from_secs(2);

/// The path of a request, from "pod" to "answer", whatever its doors: the agent's and `rolecall dev`'s own.
pub struct App {
    /// This node's pods; whoever knows them fills it.
    pub pods: Arc<Pods>,
    /// Their ServiceAccounts; likewise.
    pub accounts: Arc<ServiceAccounts>,
    /// The plans in use.
    pub cache: Arc<Cache>,
    /// All series.
    pub metrics: Arc<Metrics>,
    /// Shown by `/statusz` and by every answer that is not credentials.
    pub instance: String,
    /// What was answered to whom.
    pub audit: Arc<Audit>,
    source: Source,
    pub(crate) broker: Arc<Broker>,
    imds: Option<(Vec<TcpListener>, imds::Settings)>,
}

impl App {
    /// Wires the path between the two doors.
    pub fn new(
        source: Source,
        authorization: Authorization,
        plan: Defaults,
        cluster: Arc<dyn Cluster>,
        sts: Arc<dyn Sts>,
        metrics: Arc<Metrics>,
        lines: Arc<Lines>,
    ) -> Self {
        let pods = Arc::new(Pods::default());
        let accounts = Arc::new(ServiceAccounts::new(plan));
        let minting = Arc::clone(&cluster);
        let (tokens, shown) = match &authorization.tokens {
            TokenSource::Kubernetes => (Tokens::Minted(minting), None),
            TokenSource::Issuer(door) => (Tokens::Issued(Issued::new(minting, door.clone())), None),
            TokenSource::Caller => {
                let shown = Arc::new(ShownTokens::new(Arc::clone(&pods)));
                (Tokens::Shown(Arc::clone(&shown)), Some(shown))
            }
        };
        let exchange = Exchange::new(Arc::clone(&pods), tokens, sts, Arc::clone(&metrics));
        let cache = Arc::new(Cache::new(Arc::new(exchange)));
        let identity = Identity::new(&source, authorization, Arc::clone(&pods), cluster);
        let broker =
            Broker::new(identity, Arc::clone(&accounts), Arc::clone(&cache), shown, Arc::clone(&metrics));
        let broker = Arc::new(broker);
        let instance = format!("{:016x}", fastrand::u64(..));
        let audit = Arc::new(Audit::new(Arc::clone(&metrics), lines));
        Self { pods, accounts, cache, metrics, instance, audit, source, broker, imds: None }
    }

    /// The same with instance metadata at `listeners`.
    #[must_use]
    pub fn with_imds(self, listeners: Vec<TcpListener>, settings: imds::Settings) -> Self {
        Self { imds: Some((listeners, settings)), ..self }
    }

    /// Keeps the agent's own credentials, and lets every plan that waits for others know of them.
    pub fn keep_base(&self, base: &Arc<BaseCredentials>, tasks: &mut JoinSet<()>) {
        let (kept, cache, mut changes) = (Arc::clone(base), Arc::clone(&self.cache), base.changes());
        tasks.spawn(async move { match kept.keep().await {} });
        tasks.spawn(async move {
            // The task above holds the other end.
            while changes.changed().await.is_ok() {
                cache.base_changed();
            }
        });
    }

    /// The path itself, without a listener before it.
    #[cfg(feature = "testing")]
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Instance metadata, without a listener before it.
    #[cfg(feature = "testing")]
    pub fn metadata(&self, settings: imds::Settings) -> Arc<imds::Endpoint> {
        let (broker, audit) = (Arc::clone(&self.broker), Arc::clone(&self.audit));
        imds::Endpoint::new(Front::new(broker, audit, &[], &self.instance), settings)
    }

    /// Serves `listeners` until `drain` begins, and keeps the plans in step with the pods.
    pub fn serve(self, listeners: Vec<TcpListener>, drain: &Drain, tasks: &mut JoinSet<()>) -> Result<()> {
        let front = |listeners: &[TcpListener]| {
            let (broker, audit) = (Arc::clone(&self.broker), Arc::clone(&self.audit));
            let addresses: std::io::Result<Vec<_>> = listeners.iter().map(TcpListener::local_addr).collect();
            addresses.map(|addresses| Front::new(broker, audit, &addresses, &self.instance))
        };
        let mut doors = vec![(Door::Ecs(ecs::Endpoint::new(front(&listeners)?)), listeners)];
        let mut ahead = Ahead::Showing;
        if let Some((listeners, settings)) = self.imds {
            doors.push((Door::Imds(imds::Endpoint::new(front(&listeners)?, settings)), listeners));
            ahead = Ahead::All;
        }
        let limits = Arc::new(Limits::default());
        for (door, listeners) in doors {
            for listener in listeners {
                let (source, door, limits) = (self.source.clone(), door.clone(), Arc::clone(&limits));
                tasks.spawn(server::serve(listener, source, door, limits, drain.clone()));
            }
        }
        tasks.spawn(warm::follow(self.pods, self.accounts, self.cache, ahead));
        let audit = self.audit;
        tasks.spawn(async move { match audit.keep_flushing().await {} });
        Ok(())
    }
}

/// Runs the node agent until a signal ends it.
///
/// # Errors
/// What made the start fail; passing trouble of the API server does not: the agent waits for it, not ready.
pub async fn agent(
    config: Config,
    imds_key: Option<Key>,
    metrics: Arc<Metrics>,
    lines: Arc<Lines>,
) -> Result<()> {
    sys::raise_descriptors().context("the limit on descriptors cannot be raised")?;
    tracing::info!(config = %config, version = env!("CARGO_PKG_VERSION"), "starting");
    let source = evidence(config.identity)?;
    let (trigger, drain) = shutdown::drain();
    let mut tasks = JoinSet::new();

    let listeners = bind("--listen", &config.listen)?;
    let imds = config.imds.clone().zip(imds_key);
    let imds =
        imds.map(|(imds, key)| Ok::<_, anyhow::Error>((bind("--imds-listen", &imds.listen)?, imds, key)));
    let imds = imds.transpose()?;
    let scraped = TcpListener::bind(config.metrics_listen)
        .await
        .with_context(|| format!("--metrics-listen {}", config.metrics_listen))?;
    let local = admin::bind_local(&config.local_socket).with_context(|| {
        format!("--local-socket {}: run `rolecall net install` first", config.local_socket.display())
    })?;

    let kubeconfig = match &config.kube {
        Kube::InCluster => None,
        Kube::Kubeconfig(path) => Some(path.as_path()),
    };
    let kubeconfig = client::config(kubeconfig).await?;
    let kube = client::clients(&kubeconfig, config.impersonate_node.then_some(&*config.node_name))?;
    config.check_audiences(&kubeconfig.auth_info)?;
    let api = Arc::new(api::KubeApi::new(kube.node.clone(), &*config.node_name));
    let base = config.sts_mode.base().map(|source| Arc::new(BaseCredentials::new(source.clone())));
    let sts = Arc::new(RegionalSts { client: OnceLock::new(), base: base.clone() });
    let mut app = App::new(
        source,
        config.authorization.clone(),
        config.plan.clone(),
        Arc::clone(&api) as _,
        Arc::clone(&sts) as _,
        metrics,
        lines,
    );
    if let Some(base) = &base {
        app.keep_base(base, &mut tasks);
    }

    let serves_imds = imds.is_some();
    if let Some((listeners, flags, key)) = imds {
        let facts = Arc::new(ArcSwap::default());
        tasks.spawn(node::follow(Arc::clone(&api), config.region.clone(), Arc::clone(&facts)));
        let passthrough = (!flags.passthrough.is_empty()).then(|| Passthrough::new(flags.passthrough));
        app = app.with_imds(listeners, imds::Settings { key, v1: flags.v1, facts, passthrough });
    }

    let (pods_watch, accounts_watch) = (Arc::new(WatchHealth::default()), Arc::new(WatchHealth::default()));
    let tokens = &config.authorization.tokens;
    let told = version::Told {
        as_node: config.impersonate_node,
        mints: config.sts_mode.base().is_none() && matches!(tokens, TokenSource::Kubernetes),
        has_issuer: matches!(tokens, TokenSource::Issuer(_)),
    };
    let own = kube.own.clone();
    let (client, node) = (kube.node, Arc::clone(&config.node_name));
    let (pods, health) = (Arc::clone(&app.pods), Arc::clone(&pods_watch));
    tasks.spawn(
        async move { match identity::watch::follow(client, &node, pods, health, serves_imds).await {} },
    );
    let (pods, accounts, health) =
        (Arc::clone(&app.pods), Arc::clone(&app.accounts), Arc::clone(&accounts_watch));
    let client = kube.own.clone();
    tasks
        .spawn(async move { match service_accounts::watch::follow(client, pods, accounts, health).await {} });
    let mut watches = vec![("pods", pods_watch), ("serviceaccounts", accounts_watch)];
    if !app.accounts.by_service_account() {
        let namespaces_watch = Arc::new(WatchHealth::default());
        let (client, pods, accounts, health) =
            (kube.own, Arc::clone(&app.pods), Arc::clone(&app.accounts), Arc::clone(&namespaces_watch));
        tasks.spawn(async move {
            match service_accounts::watch::follow_namespaces(client, pods, accounts, health).await {}
        });
        watches.push(("namespaces", namespaces_watch));
    }
    let status = Arc::new(Status {
        instance: app.instance.clone(),
        metrics: Arc::clone(&app.metrics),
        pods: Arc::clone(&app.pods),
        cache: Arc::clone(&app.cache),
        base,
        watches: Box::new(move |metrics| {
            for (resource, health) in &watches {
                metrics.watch(
                    resource,
                    health.restarts.load(Ordering::Relaxed),
                    health.last_event.load(Ordering::Relaxed),
                );
            }
        }),
    });
    tasks.spawn(admin::serve_metrics(scraped, Arc::clone(&status)));
    tasks.spawn(admin::serve_local(local, status));
    tasks.spawn(trim());
    let (pods, audit) = (Arc::clone(&app.pods), Arc::clone(&app.audit));
    app.serve(listeners, &drain, &mut tasks)?;
    drop(drain);

    let started = async {
        sts.connect(&config, &api).await?;
        tracing::info!("waiting for the kube API's first list of this node's pods");
        pods.wait_synced().await;
        tracing::info!(pods = pods.len(), "ready");
        std::future::pending::<Result<()>>().await
    };
    // As itself: whoever may not act as its node is to be told so.
    let advised = version::advise(&own, told).map(Ok);
    let started = async { tokio::try_join!(started, advised).map(|_| ()) };
    let signal = tokio::select! {
        signal = shutdown::signalled() => signal?,
        failed = started => return failed,
        // None of them ends before the drain. One that panicked would leave a live agent that does half its work.
        Some(ended) = tasks.join_next() => {
            ended.context("a part of the agent has failed")?;
            bail!("a part of the agent has ended by itself");
        }
    };
    tracing::info!(signal, "draining");
    // While the listeners are ours no successor has this name; once they are closed, the file may be its own.
    let _ = std::fs::remove_file(&config.local_socket);
    let drained = trigger.finish().await;
    audit.flush();
    tracing::info!(drained, "stopped");
    Ok(())
}

/// How callers are told apart. What the node does not allow ends the start: nobody asked for less.
fn evidence(identity: config::Identity) -> Result<Source> {
    match identity {
        config::Identity::Ip => {
            tracing::warn!(
                "--identity=ip believes the source address. It cannot see a pod that takes another's on a shared \
                 bridge, nor an address that has a new pod while the API server, or a watch that lags, still shows \
                 the old one; the README lists every case"
            );
            Ok(Source::Address)
        }
        #[cfg(target_os = "linux")]
        config::Identity::Kernel => {
            let kernel = identity::kernel::Kernel::start("/proc");
            let kernel =
                kernel.context("--identity=kernel is not possible on this node (--identity=ip may be)")?;
            Ok(Source::Kernel(Arc::new(kernel)))
        }
        #[cfg(not(target_os = "linux"))]
        config::Identity::Kernel => bail!("--identity=kernel needs Linux"),
    }
}

/// Every family is optional: one that the node lacks is a warning, none at all a failure.
fn bind(flag: &str, addresses: &[SocketAddr]) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        match server::bind(*address) {
            Ok(listener) => {
                tracing::info!(address = %listener.local_addr()?, "listening");
                listeners.push(listener);
            }
            Err(err) => tracing::warn!(%address, error = %err, "not listening here"),
        }
    }
    if listeners.is_empty() {
        bail!("no {flag} address could be bound; the log says why for each");
    }
    Ok(listeners)
}

/// STS, once this node's region is known. Until then it is away, which callers wait out.
struct RegionalSts {
    client: OnceLock<StsClient>,
    /// `--sts-mode=assume-role`
    base: Option<Arc<BaseCredentials>>,
}

impl RegionalSts {
    /// The region is `--region`'s, or the node's label's. An STS of one's own needs none.
    async fn connect(&self, config: &Config, api: &api::KubeApi) -> Result<()> {
        let region = match (&config.region, &config.sts.url) {
            (Some(region), _) => region.clone(),
            // Only signatures name it. Where an STS of one's own looks at it, it says so by its name, or calls itself that.
            (None, Some(url)) => sts::endpoint::region_of(url),
            (None, None) => self.region_of_node(api).await?,
        };
        let client = StsClient::new(&region, config.sts.clone())?;
        tracing::info!(region, endpoint = client.url(), "STS");
        let _ = self.client.set(client);
        Ok(())
    }

    async fn region_of_node(&self, api: &api::KubeApi) -> Result<String> {
        let mut said = false;
        loop {
            match api.facts().await.map(|facts| facts.region) {
                Ok(Some(region)) => return Ok(region.to_string()),
                Ok(None) => {
                    bail!("set --region or AWS_REGION: this node has no label topology.kubernetes.io/region")
                }
                Err(err) if !said => {
                    tracing::warn!(error = %err, "waiting for the kube API to ask for this node's region")
                }
                Err(_) => {}
            }
            said = true;
            tokio::time::sleep(REGION_RETRY).await;
        }
    }
}

impl Sts for RegionalSts {
    fn base(&self) -> Option<&BaseCredentials> {
        self.base.as_deref()
    }

    fn assume_role_with_web_identity<'a>(
        &'a self,
        plan: &'a RolePlan,
        token: &'a BoundToken,
    ) -> BoxFuture<'a, Result<Credentials, sts::Error>> {
        match self.client.get() {
            Some(client) => client.assume_role_with_web_identity(plan, token),
            None => Box::pin(async { Err(no_region()) }),
        }
    }

    fn assume_role<'a>(
        &'a self,
        plan: &'a RolePlan,
        keys: &'a Keys,
    ) -> BoxFuture<'a, Result<Credentials, sts::Error>> {
        match self.client.get() {
            Some(client) => client.assume_role(plan, keys),
            None => Box::pin(async { Err(no_region()) }),
        }
    }
}

fn no_region() -> sts::Error {
    sts::Error::Away("this node's region is not known yet".into())
}

async fn trim() {
    let mut ticks = interval_at(Instant::now() + TRIM, TRIM);
    loop {
        ticks.tick().await;
        sys::trim_memory();
    }
}

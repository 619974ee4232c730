//! `rolecall issuer`: a central signer of web-identity tokens, for clusters whose API server cannot be given an issuer that
//! STS reaches. Its key is in one Deployment, and on no node.
//!
//! An agent shows its own token and one of a pod on its node; [`proof`] asks the API server about both, and only then is a token
//! of ten minutes signed. The documents that STS needs are served by the same port, for whoever publishes them.

mod admin;
pub mod audit;
pub mod claims;
mod config;
pub mod files;
pub mod http;
pub mod keys;
pub mod metrics;
pub mod proof;
pub mod refusal;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use arc_swap::ArcSwap;
use bytes::Bytes;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at};
use tokio_rustls::TlsAcceptor;

pub use self::config::{AUDIENCE, Args, Config};

use self::audit::Audit;
use self::files::Files;
use self::http::Question;
use self::keys::Keys;
use self::metrics::Metrics;
use self::proof::{Prover, Trail};
use self::refusal::Refusal;
use crate::cluster::{Cluster, api::KubeApi, client};
use crate::config::Kube;
use crate::identity::authorization::Presented;
use crate::oidc::documents::{DISCOVERY, Documents, IssuerUrl, JWKS, jwks, pretty};
use crate::role::Claims;
use crate::server::tls;
use crate::telemetry::{Lines, in_full};
use crate::{shutdown, sys, time};

/// How often the mounted folders are looked at: the kubelet takes a minute to change them.
const LOOK: Duration = Duration::from_secs(5);
/// While the API server does not answer at the start, it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// The names of a Secret of type kubernetes.io/tls.
const CHAIN: &str = "tls.crt";
const KEY: &str = "tls.key";

/// A signed token, and what the audit line says of it.
pub struct Issued {
    /// The token.
    pub token: SecretString,
    /// Whom it is for.
    pub audience: String,
    /// Which session tags and source identity it has.
    pub of_session: Claims,
    /// Its `jti`.
    pub id: String,
    /// The key that signed it.
    pub kid: String,
}

/// All that answers a request.
pub struct Issuer {
    url: IssuerUrl,
    audiences: Vec<String>,
    /// The cluster's name, for a tag.
    cluster: String,
    prover: Prover,
    current: ArcSwap<Current>,
    tls: ArcSwap<TlsAcceptor>,
    audit: Audit,
    metrics: Arc<Metrics>,
}

/// The keys, and the documents that publish them.
struct Current {
    keys: Keys,
    discovery: Bytes,
    jwks: Bytes,
}

impl Current {
    fn new(url: &IssuerUrl, keys: Keys) -> Self {
        let published = keys.published.iter().map(crate::oidc::keys::PublicKey::jwk).collect();
        let documents = Documents { issuer: url.clone(), jwks_path: JWKS.to_owned(), keys: published };
        let discovery = pretty(&documents.discovery()).into();
        Self { discovery, jwks: pretty(&jwks(&documents.keys)).into(), keys }
    }
}

impl Issuer {
    /// An issuer of `config` that asks `cluster` whose tokens it is shown.
    ///
    /// # Errors
    /// Keys or certificate cannot be used.
    pub fn new(
        config: &Config,
        cluster: Arc<dyn Cluster>,
        metrics: Arc<Metrics>,
        lines: Arc<Lines>,
    ) -> Result<(Arc<Self>, Mounted)> {
        let (keys, tls) =
            (format!("--keys {}", config.keys.display()), format!("--tls {}", config.tls.display()));
        let mounted = Mounted {
            keys: Keys::files(&config.keys).with_context(|| keys.clone())?,
            tls: tls_files(&config.tls).with_context(|| tls.clone())?,
        };
        let keys = Keys::from_files(&mounted.keys).context(keys)?;
        let tls = acceptor(&mounted.tls).context(tls)?;
        metrics.published_keys.set(keys.published.len() as i64);
        let issuer = Arc::new(Self {
            url: config.issuer.clone(),
            audiences: config.allow_audience.clone(),
            cluster: config.cluster_name.clone(),
            prover: Prover::new(cluster, &config.audience, config.agent.clone()),
            current: ArcSwap::from_pointee(Current::new(&config.issuer, keys)),
            tls: ArcSwap::from_pointee(tls),
            audit: Audit::new(Arc::clone(&metrics), lines),
            metrics,
        });
        Ok((issuer, mounted))
    }

    /// THE STORY: a token for the pod whose token is in `question`, if the agent of its node asks.
    async fn token(
        &self,
        agent: &Presented,
        question: &Question,
        source: IpAddr,
        deadline: Instant,
        trail: &mut Trail,
    ) -> Result<Issued, Refusal> {
        if !self.audiences.contains(&question.audience) {
            return Err(Refusal::AudienceNotAllowed(question.audience.chars().take(100).collect()));
        }
        let proved = self.prover.prove(agent, &question.token, source, deadline, trail).await?;
        let Question { audience, session_tags, source_identity, .. } = question;
        let of_session = claims::of_session(
            proved.pod(),
            &self.cluster,
            session_tags.as_deref(),
            source_identity.as_deref(),
        );
        let of_session = of_session.map_err(Refusal::ClaimNotAllowed)?;
        let claims = claims::claims(self.url.as_str(), audience, proved.pod(), &of_session, time::now());
        let signing = &self.current.load().keys.signing;
        Ok(Issued {
            token: signing.sign(&claims),
            audience: audience.clone(),
            of_session,
            id: claims["jti"].as_str().expect("it has just been made").to_owned(),
            kid: signing.kid().to_owned(),
        })
    }

    /// One of the two documents, where it is below the issuer's URL.
    fn document(&self, path: &str) -> Option<Bytes> {
        let current = self.current.load();
        let at = |document: &str| {
            // An issuer is https://HOST[/PATH]: what follows the host is where it is served.
            let url = self.url.below(document);
            url.splitn(4, '/').nth(3) == path.strip_prefix('/')
        };
        [(DISCOVERY, &current.discovery), (JWKS, &current.jwks)]
            .into_iter()
            .find_map(|(document, text)| at(document).then(|| text.clone()))
    }

    fn tls(&self) -> Arc<TlsAcceptor> {
        self.tls.load_full()
    }

    /// Takes what has changed in the mounted folders. What cannot be used is logged and counted, and changes nothing.
    fn renew(&self, config: &Config, mounted: &mut Mounted) {
        renew("keys", &self.metrics, &mut mounted.keys, Keys::files(&config.keys), |files| {
            let keys = Keys::from_files(files)?;
            let before = self.current.load();
            // STS keeps the keys that it has fetched: what the new one signs would be refused there, for nobody knows how long.
            if !before.keys.published.contains(keys.signing.public()) {
                bail!(
                    "the key in {} was never published: publish it first, and let it sign later",
                    keys::SIGNING
                );
            }
            self.metrics.published_keys.set(keys.published.len() as i64);
            tracing::info!(key.id = keys.signing.kid(), published = keys.published.len(), "new keys");
            self.current.store(Arc::new(Current::new(&self.url, keys)));
            Ok(())
        });
        renew("tls", &self.metrics, &mut mounted.tls, tls_files(&config.tls), |files| {
            self.tls.store(Arc::new(acceptor(files)?));
            tracing::info!("new serving certificate");
            Ok(())
        });
    }

    /// Resolves when the API server answers our questions.
    async fn until_it_may_ask(&self) {
        let mut said = None;
        loop {
            let Err(err) = self.prover.may_ask().await else { return };
            let why = err.to_string();
            if said.as_ref() != Some(&why) {
                tracing::error!(error = why, "not ready: may it create tokenreviews.authentication.k8s.io?");
                said = Some(why);
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}

/// The mounted folders as they were last looked at.
pub struct Mounted {
    keys: Files,
    tls: Files,
}

fn tls_files(folder: &Path) -> Result<Files, files::Error> {
    Files::read(folder, |name| name == CHAIN || name == KEY)
}

fn acceptor(files: &Files) -> Result<TlsAcceptor> {
    let file = |name| files.get(name).with_context(|| format!("{name} is missing"));
    Ok(tls::acceptor(file(CHAIN)?, file(KEY)?)?)
}

fn renew(
    what: &'static str,
    metrics: &Metrics,
    known: &mut Files,
    read: Result<Files, files::Error>,
    take: impl FnOnce(&Files) -> Result<()>,
) {
    let failed = |error: &anyhow::Error| {
        metrics.reload_failed(what);
        tracing::error!(error = in_full(error.as_ref()), what, "the old ones are kept");
    };
    match read {
        Ok(files) if files.same_as(known) => {}
        Ok(files) => {
            if let Err(error) = take(&files) {
                failed(&error);
            }
            // What cannot be used is said once, not every time that it is looked at.
            *known = files;
        }
        Err(error) => failed(&error.into()),
    }
}

/// Runs the issuer until a signal ends it.
///
/// # Errors
/// What made the start fail. An API server that does not answer yet does not: it is waited for, not ready.
pub async fn run(config: Config, metrics: Arc<Metrics>, lines: Arc<Lines>) -> Result<()> {
    sys::raise_descriptors().context("the limit on descriptors cannot be raised")?;
    tracing::info!(config = %config, version = env!("CARGO_PKG_VERSION"), "starting");
    let (trigger, drain) = shutdown::drain();
    let kubeconfig = match &config.kube {
        Kube::InCluster => None,
        Kube::Kubeconfig(path) => Some(path.as_path()),
    };
    let kube = client::client(&client::config(kubeconfig).await?)?;
    // It asks about tokens alone, and those know their node themselves.
    let cluster = Arc::new(KubeApi::new(kube, ""));
    let (issuer, mut mounted) = Issuer::new(&config, cluster, Arc::clone(&metrics), lines)?;
    let listen = |flag: &'static str, at| async move {
        TcpListener::bind(at).await.with_context(|| format!("--{flag} {at}"))
    };
    let listener = listen("listen", config.listen).await?;
    let admin = listen("admin-listen", config.admin_listen).await?;
    tracing::info!(
        listen = %listener.local_addr()?, admin = %admin.local_addr()?,
        key.id = issuer.current.load().keys.signing.kid(), "listening"
    );
    let status = Arc::new(admin::Status::new(metrics));
    let mut tasks = JoinSet::new();
    tasks.spawn(http::serve(listener, Arc::clone(&issuer), drain.clone()));
    tasks.spawn(admin::serve(admin, Arc::clone(&status)));
    drop(drain);
    let renewed = Arc::clone(&issuer);
    tasks.spawn(async move {
        let mut ticks = interval_at(Instant::now() + LOOK, LOOK);
        loop {
            ticks.tick().await;
            renewed.renew(&config, &mut mounted);
        }
    });
    let started = async {
        issuer.until_it_may_ask().await;
        status.set_ready();
        tracing::info!("ready");
        std::future::pending::<()>().await;
    };
    let signal = tokio::select! {
        signal = shutdown::signalled() => signal?,
        () = started => unreachable!("it waits for ever"),
        Some(ended) = tasks.join_next() => {
            ended.context("a part of the issuer has failed")?;
            bail!("a part of the issuer has ended by itself");
        }
    };
    tracing::info!(signal, "draining");
    let drained = trigger.finish().await;
    tracing::info!(drained, "stopped");
    Ok(())
}

#[cfg(test)]
#[path = "issuer/tests.rs"]
mod tests;

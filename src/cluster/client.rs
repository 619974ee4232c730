//! The connection to the API server: HTTP/2 with PING under `kube::Client`, shared by all watches and calls.
//!
//! kube's own transport speaks HTTP/1.1, which is a TLS connection per watch: 30 a node, 150,000 for the API
//! server of 5,000 nodes, and nothing notices one that has silently died. Here they are streams of one
//! connection, and a PING finds it dead.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connection as _, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::{Body, ConfigExt, RustlsTlsError};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use tokio::net::TcpStream;
use tower::{BoxError, Service, ServiceBuilder};

use crate::config::Kube;

/// TCP and TLS together; the API server is near, and every waiter has a deadline of its own.
const CONNECT: Duration = Duration::from_secs(5);
/// A dead connection is dropped after at most PING + PONG = 20 s, so that watches are back within 30 s.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(10);
/// kube-apiserver takes 100 streams a connection unless told otherwise, and a request beyond them waits for a
/// watch to end: a node of 110 ServiceAccounts would never mint another token. A second connection is opened
/// before that.
/// <https://github.com/kubernetes/kubernetes/blob/v1.36.0/staging/src/k8s.io/apiserver/pkg/server/secure_serving.go>
const STREAMS: usize = 90;

/// In a pod: beside it lie the CA and the namespace.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of `--kubeconfig` cannot be used.
    #[error("--kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KubeconfigError,
    },
    /// No `--kubeconfig`, and not in a pod either.
    #[error(
        "this is not a pod with a ServiceAccount: name the cluster by --kubeconfig, such as ~/.kube/config"
    )]
    InCluster(#[source] InClusterError),
    /// A kubeconfig's `proxy-url`.
    #[error("the kubeconfig has a proxy-url, which is not supported: name the API server itself")]
    Proxy,
    /// CA, client certificate or credentials cannot be loaded.
    #[error("the kube client cannot be built")]
    Setup(#[source] kube::Error),
}

/// Where the API server is and who we are: `--kubeconfig`, or the pod's own ServiceAccount. A kubeconfig that
/// merely lies about (`KUBECONFIG`, `~/.kube`) is never taken: an agent must not act for whoever is logged in.
///
/// In a pod, token and CA are read again from their files about once a minute.
///
/// # Errors
/// [`Error`]: neither is there, or it cannot be read.
pub async fn config(kubeconfig: Option<&Path>) -> Result<kube::Config, Error> {
    let Some(path) = kubeconfig else { return kube::Config::incluster().map_err(Error::InCluster) };
    let unusable = |source| Error::Kubeconfig { path: path.to_owned(), source };
    let file = Kubeconfig::read_from(path).map_err(unusable)?;
    let named =
        file.clusters.iter().any(|named| named.cluster.as_ref().is_some_and(|it| it.proxy_url.is_some()));
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    let mut config = config.map_err(unusable)?;
    // kube takes HTTPS_PROXY for it, whatever NO_PROXY says. That is for STS: the API server is near.
    if !named {
        config.proxy_url = None;
    }
    Ok(config)
}

/// The files that [`config`] and the client read, now and after each renewal: the kubeconfig and those that it names, or the pod's own.
#[must_use]
pub fn files(kube: &Kube) -> Vec<PathBuf> {
    let Kube::Kubeconfig(path) = kube else { return vec![SERVICE_ACCOUNT.into()] };
    let mut files = vec![path.clone()];
    // What is wrong with it is said when it is used.
    if let Ok(file) = Kubeconfig::read_from(path) {
        let clusters = file.clusters.into_iter().filter_map(|named| named.cluster);
        files.extend(clusters.filter_map(|cluster| cluster.certificate_authority).map(PathBuf::from));
        for user in file.auth_infos.into_iter().filter_map(|named| named.auth_info) {
            let named = [user.client_certificate, user.client_key, user.token_file];
            files.extend(named.into_iter().flatten().map(PathBuf::from));
        }
    }
    files
}

/// One connection, and two who ask over it: what the API server allows depends on who does.
#[derive(Clone)]
pub struct Clients {
    /// Asks as the agent's own ServiceAccount.
    pub own: kube::Client,
    /// Asks as the agent's node, if it is to impersonate it; else as `own` does.
    pub node: kube::Client,
}

/// Clients over one connection. It dials when first used, and again whenever the connection is lost; it never
/// retries a request, and only its callers know how long one may take.
///
/// `node` is the node to impersonate. The name alone is sent: the API server gives it a node's group itself, and
/// refuses every other header of impersonation beside it.
/// <https://kubernetes.io/docs/reference/access-authn-authz/user-impersonation/#constrained-impersonation>
///
/// # Errors
/// [`Error`]: the configuration's files or certificates cannot be used.
pub fn clients(config: &kube::Config, node: Option<&str>) -> Result<Clients, Error> {
    if config.proxy_url.is_some() {
        return Err(Error::Proxy);
    }
    let transport = Transport::new(config).map_err(Error::Setup)?;
    let own = over(transport.clone(), config).map_err(Error::Setup)?;
    let node = match node {
        None => own.clone(),
        Some(node) => {
            let mut config = config.clone();
            config.auth_info.impersonate = Some(format!("system:node:{node}"));
            over(transport, &config).map_err(Error::Setup)?
        }
    };
    Ok(Clients { own, node })
}

/// A client of whoever `config` says.
///
/// # Errors
/// As [`clients`].
pub fn client(config: &kube::Config) -> Result<kube::Client, Error> {
    Ok(clients(config, None)?.own)
}

fn over(transport: Transport, config: &kube::Config) -> Result<kube::Client, kube::Error> {
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(transport);
    Ok(kube::Client::new(service, config.default_namespace.clone()))
}

/// Connections by the streams they carry: in practice one.
#[derive(Clone)]
struct Transport {
    connector: Connector,
    http2: Arc<Mutex<Vec<Connection>>>,
    http1: legacy::Client<Connector, Body>,
    /// Set when the API server (or a proxy before it) turned out not to speak HTTP/2.
    http1_only: Arc<AtomicBool>,
}

/// At most one TCP connection; `streams` is held once more by every response that is still being read.
#[derive(Clone)]
struct Connection {
    client: legacy::Client<Connector, Body>,
    streams: Arc<()>,
}

impl Transport {
    fn new(config: &kube::Config) -> Result<Self, kube::Error> {
        let http1_only = Arc::new(AtomicBool::new(false));
        let connector =
            Connector { tls: tls(config, true)?, http2: true, http1_only: Arc::clone(&http1_only) };
        let http1 = legacy::Builder::new(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(Connector { tls: tls(config, false)?, http2: false, http1_only: Arc::clone(&http1_only) });
        Ok(Self { connector, http2: Arc::default(), http1, http1_only })
    }

    /// The first connection with room for a stream, or a new one. The caller's copy counts as a stream.
    fn connection(&self) -> Connection {
        let mut connections = self.http2.lock().unwrap_or_else(PoisonError::into_inner);
        let room = |connection: &&Connection| Arc::strong_count(&connection.streams) <= STREAMS;
        if let Some(connection) = connections.iter().find(room) {
            return connection.clone();
        }
        let client = legacy::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            // `http2_only` makes requests that come together wait for one dial instead of dialling each.
            .http2_only(true)
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(PONG)
            .http2_keep_alive_while_idle(true)
            // A pool that forgets a connection while watches run on it would dial a second one. The API server
            // closes one that carries nothing.
            .pool_idle_timeout(None)
            .build(self.connector.clone());
        let connection = Connection { client, streams: Arc::new(()) };
        connections.push(connection.clone());
        connection
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<UnsyncBoxBody<Bytes, hyper::Error>>;
    type Error = legacy::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if self.http1_only.load(Ordering::Relaxed) {
            let answer = self.http1.request(request);
            return Box::pin(async move { Ok(answer.await?.map(BodyExt::boxed_unsync)) });
        }
        let Connection { client, streams } = self.connection();
        let answer = client.request(request);
        Box::pin(async move {
            let answer = answer.await?;
            // The closure, and with it the count, lives as long as the body: a watch's body is the watch.
            Ok(answer.map(|body| {
                body.map_frame(move |frame| {
                    let _ = &streams;
                    frame
                })
                .boxed_unsync()
            }))
        })
    }
}

/// TCP and TLS within [`CONNECT`], and the check of what was negotiated.
#[derive(Clone)]
struct Connector {
    tls: HttpsConnector<HttpConnector>,
    /// May only an HTTP/2 connection come of it?
    http2: bool,
    http1_only: Arc<AtomicBool>,
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tls.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.tls.call(uri);
        let http1_only = self.http2.then(|| Arc::clone(&self.http1_only));
        Box::pin(async move {
            let stream = tokio::time::timeout(CONNECT, connecting)
                .await
                .map_err(|_| format!("no connection within {} s", CONNECT.as_secs()))??;
            if let Some(http1_only) = http1_only
                && !stream.connected().is_negotiated_h2()
            {
                if !http1_only.swap(true, Ordering::Relaxed) {
                    tracing::warn!("the API server does not speak HTTP/2: one connection per watch");
                }
                return Err("no HTTP/2: the next attempt speaks HTTP/1.1".into());
            }
            Ok(stream)
        })
    }
}

fn tls(config: &kube::Config, http2: bool) -> Result<HttpsConnector<HttpConnector>, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    let mut builder =
        HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?).https_or_http();
    if let Some(name) = config.tls_server_name.clone() {
        let name = name
            .try_into()
            .map_err(|invalid| kube::Error::RustlsTls(RustlsTlsError::InvalidServerName(invalid)))?;
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    Ok(if http2 {
        // Both are offered, so that an old proxy answers and can be told from a dead one.
        builder.enable_all_versions().wrap_connector(tcp)
    } else {
        builder.enable_http1().wrap_connector(tcp)
    })
}

#[cfg(test)]
#[path = "client/tests.rs"]
mod tests;

//! `rolecall emulator`: an STS that behaves like AWS's where it matters.
//!
//! Web-identity tokens are verified against their issuer's keys, trust policies are evaluated, signatures are
//! checked. What it does not have is the rest of IAM: session policies and users' permissions count for nothing.
//!
//! Everything it knows stands in one YAML file:
//!
//! ```yaml
//! # Whose tokens count: IAM's OpenID Connect identity providers.
//! issuers:
//!   - url: https://oidc.example.com/cluster-a      # the `iss` of its tokens
//!     audiences: [sts.amazonaws.com]               # optional; this is the default
//!     accounts: ["111122223333"]                   # optional; default: every account that has a role below
//!     jwks_file: cluster-a-jwks.json               # its keys; paths are relative to this file
//!   - url: https://oidc.example.com/cluster-b      # without jwks or jwks_file: OpenID Connect discovery
//!     discovery_url: https://127.0.0.1:6443/.well-known/openid-configuration   # optional
//!     ca_file: ca.pem                              # optional
//!   - api_server: true                             # the API server of --kubeconfig, or in a pod its own: `iss` and keys
//!
//! # For clusters on a laptop: every other role exists, too, and trusts whomever an issuer names.
//! any_role: true
//!
//! # What may be assumed, and by whom: IAM's trust policies, as YAML or as the JSON text that you have already.
//! roles:
//!   - arn: arn:aws:iam::111122223333:role/web
//!     max_session_duration: 12h                    # optional; default 1h
//!     trust_policy:
//!       Version: "2012-10-17"
//!       Statement:
//!         - Effect: Allow
//!           Principal:
//!             Federated: arn:aws:iam::111122223333:oidc-provider/oidc.example.com/cluster-a
//!           Action: sts:AssumeRoleWithWebIdentity
//!           Condition:
//!             StringEquals:
//!               oidc.example.com/cluster-a:aud: sts.amazonaws.com
//!             StringLike:
//!               oidc.example.com/cluster-a:sub: system:serviceaccount:shop:*
//!
//! # Who signs AssumeRole without having assumed a role before.
//! users:
//!   - arn: arn:aws:iam::111122223333:user/broker
//!     access_key_id: AKIAIOSFODNN7EXAMPLE
//!     secret_access_key: wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY
//!
//! # Trouble from the start; the same objects as on POST /_emulator/faults.
//! faults:
//!   - {action: AssumeRoleWithWebIdentity, delay_ms: 300, code: Throttling, count: 2}
//! ```
//!
//! The control endpoint: `GET /_emulator/calls` counts calls by action and role; `POST /_emulator/faults` adds a
//! [`Fault`] (JSON, `Content-Type: application/json`), `DELETE` removes all.

mod actions;
mod arn;
mod config;
mod error;
mod faults;
mod issuer;
mod jwt;
mod keys;
mod params;
mod policy;
mod query;
mod session_claims;
mod sessions;
mod sigv4;
mod xml;

use std::borrow::Cow;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::{SignedDuration, Timestamp};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::server::tls;
use crate::telemetry::in_full;

pub use config::{Config, IssuerConfig, Mistakes, RoleConfig, UserConfig};
pub use faults::{Calls, Fault};
pub use issuer::Issuer;

/// The actions of STS that are emulated.
const ACTIONS: [&str; 3] = ["AssumeRoleWithWebIdentity", "AssumeRole", "GetCallerIdentity"];

/// For a request's head, and for a TLS handshake.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long calls may go on once the emulator is told to stop.
const DRAIN: Duration = Duration::from_secs(2);

/// `EX_USAGE`: bad configuration, as opposed to a start that failed.
const EXIT_USAGE: u8 = 64;

/// `rolecall emulator`
#[derive(clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub struct Args {
    /// YAML file with issuers, roles and users (see --help for an example)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Kubeconfig of the API server whose tokens count, for `api_server: true` [default: in a pod, its own]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Address to listen on; port 0 takes a free one. The bound URL is the one line on stdout
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9910")]
    listen: SocketAddr,

    /// Serve TLS with this certificate chain (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

const LONG_HELP: &str = r#"Example of a file:

  issuers:
    - url: https://oidc.example.com/a            # the iss of its tokens
      jwks_file: jwks.json                       # or jwks: …, or neither: OpenID Connect discovery
                                                 # (discovery_url, ca_file)
    - api_server: true                           # that of --kubeconfig, or in a pod its own: iss and keys
  roles:
    - arn: arn:aws:iam::111122223333:role/web
      max_session_duration: 12h                  # default 1h
      trust_policy:                              # as in IAM; JSON text is good too
        Version: "2012-10-17"
        Statement:
          - Effect: Allow
            Principal:
              Federated: arn:aws:iam::111122223333:oidc-provider/oidc.example.com/a
            Action: sts:AssumeRoleWithWebIdentity
            Condition:
              StringLike:
                oidc.example.com/a:sub: system:serviceaccount:shop:*
  any_role: true                                 # all other roles exist as well, and trust whomever an issuer names
  users:
    - arn: arn:aws:iam::111122223333:user/broker
      access_key_id: AKIAIOSFODNN7EXAMPLE
      secret_access_key: wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY
  faults:
    - {action: AssumeRole, delay_ms: 300, code: Throttling, count: 2}

Use it:  export AWS_ENDPOINT_URL_STS=http://127.0.0.1:9910

Control: GET /_emulator/calls; GET, POST, DELETE /_emulator/faults, a fault being
  {"action": …, "role": …, "delay_ms": …, "code": … | "body": …, "status": …, "count": …}

Tokens, trust policies and signatures are checked for real. IAM's other policies do not exist here."#;

/// Why the emulator does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Everything that is wrong with the configuration.
    #[error(transparent)]
    Config(#[from] Mistakes),
    /// The certificate or the key of `--tls-cert` and `--tls-key`.
    #[error("TLS: {message}")]
    Tls {
        /// Which file, and what is wrong with it.
        message: String,
    },
    /// The address is taken, or is not ours.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the kernel says.
        source: std::io::Error,
    },
}

/// Runs the emulator until it is told to stop.
pub fn run(args: Args) -> ExitCode {
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).try_init();
    drop(log); // Somebody else's subscriber is good as well.
    let started = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(start(args)));
    let Err(err) = started else { return ExitCode::SUCCESS };
    eprintln!("rolecall emulator: {}", in_full(err.as_ref()));
    match err.downcast_ref::<Error>() {
        Some(Error::Config(_) | Error::Tls { .. }) => ExitCode::from(EXIT_USAGE),
        Some(Error::Listen { .. }) | None => ExitCode::FAILURE,
    }
}

async fn start(args: Args) -> anyhow::Result<()> {
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(Tls::read(cert, key)?),
        _ => None,
    };
    let mut config = Config::read(&args.config).map_err(Error::from)?;
    config.issuers.iter_mut().for_each(|issuer| issuer.kubeconfig.clone_from(&args.kubeconfig));
    let mut bound = Emulator::bind(config, args.listen).await?;
    if let Some(tls) = tls {
        bound = bound.with_tls(tls);
    }
    let mut interrupted = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    // One line, for scripts: export AWS_ENDPOINT_URL_STS=<that line>
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", bound.url())?;
    stdout.flush()?;
    let emulator = bound.emulator();
    let serving = tokio::spawn(bound.serve());
    tokio::select! {
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    emulator.shutdown();
    serving.await?;
    Ok(())
}

/// What the emulator knows and remembers.
struct World {
    account: config::Account,
    state: Mutex<State>,
}

struct State {
    sessions: sessions::Sessions,
    faults: faults::Faults,
    counters: faults::Counters,
    clock_ahead: SignedDuration,
}

impl World {
    fn now(&self) -> Timestamp {
        Timestamp::now() + self.state.lock().unwrap_or_else(PoisonError::into_inner).clock_ahead
    }

    fn role(&self, arn: &arn::RoleArn) -> Option<Cow<'_, config::Role>> {
        self.account.role(arn)
    }

    fn role_named(&self, arn: &str) -> Option<&config::Role> {
        self.account.roles.iter().find(|role| role.arn.as_str() == arn)
    }
}

/// A running emulator, from the outside: what tests steer it with and ask it.
#[derive(Clone)]
pub struct Emulator {
    world: Arc<World>,
    stop: watch::Sender<bool>,
}

/// An emulator that holds its address and does not serve yet.
pub struct Bound {
    emulator: Emulator,
    listener: TcpListener,
    addr: SocketAddr,
    tls: Option<TlsAcceptor>,
}

impl Emulator {
    /// Checks `config`, reads the files it names, and takes `addr` (port 0: any free one).
    ///
    /// # Errors
    /// Every mistake in the configuration, or the address cannot be had.
    pub async fn bind(mut config: Config, addr: SocketAddr) -> Result<Bound, Error> {
        config.ask_api_servers().await?;
        let account = config.check()?;
        let failed = |source| Error::Listen { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let mut faults = faults::Faults::default();
        account.faults.iter().cloned().for_each(|fault| faults.add(fault));
        let state = State {
            sessions: sessions::Sessions::new(),
            faults,
            counters: faults::Counters::default(),
            clock_ahead: SignedDuration::ZERO,
        };
        let world = Arc::new(World { account, state: Mutex::new(state) });
        let emulator = Self { world, stop: watch::Sender::new(false) };
        Ok(Bound { emulator, listener, addr, tls: None })
    }

    /// Adds a fault; the first that fits a call is the one it gets.
    ///
    /// # Errors
    /// What makes no sense about it.
    pub fn add_fault(&self, fault: Fault) -> Result<(), Mistakes> {
        fault.check().map_err(|mistake| Mistakes(vec![mistake]))?;
        self.state().faults.add(fault);
        Ok(())
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<Calls> {
        self.state().counters.list()
    }

    /// How many calls of `action` have arrived, for all roles.
    pub fn received(&self, action: &str) -> u64 {
        self.calls().iter().filter(|calls| calls.action == action).map(|calls| calls.received).sum()
    }

    /// Moves the emulator's clock (also backwards): sessions and tokens expire without waiting for it.
    pub fn move_clock(&self, by: SignedDuration) {
        self.state().clock_ahead += by;
    }

    /// Stops accepting; calls under way have two seconds.
    pub fn shutdown(&self) {
        self.stop.send_replace(true);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.world.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bound {
    /// The address that was taken.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What `AWS_ENDPOINT_URL_STS` should be.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.addr)
    }

    /// A handle on it, for as long as it serves.
    pub fn emulator(&self) -> Emulator {
        self.emulator.clone()
    }

    /// Serves TLS instead of plain HTTP.
    #[must_use]
    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls.0);
        self
    }

    /// Serves until [`Emulator::shutdown`].
    pub async fn serve(self) {
        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stopped(self.emulator.stop.subscribe()));
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let _ = stream.set_nodelay(true);
                        let (world, stop) = (self.emulator.world.clone(), self.emulator.stop.subscribe());
                        match self.tls.clone() {
                            None => connections.spawn(serve_connection(stream, world, stop)),
                            Some(tls) => connections.spawn(async move {
                                if let Ok(Ok(stream)) = tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
                                    serve_connection(stream, world, stop).await;
                                }
                            }),
                        };
                    }
                    // No descriptor left, most likely. It passes; until then the loop must not spin.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                },
                Some(_) = connections.join_next() => {}
                () = &mut stop => break,
            }
        }
        drop(self.listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRAIN, drained).await;
    }
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    world: Arc<World>,
    stop: watch::Receiver<bool>,
) {
    let service = service_fn(|request| {
        let world = world.clone();
        async move { Ok::<_, std::convert::Infallible>(query::answer(&world, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stopped(stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// A certificate chain and its key, ready to serve.
pub struct Tls(TlsAcceptor);

impl Tls {
    /// Reads PEM files.
    ///
    /// # Errors
    /// [`Error::Tls`] naming the file.
    pub fn read(cert: &Path, key: &Path) -> Result<Self, Error> {
        let read = |path: &Path| {
            let wrong = |err| Error::Tls { message: format!("{}: {err}", path.display()) };
            std::fs::read(path).map_err(wrong)
        };
        let acceptor = tls::acceptor(&read(cert)?, &read(key)?);
        acceptor.map(Self).map_err(|wrong| {
            let file = match &wrong {
                tls::Error::Key(_) => key,
                tls::Error::Certificate(_) | tls::Error::Pair(_) => cert,
            };
            Error::Tls { message: format!("{}: {wrong}", file.display()) }
        })
    }
}

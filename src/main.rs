//! Arguments, TLS provider, logs, and which command runs. Exit codes: 0 good, 1 failed, 64 bad usage or configuration.
#![warn(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use prometheus::IntCounter;
use rolecall::config::{self, Config, Mistakes, variables};
use rolecall::harden::{self, FileSystem};
use rolecall::metrics::Metrics;
use rolecall::server::imds::token::Key;
use rolecall::telemetry::{self, Lines};
use rolecall::{admin, app, dev, emulator, explain, issuer, oidc, roles};

/// Pod Identity for any Kubernetes: annotate a ServiceAccount, and its pods get that AWS role.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of them in a process")]
enum Command {
    /// The node agent.
    Agent(config::Args),
    /// Ask the agent of this node whether it is live or ready; for the kubelet.
    Probe {
        /// What to ask.
        what: Probe,
        /// The agent's Unix socket.
        #[arg(long, env = "ROLECALL_LOCAL_SOCKET", default_value = config::LOCAL_SOCKET)]
        local_socket: PathBuf,
    },
    /// Link-local addresses, guard and redirect of this node: install, keep, verify, remove.
    #[cfg(target_os = "linux")]
    Net(rolecall::net::Args),
    /// Try it here: emulator and broker on loopback; no cluster, no root, no AWS account.
    Dev(dev::Args),
    /// An STS that validates: web-identity tokens, trust policies, GetCallerIdentity.
    Emulator(emulator::Args),
    /// Sign web-identity tokens for agents: for clusters whose API server cannot be given an issuer that STS reaches.
    Issuer(issuer::Args),
    /// Before moving in: each pod of the cluster, its role today by another tool, and the one it would get.
    Explain(Box<explain::Args>),
    /// Which roles the cluster's ServiceAccounts, or with --role-source=pod-annotation its pods, name: as --allow-role flags.
    Roles(roles::Args),
    /// What an issuer of your own needs: discovery document, JWKS, thumbprint, trust policy, IAM's provider.
    Oidc(Box<oidc::Args>),
}

#[derive(Clone, Copy, ValueEnum)]
enum Probe {
    Live,
    Ready,
}

/// `EX_USAGE` of sysexits(3): bad usage or configuration, as opposed to a start that failed.
const EXIT_USAGE: u8 = 64;
/// How long the last lines may take to be written.
const FLUSH: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            // Help and version are asked for, and print to stdout; the rest is bad usage.
            let code = if err.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
            let _ = err.print();
            return code;
        }
    };
    // kube and the STS client share one rustls and one crypto library; without a default provider both panic.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli.command {
        Command::Agent(args) => agent(args),
        Command::Probe { what, local_socket } => probe(what, &local_socket),
        #[cfg(target_os = "linux")]
        Command::Net(args) => checked(Ok(args)).map_or_else(|code| code, rolecall::net::run),
        Command::Dev(args) => run_dev(args),
        Command::Emulator(args) => emulator::run(args),
        Command::Issuer(args) => issuer(args),
        Command::Explain(args) => explain::run(*args),
        Command::Roles(args) => roles::run(args),
        Command::Oidc(args) => oidc::run(*args),
    }
}

/// The configuration of what serves in a cluster, or all that is wrong with it and with the environment.
fn checked<C>(config: Result<C, Mistakes>) -> Result<C, ExitCode> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut mistakes = variables::mistakes(&Cli::command(), names);
    match config {
        Ok(config) if mistakes.is_empty() => return Ok(config),
        Ok(_) => {}
        Err(Mistakes(others)) => mistakes.extend(others),
    }
    eprint!("{}", Mistakes(mistakes));
    Err(ExitCode::from(EXIT_USAGE))
}

fn agent(args: config::Args) -> ExitCode {
    let config = match checked(Config::from_args(args, |name| std::env::var(name).ok())) {
        Ok(config) => config,
        Err(code) => return code,
    };
    // Before the first thread, which would not be bound by it.
    let hardened = harden::process().map_err(anyhow::Error::from).and_then(|()| {
        // Between the two: no core dump has the key any more, and its file can still be made.
        let directory = config.local_socket.parent().unwrap_or(std::path::Path::new(""));
        let key = config.imds.is_some().then(|| Key::load_or_make(directory)).transpose()?;
        Ok((key, harden::files(&config)?))
    });
    let (imds_key, file_system) = match hardened {
        Ok(hardened) => hardened,
        Err(err) => return failed(&err),
    };
    let metrics = Arc::new(Metrics::new());
    let dropped = metrics.dropped_lines.clone();
    serve(file_system, dropped, |lines| app::agent(config, imds_key, metrics, lines))
}

fn issuer(args: issuer::Args) -> ExitCode {
    let config = match checked(issuer::Config::from_args(args)) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let file_system = harden::process().and_then(|()| harden::files_but(config.kube(), config.folders()));
    let file_system = match file_system {
        Ok(file_system) => file_system,
        Err(err) => return failed(&err.into()),
    };
    let metrics = Arc::new(issuer::metrics::Metrics::new());
    let dropped = metrics.dropped_lines.clone();
    serve(file_system, dropped, |lines| issuer::run(config, metrics, lines))
}

/// Runs what serves in a cluster, with its log and audit lines on stdout.
fn serve<F: Future<Output = anyhow::Result<()>>>(
    file_system: FileSystem,
    dropped: IntCounter,
    run: impl FnOnce(Arc<Lines>) -> F,
) -> ExitCode {
    let lines = match Lines::start(std::io::stdout(), dropped) {
        Ok(lines) => lines,
        Err(err) => return failed(&err.into()),
    };
    telemetry::install(&lines);
    match file_system {
        FileSystem::Closed | FileSystem::PartlyClosed => {
            tracing::info!(file_system = %file_system, "hardened")
        }
        FileSystem::Open => tracing::warn!(file_system = %file_system, "hardened, but for the file system"),
    }
    let ended = block_on(run(Arc::clone(&lines)));
    if let Err(err) = &ended {
        tracing::error!(error = telemetry::in_full(err.as_ref()), "failed");
    }
    lines.flush(FLUSH);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) if err.is::<Mistakes>() => {
            eprint!("{err}");
            ExitCode::from(EXIT_USAGE)
        }
        Err(err) => failed(&err),
    }
}

fn probe(what: Probe, socket: &std::path::Path) -> ExitCode {
    let path = match what {
        Probe::Live => "/livez",
        Probe::Ready => "/readyz",
    };
    match block_on(async { Ok(admin::ask(socket, path).await?) }) {
        Ok((status, _)) if status.is_success() => ExitCode::SUCCESS,
        Ok((_, why)) => {
            eprint!("{why}");
            ExitCode::FAILURE
        }
        Err(err) => failed(&err.context(format!("no agent answers at {}", socket.display()))),
    }
}

fn run_dev(args: dev::Args) -> ExitCode {
    let warnings = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::WARN)
        .without_time()
        .with_target(false);
    warnings.init();
    match block_on(dev::run(args)) {
        Ok(code) => code,
        Err(err) if err.is::<dev::Usage>() => {
            eprintln!("error: {err}");
            ExitCode::from(EXIT_USAGE)
        }
        Err(err) => failed(&err),
    }
}

/// One thread: least memory and CPU per answer (measured: two workers cost 17 % more on a kept connection).
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn failed(err: &anyhow::Error) -> ExitCode {
    eprintln!("error: {}", telemetry::in_full(err.as_ref()));
    ExitCode::FAILURE
}

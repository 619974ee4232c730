//! Arguments, TLS provider, and which command runs. Exit codes: 0 good, 1 failed, 64 bad usage or configuration.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Pod Identity for any Kubernetes: annotate a ServiceAccount, and its pods get that AWS role.
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// An STS that validates: web-identity tokens, trust policies, GetCallerIdentity.
    Emulator(rolecall::emulator::Args),
    /// Link-local addresses and redirect of this node: install, verify, remove.
    #[cfg(target_os = "linux")]
    Net(rolecall::net::Args),
}

/// `EX_USAGE` of sysexits(3): bad usage or configuration, as opposed to a start that failed.
const EXIT_USAGE: u8 = 64;

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
        Command::Emulator(args) => rolecall::emulator::run(args),
        #[cfg(target_os = "linux")]
        Command::Net(args) => rolecall::net::run(args),
    }
}

//! Link-local addresses and redirect of a node.

/// `rolecall net`
#[derive(clap::Args)]
pub struct Args {}

/// Runs one step.
pub fn run(_args: Args) -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}

//! An STS that behaves like AWS's where it matters.

/// `rolecall emulator`
#[derive(clap::Args)]
pub struct Args {}

/// Runs the emulator until it is told to stop.
pub fn run(_args: Args) -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}

//! What `rolecall net` says, and the exit code that follows from it.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// One line per thing: what it is, how it stands, what to do. Warnings and failures go to standard error.
/// Nobody need read it: a closed pipe must not leave a node half set up, as the panic of `println!` would.
#[derive(Default)]
pub(super) struct Report {
    pub(super) failed: bool,
    /// Only what failed is said: for repairs, which are told in other words.
    quiet: bool,
}

impl Report {
    /// One that says only what failed.
    pub(super) fn quiet() -> Self {
        Self { quiet: true, ..Self::default() }
    }

    pub(super) fn good(&mut self, what: impl Display, how: impl Display) {
        if self.quiet {
            return;
        }
        let _ = writeln!(io::stdout(), "ok      {what}: {how}");
    }

    pub(super) fn warning(&mut self, what: impl Display, how: impl Display) {
        if self.quiet {
            return;
        }
        let _ = writeln!(io::stderr(), "warning {what}: {how}");
    }

    pub(super) fn failed(&mut self, what: impl Display, how: impl Display) {
        self.failed = true;
        let _ = writeln!(io::stderr(), "FAILED  {what}: {how}");
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        if self.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

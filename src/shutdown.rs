//! Signals, drain, deadline; a second signal leaves at once.

use std::process;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// How long open requests may take after the first signal: longer than any hold, shorter than kubelet's patience.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// 128 + SIGTERM, what a shell shows for a process that a signal ended.
const EXIT_SECOND_SIGNAL: i32 = 143;

/// Held by every task that must finish before the process may leave.
#[derive(Clone)]
pub struct Drain {
    begun: watch::Receiver<bool>,
    _alive: mpsc::Sender<()>,
}

impl Drain {
    /// Resolves when the drain has begun.
    pub async fn begun(&self) {
        // A dropped trigger means that the process is leaving, too.
        let _ = self.begun.clone().wait_for(|begun| *begun).await;
    }

    /// What an open request may still take.
    pub fn deadline(&self) -> Duration {
        DEADLINE
    }
}

/// Starts the drain, and waits for its end.
pub struct Trigger {
    begun: watch::Sender<bool>,
    alive: mpsc::Receiver<()>,
}

/// A trigger and the handle that its tasks hold.
pub fn drain() -> (Trigger, Drain) {
    let (begun, seen) = watch::channel(false);
    let (sender, alive) = mpsc::channel(1);
    (Trigger { begun, alive }, Drain { begun: seen, _alive: sender })
}

impl Trigger {
    /// Begins the drain and waits until every [`Drain`] is dropped; `false` if the deadline came first.
    pub async fn finish(mut self) -> bool {
        self.begun.send_replace(true);
        timeout(DEADLINE, self.alive.recv()).await.is_ok()
    }
}

/// Resolves at the first SIGTERM or SIGINT. From then on, a second one ends the process at once.
///
/// # Errors
/// The kernel's, if a handler cannot be installed.
pub async fn signalled() -> std::io::Result<&'static str> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let name = tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    };
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        process::exit(EXIT_SECOND_SIGNAL);
    });
    Ok(name)
}

//! `rolecall net keep`: waits for the kernel to say that links, addresses, routes or our table have changed, and puts back what `net install`
//! would put there, by the same code. Needs `NET_ADMIN` and nothing else. When it is told to stop it leaves everything in place.
//!
//! It reads nothing from the kernel's messages but that there was one (of our table, where the name stands in it): what is wrong is then
//! looked up as `net verify` does. Whoever keeps taking things away meets a repair at most every half a minute.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};

use super::address::{self, Holder, Kernel};
use super::report::Report;
use super::targets::{Targets, well_known};
use super::{cgroup, install_addresses, rules};

/// Changes come in bursts, and a look starts a program: this long, for the burst to end, and between two looks.
const SETTLE: Duration = Duration::from_millis(50);
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
/// Between two repairs: from the first to the second, doubling to the last while somebody undoes them, and from the beginning again after
/// some quiet.
const BETWEEN_REPAIRS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
const QUIET: Duration = Duration::from_secs(60);
/// For what the kernel tells nobody, and for a repair that failed.
const PULSE: Duration = Duration::from_secs(30);
/// The same where rules name cgroups: of those nobody tells us.
const CGROUP_PULSE: Duration = Duration::from_secs(5);

/// `RTMGRP_` of links, and of each family's addresses and routes.
const ROUTE_GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// `NFNLGRP_NFTABLES`, 7, as a bit.
const NFTABLES_GROUP: u32 = 1 << 6;
/// What the kernel gives at once: notifications are at most 8 KiB, those of nf_tables at most a few pages together.
const MESSAGES: usize = 64 * 1024;
/// Every message about our table has its name in it.
const TABLE: &[u8] = b"rolecall\0";

/// Why a look found nothing out.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Address(#[from] address::Error),
    #[error(transparent)]
    Rules(#[from] rules::Error),
}

/// Keeps until SIGTERM or SIGINT. 1 only if it cannot begin: later trouble is said, and tried again.
pub(super) async fn keep(targets: &Targets) -> ExitCode {
    let mut report = Report::default();
    // Before the first look: what changes after it must not be missed, and a first process hears no signal that it has not asked for.
    let begun = Changes::subscribe().and_then(|changes| {
        Ok((changes, signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    });
    let (changes, mut terminate, mut interrupt) = match begun {
        Ok(begun) => begun,
        Err(err) => {
            report.failed("keep", format_args!("{err}; the container needs the capability NET_ADMIN"));
            return report.exit_code();
        }
    };
    if let Err(err) = faults(targets).await {
        report.failed("keep", err);
        return report.exit_code();
    }
    report.good("keep", "watching addresses and rules");
    tokio::select! {
        () = watch(targets, &changes) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    report.good("keep", "stopped; addresses and rules stay");
    ExitCode::SUCCESS
}

async fn watch(targets: &Targets, changes: &Changes) {
    let mut repaired: Option<Instant> = None;
    let mut pause = BETWEEN_REPAIRS.0;
    let pulse = if targets.host_pods.is_some() { CGROUP_PULSE } else { PULSE };
    loop {
        let looked = Instant::now();
        changes.forget();
        if repair(targets).await {
            pause = match repaired {
                Some(before) if before.elapsed() < QUIET => (pause * 2).min(BETWEEN_REPAIRS.1),
                _ => BETWEEN_REPAIRS.0,
            };
            repaired = Some(Instant::now());
            sleep(pause).await;
        }
        tokio::select! {
            () = changes.next() => sleep(SETTLE).await,
            () = sleep(pulse) => {}
        }
        sleep_until(looked + BETWEEN_LOOKS).await;
    }
}

/// Looks, and puts back what is missing. Says whether there was anything to do.
async fn repair(targets: &Targets) -> bool {
    let mut report = Report::default();
    match faults(targets).await {
        Ok(faults) if faults.is_empty() => return false,
        Ok(faults) => faults.iter().for_each(|fault| report.warning("keep", fault)),
        Err(err) => {
            report.failed("keep", err);
            return true;
        }
    }
    let mut repair = Report::quiet();
    if let Err(err) = install_addresses(targets, &mut repair).await {
        repair.failed("addresses", err);
    }
    if !repair.failed {
        report.good("keep", "repaired");
    }
    true
}

/// What `net install` would change.
async fn faults(targets: &Targets) -> Result<Vec<String>, Error> {
    let survey = Kernel::connect()?.survey().await?;
    let mut faults = Vec::new();
    for ip in targets.addresses() {
        match survey.holder(ip) {
            Holder::Nobody if well_known(ip) && address::no_family(ip, survey.home()).is_none() => {
                faults.push(format!("{ip} was on no link"));
            }
            Holder::Ours { link } if survey.own_link_is_down(&link) => {
                faults.push(format!("{link} was down"))
            }
            _ => {}
        }
    }
    if let Some(err) = targets.host_pods.as_ref().and_then(|pods| cgroup::check(&pods.cgroup).err()) {
        faults.push(format!("pods on the host network: {err}"));
    }
    if let Some(how) = rules::difference(&targets.rules(&survey), &rules::in_force().await?) {
        // No fault by itself: nothing here is to be put back while the other agent stays.
        faults.extend(targets.eks_port_left(&survey));
        faults.push(how);
    }
    Ok(faults)
}

/// The kernel's notifications, unread but for their table's name.
struct Changes {
    route: TokioSocket,
    tables: TokioSocket,
}

impl Changes {
    fn subscribe() -> io::Result<Self> {
        Ok(Self {
            route: subscribed(NETLINK_ROUTE, ROUTE_GROUPS)?,
            tables: subscribed(NETLINK_NETFILTER, NFTABLES_GROUP)?,
        })
    }

    /// Returns after something has changed.
    async fn next(&self) {
        let ours = |message: &[u8]| message.windows(TABLE.len()).any(|bytes| bytes == TABLE);
        tokio::select! {
            () = heard(&self.route, |_| true) => {}
            () = heard(&self.tables, ours) => {}
        }
    }

    /// Forgets what has come so far: the next look sees it.
    fn forget(&self) {
        for socket in [&self.route, &self.tables] {
            let mut buffer = Vec::with_capacity(MESSAGES);
            while socket.socket_ref().recv(&mut buffer, 0).is_ok() {
                buffer.clear();
            }
        }
    }
}

fn subscribed(protocol: isize, groups: u32) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

/// Returns after a `wanted` message, or after some were lost (`ENOBUFS`), of which one may have been.
async fn heard(socket: &TokioSocket, wanted: impl Fn(&[u8]) -> bool) {
    let mut buffer = Vec::with_capacity(MESSAGES);
    while socket.recv(&mut buffer).await.is_ok() && !wanted(&buffer) {
        buffer.clear();
    }
}

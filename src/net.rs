//! `rolecall net`: what a node needs before pods can reach the agent. Addresses, redirect, the agent's run directory; and the proof.
//!
//! [`address`] puts the link-local addresses on a link of our own, [`rules`] applies the files of `iptables/`, [`verify`] dials and proves
//! that our agent answers, `keep` repairs. Needs `NET_ADMIN`, and `CHOWN` for the run directory; no privilege lasts longer than this command.

pub mod address;
mod cgroup;
mod inside;
mod keep;
mod listing;
mod report;
pub mod rules;
mod run_dir;
mod targets;
pub mod verify;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use address::{Added, Holder, Kernel, Survey};
use inside::{Expected, Found, Metadata};
use listing::Table;
use report::Report;
use rules::{MetadataGuard, Rules};
use targets::{ECS, EKS, EKS_V6, ListenArgs, Targets, well_known};
use tokio::signal::unix::{SignalKind, signal};
use verify::Fault;

use crate::config::LOCAL_SOCKET;

/// `EX_USAGE` of sysexits(3).
const EXIT_USAGE: u8 = 64;

/// `rolecall net`
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    act: Act,
}

#[derive(clap::Subcommand)]
enum Act {
    /// Add the addresses, the guard and the redirect, and make the agent's run directory. Safe to repeat.
    Install(InstallArgs),
    /// Watch what `install` added and put it back when somebody takes it away, until told to stop.
    Keep(KeepArgs),
    /// Prove that each address answers, that our agent is the one who answers, and that the rules are in place.
    Verify(VerifyArgs),
    /// Take away what `install` added: the rules first, the addresses last, never what somebody else added.
    Remove(RemoveArgs),
}

#[derive(clap::Args)]
struct InstallArgs {
    #[command(flatten)]
    listen: ListenArgs,
    /// The directory of the agent's Unix socket; made if absent, mode 0700
    #[arg(long, env = "ROLECALL_RUN_DIR", default_value = "/run/rolecall")]
    run_dir: PathBuf,
}

#[derive(clap::Args)]
struct KeepArgs {
    #[command(flatten)]
    listen: ListenArgs,
}

#[derive(clap::Args)]
struct RemoveArgs {
    /// The directory of the agent's Unix socket
    #[arg(long, env = "ROLECALL_RUN_DIR", default_value = "/run/rolecall")]
    run_dir: PathBuf,
    /// Then stay until told to stop: the pods of a DaemonSet, which visits every node, may not end
    #[arg(long)]
    wait: bool,
}

#[derive(clap::Args)]
struct VerifyArgs {
    #[command(flatten)]
    listen: ListenArgs,
    /// The agent's own socket, which says who must answer
    #[arg(long, env = "ROLECALL_LOCAL_SOCKET", default_value = LOCAL_SOCKET)]
    local_socket: PathBuf,
    /// Prove it from inside this network namespace too, a pod's: /run/netns/NAME or /proc/PID/ns/net (repeatable; needs SYS_ADMIN)
    #[arg(long, value_name = "PATH")]
    netns: Vec<PathBuf>,
}

/// Runs one step and says line by line what it found and did. 0: good; 1: something failed; 64: bad flags.
pub fn run(args: Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(err) => {
            eprintln!("cannot start: {err}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        match args.act {
            Act::Install(InstallArgs { listen, run_dir }) => match Targets::from_args(&listen) {
                Ok(targets) => install(&targets, &run_dir).await,
                Err(mistakes) => usage(&mistakes),
            },
            Act::Keep(KeepArgs { listen }) => match Targets::from_args(&listen) {
                Ok(targets) => keep::keep(&targets).await,
                Err(mistakes) => usage(&mistakes),
            },
            Act::Verify(VerifyArgs { listen, local_socket, netns }) => match Targets::from_args(&listen) {
                Ok(targets) => prove(&targets, &local_socket, &netns).await,
                Err(mistakes) => usage(&mistakes),
            },
            Act::Remove(RemoveArgs { run_dir, wait }) => remove(&run_dir, wait).await,
        }
    })
}

fn usage(mistakes: &[String]) -> ExitCode {
    for mistake in mistakes {
        eprintln!("error: {mistake}");
    }
    ExitCode::from(EXIT_USAGE)
}

async fn install(targets: &Targets, run_dir: &Path) -> ExitCode {
    let mut report = Report::default();
    let run_uid = targets.run_uid;
    match run_dir::prepare(run_dir, run_uid) {
        Ok(()) => report.good(run_dir.display(), format_args!("belongs to uid {run_uid}, mode 0700")),
        Err(err) => report.failed(run_dir.display(), err),
    }
    if let Err(err) = install_addresses(targets, &mut report).await {
        report.failed("addresses", err);
    }
    report.exit_code()
}

async fn install_addresses(targets: &Targets, report: &mut Report) -> Result<(), address::Error> {
    let kernel = Kernel::connect()?;
    let survey = kernel.survey().await?;
    for ip in targets.addresses() {
        match survey.holder(ip) {
            Holder::Ours { link } => {
                kernel.raise(&link).await?;
                report.good(ip, format_args!("already on {link}, ours"));
            }
            Holder::Link { link } => report.warning(
                ip,
                format_args!("held by link {link}, not ours: left alone; the agent can listen on it"),
            ),
            Holder::Route { through } => report.warning(
                ip,
                format_args!("routed {through} by somebody else: left alone; pods do not reach us there"),
            ),
            Holder::Nobody if !well_known(ip) => report.warning(
                ip,
                format_args!("on no link of this node; only {EKS}, {EKS_V6} and {ECS} are ours to add"),
            ),
            Holder::Nobody => match kernel.add(ip).await {
                Ok(Added::On { link }) => report.good(ip, format_args!("added to {link}")),
                Ok(Added::NoFamily { why }) => report.warning(ip, format_args!("not added: {why}")),
                Err(err) => report.failed(ip, err),
            },
        }
    }
    report_host_pods(targets, report);
    let survey = kernel.survey().await?;
    let rules = targets.rules(&survey);
    match rules::apply(&rules).await {
        Ok(()) => report_rules(targets, &rules, &survey, report),
        Err(err) => report.failed("rules", err),
    }
    Ok(())
}

/// One line for each of the things that the rules in force do.
fn report_rules(targets: &Targets, rules: &Rules, survey: &Survey, report: &mut Report) {
    report.good("redirect", rules.redirect());
    if let Some(why) = targets.eks_port_left(survey) {
        report.warning("redirect", why);
    }
    if rules.addresses.is_some() {
        report
            .good("address guard", format_args!("uid {} alone answers from our addresses", rules.agent_uid));
        let uplinks = rules.uplinks.values().map(String::as_str).collect::<Vec<_>>().join(", ");
        if !uplinks.is_empty() {
            report.good("address guard", format_args!("nobody reaches us by {uplinks}"));
        }
        for bridge in survey.bridged_uplinks().into_values() {
            let why =
                format_args!("{bridge} is the way out, and a bridge: not closed, pods may be on it too");
            report.warning("address guard", why);
        }
        if uplinks.is_empty() && survey.bridged_uplinks().is_empty() {
            report.warning("address guard", "no default route, so no link to close");
        }
    }
    let mode = match rules.metadata {
        MetadataGuard::Off => "off: pods reach the node's instance metadata",
        MetadataGuard::Observe => "observe: pods reach the node's instance metadata, and are counted",
        MetadataGuard::Enforce => "enforce: pods do not reach the node's instance metadata",
    };
    report.good("metadata guard", mode);
}

/// Pods on the host network that cannot be refused, and exemptions that count for nobody.
fn report_host_pods(targets: &Targets, report: &mut Report) {
    let Some(pods) = &targets.host_pods else { return };
    if let Err(err) = cgroup::check(&pods.cgroup) {
        report.failed("metadata guard", format_args!("pods on the host network: {err}"));
        return;
    }
    report.good(
        "metadata guard",
        format_args!("pods on the host network ({}) do not reach it either", pods.cgroup),
    );
    for path in &pods.exempt {
        if cgroup::exists(path) {
            report.good("metadata guard", format_args!("{path} does"));
        } else {
            report.warning("metadata guard", format_args!("no cgroup {path} now: nobody is exempt by it"));
        }
    }
}

async fn remove(run_dir: &Path, wait: bool) -> ExitCode {
    let mut report = Report::default();
    // Before the work: the first process of a container does not hear a signal that it has not asked for.
    let stop = match wait.then(|| signal(SignalKind::terminate())).transpose() {
        Ok(stop) => stop,
        Err(err) => {
            report.failed("--wait", err);
            None
        }
    };
    match rules::remove().await {
        Ok(()) => report.good("rules", "removed"),
        Err(err) => report.failed("rules", err),
    }
    match remove_addresses(&mut report).await {
        Ok(()) => {}
        Err(err) => report.failed("addresses", err),
    }
    match run_dir::remove(run_dir) {
        Ok(true) => report.good(run_dir.display(), "removed"),
        Ok(false) => report.good(run_dir.display(), "not there"),
        Err(err) => report.failed(run_dir.display(), err),
    }
    if let (Some(mut stop), false) = (stop, report.failed) {
        stop.recv().await;
    }
    report.exit_code()
}

async fn remove_addresses(report: &mut Report) -> Result<(), address::Error> {
    let kernel = Kernel::connect()?;
    for what in kernel.remove().await? {
        report.good(what, "removed");
    }
    let survey = kernel.survey().await?;
    for ip in [EKS, EKS_V6, ECS] {
        if let Holder::Link { link } = survey.holder(ip) {
            report.good(ip, format_args!("still on {link}: not marked as ours"));
        }
    }
    Ok(())
}

async fn prove(targets: &Targets, local_socket: &Path, namespaces: &[PathBuf]) -> ExitCode {
    let mut report = Report::default();
    let absent = match prove_set_up(targets, &mut report).await {
        Ok(absent) => absent,
        Err(err) => {
            report.failed("addresses", err);
            Vec::new()
        }
    };
    let present = |addr: &SocketAddr| !absent.contains(&addr.ip());
    let credentials: Vec<SocketAddr> = targets.listeners.iter().copied().filter(present).collect();
    let dialled: Vec<SocketAddr> = targets.dialled().filter(present).collect();
    match verify::instance(local_socket).await {
        Ok(instance) => {
            for namespace in namespaces {
                let refused = targets.metadata_guard == MetadataGuard::Enforce || !targets.imds.is_empty();
                let ours: Vec<IpAddr> = targets.imds.iter().map(SocketAddr::ip).collect();
                let redirected = |ip| ours.contains(&ip) && !absent.contains(&ip);
                let metadata = Expected { refused, v4: redirected(ECS), v6: redirected(EKS_V6) };
                match inside::dial(namespace, &credentials, &instance, metadata).await {
                    Ok(found) => report_inside(namespace, found, &mut report),
                    Err(err) => report.failed(namespace.display(), err),
                }
            }
            for (addr, answer) in verify::verify(&dialled, &instance).await {
                match answer {
                    Ok(()) => report.good(addr, "our agent answers"),
                    Err(err) => report.failed(addr, err),
                }
            }
        }
        Err(err) => report.failed("agent", err),
    }
    report.exit_code()
}

/// What a pod finds at our addresses, and with the guard's mode `enforce` at instance metadata.
fn report_inside(namespace: &Path, found: Found, report: &mut Report) {
    let what = |addr: SocketAddr| format!("{addr} from {}", namespace.display());
    for (addr, answer) in found.ours {
        match answer {
            Ok(()) => report.good(what(addr), "our agent answers"),
            // Many pods have one family alone.
            Err(Fault::Unreachable(err))
                if addr.is_ipv6() && err.kind() == io::ErrorKind::NetworkUnreachable =>
            {
                report.warning(what(addr), "no route: this pod has no IPv6");
            }
            Err(err) => report.failed(what(addr), err),
        }
    }
    for (addr, answer) in found.metadata {
        match answer {
            Metadata::Ours => report.good(what(addr), "our agent answers in its place"),
            // As at our own addresses.
            Metadata::NotOurs(Fault::Unreachable(err))
                if addr.is_ipv6() && err.kind() == io::ErrorKind::NetworkUnreachable =>
            {
                report.warning(what(addr), "no route: this pod has no IPv6");
            }
            Metadata::NotOurs(err) => report.failed(what(addr), err),
            Metadata::Reached => report.failed(
                what(addr),
                "reached, though it is to be closed: by a datapath that passes the rules by, or another's redirect",
            ),
            Metadata::Refused(err) => report.good(what(addr), format_args!("not reached ({err})")),
            Metadata::Silent => report.warning(
                what(addr),
                "no answer within 2 s: dropped before the guard could refuse it, so SDKs wait",
            ),
        }
    }
}

/// Checks addresses and rules. Returns the addresses whose family this node does without: optional, so nothing is to be dialled there.
async fn prove_set_up(targets: &Targets, report: &mut Report) -> Result<Vec<IpAddr>, address::Error> {
    let survey = Kernel::connect()?.survey().await?;
    let mut absent = Vec::new();
    for ip in targets.addresses() {
        match survey.holder(ip) {
            Holder::Ours { link } => report.good(ip, format_args!("on {link}, ours")),
            Holder::Link { link } => report.good(ip, format_args!("on {link}, not ours")),
            Holder::Route { through } => report.failed(
                ip,
                format_args!("routed {through} by somebody else: free it, or do not --listen there"),
            ),
            Holder::Nobody => match address::no_family(ip, survey.home()) {
                Some(why) => {
                    report.warning(ip, why);
                    absent.push(ip);
                }
                None => report.failed(ip, "on no link of this node: run `rolecall net install`"),
            },
        }
    }
    report_host_pods(targets, report);
    let rules = targets.rules(&survey);
    match rules::in_force().await {
        Ok(found) => match rules::difference(&rules, &found) {
            None => {
                report_rules(targets, &rules, &survey, report);
                report_counts(&rules, &found, report);
            }
            Some(how) => {
                let mode = rules::metadata_guard(&found);
                if mode != rules.metadata {
                    let modes =
                        format_args!("{mode} is in force, --metadata-guard asks for {}", rules.metadata);
                    report.failed("metadata guard", modes);
                }
                report.failed("rules", format_args!("{how}: run `rolecall net install`"));
            }
        },
        // The agent's own container has no capability, and `kubectl exec` there is where people will ask.
        Err(err @ rules::Error::NotPermitted) => report.warning("rules", format_args!("not checked: {err}")),
        Err(err) => report.failed("rules", err),
    }
    Ok(absent)
}

/// What the guard has seen since its rules were put in place: who was kept out, and which pods ask for instance metadata.
fn report_counts(rules: &Rules, found: &Table, report: &mut Report) {
    for (counter, who) in [
        ("from_outside", "from outside this node"),
        ("foreign_source", "with a source that is not its link's"),
        ("impostor", "of another process that listens on our addresses; find it with `ss -ltnp`"),
    ] {
        let packets = found.counter(counter);
        if packets > 0 {
            report.warning("address guard", format_args!("dropped {packets} packets {who} ({counter})"));
        }
    }
    let outcome = match rules.metadata {
        MetadataGuard::Off => return,
        MetadataGuard::Observe => "enforce would refuse them",
        MetadataGuard::Enforce => "refused",
    };
    let (connections, pods) = (found.counter("metadata_connections"), found.pods());
    let total =
        format_args!("{connections} connections (metadata_connections), {} pods in a day", pods.len());
    if connections == 0 {
        report.good("metadata guard", total);
    } else {
        report.warning("metadata guard", format_args!("{total}: {outcome}"));
    }
    let of_host = found.counter("metadata_host");
    if of_host > 0 {
        report.warning(
            "metadata guard",
            format_args!("{of_host} packets of pods on the host network: refused"),
        );
    }
    for (ip, connections) in pods {
        report.warning("metadata guard", format_args!("{ip}: {connections} connections"));
    }
}

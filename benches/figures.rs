//! `make bench`: the agent's figures and the bars that they should reach, one line each: `figure NAME VALUE BAR ok|short`
//! (`- -` where there is none).
//!
//! Ratios are to a bare server (`bare`) under the same load in the same minute: each round measures both one after the
//! other, a figure is the median of its rounds' ratios, and every round is printed. CPU is the whole process's, kernel
//! time included, so it has the socket work in it that no server can avoid.
//!
//! Needs `rolecall`, `attest`, `bare` and `load` in `target/image`, network namespaces (tests/support/netns.rs) and what
//! tests/cluster/up needs for an API server. It takes about five minutes.

#![allow(unreachable_pub, reason = "the support of the tests has it, too")]

#[path = "../tests/support/apiserver.rs"]
mod apiserver;
mod evidence;
#[path = "../tests/support/http.rs"]
mod http;
mod neighbour;
#[path = "../tests/support/netns.rs"]
mod netns;
#[path = "../tests/support/process.rs"]
mod process;
mod world;

use std::mem::ManuallyDrop;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use tokio::time::sleep;

use self::evidence::Evidence;
use self::netns::{Namespace, Node};
use self::world::{AGENT, Counted, PLANS, PODS, Process, World};

const ROUNDS: usize = 5;
const ROUND_SECONDS: &str = "3";
/// A connection stays in the kernel's table for two minutes after its end, and that holds 262,144 of them: all rounds with new ones, of
/// both comparisons, must fit, or whoever connects next is dropped.
const FRESH_SECONDS: &str = "0.7";
/// Cold misses; each round gives every plan another role, the last one the rest of them.
const COLD: usize = 1000;
const COLD_ROUNDS: usize = COLD.div_ceil(PLANS);
const IDLE: Duration = Duration::from_secs(60);
/// Longer than the agent's pause between two returns of freed memory.
const TRIMMED: Duration = Duration::from_secs(35);
const SLOW_STS: Duration = Duration::from_secs(3);
/// Connecting, the walk, the ServiceAccount's watch, the answer: all that is not the two calls. A wait for the pod's
/// address would be seconds, one for a further round trip of the agent's own to the API server or STS more than this.
const NEW_POD_BEYOND_MS: f64 = 20.0;

fn main() -> ExitCode {
    // Never dropped: that would kill what takes the API server down when this process ends.
    let Some(node) = Node::new("figures").map(ManuallyDrop::new) else { return ExitCode::FAILURE };
    match node.run(async || figures(&node).await) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("figures: {err:#}");
            ExitCode::FAILURE
        }
    }
}

async fn figures(node: &Node) -> Result<()> {
    let world = World::start(node).await?;
    let mut report = Report::default();

    let agent = world.agent("ip").await?;
    // Every pod asks once, so all addresses are confirmed and all plans warm.
    let asked =
        world.load(&["ask", AGENT, &PODS.to_string(), &PODS.to_string(), "10", "1000", "role/plan"]).await?;
    ensure!(asked.of("answers") == PODS as f64, "{} pods got no answer", asked.of("errors"));
    sleep(IDLE).await;
    report.at_most("rss_warm_mib", agent.rss_mib()?, 12.0);

    let opened = world.load(&["open", AGENT, "1000", &PODS.to_string()]).await?;
    ensure!(opened.of("answers") == 1000.0, "{} of 1000 connections got no answer", opened.of("errors"));
    let peak = agent.rss_mib()?;
    sleep(TRIMMED).await;
    println!("rss: {peak:.1} MiB when the last of 1000 connections closes");
    report.at_most("rss_after_1000_connections_mib", agent.rss_mib()?, 16.0);

    let (bare, bare_address) = world.bare().await?;
    let servers = [(&agent, AGENT), (&bare, bare_address)];
    let callers = Callers { from: vec![world.pods()], each: PODS, addresses: PODS };
    let (cpu, rps) = compare(&world, &callers, "keep", servers).await?;
    report.at_most("cpu_keepalive", cpu, 1.15);
    report.at_least("rps_keepalive", rps, 0.90);
    let (cpu, rps) = compare(&world, &callers, "fresh", servers).await?;
    report.at_most("cpu_newconn", cpu, 1.25);
    report.at_least("rps_newconn", rps, 0.85);
    report.at_most("neighbour_p99_ratio", neighbour::p99_ratio(&world, bare_address).await?, 2.0);

    report.at_most("cold_own_us", cold(&world, &agent).await?, 1000.0);

    drop(agent);
    identified(&world, node, &bare, bare_address, &mut report).await?;
    report.exactly("flight_sts_calls", flight(&world).await?, PLANS as f64);
    report.print();
    Ok(())
}

/// With `--identity=kernel`, which costs a few questions to the kernel for each connection.
async fn identified(
    world: &World<'_>,
    node: &Node,
    bare: &Process,
    bare_address: &str,
    report: &mut Report,
) -> Result<()> {
    let mut evidence = Evidence::start(world, node).await?;
    let agent = world.agent("kernel").await?;
    report.at_most("new_pod_beyond_ms", evidence.new_pod_ms().await?, NEW_POD_BEYOND_MS);
    let callers = Callers { from: evidence.new_pods(), each: 1, addresses: 0 };
    let (cpu, rps) = compare(world, &callers, "fresh", [(&agent, AGENT), (bare, bare_address)]).await?;
    report.at_most("cpu_newconn_kernel", cpu, 2.5);
    report.shown("rps_newconn_kernel", rps);
    drop(agent);
    report.at_most("attest_warm_us", evidence.warm_us(&evidence.routed, 5000).await?, 30.0);
    // More than a bridge's port may ask for at once would be refused.
    report.shown("attest_bridge_us", evidence.warm_us(&evidence.bridged, 45).await?);
    report.at_most("attest_rescan_ms", evidence.rescan_ms().await?, 5.0);
    Ok(())
}

/// Who asks: many pods, because one alone would meet its limit. To the agent a pod is an address, or a namespace.
struct Callers<'a> {
    from: Vec<&'a Namespace>,
    /// How many in each namespace, and over how many addresses.
    each: usize,
    addresses: usize,
}

impl Callers<'_> {
    async fn load(&self, world: &World<'_>, mode: &str, to: &str) -> Result<Counted> {
        let (each, addresses) = (self.each.to_string(), self.addresses.to_string());
        let seconds = if mode == "fresh" { FRESH_SECONDS } else { ROUND_SECONDS };
        let args = [mode, to, seconds, &each, &addresses];
        let counted = try_join_all(self.from.iter().map(|from| world.load_from(from, &args))).await?;
        let sum = |word| counted.iter().map(|counted| counted.of(word)).sum::<f64>();
        Ok(Counted(format!(
            "answers {} errors {} length {} seconds {}",
            sum("answers"),
            sum("errors"),
            counted[0].of("length"),
            sum("seconds") / counted.len() as f64
        )))
    }
}

/// The agent's CPU per answer and its answers per second, as ratios to the bare server's.
async fn compare(
    world: &World<'_>,
    callers: &Callers<'_>,
    mode: &str,
    servers: [(&Process, &str); 2],
) -> Result<(f64, f64)> {
    let (mut cpu, mut rps) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut measured = [(0.0, 0.0, 0.0); 2];
        // Who comes first takes turns, so that neither gains from it.
        for turn in [round % 2, 1 - round % 2] {
            let (process, address) = servers[turn];
            let before = process.cpu()?;
            let counted = callers.load(world, mode, address).await?;
            let spent = process.cpu()? - before;
            ensure!(counted.of("errors") == 0.0, "{mode}: {} failed requests", counted.of("errors"));
            let answers = counted.of("answers");
            measured[turn] =
                (spent.as_secs_f64() * 1e6 / answers, answers / counted.of("seconds"), counted.of("length"));
        }
        let [agent, bare] = measured;
        ensure!(agent.2 == bare.2, "the answers differ: {} and {} bytes", agent.2, bare.2);
        println!(
            "round {mode} {}: agent {:.2} us {:.0}/s, bare {:.2} us {:.0}/s: cpu {:.3} rps {:.3}",
            round + 1,
            agent.0,
            agent.1,
            bare.0,
            bare.1,
            agent.0 / bare.0,
            agent.1 / bare.1
        );
        cpu.push(agent.0 / bare.0);
        rps.push(agent.1 / bare.1);
    }
    Ok((median(cpu), median(rps)))
}

/// Microseconds of the agent's CPU for a cold miss: the event of a changed annotation, the caller's connections (it asks
/// every 20 ms until it has the new role), TokenRequest, STS, the new answer.
async fn cold(world: &World<'_>, agent: &Process) -> Result<f64> {
    let (calls, before) = (world.sts_calls().await, agent.cpu()?);
    for round in 0..COLD_ROUNDS {
        let plans = PLANS.min(COLD - round * PLANS);
        let role = format!("cold-{round}");
        world.annotate(plans, &role).await?;
        let plans = plans.to_string();
        let asked =
            world.load(&["ask", AGENT, &plans, &plans, "250", "20", &format!("role/{role}\"")]).await?;
        ensure!(asked.of("errors") == 0.0, "{} callers never got {role}", asked.of("errors"));
    }
    let (calls, spent) = (world.sts_calls().await - calls, agent.cpu()? - before);
    ensure!(calls == COLD as u64, "{calls} STS calls for {COLD} cold misses");
    let own = spent.as_secs_f64() * 1e6 / COLD as f64;
    println!("cold: {:.0} ms of CPU for {COLD} cold misses", spent.as_secs_f64() * 1e3);
    Ok(own)
}

/// STS calls of a fresh agent when 1,000 callers ask at once. They retry after a second, as often as an SDK might.
async fn flight(world: &World<'_>) -> Result<f64> {
    world.slow_sts(SLOW_STS).await;
    let _agent = world.agent("ip").await?;
    let calls = world.sts_calls().await;
    let asked = world.load(&["ask", AGENT, "1000", &PODS.to_string(), "5", "1000", "AccessKeyId"]).await?;
    println!(
        "flight: 1000 callers, {} answered, {} failed, at most {} attempts, {:.1} s",
        asked.of("answers"),
        asked.of("errors"),
        asked.of("attempts"),
        asked.of("seconds")
    );
    ensure!(asked.of("errors") == 0.0, "flight: {} callers got nothing", asked.of("errors"));
    Ok((world.sts_calls().await - calls) as f64)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The figures, printed together at the end.
#[derive(Default)]
struct Report(Vec<String>);

impl Report {
    fn at_most(&mut self, name: &str, value: f64, bar: f64) {
        self.add(name, value, bar, value <= bar);
    }

    fn at_least(&mut self, name: &str, value: f64, bar: f64) {
        self.add(name, value, bar, value >= bar);
    }

    fn exactly(&mut self, name: &str, value: f64, bar: f64) {
        self.add(name, value, bar, value == bar);
    }

    /// One that nobody promised.
    fn shown(&mut self, name: &str, value: f64) {
        self.0.push(format!("figure {name} {} - -", rounded(value)));
    }

    fn add(&mut self, name: &str, value: f64, bar: f64, good: bool) {
        let good = if good { "ok" } else { "short" };
        self.0.push(format!("figure {name} {} {bar} {good}", rounded(value)));
    }

    fn print(&self) {
        println!("{}", self.0.join("\n"));
    }
}

/// Two decimals where they mean something; a figure is judged before.
fn rounded(value: f64) -> String {
    if value < 100.0 && value.fract() != 0.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

//! `rolecall explain --as kube2iam|kiam|kiam3`: each pod of a cluster, with the role that it has today and the one that it would get from us.
//!
//! It reads, and changes nothing. Ours is what the agent itself makes of the same objects and flags; what IAM makes of it (does the
//! role trust the ServiceAccount?) is not in the cluster to be read.

mod table;
mod today;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;

use serde::Serialize;

pub use self::today::Tool;
use self::today::{Has, Today};
use crate::cluster::objects::{NONE, Objects};
use crate::config::{self, Config, Mistakes, RoleSourceFlags};
use crate::identity::pods::Pod;
use crate::role::RoleArn;
use crate::service_accounts::ServiceAccounts;
use crate::telemetry::in_full;

/// `EX_USAGE`: bad usage, as opposed to something that failed.
const EXIT_USAGE: u8 = 64;

/// `rolecall explain`
// The agent's flags have a group of the same name.
#[derive(clap::Args)]
#[group(skip)]
pub struct Args {
    /// What gives pods their roles today; its flags of the same names are taken from the agent's below.
    #[arg(long = "as", value_name = "TOOL")]
    tool: Tool,
    /// kube2iam's: the role of pods that ask for none.
    #[arg(long, value_name = "ROLE")]
    default_role: Option<String>,
    /// kiam's: an expression that matches a part of the ARN permits it.
    #[arg(long)]
    disable_strict_namespace_regexp: bool,
    /// A table, or JSON for a program.
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten, next_help_heading = "The agent as it is going to run")]
    agent: config::Args,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// What becomes of a pod's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// It would be without one.
    Loses,
    /// It would have another one.
    Changes,
    /// It has none today, and would have one.
    Gains,
    /// The same role.
    Same,
    /// No role, now or then.
    None,
}

/// One pod.
#[derive(Debug, Serialize)]
struct Row {
    namespace: String,
    pod: String,
    service_account: String,
    today: Role,
    rolecall: Role,
    verdict: Verdict,
    notes: Vec<&'static str>,
}

/// A role, or why there is none.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    Role(String),
    Reason(String),
}

impl Role {
    fn role(&self) -> Option<&str> {
        match self {
            Self::Role(role) => Some(role),
            Self::Reason(_) => None,
        }
    }
}

/// Runs the command. 1 if a pod would lose its role or get another one, or if the cluster cannot be read; 64 for bad flags.
pub fn run(args: Args) -> ExitCode {
    let output = args.output;
    let (today, config) = match understood(args) {
        Ok(understood) => understood,
        Err(mistakes) => {
            eprint!("{mistakes}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let objects =
        runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(Objects::read(&config.kube)));
    let told = objects.and_then(|objects| {
        let unread = objects.unread;
        let rows = rows(objects, &today, &config);
        tell(&rows, unread, output)?;
        Ok(rows)
    });
    match told {
        Ok(rows) if rows.iter().any(|row| row.verdict <= Verdict::Changes) => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("error: {}", in_full(err.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// The tool as it runs today, and the agent as it is going to.
fn understood(args: Args) -> Result<(Today, Config), Mistakes> {
    let Args { tool, default_role, disable_strict_namespace_regexp, output: _, mut agent } = args;
    let mut base = agent.role_source.base_role_arn.clone().unwrap_or_default();
    if tool == Tool::Kube2iam && !base.is_empty() && !base.ends_with('/') {
        base.push('/');
    }
    let mut mistakes = Vec::new();
    for (flag, set, of) in [
        ("default-role", default_role.is_some(), Tool::Kube2iam),
        ("disable-strict-namespace-regexp", disable_strict_namespace_regexp, Tool::Kiam),
    ] {
        if set && tool != of {
            mistakes.push(format!("--{flag}: is no flag of the tool that --as names"));
        }
    }
    let today = Today {
        tool,
        base,
        default_role: default_role.filter(|role| !role.is_empty()),
        restricted: agent.role_source.namespace_restrictions,
        regexp: agent
            .role_source
            .namespace_restriction_format
            .as_deref()
            .is_some_and(|format| format.eq_ignore_ascii_case("regexp")),
        strict: !disable_strict_namespace_regexp,
    };
    if agent.role_source.role_source != "pod-annotation" {
        // Here they are the tool's alone.
        let role_source = agent.role_source.role_source;
        agent.role_source = RoleSourceFlags { role_source, ..RoleSourceFlags::default() };
    }
    agent.node_name.get_or_insert_with(|| "explain".into());
    let config = Config::from_args(agent, |name| std::env::var(name).ok());
    match config {
        Ok(config) if mistakes.is_empty() => Ok((today, config)),
        Ok(_) => Err(Mistakes(mistakes)),
        Err(Mistakes(more)) => Err(Mistakes([mistakes, more].concat())),
    }
}

fn rows(objects: Objects, today: &Today, config: &Config) -> Vec<Row> {
    let accounts = objects.accounts(config.plan.clone());
    let namespaces: BTreeMap<_, _> =
        objects.namespaces.iter().map(|one| (one.name(), one.annotations())).collect();
    let mut rows: Vec<Row> = objects
        .pods
        .iter()
        .filter(|pod| pod.live())
        .map(|pod| {
            let namespace = namespaces.get(pod.namespace()).copied().unwrap_or(&NONE);
            row(pod, today.role(pod, namespace), &accounts)
        })
        .collect();
    rows.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
    rows
}

fn row(pod: &Pod, today: Result<Has, String>, accounts: &ServiceAccounts) -> Row {
    let role = |role: Result<RoleArn, String>| match role {
        Ok(role) => Role::Role(role.to_string()),
        Err(reason) => Role::Reason(reason),
    };
    let planned = match accounts.plan_of(pod, None) {
        None => Err("its namespace was made while the cluster was read".into()),
        Some(Ok(plan)) => Ok(plan.role.clone()),
        Some(Err(error)) => Err(format!("{}: {error}", error.code())),
    };
    let unsure = today.as_ref().is_ok_and(|today| today.unsure);
    let (today, rolecall) = (role(today.map(|today| today.role)), role(planned));
    let verdict = match (today.role(), rolecall.role()) {
        (Some(today), Some(then)) if today == then => Verdict::Same,
        (Some(_), Some(_)) => Verdict::Changes,
        (Some(_), None) => Verdict::Loses,
        (None, Some(_)) => Verdict::Gains,
        (None, None) => Verdict::None,
    };
    let has = rolecall.role().is_some();
    let notes = [
        (
            unsure,
            "today is a guess: the namespace's expression has a part that Go may read otherwise, so the tool may refuse it",
        ),
        (has && !pod.asks, "no variable of ours in its env: inject it, or redirect instance metadata"),
        (has && pod.host_network, "on the host network: only by a token that it mounts"),
        (pod.prefers_web_identity, "has IRSA's variables beside ours: SDKs prefer them"),
        (
            accounts.by_service_account() && pod.asked.is_some() && verdict != Verdict::Same,
            "its own annotation is not honoured with --role-source=service-account",
        ),
    ];
    Row {
        namespace: pod.namespace().to_owned(),
        pod: pod.name.to_string(),
        service_account: pod.service_account.name.to_string(),
        today,
        rolecall,
        verdict,
        notes: notes.into_iter().filter_map(|(so, note)| so.then_some(note)).collect(),
    }
}

fn tell(rows: &[Row], unread: usize, output: Output) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match output {
        Output::Table => stdout.write_all(table::table(rows).as_bytes())?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut stdout, &serde_json::json!({"pods": rows}))?;
            stdout.write_all(b"\n")?;
        }
    }
    stdout.flush()?;
    let count = |verdict| rows.iter().filter(|row| row.verdict == verdict).count();
    eprintln!(
        "{} pods: {} keep their role, {} lose it, {} get another one, {} get one that they have not today, {} have none",
        rows.len(),
        count(Verdict::Same),
        count(Verdict::Loses),
        count(Verdict::Changes),
        count(Verdict::Gains),
        count(Verdict::None),
    );
    if unread > 0 {
        eprintln!("{unread} pods cannot be read by this version, and would get nothing");
    }
    Ok(())
}

#[cfg(test)]
#[path = "explain/tests.rs"]
mod tests;

//! `rolecall roles`: which roles the cluster's annotations name today, as the `--allow-role` flags that would allow just those.
//!
//! With `--sts-mode=assume-role` and with `--role-source=pod-annotation` these flags are what stands between an annotation and a
//! role, so both require them; nobody should have to write the first set by hand. What it prints is what the agent itself reads
//! out of the annotations.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::ListParams;
use tokio::time::timeout;

use crate::cluster::client;
use crate::cluster::objects::Objects;
use crate::config::{Kube, Mistakes, RoleSourceFlags};
use crate::identity::pods::{Pod, ServiceAccountName};
use crate::role::session_name::Template;
use crate::role::{self, Defaults, RolePlan, RoleSource, Roles};
use crate::service_accounts::ServiceAccounts;
use crate::telemetry::in_full;

/// `EX_USAGE`: bad usage, as opposed to something that failed.
const EXIT_USAGE: u8 = 64;
/// So many ServiceAccounts at a time.
const PAGE: u32 = 500;
/// For one page.
const DEADLINE: Duration = Duration::from_secs(10);

/// `rolecall roles`
#[derive(clap::Args)]
pub struct Args {
    /// Ask this API server [default: in a pod, the pod's own].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Print one line for the agent's environment, ROLECALL_ALLOW_ROLE=…, instead of flags.
    #[arg(long)]
    env: bool,
    #[command(flatten, next_help_heading = "The agent as it is going to run")]
    role_source: RoleSourceFlags,
}

/// What the annotations ask for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// `NAMESPACE=ARN`
    allowed: BTreeSet<String>,
    /// Annotations that give no role, each with its ServiceAccount.
    wrong: BTreeSet<String>,
}

/// Runs the command. It fails, after what it has found, if there were annotations that it cannot read: a flag for them is missing.
/// 64 for bad flags.
pub fn run(args: Args) -> ExitCode {
    let mut mistakes = Vec::new();
    let source = args.role_source.check(None, |flag, why| mistakes.push(format!("--{flag}: {why}")));
    if !mistakes.is_empty() {
        eprint!("{}", Mistakes(mistakes));
        return ExitCode::from(EXIT_USAGE);
    }
    let whose = match &source {
        RoleSource::ServiceAccount => "ServiceAccount",
        RoleSource::PodAnnotation(_) => "pod",
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let found = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            match source {
                RoleSource::ServiceAccount => of_accounts(args.kubeconfig).await,
                RoleSource::PodAnnotation(_) => of_pods(args.kubeconfig, source).await,
            }
        })
    });
    let found = match found.and_then(|found| print(&found, args.env).map(|()| found)) {
        Ok(found) => found,
        Err(err) => {
            eprintln!("error: {}", in_full(err.as_ref()));
            return ExitCode::FAILURE;
        }
    };
    for wrong in &found.wrong {
        // Tenants' words among them: one line each.
        eprintln!("left out: {}", wrong.replace(char::is_control, " "));
    }
    if found.allowed.is_empty() {
        eprintln!("no {whose} of this cluster names a role");
    }
    if found.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn of_accounts(kubeconfig: Option<PathBuf>) -> anyhow::Result<Found> {
    let config = client::config(kubeconfig.as_deref()).await?;
    let accounts = kube::Api::<ServiceAccount>::all(client::client(&config)?);
    let mut found = Found::default();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = timeout(DEADLINE, accounts.list_metadata(&page)).await;
        let list =
            list.context("the kube API does not answer")?.context("the ServiceAccounts cannot be listed")?;
        for account in list.items {
            let (Some(namespace), Some(name)) = (account.metadata.namespace, account.metadata.name) else {
                continue;
            };
            let account_name = ServiceAccountName { namespace: namespace.into(), name: name.into() };
            found.add_account(&account_name, &account.metadata.annotations.unwrap_or_default());
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(found),
        }
    }
}

async fn of_pods(kubeconfig: Option<PathBuf>, source: RoleSource) -> anyhow::Result<Found> {
    let objects = Objects::read(&kubeconfig.map_or(Kube::InCluster, Kube::Kubeconfig)).await?;
    Ok(Found::among(&objects, source))
}

/// No node and no UID decides which roles these are. Without `--allow-role` all are allowed, and what a session is called is the
/// agent's own business: here every cluster has a name.
fn defaults(source: RoleSource, by_agent: bool) -> Defaults {
    let session_name = Template::parse("{namespace}.{service-account}", "", "cluster");
    let session_name = session_name.expect("the template is a constant");
    Defaults { source, by_agent, session_name, ..Defaults::of_node("") }
}

impl Found {
    fn add_account(&mut self, account: &ServiceAccountName, annotations: &BTreeMap<String, String>) {
        let roles =
            Roles::from_annotations(account, "", annotations, &defaults(RoleSource::ServiceAccount, true));
        for plan in roles.plans() {
            self.add(plan);
        }
        // Most ServiceAccounts ask for nothing, which is no mistake.
        let wrong = roles.refusals().filter(|refusal| {
            !matches!(refusal, role::Error::NoRole { .. } | role::Error::NoDefaultRole { .. })
        });
        self.wrong.extend(wrong.map(ToString::to_string));
    }

    /// `--role-source=pod-annotation`. A role that its namespace does not permit is left out: no flag would give it.
    fn among(objects: &Objects, source: RoleSource) -> Self {
        // STS takes an external id from the agent's own credentials alone, and they take no session name of the pod's. Which of
        // the two modes is meant does not change the role.
        let modes = [false, true].map(|by_agent| objects.accounts(defaults(source.clone(), by_agent)));
        let mut found = Self::default();
        for pod in objects.pods.iter().filter(|pod| pod.live()) {
            found.add_pod(pod, &modes);
        }
        if objects.unread > 0 {
            found.wrong.insert(format!("{} pods cannot be read by this version", objects.unread));
        }
        found
    }

    fn add_pod(&mut self, pod: &Pod, modes: &[ServiceAccounts; 2]) {
        let [by_token, by_agent] = modes.each_ref().map(|accounts| accounts.plan_of(pod, None));
        match (by_token, by_agent) {
            (Some(Ok(plan)), _) | (_, Some(Ok(plan))) => self.add(&plan),
            // Most pods ask for nothing, which is no mistake.
            (Some(Err(role::Error::NoPodRole { .. })), _) => {}
            (Some(Err(refusal)), _) => {
                self.wrong.insert(refusal.to_string());
            }
            (None, _) => {
                let why = "its namespace was made while the cluster was read";
                self.wrong.insert(format!("pod {}/{}: {why}", pod.namespace(), pod.name));
            }
        }
    }

    /// Every hop of it.
    fn add(&mut self, plan: &Arc<RolePlan>) {
        for hop in plan.hops() {
            let (account, role) = (&hop.account, hop.role.as_str());
            if role.contains(',') {
                let why = "commas part the entries of --allow-role: write * in its place, and see what else that allows";
                self.wrong.insert(format!("ServiceAccount {account}: {role}: {why}"));
            } else {
                self.allowed.insert(format!("{}={role}", account.namespace));
            }
        }
    }
}

fn print(found: &Found, env: bool) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    let allowed: Vec<&str> = found.allowed.iter().map(String::as_str).collect();
    if env {
        writeln!(stdout, "ROLECALL_ALLOW_ROLE={}", allowed.join(","))?;
    } else {
        for entry in allowed {
            writeln!(stdout, "--allow-role {entry}")?;
        }
    }
    Ok(stdout.flush()?)
}

#[cfg(test)]
mod tests;

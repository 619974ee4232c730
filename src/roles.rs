//! `rolecall roles`: which roles the cluster's ServiceAccounts name today, as the `--allow-role` flags that would allow just those.
//!
//! With `--sts-mode=assume-role` these flags are what stands between an annotation and a role, so that mode requires them; nobody
//! should have to write the first set by hand. What it prints is what the agent itself reads out of the annotations.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::ListParams;
use tokio::time::timeout;

use crate::cluster::client;
use crate::identity::pods::ServiceAccountName;
use crate::role::{self, Defaults, Roles};
use crate::telemetry::in_full;

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
}

/// What the ServiceAccounts ask for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// `NAMESPACE=ARN`
    allowed: BTreeSet<String>,
    /// Annotations that give no role, each with its ServiceAccount.
    wrong: Vec<String>,
}

/// Runs the command. It fails, after what it has found, if there were annotations that it cannot read: a flag for them is missing.
pub fn run(args: Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let found = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(find(&args)));
    let found = match found.and_then(|found| print(&found, args.env).map(|()| found)) {
        Ok(found) => found,
        Err(err) => {
            eprintln!("error: {}", in_full(&err));
            return ExitCode::FAILURE;
        }
    };
    for wrong in &found.wrong {
        eprintln!("left out: {wrong}");
    }
    if found.allowed.is_empty() {
        eprintln!("no ServiceAccount of this cluster names a role");
    }
    if found.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn find(args: &Args) -> anyhow::Result<Found> {
    let config = client::config(args.kubeconfig.as_deref()).await?;
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
            found.add(&account_name, &account.metadata.annotations.unwrap_or_default());
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(found),
        }
    }
}

impl Found {
    fn add(&mut self, account: &ServiceAccountName, annotations: &BTreeMap<String, String>) {
        // No node and no UID decides which roles these are. Without `--allow-role` all are allowed.
        let defaults = Defaults { by_agent: true, ..Defaults::of_node("") };
        let roles = Roles::from_annotations(account, "", annotations, &defaults);
        for hop in roles.plans().flat_map(|plan| plan.hops()) {
            let (namespace, role) = (&account.namespace, hop.role.as_str());
            if role.contains(',') {
                let why = "commas part the entries of --allow-role: write * in its place, and see what else that allows";
                self.wrong.push(format!("ServiceAccount {account}: {role}: {why}"));
            } else {
                self.allowed.insert(format!("{namespace}={role}"));
            }
        }
        // Most ServiceAccounts ask for nothing, which is no mistake.
        let wrong = roles.refusals().filter(|refusal| {
            !matches!(refusal, role::Error::NoRole { .. } | role::Error::NoDefaultRole { .. })
        });
        self.wrong.extend(wrong.map(ToString::to_string));
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
mod tests {
    use super::*;

    fn found(annotations: &[(&str, &str)]) -> Found {
        let mut found = Found::default();
        let account = ServiceAccountName { namespace: "shop".into(), name: "web".into() };
        found.add(&account, &annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
        found
    }

    #[test]
    fn every_hop_of_every_role_is_allowed() {
        let arn = |name: &str| format!("arn:aws:iam::111122223333:role/{name}");
        let found = found(&[
            ("eks.amazonaws.com/role-arn", &arn("web")),
            ("rolecall.dev/assume-role-arn", &arn("team")),
            ("rolecall.dev/role-arn.backup", &arn("backup")),
        ]);
        let expected = ["backup", "team", "web"].map(|name| format!("shop={}", arn(name)));
        assert_eq!((found.allowed, found.wrong), (BTreeSet::from(expected), Vec::new()));
    }

    #[test]
    fn a_role_that_no_flag_can_name_and_one_that_is_none_are_left_out() {
        for value in ["arn:aws:iam::111122223333:role/a,b", "arn:aws:iam::1:role/web", "*"] {
            let found = found(&[("rolecall.dev/role-arn", value)]);
            assert_eq!((found.allowed.len(), found.wrong.len()), (0, 1), "{value}: {found:?}");
            assert!(found.wrong[0].contains("shop/web") && found.wrong[0].contains(value), "{found:?}");
        }
        assert_eq!(found(&[("team", "a")]), Found::default());
    }
}

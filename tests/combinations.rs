//! docs/combinations.md is what the agent does: every cell of its table is run, as the agent would at its start and for the pod.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use clap::Parser;
use rolecall::config::{Args, Config};
use rolecall::fakes;
use rolecall::identity::pods::{Pod, ServiceAccountName};
use rolecall::role::pod_annotation::Asked;
use rolecall::role::{RoleName, RolePlan};
use rolecall::service_accounts::ServiceAccounts;

const PAGE: &str = include_str!("../docs/combinations.md");
const README: &str = include_str!("../README.md");

/// Flags, variables and annotations, as a cell names them.
#[derive(Clone, Default)]
struct Settings {
    flags: BTreeMap<String, String>,
    /// Of the agent's environment.
    variables: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

impl Settings {
    /// `--flag value`, `--flag`, `VARIABLE=value` or `annotation: value`, each in backticks.
    fn read(cell: &str) -> Self {
        let mut settings = Self::default();
        for item in cell.split('`').skip(1).step_by(2) {
            let (map, parted) = if item.starts_with("--") {
                (&mut settings.flags, item.split_once(' ').or(Some((item, ""))))
            } else if item.starts_with("AWS_") {
                (&mut settings.variables, item.split_once('='))
            } else {
                (&mut settings.annotations, item.split_once(": "))
            };
            let (name, value) = parted.unwrap_or_else(|| panic!("{item}"));
            map.insert(name.to_owned(), value.to_owned());
        }
        settings
    }

    /// What is in `added` wins.
    fn with(mut self, added: &Self) -> Self {
        self.flags.extend(added.flags.clone());
        self.variables.extend(added.variables.clone());
        self.annotations.extend(added.annotations.clone());
        self
    }
}

/// A way to a role: what is set, and where pods ask.
struct Way {
    settings: Settings,
    name: Option<RoleName>,
}

impl Way {
    fn read(row: &[String]) -> Self {
        let settings = Settings::read(&row[1]).with(&Settings::read(&row[2]));
        let path = row[3].trim_matches('`').strip_prefix("/v1/credentials").unwrap();
        Self { settings, name: path.strip_prefix('/').map(|name| RoleName::parse(name).unwrap()) }
    }

    /// What the agent makes of it and of what is added: a plan, or the code and the message of the refusal. `start` is no code of
    /// an answer.
    fn outcome(&self, added: &Settings) -> Result<Arc<RolePlan>, (String, String)> {
        #[derive(Parser)]
        struct Agent {
            #[command(flatten)]
            args: Args,
        }
        let Settings { flags, variables, annotations } = self.settings.clone().with(added);
        let no_start = |message: String| ("start".to_owned(), message);
        let flags = flags.iter().flat_map(|(flag, value)| [&**flag, value]).filter(|word| !word.is_empty());
        let words = ["rolecall", "--node-name", "node-1"].into_iter().chain(flags);
        let agent = Agent::try_parse_from(words).map_err(|error| no_start(error.to_string()))?;
        let config = Config::from_args(agent.args, |name| variables.get(name).cloned());
        let config = config.map_err(|mistakes| no_start(mistakes.to_string()))?;
        config.check_audiences(&Default::default()).map_err(|mistakes| no_start(mistakes.to_string()))?;

        // kube2iam's and kiam's annotations are the pod's and the namespace's; what is read of which, their names say.
        let mut asked = Asked::default();
        annotations.iter().for_each(|(name, value)| asked.take(name, value));
        let asked = (!asked.is_empty()).then(|| Arc::new(asked));
        let account = ServiceAccountName { namespace: "shop".into(), name: "web".into() };
        let pod = Pod { asked, service_account: account.clone(), ..fakes::pod("web-1", "10.0.0.7") };
        let accounts = ServiceAccounts::new(config.plan);
        accounts.apply(&account, "uid", &annotations);
        accounts.apply_namespace(&account.namespace, &annotations);
        let plan = accounts.plan_of(&pod, self.name.as_ref()).expect("all has been shown");
        plan.map_err(|error| (error.code().to_owned(), error.to_string()))
    }
}

/// The cells of the table whose first row begins with that cell, which names the columns.
fn table(first: &str) -> Vec<Vec<String>> {
    let lines = PAGE.lines().skip_while(|line| !line.starts_with(&format!("| {first} |")));
    let lines = lines.take_while(|line| line.starts_with('|')).filter(|line| !line.starts_with("|---"));
    lines
        .map(|line| {
            let cells =
                line.strip_prefix('|').and_then(|line| line.strip_suffix('|')).expect(line).split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect()
}

/// Do its pieces, parted by `…`, stand in `text` in that order?
fn says(text: &str, message: &str) -> bool {
    let mut rest = text;
    message.split('…').all(|piece| match rest.find(piece) {
        Some(at) => {
            rest = &rest[at + piece.len()..];
            true
        }
        None => false,
    })
}

#[test]
fn every_cell_of_the_page_is_what_the_agent_does() {
    let ways = table("way").into_iter().skip(1);
    let ways: BTreeMap<String, Way> = ways.map(|row| (row[0].clone(), Way::read(&row))).collect();
    let refusals: BTreeMap<String, (String, String)> = table("refusal")
        .into_iter()
        .skip(1)
        .map(|row| (row[0].clone(), (row[1].replace('`', ""), row[2].trim_matches('`').to_owned())))
        .collect();
    let (mut used, mut wrong) = (BTreeSet::new(), Vec::new());
    let mut combinations = table("added");
    let columns = combinations.remove(0);
    assert_eq!(columns[1..].iter().collect::<BTreeSet<_>>(), ways.keys().collect(), "a column for each way");
    for row in table("in every way").into_iter().skip(1) {
        let cells = std::iter::repeat_n(row[1].clone(), ways.len());
        combinations.push(std::iter::once(row[0].clone()).chain(cells).collect());
    }
    for row in &combinations {
        assert_eq!(row.len(), columns.len(), "{row:?}");
        for (column, cell) in columns.iter().zip(row).skip(1) {
            let (way, added) = (&ways[column], Settings::read(&row[0]));
            let (outcome, without) = (way.outcome(&added), way.outcome(&Settings::default()));
            let good = match (&**cell, &outcome) {
                ("same", Ok(plan)) => Ok(plan) == without.as_ref(),
                ("cut", Ok(plan)) => plan.cut_from.is_some(),
                // A flag may change other things than the plan.
                ("works", Ok(plan)) => {
                    plan.cut_from.is_none() && (added.annotations.is_empty() || Ok(plan) != without.as_ref())
                }
                (refusal, Err((code, said))) => refusals.get(refusal).is_some_and(|(expected, message)| {
                    used.insert(refusal.to_owned());
                    expected == code && says(said, message)
                }),
                _ => false,
            };
            if !good {
                let outcome = outcome.map(|_| "a plan");
                wrong.push(format!("{} | {column}: the page says {cell:?}, the agent {outcome:?}", row[0]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let unused: Vec<_> = refusals.keys().filter(|name| !used.contains(*name)).collect();
    assert!(unused.is_empty(), "no cell has {unused:?}");
}

#[test]
fn every_annotation_of_the_readme_has_its_row() {
    let section = README.split_once("\n## Annotations\n").unwrap().1.split("\n## ").next().unwrap();
    let names = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let rows = [table("added"), table("in every way")].concat();
    // Not the row of the further roles, whose names are the reader's choice.
    let names: Vec<&str> = names.filter(|name| name.contains('/')).collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        let row = rows.iter().find(|row| Settings::read(&row[0]).annotations.contains_key(name));
        assert!(row.is_some(), "docs/combinations.md has no row for {name}");
    }
}

/// Flags that say where things are, or what they are called, and change nothing of what goes with what.
const OF_THEIR_OWN: [&str; 8] = [
    "--node-name",
    "--metrics-listen",
    "--local-socket",
    "--kubeconfig",
    "--impersonate-node",
    "--issuer-ca-bundle",
    "--issuer-token-file",
    "--region",
];

#[test]
fn every_flag_of_the_readme_has_its_row_or_stands_alone() {
    let section = README.split_once("\n## Flags\n").unwrap().1.split("\n## ").next().unwrap();
    let flags = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let rows = [table("added"), table("in every way")].concat();
    for flag in flags.filter(|flag| flag.starts_with("--")) {
        let row = rows.iter().any(|row| Settings::read(&row[0]).flags.contains_key(flag));
        assert!(row != OF_THEIR_OWN.contains(&flag), "docs/combinations.md and this list: where is {flag}?");
    }
}

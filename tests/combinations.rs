//! docs/combinations.md is what the agent does: every cell of its table is run, as the agent would at its start, for the pod, and before it
//! asks STS.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;

use clap::Parser;
use rolecall::config::{Args, Config};
use rolecall::fakes;
use rolecall::identity::pods::{Pod, ServiceAccountName};
use rolecall::role::pod_annotation::Asked;
use rolecall::role::{RoleName, RolePlan};
use rolecall::service_accounts::ServiceAccounts;
use rolecall::sts::StsClient;

const PAGE: &str = include_str!("../docs/combinations.md");
const README: &str = include_str!("../README.md");
/// Of the node, where no flag says another.
const REGION: &str = "eu-central-1";

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

    /// Are these flags and variables the way's own already, or what is so without a word?
    fn has(&self, added: &Settings) -> bool {
        const SO_ANYHOW: [(&str, &str); 2] =
            [("--role-source", "service-account"), ("--sts-mode", "web-identity")];
        let own = |(flag, value): (&String, &String)| {
            self.settings
                .flags
                .get(flag)
                .map_or_else(|| SO_ANYHOW.contains(&(flag, value)), |own| own == value)
        };
        added.flags.iter().all(own) && added.variables.is_empty()
    }

    /// What the agent makes of it and of what is added: its configuration and a plan, or the code and the message of the refusal.
    /// `start` is no code of an answer.
    fn outcome(&self, added: &Settings) -> Result<(String, Arc<RolePlan>), (String, String)> {
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
        let shown = config.to_string();
        let pod = Pod { asked, service_account: account.clone(), ..fakes::pod("web-1", "10.0.0.7") };
        let accounts = ServiceAccounts::new(config.plan);
        accounts.apply(&account, "uid", &annotations);
        accounts.apply_namespace(&account.namespace, &annotations);
        let plan = accounts.plan_of(&pod, self.name.as_ref()).expect("all has been shown");
        let plan = plan.map_err(|error| (error.code().to_owned(), error.to_string()))?;

        // The door to STS has the last word: each hop's role must be one that it can know.
        let sts = StsClient::new(config.region.as_deref().unwrap_or(REGION), config.sts).unwrap();
        let known = plan.hops().try_for_each(|hop| sts.knows(&hop.role));
        known.map(|()| (shown, plan)).map_err(|error| (error.code().to_owned(), error.to_string()))
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
            let without = without.expect("a way is one");
            let good = match (&**cell, &outcome) {
                ("same", Ok((_, plan))) => *plan == without.1,
                ("cut", Ok((_, plan))) => plan.cut_from.is_some(),
                // A flag may change other things than the plan, and may say what is so already.
                ("works", Ok(made)) => {
                    let counts = if added.annotations.is_empty() {
                        *made != without || way.has(&added)
                    } else {
                        made.1 != without.1
                    };
                    made.1.cut_from.is_none() && counts
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

/// Only its API server knows them, which this agent does not have: `microk8s_default_audience` has one.
const NEED_A_CLUSTER: [&str; 2] = ["the API server's own audience", "in the clear"];

/// As whoever installs it meets them: the program itself, each start that the page refuses.
#[test]
fn what_does_not_start_ends_with_64_and_all_that_is_wrong() {
    let refused = table("refusal").into_iter().skip(1).filter(|row| row[1] == "`start`");
    let messages: BTreeMap<String, String> =
        refused.map(|row| (row[0].clone(), row[2].trim_matches('`').to_owned())).collect();
    let ways: Vec<Way> = table("way").iter().skip(1).map(|row| Way::read(row)).collect();
    let mut begun = BTreeSet::new();
    for row in table("added").into_iter().skip(1).chain(table("in every way").into_iter().skip(1)) {
        for (way, cell) in ways.iter().zip(&row[1..]) {
            let message = messages.get(cell).filter(|_| !NEED_A_CLUSTER.contains(&&**cell));
            let Some(message) = message.filter(|_| begun.insert(cell.clone())) else { continue };
            let Settings { flags, variables, .. } = way.settings.clone().with(&Settings::read(&row[0]));
            let flags = flags.iter().flat_map(|(flag, value)| [flag, value]).filter(|word| !word.is_empty());
            let output = Command::new(env!("CARGO_BIN_EXE_rolecall"))
                .args(["agent", "--node-name", "node-1", "--metrics-listen", "nowhere"])
                .args(flags)
                .env_clear()
                .envs(variables)
                .env("ROLECALL_ALLOW_ROLES", "shop=*")
                .output()
                .unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(64), "{}: {said}", row[0]);
            assert!(said.lines().any(|line| says(line, message)), "{}: {said}", row[0]);
            assert!(said.contains("ROLECALL_ALLOW_ROLES: ") && said.contains("--metrics-listen: "), "{said}");
        }
    }
    assert!(begun.len() > 20, "{begun:?}");
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
const OF_THEIR_OWN: [&str; 7] = [
    "--node-name",
    "--metrics-listen",
    "--local-socket",
    "--kubeconfig",
    "--impersonate-node",
    "--issuer-ca-bundle",
    "--issuer-token-file",
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

//! docs/combinations.md is what the agent does: every cell of its table is run, as the agent would at its start and for the pod.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use clap::Parser;
use rolecall::config::{Args, Config};
use rolecall::identity::pods::ServiceAccountName;
use rolecall::role::RolePlan;

const PAGE: &str = include_str!("../docs/combinations.md");
const README: &str = include_str!("../README.md");

/// Flags and annotations, as a cell names them.
#[derive(Clone, Default)]
struct Settings {
    flags: Vec<String>,
    annotations: BTreeMap<String, String>,
}

impl Settings {
    /// `--flag value` or `annotation: value`, each in backticks.
    fn read(cell: &str) -> Self {
        let mut settings = Self::default();
        for item in cell.split('`').skip(1).step_by(2) {
            if item.starts_with("--") {
                settings.flags.extend(item.split(' ').map(str::to_owned));
            } else {
                let (name, value) = item.split_once(": ").unwrap_or_else(|| panic!("{item}"));
                settings.annotations.insert(name.to_owned(), value.to_owned());
            }
        }
        settings
    }

    /// What is in `added` wins.
    fn with(mut self, added: &Self) -> Self {
        self.flags.extend(added.flags.clone());
        self.annotations.extend(added.annotations.clone());
        self
    }

    /// What the agent makes of them: a plan, or the code and the message of the refusal. `start` is no code of an answer.
    fn outcome(&self) -> Result<RolePlan, (String, String)> {
        #[derive(Parser)]
        struct Agent {
            #[command(flatten)]
            args: Args,
        }
        let no_start = |message: String| ("start".to_owned(), message);
        let words =
            ["rolecall", "--node-name", "node-1"].into_iter().chain(self.flags.iter().map(String::as_str));
        let agent = Agent::try_parse_from(words).map_err(|error| no_start(error.to_string()))?;
        let config =
            Config::from_args(agent.args, |_| None).map_err(|mistakes| no_start(mistakes.to_string()))?;
        config.check_audiences(&Default::default()).map_err(|mistakes| no_start(mistakes.to_string()))?;
        let account = ServiceAccountName { namespace: "shop".into(), name: "web".into() };
        let plan = RolePlan::from_annotations(&account, "uid", &self.annotations, &config.plan);
        plan.map_err(|error| (error.code().to_owned(), error.to_string()))
    }
}

/// The cells of the table under a heading; its first row names the columns.
fn table(heading: &str) -> Vec<Vec<String>> {
    let section = PAGE.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no {heading}")).1;
    let section = section.split("\n## ").next().unwrap();
    let lines = section.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
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
    let ways: BTreeMap<String, Settings> = table("Ways")
        .into_iter()
        .skip(1)
        .map(|row| (row[0].clone(), Settings::read(&row[1]).with(&Settings::read(&row[2]))))
        .collect();
    let refusals: BTreeMap<String, (String, String)> = table("Refusals")
        .into_iter()
        .skip(1)
        .map(|row| (row[0].clone(), (row[1].replace('`', ""), row[2].trim_matches('`').to_owned())))
        .collect();
    let (mut used, mut wrong) = (BTreeSet::new(), Vec::new());
    let combinations = table("Combinations");
    let (columns, rows) = combinations.split_first().unwrap();
    assert_eq!(columns[1..].iter().collect::<BTreeSet<_>>(), ways.keys().collect(), "a column for each way");
    for row in rows {
        assert_eq!(row.len(), columns.len(), "{row:?}");
        for (column, cell) in columns.iter().zip(row).skip(1) {
            let (way, added) = (&ways[column], Settings::read(&row[0]));
            let outcome = way.clone().with(&added).outcome();
            let good = match (&**cell, &outcome) {
                ("same", Ok(plan)) => Ok(plan) == way.outcome().as_ref(),
                // A flag may change other things than the plan.
                ("works", Ok(plan)) => added.annotations.is_empty() || Ok(plan) != way.outcome().as_ref(),
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
    let rows = table("Combinations");
    let names: Vec<&str> = names.collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        let row = rows.iter().find(|row| Settings::read(&row[0]).annotations.contains_key(name));
        assert!(row.is_some(), "docs/combinations.md has no row for {name}");
    }
}

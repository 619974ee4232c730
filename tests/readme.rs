//! README.md says what the program says: its tables are compared with the program itself.

use std::collections::BTreeSet;
use std::process::Command;

const README: &str = include_str!("../README.md");

#[test]
fn the_flags_are_those_of_the_agents_help() {
    let agent = Command::new(env!("CARGO_BIN_EXE_rolecall")).args(["agent", "--help"]).env_clear().output();
    let help = String::from_utf8(agent.expect("rolecall starts").stdout).expect("help is UTF-8");
    let (_, options) = help.split_once("Options:").expect("help has options");
    let mut table = String::from("| flag | default | meaning |\n|---|---|---|\n");
    for option in options.split("\n      --").skip(1) {
        let (flag, text) = option.split_once('\n').expect("the text follows on a line of its own");
        let text = text.split("\n  -h").next().unwrap_or_default().trim();
        let flag = flag.split(' ').next().unwrap_or_default();
        let variable = format!("ROLECALL_{}", flag.to_uppercase().replace('-', "_"));
        assert!(text.contains(&format!("[env: {variable}=]")), "--{flag} has no {variable}");
        // What the parser fills in is code; what the agent works out stands in words in the sentence.
        let (text, default) = match text.rsplit_once("] [default: ") {
            Some((text, default)) => (text, format!("`{}`", default.trim_end_matches(']'))),
            None => (text, String::new()),
        };
        let (meaning, _) = text.split_once(" [env: ").expect("every flag has its variable");
        let (meaning, default) = match meaning.split_once(" [default: ") {
            Some((meaning, words)) => (meaning, words.strip_suffix(']').unwrap_or(words).to_owned()),
            None => (meaning, default),
        };
        table += &format!("| `--{flag}` | {default} | {meaning} |\n");
    }
    assert!(README.contains(&table), "README.md must have this table:\n{table}");
}

#[test]
fn the_series_are_those_that_are_registered() {
    // Not those of a scrape: a counter that nothing has counted yet is not in one.
    let names = |text: &'static str, quote: char| -> BTreeSet<&'static str> {
        text.split(quote).filter(|word| word.starts_with("rolecall_")).map(series).collect()
    };
    let registered = names(include_str!("../src/metrics.rs"), '"');
    assert_eq!(names(README, '`'), registered);
}

/// The name without its labels and value; a histogram's count is part of it.
fn series(text: &str) -> &str {
    let name = text.split(['{', ' ']).next().unwrap_or(text);
    name.strip_suffix("_count").unwrap_or(name)
}

#[test]
fn the_annotations_are_those_that_are_read() {
    let names = |text: &'static str, quote: char| -> BTreeSet<&'static str> {
        let prefixes = ["rolecall.dev/", "eks.amazonaws.com/"];
        text.split(quote)
            .filter(|word| {
                prefixes.iter().any(|prefix| word.len() > prefix.len() && word.starts_with(prefix))
            })
            .collect()
    };
    let (_, section) =
        README.split_once("\n## Annotations\n").expect("README.md has a section on annotations");
    let (table, _) = section.split_once("\n\nAny other").expect("what follows the table is what is refused");
    assert_eq!(names(table, '`'), names(include_str!("../src/role/annotations.rs"), '"'));
}

#[test]
fn every_code_of_an_answer_is_listed_and_no_other() {
    let (_, section) = README.split_once("\n## Answers\n").expect("README.md has a section on answers");
    let (section, _) = section.split_once("\n## ").expect("it is not the last");
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let listed: BTreeSet<&str> = rows
        .flat_map(|row| row.split('|').nth(2).unwrap_or_default().split('`'))
        .filter(|word| word.starts_with(|c: char| c.is_ascii_uppercase()))
        .collect();
    // The words stand in the `code` functions of the path and nowhere else.
    let code = [
        include_str!("../src/server/reply.rs"),
        include_str!("../src/identity.rs"),
        include_str!("../src/identity/evidence.rs"),
        include_str!("../src/broker.rs"),
        include_str!("../src/role.rs"),
        include_str!("../src/exchange.rs"),
        include_str!("../src/sts.rs"),
    ];
    let given: BTreeSet<&str> = code
        .iter()
        .flat_map(|file| file.split("fn code(&self)").skip(1))
        .flat_map(|function| {
            function.split("\n    }\n").next().unwrap_or_default().split('"').skip(1).step_by(2)
        })
        .collect();
    assert_eq!(listed, given);
}

#[test]
fn every_page_is_linked_from_here_and_every_link_leads_to_a_file() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut linked = BTreeSet::new();
    for page in ["README.md", "SECURITY.md", "daemonset/README.md", "iptables/README.md"] {
        linked.extend(links(root, page));
    }
    for page in std::fs::read_dir(root.join("docs")).expect("there are pages") {
        let page = page.expect("the repository can be read").path();
        let name = page.strip_prefix(root).expect("it is in the repository").to_str().expect("UTF-8");
        assert!(linked.contains(&page), "nobody is led to {name}");
        links(root, name);
    }
    for page in ["cluster", "emulator", "oidc", "sdk"] {
        links(root, &format!("tests/{page}/README.md"));
    }
}

/// The files that a page links to, each of which is there, as is the heading that is named.
fn links(root: &std::path::Path, page: &str) -> Vec<std::path::PathBuf> {
    let text = std::fs::read_to_string(root.join(page)).expect("a page");
    let folder = root.join(page).parent().expect("it is in a folder").to_owned();
    let targets = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap_or_default());
    let files = targets.filter(|target| !target.contains("://")).map(|target| {
        let (file, heading) = target.split_once('#').unwrap_or((target, ""));
        let path = if file.is_empty() { root.join(page) } else { folder.join(file) };
        let path = path.canonicalize().unwrap_or_else(|err| panic!("{page}: {target}: {err}"));
        if !heading.is_empty() {
            let text = std::fs::read_to_string(&path).expect("a page");
            let found = text.lines().any(|line| line.starts_with('#') && anchor(line) == heading);
            assert!(found, "{page}: {target}: no such heading");
        }
        path
    });
    files.collect()
}

/// As GitHub makes a heading's name.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    words.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

#[test]
fn every_test_that_the_security_page_names_is_there() {
    let page = include_str!("../SECURITY.md");
    let (_, threats) = page.split_once("\n## Threats\n").expect("SECURITY.md has a section on threats");
    let (threats, _) = threats.split_once("\n## ").expect("it is not the last");
    let rows = threats.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| attacker"));
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let code = [rust_files(&root.join("tests")), rust_files(&root.join("src"))].concat();
    for row in rows {
        let named: Vec<&str> =
            row.split('|').nth(4).unwrap_or_default().split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test shows it: {row}");
        for test in named {
            // A function, or a row of a table of tests.
            let there = code.contains(&format!("fn {test}()")) || code.contains(&format!("\n    {test}:"));
            assert!(there, "there is no test {test}");
        }
    }
}

fn rust_files(folder: &std::path::Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).expect("the repository can be read") {
        let path = entry.expect("the repository can be read").path();
        if path.is_dir() {
            text += &rust_files(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &std::fs::read_to_string(&path).expect("sources are UTF-8");
        }
    }
    text
}

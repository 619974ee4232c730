//! A page of docs/ as somebody reads it who copies its commands into a shell.
// Each test binary compiles this file and uses a part of it.
#![allow(clippy::unwrap_used, dead_code)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::apiserver::ApiServer;
use crate::moto;
use crate::sdk::{Environment, tool};

/// What follows a heading, to the next one of its level or above.
///
/// # Panics
/// If the page has no such heading.
pub(crate) fn section<'p>(page: &'p str, heading: &str) -> &'p str {
    let (_, rest) = page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let level = heading.split(' ').next().unwrap().len();
    let end = (1..=level).filter_map(|level| rest.find(&format!("\n{} ", "#".repeat(level)))).min();
    &rest[..end.unwrap_or(rest.len())]
}

/// Its blocks of commands, in their order: those between fences, and the indented ones that begin with a program's name.
pub(crate) fn commands(text: &str) -> Vec<String> {
    const PROGRAMS: [&str; 6] = ["aws", "cat", "kubectl", "openssl", "rolecall", "sed"];
    let is_command = |block: &String| PROGRAMS.contains(&block.split_whitespace().next().unwrap());
    let mut found = Vec::new();
    for (number, part) in text.split("```").enumerate() {
        if number % 2 == 0 {
            found.extend(indented(part).into_iter().filter(is_command));
        } else if let Some(block) = part.strip_prefix("sh\n") {
            found.push(block.to_owned());
        }
    }
    found
}

/// The indented blocks, with what is left of their indentation.
fn indented(text: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in text.lines() {
        match line.strip_prefix("    ") {
            Some(line) => *blocks.last_mut().unwrap() += &format!("{line}\n"),
            None if blocks.last().unwrap().is_empty() => {}
            None => blocks.push(String::new()),
        }
    }
    blocks.retain(|block| !block.trim().is_empty());
    blocks
}

/// Whoever copies: in a home of his own, with a kubeconfig in it, and in a folder like this repository's.
pub(crate) struct Reader {
    home: tempfile::TempDir,
    environment: Environment,
}

impl Reader {
    /// The administrator of `server`, with an AWS CLI that asks `endpoint`.
    pub(crate) fn new(server: &ApiServer, endpoint: Option<&str>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        std::fs::create_dir(at(".kube")).unwrap();
        std::fs::copy(server.kubeconfig(), at(".kube/config")).unwrap();
        symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/daemonset"), at("daemonset")).unwrap();
        let rolecall = Path::new(env!("CARGO_BIN_EXE_rolecall")).parent().unwrap().to_owned();
        let mut path: Vec<PathBuf> = vec![rolecall, server.state().join("bin")];
        let mut environment = Environment::new();
        if let Some(endpoint) = endpoint {
            path.push(tool("python", "aws").parent().unwrap().to_owned());
            // Any keys will do until moto judges.
            environment = environment
                .region(moto::REGION)
                .with("AWS_ENDPOINT_URL", endpoint)
                .with("AWS_ACCESS_KEY_ID", "any")
                .with("AWS_SECRET_ACCESS_KEY", "any");
        }
        let own = std::env::var_os("PATH").unwrap();
        path.extend(std::env::split_paths(&own));
        let environment =
            environment.with("PATH", std::env::join_paths(path).unwrap()).with("HOME", home.path());
        Self { home, environment }
    }

    /// The same with one more variable.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.environment = self.environment.with(name, value);
        self
    }

    /// A file in the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Runs `script` by `bash`, to its first failure; returns what it prints.
    ///
    /// # Panics
    /// At that failure.
    pub(crate) fn play_by(&self, mut bash: Command, script: &str) -> String {
        self.environment.apply(&mut bash);
        let output = bash
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{}\n{said}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same on this machine's own network.
    pub(crate) fn play(&self, script: &str) -> String {
        self.play_by(Command::new("bash"), script)
    }
}

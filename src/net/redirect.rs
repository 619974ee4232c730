//! The rules of `iptables/`, applied as they stand there by the `nft` program, in one transaction and in a table of our own.
//!
//! `nft` rather than a netlink library: the files are the documentation, and what a reader sees is what the kernel gets. It ships in the
//! image of the init container. Never the iptables program, whose two forms do not see each other's rules.

use std::fmt;
use std::io;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const TABLE: &str = include_str!("../../iptables/00-table.nft");
const RELATIVE_URI: &str = include_str!("../../iptables/10-relative-uri.nft");
const EKS_PORT: &str = include_str!("../../iptables/20-eks-port.nft");

/// Why the rules could not be applied or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is not there, or may not run.
    #[error("cannot run nft: {0}; it ships in the image of the init container, elsewhere install nftables")]
    Program(#[source] io::Error),
    /// The kernel shows and changes rules only with the capability.
    #[error("nf_tables needs the capability NET_ADMIN")]
    NotPermitted,
    /// nft or the kernel said no; nothing was changed, since a transaction is applied whole or not at all.
    #[error("nft refused ({0}); does the kernel have nf_tables with NAT for the inet family (Linux 5.2)?")]
    Refused(String),
}

/// Which files apply, and the port that each sends to. The default is none: our table is then absent.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Rules {
    /// 169.254.170.2:80, for `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`.
    pub relative_uri: Option<u16>,
    /// Port 80 of the EKS Pod Identity addresses.
    pub eks: Option<u16>,
}

impl Rules {
    /// What `nft -f -` is given: the files, with their `define` lines set.
    #[must_use]
    pub fn script(&self) -> String {
        let mut script = TABLE.to_owned();
        for (file, name, port) in self.files() {
            script.push_str(&with_define(file, name, port));
        }
        script
    }

    fn files(&self) -> impl Iterator<Item = (&'static str, &'static str, u16)> {
        let relative_uri = self.relative_uri.map(|port| (RELATIVE_URI, "relative_uri_port", port));
        let eks = self.eks.map(|port| (EKS_PORT, "eks_port", port));
        relative_uri.into_iter().chain(eks)
    }

    /// The lines that `nft list table inet rolecall` prints when exactly these rules are in force.
    fn listing(&self) -> Vec<String> {
        self.files().flat_map(|(file, name, port)| rule_lines(file, &format!("${name}"), port)).collect()
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.relative_uri, self.eks) {
            (None, None) => write!(f, "none needed"),
            (Some(port), None) => write!(f, "169.254.170.2:80 goes to port {port}"),
            (None, Some(port)) => write!(f, "169.254.170.23:80 and [fd00:ec2::23]:80 go to port {port}"),
            (Some(port), Some(_)) => {
                write!(f, "169.254.170.2:80, 169.254.170.23:80 and [fd00:ec2::23]:80 go to port {port}")
            }
        }
    }
}

/// Replaces our table by `rules`, in one transaction.
///
/// # Errors
/// See [`Error`]; the rules that were in force before are then still in force.
pub async fn apply(rules: &Rules) -> Result<(), Error> {
    nft(&["-f", "-"], &rules.script()).await.map(drop)
}

/// Takes our table away; nothing happens if it is not there.
///
/// # Errors
/// See [`Error`].
pub async fn remove() -> Result<(), Error> {
    nft(&["-f", "-"], TABLE).await.map(drop)
}

/// What is in force in place of `rules`; `None` if exactly they are.
///
/// # Errors
/// See [`Error`].
pub async fn drift(rules: &Rules) -> Result<Option<String>, Error> {
    let listed = match nft(&["--stateless", "list", "table", "inet", "rolecall"], "").await {
        Ok(listed) => listed,
        Err(Error::Refused(said)) if said.contains("No such file or directory") => String::new(),
        Err(err) => return Err(err),
    };
    Ok(difference(&rules.listing(), &rule_lines(&listed, "", 0)))
}

fn difference(wanted: &[String], found: &[String]) -> Option<String> {
    if let Some(missing) = wanted.iter().find(|line| !found.contains(line)) {
        return Some(format!("missing in table inet rolecall: `{missing}`"));
    }
    if let Some(foreign) = found.iter().find(|line| !wanted.contains(line)) {
        return Some(format!("not ours, but in table inet rolecall: `{foreign}`"));
    }
    (wanted != found).then(|| "the rules of table inet rolecall are in another order".to_owned())
}

/// The lines inside the table's braces, without comments, blank lines and indentation, `define`d `variable` filled in.
fn rule_lines(text: &str, variable: &str, port: u16) -> Vec<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut lines = lines.skip_while(|line| !line.starts_with("table ")).skip(1);
    let mut inside: Vec<String> =
        lines
            .by_ref()
            .map(|line| {
                if variable.is_empty() { line.to_owned() } else { line.replace(variable, &port.to_string()) }
            })
            .collect();
    // The table's own closing brace.
    inside.pop();
    inside
}

fn with_define(file: &str, name: &str, port: u16) -> String {
    file.replacen(&format!("define {name} = 9902\n"), &format!("define {name} = {port}\n"), 1)
}

async fn nft(args: &[&str], script: &str) -> Result<String, Error> {
    let mut child = Command::new("nft")
        .args(args)
        // Its messages are looked at below, and by people.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::Program)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that leaves before it has read everything says why on standard error: read that rather than the broken pipe.
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(Error::Program)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("Operation not permitted") {
        return Err(Error::NotPermitted);
    }
    Err(Error::Refused(said.split_whitespace().collect::<Vec<_>>().join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Rules = Rules { relative_uri: Some(9902), eks: Some(9902) };

    #[test]
    fn with_the_default_port_the_files_are_applied_verbatim() {
        assert_eq!(BOTH.script(), format!("{TABLE}{RELATIVE_URI}{EKS_PORT}"));
    }

    #[test]
    fn another_port_changes_the_define_lines_and_nothing_else() {
        let script = Rules { relative_uri: Some(1234), eks: Some(1234) }.script();
        let files = BOTH.script();
        let changed: Vec<_> =
            script.lines().zip(files.lines()).filter(|(a, b)| a != b).map(|(a, _)| a).collect();
        assert_eq!(changed, ["define relative_uri_port = 1234", "define eks_port = 1234"]);
    }

    #[test]
    fn a_foreign_and_a_missing_rule_are_named() {
        let wanted = BOTH.listing();
        assert_eq!(difference(&wanted, &wanted), None);
        let mut found = wanted.clone();
        let gone = found.remove(2);
        assert!(difference(&wanted, &found).unwrap().contains(&gone));
        found = wanted.clone();
        found.push("drop".into());
        assert!(difference(&wanted, &found).unwrap().contains("not ours"));
        found = wanted.iter().rev().cloned().collect();
        assert!(difference(&wanted, &found).unwrap().contains("order"));
    }
}

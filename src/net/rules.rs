//! The rules of `iptables/`, applied as they stand there by the `nft` program, in one transaction and in a table of our own.
//!
//! `nft` rather than a netlink library: the files are the documentation, and what a reader sees is what the kernel gets. It ships in the
//! image of the init container. Never the iptables program, whose two forms do not see each other's rules.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::io;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::listing::Table;

const TABLE: &str = include_str!("../../iptables/00-table.nft");
const RELATIVE_URI: &str = include_str!("../../iptables/10-relative-uri.nft");
const EKS_PORT: &str = include_str!("../../iptables/20-eks-port.nft");
const ADDRESSES: &str = include_str!("../../iptables/30-addresses.nft");
const ANSWERS: &str = include_str!("../../iptables/31-answers.nft");
const INSTANCE_METADATA: &str = include_str!("../../iptables/32-instance-metadata.nft");
const METADATA: &str = include_str!("../../iptables/40-metadata.nft");
const METADATA_ENFORCE: &str = include_str!("../../iptables/41-metadata-enforce.nft");

const METADATA_HOST: &str = include_str!("../../iptables/42-metadata-host.nft");

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
    #[error(
        "nft refused ({0}); does the kernel have nf_tables with NAT, fib and reject for the inet family (Linux 5.2)?"
    )]
    Refused(String),
}

/// What becomes of pods' requests to the node's instance metadata, 169.254.169.254 and fd00:ec2::254.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MetadataGuard {
    /// They pass, unseen
    Off,
    /// They pass; `net verify` shows which pods would be refused
    #[default]
    Observe,
    /// TCP reset; the host's own processes keep theirs
    Enforce,
}

impl fmt::Display for MetadataGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        })
    }
}

/// Which files apply, and what their variables are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// 169.254.170.2:80, for `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`, goes to this port.
    pub relative_uri: Option<u16>,
    /// Port 80 of the EKS Pod Identity addresses goes to this port.
    pub eks: Option<u16>,
    /// The port that our addresses are guarded at.
    pub addresses: Option<u16>,
    /// The agent answers instance metadata at this port; only beside `addresses`, whose guard it shares.
    pub imds: Option<u16>,
    /// The user that answers from them.
    pub agent_uid: u32,
    /// The links by which nobody on this node comes: name by index.
    pub uplinks: BTreeMap<u32, String>,
    /// Pods and the node's instance metadata.
    pub metadata: MetadataGuard,
    /// Those of them that are on the host network; only beside `enforce`.
    pub host_pods: Option<HostPods>,
}

/// Pods on the host network, which the metadata guard refuses too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPods {
    /// The cgroup that holds all pods: `kubepods.slice`.
    pub cgroup: String,
    /// Cgroups below it that go on to reach instance metadata.
    pub exempt: Vec<String>,
}

impl HostPods {
    /// The file, with the cgroup of this node.
    fn file(&self) -> String {
        METADATA_HOST.replacen(&matching("kubepods.slice"), &matching(&self.cgroup), 1)
    }

    fn exemptions(&self) -> impl Iterator<Item = String> {
        self.exempt.iter().map(|path| format!("{} return", matching(path)))
    }
}

/// The kernel compares a socket's ancestor at one level: the number of names in the path.
fn matching(path: &str) -> String {
    format!("socket cgroupv2 level {} \"{path}\"", path.split('/').count())
}

/// A file and the variables of its `define` lines with their values.
type File = (&'static str, Vec<(&'static str, u32)>);

impl Rules {
    /// What `nft -f -` is given: the files, with their `define` lines set, and the uplinks.
    #[must_use]
    pub fn script(&self) -> String {
        let mut script = TABLE.to_owned();
        for (file, variables) in self.files() {
            let define = |file: String, (name, value)| with_define(&file, name, value);
            script.push_str(&variables.into_iter().fold(file.to_owned(), define));
        }
        if let Some(pods) = &self.host_pods {
            script.push_str(&pods.file());
            for exemption in pods.exemptions() {
                let _ = writeln!(script, "insert rule inet rolecall host_pods {exemption}");
            }
        }
        if self.addresses.is_some() {
            for index in self.uplinks.keys() {
                let _ = writeln!(script, "add element inet rolecall uplinks {{ {index} }}");
            }
        }
        script
    }

    fn files(&self) -> impl Iterator<Item = File> {
        let with_port = |file, name, port: Option<u16>| port.map(|port| (file, vec![(name, port.into())]));
        let answers =
            |port: u16| (ANSWERS, vec![("answering_port", port.into()), ("agent_uid", self.agent_uid)]);
        let imds =
            |port: u16| (INSTANCE_METADATA, vec![("imds_port", port.into()), ("imds_uid", self.agent_uid)]);
        let counted = self.metadata != MetadataGuard::Off;
        let refused = self.metadata == MetadataGuard::Enforce;
        [
            with_port(RELATIVE_URI, "relative_uri_port", self.relative_uri),
            with_port(EKS_PORT, "eks_port", self.eks),
            with_port(ADDRESSES, "guarded_port", self.addresses),
            self.addresses.map(answers),
            self.imds.map(imds),
            counted.then_some((METADATA, Vec::new())),
            refused.then_some((METADATA_ENFORCE, Vec::new())),
        ]
        .into_iter()
        .flatten()
    }

    /// What `nft list table inet rolecall` prints when exactly these rules are in force.
    fn table(&self) -> Table {
        let mut table = Table::default();
        for (file, variables) in self.files() {
            let set =
                |file: String, (name, value): (_, u32)| file.replace(&format!("${name}"), &value.to_string());
            table.merge(Table::parse(&variables.into_iter().fold(file.to_owned(), set)));
        }
        if let Some(pods) = &self.host_pods {
            table.merge(Table::parse(&pods.file()));
            // Each is put before those that are there.
            pods.exemptions().for_each(|exemption| table.insert("chain host_pods", exemption));
        }
        if self.addresses.is_some() {
            table.set_uplinks(self.uplinks.values().map(String::as_str));
        }
        table
    }

    /// The redirect, in words.
    #[must_use]
    pub fn redirect(&self) -> String {
        let credentials = match (self.relative_uri, self.eks) {
            (None, None) => None,
            (Some(port), None) => Some(format!("169.254.170.2:80 goes to port {port}")),
            (None, Some(port)) => Some(format!("169.254.170.23:80 and [fd00:ec2::23]:80 go to port {port}")),
            (Some(port), Some(_)) => {
                Some(format!("169.254.170.2:80, 169.254.170.23:80 and [fd00:ec2::23]:80 go to port {port}"))
            }
        };
        let metadata = self.imds.map(|port| format!("pods' instance metadata goes to port {port}"));
        let both: Vec<String> = credentials.into_iter().chain(metadata).collect();
        if both.is_empty() { "none needed".to_owned() } else { both.join("; ") }
    }
}

/// Puts `rules` in the place of our table, in one transaction. Where they are in force already nothing is touched, and counts go on.
///
/// # Errors
/// See [`Error`]; the rules that were in force before are then still in force.
pub async fn apply(rules: &Rules) -> Result<(), Error> {
    if difference(rules, &in_force().await?).is_none() {
        return Ok(());
    }
    nft(&["-f", "-"], &rules.script()).await.map(drop)
}

/// Takes our table away; nothing happens if it is not there.
///
/// # Errors
/// See [`Error`].
pub async fn remove() -> Result<(), Error> {
    nft(&["-f", "-"], TABLE).await.map(drop)
}

/// Our table as the kernel has it; empty if it is not there.
///
/// # Errors
/// See [`Error`].
pub async fn in_force() -> Result<Table, Error> {
    match nft(&["--numeric-protocol", "list", "table", "inet", "rolecall"], "").await {
        Ok(listed) => Ok(Table::parse(&listed)),
        Err(Error::Refused(said)) if said.contains("No such file or directory") => Ok(Table::default()),
        Err(err) => Err(err),
    }
}

/// What is in force in place of `rules`; `None` if exactly they are.
#[must_use]
pub fn difference(rules: &Rules, found: &Table) -> Option<String> {
    found.difference(&rules.table())
}

/// The mode of the metadata guard in force.
#[must_use]
pub fn metadata_guard(found: &Table) -> MetadataGuard {
    if found.has("chain metadata_enforce") {
        MetadataGuard::Enforce
    } else if found.has("chain metadata") {
        MetadataGuard::Observe
    } else {
        MetadataGuard::Off
    }
}

fn with_define(file: &str, name: &str, value: u32) -> String {
    let define = format!("define {name} = ");
    let set = |line: &str| {
        if line.starts_with(&define) { format!("{define}{value}\n") } else { line.to_owned() }
    };
    file.split_inclusive('\n').map(set).collect()
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

    fn all(port: u16) -> Rules {
        Rules {
            relative_uri: Some(port),
            eks: Some(port),
            addresses: Some(port),
            imds: Some(port + 2),
            agent_uid: 9902,
            uplinks: BTreeMap::new(),
            metadata: MetadataGuard::Enforce,
            host_pods: Some(HostPods { cgroup: "kubepods.slice".into(), exempt: Vec::new() }),
        }
    }

    #[test]
    fn with_the_default_ports_the_files_are_applied_verbatim() {
        let files = [
            TABLE,
            RELATIVE_URI,
            EKS_PORT,
            ADDRESSES,
            ANSWERS,
            INSTANCE_METADATA,
            METADATA,
            METADATA_ENFORCE,
            METADATA_HOST,
        ];
        assert_eq!(all(9902).script(), files.concat());
    }

    #[test]
    fn another_port_changes_the_define_lines_and_nothing_else() {
        let (script, files) = (all(1234).script(), all(9902).script());
        let changed: Vec<_> =
            script.lines().zip(files.lines()).filter(|(a, b)| a != b).map(|(a, _)| a).collect();
        assert_eq!(
            changed,
            [
                ("relative_uri_port", 1234),
                ("eks_port", 1234),
                ("guarded_port", 1234),
                ("answering_port", 1234),
                ("imds_port", 1236),
            ]
            .map(|(name, port)| format!("define {name} = {port}"))
        );
    }

    #[test]
    fn another_cgroup_stands_at_its_own_level() {
        let pods = HostPods { cgroup: "a/kubepods".into(), exempt: vec!["a/kubepods/pod1".into()] };
        let script = Rules { host_pods: Some(pods), ..all(9902) }.script();
        assert!(script.contains(r#"socket cgroupv2 level 2 "a/kubepods" counter"#), "{script}");
        let exempt =
            r#"insert rule inet rolecall host_pods socket cgroupv2 level 3 "a/kubepods/pod1" return"#;
        assert!(script.ends_with(&format!("{exempt}\n")), "{script}");
    }
}

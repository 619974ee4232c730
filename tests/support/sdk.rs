//! The pinned SDK programs of `tests/sdk`: where they are, and what they are told.
#![allow(dead_code, reason = "each test program includes this file and uses a part of it")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// One SDK's program: default credential chain, settings from the environment alone.
pub(crate) struct Sdk {
    /// `boto3`, `aws-cli`, `go`, `java`, `js` or `rust`.
    pub(crate) name: String,
    program: PathBuf,
    args: Vec<String>,
}

/// All SDK programs, installed into the cache if they are not there yet (some minutes, once).
///
/// Installing needs the network: a test that enters namespaces of its own relies on `make` having run `install` before.
///
/// # Panics
/// If one of them cannot be installed: a test that went on without it would be a skip that nobody sees.
pub(crate) fn programs() -> &'static [Sdk] {
    static PROGRAMS: OnceLock<Vec<Sdk>> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let lines = install(&["python", "go", "java", "js", "rust"]);
        lines.into_iter().filter_map(|(kind, sdk)| (kind == "sdk").then_some(sdk)).collect()
    })
}

/// The path of a tool: `aws` of the folder `python`, `moto_server` of `moto`.
///
/// # Panics
/// As [`programs`].
pub(crate) fn tool(folder: &str, name: &str) -> PathBuf {
    let lines = install(&[folder]);
    let tool = lines.into_iter().find(|(kind, tool)| kind == "tool" && tool.name == name);
    tool.unwrap_or_else(|| panic!("tests/sdk/install {folder} prints no tool {name}")).1.program
}

/// Runs `tests/sdk/install`, and takes its lines apart: kind, name, program, arguments.
fn install(folders: &[&str]) -> Vec<(String, Sdk)> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/install");
    let output = Command::new(script).args(folders).stderr(Stdio::inherit()).output();
    let output = output.unwrap_or_else(|err| panic!("{script}: {err}"));
    assert!(output.status.success(), "{script} {}: {}, see above", folders.join(" "), output.status);
    let line = |line: &str| {
        let mut fields = line.split('\t').map(String::from);
        let mut field = || fields.next().unwrap_or_else(|| panic!("{script} printed {line:?}"));
        let (kind, name, program) = (field(), field(), PathBuf::from(field()));
        (kind, Sdk { name, program, args: fields.collect() })
    };
    String::from_utf8(output.stdout).expect("paths in the cache are UTF-8").lines().map(line).collect()
}

impl Sdk {
    /// Prints the caller's ARN and ends with 0, or prints the SDK's error on stderr and ends with 1.
    ///
    /// `start` makes the command: on this host `|program| Command::new(program)`, in a pod whatever runs `program` there.
    pub(crate) fn identity(
        &self,
        start: impl FnOnce(&Path) -> Command,
        environment: &Environment,
    ) -> Command {
        self.command(start, environment, &["identity"])
    }

    /// Asks a new credential chain `times` times, one after the other, and prints an access key id each time, at once;
    /// ends as [`identity`](Sdk::identity) does, at the first failure.
    pub(crate) fn resolve(
        &self,
        start: impl FnOnce(&Path) -> Command,
        environment: &Environment,
        times: u32,
    ) -> Command {
        self.command(start, environment, &["resolve", &times.to_string()])
    }

    fn command(
        &self,
        start: impl FnOnce(&Path) -> Command,
        environment: &Environment,
        mode: &[&str],
    ) -> Command {
        let mut command = start(&self.program);
        environment.apply(&mut command);
        command.args(&self.args).args(mode).stdin(Stdio::null());
        command
    }
}

/// All the variables that a program sees; it inherits none.
#[derive(Clone, Debug)]
pub(crate) struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// No files of the user's, no instance metadata, and so far no source of credentials.
    pub(crate) fn new() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
        Self(BTreeMap::new())
            .with("PATH", path)
            .with("HOME", "/nonexistent")
            .with("AWS_EC2_METADATA_DISABLED", "true")
    }

    /// Makes this all that `command` sees.
    pub(crate) fn apply(&self, command: &mut Command) {
        command.env_clear().envs(&self.0);
    }

    /// Sets one variable: a token, a proxy, or one that a test wants to be wrong.
    pub(crate) fn with(mut self, name: impl Into<String>, value: impl Into<OsString>) -> Self {
        self.0.insert(name.into(), value.into());
        self
    }

    /// Takes one variable away.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.0.remove(name);
        self
    }

    /// The region, in both spellings: boto3 and version 1 of the AWS CLI read `AWS_DEFAULT_REGION` and no other, most of the
    /// others only `AWS_REGION`.
    pub(crate) fn region(self, region: &str) -> Self {
        self.with("AWS_REGION", region).with("AWS_DEFAULT_REGION", region)
    }

    /// Credentials from any address that the SDKs allow: `http://169.254.170.23:9902/v1/credentials`.
    pub(crate) fn full_uri(self, uri: &str) -> Self {
        self.with("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri)
    }

    /// Credentials from 169.254.170.2, port 80: `/v1/credentials`.
    pub(crate) fn relative_uri(self, path: &str) -> Self {
        self.with("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", path)
    }

    /// The value of the Authorization header.
    pub(crate) fn token(self, token: &str) -> Self {
        self.with("AWS_CONTAINER_AUTHORIZATION_TOKEN", token)
    }

    /// The file with the value of the Authorization header, which SDKs read again at each fetch.
    pub(crate) fn token_file(self, path: &Path) -> Self {
        self.with("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", path)
    }

    /// Whom [`Sdk::identity`] asks for the ARN.
    pub(crate) fn sts(self, endpoint_url: &str) -> Self {
        self.with("AWS_ENDPOINT_URL_STS", endpoint_url)
    }
}

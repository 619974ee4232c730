//! Which source the base credentials come from: the first that the agent's environment sets up.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file::{Files, Profile};
use super::metadata::{Container, Instance};
use super::{BaseKeys, ENDLESS, LEAST_PAUSE, LOOK, RETRY, process};
use crate::time;

const KEY: [&str; 2] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
const FILES: [&str; 2] = ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"];
const WEB_IDENTITY: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
const DISABLED: &str = "AWS_EC2_METADATA_DISABLED";

/// Where base credentials come from, with all that is needed to ask there.
#[derive(Clone, Debug)]
pub struct Source {
    kind: Kind,
    /// Those before it in the order, and why it is none of them.
    passed_over: Vec<String>,
}

#[derive(Clone, Debug)]
enum Kind {
    /// The keys are in the process's environment, where they stay.
    Environment(BaseKeys),
    Files(Files),
    Container(Container),
    Instance(Instance),
    /// Instance metadata is all that was left, and it is forbidden.
    Nothing,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Environment(_) => f.write_str("environment"),
            Kind::Files(files) => files.fmt(f),
            Kind::Container(container) => container.fmt(f),
            Kind::Instance(instance) => instance.fmt(f),
            Kind::Nothing => f.write_str("instance metadata"),
        }
    }
}

impl Source {
    /// The first that is set up, in the SDKs' order: environment, files, container, instance. `variable` looks up the
    /// environment, `ours` are our own listeners.
    ///
    /// # Errors
    /// A source that is set up by half, or that is ourselves: what is wrong, and what to do.
    pub fn choose(
        variable: impl Fn(&str) -> Option<String>,
        ours: &[std::net::SocketAddr],
    ) -> Result<Self, String> {
        let unset = |names: &[&str]| format!("{} not set", names.join(" and "));
        let mut passed_over = Vec::new();
        let found = |kind, passed_over| Ok(Self { kind, passed_over });

        match KEY.map(&variable) {
            [Some(access_key_id), Some(secret)] => {
                let keys = BaseKeys::new(access_key_id, secret, variable("AWS_SESSION_TOKEN"))
                    .map_err(|why| format!("{}: {why}", KEY.join(" and ")))?;
                return found(Kind::Environment(keys), passed_over);
            }
            [None, None] => passed_over.push(format!("environment ({})", unset(&KEY))),
            [set, _] => {
                let [has, lacks] = if set.is_some() { KEY } else { [KEY[1], KEY[0]] };
                return Err(format!("{has} is set, and {lacks} is not: set both or none"));
            }
        }
        match FILES.map(|name| variable(name).map(PathBuf::from)) {
            [None, None] => passed_over.push(format!("files ({})", unset(&FILES))),
            [credentials, config] => {
                let profile = variable("AWS_PROFILE").unwrap_or_else(|| "default".into());
                return found(Kind::Files(Files { credentials, config, profile }), passed_over);
            }
        }
        match Container::from_variables(&variable, ours)? {
            Some(container) => return found(Kind::Container(container), passed_over),
            None => passed_over.push(format!("container ({})", unset(&Container::VARIABLES))),
        }
        if variable(WEB_IDENTITY).is_some() {
            // An SDK would take it before the instance's role, so this cannot be what was meant.
            return Err(format!(
                "{WEB_IDENTITY} is set, which is no source of base credentials: the agent's own web identity assumes no \
                 role for others. Take it away (the annotation on the agent's ServiceAccount), or use \
                 --sts-mode=web-identity"
            ));
        }
        if variable(DISABLED).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return found(Kind::Nothing, passed_over);
        }
        found(Kind::Instance(Instance::from_variables(&variable, ours)?), passed_over)
    }

    /// All sources up to this one; `why` says what this one lacks.
    pub(super) fn tried(&self, why: &str) -> String {
        let mut tried = self.passed_over.clone();
        tried.push(match self.kind {
            Kind::Instance(_) | Kind::Nothing => format!("{self}: {why}"),
            _ => format!("{self}: {why}; nothing after it is tried, because this is what is set up"),
        });
        tried.join("; ")
    }

    /// What it has now.
    pub(super) async fn read(&self, process: &mut process::Last) -> Result<BaseKeys, String> {
        match &self.kind {
            Kind::Environment(keys) => Ok(keys.clone()),
            Kind::Files(files) => match files.read()? {
                Profile::Keys(keys) => Ok(keys),
                Profile::Process(command) => process.keys(&command).await,
            },
            Kind::Container(container) => container.keys().await,
            Kind::Instance(instance) => instance.keys().await,
            Kind::Nothing => Err(format!("{DISABLED} is set")),
        }
    }

    /// When it is to be asked again: ahead of the keys' end, and often where a look costs nothing.
    pub(super) fn look_again(&self, keys: &BaseKeys) -> Duration {
        match &self.kind {
            Kind::Environment(_) => Duration::MAX,
            Kind::Files(_) => LOOK,
            Kind::Container(_) | Kind::Instance(_) | Kind::Nothing => due(keys),
        }
    }

    pub(super) fn longest_pause(&self) -> Duration {
        if let Kind::Files(_) = self.kind { LOOK } else { RETRY.1 }
    }

    /// The files that it reads, now and later.
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.kind {
            Kind::Files(files) => {
                let arguments = self.command().map(|command| command.files()).unwrap_or_default();
                files.paths().map(Path::to_owned).chain(arguments).collect()
            }
            Kind::Container(container) => container.token_file().map(Path::to_owned).into_iter().collect(),
            Kind::Environment(_) | Kind::Instance(_) | Kind::Nothing => Vec::new(),
        }
    }

    /// The program that it runs: `credential_process`, as the files have it now.
    pub fn program(&self) -> Option<PathBuf> {
        self.command().map(|command| command.program().to_owned())
    }

    fn command(&self) -> Option<process::Command> {
        match &self.kind {
            Kind::Files(files) => match files.read() {
                Ok(Profile::Process(command)) => Some(command),
                // What is wrong with them is said when they are used.
                Ok(Profile::Keys(_)) | Err(_) => None,
            },
            _ => None,
        }
    }
}

/// Half of what is left of them: time enough for many more tries.
pub(super) fn due(keys: &BaseKeys) -> Duration {
    keys.expiration.map_or(ENDLESS, |end| (time::between(time::now(), end) / 2).max(LEAST_PAUSE))
}

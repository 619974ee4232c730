//! `--sts-mode`, and what cannot go with it: by its own credentials the agent could be talked into any role, and there are no tokens.

use std::fmt;
use std::net::SocketAddr;

use super::AUDIENCE;
use crate::base_credentials::Source;
use crate::role::session_name::parts_the_names;

/// How roles are assumed.
#[derive(Clone, Debug)]
pub enum StsMode {
    /// AssumeRoleWithWebIdentity, by a token of the pod's ServiceAccount.
    WebIdentity,
    /// AssumeRole, by the agent's own base credentials.
    AssumeRole(Source),
}

impl StsMode {
    /// Where the base credentials come from, if there are any.
    pub fn base(&self) -> Option<&Source> {
        match self {
            Self::WebIdentity => None,
            Self::AssumeRole(source) => Some(source),
        }
    }
}

impl fmt::Display for StsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WebIdentity => f.write_str("web-identity"),
            Self::AssumeRole(source) => write!(f, "assume-role base-credentials=\"{source}\""),
        }
    }
}

/// The flags that the mode depends on, as they were written.
pub(super) struct Asked<'a> {
    pub mode: &'a str,
    pub token_source: &'a str,
    pub audience: &'a str,
    pub allow_audience: &'a [String],
    pub allow_role: &'a [String],
    pub session_name: &'a str,
}

impl Asked<'_> {
    /// Tells `wrong` of all mistakes; what it returns then is not used.
    pub(super) fn check(
        &self,
        variable: impl Fn(&str) -> Option<String>,
        listen: &[SocketAddr],
        wrong: &mut impl FnMut(&str, String),
    ) -> StsMode {
        match self.mode {
            "web-identity" => return StsMode::WebIdentity,
            "assume-role" => {}
            other => {
                wrong("sts-mode", format!("{other:?} is neither web-identity nor assume-role"));
                return StsMode::WebIdentity;
            }
        }
        // An annotation is a tenant's, and behind it stands no trust policy that names his ServiceAccount.
        if self.allow_role.is_empty() {
            let why = "is required with --sts-mode=assume-role: without it any annotation could name any role that the \
                       agent's credentials may assume. `rolecall roles` prints the flags for the roles that the cluster's \
                       ServiceAccounts name today";
            wrong("allow-role", why.into());
        }
        // There is no token's subject in CloudTrail: who it was, this name alone says.
        if !["{namespace}", "{service-account}"].iter().all(|part| self.session_name.contains(part)) {
            let why = "must hold {namespace} and {service-account} with --sts-mode=assume-role: else CloudTrail does not \
                       show whose session it is";
            wrong("session-name", why.into());
        } else if !parts_the_names(self.session_name) {
            let why = "must have {namespace} first, then one of _+=,.@, and one of _+=,@ between {service-account} and {pod} with \
                       --sts-mode=assume-role: else two ServiceAccounts, or two pods, can have one name";
            wrong("session-name", why.into());
        }
        const NO_TOKEN: &str =
            "means nothing with --sts-mode=assume-role, where STS is shown no token: take it away";
        if self.token_source != "kubernetes" {
            wrong("token-source", format!("{:?} {NO_TOKEN}", self.token_source));
        }
        if self.audience != AUDIENCE {
            wrong("audience", format!("{:?} {NO_TOKEN}", self.audience));
        }
        if !self.allow_audience.is_empty() {
            wrong("allow-audience", NO_TOKEN.into());
        }
        match Source::choose(variable, listen) {
            Ok(source) => StsMode::AssumeRole(source),
            Err(why) => {
                wrong("sts-mode", why);
                StsMode::WebIdentity
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Args, Config};

    fn config(args: &[&str], variables: &[(&str, &str)]) -> Result<Config, String> {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        let args = ["rolecall", "--node-name", "n"].iter().chain(args);
        let parsed = <Cli as clap::Parser>::try_parse_from(args).unwrap();
        let variable =
            |name: &str| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
        Config::from_args(parsed.args, variable).map_err(|mistakes| mistakes.to_string())
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKIA1"), ("AWS_SECRET_ACCESS_KEY", "hidden")];
    const MODE: &str = "--sts-mode=assume-role";
    const ALLOW: &str = "--allow-role=shop=arn:aws:iam::1:role/*";

    #[test]
    fn the_agents_own_credentials_assume_only_what_allow_role_names() {
        let why = config(&[MODE], &KEYS).unwrap_err();
        assert!(
            why.starts_with("error: --allow-role: is required") && why.contains("`rolecall roles`"),
            "{why}"
        );
        let config = config(&[MODE, ALLOW], &KEYS).unwrap();
        let shown = config.to_string();
        assert!(shown.contains("sts-mode=assume-role base-credentials=\"environment\""), "{shown}");
        assert!(!shown.contains("hidden") && !format!("{config:?}").contains("hidden"));
    }

    #[test]
    fn what_shapes_a_token_is_refused_where_there_is_none() {
        for flag in ["--token-source=caller", "--audience=other", "--allow-audience=sts.amazonaws.com"] {
            let why = config(&[MODE, ALLOW, flag], &KEYS).unwrap_err();
            let name = flag.split('=').next().unwrap();
            assert!(why.contains(&format!("error: {name}: ")) && why.contains("means nothing"), "{why}");
            config(&[flag], &KEYS).unwrap();
        }
    }

    #[test]
    fn the_session_name_names_the_caller_because_nothing_else_does() {
        for name in ["{namespace}", "{service-account}", "rolecall"] {
            let flag = format!("--session-name={name}");
            let why = config(&[MODE, ALLOW, &flag], &KEYS).unwrap_err();
            assert!(why.starts_with("error: --session-name: must hold"), "{why}");
            config(&[&flag], &KEYS).unwrap();
        }
        config(&[MODE, ALLOW, "--session-name=a-{namespace}.{service-account}@{pod}"], &KEYS).unwrap();
    }

    #[test]
    fn no_two_namespaces_have_one_session_name() {
        let names = |text: &str| format!("--session-name={text}");
        for together in [
            "{namespace}-{service-account}",
            "{namespace}/{service-account}",
            "{namespace}{service-account}",
            "{service-account}:{namespace}",
            "{namespace}{cluster}.{service-account}",
            "{service-account}@{namespace}",
            "{pod}.{namespace}.{service-account}",
            "{namespace}.{service-account}.{pod}",
            "{namespace}.{pod}-{service-account}",
        ] {
            let flags = [MODE, ALLOW, "--cluster-name=c", &names(together)];
            let why = config(&flags, &KEYS).expect_err(together);
            assert!(why.starts_with("error: --session-name: must have {namespace} first"), "{why}");
            config(&flags[2..], &[]).unwrap();
        }
        for parted in [
            "{namespace}.{service-account}",
            "{cluster}-{namespace}_{service-account}",
            "{namespace}.{pod}+{node}{service-account}",
        ] {
            config(&[MODE, ALLOW, "--cluster-name=c", &names(parted)], &KEYS).expect(parted);
        }
    }

    #[test]
    fn base_credentials_are_nothing_to_the_other_mode() {
        assert!(config(&[], &KEYS[..1]).unwrap().sts_mode.base().is_none());
        let why = config(&[MODE, ALLOW], &KEYS[..1]).unwrap_err();
        assert!(why.starts_with("error: --sts-mode: AWS_ACCESS_KEY_ID is set"), "{why}");
        assert!(config(&["--sts-mode=both"], &[]).unwrap_err().contains("neither"));
    }

    #[test]
    fn a_listener_of_our_own_is_no_source() {
        let variables = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23:9902/v1/credentials")];
        let why = config(&[MODE, ALLOW], &variables).unwrap_err();
        assert!(why.contains("this agent itself"), "{why}");
        let imds = ["--imds-listen=169.254.170.2:9904", MODE, ALLOW];
        let variables = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.170.2:9904")];
        assert!(config(&imds, &variables).unwrap_err().contains("this agent itself"));
    }
}

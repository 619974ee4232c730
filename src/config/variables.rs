//! Variables that are nobody's: a misspelt one is a restriction that silently does not hold.

use clap::Command;

const PREFIX: &str = "ROLECALL_";

/// The mistakes among the names of `variables`: what looks like a setting, and is none of any of `command`'s subcommands. A DaemonSet
/// may well give all of its containers the same ones.
pub fn mistakes(command: &Command, variables: impl IntoIterator<Item = String>) -> Vec<String> {
    let ours = variables.into_iter().filter(|name| name.starts_with(PREFIX));
    let unknown = ours.filter(|name| !reads(command, name) && !is_of_a_service(name));
    unknown
        .map(|name| format!("{name}: rolecall has no such variable; `--help` of a command lists its own"))
        .collect()
}

fn reads(command: &Command, name: &str) -> bool {
    command.get_arguments().any(|argument| argument.get_env().is_some_and(|env| env == name))
        || command.get_subcommands().any(|command| reads(command, name))
}

/// Kubernetes makes such for every Service of the namespace: `{NAME}_SERVICE_HOST`, `{NAME}_SERVICE_PORT[_{PORT}]`, `{NAME}_PORT`
/// and `{NAME}_PORT_{NUMBER}_{PROTOCOL}[_…]`.
/// <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>
fn is_of_a_service(name: &str) -> bool {
    let numbered = |rest: &str| rest.starts_with(|first: char| first.is_ascii_digit());
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.split_once("_PORT_").is_some_and(|(_, rest)| numbered(rest))
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn of(names: &[&str]) -> Vec<String> {
        let agent =
            Command::new("agent").arg(Arg::new("allow-role").long("allow-role").env("ROLECALL_ALLOW_ROLE"));
        let net = Command::new("net").subcommand(
            Command::new("install").arg(Arg::new("guard").long("guard").env("ROLECALL_METADATA_GUARD")),
        );
        let command = Command::new("rolecall").subcommand(agent).subcommand(net);
        mistakes(&command, names.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn a_misspelt_variable_is_a_mistake() {
        let said = of(&["ROLECALL_ALLOW_ROLES", "ROLECALL_ALLOW_ROLE", "ROLECALL_REQUIRE_AUTHORISATION"]);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("ROLECALL_ALLOW_ROLES: "), "{said:?}");
        assert!(said[1].starts_with("ROLECALL_REQUIRE_AUTHORISATION: "), "{said:?}");
    }

    #[test]
    fn what_another_command_reads_is_none_nor_what_kubernetes_makes_of_a_service() {
        let names = [
            "ROLECALL_METADATA_GUARD",
            "ROLECALL_ISSUER_SERVICE_HOST",
            "ROLECALL_ISSUER_SERVICE_PORT_HTTPS",
            "ROLECALL_ISSUER_PORT",
            "ROLECALL_ISSUER_PORT_443_TCP_ADDR",
            "PATH",
        ];
        assert_eq!(of(&names), Vec::<String>::new());
        assert_eq!(of(&["ROLECALL_METRICS_PORT_NUMBER"]).len(), 1);
    }
}

//! `--role-source` and the flags that only it gives a meaning.

use crate::policy::Policy;
use crate::role::RoleSource;
use crate::role::pod_annotation::{Format, Rules};

// As they were written. A doc comment here would be the help of the command that has them.
#[allow(missing_docs, reason = "it would be the help of the command")]
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RoleSourceFlags {
    /// Whose annotations name the role: service-account, or pod-annotation (kube2iam's and kiam's, on pods and namespaces;
    /// needs --allow-role).
    #[arg(long, env = "ROLECALL_ROLE_SOURCE", default_value = "service-account")]
    pub role_source: String,
    /// With pod-annotation: what stands before a role's bare name, such as arn:aws:iam::123456789012:role/
    #[arg(long, env = "ROLECALL_BASE_ROLE_ARN")]
    pub base_role_arn: Option<String>,
    /// With pod-annotation: a namespace that has none of the annotations permits nothing, as with kiam.
    #[arg(long, env = "ROLECALL_NAMESPACE_RESTRICTIONS")]
    pub namespace_restrictions: bool,
    /// With pod-annotation: what the entries of kube2iam's allowed-roles are: glob or regexp [default: glob]
    #[arg(long, env = "ROLECALL_NAMESPACE_RESTRICTION_FORMAT")]
    pub namespace_restriction_format: Option<String>,
}

impl RoleSourceFlags {
    /// Who says which role a pod gets; `wrong` is told of each mistake. Without `policy` nobody asks for one.
    pub(crate) fn check(self, policy: Option<&Policy>, mut wrong: impl FnMut(&str, String)) -> RoleSource {
        let Self { role_source, base_role_arn, namespace_restrictions, namespace_restriction_format } = self;
        let base_role_arn = base_role_arn.filter(|base| !base.is_empty());
        match role_source.as_str() {
            "pod-annotation" => {}
            "service-account" => {
                for (flag, set) in [
                    ("base-role-arn", base_role_arn.is_some()),
                    ("namespace-restrictions", namespace_restrictions),
                    ("namespace-restriction-format", namespace_restriction_format.is_some()),
                ] {
                    if set {
                        wrong(flag, "means something only with --role-source=pod-annotation".into());
                    }
                }
                return RoleSource::ServiceAccount;
            }
            other => {
                wrong("role-source", format!("{other:?} is neither service-account nor pod-annotation"));
                return RoleSource::ServiceAccount;
            }
        }
        // Whoever makes pods writes the annotation, and the agent is asked for whatever it says.
        if policy.is_some_and(Policy::allows_anything) {
            let why = "is required with --role-source=pod-annotation: which namespace may have which role; `*=*` is any. \
                       `rolecall roles --role-source=pod-annotation` prints the flags for the roles that pods name today";
            wrong("allow-role", why.into());
        }
        let format = match namespace_restriction_format.as_deref() {
            None | Some("glob") => Format::Glob,
            Some("regexp") => Format::Regexp,
            Some(other) => {
                wrong("namespace-restriction-format", format!("{other:?} is neither glob nor regexp"));
                Format::Glob
            }
        };
        let rules = Rules::new(base_role_arn.as_deref(), namespace_restrictions, format);
        RoleSource::PodAnnotation(rules.unwrap_or_else(|why| {
            wrong("base-role-arn", why);
            Rules::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Args, Config, Mistakes};
    use super::*;

    const BASE: &str = "arn:aws:iam::111122223333:role/";

    fn checked(flags: &[&str]) -> Result<RoleSource, Vec<String>> {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        let flags = ["rolecall", "--node-name", "n"].iter().chain(flags);
        let Cli { args } = <Cli as clap::Parser>::try_parse_from(flags).unwrap();
        let config = Config::from_args(args, |_| None).map_err(|Mistakes(mistakes)| mistakes)?;
        Ok(config.plan.source)
    }

    #[test]
    fn roles_are_the_service_accounts_unless_pods_are_asked_for() {
        assert_eq!(checked(&[]).unwrap(), RoleSource::ServiceAccount);
        let source =
            checked(&["--role-source", "pod-annotation", "--allow-role", "*=*", "--base-role-arn", BASE]);
        assert_eq!(
            source.unwrap(),
            RoleSource::PodAnnotation(Rules::new(Some(BASE), false, Format::Glob).unwrap())
        );
        let all = [
            "--role-source=pod-annotation",
            "--allow-role=*=*",
            "--namespace-restrictions",
            "--namespace-restriction-format=regexp",
        ];
        let rules = Rules::new(None, true, Format::Regexp).unwrap();
        assert_eq!(checked(&all).unwrap(), RoleSource::PodAnnotation(rules));
    }

    #[test]
    fn pods_choose_no_role_without_the_operators_list() {
        let mistakes = checked(&["--role-source", "pod-annotation"]).unwrap_err();
        assert!(mistakes.len() == 1 && mistakes[0].starts_with("--allow-role: is required"), "{mistakes:?}");
    }

    #[test]
    fn a_flag_that_nothing_would_read_is_a_mistake() {
        for flags in [
            &["--base-role-arn", BASE][..],
            &["--namespace-restrictions"],
            &["--namespace-restriction-format", "glob"],
            &["--role-source", "pods"],
            &["--role-source=pod-annotation", "--allow-role=*=*", "--base-role-arn=arn:aws:iam::1:role/"],
            &["--role-source=pod-annotation", "--allow-role=*=*", "--namespace-restriction-format=prefix"],
        ] {
            assert_eq!(checked(flags).unwrap_err().len(), 1, "{flags:?}");
        }
    }
}

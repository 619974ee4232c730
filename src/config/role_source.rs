//! `--role-source` and the flags that only it gives a meaning.

use crate::policy::Policy;
use crate::role::RoleSource;
use crate::role::pod_annotation::{Format, Rules};

/// The flags as they were written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) role_source: String,
    pub(super) base_role_arn: Option<String>,
    pub(super) namespace_restrictions: bool,
    pub(super) namespace_restriction_format: Option<String>,
}

impl Written {
    /// Who says which role a pod gets; `wrong` is told of each mistake.
    pub(super) fn check(self, policy: Option<&Policy>, mut wrong: impl FnMut(&str, String)) -> RoleSource {
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
            let why = "is required with --role-source=pod-annotation: which namespace may have which role; `*=*` is any";
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

//! The role that kube2iam or kiam gives a pod, by their own rules: looser than ours where they are.
//!
//! Read in the source of kube2iam 0.15.0 (the same since 0.10.11), of kiam 4.2 and of kiam 3.6. Neither was run; the libraries were
//! that do the matching there, and the tables in the tests are their answers.

use std::collections::BTreeMap;
use std::net::IpAddr;

use regex_lite::Regex;
use serde_json::Value;

use crate::identity::pods::Pod;
use crate::policy::glob;
use crate::role::RoleArn;
use crate::role::pod_annotation::{ALLOWED_ROLES, PERMITTED, dialect};

/// What the cluster has today.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tool {
    /// jtblin/kube2iam
    #[value(name = "kube2iam")]
    Kube2iam,
    /// uswitch/kiam, version 4
    #[value(name = "kiam")]
    Kiam,
    /// uswitch/kiam, version 3: it matches the role as the pod names it, and a part of that
    #[value(name = "kiam3")]
    Kiam3,
}

/// The tool, with its flags as they are set today.
#[derive(Clone, Debug)]
pub(super) struct Today {
    pub(super) tool: Tool,
    /// kube2iam's `--base-role-arn`, kiam's `--role-base-arn`.
    pub(super) base: String,
    /// kube2iam's `--default-role`.
    pub(super) default_role: Option<String>,
    /// kube2iam's `--namespace-restrictions`
    pub(super) restricted: bool,
    /// kube2iam's `--namespace-restriction-format=regexp`
    pub(super) regexp: bool,
    /// Not kiam's `--disable-strict-namespace-regexp`.
    pub(super) strict: bool,
}

/// A role of today.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Has {
    pub(super) role: RoleArn,
    /// Whether the namespace permits it hangs on an expression that Go may read otherwise than we would. Who moves in must not
    /// believe that such a pod has nothing to lose.
    pub(super) unsure: bool,
}

impl Today {
    /// The role, or why there is none.
    pub(super) fn role(&self, pod: &Pod, namespace: &BTreeMap<String, String>) -> Result<Has, String> {
        if pod.host_network {
            // Its packets leave by no link of a pod's.
            return Err("on the host network it is not served, and has the node's own role".into());
        }
        if pod.addresses.first().is_some_and(IpAddr::is_ipv6) {
            return Err("its first address is of IPv6; pods are known by that, and ask by IPv4".into());
        }
        let asked = pod.asked.as_ref().and_then(|asked| asked.role.as_deref());
        let (text, unsure) = match self.tool {
            Tool::Kube2iam => self.by_kube2iam(asked, namespace)?,
            Tool::Kiam | Tool::Kiam3 => self.by_kiam(asked, namespace)?,
        };
        let role = RoleArn::parse(&text).map_err(|why| format!("{text:?} is not a role ARN ({why})"))?;
        // Both tell the pod a name, and compare it with the one in the path of the next question, which their router has tidied.
        if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(format!("{text:?} has an empty part or dots, and is never asked for by that name"));
        }
        Ok(Has { role, unsure })
    }

    /// `mappings/mapper.go`
    fn by_kube2iam(
        &self,
        asked: Option<&str>,
        namespace: &BTreeMap<String, String>,
    ) -> Result<(String, bool), String> {
        let arn = |text: &str| match text.get(..4) {
            Some(start) if start.eq_ignore_ascii_case("arn:") => text.to_owned(),
            _ => format!("{}{text}", self.base),
        };
        let default = self.default_role.as_deref().map(arn);
        let role = match (asked, &default) {
            (Some(asked), _) => arn(asked),
            (None, Some(default)) => default.clone(),
            (None, None) => return Err("no annotation on the pod".into()),
        };
        if !self.restricted || default.as_ref() == Some(&role) {
            return Ok((role, false));
        }
        let list = namespace.get(ALLOWED_ROLES).map_or("", |list| list.as_str());
        let matches: Vec<Option<bool>> = entries(list)
            .iter()
            .map(|entry| match arn(entry) {
                pattern if self.regexp => found(&pattern, &role),
                pattern => Some(glob(&pattern, &role)),
            })
            .collect();
        if matches.contains(&Some(true)) {
            Ok((role, false))
        } else if matches.contains(&None) {
            Ok((role, true))
        } else {
            Err(format!("{role} is not in the namespace's {ALLOWED_ROLES}"))
        }
    }

    /// `pkg/server/policy.go`, `pkg/aws/sts/arn_resolver.go`
    fn by_kiam(
        &self,
        asked: Option<&str>,
        namespace: &BTreeMap<String, String>,
    ) -> Result<(String, bool), String> {
        let asked = asked.filter(|asked| !asked.is_empty()).ok_or("no annotation on the pod")?;
        let name = asked.strip_prefix('/').unwrap_or(asked);
        let old = self.tool == Tool::Kiam3;
        let role = if asked.starts_with("arn:") || (old && name.starts_with("arn:")) {
            name.to_owned()
        } else {
            format!("{}{name}", self.base)
        };
        let permitted = namespace.get(PERMITTED).map_or("", |expression| expression.as_str());
        if permitted.is_empty() {
            return Err(format!("the namespace has no {PERMITTED}"));
        }
        let permits = match (old, self.strict) {
            (true, _) => found(permitted, name),
            (false, true) => found(&format!("^{permitted}$"), &role),
            (false, false) => found(permitted, &role),
        };
        match permits {
            Some(true) => Ok((role, false)),
            Some(false) => Err(format!("{role} is not what the namespace's {PERMITTED} permits")),
            None => Ok((role, true)),
        }
    }
}

/// What Go's `encoding/json` makes of the list: it leaves what is no string empty, and kube2iam goes on with the rest. An empty
/// entry is the base ARN, and as an expression that is in every role's.
fn entries(list: &str) -> Vec<String> {
    let list: Vec<Value> = serde_json::from_str(list).unwrap_or_default();
    list.into_iter()
        .map(|entry| match entry {
            Value::String(entry) => entry,
            _ => String::new(),
        })
        .collect()
}

/// Does Go's `regexp` find the expression in the text? `None` where it may read it otherwise than we do.
fn found(expression: &str, text: &str) -> Option<bool> {
    dialect::common(expression).ok()?;
    Some(Regex::new(expression).is_ok_and(|expression| expression.is_match(text)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::role::pod_annotation::{Asked, ROLE};

    const BASE: &str = "arn:aws:iam::111122223333:role/";

    fn today(tool: Tool) -> Today {
        Today { tool, base: BASE.into(), default_role: None, restricted: false, regexp: false, strict: true }
    }

    fn pod(role: Option<&str>) -> Pod {
        let mut asked = Asked::default();
        if let Some(role) = role {
            asked.take(ROLE, role);
        }
        Pod { asked: Some(Arc::new(asked)), ..crate::fakes::pod("web", "10.0.0.7") }
    }

    /// The role's name behind the base ARN, with a question mark if it is not sure; "-" for none.
    fn role(today: &Today, asked: Option<&str>, namespace: &[(&str, &str)]) -> String {
        let namespace = namespace.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        match today.role(&pod(asked), &namespace) {
            Ok(Has { role, unsure }) => {
                let name = role.as_str().strip_prefix(BASE).unwrap_or(role.as_str());
                format!("{name}{}", if unsure { "?" } else { "" })
            }
            Err(_) => "-".into(),
        }
    }

    #[test]
    fn kube2iam_gives_any_role_unless_told_to_look_at_the_namespace() {
        let open = today(Tool::Kube2iam);
        assert_eq!(role(&open, Some("app"), &[]), "app");
        assert_eq!(role(&open, None, &[]), "-");
        let default = Today { default_role: Some("least".into()), ..open.clone() };
        assert_eq!(role(&default, None, &[]), "least");
        let restricted = Today { restricted: true, ..default.clone() };
        assert_eq!(role(&restricted, None, &[]), "least", "the default role is everybody's");
        assert_eq!(role(&restricted, Some("app"), &[]), "-");
        assert_eq!(role(&restricted, Some("app"), &[(ALLOWED_ROLES, r#"["a*"]"#)]), "app");
        assert_eq!(role(&restricted, Some("app-admin"), &[(ALLOWED_ROLES, r#"["app"]"#)]), "-");
        // Its issue 341: a part is enough.
        let regexp = Today { regexp: true, ..restricted };
        assert_eq!(role(&regexp, Some("app-admin"), &[(ALLOWED_ROLES, r#"["app"]"#)]), "app-admin");
    }

    #[test]
    fn kiam_gives_none_without_the_namespaces_expression_and_binds_its_ends_loosely() {
        let strict = today(Tool::Kiam);
        assert_eq!(role(&strict, Some("app"), &[]), "-");
        assert_eq!(role(&strict, Some("/app"), &[(PERMITTED, ".*")]), "app");
        assert_eq!(role(&strict, None, &[(PERMITTED, ".*")]), "-");
        assert_eq!(role(&strict, Some("app"), &[(PERMITTED, "app")]), "-");
        assert_eq!(role(&strict, Some("app-admin"), &[(PERMITTED, ".*/app|.*/web")]), "app-admin");
        let loose = Today { strict: false, ..strict };
        assert_eq!(role(&loose, Some("app"), &[(PERMITTED, "app")]), "app");
    }

    /// Measured with Go 1.26.8's `encoding/json`: what it leaves in a list of strings, with or without an error.
    #[test]
    fn a_list_that_is_not_all_strings_permits_what_go_leaves_of_it() {
        for (list, left) in [
            (r#"["app"]"#, &["app"][..]),
            (r#"["app", 1]"#, &["app", ""]),
            (r#"[1, "app"]"#, &["", "app"]),
            (r#"["app", null]"#, &["app", ""]),
            (r#"["app", ["x"]]"#, &["app", ""]),
            (r#"["app", {"a": 1}]"#, &["app", ""]),
            (" [\"app\"]\n", &["app"]),
            (r#"["\u0061pp"]"#, &["app"]),
            (r#"{"app": true}"#, &[]),
            (r#""app""#, &[]),
            ("app", &[]),
            ("", &[]),
            ("null", &[]),
            ("[]", &[]),
            (r#"["app"] ["x"]"#, &[]),
            (r#"["app",]"#, &[]),
            ("['app']", &[]),
            (r#"["app""#, &[]),
        ] {
            assert_eq!(entries(list), left, "{list}");
        }
        let restricted = Today { restricted: true, ..today(Tool::Kube2iam) };
        let permits = |today: &Today, list: &str| role(today, Some("app"), &[(ALLOWED_ROLES, list)]);
        assert_eq!(permits(&restricted, r#"["app", 1]"#), "app");
        assert_eq!(permits(&restricted, r#"[1]"#), "-");
        let regexp = Today { regexp: true, ..restricted };
        assert_eq!(permits(&regexp, r#"[1]"#), "app", "the base ARN is in every role's");
    }

    #[test]
    fn a_namespace_that_go_may_read_otherwise_takes_no_role_away_unseen() {
        let kiam = today(Tool::Kiam);
        assert_eq!(role(&kiam, Some("app"), &[(PERMITTED, r".*/\pL+")]), "app?");
        assert_eq!(role(&kiam, Some("app"), &[(PERMITTED, ".*/[a")]), "-", "Go cannot read that either");
        let regexp = Today { restricted: true, regexp: true, ..today(Tool::Kube2iam) };
        assert_eq!(role(&regexp, Some("app"), &[(ALLOWED_ROLES, r#"["\\pL", "web"]"#)]), "app?");
        assert_eq!(role(&regexp, Some("app"), &[(ALLOWED_ROLES, r#"["\\pL", "app"]"#)]), "app");
    }

    #[test]
    fn kiam_3_matches_a_part_of_the_name_as_the_pod_has_it() {
        let (old, new) = (today(Tool::Kiam3), today(Tool::Kiam));
        for (asked, permitted, by_old, by_new) in [
            ("app", "^app$", "app", "-"),
            ("/app", "^app$", "app", "-"),
            ("app-admin", "app", "app-admin", "-"),
            ("app", ".*/app", "-", "app"),
            ("arn:aws:iam::111122223333:role/app", ".*/app", "app", "app"),
            ("app", "", "-", "-"),
        ] {
            assert_eq!(role(&old, Some(asked), &[(PERMITTED, permitted)]), by_old, "{asked} by {permitted}");
            assert_eq!(role(&new, Some(asked), &[(PERMITTED, permitted)]), by_new, "{asked} by {permitted}");
        }
    }

    /// Measured with gorilla/mux 1.8.1, which both use: it answers such a path with a redirect to another one.
    #[test]
    fn a_name_that_a_path_cannot_hold_is_no_role() {
        for tool in [Tool::Kube2iam, Tool::Kiam, Tool::Kiam3] {
            for name in ["//app", "a//b", "a/../b", "./app", "..", "app/", " app", "app\n", "a b"] {
                assert_eq!(role(&today(tool), Some(name), &[(PERMITTED, ".*")]), "-", "{tool:?} {name:?}");
            }
            assert_eq!(role(&today(tool), Some("team/app"), &[(PERMITTED, ".*")]), "team/app");
        }
        // kiam takes one slash for none, and kube2iam has then two.
        assert_eq!(role(&today(Tool::Kube2iam), Some("/app"), &[]), "-");
    }

    #[test]
    fn a_pod_whose_first_address_is_of_ipv6_is_not_found_by_the_other() {
        let mut pod = pod(Some("app"));
        let six = "2001:db8::7".parse().unwrap();
        pod.addresses.push(six);
        today(Tool::Kube2iam).role(&pod, &BTreeMap::new()).unwrap();
        pod.addresses.insert(0, six);
        today(Tool::Kube2iam).role(&pod, &BTreeMap::new()).unwrap_err();
    }
}

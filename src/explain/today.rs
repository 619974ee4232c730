//! The role that kube2iam or kiam gives a pod, by their own rules: looser than ours where they are.

use std::collections::BTreeMap;

use regex_lite::Regex;

use crate::identity::pods::Pod;
use crate::policy::glob;
use crate::role::RoleArn;
use crate::role::pod_annotation::{ALLOWED_ROLES, PERMITTED};

/// What the cluster has today.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tool {
    /// jtblin/kube2iam
    #[value(name = "kube2iam")]
    Kube2iam,
    /// uswitch/kiam
    Kiam,
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

impl Today {
    /// The role, or why there is none.
    pub(super) fn role(&self, pod: &Pod, namespace: &BTreeMap<String, String>) -> Result<RoleArn, String> {
        if pod.host_network {
            // Its packets leave by no link of a pod's.
            return Err("on the host network it is not served, and has the node's own role".into());
        }
        let asked = pod.asked.as_ref().and_then(|asked| asked.role.as_deref());
        let text = match self.tool {
            Tool::Kube2iam => self.by_kube2iam(asked, namespace)?,
            Tool::Kiam => self.by_kiam(asked, namespace)?,
        };
        RoleArn::parse(&text).map_err(|why| format!("{text:?} is not a role ARN ({why})"))
    }

    /// `mappings/mapper.go`
    fn by_kube2iam(
        &self,
        asked: Option<&str>,
        namespace: &BTreeMap<String, String>,
    ) -> Result<String, String> {
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
            return Ok(role);
        }
        let list = namespace.get(ALLOWED_ROLES).map_or("", |list| list.as_str());
        let list: Vec<String> = serde_json::from_str(list).unwrap_or_default();
        let allowed = list.iter().any(|entry| {
            let pattern = arn(entry);
            if self.regexp {
                Regex::new(&pattern).is_ok_and(|pattern| pattern.is_match(&role))
            } else {
                glob(&pattern, &role)
            }
        });
        if allowed { Ok(role) } else { Err(format!("{role} is not in the namespace's {ALLOWED_ROLES}")) }
    }

    /// `pkg/server/policy.go`, `pkg/aws/sts/arn_resolver.go`
    fn by_kiam(&self, asked: Option<&str>, namespace: &BTreeMap<String, String>) -> Result<String, String> {
        let asked = asked.filter(|asked| !asked.is_empty()).ok_or("no annotation on the pod")?;
        let role = if asked.starts_with("arn:") {
            asked.to_owned()
        } else {
            format!("{}{}", self.base, asked.strip_prefix('/').unwrap_or(asked))
        };
        let permitted = namespace.get(PERMITTED).map_or("", |expression| expression.as_str());
        if permitted.is_empty() {
            return Err(format!("the namespace has no {PERMITTED}"));
        }
        let expression = if self.strict { format!("^{permitted}$") } else { permitted.to_owned() };
        match Regex::new(&expression) {
            Ok(expression) if expression.is_match(&role) => Ok(role),
            Ok(_) => Err(format!("{role} is not what the namespace's {PERMITTED} permits")),
            Err(_) => Err(format!("the namespace's {PERMITTED} cannot be read here")),
        }
    }
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

    /// The role's name behind the base ARN; "-" for none.
    fn role(today: &Today, asked: Option<&str>, namespace: &[(&str, &str)]) -> String {
        let namespace = namespace.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        match today.role(&pod(asked), &namespace) {
            Ok(role) => role.as_str().strip_prefix(BASE).unwrap_or(role.as_str()).to_owned(),
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
}

//! `--role-source=pod-annotation`: kube2iam's and kiam's annotations, and what they add up to.
//!
//! Whoever makes pods writes a pod's annotations, so they are a wish. What bounds it: `--allow-role`, always; the annotations
//! of the pod's namespace, where it has them; and with web identity the pod's ServiceAccount, whose name the role must trust.
//! How both tools read them was looked up in their source (kube2iam `mappings/mapper.go`, kiam `pkg/server/policy.go`); where
//! we differ, we permit less.

pub(crate) mod dialect;
mod permitted;

use std::collections::BTreeMap;

pub use self::permitted::{ALLOWED_ROLES, Format, Namespace, PERMITTED};
use super::annotations::{ASSUME_ROLE_ARN, EKS_ROLE_ARN, EXTERNAL_ID, ROLE_ARN, SESSION_NAME};
use super::{Error, RoleArn, session_name};
use crate::identity::pods::ServiceAccountName;
use crate::policy::Policy;

/// The pod's annotations.
pub const ROLE: &str = "iam.amazonaws.com/role";
/// Taken by AssumeRole alone.
pub const POD_EXTERNAL_ID: &str = "iam.amazonaws.com/external-id";
/// kiam's; a name, not a template.
pub const POD_SESSION_NAME: &str = "iam.amazonaws.com/session-name";
/// The ServiceAccount's further roles.
const MORE_ROLES: [&str; 2] = ["rolecall.dev/role-arn.", "rolecall.dev/assume-role-arn."];
/// The longest ARN; nothing that is longer means anything, and a tenant may write 256 KiB.
const LONGEST: usize = 2048;

/// What a pod's annotations ask for, as they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `iam.amazonaws.com/role`
    pub role: Option<Box<str>>,
    /// `iam.amazonaws.com/external-id`
    pub external_id: Option<Box<str>>,
    /// `iam.amazonaws.com/session-name`
    pub session_name: Option<Box<str>>,
}

impl Asked {
    /// Takes an annotation, if it is one of the three. What is too long to mean anything is cut, and still too long.
    pub fn take(&mut self, name: &str, value: &str) {
        let place = match name {
            ROLE => &mut self.role,
            POD_EXTERNAL_ID => &mut self.external_id,
            POD_SESSION_NAME => &mut self.session_name,
            _ => return,
        };
        *place = Some(value.chars().take(LONGEST + 1).collect::<String>().into());
    }

    /// A refusal of the plan, by the name of the annotation that the tenant wrote: what a pod asks for is judged as if it were its
    /// ServiceAccount's.
    pub fn names(&self, refusal: Error) -> Error {
        match refusal {
            Error::InvalidPlan { account, annotation, reason } => {
                let annotation = match &*annotation {
                    EXTERNAL_ID if self.external_id.is_some() => POD_EXTERNAL_ID.to_owned(),
                    SESSION_NAME if self.session_name.is_some() => POD_SESSION_NAME.to_owned(),
                    _ => annotation,
                };
                Error::InvalidPlan { account, annotation, reason }
            }
            other => other,
        }
    }

    /// Does the pod ask for nothing?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How the annotations are read: `--base-role-arn`, `--namespace-restrictions`, `--namespace-restriction-format`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    base: Option<Box<str>>,
    restricted: bool,
    format: Format,
}

impl Rules {
    /// Rules of these flags.
    ///
    /// # Errors
    /// What is wrong with `base`, as a phrase.
    pub fn new(base: Option<&str>, restricted: bool, format: Format) -> Result<Self, String> {
        if let Some(base) = base {
            if !base.ends_with('/') {
                // kube2iam would add a slash, kiam none.
                return Err(format!("{base:?} must end with a slash, as in arn:aws:iam::123456789012:role/"));
            }
            RoleArn::parse(&format!("{base}x")).map_err(|why| format!("{base:?}: {why}"))?;
        }
        Ok(Self { base: base.map(Into::into), restricted, format })
    }

    /// Must a namespace say what it permits?
    pub fn restricted(&self) -> bool {
        self.restricted
    }

    /// The role that the annotation's text names: an ARN, or a name (with its path) behind the base ARN. A name cannot lead out
    /// of the base's account and path.
    ///
    /// # Errors
    /// Which part is wrong, as a phrase.
    pub fn role(&self, text: &str) -> Result<RoleArn, &'static str> {
        let text = text.trim();
        if text.starts_with("arn:") {
            return RoleArn::parse(text);
        }
        if text.contains(':') {
            return Err("it is neither an ARN nor a role's name");
        }
        let name = text.strip_prefix('/').unwrap_or(text);
        if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err("a role's name has no empty part, and neither . nor ..");
        }
        let base = self.base.as_deref().ok_or("a name without its ARN needs --base-role-arn")?;
        RoleArn::parse(&format!("{base}{name}"))
    }

    /// May a pod of `namespace` have `role`, as far as the namespace's annotations go? Each that is there must permit it.
    ///
    /// # Errors
    /// Which of them does not, and why.
    pub fn permits(&self, namespace: &Namespace, role: &RoleArn) -> Result<(), Forbidden> {
        if self.restricted && !namespace.says_something() {
            let reason = "the namespace has neither this nor iam.amazonaws.com/allowed-roles, and --namespace-restrictions is set";
            return Err(Forbidden { annotation: permitted::PERMITTED, reason: reason.into() });
        }
        namespace.permits(role, self.base.as_deref(), self.format)
    }

    /// What the plan is made of: the ServiceAccount's annotations, with what its pod asks for.
    ///
    /// The pod names the role that its containers end up with. A ServiceAccount that leads to another one is a contradiction,
    /// and nobody's guess: it is refused.
    ///
    /// # Errors
    /// [`Error`]: no role, a malformed or forbidden one, or one that contradicts the ServiceAccount's.
    pub fn annotations(
        &self,
        account: &ServiceAccountName,
        asked: &Asked,
        namespace: &Namespace,
        of_account: &BTreeMap<String, String>,
        policy: &Policy,
    ) -> Result<BTreeMap<String, String>, Error> {
        let invalid = |annotation: &str, reason: String| Error::InvalidPlan {
            account: account.clone(),
            annotation: annotation.to_owned(),
            reason,
        };
        let text = |annotation: &str| of_account.get(annotation).map(|value| value.trim());

        let value = asked.role.as_deref().ok_or_else(|| Error::NoPodRole { account: account.clone() })?;
        let role = self.role(value).map_err(|reason| Error::InvalidRole {
            account: account.clone(),
            annotation: ROLE.to_owned(),
            value: value.chars().take(200).collect(),
            reason,
        })?;
        if let Some(name) =
            of_account.keys().find(|name| MORE_ROLES.iter().any(|more| name.starts_with(more)))
        {
            let reason = "further roles are for --role-source=service-account; this agent takes a pod's one role from the pod";
            return Err(invalid(name, reason.into()));
        }
        let first = [ROLE_ARN, EKS_ROLE_ARN].into_iter().find_map(|name| Some((name, text(name)?)));
        let last = text(ASSUME_ROLE_ARN).map(|last| (ASSUME_ROLE_ARN, last)).or(first);
        if let Some((name, last)) = last.filter(|(_, last)| *last != role.as_str()) {
            return Err(invalid(
                name,
                format!(
                    "the ServiceAccount asks for {last:.200}, and the pod's {ROLE} for {role}: make them equal, or take one away"
                ),
            ));
        }
        // The operator's globs before the expressions of a tenant, which cost more.
        if !policy.allows(&account.namespace, role.as_str()) {
            return Err(Error::NotAllowed { account: account.clone(), role });
        }
        self.permits(namespace, &role).map_err(|Forbidden { annotation, reason }| Error::NotPermitted {
            account: account.clone(),
            role: role.clone(),
            annotation,
            reason,
        })?;

        let mut merged = of_account.clone();
        if last.is_none() {
            merged.insert(ROLE_ARN.to_owned(), role.to_string());
        }
        for (name, asked, of_pod) in [
            (EXTERNAL_ID, asked.external_id.as_deref(), POD_EXTERNAL_ID),
            // A name and no template: nothing in braces is left of it.
            (
                SESSION_NAME,
                asked.session_name.as_deref().map(session_name::clean).as_deref(),
                POD_SESSION_NAME,
            ),
        ] {
            let Some(asked) = asked.map(str::trim) else { continue };
            if text(name).is_some_and(|own| own != asked) {
                return Err(invalid(
                    name,
                    format!("the pod's {of_pod} is another one: make them equal, or take one away"),
                ));
            }
            merged.insert(name.to_owned(), asked.to_owned());
        }
        Ok(merged)
    }
}

/// The namespace's annotation that does not permit the role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// Its name.
    pub annotation: &'static str,
    /// Why not, as a phrase.
    pub reason: String,
}

#[cfg(test)]
#[path = "pod_annotation/tests.rs"]
mod tests;

//! The trust policy of a role for ServiceAccounts of one cluster or several, and whether IAM takes one of its length.

use std::collections::BTreeMap;

use serde::Serialize;

use super::documents::IssuerUrl;

/// Characters of a role's trust policy that IAM takes, white space not counted.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>
const DEFAULT_LIMIT: usize = 2048;
/// What the quota can be raised to.
pub(super) const MAX_LIMIT: usize = 4096;

/// `NAMESPACE/NAME`, where `*` in the name stands for anything.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Subject {
    namespace: String,
    name: String,
}

impl Subject {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not NAMESPACE/NAME (the name may be * for all of the namespace)");
        let (namespace, name) = text.split_once('/').ok_or_else(wrong)?;
        // No wildcard for namespaces: whoever may create one would choose its name to fit.
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let namespaced = (1..=63).contains(&namespace.len()) && namespace.bytes().all(plain);
        let named =
            (1..=253).contains(&name.len()) && name.bytes().all(|b| plain(b) || b == b'.' || b == b'*');
        if !namespaced || !named {
            return Err(wrong());
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    fn is_pattern(&self) -> bool {
        self.name.contains('*')
    }

    /// The `sub` of its tokens.
    fn text(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

/// Who may take the role.
pub(super) struct Trust<'a> {
    pub partition: &'a str,
    pub account: &'a str,
    pub issuers: &'a [IssuerUrl],
    pub subjects: &'a [Subject],
    pub audiences: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Policy {
    version: &'static str,
    statement: Vec<Statement>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement {
    effect: &'static str,
    principal: Principal,
    action: &'static str,
    condition: BTreeMap<&'static str, BTreeMap<String, Values>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Principal {
    federated: String,
}

/// One value stands alone: two characters less, and the form that people know.
#[derive(Serialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Many(Vec<String>),
}

impl Values {
    fn of(mut values: Vec<String>) -> Self {
        match values.len() {
            1 => Self::One(values.remove(0)),
            _ => Self::Many(values),
        }
    }
}

impl Trust<'_> {
    /// A statement for each cluster: condition keys carry the issuer's name, so none can be shared.
    pub(super) fn policy(&self) -> Policy {
        Policy { version: "2012-10-17", statement: self.issuers.iter().map(|i| self.statement(i)).collect() }
    }

    fn statement(&self, issuer: &IssuerUrl) -> Statement {
        let name = issuer.name();
        let Self { partition, account, .. } = self;
        // StringLike means the same as StringEquals to a name, which has no wildcard in it.
        let operator =
            if self.subjects.iter().any(Subject::is_pattern) { "StringLike" } else { "StringEquals" };
        let mut condition: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        let subjects = self.subjects.iter().map(Subject::text).collect();
        condition
            .entry("StringEquals")
            .or_default()
            .insert(format!("{name}:aud"), Values::of(self.audiences.to_vec()));
        condition.entry(operator).or_default().insert(format!("{name}:sub"), Values::of(subjects));
        Statement {
            effect: "Allow",
            principal: Principal {
                federated: format!("arn:{partition}:iam::{account}:oidc-provider/{name}"),
            },
            action: "sts:AssumeRoleWithWebIdentity",
            condition,
        }
    }

    /// What to know about the policy's length, for the operator to read; the first line is the figure.
    pub(super) fn advice(&self) -> Vec<String> {
        let length = self.policy().length();
        let clusters = self.issuers.len();
        let figure = format!("{length} characters as IAM counts them, without white space");
        // The longest issuer stands for the next cluster.
        let statement =
            self.issuers.iter().map(|issuer| self.with(std::slice::from_ref(issuer), self.subjects).policy());
        let frame = r#"{"Version":"2012-10-17","Statement":[]}"#.len();
        let next = statement.map(|one| one.length() - frame + ",".len()).max().unwrap_or_default();
        let mut lines = match length {
            fits @ ..=DEFAULT_LIMIT => {
                let room = (DEFAULT_LIMIT - fits) / next;
                let more =
                    format!("{figure}; IAM takes {DEFAULT_LIMIT}: room for {room} more clusters like these");
                if room > 0 {
                    return vec![more];
                }
                vec![format!("{more}. Before there is one:")]
            }
            ..=MAX_LIMIT => vec![format!(
                "{figure}; IAM takes {DEFAULT_LIMIT} unless the quota L-C07B4B0D (role trust policy length, in us-east-1) is raised, \
                 to {MAX_LIMIT} at most. Instead of that:"
            )],
            _ => vec![format!("{figure}; IAM never takes more than {MAX_LIMIT}. Instead:")],
        };
        let whole = self.whole_namespaces();
        let wildcards = self.with(self.issuers, &whole).policy().length();
        if wildcards < length {
            lines.push(format!(
                "  - whole namespaces, --service-account 'NAMESPACE/*': {wildcards} characters; whoever may create ServiceAccounts there \
                 then has the role"
            ));
        }
        if clusters > 1 {
            let alone = self
                .issuers
                .iter()
                .map(|one| self.with(std::slice::from_ref(one), self.subjects).policy().length());
            lines.push(format!(
                "  - a role for each cluster, named in that cluster's annotations: {} characters at most",
                alone.max().unwrap_or_default()
            ));
        }
        lines.push(
            "  - a second hop: ServiceAccounts take a role of their cluster, and that one assumes this role \
             (rolecall.dev/assume-role-arn); its trust policy then names roles, about 60 characters each"
                .to_owned(),
        );
        lines
    }

    /// The same with `NAMESPACE/*` wherever two or more ServiceAccounts share a namespace.
    fn whole_namespaces(&self) -> Vec<Subject> {
        let mut by_namespace: BTreeMap<&str, Vec<&Subject>> = BTreeMap::new();
        for subject in self.subjects {
            by_namespace.entry(&subject.namespace).or_default().push(subject);
        }
        let whole = |(namespace, subjects): (&str, Vec<&Subject>)| match subjects.as_slice() {
            [one] => (*one).clone(),
            _ => Subject { namespace: namespace.to_owned(), name: "*".to_owned() },
        };
        by_namespace.into_iter().map(whole).collect()
    }

    fn with<'a>(&'a self, issuers: &'a [IssuerUrl], subjects: &'a [Subject]) -> Trust<'a> {
        Trust { issuers, subjects, ..*self }
    }
}

impl Policy {
    /// Characters as IAM counts them.
    pub(super) fn length(&self) -> usize {
        let text = serde_json::to_string(self).expect("text alone, and nothing in it can fail");
        text.chars().filter(|c| !c.is_whitespace()).count()
    }
}

//! Session names: what CloudTrail shows as the caller, the same on every node and after every renewal.

use std::sync::Arc;

use ring::digest;

use crate::identity::pods::ServiceAccountName;

/// STS's limit on `RoleSessionName`.
const MAX: usize = 64;
/// Hex digits of the hash that stands for what was cut off.
const HASH_DIGITS: usize = 8;

/// Of a template. Each name that it makes may be a pod's own, and is then made for each request: 51 placeholders in place of 50,000.
const LONGEST: usize = 256;

const PLACEHOLDERS: [&str; 5] = ["namespace", "service-account", "pod", "node", "cluster"];

/// A name that STS accepts: 2 to 64 characters of `[\w+=,.@-]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionName(Arc<str>);

impl SessionName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A session name's template with the agent's own values filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: Arc<str>,
    node: Arc<str>,
    cluster: Arc<str>,
}

impl Template {
    /// A template over `{namespace}`, `{service-account}`, `{pod}`, `{node}` and `{cluster}`.
    ///
    /// # Errors
    /// What is wrong with it, as a phrase: an unknown placeholder, nothing at all, or too much.
    pub fn parse(text: &str, node: &str, cluster: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("a template has {LONGEST} bytes at most"));
        }
        let mut rest = text;
        while let Some(start) = rest.find('{') {
            let end = rest[start..].find('}').ok_or("a placeholder is not closed")? + start;
            let name = &rest[start + 1..end];
            if !PLACEHOLDERS.contains(&name) {
                return Err(format!(
                    "{{{name}}} is not one of {{namespace}} {{service-account}} {{pod}} {{node}} {{cluster}}"
                ));
            }
            if name == "cluster" && cluster.is_empty() {
                return Err("{cluster} needs --cluster-name".into());
            }
            rest = &rest[end + 1..];
        }
        if text.is_empty() {
            return Err("it is empty".into());
        }
        Ok(Self { text: text.into(), node: node.into(), cluster: cluster.into() })
    }

    /// The same node and cluster under an annotation's text.
    ///
    /// # Errors
    /// As [`Template::parse`].
    pub fn with_text(&self, text: &str) -> Result<Self, String> {
        Self::parse(text, &self.node, &self.cluster)
    }

    /// This node's name.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// The cluster's name; empty where it has none.
    pub(super) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The template as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Is there a session per pod?
    pub fn names_the_pod(&self) -> bool {
        self.text.contains("{pod}")
    }

    /// The name for `account`; `pod` fills `{pod}`.
    pub fn render(&self, account: &ServiceAccountName, pod: Option<&str>) -> SessionName {
        let full = self
            .text
            .replace("{namespace}", &account.namespace)
            .replace("{service-account}", &account.name)
            .replace("{pod}", pod.unwrap_or_default())
            .replace("{node}", &self.node)
            .replace("{cluster}", &self.cluster);
        let clean = clean(&full);
        if (2..=MAX).contains(&clean.len()) && !is_cut(&clean) {
            return SessionName(clean.into());
        }
        // Two long names that begin alike stay two names, and each stays the same everywhere.
        let hash = digest::digest(&digest::SHA256, full.as_bytes());
        let hash: String =
            hash.as_ref().iter().take(HASH_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
        let kept: String = clean.chars().take(MAX - 1 - HASH_DIGITS).collect();
        SessionName(format!("{kept}-{hash}").into())
    }
}

/// Has a name the form of one that was cut? No whole name may stay so, or a tenant could choose it to be another's cut one.
fn is_cut(name: &str) -> bool {
    name.len() == MAX
        && name.as_bytes()[MAX - HASH_DIGITS - 1] == b'-'
        && name.bytes().skip(MAX - HASH_DIGITS).all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Does a name by this template tell which namespace, ServiceAccount and pod it is of? A namespace has letters, digits and hyphens, so
/// it comes first, and what follows it ends it. The two others have dots as well; what STS does not take becomes a hyphen. Else `team`
/// and `a-b` make the name of `team-a` and `b`.
pub fn parts_the_names(template: &str) -> bool {
    let after = |name: &str| template.find(name).map(|at| (at, &template[at + name.len()..]));
    let (Some(namespace), Some(account)) = (after("{namespace}"), after("{service-account}")) else {
        return false;
    };
    let pod = after("{pod}");
    if account.0 < namespace.0 || pod.is_some_and(|pod| pod.0 < namespace.0) {
        return false;
    }
    let ends = namespace.1.starts_with(|c| "_+=,.@".contains(c));
    let Some(pod) = pod else { return ends };
    let (first, second) = if account.0 < pod.0 { (account, pod) } else { (pod, account) };
    let between = &template[template.len() - first.1.len()..second.0];
    ends && between.contains(|c| "_+=,@".contains(c))
}

/// Is a name by this template that of the ServiceAccount, and of nobody else? Such a source identity is the word of our issuer, or of an
/// agent with credentials of its own, and not the tenant's who wrote the template and named its pods: the namespace, which has no dot, and
/// the ServiceAccount come first, what follows is parted from them by an `@`, which no name in Kubernetes has, and letters and digits
/// come from placeholders alone.
///
/// # Errors
/// What it must be.
pub fn proves(template: &str) -> Result<(), String> {
    let mut literal = template.to_owned();
    for placeholder in PLACEHOLDERS {
        literal = literal.replace(&format!("{{{placeholder}}}"), "");
    }
    let plain = !literal.contains(|c: char| c.is_ascii_alphanumeric());
    let rest = template.strip_prefix("{namespace}.{service-account}");
    if plain && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('@')) {
        return Ok(());
    }
    Err("it must be {namespace}.{service-account}, or that and an @ and further placeholders, with no letters or digits but theirs: it is \
         the word of the agent or of the issuer, and not the tenant's".into())
}

/// What STS takes of `text`; anything else becomes a hyphen, braces too.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || "_+=,.@-".contains(c) { c } else { '-' }).collect()
}

/// A template, and the name that it makes for one ServiceAccount, or for one of its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    template: Template,
    name: SessionName,
}

impl Name {
    /// The name for `account`; a pod's has yet to be filled in.
    pub fn new(template: Template, account: &ServiceAccountName) -> Self {
        let name = template.render(account, None);
        Self { template, name }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.name.as_str()
    }

    /// The template as it was written.
    pub fn template(&self) -> &str {
        self.template.as_str()
    }

    /// Is it another one for each pod?
    pub fn is_the_pods(&self) -> bool {
        self.template.names_the_pod()
    }

    pub(super) fn fill(&mut self, account: &ServiceAccountName, pod_name: &str) {
        self.name = self.template.render(account, Some(pod_name));
    }
}

//! The roles of one ServiceAccount: its default one, and those that it has by name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::{Error, RolePlan};
use crate::identity::pods::ServiceAccountName;

/// Kubernetes limits an annotation's name to 63 characters, and `assume-role-arn.` takes 16 of them.
const MAX_NAME: usize = 47;

/// The NAME of `role-arn.NAME` and of `/v1/credentials/NAME`: small letters, digits, and `-` between them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoleName(Box<str>);

impl RoleName {
    /// `None` where no role can have this name.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let good = (1..=MAX_NAME).contains(&text.len())
            && text.bytes().all(plain)
            && !text.starts_with('-')
            && !text.ends_with('-');
        good.then(|| Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of one role of one ServiceAccount.
pub type Plan = Result<Arc<RolePlan>, Error>;

/// All that a ServiceAccount asks for. Each role stands alone: one that is refused takes no other away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roles {
    /// What `/v1/credentials` gives.
    pub default: Plan,
    /// What `/v1/credentials/NAME` gives.
    pub named: BTreeMap<RoleName, Plan>,
}

impl Roles {
    /// Those of a ServiceAccount that does not exist.
    pub fn of_nobody(account: &ServiceAccountName) -> Self {
        Self { default: Err(Error::NoServiceAccount { account: account.clone() }), named: BTreeMap::new() }
    }

    /// The plan of the role with this name; without a name, of the default one.
    ///
    /// # Errors
    /// That role's own.
    pub fn plan(&self, account: &ServiceAccountName, name: Option<&RoleName>) -> Plan {
        let Some(name) = name else { return self.default.clone() };
        self.named.get(name).cloned().unwrap_or_else(|| match &self.default {
            Err(many @ Error::TooManyRoles { .. }) => Err(many.clone()),
            _ => Err(Error::no_role(account, Some(name))),
        })
    }

    /// Why the others are none.
    pub fn refusals(&self) -> impl Iterator<Item = &Error> {
        std::iter::once(&self.default).chain(self.named.values()).filter_map(|plan| plan.as_ref().err())
    }

    /// Every plan there is.
    pub fn plans(&self) -> impl Iterator<Item = &Arc<RolePlan>> {
        std::iter::once(&self.default).chain(self.named.values()).filter_map(|plan| plan.as_ref().ok())
    }
}

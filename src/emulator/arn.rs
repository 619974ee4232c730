//! The names of the account: role, provider and session ARNs, and the ids that AWS derives from them.

use std::fmt;

use ring::digest;

/// `arn:PARTITION:iam::ACCOUNT:role/PATH/NAME`, taken apart once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RoleArn {
    text: String,
    pub partition: String,
    pub account: String,
    pub name: String,
}

impl RoleArn {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (partition, account, path) = iam_parts(text, "role/")?;
        // Paths are part of the role's ARN and not of its sessions' ARNs.
        let name = path.rsplit('/').next().filter(|name| name.len() <= 64)?;
        Some(Self {
            text: text.to_owned(),
            partition: partition.to_owned(),
            account: account.to_owned(),
            name: name.to_owned(),
        })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// `arn:aws:sts::ACCOUNT:assumed-role/NAME/SESSION`
    pub(crate) fn session_arn(&self, session: &str) -> String {
        format!("arn:{}:sts::{}:assumed-role/{}/{session}", self.partition, self.account, self.name)
    }

    pub(crate) fn id(&self) -> String {
        unique_id("AROA", &self.text)
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `arn:PARTITION:iam::ACCOUNT:user/PATH/NAME`
#[derive(Debug, Clone)]
pub(crate) struct UserArn {
    pub text: String,
    pub account: String,
}

impl UserArn {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (_, account, _) = iam_parts(text, "user/")?;
        Some(Self { text: text.to_owned(), account: account.to_owned() })
    }

    pub(crate) fn id(&self) -> String {
        unique_id("AIDA", &self.text)
    }
}

/// Partition, account and what follows `kind`, which must be a path of plain IAM names.
fn iam_parts<'a>(text: &'a str, kind: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let mut parts = text.splitn(6, ':');
    let ("arn", partition, "iam", "", account, rest) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?)
    else {
        return None;
    };
    let path = rest.strip_prefix(kind)?;
    let plain = path.split('/').all(|part| !part.is_empty() && part.chars().all(is_name_char));
    (is_partition(partition) && is_account(account) && plain).then_some((partition, account, path))
}

pub(crate) fn is_partition(text: &str) -> bool {
    text == "aws" || text.strip_prefix("aws-").is_some_and(|rest| !rest.is_empty() && is_lower(rest))
}

fn is_lower(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

pub(crate) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// `[\w+=,.@-]`, the alphabet of IAM names and of session names.
pub(crate) fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_+=,.@-".contains(c)
}

/// AWS's unique ids are random; ours are the same for the same ARN, so that two runs can be compared.
fn unique_id(prefix: &str, arn: &str) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = digest::digest(&digest::SHA256, arn.as_bytes());
    let tail = hash.as_ref().iter().take(17).map(|b| LETTERS[usize::from(b & 31)] as char);
    prefix.chars().chain(tail).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_belongs_to_the_role_and_not_to_its_sessions() {
        let role = RoleArn::parse("arn:aws-cn:iam::111122223333:role/team/web").unwrap();
        assert_eq!(role.session_arn("shop.api"), "arn:aws-cn:sts::111122223333:assumed-role/web/shop.api");
        assert_eq!(role.id().len(), 21);
    }

    #[test]
    fn what_is_not_a_role_arn_is_refused() {
        for text in [
            "",
            "web",
            "arn:aws:iam::111122223333:user/web",
            "arn:aws:iam::1111:role/web",
            "arn:aws:iam:eu-west-1:111122223333:role/web",
            "arn:aws:sts::111122223333:role/web",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:role/a//b",
            "arn:aws:iam::111122223333:role/a b",
            "arn:minio:iam::111122223333:role/web",
        ] {
            assert_eq!(RoleArn::parse(text), None, "{text}");
        }
    }
}

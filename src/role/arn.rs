//! Role ARNs of every STS we meet: AWS's partitions, MinIO's `arn:minio:…`, Ceph's empty account.

use std::fmt;
use std::sync::Arc;

/// A role's ARN: `arn:PARTITION:iam::ACCOUNT:role/PATH/NAME`.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html#identifiers-arns>
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoleArn(Arc<str>);

impl RoleArn {
    /// Takes `text` apart as far as we need it; STS judges the rest.
    ///
    /// # Errors
    /// Which part is wrong, as a phrase for the message.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        // STS's own limits on RoleArn.
        if !(20..=2048).contains(&text.len()) {
            return Err("an ARN has 20 to 2048 characters");
        }
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let &[scheme, partition, service, region, account, resource] = parts.as_slice() else {
            return Err("it must look like arn:aws:iam::123456789012:role/NAME");
        };
        if scheme != "arn"
            || partition.is_empty()
            || !partition.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            return Err("it must begin with arn:PARTITION");
        }
        if service != "iam" || !region.is_empty() {
            return Err("its service must be iam, and its region empty");
        }
        if !account.is_empty() && !is_account(account) && !is_tenant(account) {
            return Err("its account must be 12 digits, or empty, or a tenant of Ceph's");
        }
        let name = resource.strip_prefix("role/").ok_or("it must name a role: …:role/NAME")?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"+=,.@-_/".contains(&b);
        if name.is_empty() || name.ends_with('/') || !name.bytes().all(plain) {
            return Err("the role's name has characters that no role has");
        }
        Ok(Self(text.into()))
    }

    /// The ARN as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The partition: `aws`, `aws-cn`, `minio`.
    pub fn partition(&self) -> &str {
        self.0.split(':').nth(1).unwrap_or_default()
    }

    /// The AWS account, where the ARN has one (Ceph's and MinIO's have not): SDKs build host names of it.
    pub fn account(&self) -> Option<&str> {
        self.0.split(':').nth(4).filter(|account| is_account(account))
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Ceph puts its tenants there, and its accounts, which are `RGW` and 17 digits. All of AWS's begin with a digit.
fn is_tenant(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A managed policy's ARN, as `PolicyArns` takes it: of an account, or AWS's own.
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_PolicyDescriptorType.html>
pub(super) fn is_policy(text: &str) -> bool {
    if text.len() > 2048 {
        return false;
    }
    let mut parts = text.splitn(6, ':');
    let head = (parts.next(), parts.nth(1), parts.next());
    head == (Some("arn"), Some("iam"), Some(""))
        && parts.nth(1).is_some_and(|resource| resource.starts_with("policy/"))
}

//! The secret: keys of one STS session, and how long they live.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;

/// Below this an SDK would start a call with keys that end during it: no such credentials are served.
pub const LEAST_LEFT: Duration = Duration::from_secs(60);

/// What STS handed out.
pub struct Credentials {
    /// `AccessKeyId`: not a secret; it is how CloudTrail is joined to a pod.
    pub access_key_id: String,
    /// `SecretAccessKey`
    pub secret_access_key: SecretString,
    /// `SessionToken`
    pub session_token: SecretString,
    /// `Expiration` as STS said it, by STS's own clock. Never extended.
    pub expiration: Timestamp,
    /// What was left when STS answered, by STS's own clock: this node's may be wrong.
    pub life: Duration,
    /// STS's `RequestId`, for the log.
    pub request_id: Option<String>,
    /// `PackedPolicySize`, percent of STS's limit, where STS reports it.
    pub packed_policy_percent: Option<i32>,
}

/// What signs a call of STS.
#[derive(Clone)]
pub struct Keys {
    /// `AccessKeyId`
    pub access_key_id: String,
    /// `SecretAccessKey`
    pub secret_access_key: SecretString,
    /// `SessionToken`; a user's own keys have none.
    pub session_token: Option<SecretString>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .field("secret_access_key", &"<redacted>")
            .field("session_token", &"<redacted>")
            .field("expiration", &self.expiration)
            .field("life", &self.life)
            .finish_non_exhaustive()
    }
}

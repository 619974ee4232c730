//! What STS says when it says no: AWS's codes, their status, and the reason that only the log sees.

use http::StatusCode;

/// Every code the emulator can answer, with the status that AWS gives it.
///
/// The faults of the control endpoint choose from this table too, so that nobody can ask for an error that
/// AWS does not have.
const CODES: &[(&str, u16)] = &[
    ("AccessDenied", 403),
    ("ExpiredToken", 403),
    ("ExpiredTokenException", 400),
    ("IDPCommunicationError", 400),
    ("IDPRejectedClaim", 403),
    ("IncompleteSignature", 400),
    ("InternalFailure", 500),
    ("InvalidAction", 400),
    ("InvalidClientTokenId", 403),
    ("InvalidIdentityToken", 400),
    ("InvalidParameterValue", 400),
    ("MalformedInput", 400),
    ("MalformedPolicyDocument", 400),
    ("MissingAction", 400),
    ("MissingAuthenticationToken", 403),
    ("PackedPolicyTooLarge", 400),
    ("RegionDisabledException", 403),
    ("ServiceUnavailable", 503),
    ("SignatureDoesNotMatch", 403),
    ("Throttling", 400),
    ("ValidationError", 400),
];

/// The status AWS answers with `code`, or `None` for a code that STS does not have.
pub(crate) fn status_of(code: &str) -> Option<StatusCode> {
    CODES.iter().find(|(name, _)| *name == code).and_then(|(_, status)| StatusCode::from_u16(*status).ok())
}

/// A refusal as the caller sees it, and why, as only the operator of the emulator does.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{code}: {message}")]
pub(crate) struct Refusal {
    pub code: &'static str,
    pub message: String,
    /// AWS tells a caller little, on purpose. Whoever runs an emulator wants to know more.
    pub reason: Option<String>,
}

impl Refusal {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        debug_assert!(status_of(code).is_some(), "{code} is in the table");
        Self { code, message: message.into(), reason: None }
    }

    pub(crate) fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    pub(crate) fn invalid_token(message: impl Into<String>) -> Self {
        Self::new("InvalidIdentityToken", message)
    }

    pub(crate) fn validation(message: impl Into<String>) -> Self {
        Self::new("ValidationError", message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_status_of_its_own_kind() {
        for (code, status) in CODES {
            assert_eq!(status_of(code).map(|s| s.as_u16()), Some(*status));
        }
        assert_eq!(status_of("Nonsense"), None);
    }
}

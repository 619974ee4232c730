//! Trouble on demand: slow, throttled, failing or strange answers; and the count of calls that tests assert on.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::error;

/// What to do to calls instead of, or before, answering them. In the file and on `POST /_emulator/faults`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fault {
    /// Only this action (`AssumeRoleWithWebIdentity`, `AssumeRole`, `GetCallerIdentity`); all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Only calls for this role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Wait this long before anything else, milliseconds.
    pub delay_ms: u64,
    /// Refuse with this code of STS: `Throttling`, `ServiceUnavailable`, `AccessDenied`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The status of that answer, if not the one AWS gives the code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Answer exactly these bytes (with `status`, or 200): a proxy's HTML page, half an XML document, nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// For this many calls; until it is cleared if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
}

/// What a fault says instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Instead {
    Refuse { code: String, status: StatusCode },
    Raw { body: String, status: StatusCode },
}

impl Fault {
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        if let Some(action) = &self.action
            && !super::ACTIONS.contains(&action.as_str())
        {
            return Err(format!("action {action:?} is none of {}", super::ACTIONS.join(", ")));
        }
        if let Some(status) = self.status
            && StatusCode::from_u16(status).map_or(true, |status| status.is_informational())
        {
            return Err(format!("status {status} is not one that an answer can have"));
        }
        match (&self.code, &self.body) {
            (Some(_), Some(_)) => Err("code and body exclude each other".to_owned()),
            (Some(code), None) if error::status_of(code).is_none() && self.status.is_none() => {
                Err(format!("code {code:?} is not known here; give it a status"))
            }
            (None, None) if self.status.is_some() => Err("status needs a code or a body".to_owned()),
            (None, None) if self.delay_ms == 0 => {
                Err("it does nothing: give it a delay_ms, code or body".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn instead(&self) -> Option<Instead> {
        let asked = self.status.and_then(|status| StatusCode::from_u16(status).ok());
        if let Some(body) = &self.body {
            return Some(Instead::Raw { body: body.clone(), status: asked.unwrap_or(StatusCode::OK) });
        }
        let code = self.code.clone()?;
        let status = asked.or_else(|| error::status_of(&code)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Some(Instead::Refuse { code, status })
    }
}

/// The faults in force, first come first served.
#[derive(Debug, Default)]
pub(crate) struct Faults(Vec<Fault>);

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn list(&self) -> &[Fault] {
        &self.0
    }

    /// What the next call for `action` and `role` gets. One fault at most, and it is used up by one.
    pub(crate) fn take(&mut self, action: &str, role: &str) -> (Duration, Option<Instead>) {
        let fits =
            |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
        let found = self
            .0
            .iter_mut()
            .find(|fault| fault.count != Some(0) && fits(&fault.action, action) && fits(&fault.role, role));
        let Some(fault) = found else { return (Duration::ZERO, None) };
        fault.count = fault.count.map(|count| count - 1);
        let taken = (Duration::from_millis(fault.delay_ms), fault.instead());
        self.0.retain(|fault| fault.count != Some(0));
        taken
    }
}

/// How often an action was called for a role, and how that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// `AssumeRoleWithWebIdentity`, `AssumeRole`, `GetCallerIdentity`, or `other`.
    pub action: &'static str,
    /// The role's ARN; empty for GetCallerIdentity and for roles that the file does not have.
    pub role: String,
    /// Calls that arrived, those still waiting and those whose caller hung up included.
    pub received: u64,
    /// Calls that were answered, by code; `ok` for good ones.
    pub results: BTreeMap<String, u64>,
}

/// Counted on arrival: a caller that hangs up has called all the same.
#[derive(Debug, Default)]
pub(crate) struct Counters(BTreeMap<(&'static str, String), Calls>);

impl Counters {
    pub(crate) fn arrived(&mut self, action: &'static str, role: &str) {
        self.of(action, role).received += 1;
    }

    pub(crate) fn answered(&mut self, action: &'static str, role: &str, result: &str) {
        *self.of(action, role).results.entry(result.to_owned()).or_default() += 1;
    }

    pub(crate) fn list(&self) -> Vec<Calls> {
        self.0.values().cloned().collect()
    }

    fn of(&mut self, action: &'static str, role: &str) -> &mut Calls {
        let none = || Calls { action, role: role.to_owned(), received: 0, results: BTreeMap::new() };
        self.0.entry((action, role.to_owned())).or_insert_with(none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(json: &str) -> Result<Fault, String> {
        let fault: Fault = serde_json::from_str(json).map_err(|err| err.to_string())?;
        fault.check().map(|()| fault)
    }

    #[test]
    fn a_fault_is_used_up_by_the_calls_it_fits() {
        let mut faults = Faults::default();
        faults.add(fault(r#"{"action": "AssumeRole", "code": "Throttling", "count": 1}"#).unwrap());
        faults.add(fault(r#"{"delay_ms": 5}"#).unwrap());
        let throttled = Instead::Refuse { code: "Throttling".to_owned(), status: StatusCode::BAD_REQUEST };
        assert_eq!(faults.take("GetCallerIdentity", ""), (Duration::from_millis(5), None));
        assert_eq!(faults.take("AssumeRole", "r"), (Duration::ZERO, Some(throttled)));
        assert_eq!(faults.take("AssumeRole", "r"), (Duration::from_millis(5), None));
        assert_eq!(faults.list().len(), 1);
    }

    #[test]
    fn faults_that_make_no_sense_are_refused() {
        for (json, expected) in [
            ("{}", "does nothing"),
            (r#"{"code": "Nonsense"}"#, "not known"),
            (r#"{"action": "ListUsers", "delay_ms": 1}"#, "none of"),
            (r#"{"status": 500}"#, "needs a code or a body"),
            (r#"{"status": 42, "body": ""}"#, "status 42"),
            (r#"{"code": "Throttling", "body": ""}"#, "exclude"),
            (r#"{"delay": 1}"#, "unknown field"),
        ] {
            let refused = fault(json).unwrap_err();
            assert!(refused.contains(expected), "{json}: {refused}");
        }
        assert!(fault(r#"{"code": "SlowDown", "status": 503}"#).is_ok());
    }
}

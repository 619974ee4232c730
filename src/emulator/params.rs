//! A call's parameters, checked the way AWS checks them: every violation in one `ValidationError`.

use std::collections::HashMap;

use super::arn::{is_account, is_name_char, is_partition};
use super::error::Refusal;

/// AWS takes no more session tags.
pub(super) const MAX_TAGS: usize = 50;

/// The parameters of one call, from its query and its form.
pub(crate) struct Params {
    values: HashMap<String, String>,
    violations: Vec<String>,
}

/// A session tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tag {
    pub key: String,
    pub value: String,
    /// Does it go with the sessions that the session makes?
    pub transitive: bool,
}

/// What both ways to assume a role are asked for.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub role: String,
    pub session: String,
    pub duration: Option<u64>,
    pub policy: Option<String>,
    pub policy_arns: Vec<String>,
}

/// What only AssumeRole is asked for.
#[derive(Debug)]
pub(crate) struct WantedOfAssumeRole {
    pub external_id: Option<String>,
    pub source_identity: Option<String>,
    pub tags: Vec<Tag>,
}

impl Params {
    /// # Errors
    /// A parameter that comes twice: two readers could believe two different ones.
    pub(crate) fn read(query: &str, form: &[u8]) -> Result<Self, Refusal> {
        let mut values = HashMap::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()).chain(form_urlencoded::parse(form)) {
            let twice = format!("Parameter {name} is given twice");
            if values.insert(name.into_owned(), value.into_owned()).is_some() {
                return Err(Refusal::new("MalformedInput", twice));
            }
        }
        Ok(Self { values, violations: Vec::new() })
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Role, session name, duration and session policies.
    pub(crate) fn wanted(&mut self) -> Wanted {
        let role = self.required(
            "RoleArn",
            20,
            2048,
            "[\\u0009\\u000A\\u000D\\u0020-\\u007E\\u0085\\u00A0-\\uD7FF]+",
            |c| matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..),
        );
        let session = self.required("RoleSessionName", 2, 64, "[\\w+=,.@-]*", is_name_char);
        let duration = self.duration();
        let policy = self.optional("Policy", 1, 2048);
        let policy_arns = self.list("PolicyArns", ".arn");
        self.limit_members("policyArns", policy_arns.len(), 10);
        Wanted { role, session, duration, policy, policy_arns }
    }

    /// External id, source identity and tags.
    ///
    /// # Errors
    /// Tags that contradict themselves.
    pub(crate) fn wanted_of_assume_role(&mut self) -> Result<WantedOfAssumeRole, Refusal> {
        let external_id = self.optional("ExternalId", 2, 1224);
        if let Some(id) = &external_id
            && !id.chars().all(|c| is_name_char(c) || ":/".contains(c))
        {
            self.violate(
                Some(id),
                "externalId",
                "Member must satisfy regular expression pattern: [\\w+=,.@:\\/-]*",
            );
        }
        let source_identity = self.optional("SourceIdentity", 2, 64);
        if let Some(identity) = &source_identity
            && !identity.chars().all(is_name_char)
        {
            let pattern = "Member must satisfy regular expression pattern: [\\w+=,.@-]*";
            self.violate(Some(identity), "sourceIdentity", pattern);
        }
        let keys = self.list("Tags", ".Key");
        let values = self.list("Tags", ".Value");
        let transitive = self.list("TransitiveTagKeys", "");
        self.limit_members("tags", keys.len(), MAX_TAGS);
        if keys.len() != values.len() {
            return Err(Refusal::new("MalformedInput", "Every tag needs a Key and a Value"));
        }
        let tag = |(key, value)| Tag { transitive: transitive.contains(&key), key, value };
        let tags: Vec<Tag> = keys.into_iter().zip(values).map(tag).collect();
        check_tags(&tags, &transitive)?;
        Ok(WantedOfAssumeRole { external_id, source_identity, tags })
    }

    /// A token: of AWS's length, and never quoted in an answer.
    pub(crate) fn token(&mut self) -> String {
        let token = self.text("WebIdentityToken").map(str::to_owned);
        match token.as_deref().map(str::len) {
            None => self.violate(None, "webIdentityToken", "Member must not be null"),
            Some(0..4) => {
                let bound = "Member must have length greater than or equal to 4";
                self.violations
                    .push(format!("Value at 'webIdentityToken' failed to satisfy constraint: {bound}"));
            }
            Some(4..=20_000) => {}
            Some(_) => {
                let bound = "Member must have length less than or equal to 20000";
                self.violations
                    .push(format!("Value at 'webIdentityToken' failed to satisfy constraint: {bound}"));
            }
        }
        token.unwrap_or_default()
    }

    /// Says no if anything read so far was wrong.
    ///
    /// # Errors
    /// `ValidationError` with every violation.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        match self.violations.len() {
            0 => Ok(()),
            1 => Err(Refusal::validation(format!("1 validation error detected: {}", self.violations[0]))),
            many => Err(Refusal::validation(format!(
                "{many} validation errors detected: {}",
                self.violations.join("; ")
            ))),
        }
    }

    fn required(
        &mut self,
        name: &str,
        min: usize,
        max: usize,
        pattern: &str,
        allowed: fn(char) -> bool,
    ) -> String {
        let member = member(name);
        let Some(value) = self.values.get(name).cloned() else {
            self.violate(None, &member, "Member must not be null");
            return String::new();
        };
        self.check_length(&value, &member, min, max);
        if !value.chars().all(allowed) {
            self.violate(
                Some(&value),
                &member,
                &format!("Member must satisfy regular expression pattern: {pattern}"),
            );
        }
        value
    }

    fn optional(&mut self, name: &str, min: usize, max: usize) -> Option<String> {
        let value = self.values.get(name).cloned()?;
        self.check_length(&value, &member(name), min, max);
        Some(value)
    }

    fn check_length(&mut self, value: &str, member: &str, min: usize, max: usize) {
        let length = value.chars().count();
        if length < min {
            let bound = format!("Member must have length greater than or equal to {min}");
            self.violate(Some(value), member, &bound);
        } else if length > max {
            self.violate(
                Some(value),
                member,
                &format!("Member must have length less than or equal to {max}"),
            );
        }
    }

    fn duration(&mut self) -> Option<u64> {
        let text = self.values.get("DurationSeconds").cloned()?;
        match text.parse::<u64>() {
            Ok(900..=43_200) => {}
            Ok(0..900) => {
                let bound = "Member must have value greater than or equal to 900";
                self.violate(Some(&text), "durationSeconds", bound);
            }
            Ok(_) => {
                let bound = "Member must have value less than or equal to 43200";
                self.violate(Some(&text), "durationSeconds", bound);
            }
            Err(_) => self.violate(Some(&text), "durationSeconds", "Member must be a whole number"),
        }
        text.parse().ok()
    }

    /// `NAME.member.1SUFFIX`, `NAME.member.2SUFFIX`, … up to the first that is not there.
    fn list(&self, name: &str, suffix: &str) -> Vec<String> {
        let numbered = (1..).map(|number| self.values.get(&format!("{name}.member.{number}{suffix}")));
        numbered.map_while(|value| value.cloned()).collect()
    }

    fn limit_members(&mut self, member: &str, count: usize, max: usize) {
        if count > max {
            let bound = format!("Member must have length less than or equal to {max}");
            self.violations.push(format!("Value at '{member}' failed to satisfy constraint: {bound}"));
        }
    }

    fn violate(&mut self, value: Option<&str>, member: &str, constraint: &str) {
        // As long as an ARN may be, and no longer: a caller's megabyte need not come back to it.
        let shown = value.map_or_else(
            || "null".to_owned(),
            |value| format!("'{}'", value.chars().take(2048).collect::<String>()),
        );
        self.violations
            .push(format!("Value {shown} at '{member}' failed to satisfy constraint: {constraint}"));
    }
}

impl Wanted {
    /// Session policies can be judged in their form only; the emulator enforces none.
    ///
    /// # Errors
    /// Policies that AWS would not accept, or not together: their packed size is an estimate.
    pub(crate) fn packed_policy_size(&self, tags: &[Tag]) -> Result<Option<u32>, Refusal> {
        if let Some(policy) = &self.policy
            && !serde_json::from_str::<serde_json::Value>(policy).is_ok_and(|policy| policy.is_object())
        {
            return Err(Refusal::new("MalformedPolicyDocument", "This policy contains invalid Json"));
        }
        if let Some(wrong) = self.policy_arns.iter().find(|arn| !is_policy_arn(arn)) {
            return Err(Refusal::validation(format!("ARN {wrong} is not valid.")));
        }
        let tags: usize = tags.iter().map(|tag| tag.key.len() + tag.value.len()).sum();
        let arns: usize = self.policy_arns.iter().map(String::len).sum();
        let bytes = self.policy.as_ref().map_or(0, String::len) + arns + tags;
        if bytes == 0 {
            return Ok(None);
        }
        // AWS compresses before it measures and does not say how; half of 4,096 bytes is about its limit.
        let percent = u32::try_from((bytes * 100).div_ceil(4096)).unwrap_or(u32::MAX);
        if percent > 100 {
            let message =
                format!("Packed policy consumes {percent}% of allotted space, please use smaller policy.");
            return Err(Refusal::new("PackedPolicyTooLarge", message));
        }
        Ok(Some(percent))
    }
}

/// Tags, however they came.
///
/// # Errors
/// Those that contradict themselves, or have characters that AWS does not take.
pub(super) fn check_tags(tags: &[Tag], transitive: &[String]) -> Result<(), Refusal> {
    let wrong = |message: &str| Err(Refusal::new("InvalidParameterValue", message));
    let plain = |text: &str| text.chars().all(|c| c.is_alphanumeric() || c == ' ' || "_.:/=+-@".contains(c));
    for (number, tag) in tags.iter().enumerate() {
        let lengths = (1..=128).contains(&tag.key.chars().count()) && tag.value.chars().count() <= 256;
        if !lengths || !plain(&tag.key) || !plain(&tag.value) {
            return wrong("Tag keys have 1 to 128 and values up to 256 letters, digits, spaces and _.:/=+-@");
        }
        if tag.key.to_ascii_lowercase().starts_with("aws:") {
            return wrong("Tag keys that start with aws: are reserved for system use.");
        }
        if tags[..number].iter().any(|other| other.key.eq_ignore_ascii_case(&tag.key)) {
            return wrong("Duplicate tag keys found. Please note that Tag keys are case insensitive.");
        }
    }
    if transitive.iter().any(|key| !tags.iter().any(|tag| tag.key == *key)) {
        return wrong("The specified transitive tag key must be included in the requested tags.");
    }
    Ok(())
}

/// `arn:PARTITION:iam::ACCOUNT:policy/NAME`, or `aws` for an account.
fn is_policy_arn(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    match parts[..] {
        ["arn", partition, "iam", "", account, rest] => {
            let name = rest.strip_prefix("policy/");
            is_partition(partition)
                && (account == "aws" || is_account(account))
                && name
                    .is_some_and(|name| !name.is_empty() && name.chars().all(|c| is_name_char(c) || c == '/'))
        }
        _ => false,
    }
}

/// A parameter's name as AWS's messages have it.
fn member(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| first.to_ascii_lowercase().to_string() + chars.as_str())
}

//! The document of a trust policy, read into statements. Every mistake is reported, none is guessed at.

use serde_json::{Map, Value};

use super::{Condition, Operator, Principal, Set, Statement};
use crate::emulator::arn::{is_account, is_partition};

/// The statements of `document`; what is wrong with it goes to `mistakes`.
pub(super) fn parse_document(
    document: &Value,
    issuers: &[String],
    mistakes: &mut Vec<String>,
) -> Vec<Statement> {
    let Some(document) = object(document, "the trust policy", mistakes) else { return Vec::new() };
    known_keys(document, &["Version", "Id", "Statement"], "the trust policy", mistakes);
    match document.get("Version").map(Value::as_str) {
        None | Some(Some("2012-10-17" | "2008-10-17")) => {}
        Some(_) => mistakes.push("Version must be the text 2012-10-17 (quote it in YAML)".to_owned()),
    }
    let statements = match document.get("Statement") {
        Some(Value::Array(list)) if !list.is_empty() => list.iter().collect(),
        Some(one @ Value::Object(_)) => vec![one],
        _ => {
            mistakes.push("Statement must be an object or a list of objects".to_owned());
            Vec::new()
        }
    };
    let parsed = statements.iter().enumerate().filter_map(|(number, statement)| {
        let at = format!("Statement {}", number + 1);
        parse_statement(statement, issuers, &at, mistakes)
    });
    parsed.collect()
}

fn parse_statement(
    statement: &Value,
    issuers: &[String],
    at: &str,
    mistakes: &mut Vec<String>,
) -> Option<Statement> {
    let statement = object(statement, at, mistakes)?;
    known_keys(statement, &["Sid", "Effect", "Principal", "Action", "Condition"], at, mistakes);
    let deny = match statement.get("Effect").and_then(Value::as_str) {
        Some("Deny") => true,
        Some("Allow") => false,
        _ => {
            mistakes.push(format!("{at}: Effect must be Allow or Deny"));
            false
        }
    };
    let principals = match statement.get("Principal") {
        Some(principal) => parse_principal(principal, at, mistakes),
        None => {
            mistakes.push(format!("{at}: Principal is missing"));
            Vec::new()
        }
    };
    let actions = strings(statement.get("Action"), &format!("{at}: Action"), mistakes);
    for action in &actions {
        if action != "*" && !action.to_ascii_lowercase().starts_with("sts:") {
            mistakes.push(format!("{at}: Action {action:?} is not an action of STS"));
        }
    }
    let mut conditions = Vec::new();
    if let Some(block) = statement.get("Condition") {
        let block = object(block, &format!("{at}: Condition"), mistakes)?;
        for (operator, keys) in block {
            let Some(keys) = object(keys, &format!("{at}: {operator}"), mistakes) else { continue };
            for (key, values) in keys {
                let text = format!("{operator} {key}");
                let values = strings(Some(values), &format!("{at}: {text}"), mistakes);
                match parse_condition(operator, key, values, issuers) {
                    Ok(condition) => conditions.push(condition),
                    Err(mistake) => mistakes.push(format!("{at}: {text}: {mistake}")),
                }
            }
        }
    }
    let actions = actions.iter().map(|action| action.to_ascii_lowercase()).collect();
    Some(Statement { deny, principals, actions, conditions })
}

fn parse_principal(principal: &Value, at: &str, mistakes: &mut Vec<String>) -> Vec<Principal> {
    if principal.as_str() == Some("*") {
        return vec![Principal::Anyone];
    }
    let at = format!("{at}: Principal");
    let Some(kinds) = object(principal, &at, mistakes) else { return Vec::new() };
    known_keys(kinds, &["Federated", "AWS", "Service"], &at, mistakes);
    let mut principals = Vec::new();
    for (kind, named) in kinds {
        for name in strings(Some(named), &format!("{at} {kind}"), mistakes) {
            let parsed = match kind.as_str() {
                "Federated" => is_provider_arn(&name).then(|| Principal::Federated(name.clone())),
                "AWS" => parse_aws_principal(&name),
                _ => Some(Principal::Service),
            };
            match parsed {
                Some(principal) => principals.push(principal),
                None => mistakes.push(format!("{at}: {kind} {name:?} is not a principal of that kind")),
            }
        }
    }
    principals
}

/// `arn:aws:iam::ACCOUNT:oidc-provider/HOST/PATH`
fn is_provider_arn(name: &str) -> bool {
    let parts: Vec<&str> = name.splitn(6, ':').collect();
    match parts[..] {
        ["arn", partition, "iam", "", account, rest] => {
            let host = rest.strip_prefix("oidc-provider/");
            is_partition(partition) && is_account(account) && host.is_some_and(|host| !host.is_empty())
        }
        _ => false,
    }
}

fn parse_aws_principal(name: &str) -> Option<Principal> {
    if name == "*" {
        return Some(Principal::Anyone);
    }
    if is_account(name) {
        return Some(Principal::Account(name.to_owned()));
    }
    let parts: Vec<&str> = name.splitn(6, ':').collect();
    match parts[..] {
        ["arn", partition, service, "", account, rest] if is_partition(partition) && is_account(account) => {
            match (service, rest.split_once('/')) {
                ("iam", None) if rest == "root" => Some(Principal::Account(account.to_owned())),
                // IAM takes no wildcard inside a principal's ARN.
                ("iam", Some(("role" | "user", path))) | ("sts", Some(("assumed-role", path))) => {
                    (!path.is_empty() && !path.contains('*')).then(|| Principal::Aws(name.to_owned()))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn parse_condition(
    operator: &str,
    key: &str,
    values: Vec<String>,
    issuers: &[String],
) -> Result<Condition, String> {
    let (set, plain) = match operator.split_once(':') {
        None => (None, operator),
        Some(("ForAnyValue", plain)) => (Some(Set::ForAnyValue), plain),
        Some(("ForAllValues", plain)) => (Some(Set::ForAllValues), plain),
        Some((other, _)) => return Err(format!("no set operator {other}")),
    };
    let (plain, if_exists) = match plain.strip_suffix("IfExists") {
        Some(plain) => (plain, true),
        None => (plain, false),
    };
    let operator_kind = match plain {
        "StringEquals" => Operator::Equals,
        "StringNotEquals" => Operator::NotEquals,
        "StringLike" => Operator::Like,
        "StringNotLike" => Operator::NotLike,
        _ => {
            return Err("the emulator knows StringEquals, StringNotEquals, StringLike and StringNotLike, \
                        with ForAnyValue:, ForAllValues: and IfExists"
                .to_owned());
        }
    };
    let lower = key.to_ascii_lowercase();
    let fixed = [
        "sts:externalid",
        "sts:rolesessionname",
        "sts:sourceidentity",
        "aws:principalarn",
        "aws:principalaccount",
    ];
    let tagged = ["aws:requesttag/", "aws:principaltag/"]
        .into_iter()
        .any(|prefix| lower.strip_prefix(prefix).is_some_and(|tag| !tag.is_empty()));
    let of_issuer = issuers.iter().any(|issuer| {
        ["sub", "aud"].iter().any(|claim| format!("{issuer}:{claim}").eq_ignore_ascii_case(key))
    });
    if !(fixed.contains(&lower.as_str()) || tagged || of_issuer) {
        return Err(format!(
            "the emulator does not know this key; it knows ISSUER:sub and ISSUER:aud of the issuers in the file \
             ({}), sts:ExternalId, sts:RoleSessionName, sts:SourceIdentity, aws:PrincipalArn, \
             aws:PrincipalAccount, aws:RequestTag/KEY and aws:PrincipalTag/KEY",
            issuers.join(", ")
        ));
    }
    if values.iter().any(|value| value.contains("${")) {
        return Err("policy variables are not emulated".to_owned());
    }
    Ok(Condition {
        text: format!("{operator} {key}"),
        operator: operator_kind,
        set,
        if_exists,
        key: lower,
        values,
    })
}

fn object<'a>(value: &'a Value, at: &str, mistakes: &mut Vec<String>) -> Option<&'a Map<String, Value>> {
    if value.as_object().is_none() {
        mistakes.push(format!("{at} must be an object"));
    }
    value.as_object()
}

fn known_keys(object: &Map<String, Value>, known: &[&str], at: &str, mistakes: &mut Vec<String>) {
    for key in object.keys().filter(|key| !known.contains(&key.as_str())) {
        mistakes.push(format!("{at}: {key} is not emulated; known: {}", known.join(", ")));
    }
}

/// A text or a list of texts: IAM takes both wherever it takes a list.
fn strings(value: Option<&Value>, at: &str, mistakes: &mut Vec<String>) -> Vec<String> {
    let list = match value {
        Some(Value::Array(list)) => list.iter().collect(),
        Some(one) => vec![one],
        None => Vec::new(),
    };
    let texts: Vec<String> = list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect();
    if texts.is_empty() || texts.len() != list.len() {
        mistakes.push(format!("{at} must be a text or a list of texts"));
    }
    texts
}

//! Trust policies: who may assume a role, under which conditions, as IAM decides it.
//!
//! The part of IAM's language that trust policies use, exactly; anything else is a mistake in the file and is
//! reported when the emulator starts. A condition that is silently ignored would allow what AWS refuses.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::arn::{is_account, is_partition};

/// The trust policy of one role.
#[derive(Debug, Clone)]
pub(crate) struct TrustPolicy {
    statements: Vec<Statement>,
}

#[derive(Debug, Clone)]
struct Statement {
    deny: bool,
    principals: Vec<Principal>,
    actions: Vec<String>,
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq)]
enum Principal {
    Anyone,
    Federated(String),
    /// An ARN: a user, a role, or one session of a role.
    Aws(String),
    /// Every principal of the account.
    Account(String),
    /// A service such as EC2: a copied policy may name it, and it never calls here.
    Service,
}

#[derive(Debug, Clone)]
struct Condition {
    text: String,
    operator: Operator,
    set: Option<Set>,
    if_exists: bool,
    /// Lower case: IAM's condition keys ignore case, their values do not.
    key: String,
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
enum Operator {
    Equals,
    NotEquals,
    Like,
    NotLike,
}

#[derive(Debug, Clone, Copy)]
enum Set {
    ForAnyValue,
    ForAllValues,
}

/// Who calls, with what was proved about the call.
#[derive(Debug)]
pub(crate) struct Request {
    pub caller: Caller,
    /// Condition keys in lower case, each with its values.
    pub context: HashMap<String, Vec<String>>,
}

/// The caller, as a `Principal` element may name it.
#[derive(Debug)]
pub(crate) enum Caller {
    /// A token of this identity provider.
    Federated(String),
    /// An AWS principal: every ARN that names it (user; or role and session), and its account.
    Aws { arns: Vec<String>, account: String },
}

impl TrustPolicy {
    /// Reads a policy document. `issuers` are the provider names (URL without scheme) whose `:sub` and `:aud`
    /// conditions may ask for.
    ///
    /// # Errors
    /// Every mistake in the document, each with its place.
    pub(crate) fn parse(document: &Value, issuers: &[String]) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let statements = parse_document(document, issuers, &mut mistakes);
        if mistakes.is_empty() { Ok(Self { statements }) } else { Err(mistakes) }
    }

    /// May `request` do `action` (`sts:…`)? An explicit deny wins; nothing that allows is a refusal too.
    ///
    /// # Errors
    /// Why not, for the emulator's own log.
    pub(crate) fn allows(&self, action: &str, request: &Request) -> Result<(), String> {
        let mut allowed = false;
        let mut reasons = Vec::new();
        for (number, statement) in self.statements.iter().enumerate() {
            match statement.matches(action, request) {
                Ok(()) if statement.deny => return Err(format!("statement {} denies {action}", number + 1)),
                Ok(()) => allowed = true,
                Err(_) if statement.deny => {}
                Err(reason) => reasons.push(format!("statement {}: {reason}", number + 1)),
            }
        }
        if allowed {
            return Ok(());
        }
        if reasons.is_empty() {
            reasons.push("no statement allows anything".to_owned());
        }
        Err(format!("{action} is not allowed: {}", reasons.join("; ")))
    }
}

impl Statement {
    fn matches(&self, action: &str, request: &Request) -> Result<(), String> {
        // Actions ignore case in IAM, and take wildcards.
        let action = action.to_ascii_lowercase();
        if !self.actions.iter().any(|pattern| glob(pattern, &action)) {
            return Err(format!("Action does not cover {action}"));
        }
        if !self.principals.iter().any(|principal| principal.is(&request.caller)) {
            return Err("Principal does not name the caller".to_owned());
        }
        match self.conditions.iter().find(|condition| !condition.holds(&request.context)) {
            None => Ok(()),
            Some(failed) => match request.context.get(&failed.key) {
                Some(values) => Err(format!("{} does not hold for {values:?}", failed.text)),
                None => Err(format!("{} does not hold: the call has no such key", failed.text)),
            },
        }
    }
}

impl Principal {
    fn is(&self, caller: &Caller) -> bool {
        match (self, caller) {
            (Self::Anyone, _) => true,
            (Self::Federated(provider), Caller::Federated(caller)) => provider == caller,
            (Self::Aws(arn), Caller::Aws { arns, .. }) => arns.contains(arn),
            (Self::Account(named), Caller::Aws { account, .. }) => named == account,
            (Self::Federated(_) | Self::Aws(_) | Self::Account(_) | Self::Service, _) => false,
        }
    }
}

impl Condition {
    fn holds(&self, context: &HashMap<String, Vec<String>>) -> bool {
        let present = context.get(&self.key).filter(|values| !values.is_empty());
        let Some(values) = present else {
            // IAM's table for a key that is not in the request: negated operators and ForAllValues hold.
            return self.if_exists
                || match self.set {
                    Some(Set::ForAllValues) => true,
                    Some(Set::ForAnyValue) => false,
                    None => matches!(self.operator, Operator::NotEquals | Operator::NotLike),
                };
        };
        match self.set {
            Some(Set::ForAllValues) => values.iter().all(|value| self.one(value)),
            Some(Set::ForAnyValue) => values.iter().any(|value| self.one(value)),
            // Without a set operator one match decides: it fulfils a positive operator and breaks a negated one.
            None if matches!(self.operator, Operator::NotEquals | Operator::NotLike) => {
                values.iter().all(|value| self.one(value))
            }
            None => values.iter().any(|value| self.one(value)),
        }
    }

    fn one(&self, value: &str) -> bool {
        match self.operator {
            Operator::Equals => self.values.iter().any(|wanted| wanted == value),
            Operator::NotEquals => self.values.iter().all(|wanted| wanted != value),
            Operator::Like => self.values.iter().any(|pattern| glob(pattern, value)),
            Operator::NotLike => self.values.iter().all(|pattern| !glob(pattern, value)),
        }
    }
}

/// IAM's wildcards: `*` is any run of characters, colons and slashes included; `?` is one character.
///
/// Linear in memory and at most quadratic in time: patterns come from the file, but values from any caller.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            // The last star takes one character more, and the rest is tried again.
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

fn parse_document(document: &Value, issuers: &[String], mistakes: &mut Vec<String>) -> Vec<Statement> {
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
    let tagged = lower.strip_prefix("aws:requesttag/").is_some_and(|tag| !tag.is_empty());
    let of_issuer = issuers.iter().any(|issuer| {
        ["sub", "aud"].iter().any(|claim| format!("{issuer}:{claim}").eq_ignore_ascii_case(key))
    });
    if !(fixed.contains(&lower.as_str()) || tagged || of_issuer) {
        return Err(format!(
            "the emulator does not know this key; it knows ISSUER:sub and ISSUER:aud of the issuers in the file \
             ({}), sts:ExternalId, sts:RoleSessionName, sts:SourceIdentity, aws:PrincipalArn, \
             aws:PrincipalAccount and aws:RequestTag/KEY",
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ISSUER: &str = "oidc.example.com/id/A1";
    const PROVIDER: &str = "arn:aws:iam::111122223333:oidc-provider/oidc.example.com/id/A1";
    const WEB: &str = "sts:AssumeRoleWithWebIdentity";

    fn policy(statement: Value) -> TrustPolicy {
        let document = json!({"Version": "2012-10-17", "Statement": statement});
        TrustPolicy::parse(&document, &[ISSUER.to_owned()]).unwrap()
    }

    fn with_condition(condition: Value) -> TrustPolicy {
        policy(
            json!([{"Effect": "Allow", "Principal": {"Federated": PROVIDER}, "Action": WEB, "Condition": condition}]),
        )
    }

    fn token(sub: &str, aud: &[&str]) -> Request {
        let aud = aud.iter().map(|aud| (*aud).to_owned()).collect();
        let context = [(format!("{ISSUER}:sub"), vec![sub.to_owned()]), (format!("{ISSUER}:aud"), aud)];
        let context = context.into_iter().map(|(key, values)| (key.to_ascii_lowercase(), values)).collect();
        Request { caller: Caller::Federated(PROVIDER.to_owned()), context }
    }

    fn holds(condition: Value, request: &Request) -> bool {
        with_condition(condition).allows(WEB, request).is_ok()
    }

    #[test]
    fn wildcards_match_as_in_iam() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("a?c", "ac", false),
            ("a?c", "abc", true),
            ("system:serviceaccount:*:web", "system:serviceaccount:shop:web", true),
            ("system:serviceaccount:shop:*", "system:serviceaccount:shopping:web", false),
            ("*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaa", false),
            ("[a]", "a", false),
            ("Web", "web", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn every_condition_must_hold() {
        let both = json!({"StringEquals": {
            format!("{ISSUER}:sub"): "system:serviceaccount:shop:web",
            format!("{ISSUER}:aud"): ["sts.amazonaws.com", "other"],
        }});
        assert!(holds(both.clone(), &token("system:serviceaccount:shop:web", &["sts.amazonaws.com"])));
        assert!(!holds(both.clone(), &token("system:serviceaccount:shop:api", &["sts.amazonaws.com"])));
        assert!(!holds(both, &token("system:serviceaccount:shop:web", &["vault"])));
    }

    #[test]
    fn equals_takes_no_wildcard() {
        let condition = json!({"StringEquals": {format!("{ISSUER}:sub"): "system:serviceaccount:shop:*"}});
        assert!(!holds(condition, &token("system:serviceaccount:shop:web", &[])));
    }

    #[test]
    fn negated_operators_refuse_the_named_and_pass_the_absent() {
        let not = json!({"StringNotLike": {format!("{ISSUER}:sub"): "system:serviceaccount:kube-system:*"}});
        assert!(holds(not.clone(), &token("system:serviceaccount:shop:web", &[])));
        assert!(!holds(not, &token("system:serviceaccount:kube-system:web", &[])));
        let absent = json!({"StringNotEquals": {"sts:ExternalId": "x"}});
        assert!(holds(absent, &token("a", &[])));
    }

    #[test]
    fn set_operators_differ_on_many_and_on_none() {
        let any = json!({"ForAnyValue:StringEquals": {format!("{ISSUER}:aud"): ["a", "b"]}});
        let all = json!({"ForAllValues:StringLike": {format!("{ISSUER}:aud"): ["a*", "b"]}});
        assert!(holds(any.clone(), &token("s", &["c", "a"])));
        assert!(!holds(any.clone(), &token("s", &["c"])));
        assert!(!holds(any, &token("s", &[])));
        assert!(holds(all.clone(), &token("s", &["ax", "b"])));
        assert!(!holds(all.clone(), &token("s", &["ax", "c"])));
        assert!(holds(all, &token("s", &[])), "an absent key fulfils ForAllValues, as in IAM");
    }

    #[test]
    fn if_exists_passes_an_absent_key_only() {
        let condition = json!({"StringEqualsIfExists": {"sts:ExternalId": "x"}});
        let mut request = token("s", &[]);
        assert!(holds(condition.clone(), &request));
        request.context.insert("sts:externalid".to_owned(), vec!["y".to_owned()]);
        assert!(!holds(condition, &request));
    }

    #[test]
    fn an_explicit_deny_wins_over_an_earlier_allow() {
        let policy = policy(json!([
            {"Effect": "Allow", "Principal": {"Federated": PROVIDER}, "Action": "sts:*"},
            {"Effect": "Deny", "Principal": "*", "Action": "*",
             "Condition": {"StringLike": {format!("{ISSUER}:sub"): "*:kube-system:*"}}},
        ]));
        assert!(policy.allows(WEB, &token("system:serviceaccount:shop:web", &[])).is_ok());
        let denied = policy.allows(WEB, &token("system:serviceaccount:kube-system:web", &[]));
        assert_eq!(denied, Err(format!("statement 2 denies {WEB}")));
    }

    #[test]
    fn another_provider_or_another_action_is_not_covered() {
        let elsewhere = PROVIDER.replace("111122223333", "999999999999");
        let other =
            policy(json!({"Effect": "Allow", "Principal": {"Federated": [elsewhere]}, "Action": WEB}));
        assert!(other.allows(WEB, &token("s", &[])).is_err());
        let action = policy(
            json!({"Effect": "Allow", "Principal": {"Federated": PROVIDER}, "Action": "sts:AssumeRole"}),
        );
        assert!(action.allows(WEB, &token("s", &[])).is_err());
    }

    #[test]
    fn aws_principals_are_an_account_a_role_a_session_or_anyone() {
        let caller = || Request {
            caller: Caller::Aws {
                arns: vec![
                    "arn:aws:iam::111122223333:role/team/web".to_owned(),
                    "arn:aws:sts::111122223333:assumed-role/web/shop".to_owned(),
                ],
                account: "111122223333".to_owned(),
            },
            context: HashMap::new(),
        };
        for (principal, allowed) in [
            (json!("*"), true),
            (json!({"AWS": "*"}), true),
            (json!({"AWS": "111122223333"}), true),
            (json!({"AWS": "arn:aws:iam::111122223333:root"}), true),
            (json!({"AWS": "arn:aws:iam::111122223333:role/team/web"}), true),
            (json!({"AWS": ["arn:aws:sts::111122223333:assumed-role/web/shop"]}), true),
            (json!({"AWS": "arn:aws:iam::111122223333:role/web"}), false),
            (json!({"AWS": "arn:aws:iam::999999999999:root"}), false),
            (json!({"Service": "ec2.amazonaws.com"}), false),
            (json!({"Federated": PROVIDER}), false),
        ] {
            let policy = policy(
                json!({"Effect": "Allow", "Principal": principal.clone(), "Action": "sts:AssumeRole"}),
            );
            assert_eq!(policy.allows("sts:AssumeRole", &caller()).is_ok(), allowed, "{principal}");
        }
    }

    #[test]
    fn what_is_not_emulated_is_a_mistake_and_all_are_reported() {
        let document = json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "allow", "Principal": {"Federated": "oidc.example.com"}, "Action": "s3:*"},
            {"Effect": "Allow", "Principal": {"CanonicalUser": "x"}, "NotAction": "sts:*", "Action": WEB, "Condition": {
                "IpAddress": {"aws:SourceIp": "10.0.0.0/8"},
                "StringEquals": {"other.example.com:sub": "x", "sts:ExternalId": "${aws:username}"},
                "ForSomeValue:StringLike": {"sts:ExternalId": "x"},
            }},
        ]});
        let mistakes = TrustPolicy::parse(&document, &[ISSUER.to_owned()]).unwrap_err();
        for expected in [
            "Statement 1: Effect",
            "\"oidc.example.com\" is not a principal",
            "\"s3:*\" is not an action",
            "CanonicalUser is not emulated",
            "NotAction is not emulated",
            "IpAddress aws:SourceIp",
            "other.example.com:sub: the emulator does not know this key",
            "policy variables are not emulated",
            "no set operator ForSomeValue",
        ] {
            assert!(mistakes.iter().any(|mistake| mistake.contains(expected)), "{expected}: {mistakes:#?}");
        }
    }
}

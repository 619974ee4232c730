//! Trust policies: who may assume a role, under which conditions, as IAM decides it.
//!
//! The part of IAM's language that trust policies use, exactly; anything else is a mistake in the file and is
//! reported when the emulator starts. A condition that is silently ignored would allow what AWS refuses.

mod parse;

use std::collections::HashMap;

use serde_json::Value;

use self::parse::parse_document;

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

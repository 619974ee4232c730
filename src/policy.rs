//! May this namespace have this role? `--allow-role NAMESPACE_GLOB=ARN_GLOB`.

/// The operator's list. Empty allows everything: with web identity the role's own trust policy is the boundary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy(Vec<(String, String)>);

impl Policy {
    /// Takes `NAMESPACE_GLOB=ARN_GLOB` entries; `*` stands for any run of characters.
    ///
    /// # Errors
    /// The entry that is not of that form, or that no namespace or no ARN can ever match.
    pub fn parse(entries: &[String]) -> Result<Self, String> {
        let parse = |entry: &String| {
            let (namespace, role) = entry.trim().split_once('=')?;
            (is_of_namespaces(namespace) && is_of_arns(role)).then(|| (namespace.to_owned(), role.to_owned()))
        };
        let wrong = |entry| {
            format!(
                "{entry:?} is not NAMESPACE_GLOB=ARN_GLOB, such as shop=arn:aws:iam::123456789012:role/shop-*"
            )
        };
        entries
            .iter()
            .map(|entry| parse(entry).ok_or_else(|| wrong(entry)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Has the operator said nothing?
    pub fn allows_anything(&self) -> bool {
        self.0.is_empty()
    }

    /// Is there an entry for this namespace and role?
    pub fn allows(&self, namespace: &str, role: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|(n, r)| glob(n, namespace) && glob(r, role))
    }
}

/// The characters of a DNS label, which every namespace's name is.
fn is_of_namespaces(glob: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-*".contains(&byte);
    !glob.is_empty() && glob.bytes().all(plain)
}

fn is_of_arns(glob: &str) -> bool {
    let head = glob.split('*').next().unwrap_or_default();
    head.starts_with("arn:") || (head.len() < glob.len() && "arn:".starts_with(head))
}

/// `*` matches any run of characters; everything else itself. The whole text must match.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    let Some((middle, tail)) = rest.rsplit_once('*') else { return text.ends_with(rest) };
    for piece in middle.split('*') {
        match text.find(piece) {
            Some(at) => text = &text[at + piece.len()..],
            None => return false,
        }
    }
    text.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_matches_the_whole_text_or_nothing() {
        for (pattern, text, expected) in [
            ("team-a", "team-a", true),
            ("team-a", "team-ab", false),
            ("team-*", "team-a", true),
            ("*", "", true),
            ("arn:*:role/a-*", "arn:aws:iam::1:role/a-b", true),
            ("arn:*:role/a-*", "arn:aws:iam::1:role/b", false),
            ("*a*a", "a", false),
            ("*a*b*", "xxaxxbxx", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn an_entry_for_one_namespace_gives_nothing_to_another() {
        let policy = Policy::parse(&["team-a=arn:aws:iam::1:role/a-*".into()]).unwrap();
        assert!(policy.allows("team-a", "arn:aws:iam::1:role/a-x"));
        assert!(!policy.allows("team-b", "arn:aws:iam::1:role/a-x"));
        assert!(!policy.allows("team-a", "arn:aws:iam::1:role/b"));
        assert!(Policy::parse(&["team-a".into()]).is_err());
    }

    #[test]
    fn an_entry_that_nothing_can_match_is_a_mistake() {
        for good in ["*=*", " bank=arn:aws:iam::1:role/*", "team-*=a*", "*=*:role/x"] {
            assert!(Policy::parse(&[good.into()]).is_ok(), "{good}");
        }
        for bad in ["", "shop", "=", "shop=", "=arn:*", "shop=role/a", "shop=a", "Shop=*", "shop =*", "a.b=*"]
        {
            assert!(Policy::parse(&[bad.into()]).is_err(), "{bad}");
        }
    }
}

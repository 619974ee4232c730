//! AWS's own claims in a web-identity token: session tags and source identity. Whoever signs the token sets them; the call has
//! no parameters for them.
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/id_session-tags.html#id_session-tags_adding-assume-role-idp>

use serde_json::{Map, Value};

use super::arn::is_name_char;
use super::error::Refusal;
use super::params::{MAX_TAGS, Tag, check_tags};

/// What such claims begin with.
pub(crate) const AWS: &str = "https://aws.amazon.com/";
const TAGS: &str = "https://aws.amazon.com/tags";
const SOURCE_IDENTITY: &str = "https://aws.amazon.com/source_identity";

/// What a token asks of its session.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SessionClaims {
    pub tags: Vec<Tag>,
    pub source_identity: Option<String>,
}

impl SessionClaims {
    /// Reads the claims of a token that begin with [`AWS`].
    ///
    /// # Errors
    /// What is not exactly as AWS wants it: a tag that is silently dropped would let a session do what its policy refuses.
    pub(crate) fn read(claims: &Map<String, Value>) -> Result<Self, Refusal> {
        let mut read = Self::default();
        for (name, value) in claims {
            match name.as_str() {
                TAGS => read.tags = tags(value)?,
                SOURCE_IDENTITY => read.source_identity = Some(source_identity(value)?),
                name if name.starts_with(TAGS) => {
                    return Err(wrong(name, "only the nested form of session tags is emulated"));
                }
                // AWS has others, which say nothing about the session.
                _ => {}
            }
        }
        Ok(read)
    }
}

fn tags(claim: &Value) -> Result<Vec<Tag>, Refusal> {
    let wrong = |why: &str| wrong(TAGS, why);
    let claim = claim.as_object().ok_or_else(|| wrong("must be an object"))?;
    if let Some(other) =
        claim.keys().find(|key| !["principal_tags", "transitive_tag_keys"].contains(&key.as_str()))
    {
        return Err(wrong(&format!("has a member {other:?}")));
    }
    let pairs = claim.get("principal_tags").and_then(Value::as_object);
    let pairs = pairs.ok_or_else(|| wrong("must have principal_tags, an object"))?;
    let mut tags = Vec::new();
    for (key, values) in pairs {
        let value = match values.as_array().map(Vec::as_slice) {
            Some([Value::String(value)]) => value.clone(),
            _ => return Err(wrong(&format!("{key:?} must be a list of one text"))),
        };
        tags.push(Tag { key: key.clone(), value, transitive: false });
    }
    let transitive: Option<Vec<String>> = match claim.get("transitive_tag_keys") {
        None => Some(Vec::new()),
        Some(keys) => {
            keys.as_array().and_then(|keys| keys.iter().map(|key| key.as_str().map(str::to_owned)).collect())
        }
    };
    let transitive = transitive.ok_or_else(|| wrong("transitive_tag_keys must be a list of texts"))?;
    if tags.len() > MAX_TAGS {
        return Err(wrong("has more than 50 tags"));
    }
    check_tags(&tags, &transitive)?;
    tags.iter_mut().for_each(|tag| tag.transitive = transitive.contains(&tag.key));
    Ok(tags)
}

fn source_identity(claim: &Value) -> Result<String, Refusal> {
    let text = claim.as_str().filter(|text| {
        (2..=64).contains(&text.chars().count())
            && text.chars().all(is_name_char)
            && !text.starts_with("aws:")
    });
    text.map(str::to_owned)
        .ok_or_else(|| wrong(SOURCE_IDENTITY, "must be a text of 2 to 64 letters, digits and _+=,.@-"))
}

fn wrong(claim: &str, why: &str) -> Refusal {
    Refusal::invalid_token("The ID Token provided has invalid claims").because(format!("{claim} {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(claims: Value) -> Result<SessionClaims, String> {
        SessionClaims::read(claims.as_object().unwrap()).map_err(|refusal| refusal.code.to_owned())
    }

    #[test]
    fn tags_and_source_identity_are_read_as_aws_writes_them() {
        let claims = read(json!({
            TAGS: {"principal_tags": {"kubernetes-namespace": ["shop"]}, "transitive_tag_keys": ["kubernetes-namespace"]},
            SOURCE_IDENTITY: "shop.web",
        }))
        .unwrap();
        let tag = Tag { key: "kubernetes-namespace".into(), value: "shop".into(), transitive: true };
        assert_eq!(claims, SessionClaims { tags: vec![tag], source_identity: Some("shop.web".into()) });
        assert_eq!(read(json!({})).unwrap(), SessionClaims::default());
    }

    #[test]
    fn whatever_is_not_so_makes_the_token_invalid() {
        for claims in [
            json!({TAGS: []}),
            json!({TAGS: {}}),
            json!({TAGS: {"principal_tags": {"a": "b"}}}),
            json!({TAGS: {"principal_tags": {"a": ["b", "c"]}}}),
            json!({TAGS: {"principal_tags": {"a": [1]}}}),
            json!({TAGS: {"principal_tags": {}, "tags": {}}}),
            json!({TAGS: {"principal_tags": {"a": ["b"]}, "transitive_tag_keys": "a"}}),
            json!({format!("{TAGS}/principal_tags/a"): "b"}),
            json!({SOURCE_IDENTITY: ["shop"]}),
            json!({SOURCE_IDENTITY: "s"}),
            json!({SOURCE_IDENTITY: "system:serviceaccount:shop:web"}),
        ] {
            assert_eq!(read(claims.clone()), Err("InvalidIdentityToken".into()), "{claims}");
        }
        for claims in [
            json!({TAGS: {"principal_tags": {"aws:x": ["b"]}}}),
            json!({TAGS: {"principal_tags": {"a": ["b?"]}}}),
            json!({TAGS: {"principal_tags": {"a": ["b"]}, "transitive_tag_keys": ["c"]}}),
        ] {
            assert_eq!(read(claims.clone()), Err("InvalidParameterValue".into()), "{claims}");
        }
    }
}

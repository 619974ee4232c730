//! What a header holds, and who is let on for it.

use serde_json::json;

use super::*;
use crate::fakes::{jwt, pod, token_of};

const LIFE: Duration = Duration::from_secs(600);

fn demanding(required: Required) -> Authorization {
    Authorization { required, ..Authorization::default() }
}

fn token(claims: &serde_json::Value) -> Token {
    match Presented::new(jwt(claims).as_bytes()) {
        Presented::Token(token) => token,
        other => panic!("{other:?}: {claims}"),
    }
}

#[test]
fn a_value_is_the_same_raw_and_as_bearer_in_any_case() {
    let sent = token_of(&pod("web", "10.0.0.7"), AUDIENCE, LIFE);
    for value in [
        sent.clone(),
        format!("Bearer {sent}"),
        format!("bearer {sent}"),
        format!("BEARER   {sent} "),
        format!(" {sent}"),
    ] {
        let presented = Presented::new(value.as_bytes());
        let text = presented.token().expect("a token").text().expose_secret();
        assert_eq!(text, sent, "{}", value.replace(&sent, "TOKEN"));
    }
    let word = |value: &[u8]| match Presented::new(value) {
        Presented::Word(word) => word.expose_secret().to_vec(),
        other => panic!("{other:?}"),
    };
    assert_eq!(word(b"Bearer rolecall"), b"rolecall");
    assert_eq!(word(b"Bearerrolecall"), b"Bearerrolecall");
    assert_eq!(word(b"bear"), b"bear");
}

#[test]
fn nothing_is_a_token_that_does_not_read_as_one() {
    for value in [
        &b"rolecall"[..],
        b"a.b",
        b"a.b.c",
        b"a.b.c.d",
        b"..",
        b"a.e30=.c",
        b"a.bnVsbA.c",
        b"\xff.e30.c",
        b"Basic eA==",
        jwt(&json!([1])).as_bytes(),
        jwt(&json!({"aud": 7})).as_bytes(),
        jwt(&json!({"exp": "soon"})).as_bytes(),
    ] {
        let presented = Presented::new(value);
        assert!(matches!(presented, Presented::Word(_)), "{}", value.escape_ascii());
    }
    for empty in [&b""[..], b"  ", b"Bearer", b"bearer ", b" BEARER  "] {
        assert!(matches!(Presented::new(empty), Presented::Nothing), "{}", empty.escape_ascii());
    }
}

#[test]
fn what_a_token_says_of_itself_is_read_in_both_forms() {
    let audiences = [AUDIENCE.to_owned()];
    for (claims, ours) in [
        (json!({"aud": "rolecall"}), true),
        (json!({"aud": ["sts.amazonaws.com", "rolecall"]}), true),
        (json!({"aud": ["pods.eks.amazonaws.com"]}), false),
        (json!({"aud": []}), false),
        (json!({}), false),
    ] {
        assert_eq!(token(&claims).is_for(&audiences), ours, "{claims}");
    }
    let web = pod("web", "10.0.0.7");
    let named = |claims| token(&claims).says_it_is_of(&web);
    let subject = "system:serviceaccount:shop:web";
    assert!(named(json!({"sub": subject, "kubernetes.io": {"pod": {"uid": "uid-web"}}})));
    assert!(!named(json!({"sub": subject, "kubernetes.io": {"pod": {"uid": "uid-api"}}})));
    assert!(!named(json!({"sub": subject, "kubernetes.io": {}})));
    assert!(!named(
        json!({"sub": "system:serviceaccount:shop:api", "kubernetes.io": {"pod": {"uid": "uid-web"}}})
    ));
    assert_eq!(token(&json!({"exp": 1})).remaining(), Duration::ZERO);
    assert_eq!(token(&json!({})).remaining(), Duration::ZERO);
}

#[test]
fn present_takes_any_word_and_token_takes_tokens_alone() {
    let (nothing, word) = (Presented::Nothing, Presented::new(b"rolecall"));
    let token = Presented::new(jwt(&json!({})).as_bytes());
    let code = |required: &Required, presented| {
        demanding(required.clone()).admits(presented).map_err(|refusal| refusal.code()).err()
    };
    assert_eq!([&nothing, &word, &token].map(|presented| code(&Required::Off, presented)), [None; 3]);
    assert_eq!(
        [&nothing, &word, &token].map(|presented| code(&Required::Present, presented)),
        [Some("AuthorizationRequired"), None, None]
    );
    assert_eq!(
        [&nothing, &word, &token].map(|presented| code(&Required::Token, presented)),
        [Some("AuthorizationRequired"), Some("AuthorizationInvalid"), None]
    );
}

#[test]
fn the_word_of_dev_is_compared_whole() {
    let dev = demanding(Required::Word("the-word".into()));
    assert!(dev.admits(&Presented::new(b"the-word")).is_ok());
    for other in ["the-wore", "the-word2", "the-wor", "a.e30.c"] {
        let refusal = dev.admits(&Presented::new(other.as_bytes())).unwrap_err();
        assert_eq!(refusal.code(), "AuthorizationInvalid", "{other}");
    }
    assert_eq!(dev.admits(&Presented::Nothing).unwrap_err().code(), "AuthorizationRequired");
}

#[test]
fn debug_shows_nothing_of_what_is_presented() {
    let token = jwt(&json!({"sub": "somebody"}));
    for value in [token.as_str(), "the-word"] {
        let shown = format!("{:?}", Presented::new(value.as_bytes()));
        assert!(shown.contains("<redacted>") && !shown.contains(value), "{shown}");
    }
    let shown = format!("{:?}", demanding(Required::Word("the-word".into())));
    assert!(!shown.contains("the-word"), "{shown}");
}

//! AssumeRoleWithWebIdentity: which tokens prove what, and whom a role trusts.

use aws_sdk_sts::config::Credentials;
use jiff::Timestamp;
use rolecall::emulator::{Issuer, IssuerConfig};
use secrecy::ExposeSecret as _;
use serde_json::json;

use crate::world::{CHAINED, DENIED, ISSUER, LIST, PROVIDER, SUBJECT, USER, WEB, World, claims, user};

#[tokio::test]
async fn a_good_token_becomes_a_session_of_the_role() {
    let world = World::new().await;
    let before = Timestamp::now();
    let answer = world.web_identity(&world.token(|_| {}), &[("DurationSeconds", "900")]).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.head.contains("content-type: text/xml"), "{}", answer.head);
    assert!(answer.head.contains("x-amzn-requestid: "), "{}", answer.head);
    assert!(answer.head.contains("date: "), "{}", answer.head);
    assert!(answer.body.starts_with(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n\
         <AssumeRoleWithWebIdentityResult>\n"
    ));
    assert_eq!(answer.element("Arn"), "arn:aws:sts::111122223333:assumed-role/web/shop.web");
    assert_eq!(answer.element("Audience"), "sts.amazonaws.com");
    assert_eq!(answer.element("Provider"), PROVIDER);
    assert_eq!(answer.element("SubjectFromWebIdentityToken"), SUBJECT);
    assert!(answer.element("AccessKeyId").starts_with("ASIA"));
    assert!(!answer.body.contains("PackedPolicySize"));
    let expires: Timestamp = answer.element("Expiration").parse().unwrap();
    let lifetime = expires.as_second() - before.as_second();
    assert!((900..=902).contains(&lifetime), "{lifetime}");
}

#[tokio::test]
async fn the_rust_sdk_reads_the_answer_and_signs_with_it() {
    let world = World::new().await;
    let unsigned = world.client(user());
    let assumed = unsigned
        .assume_role_with_web_identity()
        .role_arn(WEB)
        .role_session_name("sdk")
        .web_identity_token(world.token(|_| {}))
        .policy_arns(
            aws_sdk_sts::types::PolicyDescriptorType::builder()
                .arn("arn:aws:iam::aws:policy/ReadOnlyAccess")
                .build(),
        )
        .send()
        .await
        .unwrap();
    let keys = assumed.credentials().unwrap();
    assert_eq!(assumed.session_token_size(), i32::try_from(keys.session_token().len()).ok());
    let token = Some(keys.session_token().to_owned());
    let signed =
        world.client(Credentials::new(keys.access_key_id(), keys.secret_access_key(), token, None, "test"));
    let identity = signed.get_caller_identity().send().await.unwrap();
    assert_eq!(identity.arn(), Some("arn:aws:sts::111122223333:assumed-role/web/sdk"));
    assert_eq!(identity.account(), Some("111122223333"));
    assert_eq!(identity.user_id(), assumed.assumed_role_user().map(|user| user.assumed_role_id()));
    let identity = unsigned.get_caller_identity().send().await.unwrap();
    assert_eq!(identity.arn(), Some(USER));
}

#[tokio::test]
async fn tokens_that_prove_nothing_are_refused() {
    let world = World::new().await;
    let now = Timestamp::now().as_second();
    let stranger = Issuer::generate(ISSUER);
    let unknown_key = stranger.sign(&claims()).expose_secret().to_owned();
    let good = world.token(|_| {});
    let parts: Vec<&str> = good.split('.').collect();
    let changed = world.token(|claims| claims["sub"] = json!("system:serviceaccount:shop:admin"));
    let tampered = format!("{}.{}.{}", parts[0], changed.split('.').nth(1).unwrap(), parts[2]);
    // {"alg":"none"}, with and without a signature.
    let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", parts[1]);
    for (token, code, message) in [
        (tampered, "InvalidIdentityToken", "signature is not valid"),
        (unsigned, "InvalidIdentityToken", "not a valid JWT"),
        (unknown_key, "InvalidIdentityToken", "retrieve verification key"),
        ("not-a-token".to_owned(), "InvalidIdentityToken", "not a valid JWT"),
        (
            world.token(|claims| claims["iss"] = json!("https://oidc.example.com/b")),
            "InvalidIdentityToken",
            "No OpenIDConnect provider found in your account for https://oidc.example.com/b",
        ),
        (
            world.token(|claims| claims["aud"] = json!("vault")),
            "InvalidIdentityToken",
            "Incorrect token audience",
        ),
        (
            world.token(|claims| claims["exp"] = json!(now - 1)),
            "ExpiredTokenException",
            "Token expired: current",
        ),
        (world.token(|claims| claims["nbf"] = json!(now + 120)), "InvalidIdentityToken", "not yet valid"),
        (world.token(|claims| claims["iat"] = json!(now + 120)), "InvalidIdentityToken", "not yet valid"),
    ] {
        world.web_identity(&token, &[]).await.assert_refused(400, code, message);
    }
    let ahead = world.token(|claims| claims["nbf"] = json!(now + 20));
    assert_eq!(
        world.web_identity(&ahead, &[]).await.status,
        200,
        "a small difference of clocks is no refusal"
    );
}

#[tokio::test]
async fn the_trust_policy_decides_who_gets_the_role() {
    let world = World::new().await;
    let denied = "Not authorized to perform sts:AssumeRoleWithWebIdentity";
    let token = world.token(|claims| claims["sub"] = json!("system:serviceaccount:shopping:web"));
    world.web_identity(&token, &[]).await.assert_refused(403, "AccessDenied", denied);
    for role in [DENIED, LIST, CHAINED, "arn:aws:iam::111122223333:role/web"] {
        let answer = world.web_identity(&world.token(|_| {}), &[("RoleArn", role)]).await;
        if role == CHAINED {
            assert_eq!(answer.refusal().1, "AccessDenied", "the trust policy names no token");
            continue;
        }
        answer.assert_refused(403, "AccessDenied", denied);
    }
    let several = world.token(|claims| claims["aud"] = json!(["sts.amazonaws.com", "vault"]));
    assert_eq!(world.web_identity(&several, &[("RoleArn", LIST)]).await.status, 200);
}

#[tokio::test]
async fn a_provider_counts_in_its_own_accounts_only() {
    let issuer = Issuer::generate(ISSUER);
    let keys = IssuerConfig {
        jwks: Some(json!(issuer.jwks_json())),
        accounts: Some(vec!["111122223333".to_owned()]),
        ..IssuerConfig::default()
    };
    let world = World::with(issuer, keys).await;
    let answer = world.web_identity(&world.token(|_| {}), &[("RoleArn", CHAINED)]).await;
    answer.assert_refused(400, "InvalidIdentityToken", "No OpenIDConnect provider found in your account for");
}

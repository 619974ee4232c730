//! `any_role`: a cluster on a laptop, where nobody has made the roles. Tokens are checked as ever.

use rolecall::emulator::{Config, Issuer, IssuerConfig};
use serde_json::json;

use crate::world::{ISSUER, WEB, World, bind, claims, roles, serve};

const NOBODYS: &str = "arn:aws:iam::000000000000:role/nobody-made/me";

async fn world(any_role: bool) -> World {
    let issuer = Issuer::generate(ISSUER);
    let keys =
        IssuerConfig { url: ISSUER.into(), jwks: Some(json!(issuer.jwks_json())), ..IssuerConfig::default() };
    let roles = roles();
    let (emulator, url) =
        serve(bind(Config { issuers: vec![keys], roles, any_role, ..Config::default() }).await);
    World { emulator, url, issuer }
}

#[tokio::test]
async fn a_role_that_nobody_made_trusts_whoever_the_issuer_names_and_only_by_choice() {
    let asks = [("RoleArn", NOBODYS), ("DurationSeconds", "43200")];
    let made_up = world(true).await;
    let token = made_up.token(|claims| claims["sub"] = "system:serviceaccount:any:one".into());
    let answer = made_up.web_identity(&token, &asks).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.element("Arn"), "arn:aws:sts::000000000000:assumed-role/me/shop.web");

    let strict = world(false).await;
    let token = strict.token(|_| {});
    let refused = strict.web_identity(&token, &[("RoleArn", NOBODYS)]).await;
    assert_eq!(refused.status, 400, "no provider is in that account: {}", refused.body);
}

#[tokio::test]
async fn a_role_of_the_file_keeps_its_trust_policy_and_tokens_are_checked() {
    let world = world(true).await;
    let stranger = world.token(|claims| claims["sub"] = "system:serviceaccount:bank:web".into());
    let refused = world.web_identity(&stranger, &[("RoleArn", WEB)]).await;
    assert_eq!(refused.refusal().1, "AccessDenied");
    let asks = [("RoleArn", NOBODYS)];
    let expired = world.token(|claims| claims["exp"] = 1.into());
    assert_eq!(world.web_identity(&expired, &asks).await.refusal().1, "ExpiredTokenException");
    let other = world.token(|claims| claims["aud"] = json!(["vault"]));
    assert_eq!(world.web_identity(&other, &asks).await.refusal().1, "InvalidIdentityToken");
    let forged = Issuer::generate(ISSUER).sign(&claims());
    let forged = secrecy::ExposeSecret::expose_secret(&forged);
    assert_eq!(world.web_identity(forged, &asks).await.refusal().1, "InvalidIdentityToken");
}

#[tokio::test]
async fn without_an_issuer_nobody_could_assume_one() {
    let config = Config { any_role: true, ..Config::default() };
    let bound = rolecall::emulator::Emulator::bind(config, ([127, 0, 0, 1], 0).into()).await;
    let Err(mistakes) = bound else { panic!("it starts") };
    assert!(mistakes.to_string().contains("any_role: there is no issuer"), "{mistakes}");
}

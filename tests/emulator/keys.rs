//! TLS: keys that are discovered over it, and calls that come by it.

use std::time::Duration;

use aws_smithy_http_client::tls::{TlsContext, TrustStore};
use rolecall::emulator::{Config, Fault, Issuer, IssuerConfig, UserConfig};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use crate::world::{
    ISSUER, USER, USER_KEY, USER_SECRET, World, bind, claims, client, here, roles_without_tokens, serve, tls,
    user,
};

#[tokio::test]
async fn keys_are_discovered_over_tls_with_a_custom_ca_and_looked_up_again_for_a_new_key() {
    // A second emulator plays the issuer: its faults are the documents, in the order in which they are asked for.
    let published = bind(Config { roles: roles_without_tokens(), ..Config::default() }).await.with_tls(tls());
    let (pages, address) = serve(published);
    let publish = |keys: &str| {
        let document = json!({"issuer": ISSUER, "jwks_uri": format!("{address}/openid/v1/jwks")}).to_string();
        for body in [document, keys.to_owned()] {
            pages.add_fault(Fault { body: Some(body), count: Some(1), ..Fault::default() }).unwrap();
        }
    };
    let (old, new) = (Issuer::generate(ISSUER), Issuer::generate(ISSUER));
    publish(&old.jwks_json());
    let discovery = IssuerConfig {
        discovery_url: Some(format!("{address}/.well-known/openid-configuration")),
        ca_file: Some(here("ca.pem")),
        ..IssuerConfig::default()
    };
    let world = World::with(old, discovery).await;
    for _ in 0..3 {
        let answer = world.web_identity(&world.token(|_| {}), &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    assert_eq!(pages.received("other"), 2, "one discovery document, one JWKS, then from memory");

    publish(&new.jwks_json());
    let rotated = new.sign(&claims()).expose_secret().to_owned();
    for _ in 0..3 {
        world.web_identity(&rotated, &[]).await.assert_refused(
            400,
            "InvalidIdentityToken",
            "retrieve verification key",
        );
    }
    assert_eq!(pages.received("other"), 2, "an unknown key id is no way to flood the issuer");
    let known = async {
        while world.web_identity(&rotated, &[]).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), known).await.expect("the new key is found");
    assert_eq!(pages.received("other"), 4);
}

#[tokio::test]
async fn keys_of_another_authority_or_issuer_are_not_believed() {
    for (issuer_in_document, ca) in [("https://oidc.example.com/other", true), (ISSUER, false)] {
        let published =
            bind(Config { roles: roles_without_tokens(), ..Config::default() }).await.with_tls(tls());
        let (pages, address) = serve(published);
        let issuer = Issuer::generate(ISSUER);
        let document =
            json!({"issuer": issuer_in_document, "jwks_uri": format!("{address}/jwks")}).to_string();
        for body in [document, issuer.jwks_json()] {
            pages.add_fault(Fault { body: Some(body), count: Some(1), ..Fault::default() }).unwrap();
        }
        // A certificate that is no authority stands for another authority.
        let ca_file = Some(here(if ca { "ca.pem" } else { "cert.pem" }));
        let discovery = IssuerConfig { discovery_url: Some(address), ca_file, ..IssuerConfig::default() };
        let world = World::with(issuer, discovery).await;
        let answer = world.web_identity(&world.token(|_| {}), &[]).await;
        answer.assert_refused(400, "InvalidIdentityToken", "retrieve verification key");
    }
}

#[tokio::test]
async fn it_serves_tls_to_a_client_that_trusts_its_authority() {
    let config = Config {
        roles: roles_without_tokens(),
        users: vec![UserConfig {
            arn: USER.to_owned(),
            access_key_id: USER_KEY.to_owned(),
            secret_access_key: SecretString::from(USER_SECRET),
        }],
        ..Config::default()
    };
    let (_, url) = serve(bind(config).await.with_tls(tls()));
    assert!(url.starts_with("https://"), "{url}");
    let ca = std::fs::read(here("ca.pem")).unwrap();
    let trusting = TrustStore::empty().with_pem_certificate(ca.as_slice());
    let trusting = TlsContext::builder().with_trust_store(trusting).build().unwrap();
    let identity = client(&url, user(), trusting).get_caller_identity().send().await.unwrap();
    assert_eq!(identity.arn(), Some(USER));
    assert!(client(&url, user(), TlsContext::default()).get_caller_identity().send().await.is_err());
}

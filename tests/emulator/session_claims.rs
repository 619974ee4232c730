//! Session tags and source identity by web identity: the signer of the token asks, the role's trust policy allows.

use rolecall::emulator::{Config, Issuer, IssuerConfig, RoleConfig};
use serde_json::{Value, json};

use crate::world::{ISSUER, PROVIDER, WEB, World, bind, serve};

const TAGS: &str = "https://aws.amazon.com/tags";
const SOURCE_IDENTITY: &str = "https://aws.amazon.com/source_identity";

/// Its one role allows these actions to tokens, under that condition.
async fn world(actions: &[&str], condition: Value) -> World {
    let issuer = Issuer::generate(ISSUER);
    let bound = bind(Config {
        issuers: vec![IssuerConfig {
            url: ISSUER.into(),
            jwks: Some(json!(issuer.jwks_json())),
            ..IssuerConfig::default()
        }],
        roles: vec![RoleConfig {
            arn: WEB.into(),
            trust_policy: json!({"Version": "2012-10-17", "Statement": [{
                "Effect": "Allow", "Principal": {"Federated": PROVIDER}, "Action": actions, "Condition": condition,
            }]}),
            ..RoleConfig::default()
        }],
        ..Config::default()
    })
    .await;
    let (emulator, url) = serve(bound);
    World { emulator, url, issuer }
}

const BY_TOKEN: &str = "sts:AssumeRoleWithWebIdentity";

async fn asked(world: &World, claim: &str, value: &Value) -> (u16, String) {
    let token = world.token(|claims| claims[claim] = value.clone());
    let answer = world.web_identity(&token, &[]).await;
    (answer.status, answer.body)
}

#[tokio::test]
async fn tags_in_a_token_need_the_right_to_tag_and_their_values_count_in_conditions() {
    let shop = json!({"principal_tags": {"kubernetes-namespace": ["shop"]}, "transitive_tag_keys": ["kubernetes-namespace"]});
    let (status, body) = asked(&world(&[BY_TOKEN], json!({})).await, TAGS, &shop).await;
    assert!(status == 403 && body.contains("Not authorized to perform sts:TagSession"), "{body}");

    let condition = json!({"StringEquals": {"aws:RequestTag/kubernetes-namespace": "shop"}});
    let world = world(&[BY_TOKEN, "sts:TagSession"], condition).await;
    let (status, body) = asked(&world, TAGS, &shop).await;
    assert!(status == 200 && body.contains("<PackedPolicySize>"), "{body}");
    let other = json!({"principal_tags": {"kubernetes-namespace": ["kube-system"]}});
    assert_eq!(asked(&world, TAGS, &other).await.0, 403);
    assert_eq!(world.web_identity(&world.token(|_| {}), &[]).await.status, 403, "and none at all");
    let (status, body) = asked(&world, TAGS, &json!({"principal_tags": {"a": "b"}})).await;
    assert!(status == 400 && body.contains("<Code>InvalidIdentityToken</Code>"), "{body}");
}

#[tokio::test]
async fn a_source_identity_in_a_token_needs_the_right_to_set_it_and_is_answered() {
    let identity = json!("shop.web");
    let (status, body) = asked(&world(&[BY_TOKEN], json!({})).await, SOURCE_IDENTITY, &identity).await;
    assert!(status == 403 && body.contains("Not authorized to perform sts:SetSourceIdentity"), "{body}");
    let condition = json!({"StringLike": {"sts:SourceIdentity": "shop.*"}});
    let world = world(&[BY_TOKEN, "sts:SetSourceIdentity"], condition).await;
    let (status, body) = asked(&world, SOURCE_IDENTITY, &identity).await;
    assert!(status == 200 && body.contains("<SourceIdentity>shop.web</SourceIdentity>"), "{body}");
    assert_eq!(asked(&world, SOURCE_IDENTITY, &json!("other.web")).await.0, 403);
}

//! AssumeRole from a session: trust, lifetime, tags and source identity.

use aws_sdk_sts::config::Credentials;
use aws_sdk_sts::error::ProvideErrorMetadata as _;

use crate::world::{CHAINED, OF_SHOP, TAGGED, USER, WEB, World, code, user};

#[tokio::test]
async fn a_chain_needs_trust_and_lasts_an_hour_at_most() {
    let world = World::new().await;
    let session = world.client(world.session().await);
    let chain =
        |client: &aws_sdk_sts::Client| client.assume_role().role_arn(CHAINED).role_session_name("hop");
    let good = chain(&session).external_id("shop-reports").duration_seconds(3600).send().await.unwrap();
    let arn = good.assumed_role_user().unwrap().arn();
    assert_eq!(arn, "arn:aws:sts::999988887777:assumed-role/chained/hop");
    let too_long =
        chain(&session).external_id("shop-reports").duration_seconds(3601).send().await.unwrap_err();
    assert_eq!(too_long.code(), Some("ValidationError"));
    assert!(too_long.message().unwrap().contains("1 hour session limit for roles assumed by role chaining"));
    assert_eq!(code(chain(&session).external_id("guess").send()).await, "AccessDenied");
    assert_eq!(code(chain(&session).send()).await, "AccessDenied");
    // The user's own keys are no chain: the role's two hours hold.
    let base = world.client(user());
    assert!(chain(&base).external_id("shop-reports").duration_seconds(7200).send().await.is_ok());
    let denied = base.assume_role().role_arn(WEB).role_session_name("hop").send().await.unwrap_err();
    assert_eq!(
        denied.message(),
        Some(&*format!("User: {USER} is not authorized to perform: sts:AssumeRole on resource: {WEB}"))
    );
}

#[tokio::test]
async fn session_tags_need_their_own_permission_and_source_identity_too() {
    let world = World::new().await;
    let tag = |value: &str| aws_sdk_sts::types::Tag::builder().key("team").value(value).build().unwrap();
    let base = world.client(user());
    let tagged = base.assume_role().role_arn(TAGGED).role_session_name("tags");
    assert!(tagged.clone().tags(tag("shop")).transitive_tag_keys("team").send().await.is_ok());
    assert_eq!(code(tagged.clone().tags(tag("bank")).send()).await, "AccessDenied");
    assert_eq!(code(tagged.clone().transitive_tag_keys("team").send()).await, "InvalidParameterValue");
    assert_eq!(
        code(tagged.clone().tags(tag("shop")).tags(tag("shop")).send()).await,
        "InvalidParameterValue"
    );
    assert_eq!(code(tagged.source_identity("alice").send()).await, "AccessDenied");
    let untaggable =
        base.assume_role().role_arn(CHAINED).role_session_name("tags").external_id("shop-reports");
    let denied = untaggable.tags(tag("shop")).send().await.unwrap_err();
    assert!(denied.message().unwrap().contains("is not authorized to perform: sts:TagSession on resource"));
}

#[tokio::test]
async fn transitive_tags_stay_for_the_chain_and_only_those() {
    let world = World::new().await;
    let tag =
        |key: &str, value: &str| aws_sdk_sts::types::Tag::builder().key(key).value(value).build().unwrap();
    let tagged = async |transitive: bool| {
        let base = world.client(user());
        let call = base.assume_role().role_arn(TAGGED).role_session_name("tags");
        let call = call.tags(tag("team", "shop")).tags(tag("stage", "test"));
        let call = if transitive { call.transitive_tag_keys("team") } else { call };
        let keys = call.send().await.unwrap().credentials().unwrap().clone();
        let token = Some(keys.session_token().to_owned());
        world.client(Credentials::new(keys.access_key_id(), keys.secret_access_key(), token, None, "test"))
    };
    let next = |client: &aws_sdk_sts::Client, role: &str| {
        client.assume_role().role_arn(role).role_session_name("next")
    };
    // A session's tags are what the next role's trust policy sees of its caller.
    assert!(next(&tagged(false).await, OF_SHOP).send().await.is_ok());
    let untagged = world.client(user());
    assert_eq!(code(next(&untagged, OF_SHOP).send()).await, "AccessDenied");
    // Those that stay need the right to tag, which this role does not give, and are nobody's to change.
    let transitive = tagged(true).await;
    let denied = next(&transitive, OF_SHOP).send().await.unwrap_err();
    assert!(denied.message().unwrap().contains("is not authorized to perform: sts:TagSession on resource"));
    assert!(next(&transitive, TAGGED).send().await.is_ok());
    assert_eq!(
        code(next(&transitive, TAGGED).tags(tag("Team", "bank")).send()).await,
        "InvalidParameterValue"
    );
}

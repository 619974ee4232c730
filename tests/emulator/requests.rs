//! What a call must look like, and how it must be signed.

use aws_sdk_sts::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_sts::config::{ConfigBag, Credentials, Intercept, RuntimeComponents};
use aws_sdk_sts::error::BoxError;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::world::{USER_KEY, USER_SECRET, World, code, raw};

#[tokio::test]
async fn parameters_are_checked_in_awss_words() {
    let world = World::new().await;
    let token = world.token(|_| {});
    let long = "x".repeat(65);
    for (name, value, message) in [
        (
            "DurationSeconds",
            "899",
            "'899' at 'durationSeconds' failed to satisfy constraint: Member must have value greater than or equal to 900",
        ),
        ("DurationSeconds", "43201", "less than or equal to 43200"),
        (
            "DurationSeconds",
            "7201",
            "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
        ),
        ("DurationSeconds", "1h", "at 'durationSeconds'"),
        ("RoleSessionName", "x", "length greater than or equal to 2"),
        ("RoleSessionName", &long, "length less than or equal to 64"),
        (
            "RoleSessionName",
            "shop/web",
            "at 'roleSessionName' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\w+=,.@-]*",
        ),
        (
            "RoleArn",
            "web",
            "at 'roleArn' failed to satisfy constraint: Member must have length greater than or equal to 20",
        ),
        ("RoleArn", "arn:aws:iam::111122223333:user/web", "Request ARN is invalid"),
        ("WebIdentityToken", "abc", "Value at 'webIdentityToken'"),
    ] {
        let answer = world.web_identity(&token, &[(name, value)]).await;
        answer.assert_refused(400, "ValidationError", &message.replace('>', "&gt;"));
    }
    let answer = world.post(&[("Action", "AssumeRoleWithWebIdentity"), ("Version", "2011-06-15")]).await;
    answer.assert_refused(400, "ValidationError", "3 validation errors detected: Value null at 'roleArn'");
    let answer = world.web_identity(&token, &[("DurationSeconds", "7200")]).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let policies: Vec<(String, &str)> = (1..=11)
        .map(|n| (format!("PolicyArns.member.{n}.arn"), "arn:aws:iam::aws:policy/ReadOnlyAccess"))
        .collect();
    let policies: Vec<(&str, &str)> = policies.iter().map(|(name, arn)| (name.as_str(), *arn)).collect();
    world.web_identity(&token, &policies).await.assert_refused(400, "ValidationError", "'policyArns'");
    let ten = world.web_identity(&token, &policies[..10]).await;
    assert_eq!((ten.status, &*ten.element("PackedPolicySize")), (200, "10"));
    world.web_identity(&token, &[("Policy", "{")]).await.assert_refused(400, "MalformedPolicyDocument", "");
}

#[tokio::test]
async fn what_is_not_a_call_of_sts_is_refused_in_xml() {
    let world = World::new().await;
    world.post(&[]).await.assert_refused(400, "MissingAction", "missing an action");
    let users = [("Action", "ListUsers"), ("Version", "2011-06-15")];
    world.post(&users).await.assert_refused(400, "InvalidAction", "ListUsers for version 2011-06-15");
    let unversioned = [("Action", "GetCallerIdentity")];
    world.post(&unversioned).await.assert_refused(400, "InvalidAction", "NO_VERSION_SPECIFIED");
    let twice = [("Action", "GetCallerIdentity"), ("Action", "AssumeRole")];
    world.post(&twice).await.assert_refused(400, "MalformedInput", "twice");
    let unsigned = [("Action", "GetCallerIdentity"), ("Version", "2011-06-15")];
    world.post(&unsigned).await.assert_refused(403, "MissingAuthenticationToken", "Authentication Token");
    let elsewhere = raw(&world.url, "GET /latest/meta-data HTTP/1.1\r\n", "").await;
    elsewhere.assert_refused(400, "InvalidAction", "path /");
    assert!(
        elsewhere.body.starts_with("<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">")
    );
    assert_eq!(elsewhere.element("Type"), "Sender");
}

#[tokio::test]
async fn keys_that_it_did_not_issue_or_that_do_not_fit_are_refused() {
    let world = World::new().await;
    let good = world.session().await;
    let other = world.session().await;
    let (key, secret) = (good.access_key_id(), good.secret_access_key());
    let token = || good.session_token().map(str::to_owned);
    let foreign = Credentials::new("ASIAFOREIGNFOREIGN12", "secret", token(), None, "test");
    let wrong_secret = Credentials::new(key, other.secret_access_key(), token(), None, "test");
    let wrong_token = Credentials::new(key, secret, other.session_token().map(str::to_owned), None, "test");
    let no_token = Credentials::new(key, secret, None, None, "test");
    let user_with_token = Credentials::new(USER_KEY, USER_SECRET, token(), None, "test");
    for (credentials, expected) in [
        (foreign, "InvalidClientTokenId"),
        (wrong_secret, "SignatureDoesNotMatch"),
        (wrong_token, "InvalidClientTokenId"),
        (no_token, "InvalidClientTokenId"),
        (user_with_token, "InvalidClientTokenId"),
    ] {
        assert_eq!(code(world.client(credentials).get_caller_identity().send()).await, expected);
    }
    assert!(world.client(good).get_caller_identity().send().await.is_ok());
}

/// Changes the body after it was signed, as somebody between the two could.
#[derive(Debug)]
struct Tamper;

impl Intercept for Tamper {
    fn name(&self) -> &'static str {
        "tamper"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = "Action=GetCallerIdentity&Version=2011-06-15&Tampered=1";
        context.request_mut().headers_mut().insert("content-length", body.len().to_string());
        *context.request_mut().body_mut() = body.into();
        Ok(())
    }
}

#[tokio::test]
async fn a_request_changed_on_its_way_is_refused() {
    let world = World::new().await;
    let client = world.client(world.session().await);
    let tampered = client.get_caller_identity().customize().interceptor(Tamper);
    assert_eq!(code(tampered.send()).await, "SignatureDoesNotMatch");
}

#[tokio::test]
async fn a_session_ends_when_sts_said() {
    let world = World::new().await;
    // Issued ten minutes ago for fifteen: the caller's own signatures stay within the skew that AWS allows.
    world.emulator.move_clock(SignedDuration::from_mins(-10));
    let token = world.token(|claims| {
        for claim in ["iat", "nbf"] {
            claims[claim] = json!(Timestamp::now().as_second() - 900);
        }
    });
    let answer = world.web_identity(&token, &[("DurationSeconds", "900")]).await;
    let of = |name: &str| answer.element(name);
    let keys =
        Credentials::new(of("AccessKeyId"), of("SecretAccessKey"), Some(of("SessionToken")), None, "test");
    world.emulator.move_clock(SignedDuration::from_mins(14));
    assert!(world.client(keys.clone()).get_caller_identity().send().await.is_ok());
    world.emulator.move_clock(SignedDuration::from_mins(2));
    assert_eq!(code(world.client(keys).get_caller_identity().send()).await, "ExpiredToken");
}

//! The emulator over real sockets: what AWS would answer, refuse and count.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy sees only the test functions themselves")]

#[path = "emulator/any_role.rs"]
mod any_role;
#[path = "emulator/session_claims.rs"]
mod session_claims;

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use aws_sdk_sts::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_sts::config::retry::RetryConfig;
use aws_sdk_sts::config::{BehaviorVersion, ConfigBag, Credentials, Intercept, Region, RuntimeComponents};
use aws_sdk_sts::error::{BoxError, ProvideErrorMetadata};
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};
use jiff::{SignedDuration, Timestamp};
use rolecall::emulator::{Bound, Config, Emulator, Fault, Issuer, IssuerConfig, RoleConfig, Tls, UserConfig};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const ISSUER: &str = "https://oidc.example.com/a";
const NAME: &str = "oidc.example.com/a";
const PROVIDER: &str = "arn:aws:iam::111122223333:oidc-provider/oidc.example.com/a";
const WEB: &str = "arn:aws:iam::111122223333:role/team/web";
const DENIED: &str = "arn:aws:iam::111122223333:role/denied";
const LIST: &str = "arn:aws:iam::111122223333:role/list";
const CHAINED: &str = "arn:aws:iam::999988887777:role/chained";
const TAGGED: &str = "arn:aws:iam::111122223333:role/tagged";
const OF_SHOP: &str = "arn:aws:iam::111122223333:role/of-shop";
const USER: &str = "arn:aws:iam::111122223333:user/broker";
const USER_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const USER_SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const SUBJECT: &str = "system:serviceaccount:shop:web";

/// An emulator that serves, the issuer it believes, and a way to call it.
struct World {
    emulator: Emulator,
    url: String,
    issuer: Issuer,
}

impl World {
    async fn new() -> Self {
        let issuer = Issuer::generate(ISSUER);
        let keys = IssuerConfig { jwks: Some(json!(issuer.jwks_json())), ..IssuerConfig::default() };
        Self::with(issuer, keys).await
    }

    async fn with(issuer: Issuer, keys: IssuerConfig) -> Self {
        let bound = bind(Config {
            issuers: vec![IssuerConfig { url: issuer.url().to_owned(), ..keys }],
            roles: roles(),
            users: vec![UserConfig {
                arn: USER.to_owned(),
                access_key_id: USER_KEY.to_owned(),
                secret_access_key: SecretString::from(USER_SECRET),
            }],
            ..Config::default()
        })
        .await;
        let (emulator, url) = serve(bound);
        Self { emulator, url, issuer }
    }

    fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = claims();
        change(&mut claims);
        self.issuer.sign(&claims).expose_secret().to_owned()
    }

    async fn post(&self, params: &[(&str, &str)]) -> Answer {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
        let form = "Content-Type: application/x-www-form-urlencoded";
        raw(&self.url, &format!("POST / HTTP/1.1\r\n{form}\r\nContent-Length: {}\r\n", body.len()), &body)
            .await
    }

    async fn web_identity(&self, token: &str, extra: &[(&str, &str)]) -> Answer {
        let mut params = HashMap::from([
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", WEB),
            ("RoleSessionName", "shop.web"),
            ("WebIdentityToken", token),
        ]);
        params.extend(extra.iter().copied());
        self.post(&params.into_iter().collect::<Vec<_>>()).await
    }

    /// Credentials of a session of the role `web`.
    async fn session(&self) -> Credentials {
        let answer = self.web_identity(&self.token(|_| {}), &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let of = |name: &str| answer.element(name);
        Credentials::new(of("AccessKeyId"), of("SecretAccessKey"), Some(of("SessionToken")), None, "test")
    }

    fn client(&self, credentials: Credentials) -> aws_sdk_sts::Client {
        client(&self.url, credentials, TlsContext::default())
    }

    async fn control(&self, method: &str, path: &str, body: &str) -> Answer {
        let length = body.len();
        let head = format!(
            "{method} /_emulator/{path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
        );
        raw(&self.url, &head, body).await
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn element(&self, name: &str) -> String {
        let (_, rest) =
            self.body.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("{name}: {}", self.body));
        rest.split_once(&format!("</{name}>")).unwrap().0.to_owned()
    }

    fn refusal(&self) -> (u16, String) {
        (self.status, self.element("Code"))
    }

    #[track_caller]
    fn assert_refused(&self, status: u16, code: &str, message: &str) {
        assert_eq!(self.refusal(), (status, code.to_owned()), "{}", self.body);
        assert!(self.element("Message").contains(message), "{}", self.body);
    }
}

fn claims() -> Value {
    let now = Timestamp::now().as_second();
    json!({"iss": ISSUER, "sub": SUBJECT, "aud": ["sts.amazonaws.com"], "iat": now, "nbf": now, "exp": now + 3600})
}

fn role(arn: &str, statement: Value) -> RoleConfig {
    let trust_policy = json!({"Version": "2012-10-17", "Statement": statement});
    RoleConfig { arn: arn.to_owned(), max_session_duration: Some("2h".to_owned()), trust_policy }
}

fn roles() -> Vec<RoleConfig> {
    let web = |condition: Value| json!({"Effect": "Allow", "Principal": {"Federated": PROVIDER}, "Action": "sts:AssumeRoleWithWebIdentity", "Condition": condition});
    vec![
        role(
            WEB,
            web(json!({
                "StringEquals": {format!("{NAME}:aud"): "sts.amazonaws.com"},
                "StringLike": {format!("{NAME}:sub"): "system:serviceaccount:shop:*"},
            })),
        ),
        role(LIST, web(json!({"ForAnyValue:StringEquals": {format!("{NAME}:aud"): ["vault", "other"]}}))),
        role(
            DENIED,
            json!([web(json!({})), {"Effect": "Deny", "Principal": "*", "Action": "sts:*",
                "Condition": {"StringEquals": {format!("{NAME}:sub"): SUBJECT}}}]),
        ),
        role(
            CHAINED,
            json!({"Effect": "Allow", "Principal": {"AWS": [WEB, USER]}, "Action": "sts:AssumeRole",
                "Condition": {"StringEquals": {"sts:ExternalId": "shop-reports"}}}),
        ),
        role(
            OF_SHOP,
            json!({"Effect": "Allow", "Principal": {"AWS": "111122223333"}, "Action": "sts:AssumeRole",
                "Condition": {"StringEquals": {"aws:PrincipalTag/team": "shop"}}}),
        ),
        role(
            TAGGED,
            json!({"Effect": "Allow", "Principal": {"AWS": "111122223333"},
                "Action": ["sts:AssumeRole", "sts:TagSession"],
                "Condition": {"StringEqualsIfExists": {"aws:RequestTag/team": "shop"}}}),
        ),
    ]
}

async fn bind(config: Config) -> Bound {
    Emulator::bind(config, ([127, 0, 0, 1], 0).into()).await.unwrap()
}

fn serve(bound: Bound) -> (Emulator, String) {
    let served = (bound.emulator(), bound.url());
    tokio::spawn(bound.serve());
    served
}

/// One request, byte for byte; the answer until the connection ends.
async fn raw(url: &str, head: &str, body: &str) -> Answer {
    let host = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).await.unwrap();
    let request = format!("{head}Host: {host}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

fn client(url: &str, credentials: Credentials, tls: TlsContext) -> aws_sdk_sts::Client {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .tls_context(tls)
        .build_https();
    let config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .endpoint_url(url)
        .credentials_provider(credentials)
        .retry_config(RetryConfig::disabled())
        .http_client(http);
    aws_sdk_sts::Client::from_conf(config.build())
}

fn user() -> Credentials {
    Credentials::new(USER_KEY, USER_SECRET, None, None, "test")
}

/// The code that a call of the SDK was refused with.
async fn code<T: std::fmt::Debug, E: ProvideErrorMetadata + std::fmt::Debug>(
    call: impl Future<Output = Result<T, aws_sdk_sts::error::SdkError<E>>>,
) -> String {
    call.await.unwrap_err().code().expect("the SDK found a code").to_owned()
}

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

#[tokio::test]
async fn it_throttles_fails_and_answers_nonsense_on_demand() {
    let world = World::new().await;
    let token = world.token(|_| {});
    let throttle = r#"{"action": "AssumeRoleWithWebIdentity", "code": "Throttling", "count": 2}"#;
    assert_eq!(world.control("POST", "faults", throttle).await.status, 200);
    for _ in 0..2 {
        world.web_identity(&token, &[]).await.assert_refused(400, "Throttling", "Rate exceeded");
    }
    assert_eq!(world.web_identity(&token, &[]).await.status, 200);

    let fault = |code: &str| Fault { code: Some(code.to_owned()), count: Some(1), ..Fault::default() };
    for (code, status) in [("ServiceUnavailable", 503), ("InternalFailure", 500), ("IDPRejectedClaim", 403)] {
        world.emulator.add_fault(fault(code)).unwrap();
        assert_eq!(world.web_identity(&token, &[]).await.refusal(), (status, code.to_owned()));
    }
    let page = Fault { body: Some("<html>".to_owned()), status: Some(502), ..Fault::default() };
    world.emulator.add_fault(page).unwrap();
    let answer = world.web_identity(&token, &[]).await;
    assert_eq!((answer.status, answer.body.as_str()), (502, "<html>"));
    assert_eq!(world.control("DELETE", "faults", "").await.status, 200);
    assert_eq!(world.web_identity(&token, &[]).await.status, 200);

    let mistake = world.control("POST", "faults", r#"{"code": "Nonsense"}"#).await;
    assert_eq!(mistake.status, 400);
    assert!(mistake.body.contains("Nonsense"), "{}", mistake.body);
}

#[tokio::test]
async fn a_slow_call_is_counted_when_it_arrives() {
    let world = World::new().await;
    world.emulator.add_fault(Fault { delay_ms: 600_000, ..Fault::default() }).unwrap();
    let token = world.token(|_| {});
    let mut slow = std::pin::pin!(world.web_identity(&token, &[]));
    let counted = async {
        while world.emulator.received("AssumeRoleWithWebIdentity") == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = &mut slow => panic!("answered at once: {}", answer.body),
        () = counted => {}
    }
    let calls = world.emulator.calls();
    assert_eq!((calls[0].received, calls[0].results.len()), (1, 0));
}

#[tokio::test]
async fn calls_are_counted_by_action_role_and_result() {
    let world = World::new().await;
    let token = world.token(|_| {});
    world.web_identity(&token, &[]).await;
    world.web_identity(&token, &[("DurationSeconds", "1")]).await;
    world.web_identity(&token, &[("RoleArn", "arn:aws:iam::111122223333:role/stranger")]).await;
    world.post(&[("Action", "ListUsers")]).await;
    let calls: Value = serde_json::from_str(&world.control("GET", "calls", "").await.body).unwrap();
    assert_eq!(
        calls["calls"],
        json!([
            {"action": "AssumeRoleWithWebIdentity", "role": "", "received": 1, "results": {"AccessDenied": 1}},
            {"action": "AssumeRoleWithWebIdentity", "role": WEB, "received": 2, "results": {"ok": 1, "ValidationError": 1}},
            {"action": "other", "role": "", "received": 1, "results": {"InvalidAction": 1}},
        ])
    );
}

#[tokio::test]
async fn a_web_page_cannot_add_a_fault() {
    let world = World::new().await;
    let body = r#"{"code": "Throttling"}"#;
    let head = format!(
        "POST /_emulator/faults HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n",
        body.len()
    );
    assert_eq!(raw(&world.url, &head, body).await.status, 415);
    assert_eq!(world.web_identity(&world.token(|_| {}), &[]).await.status, 200);
}

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

#[tokio::test]
async fn all_mistakes_of_a_file_are_reported_together() {
    let config = Config {
        issuers: vec![
            IssuerConfig { url: "http://oidc.example.com".to_owned(), ..IssuerConfig::default() },
            IssuerConfig {
                url: ISSUER.to_owned(),
                jwks_file: Some("absent.json".into()),
                ..IssuerConfig::default()
            },
        ],
        roles: vec![
            RoleConfig {
                arn: "web".to_owned(),
                max_session_duration: Some("13h".to_owned()),
                ..RoleConfig::default()
            },
            role(
                WEB,
                json!({"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole",
                "Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}}),
            ),
        ],
        users: Vec::new(),
        faults: vec![Fault::default()],
        ..Config::default()
    };
    let mistakes =
        Emulator::bind(config, ([127, 0, 0, 1], 0).into()).await.map(|_| ()).unwrap_err().to_string();
    for expected in [
        "\"http://oidc.example.com\": url must be https",
        "cannot read absent.json",
        "role \"web\": arn must be",
        "max_session_duration must be between 1h and 12h",
        "role \"web\": trust_policy: the trust policy must be an object",
        "IpAddress aws:SourceIp",
        "fault 1: it does nothing",
    ] {
        assert!(mistakes.contains(expected), "{expected} in\n{mistakes}");
    }
}

#[tokio::test]
async fn the_command_reads_the_example_prints_its_url_and_stops_when_told() {
    let mut child = emulator_command(&here("example.yaml"));
    let url = first_line(&mut child);
    let answer = raw(&url, "GET /?Action=GetCallerIdentity&Version=2011-06-15 HTTP/1.1\r\n", "").await;
    answer.assert_refused(403, "MissingAuthenticationToken", "");
    let signed = client(&url, user(), TlsContext::default()).get_caller_identity().send().await.unwrap();
    assert_eq!(signed.arn(), Some(USER));
    let told = Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status().unwrap();
    assert!(told.success());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("GetCallerIdentity") && log.contains("MissingAuthenticationToken"), "{log}");
    assert!(!log.contains(USER_SECRET), "{log}");
}

#[test]
fn a_bad_file_ends_the_command_with_64() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bad.yaml");
    std::fs::write(&file, "users:\n  - arn: a\n    secret_access_key: hush\n    trust: {}\n").unwrap();
    let output = emulator_command(&file).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("bad.yaml") && said.contains("trust"), "{said}");
    assert!(!said.contains("hush"), "{said}");
}

/// The real AWS CLI, with nothing but the environment that a pod would have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_aws_cli_shows_the_assumed_role_and_the_user() {
    let Some(aws) = aws_cli() else { return };
    let world = World::new().await;
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, world.token(|_| {})).unwrap();
    let run = |variables: &[(&str, &str)]| {
        let mut command = Command::new(&aws);
        command.args(["sts", "get-caller-identity", "--query", "Arn", "--output", "text"]);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        command
            .envs(variables.iter().copied())
            .env("AWS_ENDPOINT_URL_STS", &world.url)
            .env("HOME", directory.path());
        command
            .env("AWS_REGION", "eu-west-1")
            .env("AWS_DEFAULT_REGION", "eu-west-1") // AWS CLI 1 reads only this
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("NO_PROXY", "127.0.0.1");
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        format!("{}{}", out.trim(), err.trim())
    };
    let role = run(&[
        ("AWS_ROLE_ARN", WEB),
        ("AWS_ROLE_SESSION_NAME", "cli"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
    ]);
    assert_eq!(role, "arn:aws:sts::111122223333:assumed-role/web/cli");
    let by_user = run(&[("AWS_ACCESS_KEY_ID", USER_KEY), ("AWS_SECRET_ACCESS_KEY", USER_SECRET)]);
    assert_eq!(by_user, USER);
    let wrong = run(&[("AWS_ACCESS_KEY_ID", USER_KEY), ("AWS_SECRET_ACCESS_KEY", "wrong")]);
    assert!(wrong.contains("An error occurred (SignatureDoesNotMatch)"), "{wrong}");
}

/// `ROLECALL_TEST_AWS_CLI`, else `aws` on the PATH. Without it this is no pass under CI, and is said elsewhere.
fn aws_cli() -> Option<PathBuf> {
    let named = std::env::var_os("ROLECALL_TEST_AWS_CLI").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        named.or_else(|| std::env::split_paths(&path).map(|dir| dir.join("aws")).find(|aws| aws.is_file()));
    if found.is_none() {
        let missing = "no AWS CLI: set ROLECALL_TEST_AWS_CLI or put aws on the PATH";
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        eprintln!("SKIPPED the_aws_cli_shows_the_assumed_role_and_the_user: {missing}");
    }
    found
}

fn roles_without_tokens() -> Vec<RoleConfig> {
    vec![role(WEB, json!({"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}))]
}

fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator").join(file)
}

fn tls() -> Tls {
    Tls::read(&here("cert.pem"), &here("key.pem")).unwrap()
}

fn emulator_command(config: &Path) -> std::process::Child {
    Command::new(env!("CARGO_BIN_EXE_rolecall"))
        .args(["emulator", "--listen", "127.0.0.1:0", "--config"])
        .arg(config)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn first_line(child: &mut std::process::Child) -> String {
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line)
        .unwrap();
    line.trim().to_owned()
}

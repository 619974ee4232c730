//! An emulator that serves, the issuer that it believes, its roles and its user, and ways to call it.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};

use aws_sdk_sts::config::retry::RetryConfig;
use aws_sdk_sts::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sts::error::ProvideErrorMetadata;
use aws_smithy_http_client::tls;
use aws_smithy_http_client::tls::TlsContext;
use jiff::Timestamp;
use rolecall::emulator::{Bound, Config, Emulator, Issuer, IssuerConfig, RoleConfig, Tls, UserConfig};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(crate) const ISSUER: &str = "https://oidc.example.com/a";
pub(crate) const NAME: &str = "oidc.example.com/a";
pub(crate) const PROVIDER: &str = "arn:aws:iam::111122223333:oidc-provider/oidc.example.com/a";
pub(crate) const WEB: &str = "arn:aws:iam::111122223333:role/team/web";
pub(crate) const DENIED: &str = "arn:aws:iam::111122223333:role/denied";
pub(crate) const LIST: &str = "arn:aws:iam::111122223333:role/list";
pub(crate) const CHAINED: &str = "arn:aws:iam::999988887777:role/chained";
pub(crate) const TAGGED: &str = "arn:aws:iam::111122223333:role/tagged";
pub(crate) const OF_SHOP: &str = "arn:aws:iam::111122223333:role/of-shop";
pub(crate) const USER: &str = "arn:aws:iam::111122223333:user/broker";
pub(crate) const USER_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
pub(crate) const USER_SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
pub(crate) const SUBJECT: &str = "system:serviceaccount:shop:web";

/// An emulator that serves, the issuer it believes, and a way to call it.
pub(crate) struct World {
    pub(crate) emulator: Emulator,
    pub(crate) url: String,
    pub(crate) issuer: Issuer,
}

impl World {
    pub(crate) async fn new() -> Self {
        let issuer = Issuer::generate(ISSUER);
        let keys = IssuerConfig { jwks: Some(json!(issuer.jwks_json())), ..IssuerConfig::default() };
        Self::with(issuer, keys).await
    }

    pub(crate) async fn with(issuer: Issuer, keys: IssuerConfig) -> Self {
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

    pub(crate) fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = claims();
        change(&mut claims);
        self.issuer.sign(&claims).expose_secret().to_owned()
    }

    pub(crate) async fn post(&self, params: &[(&str, &str)]) -> Answer {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
        let form = "Content-Type: application/x-www-form-urlencoded";
        raw(&self.url, &format!("POST / HTTP/1.1\r\n{form}\r\nContent-Length: {}\r\n", body.len()), &body)
            .await
    }

    pub(crate) async fn web_identity(&self, token: &str, extra: &[(&str, &str)]) -> Answer {
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
    pub(crate) async fn session(&self) -> Credentials {
        let answer = self.web_identity(&self.token(|_| {}), &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let of = |name: &str| answer.element(name);
        Credentials::new(of("AccessKeyId"), of("SecretAccessKey"), Some(of("SessionToken")), None, "test")
    }

    pub(crate) fn client(&self, credentials: Credentials) -> aws_sdk_sts::Client {
        client(&self.url, credentials, TlsContext::default())
    }

    pub(crate) async fn control(&self, method: &str, path: &str, body: &str) -> Answer {
        let length = body.len();
        let head = format!(
            "{method} /_emulator/{path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
        );
        raw(&self.url, &head, body).await
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn element(&self, name: &str) -> String {
        let (_, rest) =
            self.body.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("{name}: {}", self.body));
        rest.split_once(&format!("</{name}>")).unwrap().0.to_owned()
    }

    pub(crate) fn refusal(&self) -> (u16, String) {
        (self.status, self.element("Code"))
    }

    #[track_caller]
    pub(crate) fn assert_refused(&self, status: u16, code: &str, message: &str) {
        assert_eq!(self.refusal(), (status, code.to_owned()), "{}", self.body);
        assert!(self.element("Message").contains(message), "{}", self.body);
    }
}

pub(crate) fn claims() -> Value {
    let now = Timestamp::now().as_second();
    json!({"iss": ISSUER, "sub": SUBJECT, "aud": ["sts.amazonaws.com"], "iat": now, "nbf": now, "exp": now + 3600})
}

pub(crate) fn role(arn: &str, statement: Value) -> RoleConfig {
    let trust_policy = json!({"Version": "2012-10-17", "Statement": statement});
    RoleConfig { arn: arn.to_owned(), max_session_duration: Some("2h".to_owned()), trust_policy }
}

pub(crate) fn roles() -> Vec<RoleConfig> {
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

pub(crate) async fn bind(config: Config) -> Bound {
    Emulator::bind(config, ([127, 0, 0, 1], 0).into()).await.unwrap()
}

pub(crate) fn serve(bound: Bound) -> (Emulator, String) {
    let served = (bound.emulator(), bound.url());
    tokio::spawn(bound.serve());
    served
}

/// One request, byte for byte; the answer until the connection ends.
pub(crate) async fn raw(url: &str, head: &str, body: &str) -> Answer {
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

pub(crate) fn client(url: &str, credentials: Credentials, tls: TlsContext) -> aws_sdk_sts::Client {
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

pub(crate) fn user() -> Credentials {
    Credentials::new(USER_KEY, USER_SECRET, None, None, "test")
}

/// The code that a call of the SDK was refused with.
pub(crate) async fn code<T: std::fmt::Debug, E: ProvideErrorMetadata + std::fmt::Debug>(
    call: impl Future<Output = Result<T, aws_sdk_sts::error::SdkError<E>>>,
) -> String {
    call.await.unwrap_err().code().expect("the SDK found a code").to_owned()
}

pub(crate) fn roles_without_tokens() -> Vec<RoleConfig> {
    vec![role(WEB, json!({"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}))]
}

pub(crate) fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator").join(file)
}

pub(crate) fn tls() -> Tls {
    Tls::read(&here("cert.pem"), &here("key.pem")).unwrap()
}

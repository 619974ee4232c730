//! Tokens that a test signs itself, and the emulator's answer to them.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::SocketAddr;

use jiff::Timestamp;
use rolecall::emulator::{Config, Emulator, IssuerConfig, RoleConfig};
use serde_json::{Value, json};

use crate::http;

pub(crate) const ROLE: &str = "arn:aws:iam::111122223333:role/web";
pub(crate) const ACCOUNT: &str = "111122223333";

/// The claims of a ServiceAccount's token, `account` being `NAMESPACE/NAME`.
pub(crate) fn claims(issuer: &str, account: &str, audience: &str) -> Value {
    let now = Timestamp::now().as_second();
    let subject = format!("system:serviceaccount:{}", account.replace('/', ":"));
    json!({"iss": issuer, "sub": subject, "aud": [audience], "iat": now, "nbf": now, "exp": now + 3600})
}

/// An emulator whose one role has `trust_policy`.
pub(crate) struct Sts(SocketAddr);

impl Sts {
    pub(crate) async fn with(issuers: Vec<IssuerConfig>, trust_policy: Value) -> Self {
        let roles = vec![RoleConfig { arn: ROLE.into(), trust_policy, ..RoleConfig::default() }];
        let config = Config { issuers, roles, ..Config::default() };
        let bound = Emulator::bind(config, ([127, 0, 0, 1], 0).into()).await.unwrap();
        let addr = bound.addr();
        tokio::spawn(bound.serve());
        Self(addr)
    }

    /// `OK`, or STS's error code.
    pub(crate) async fn assume(&self, token: &str) -> String {
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs([
                ("Action", "AssumeRoleWithWebIdentity"),
                ("Version", "2011-06-15"),
                ("RoleArn", ROLE),
                ("RoleSessionName", "shop.web"),
                ("WebIdentityToken", token),
            ])
            .finish();
        let request = format!(
            "POST / HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            self.0,
            body.len()
        );
        let answer = http::get("127.0.0.1", self.0, &request).await;
        if answer.status == 200 {
            return "OK".to_owned();
        }
        let code = answer.body.split("<Code>").nth(1).and_then(|rest| rest.split("</Code>").next());
        code.unwrap_or_else(|| panic!("{answer:?}")).to_owned()
    }
}

//! STSs that are not AWS's regional ones: where calls go and by which way, what answers are understood, and what is said of
//! those that are not.

#[path = "support/pki.rs"]
mod pki;
#[path = "support/stub.rs"]
mod stub;

#[path = "other_sts/answers.rs"]
mod answers;
#[path = "other_sts/endpoints.rs"]
mod endpoints;
#[path = "other_sts/proxies.rs"]
mod proxies;

use std::collections::BTreeMap;
use std::time::Duration;

use rolecall::credentials::Credentials;
use rolecall::identity::pods::ServiceAccountName;
use rolecall::role::{Defaults, RolePlan};
use rolecall::sts::connector::CaBundle;
use rolecall::sts::endpoint::Settings;
use rolecall::sts::{Error, Sts as _, StsClient};
use rolecall::token::BoundToken;

const ROLE: &str = "arn:aws:iam::111122223333:role/web";

/// An answer that AWS could give, of a session that begins now.
fn granted() -> String {
    let expiration = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + 3600).unwrap();
    xml(
        200,
        &format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIAEXAMPLE</AccessKeyId>\
             <SecretAccessKey>secret</SecretAccessKey><SessionToken>session</SessionToken>\
             <Expiration>{expiration}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
             </AssumeRoleWithWebIdentityResponse>"
        ),
    )
}

/// No `Date`: not every STS sends one.
fn xml(status: u16, body: &str) -> String {
    answer(status, "content-type: text/xml\r\n", body)
}

fn answer(status: u16, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} Whatever\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// An STS of one's own.
fn own(url: impl Into<String>) -> Settings {
    Settings { url: Some(url.into()), ..Settings::default() }
}

fn believing(url: impl Into<String>, authority: &pki::Authority) -> Settings {
    Settings { ca_bundle: Some(CaBundle::read(authority.bundle()).unwrap()), ..own(url) }
}

fn plan(role: &str, annotations: &[(&str, &str)]) -> RolePlan {
    let account = ServiceAccountName { namespace: "shop".into(), name: "web".into() };
    let mut annotations: BTreeMap<String, String> =
        annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    annotations.insert("rolecall.dev/role-arn".into(), role.into());
    RolePlan::from_annotations(&account, "uid", &annotations, &Defaults::of_node("node")).unwrap()
}

async fn ask(client: &StsClient, plan: &RolePlan) -> Result<Credentials, Error> {
    let token = BoundToken::new("eyJhbGciOi.eyJzdWIi.c2lnbmF0dXJl".into(), Duration::from_secs(600));
    client.assume_role_with_web_identity(plan, &token).await
}

/// What comes of one call.
async fn call(settings: Settings) -> Result<Credentials, Error> {
    ask(&StsClient::new("eu-west-1", settings).unwrap(), &plan(ROLE, &[])).await
}

/// What is said of an STS that is away.
#[track_caller]
fn away(result: Result<Credentials, Error>) -> String {
    match result {
        Err(Error::Away(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// rustls asks for it where two crypto libraries could be linked.
#[ctor::ctor(unsafe)]
fn provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

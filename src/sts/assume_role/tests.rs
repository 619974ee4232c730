//! Both hops over a real socket, to an STS that checks tokens, signatures, trust policies and clocks.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::*;
use crate::emulator::{Config, Emulator, Issuer, IssuerConfig, RoleConfig};
use crate::fakes::log::Log;
use crate::identity::pods::ServiceAccountName;
use crate::role::{Base, Defaults};
use crate::sts::Sts;
use crate::sts::endpoint::Settings;
use crate::token::BoundToken;

const ISSUER: &str = "https://oidc.example.com/a";
const FIRST: &str = "arn:aws:iam::111122223333:role/first";
const SECOND: &str = "arn:aws:iam::999988887777:role/team/second";

struct World {
    emulator: Emulator,
    issuer: Issuer,
    client: StsClient,
}

impl World {
    async fn new() -> Self {
        let issuer = Issuer::generate(ISSUER);
        let provider = "arn:aws:iam::111122223333:oidc-provider/oidc.example.com/a";
        let document = |statement| json!({"Version": "2012-10-17", "Statement": statement});
        let role = |arn: &str, statement| RoleConfig {
            arn: arn.into(),
            trust_policy: document(statement),
            ..RoleConfig::default()
        };
        let config = Config {
            issuers: vec![IssuerConfig {
                url: ISSUER.into(),
                jwks: Some(json!(issuer.jwks_json())),
                ..IssuerConfig::default()
            }],
            roles: vec![
                role(
                    FIRST,
                    json!({"Effect": "Allow", "Principal": {"Federated": provider}, "Action": "sts:AssumeRoleWithWebIdentity"}),
                ),
                role(
                    SECOND,
                    json!({"Effect": "Allow", "Principal": {"AWS": FIRST},
                    "Action": ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"],
                    "Condition": {"StringEquals": {
                        "sts:ExternalId": "tenant:42",
                        "sts:RoleSessionName": "shop.web",
                        "sts:SourceIdentity": "shop@web",
                        "aws:RequestTag/kubernetes-namespace": "shop",
                        "aws:RequestTag/kubernetes-node": "node-1",
                    }}}),
                ),
            ],
            ..Config::default()
        };
        let bound = Emulator::bind(config, ([127, 0, 0, 1], 0).into()).await.unwrap();
        let (emulator, url) = (bound.emulator(), bound.url());
        tokio::spawn(bound.serve());
        let client = StsClient::new("eu-west-1", Settings { url: Some(url), ..Settings::default() }).unwrap();
        Self { emulator, issuer, client }
    }

    /// The first hop's keys, by a token of the moment.
    async fn first(&self, plan: &RolePlan, ahead: SignedDuration) -> Credentials {
        let now = (Timestamp::now() + ahead).as_second();
        let claims = json!({"iss": ISSUER, "sub": "system:serviceaccount:shop:web", "aud": ["sts.amazonaws.com"],
            "iat": now, "nbf": now, "exp": now + 600});
        let token = BoundToken::new(self.issuer.sign(&claims), Duration::from_secs(600));
        self.client.assume_role_with_web_identity(plan.before().unwrap(), &token).await.unwrap()
    }

    async fn second(&self, plan: &RolePlan, first: Credentials) -> Result<Credentials, Error> {
        let Credentials { access_key_id, secret_access_key, session_token, .. } = first;
        let keys = Keys { access_key_id, secret_access_key, session_token: Some(session_token) };
        self.client.assume_role(plan, &keys).await
    }
}

fn plan(more: &[(&str, &str)]) -> RolePlan {
    let all = [
        ("rolecall.dev/role-arn", FIRST),
        ("rolecall.dev/assume-role-arn", SECOND),
        ("rolecall.dev/external-id", "tenant:42"),
        ("rolecall.dev/source-identity", "{namespace}@{service-account}"),
        ("rolecall.dev/session-tags", "kubernetes-namespace,kubernetes-node:transitive"),
        ("rolecall.dev/policy-arns", "arn:aws:iam::aws:policy/ReadOnlyAccess"),
        ("rolecall.dev/session-duration", "30m"),
    ];
    let annotations =
        all.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let account = ServiceAccountName { namespace: "shop".into(), name: "web".into() };
    RolePlan::from_annotations(&account, "uid-1", &annotations, &Defaults::of_node("node-1")).unwrap()
}

#[tokio::test]
async fn sts_gets_all_that_the_plan_says() {
    let (world, plan) = (World::new().await, plan(&[]));
    let first = world.first(&plan, SignedDuration::ZERO).await;
    let second = world.second(&plan, first).await.unwrap();
    assert!((1790..=1800).contains(&second.life.as_secs()), "{:?}", second.life);
    assert!(second.packed_policy_percent.is_some_and(|percent| percent > 0), "tags and policies take space");
    assert!(second.request_id.is_some());
}

#[tokio::test]
async fn what_the_trust_policy_does_not_find_is_refused() {
    let world = World::new().await;
    for (name, value) in [
        ("rolecall.dev/external-id", "tenant:43"),
        ("rolecall.dev/source-identity", "someone"),
        ("rolecall.dev/session-tags", "kubernetes-node"),
        ("rolecall.dev/session-name", "another"),
    ] {
        let plan = plan(&[(name, value)]);
        let first = world.first(&plan, SignedDuration::ZERO).await;
        let err = world.second(&plan, first).await.unwrap_err();
        assert_eq!(err.code(), "StsDenied", "{name}");
        assert!(err.to_string().contains(&format!("{SECOND} to {FIRST}: AccessDenied")), "{err}");
    }
}

#[tokio::test]
async fn a_node_whose_clock_is_hours_off_signs_by_stss() {
    for hours in [10, -10] {
        let (world, plan) = (World::new().await, plan(&[]));
        let ahead = SignedDuration::from_hours(hours);
        world.emulator.move_clock(ahead);
        let first = world.first(&plan, ahead).await;
        world.second(&plan, first).await.unwrap();
    }
}

#[tokio::test]
async fn keys_that_sts_does_not_know_or_that_have_ended_are_spent() {
    let (world, plan) = (World::new().await, plan(&[]));
    let first = world.first(&plan, SignedDuration::ZERO).await;
    let err = World::new().await.second(&plan, first).await.unwrap_err();
    assert!(err.keys_are_spent(), "{err}");
    let first = world.first(&plan, SignedDuration::ZERO).await;
    world.emulator.move_clock(SignedDuration::from_secs(3601));
    // A call that tells the time.
    world.first(&plan, SignedDuration::from_secs(3601)).await;
    let err = world.second(&plan, first).await.unwrap_err();
    assert!(err.keys_are_spent(), "{err}");
}

/// As an instance profile's are: the plan cannot know, since a user's own keys may have twelve hours.
#[tokio::test]
async fn what_base_credentials_that_are_a_session_cut_to_an_hour_is_told() {
    let (log, _guard) = Log::listen();
    let (world, mut plan) = (World::new().await, plan(&[]));
    let first = world.first(&plan, SignedDuration::ZERO).await;
    let By::AssumeRole { with, .. } = &mut plan.by else { panic!("{plan:?}") };
    *with = Base::Agent;
    plan.session_duration = Duration::from_secs(3 * 3600);
    let second = world.second(&plan, first).await.unwrap();
    assert!((3590..=3600).contains(&second.life.as_secs()), "{:?}", second.life);
    let said = log.text();
    assert!(said.contains("cut to an hour") && said.contains("asked_s=10800"), "{said}");
    assert!(said.contains(&format!("role.arn={SECOND}")), "{said}");
}

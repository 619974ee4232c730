//! Annotations in, plan or refusal out.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::annotations::*;
use super::*;
use crate::identity::pods::{Pod, PodUid};

const ROLE: &str = "arn:aws:iam::123456789012:role/demo";
const TEAM: &str = "arn:aws:iam::999988887777:role/team";

fn account() -> ServiceAccountName {
    ServiceAccountName { namespace: "shop".into(), name: "web".into() }
}

fn plan(annotations: &[(&str, &str)]) -> Result<RolePlan, Error> {
    let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    RolePlan::from_annotations(&account(), "uid-1", &annotations, &Defaults::of_node("node-1"))
}

fn code(annotations: &[(&str, &str)]) -> &'static str {
    plan(annotations).unwrap_err().code()
}

#[test]
fn the_role_alone_is_a_whole_plan() {
    let plan = plan(&[(ROLE_ARN, ROLE)]).unwrap();
    assert_eq!(plan.role.as_str(), ROLE);
    assert_eq!(plan.session_name.as_str(), "shop.web");
    assert_eq!(plan.session_duration, Duration::from_secs(3600));
    let (audience, token_life) = ("sts.amazonaws.com".into(), Duration::from_secs(3600));
    assert_eq!(
        plan.by,
        By::WebIdentity { audience, token_life, global_endpoint: false, claims: Claims::default() }
    );
}

#[test]
fn our_annotation_wins_over_irsas() {
    let plan = plan(&[(EKS_ROLE_ARN, "arn:aws:iam::123456789012:role/irsa"), (ROLE_ARN, ROLE)]).unwrap();
    assert_eq!(plan.role.as_str(), ROLE);
}

#[test]
fn no_annotation_is_no_role() {
    assert_eq!(code(&[]), "NoRole");
    assert_eq!(code(&[("app", "web")]), "NoRole");
}

#[test]
fn an_annotation_that_is_not_understood_is_never_no_role() {
    assert_eq!(code(&[("rolecall.dev/rol-arn", ROLE)]), "InvalidPlan");
    assert_eq!(code(&[("rolecall.dev/role-arn.Team", ROLE)]), "InvalidPlan");
    assert_eq!(code(&[("rolecall.dev/policy-arns.team", "arn:aws:iam::aws:policy/A")]), "InvalidPlan");
}

#[test]
fn a_malformed_arn_is_named_with_its_value() {
    for value in [
        "",
        "demo",
        "arn:aws:iam::12:role/demo",
        "arn:aws:iam::1234567890123:role/demo",
        "arn:aws:iam::123456789o12:role/demo",
        "arn:aws:iam::tenant-1:role/demo",
        "arn:aws:s3:::bucket/role/demo",
        "arn:aws:iam::123456789012:user/demo",
    ] {
        let err = plan(&[(ROLE_ARN, value)]).unwrap_err();
        assert_eq!(err.code(), "InvalidRole");
        assert!(
            err.to_string().contains("shop/web") && err.to_string().contains(&format!("{value:?}")),
            "{err}"
        );
    }
}

#[test]
fn role_arns_of_every_sts_pass() {
    for value in [
        "arn:aws-cn:iam::123456789012:role/demo",
        "arn:aws-us-gov:iam::123456789012:role/path/demo",
        "arn:minio:iam:::role/dummy-internal",
        "arn:aws:iam:::role/ceph",
        "arn:aws:iam::tenant_1:role/ceph",
        "arn:aws:iam::RGW33567154695143645:role/ceph",
    ] {
        assert_eq!(plan(&[(ROLE_ARN, value)]).unwrap().role.as_str(), value);
    }
    for role in ["arn:aws:iam:::role/ceph", "arn:aws:iam::RGW33567154695143645:role/ceph"] {
        assert_eq!(RoleArn::parse(role).unwrap().account(), None, "SDKs would build host names of it");
    }
    assert_eq!(RoleArn::parse(ROLE).unwrap().account(), Some("123456789012"));
}

#[test]
fn what_is_not_understood_grants_nothing() {
    for name in [
        "rolecall.dev/next-year",
        "rolecall.dev/role-arn.Two",
        "rolecall.dev/role-arn.",
        "rolecall.dev/session-name.nobody",
        "rolecall.dev/not-before.two",
    ] {
        assert_eq!(code(&[(ROLE_ARN, ROLE), (name, "x")]), "InvalidPlan", "{name}");
    }
}

#[test]
fn no_annotation_leads_to_a_token_for_the_api_server() {
    let server = "https://kubernetes.default.svc.cluster.local";
    for audience in [server, "", " ", "*", &format!("{AUDIENCE},{server}")] {
        let err = plan(&[(EKS_ROLE_ARN, ROLE), (EKS_AUDIENCE, audience)]).unwrap_err();
        assert_eq!(err.code(), "InvalidPlan", "{audience:?}");
        assert!(err.to_string().contains("--allow-audience"), "{err}");
    }
}

#[test]
fn settings_out_of_bounds_are_refused() {
    for (name, value) in [
        (EKS_AUDIENCE, "https://kubernetes.default.svc"),
        (EKS_TOKEN_EXPIRATION, "599"),
        (EKS_TOKEN_EXPIRATION, "1h"),
        (SESSION_DURATION, "3600"),
        (SESSION_DURATION, "13h"),
        (SESSION_NAME, "{who}"),
        (SESSION_NAME, "{cluster}"),
        (EKS_REGIONAL, "yes"),
        (NOT_BEFORE, "yesterday"),
        (POLICY_ARNS, "ReadOnlyAccess"),
    ] {
        assert_eq!(code(&[(ROLE_ARN, ROLE), (name, value)]), "InvalidPlan", "{name}={value}");
    }
}

#[test]
fn irsas_day_long_token_is_cut_to_an_hour() {
    for (asked, seconds) in [("86400", 3600), ("900", 900)] {
        let By::WebIdentity { token_life, .. } =
            plan(&[(ROLE_ARN, ROLE), (EKS_TOKEN_EXPIRATION, asked)]).unwrap().by
        else {
            panic!("one hop");
        };
        assert_eq!(token_life, Duration::from_secs(seconds));
    }
}

#[test]
fn every_setting_that_sts_sees_makes_another_key() {
    let base = plan(&[(ROLE_ARN, ROLE)]).unwrap().key();
    for (name, value) in [
        (SESSION_NAME, "other"),
        (SESSION_DURATION, "2h"),
        (POLICY_ARNS, "arn:aws:iam::aws:policy/ReadOnlyAccess"),
        (EKS_TOKEN_EXPIRATION, "900"),
        (EKS_REGIONAL, "false"),
    ] {
        assert_ne!(plan(&[(ROLE_ARN, ROLE), (name, value)]).unwrap().key(), base, "{name}");
    }
    let annotations = BTreeMap::from([(ROLE_ARN.to_owned(), ROLE.to_owned())]);
    let reborn =
        RolePlan::from_annotations(&account(), "uid-2", &annotations, &Defaults::of_node("node-1")).unwrap();
    assert_ne!(reborn.key(), base, "a ServiceAccount made again under its old name");
    assert_eq!(plan(&[(ROLE_ARN, ROLE), (NOT_BEFORE, "2026-11-22T05:00:00Z")]).unwrap().key(), base);
}

#[test]
fn not_before_revokes_once_its_moment_has_come() {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let plan = plan(&[(ROLE_ARN, ROLE), (NOT_BEFORE, "2026-11-22T05:00:00Z")]).unwrap();
    assert!(plan.revokes(at("2026-11-22T04:59:59Z"), at("2026-11-22T05:00:01Z")));
    assert!(!plan.revokes(at("2026-11-22T05:00:00Z"), at("2026-11-22T05:00:01Z")));
    assert!(
        !plan.revokes(at("2026-11-22T04:00:00Z"), at("2026-11-22T04:59:00Z")),
        "its moment is yet to come"
    );
    let (later, now) = (at("2026-11-22T06:00:00Z"), at("2026-11-22T05:00:01Z"));
    assert!(plan.revokes(later, now), "by a clock that was ahead, and has been set back");
    assert!(!plan.revokes(later, later));
}

#[test]
fn a_session_named_for_its_pod_is_the_pods_own() {
    let plan = Arc::new(plan(&[(ROLE_ARN, ROLE), (SESSION_NAME, "{namespace}.{pod}")]).unwrap());
    let pod = |name: &str, uid: &str| Pod {
        uid: PodUid::new(uid),
        name: name.into(),
        service_account: account(),
        ..crate::fakes::pod("web", "192.0.2.1")
    };
    let (a, b) = (plan.for_pod(&pod("a", "1")), plan.for_pod(&pod("b", "2")));
    assert_eq!(a.session_name.as_str(), "shop.a");
    assert_eq!(a.pod, Some(PodUid::new("1")));
    assert_ne!(a.key(), b.key());
}

#[test]
fn long_names_are_cut_without_becoming_one() {
    let template = Template::parse("{namespace}.{service-account}", "n", "").unwrap();
    let long = |last: &str| ServiceAccountName {
        namespace: "n".repeat(63).into(),
        name: format!("account-{last}").into(),
    };
    let (a, b) = (template.render(&long("a"), None), template.render(&long("b"), None));
    assert_eq!(a.as_str().len(), 64);
    assert_ne!(a, b);
    assert_eq!(a, template.render(&long("a"), None));
    assert_eq!(
        Template::parse("x", "n", "").unwrap().render(&account(), None).as_str().len(),
        10,
        "STS wants at least two"
    );
}

#[test]
fn a_cut_name_is_nobodys_whole_name() {
    let template = Template::parse("{namespace}.{service-account}", "n", "").unwrap();
    let name = |name: &str| {
        let account = ServiceAccountName { namespace: "shop".into(), name: name.into() };
        template.render(&account, None).as_str().to_owned()
    };
    let cut = name(&"long".repeat(20));
    let claimed = name(cut.strip_prefix("shop.").unwrap());
    assert_ne!(claimed, cut);
    assert_eq!(claimed.len(), 64);
    // Others of that length are what they were.
    for last in ["-0123456", "-0123456g", "-a0b1c2d3e"] {
        let whole = format!("{}{last}", "x".repeat(64 - "shop.".len() - last.len()));
        assert_eq!(name(&whole), format!("shop.{whole}"));
    }
}

#[test]
fn another_role_or_audience_is_another_key() {
    let annotations = |role: &str, audience: &str| {
        [(ROLE_ARN, role), (EKS_AUDIENCE, audience)].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    };
    let defaults = Defaults {
        source: RoleSource::default(),
        allowed_audiences: vec!["sts.amazonaws.com".into(), "minio".into()],
        ..Defaults::of_node("node-1")
    };
    let key = |role: &str, audience: &str| {
        RolePlan::from_annotations(&account(), "uid-1", &annotations(role, audience), &defaults)
            .unwrap()
            .key()
    };
    let base = key(ROLE, "sts.amazonaws.com");
    assert_ne!(key("arn:aws:iam::123456789012:role/other", "sts.amazonaws.com"), base);
    assert_ne!(key(ROLE, "minio"), base);
}

#[test]
fn a_role_that_the_operator_does_not_allow_is_refused() {
    let policy = Policy::parse(&["shop=arn:aws:iam::123456789012:role/shop-*".into()]).unwrap();
    let defaults = Defaults { policy, ..Defaults::of_node("node-1") };
    let of = |role: &str| {
        let annotations = BTreeMap::from([(ROLE_ARN.to_owned(), role.to_owned())]);
        RolePlan::from_annotations(&account(), "uid-1", &annotations, &defaults)
    };
    assert!(of("arn:aws:iam::123456789012:role/shop-web").is_ok());
    assert_eq!(of(ROLE).unwrap_err().code(), "RoleNotAllowed");
}

#[test]
fn the_bounds_themselves_are_within() {
    let ten = ["arn:aws:iam::aws:policy/ReadOnlyAccess"; 10].join(",");
    for (name, value) in [
        (EKS_TOKEN_EXPIRATION, "600"),
        (SESSION_DURATION, "15m"),
        (SESSION_DURATION, "12h"),
        (POLICY_ARNS, &ten),
    ] {
        assert!(plan(&[(ROLE_ARN, ROLE), (name, value)]).is_ok(), "{name}={value}");
    }
    let eleven = format!("{ten},arn:aws:iam::aws:policy/ReadOnlyAccess");
    assert_eq!(code(&[(ROLE_ARN, ROLE), (POLICY_ARNS, &eleven)]), "InvalidPlan");
}

#[path = "tests/by_agent.rs"]
mod by_agent;
#[path = "tests/costs.rs"]
mod costs;
#[path = "tests/hops.rs"]
mod hops;

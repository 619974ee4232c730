//! `--sts-mode=assume-role`: what the same annotations ask for where the agent's own credentials make the first hop.

use super::*;

fn defaults() -> Defaults {
    Defaults { by_agent: true, ..Defaults::of_node("node-1") }
}

fn by_agent(annotations: &[(&str, &str)]) -> Result<RolePlan, Error> {
    let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    RolePlan::from_annotations(&account(), "uid-1", &annotations, &defaults())
}

#[test]
fn the_role_is_assumed_by_the_agent_under_the_callers_name() {
    let plan = by_agent(&[(ROLE_ARN, ROLE), (SESSION_DURATION, "12h")]).unwrap();
    assert!(matches!(&plan.by, By::AssumeRole { with: Base::Agent, .. }), "{plan:?}");
    assert_eq!((plan.before(), plan.audience()), (None, None));
    assert_eq!(plan.session_name.as_str(), "shop.web");
    // A user's own keys may have it; what base credentials that are a session allow is cut when they are used.
    assert_eq!((plan.session_duration, plan.cut_from), (Duration::from_secs(12 * 3600), None));
}

#[test]
fn what_assume_role_takes_goes_to_the_last_hop() {
    let settings = [
        (ROLE_ARN, ROLE),
        (EXTERNAL_ID, "shop-1"),
        (SESSION_TAGS, "kubernetes-namespace"),
        (SOURCE_IDENTITY, "{namespace}.{service-account}@{node}"),
    ];
    let taken = |plan: &RolePlan| match &plan.by {
        By::AssumeRole { external_id, tags, source_identity, .. } => {
            (external_id.is_some(), tags.len(), source_identity.is_some())
        }
        By::WebIdentity { .. } => panic!("{plan:?}"),
    };
    let one = by_agent(&settings).unwrap();
    assert_eq!(taken(&one), (true, 1, true));
    let two = by_agent(&[&settings[..], &[(ASSUME_ROLE_ARN, TEAM)]].concat()).unwrap();
    let two = Arc::new(two);
    assert_eq!(two.hops().map(|hop| hop.role.as_str()).collect::<Vec<_>>(), [TEAM, ROLE]);
    assert_eq!((taken(&two), taken(two.before().unwrap())), ((true, 1, true), (false, 0, false)));
    assert!(matches!(&two.before().unwrap().by, By::AssumeRole { with: Base::Agent, .. }));
    assert_eq!(two.session_duration, Duration::from_secs(3600));
}

#[test]
fn a_tenant_does_not_choose_the_name_by_which_alone_the_caller_is_known() {
    let err = by_agent(&[(ROLE_ARN, ROLE), (SESSION_NAME, "other.web")]).unwrap_err();
    assert_eq!(err.code(), "InvalidPlan");
    assert!(err.to_string().contains("--session-name"), "{err}");
    plan(&[(ROLE_ARN, ROLE), (SESSION_NAME, "other.web")]).unwrap();
}

#[test]
fn a_tenant_does_not_choose_a_source_identity_that_is_somebody_elses() {
    for text in ["me", "shop.admin", "{namespace}.admin", "{namespace}.{pod}", "{pod}"] {
        for more in [vec![], vec![(ASSUME_ROLE_ARN, TEAM)]] {
            let all = [&[(ROLE_ARN, ROLE), (SOURCE_IDENTITY, text)][..], &more].concat();
            let err = by_agent(&all).unwrap_err();
            assert_eq!(err.code(), "InvalidPlan", "{text}");
            assert!(err.to_string().contains("must be {namespace}.{service-account}"), "{err}");
        }
        // The web identity of the first hop is proved, and its role's policy says what may be set.
        plan(&[(ROLE_ARN, ROLE), (ASSUME_ROLE_ARN, TEAM), (SOURCE_IDENTITY, text)]).unwrap();
    }
}

#[test]
fn what_shapes_a_token_is_without_effect_where_there_is_none() {
    let settings = [(EKS_AUDIENCE, "any"), (EKS_TOKEN_EXPIRATION, "soon"), (EKS_REGIONAL, "false")];
    let bare = by_agent(&[(EKS_ROLE_ARN, ROLE)]).unwrap();
    for setting in settings {
        assert_eq!(by_agent(&[(EKS_ROLE_ARN, ROLE), setting]).unwrap().key(), bare.key(), "{setting:?}");
    }
}

#[test]
fn every_hop_must_be_allowed_and_the_way_there_is_part_of_the_key() {
    let annotations: BTreeMap<String, String> =
        [(ROLE_ARN, ROLE), (ASSUME_ROLE_ARN, TEAM)].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let code = |allowed: &[&str]| {
        let entries: Vec<String> = allowed.iter().map(|role| format!("shop={role}")).collect();
        let defaults = Defaults { policy: Policy::parse(&entries).unwrap(), ..defaults() };
        let plan = RolePlan::from_annotations(&account(), "uid-1", &annotations, &defaults);
        plan.map_or_else(|err| err.code(), |_| "ok")
    };
    assert_eq!(
        (code(&[ROLE]), code(&[TEAM]), code(&[ROLE, TEAM])),
        ("RoleNotAllowed", "RoleNotAllowed", "ok")
    );
    assert_ne!(by_agent(&[(ROLE_ARN, ROLE)]).unwrap().key(), plan(&[(ROLE_ARN, ROLE)]).unwrap().key());
    let chained = [(ROLE_ARN, ROLE), (ASSUME_ROLE_ARN, TEAM)];
    assert_ne!(by_agent(&chained).unwrap().key(), plan(&chained).unwrap().key());
    assert_ne!(by_agent(&chained).unwrap().key(), by_agent(&[(ROLE_ARN, TEAM)]).unwrap().key());
}

//! Two hops, and several roles: annotations in, plans or refusals out.

use super::*;

fn hops(plan: &RolePlan) -> (&RolePlan, &RolePlan) {
    (plan.before().expect("a hop before"), plan)
}

/// External id, tags with whether they are transitive, source identity.
type Assumed<'p> = (Option<&'p str>, Vec<(&'p str, &'p str, bool)>, Option<&'p str>);

fn assumed(plan: &RolePlan) -> Assumed<'_> {
    let By::AssumeRole { external_id, tags, source_identity, .. } = &plan.by else { panic!("{:?}", plan.by) };
    let tags = tags.iter().map(|tag| (tag.key(), tag.value(), tag.transitive)).collect();
    (external_id.as_deref(), tags, source_identity.as_ref().map(session_name::Name::as_str))
}

#[test]
fn a_second_role_is_had_by_the_session_of_the_first() {
    let plan = plan(&[
        (ROLE_ARN, ROLE),
        (ASSUME_ROLE_ARN, TEAM),
        (POLICY_ARNS, "arn:aws:iam::aws:policy/ReadOnlyAccess"),
        (NOT_BEFORE, "2026-11-22T05:00:00Z"),
        (EXTERNAL_ID, "tenant/42"),
        (SESSION_TAGS, "kubernetes-namespace, kubernetes-service-account:transitive,kubernetes-node"),
        (SOURCE_IDENTITY, "{namespace}@x"),
    ])
    .unwrap();
    let (first, second) = hops(&plan);
    assert_eq!((first.role.as_str(), second.role.as_str()), (ROLE, TEAM));
    assert_eq!(first.session_name, second.session_name);
    // What narrows the session is for the one that is given out; revocation is for both.
    assert_eq!((first.policy_arns.len(), second.policy_arns.len()), (0, 1));
    assert!(first.not_before.is_some() && first.not_before == second.not_before);
    let tags = vec![
        ("kubernetes-namespace", "shop", false),
        ("kubernetes-service-account", "web", true),
        ("kubernetes-node", "node-1", false),
    ];
    assert_eq!(assumed(second), (Some("tenant/42"), tags, Some("shop@x")));
    assert_eq!(second.audience().map(|audience| &**audience), Some("sts.amazonaws.com"));
}

#[test]
fn a_chains_session_is_cut_to_an_hour_and_its_first_hop_has_an_hour_of_its_own() {
    for (asked, second, cut) in [("12h", 3600, Some(12 * 3600)), ("20m", 1200, None), ("1h", 3600, None)] {
        let plan = plan(&[(ROLE_ARN, ROLE), (ASSUME_ROLE_ARN, TEAM), (SESSION_DURATION, asked)]).unwrap();
        let seconds = |hop: &RolePlan| hop.session_duration.as_secs();
        assert_eq!((seconds(hops(&plan).0), seconds(&plan)), (3600, second));
        assert_eq!(plan.cut_from.map(|asked| asked.as_secs()), cut);
    }
    let alone = plan(&[(ROLE_ARN, ROLE), (SESSION_DURATION, "12h")]).unwrap();
    assert_eq!((alone.session_duration.as_secs(), alone.cut_from), (12 * 3600, None));
}

#[test]
fn what_only_assume_role_takes_is_refused_without_a_second_hop() {
    for (name, value) in
        [(EXTERNAL_ID, "tenant"), (SESSION_TAGS, "kubernetes-namespace"), (SOURCE_IDENTITY, "{namespace}")]
    {
        for second in [None, Some((ASSUME_ROLE_ARN, ROLE))] {
            let annotations: Vec<_> = [(ROLE_ARN, ROLE), (name, value)].into_iter().chain(second).collect();
            let err = plan(&annotations).unwrap_err();
            assert_eq!(err.code(), "InvalidPlan");
            assert!(err.to_string().contains(name) && err.to_string().contains(ASSUME_ROLE_ARN), "{err}");
        }
    }
}

/// With `--token-source=issuer`.
fn signed(annotations: &[(&str, &str)]) -> Result<RolePlan, Error> {
    let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let defaults = Defaults { claims_in_tokens: true, ..Defaults::of_node("node-1") };
    RolePlan::from_annotations(&account(), "uid-1", &annotations, &defaults)
}

fn claims(plan: &RolePlan) -> &Claims {
    let By::WebIdentity { claims, .. } = &plan.by else { panic!("{plan:?}") };
    claims
}

#[test]
fn a_token_of_the_issuer_takes_tags_and_a_source_identity_without_a_second_hop() {
    let plan = signed(&[
        (ROLE_ARN, ROLE),
        (SESSION_TAGS, "kubernetes-namespace:transitive,kubernetes-service-account"),
        (SOURCE_IDENTITY, "{namespace}.{service-account}"),
    ]);
    let plan = plan.unwrap();
    let asked: Vec<String> = claims(&plan).tags.iter().map(tags::Tag::asked).collect();
    assert_eq!(asked, ["kubernetes-namespace:transitive", "kubernetes-service-account"]);
    assert_eq!(claims(&plan).source_identity.as_ref().unwrap().as_str(), "shop.web");
    assert!(!plan.per_pod, "one token for all of its pods");
    let refused = signed(&[(ROLE_ARN, ROLE), (EXTERNAL_ID, "tenant")]).unwrap_err();
    assert_eq!(refused.code(), "InvalidPlan", "no token has one");
    let chained =
        signed(&[(ROLE_ARN, ROLE), (ASSUME_ROLE_ARN, TEAM), (SESSION_TAGS, "kubernetes-namespace")]);
    let chained = chained.unwrap();
    assert!(claims(chained.before().unwrap()).is_empty(), "they are the second hop's");
}

#[test]
fn a_source_identity_that_the_issuer_signs_is_made_of_what_is_proved() {
    for text in [
        "root",
        "{namespace}",
        "{namespace}.admin",
        "admin.{namespace}",
        "{service-account}.{namespace}",
        // The tenant writes the pod's name: shop/junk with a pod named admin would be shop.admin.
        "{namespace}.{pod}",
        "{namespace}.{service-account}.{pod}",
        "{namespace}.{service-account}-{node}",
        "{namespace}.{service-account}{pod}",
        "{namespace}.{service-account}@admin",
    ] {
        let refused = signed(&[(ROLE_ARN, ROLE), (SOURCE_IDENTITY, text)]).unwrap_err();
        assert!(refused.to_string().contains("must be {namespace}.{service-account}"), "{refused}");
    }
    for text in [
        "{namespace}.{service-account}",
        "{namespace}.{service-account}@",
        "{namespace}.{service-account}@{pod}.{node}",
    ] {
        signed(&[(ROLE_ARN, ROLE), (SOURCE_IDENTITY, text)]).unwrap();
    }
}

#[test]
fn every_claim_makes_another_key_and_the_pods_own_makes_an_entry_per_pod() {
    let key = |claims: &[(&str, &str)]| signed(&[&[(ROLE_ARN, ROLE)], claims].concat()).unwrap().key();
    let keys = [
        key(&[]),
        key(&[(SESSION_TAGS, "kubernetes-namespace")]),
        key(&[(SESSION_TAGS, "kubernetes-namespace:transitive")]),
        key(&[(SESSION_TAGS, "kubernetes-namespace,kubernetes-node")]),
        key(&[(SOURCE_IDENTITY, "{namespace}.{service-account}")]),
        key(&[(SOURCE_IDENTITY, "{namespace}.{service-account}@{node}")]),
    ];
    for (number, one) in keys.iter().enumerate() {
        assert!(!keys[..number].contains(one), "{number}");
    }
    let pod = |name: &str| Pod { service_account: account(), ..crate::fakes::pod(name, "10.0.0.7") };
    for (annotation, text) in
        [(SESSION_TAGS, "kubernetes-pod-uid"), (SOURCE_IDENTITY, "{namespace}.{service-account}@{pod}")]
    {
        let plan = std::sync::Arc::new(signed(&[(ROLE_ARN, ROLE), (annotation, text)]).unwrap());
        let (a, b) = (plan.for_pod(&pod("a")), plan.for_pod(&pod("b")));
        assert!(a.key() != b.key() && a.pod == Some(PodUid::new("uid-a")), "{annotation}");
    }
}

#[test]
fn a_hop_to_the_role_that_is_already_held_is_skipped() {
    let both = plan(&[(ROLE_ARN, ROLE), (ASSUME_ROLE_ARN, ROLE), (SESSION_DURATION, "3h")]).unwrap();
    assert_eq!(both, plan(&[(ROLE_ARN, ROLE), (SESSION_DURATION, "3h")]).unwrap());
}

#[test]
fn a_second_hop_needs_a_first() {
    let err = plan(&[(ASSUME_ROLE_ARN, TEAM)]).unwrap_err();
    assert_eq!(err.code(), "InvalidPlan");
    assert!(err.to_string().contains("needs rolecall.dev/role-arn"), "{err}");
    assert!(plan(&[(ASSUME_ROLE_ARN, TEAM), (EKS_ROLE_ARN, ROLE)]).is_ok(), "IRSA's is one as well");
}

#[test]
fn what_a_second_hop_shows_is_what_sts_takes() {
    let long = "x".repeat(1225);
    for (name, value, says) in [
        (EXTERNAL_ID, "x", "2 to 1224"),
        (EXTERNAL_ID, &long, "2 to 1224"),
        (EXTERNAL_ID, "a b", "2 to 1224"),
        (SESSION_TAGS, "", "is none of"),
        (
            SESSION_TAGS,
            "kubernetes-namespace,team",
            "\"team\" is none of eks-cluster-name kubernetes-namespace",
        ),
        (SESSION_TAGS, "kubernetes-node,kubernetes-node:transitive", "kubernetes-node stands there twice"),
        (SESSION_TAGS, "eks-cluster-name", "--cluster-name"),
        (SOURCE_IDENTITY, "a b", "placeholders"),
        (SOURCE_IDENTITY, "{who}", "{who} is not one of"),
        (ASSUME_ROLE_ARN, "team", "is not a role ARN"),
    ] {
        let mut annotations = vec![(ROLE_ARN, ROLE), (ASSUME_ROLE_ARN, TEAM)];
        annotations.retain(|(other, _)| *other != name);
        annotations.push((name, value));
        let err = plan(&annotations).unwrap_err();
        assert!(err.to_string().contains(&format!("{name}: ")) && err.to_string().contains(says), "{err}");
    }
    let longest = "x".repeat(1224);
    for (name, value) in [(EXTERNAL_ID, "42"), (EXTERNAL_ID, &longest), (SOURCE_IDENTITY, "{pod}")] {
        assert!(plan(&[(ROLE_ARN, ROLE), (ASSUME_ROLE_ARN, TEAM), (name, value)]).is_ok(), "{name}");
    }
}

#[test]
fn a_clusters_name_is_a_tag_where_sts_takes_it_as_it_is() {
    let annotations: BTreeMap<String, String> =
        [(ROLE_ARN, ROLE), (ASSUME_ROLE_ARN, TEAM), (SESSION_TAGS, "eks-cluster-name")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    let of = |cluster: &str| {
        let session_name = Template::parse("{namespace}", "node-1", cluster).unwrap();
        let defaults = Defaults { session_name, ..Defaults::of_node("node-1") };
        RolePlan::from_annotations(&account(), "uid-1", &annotations, &defaults)
    };
    assert_eq!(assumed(&of("prod eu/1").unwrap()).1, [("eks-cluster-name", "prod eu/1", false)]);
    for never in ["a&b", &"x".repeat(257)] {
        let err = of(never).unwrap_err();
        assert!(err.to_string().contains("cannot be the value of eks-cluster-name"), "{err}");
    }
}

#[test]
fn allow_role_holds_for_every_hop() {
    let of = |entries: &[&str]| {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        let defaults = Defaults { policy: Policy::parse(&entries).unwrap(), ..Defaults::of_node("node-1") };
        let annotations = [(ROLE_ARN, ROLE), (ASSUME_ROLE_ARN, TEAM)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        RolePlan::from_annotations(&account(), "uid-1", &annotations, &defaults)
    };
    assert!(of(&[&format!("shop={ROLE}"), &format!("shop={TEAM}")]).is_ok());
    for (allowed, refused) in [(ROLE, TEAM), (TEAM, ROLE)] {
        let err = of(&[&format!("shop={allowed}")]).unwrap_err();
        assert_eq!(err.code(), "RoleNotAllowed");
        assert!(err.to_string().contains(refused), "{err}");
    }
}

#[test]
fn every_setting_of_a_second_hop_makes_another_key_and_leaves_the_first_hop_its_own() {
    let of = |more: &[(&str, &str)]| {
        let annotations: Vec<_> =
            [(ROLE_ARN, ROLE), (ASSUME_ROLE_ARN, TEAM)].iter().chain(more).copied().collect();
        plan(&annotations).unwrap()
    };
    let base = of(&[]);
    let mut seen = vec![base.key(), base.before().unwrap().key()];
    for more in [
        (EXTERNAL_ID, "shop.web"),
        (SOURCE_IDENTITY, "shop.web"),
        (SESSION_TAGS, "kubernetes-namespace"),
        (SESSION_TAGS, "kubernetes-namespace:transitive"),
        (SESSION_TAGS, "kubernetes-service-account"),
        (SESSION_TAGS, "kubernetes-namespace,kubernetes-service-account"),
        (SESSION_DURATION, "30m"),
        (POLICY_ARNS, "arn:aws:iam::aws:policy/ReadOnlyAccess"),
    ] {
        let plan = of(&[more]);
        assert_eq!(plan.before().unwrap().key(), base.before().unwrap().key(), "{more:?}");
        assert!(!seen.contains(&plan.key()), "{more:?}");
        seen.push(plan.key());
    }
    // Whatever makes the first hop another one makes the second another one, too.
    for more in [(EKS_TOKEN_EXPIRATION, "900"), (SESSION_NAME, "other")] {
        let plan = of(&[more]);
        for key in plan_keys(&plan) {
            assert!(!seen.contains(&key), "{more:?}");
            seen.push(key);
        }
    }
    // The same role without a hop before it is another plan.
    assert_ne!(plan(&[(ROLE_ARN, TEAM)]).unwrap().key(), base.key());
}

fn plan_keys(plan: &RolePlan) -> [PlanKey; 2] {
    [plan.key(), plan.before().unwrap().key()]
}

fn roles(annotations: &[(&str, &str)]) -> Roles {
    let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Roles::from_annotations(&account(), "uid-1", &annotations, &Defaults::of_node("node-1"))
}

impl Roles {
    fn of(&self, name: &str) -> Plan {
        self.plan(&account(), Some(&RoleName::parse(name).unwrap()))
    }
}

#[test]
fn one_account_may_have_several_roles_with_or_without_a_second_hop() {
    let other = "arn:aws:iam::123456789012:role/other";
    let roles = roles(&[
        (ROLE_ARN, ROLE),
        ("rolecall.dev/assume-role-arn.team", TEAM),
        ("rolecall.dev/role-arn.other", other),
        ("rolecall.dev/role-arn.far", other),
        ("rolecall.dev/assume-role-arn.far", TEAM),
    ]);
    let of = |plan: Plan| -> Vec<String> {
        plan.unwrap().hops().map(|hop| hop.role.as_str().to_owned()).collect()
    };
    assert_eq!(of(roles.default.clone()), [ROLE]);
    assert_eq!(of(roles.of("team")), [TEAM, ROLE]);
    assert_eq!(of(roles.of("other")), [other]);
    assert_eq!(of(roles.of("far")), [TEAM, other]);
    let team = roles.of("team").unwrap();
    assert_eq!(team.before().unwrap().key(), roles.default.as_ref().unwrap().key(), "one first hop for both");
    let none = roles.of("nobody").unwrap_err();
    assert_eq!(none.code(), "NoRole");
    assert!(none.to_string().contains("rolecall.dev/role-arn.nobody"), "{none}");
    assert!(!none.to_string().contains("team"), "{none}");
}

#[test]
fn the_default_role_s_second_hop_is_no_other_roles() {
    let other = "arn:aws:iam::123456789012:role/other";
    let roles = roles(&[(ROLE_ARN, ROLE), (ASSUME_ROLE_ARN, TEAM), ("rolecall.dev/role-arn.other", other)]);
    assert!(roles.default.unwrap().before().is_some());
    assert!(roles.named.into_values().next().unwrap().unwrap().before().is_none());
}

#[test]
fn an_account_may_have_named_roles_alone() {
    let roles = roles(&[("rolecall.dev/role-arn.team", TEAM)]);
    let none = roles.default.as_ref().unwrap_err();
    assert_eq!(none.code(), "NoRole");
    assert!(!matches!(none, Error::NoRole { .. }), "the node's role may take the place of that one alone");
    assert!(roles.of("team").is_ok());
}

#[test]
fn a_setting_holds_for_every_role_unless_the_role_has_its_own() {
    let (read, write) = ("arn:aws:iam::aws:policy/ReadOnlyAccess", "arn:aws:iam::123456789012:policy/write");
    let roles = roles(&[
        (ROLE_ARN, ROLE),
        ("rolecall.dev/assume-role-arn.a", TEAM),
        ("rolecall.dev/assume-role-arn.b", TEAM),
        (NOT_BEFORE, "2026-11-22T05:00:00Z"),
        (POLICY_ARNS, read),
        ("rolecall.dev/policy-arns.b", write),
        ("rolecall.dev/external-id.b", "tenant-b"),
        ("rolecall.dev/session-duration.b", "20m"),
    ]);
    let (a, b) = (roles.of("a").unwrap(), roles.of("b").unwrap());
    for plan in [roles.default.as_ref().unwrap(), &a, &b] {
        assert!(plan.hops().all(|hop| hop.not_before.is_some()), "revocation is for all of them");
    }
    assert_eq!((&a.policy_arns[..], &b.policy_arns[..]), (&[read.to_owned()][..], &[write.to_owned()][..]));
    assert_eq!((assumed(&a).0, assumed(&b).0), (None, Some("tenant-b")));
    assert_eq!((a.session_duration.as_secs(), b.session_duration.as_secs()), (3600, 1200));
    assert_eq!(roles.default.unwrap().policy_arns, [read]);
}

#[test]
fn a_role_that_is_malformed_takes_no_other_one_away() {
    let of = |name: &str, value: &str| {
        roles(&[
            (ROLE_ARN, ROLE),
            ("rolecall.dev/role-arn.good", TEAM),
            ("rolecall.dev/role-arn.bad", TEAM),
            (name, value),
        ])
    };
    for (name, value, code) in [
        ("rolecall.dev/role-arn.bad", "demo", "InvalidRole"),
        ("rolecall.dev/assume-role-arn.bad", "demo", "InvalidRole"),
        ("rolecall.dev/session-duration.bad", "13h", "InvalidPlan"),
        ("rolecall.dev/external-id.bad", "tenant", "InvalidPlan"),
    ] {
        let roles = of(name, value);
        let err = roles.of("bad").unwrap_err();
        assert_eq!(err.code(), code, "{name}");
        assert!(err.to_string().contains(name), "{err}");
        assert!(roles.default.is_ok() && roles.of("good").is_ok(), "{name}");
    }
    // What may be a restriction typed wrong is everybody's: who knows whose it was to be?
    for name in
        ["rolecall.dev/policy-arns.goood", "rolecall.dev/role-arn.Bad", "rolecall.dev/not-before.good"]
    {
        let roles = of(name, TEAM);
        assert_eq!(roles.default.as_ref().unwrap_err().code(), "InvalidPlan", "{name}");
        assert_eq!(roles.of("good").unwrap_err().code(), "InvalidPlan", "{name}");
    }
}

#[test]
fn a_roles_name_fits_into_both_annotations_and_a_path() {
    for good in ["a", "7", "team-a", &"x".repeat(47)] {
        assert!(RoleName::parse(good).is_some(), "{good}");
    }
    for bad in ["", "-a", "a-", "A", "a.b", "a/b", "a_b", "é", "..", "%61", &"x".repeat(48)] {
        assert!(RoleName::parse(bad).is_none(), "{bad}");
    }
}

//! What annotations may cost: they can have 256 KiB, whoever annotates a ServiceAccount writes them, and they are read, and names made of
//! them, on the one thread that all pods are answered on.

use super::*;

#[test]
fn more_further_roles_than_anybody_needs_are_none_whichever_is_asked_for() {
    let roles = |count: usize| {
        let further = (0..count).map(|n| (format!("{ROLE_ARN}.r{n}"), "arn:aws:iam:::role/r".to_owned()));
        let annotations = further.chain([(ROLE_ARN.to_owned(), ROLE.to_owned())]).collect();
        Roles::from_annotations(&account(), "uid-1", &annotations, &Defaults::of_node("node-1"))
    };
    let name = RoleName::parse("r7").unwrap();
    let most = roles(32);
    assert!(most.default.is_ok() && most.plan(&account(), Some(&name)).is_ok());
    // Each of these was once compared with each other: a minute and a half of a test's time.
    let many = roles(5_000);
    for name in [None, Some(&name)] {
        let err = many.plan(&account(), name).unwrap_err();
        assert_eq!(err.code(), "InvalidPlan");
        assert!(err.to_string().contains("5000 further roles"), "{err}");
    }
    assert_eq!(
        (many.plans().count(), many.refusals().count()),
        (0, 1),
        "nor is there a line of the log for each"
    );
}

/// A name is made of it for each request of a plan that is the pod's own, with a pod's name of up to 253 letters in each place.
#[test]
fn a_template_is_no_longer_than_a_name_can_need() {
    for annotation in [SESSION_NAME, SOURCE_IDENTITY] {
        let plan = |template: &str| {
            plan(&[(ROLE_ARN, ROLE), (ASSUME_ROLE_ARN, TEAM), (annotation, template)]).map(drop)
        };
        plan(&"{pod}".repeat(51)).unwrap();
        let err = plan(&"{pod}".repeat(50_000)).unwrap_err();
        assert!(err.code() == "InvalidPlan" && err.to_string().contains("256"), "{err}");
    }
}

#[test]
fn policy_arns_are_as_long_as_arns_are() {
    let plan = |resource: usize| {
        let policy = format!("arn:aws:iam::aws:policy/{}", "p".repeat(resource));
        plan(&[(ROLE_ARN, ROLE), (POLICY_ARNS, &policy)]).map(drop)
    };
    plan(2000).unwrap();
    assert_eq!(plan(200_000).unwrap_err().code(), "InvalidPlan");
}

/// It goes into the log, and into the answer to each request.
#[test]
fn a_refusal_repeats_little_of_what_was_wrong() {
    let long = "\u{1b}".repeat(200_000);
    for annotation in [
        ROLE_ARN,
        ASSUME_ROLE_ARN,
        SESSION_NAME,
        SESSION_DURATION,
        POLICY_ARNS,
        EXTERNAL_ID,
        SESSION_TAGS,
        SOURCE_IDENTITY,
        NOT_BEFORE,
        EKS_ROLE_ARN,
        EKS_AUDIENCE,
        EKS_TOKEN_EXPIRATION,
        EKS_REGIONAL,
    ] {
        for value in [long.clone(), format!("{{{long}}}")] {
            let all = [(EKS_ROLE_ARN, ROLE), (annotation, &value)];
            let Err(err) = plan(&all) else { continue };
            assert!(err.to_string().len() < 2_000, "{annotation}: {} bytes", err.to_string().len());
        }
    }
}

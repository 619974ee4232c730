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

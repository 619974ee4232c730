//! From annotations to flags; the API server's part is in `tests/base_credentials.rs` and `tests/explain.rs`.

use super::*;
use crate::cluster::objects::Object;
use crate::identity::pods::PodUid;
use crate::role::pod_annotation::{Asked, Format, Rules};

const BASE: &str = "arn:aws:iam::111122223333:role/";

fn found(annotations: &[(&str, &str)]) -> Found {
    let mut found = Found::default();
    let account = ServiceAccountName { namespace: "shop".into(), name: "web".into() };
    found.add_account(
        &account,
        &annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    );
    found
}

#[test]
fn every_hop_of_every_role_is_allowed() {
    let arn = |name: &str| format!("{BASE}{name}");
    let found = found(&[
        ("eks.amazonaws.com/role-arn", &arn("web")),
        ("rolecall.dev/assume-role-arn", &arn("team")),
        ("rolecall.dev/role-arn.backup", &arn("backup")),
    ]);
    let expected = ["backup", "team", "web"].map(|name| format!("shop={}", arn(name)));
    assert_eq!((found.allowed, found.wrong), (BTreeSet::from(expected), BTreeSet::new()));
}

#[test]
fn a_role_that_no_flag_can_name_and_one_that_is_none_are_left_out() {
    for value in ["arn:aws:iam::111122223333:role/a,b", "arn:aws:iam::1:role/web", "*"] {
        let found = found(&[("rolecall.dev/role-arn", value)]);
        assert_eq!((found.allowed.len(), found.wrong.len()), (0, 1), "{value}: {found:?}");
        let wrong = found.wrong.first().unwrap();
        assert!(wrong.contains("shop/web") && wrong.contains(value), "{found:?}");
    }
    assert_eq!(found(&[("team", "a")]), Found::default());
}

/// A live pod of ServiceAccount `shop/web`.
fn pod(name: &str, annotations: &[(&str, &str)]) -> Pod {
    let mut asked = Asked::default();
    annotations.iter().for_each(|(name, value)| asked.take(name, value));
    let asked = (!asked.is_empty()).then(|| Arc::new(asked));
    let uid = PodUid::new(format!("uid-{name}"));
    Pod { uid, asked, service_account: crate::fakes::account("web"), ..crate::fakes::pod(name, "10.0.0.7") }
}

fn of_pods(namespace: &[(&str, &str)], account: &[(&str, &str)], pods: Vec<Pod>) -> Found {
    let objects = Objects {
        namespaces: vec![Object::new(None, "shop", namespace)],
        accounts: vec![Object::new(Some("shop"), "web", account)],
        pods,
        unread: 0,
    };
    let rules = Rules::new(Some(BASE), false, Format::Glob).unwrap();
    Found::among(&objects, RoleSource::PodAnnotation(rules))
}

/// Their names behind the base ARN, and how many annotations give none.
fn names(found: &Found) -> (Vec<&str>, usize) {
    let names =
        found.allowed.iter().map(|entry| entry.strip_prefix("shop=").unwrap().strip_prefix(BASE).unwrap());
    (names.collect(), found.wrong.len())
}

#[test]
fn every_role_that_a_live_pod_names_is_allowed_and_what_gives_none_is_told_once() {
    let role = |role: &'static str| [("iam.amazonaws.com/role", role)];
    let pods = vec![
        pod("a-1", &role("a")),
        pod("a-2", &role("a")),
        pod("b", &role("arn:aws:iam::111122223333:role/b")),
        pod("none", &[]),
        Pod { finished: true, ..pod("job", &role("job")) },
        pod("wrong-1", &role("no:arn\u{1b}[2J")),
        pod("wrong-2", &role("no:arn\u{1b}[2J")),
    ];
    let found = of_pods(&[], &[], pods);
    assert_eq!(names(&found), (vec!["a", "b"], 1));
    let wrong = found.wrong.first().unwrap();
    assert!(wrong.contains("iam.amazonaws.com/role") && wrong.contains("shop/web"), "{wrong}");
}

#[test]
fn the_hop_before_a_pods_role_is_allowed_too() {
    let account = [
        ("rolecall.dev/role-arn", "arn:aws:iam::111122223333:role/first"),
        ("rolecall.dev/assume-role-arn", "arn:aws:iam::111122223333:role/last"),
    ];
    let found = of_pods(&[], &account, vec![pod("a", &[("iam.amazonaws.com/role", "last")])]);
    assert_eq!(names(&found), (vec!["first", "last"], 0));
}

/// kube2iam's external id goes with the agent's own credentials, kiam's session name with a token.
#[test]
fn what_one_of_the_two_modes_takes_is_no_mistake() {
    for (name, value) in [("external-id", "tenant-1"), ("session-name", "mine")] {
        let asked = [("iam.amazonaws.com/role", "a"), (&*format!("iam.amazonaws.com/{name}"), value)];
        assert_eq!(names(&of_pods(&[], &[], vec![pod("a", &asked)])), (vec!["a"], 0), "{name}");
    }
}

#[test]
fn what_a_namespace_permits_is_no_role_and_what_it_forbids_is_left_out() {
    let namespace = [("iam.amazonaws.com/allowed-roles", r#"["a", "never-asked-for"]"#)];
    let pods = ["a", "admin"].map(|role| pod(role, &[("iam.amazonaws.com/role", role)]));
    let found = of_pods(&namespace, &[], pods.to_vec());
    assert_eq!(names(&found), (vec!["a"], 1));
    assert!(found.wrong.first().unwrap().contains("role/admin"), "{found:?}");
}

#[test]
fn a_tag_that_names_the_cluster_is_left_to_the_agents_own_flags() {
    let found = found(&[
        ("rolecall.dev/role-arn", "arn:aws:iam::111122223333:role/a"),
        ("rolecall.dev/session-tags", "eks-cluster-name"),
    ]);
    assert_eq!(names(&found), (vec!["a"], 0));
}

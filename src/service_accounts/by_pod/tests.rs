//! What decides a pod's role is a pod's, a namespace's and a ServiceAccount's; each may change under it.

use super::*;
use crate::fakes::log::Log;
use crate::fakes::{account, pod};
use crate::identity::pods::Pod;
use crate::policy::Policy;
use crate::role::pod_annotation::Format;
use crate::role::{By, RoleSource};
use crate::service_accounts::ServiceAccounts;

const BASE: &str = "arn:aws:iam::111122223333:role/";

/// What the watches of the agent say, told directly.
struct Node(ServiceAccounts);

impl Node {
    fn allowing(entries: &[&str]) -> Self {
        let rules = Rules::new(Some(BASE), false, Format::Glob).unwrap();
        let entries: Vec<String> = entries.iter().map(|&entry| entry.to_owned()).collect();
        Self(ServiceAccounts::new(Defaults {
            source: RoleSource::PodAnnotation(rules),
            policy: Policy::parse(&entries).unwrap(),
            ..Defaults::of_node("node-1")
        }))
    }

    /// Namespace and ServiceAccount of [`pod`]`("web", …)`, without annotations.
    fn watched(entries: &[&str]) -> Self {
        let node = Self::allowing(entries);
        node.namespace(&[]);
        node.account(&[]);
        node
    }

    fn namespace(&self, annotations: &[(&str, &str)]) {
        self.0.apply_namespace(&"shop".into(), &map(annotations));
    }

    fn account(&self, annotations: &[(&str, &str)]) {
        self.0.apply(&account("web"), "uid-of-account", &map(annotations));
    }

    /// The role that the pod gets, or the code of its refusal.
    fn role(&self, pod: &Pod) -> String {
        match self.0.plan_of(pod, None) {
            None => "not watched".into(),
            Some(Ok(plan)) => plan.role.as_str().strip_prefix(BASE).unwrap().to_owned(),
            Some(Err(error)) => error.code().into(),
        }
    }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn asking(name: &str, annotations: &[(&str, &str)]) -> Pod {
    let mut asked = Asked::default();
    for (name, value) in annotations {
        asked.take(name, value);
    }
    Pod { uid: PodUid::new(format!("uid-{name}")), asked: Some(Arc::new(asked)), ..pod("web", "10.0.0.7") }
}

fn wanting(role: &str) -> Pod {
    asking("web", &[("iam.amazonaws.com/role", role)])
}

#[test]
fn nothing_is_decided_before_both_watches_have_spoken() {
    let node = Node::allowing(&["*=*"]);
    assert_eq!(node.role(&wanting("app")), "not watched");
    node.account(&[]);
    assert_eq!(node.role(&wanting("app")), "not watched");
    node.namespace(&[]);
    assert_eq!(node.role(&wanting("app")), "app");
    node.0.forget_namespace("shop");
    assert_eq!(node.role(&wanting("app")), "not watched");
}

#[test]
fn a_pod_without_the_annotation_has_no_role_whatever_its_service_account_says() {
    let node = Node::watched(&["*=*"]);
    node.account(&[("rolecall.dev/role-arn", &format!("{BASE}app"))]);
    assert_eq!(node.role(&pod("web", "10.0.0.7")), "NoRole");
    assert_eq!(node.role(&asking("web", &[("iam.amazonaws.com/session-name", "x")])), "NoRole");
    assert_eq!(node.role(&wanting("app")), "app");
    assert_eq!(node.role(&wanting("other")), "InvalidPlan", "it contradicts the ServiceAccount");
}

#[test]
fn pods_of_one_service_account_have_the_role_that_each_asks_for() {
    let node = Node::watched(&["*=*"]);
    let (one, other) = (wanting("one"), asking("other", &[("iam.amazonaws.com/role", "other")]));
    assert_eq!((node.role(&one), node.role(&other)), ("one".into(), "other".into()));
    let plans = [&one, &other].map(|pod| node.0.plan_of(pod, None).unwrap().unwrap());
    assert_ne!(plans[0].key(), plans[1].key());
    // Two that ask for the same share it.
    let again = asking("again", &[("iam.amazonaws.com/role", "one")]);
    assert_eq!(node.0.plan_of(&again, None).unwrap().unwrap().key(), plans[0].key());
}

#[test]
fn every_change_counts_at_once() {
    let node = Node::watched(&["*=*"]);
    let changes = node.0.changes();
    assert_eq!(node.role(&wanting("app")), "app");
    assert_eq!(node.role(&wanting("app2")), "app2", "the pod's");
    for (annotations, role) in [
        (&[("iam.amazonaws.com/permitted", ".*/other")][..], "RoleNotAllowed"),
        (&[("iam.amazonaws.com/permitted", ".*/app")], "app"),
        (
            &[("iam.amazonaws.com/permitted", ".*/app"), ("iam.amazonaws.com/allowed-roles", "[]")],
            "RoleNotAllowed",
        ),
        (&[], "app"),
    ] {
        node.namespace(annotations);
        assert_eq!(node.role(&wanting("app")), role, "{annotations:?}");
    }
    node.account(&[("rolecall.dev/role-arn", &format!("{BASE}other"))]);
    assert_eq!(node.role(&wanting("app")), "InvalidPlan");
    node.0.absent(&account("web"));
    assert_eq!(node.role(&wanting("app")), "NoRole");
    assert!(changes.has_changed().unwrap(), "whoever waits is woken");
    let changes = node.0.changes();
    node.0.absent(&account("web"));
    node.namespace(&[]);
    assert!(!changes.has_changed().unwrap(), "an event that changes nothing wakes nobody");
}

/// What is not there cannot say that it wants no role: the node's may not take the place of that.
#[test]
fn a_service_account_that_is_gone_is_not_one_without_a_role() {
    let is_gone = |node: &ServiceAccounts, pod: &Pod| {
        let refusal = node.plan_of(pod, None).unwrap().unwrap_err();
        assert_eq!(refusal.code(), "NoRole");
        !matches!(refusal, Error::NoRole { .. } | Error::NoPodRole { .. })
    };
    let by_account = ServiceAccounts::new(Defaults::of_node("node-1"));
    by_account.apply(&account("web"), "uid-of-account", &map(&[]));
    assert!(!is_gone(&by_account, &pod("web", "10.0.0.7")));
    by_account.absent(&account("web"));
    assert!(is_gone(&by_account, &pod("web", "10.0.0.7")));

    let by_pod = Node::watched(&["*=*"]);
    by_pod.0.absent(&account("web"));
    assert!(is_gone(&by_pod.0, &wanting("app")));
}

#[test]
fn the_operators_list_is_asked_whatever_the_namespace_permits() {
    let node = Node::watched(&["shop=arn:aws:iam::111122223333:role/shop-*"]);
    node.namespace(&[("iam.amazonaws.com/permitted", ".*"), ("iam.amazonaws.com/allowed-roles", r#"["*"]"#)]);
    assert_eq!(node.role(&wanting("shop-web")), "shop-web");
    assert_eq!(node.role(&wanting("bank-web")), "RoleNotAllowed");
    assert_eq!(node.role(&wanting("arn:aws:iam::999999999999:role/shop-web")), "RoleNotAllowed");
    // It is asked first, so that a tenant's expressions run for no more than the operator's roles.
    node.namespace(&[("iam.amazonaws.com/permitted", "[")]);
    let refusal = |role: &str| node.0.plan_of(&wanting(role), None).unwrap().unwrap_err();
    assert!(matches!(refusal("shop-web"), Error::NotPermitted { .. }));
    assert!(matches!(refusal("bank-web"), Error::NotAllowed { .. }));
}

#[test]
fn a_session_name_of_the_pods_makes_a_session_of_its_own() {
    let node = Node::watched(&["*=*"]);
    let named =
        asking("named", &[("iam.amazonaws.com/role", "app"), ("iam.amazonaws.com/session-name", "a {pod}")]);
    let plans = [&wanting("app"), &named].map(|pod| node.0.plan_of(pod, None).unwrap().unwrap());
    assert_eq!(plans.each_ref().map(|plan| plan.session_name.as_str()), ["shop.web", "a--pod-"]);
    assert_ne!(plans[0].key(), plans[1].key());
}

/// What the plan of a pod that asks for `app` and for this is refused for, if it is.
fn refused(node: &Node, annotation: (&str, &str)) -> Option<String> {
    let pod = asking("web", &[("iam.amazonaws.com/role", "app"), annotation]);
    match node.0.plan_of(&pod, None).unwrap() {
        Ok(_) => None,
        Err(Error::InvalidPlan { annotation, .. }) => Some(annotation),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn an_external_id_needs_a_hop_that_takes_one() {
    let node = Node::watched(&["*=*"]);
    let id = ("iam.amazonaws.com/external-id", "x-1");
    assert_eq!(refused(&node, id).as_deref(), Some(id.0), "by the name that was written");
    let first = format!("{BASE}first");
    node.account(&[
        ("rolecall.dev/role-arn", &first),
        ("rolecall.dev/assume-role-arn", &format!("{BASE}app")),
    ]);
    assert_eq!(refused(&node, id), None);
}

/// As kube2iam's nodes and kiam's servers do it.
#[test]
fn by_the_agents_own_credentials_an_external_id_is_taken_and_a_name_of_the_pods_is_not() {
    let mut node = Node::watched(&["*=*"]);
    node.0.defaults.by_agent = true;
    let id = ("iam.amazonaws.com/external-id", "x-1");
    let pod = asking("web", &[("iam.amazonaws.com/role", "app"), id]);
    let plan = node.0.plan_of(&pod, None).unwrap().unwrap();
    assert!(matches!(&plan.by, By::AssumeRole { external_id: Some(id), .. } if &**id == "x-1"), "{plan:?}");
    let name = ("iam.amazonaws.com/session-name", "another");
    assert_eq!(refused(&node, name).as_deref(), Some(name.0), "trust policies know callers by it");
}

#[test]
fn what_is_kept_of_a_pod_goes_with_it() {
    let node = Node::watched(&["*=*"]);
    node.role(&wanting("app"));
    assert_eq!(node.0.by_pod.made.len(), 1);
    node.0.retain_pods(|_| false);
    assert!(node.0.by_pod.made.is_empty());
}

#[test]
fn a_chain_that_is_cut_to_an_hour_is_one_line_in_the_log_for_each_pod() {
    let (log, _guard) = Log::listen();
    let node = Node::watched(&["*=*"]);
    let first = format!("{BASE}first");
    let (last, longer) = (format!("{BASE}app"), ("rolecall.dev/session-duration", "3h"));
    node.account(&[("rolecall.dev/role-arn", &first), ("rolecall.dev/assume-role-arn", &last), longer]);
    assert_eq!([node.role(&wanting("app")), node.role(&wanting("app"))], ["app", "app"]);
    let said = log.text();
    assert_eq!(said.matches("cut to an hour").count(), 1, "{said}");
    assert!(said.contains(&format!("role.arn={last}")) && said.contains("asked_s=10800"), "{said}");
    // One hop may live as long as its role allows.
    node.account(&[longer]);
    assert_eq!(node.role(&wanting("app")), "app");
    assert_eq!(log.text().matches("cut to an hour").count(), 1, "{}", log.text());
}

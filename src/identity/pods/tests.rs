//! The index after every kind of change: no ghost, no lost claim.

use super::*;

fn pod(uid: &str, addresses: &[&str]) -> Pod {
    Pod {
        uid: PodUid::new(uid),
        name: format!("pod-{uid}").into(),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        ..crate::fakes::pod("web", "192.0.2.1")
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn claimants(pods: &Pods, address: &str) -> Vec<String> {
    let mut uids: Vec<String> = pods.claimants(ip(address)).iter().map(|pod| pod.uid.to_string()).collect();
    uids.sort();
    uids
}

#[test]
fn an_address_that_two_pods_claim_shows_both() {
    let pods = Pods::default();
    pods.apply(Pod { terminating: true, ..pod("old", &["10.0.0.7"]) });
    pods.apply(pod("new", &["10.0.0.7"]));
    assert_eq!(claimants(&pods, "10.0.0.7"), ["new", "old"]);
    pods.delete(&PodUid::new("old"));
    assert_eq!(claimants(&pods, "10.0.0.7"), ["new"]);
}

#[test]
fn a_finished_pod_keeps_its_claim_and_is_seen_to_be_finished() {
    let pods = Pods::default();
    pods.apply(pod("job", &["10.0.0.7"]));
    pods.apply(Pod { finished: true, ..pod("job", &["10.0.0.7"]) });
    let claimants = pods.claimants(ip("10.0.0.7"));
    assert_eq!(claimants.len(), 1);
    assert!(!claimants[0].live());
}

#[test]
fn a_pod_that_is_told_twice_is_there_once_and_wakes_nobody() {
    let pods = Pods::default();
    pods.apply(pod("a", &["10.0.0.7", "fd00::7"]));
    let changes = pods.changes();
    pods.apply(pod("a", &["10.0.0.7", "fd00::7"]));
    assert_eq!(claimants(&pods, "fd00::7"), ["a"]);
    assert!(!changes.has_changed().unwrap());
    pods.apply(pod("a", &["10.0.0.7"]));
    assert!(changes.has_changed().unwrap());
}

#[test]
fn a_pod_whose_address_changes_leaves_the_old_one() {
    let pods = Pods::default();
    pods.apply(pod("a", &[]));
    pods.apply(pod("a", &["10.0.0.7"]));
    pods.apply(pod("a", &["10.0.0.8"]));
    assert_eq!(claimants(&pods, "10.0.0.7"), [""; 0]);
    assert_eq!(claimants(&pods, "10.0.0.8"), ["a"]);
}

#[test]
fn a_list_leaves_no_ghosts_and_says_that_the_index_is_good() {
    let pods = Pods::default();
    pods.apply(pod("gone", &["10.0.0.7"]));
    pods.apply(pod("moved", &["10.0.0.8"]));
    assert!(!pods.synced());
    pods.reset(vec![pod("moved", &["10.0.0.7"]), pod("new", &["10.0.0.9"])]);
    assert!(pods.synced());
    assert_eq!(claimants(&pods, "10.0.0.7"), ["moved"]);
    assert_eq!(claimants(&pods, "10.0.0.8"), [""; 0]);
    assert_eq!(claimants(&pods, "10.0.0.9"), ["new"]);
    assert!(pods.by_uid(&PodUid::new("gone")).is_none());
    pods.reset(Vec::new());
    assert!(pods.is_empty() && pods.claimants(ip("10.0.0.7")).is_empty());
    assert!(pods.by_address.is_empty(), "with IPv6 every pod that ever was has an address of its own");
}

fn list(pods: &[Pod]) -> Vec<Arc<Pod>> {
    pods.iter().cloned().map(Arc::new).collect()
}

#[test]
fn a_list_brings_new_pods_and_the_end_of_old_ones_and_changes_no_other() {
    let pods = Pods::default();
    pods.reset(vec![pod("old", &["10.0.0.7"]), pod("both", &["10.0.0.8"])]);
    let (listing, changes) = (pods.begin_list(), pods.changes());
    // The watch goes on meanwhile.
    pods.apply(Pod { finished: true, ..pod("both", &["10.0.0.8"]) });
    pods.apply(pod("later", &["10.0.0.9"]));
    listing.learn(&list(&[pod("new", &["10.0.0.7"]), pod("both", &["10.0.0.8"])]));
    assert!(changes.has_changed().unwrap());
    assert_eq!(claimants(&pods, "10.0.0.7"), ["new"]);
    assert!(pods.by_uid(&PodUid::new("both")).unwrap().finished, "the watch may be ahead of the list");
    assert_eq!(claimants(&pods, "10.0.0.9"), ["later"], "what came after the list began cannot be in it");
}

#[test]
fn a_list_does_not_bring_back_what_the_watch_has_ended_since() {
    let pods = Pods::default();
    // Shown by the watch, and ended, all while the list was under way.
    let listing = pods.begin_list();
    pods.apply(pod("short", &["10.0.0.7"]));
    pods.delete(&PodUid::new("short"));
    listing.learn(&list(&[pod("short", &["10.0.0.7"])]));
    assert!(pods.is_empty());
    // Ended without a word: the watch began anew.
    let listing = pods.begin_list();
    pods.reset(Vec::new());
    listing.learn(&list(&[pod("short", &["10.0.0.7"])]));
    assert!(pods.is_empty());
    // Neither is remembered beyond that list.
    let listing = pods.begin_list();
    listing.learn(&list(&[pod("next", &["10.0.0.7"])]));
    assert_eq!(claimants(&pods, "10.0.0.7"), ["next"]);
    assert!(pods.write().is_none(), "nothing is kept while no list is under way");
}

#[test]
fn the_pod_after_a_namesake_is_not_deleted_with_it() {
    let pods = Pods::default();
    let name: Arc<str> = "db-0".into();
    pods.apply(Pod { name: Arc::clone(&name), ..pod("first", &["10.0.0.7"]) });
    pods.apply(Pod { name, ..pod("second", &["10.0.0.8"]) });
    pods.delete(&PodUid::new("first"));
    assert_eq!(claimants(&pods, "10.0.0.8"), ["second"]);
    assert_eq!(pods.len(), 1);
}

#[test]
fn an_ipv4_address_in_ipv6_form_is_the_ipv4_address() {
    assert_eq!(unmapped(ip("::ffff:10.0.0.7")), ip("10.0.0.7"));
    assert_eq!(unmapped(ip("fd00::7")), ip("fd00::7"));
}

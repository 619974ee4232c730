//! An address is given to another pod.
#![allow(clippy::unwrap_used)]

use crate::ladder::*;
use crate::process::Process;

#[test]
fn an_address_reused_at_once_names_the_new_pod_while_the_watch_shows_the_old_one() {
    let Some(node) = node("attest_reuse") else { return };
    let old = node.routed_pod("a", "10.0.1.7", None);
    let process = Process::of(&uid("a"), &old);
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"])]);
        assert_eq!(account(&ask(&old, "10.0.1.7", V4)), "a");
        drop(process);
        drop(old);
        let new = node.routed_pod("b", "10.0.1.7", None);
        let _process = Process::of(&uid("b"), &new);
        // Only etcd knows; the watch has shown nothing since.
        agent.cluster.set_pods(vec![shown("b", &[])]);
        assert_eq!(account(&ask(&new, "10.0.1.7", V4)), "b");
    });
}

//! What the kube API says of a pod is wrong, late, or contradicts what the kernel shows.

use std::time::Duration;

use rolecall::fakes::{World, caller, pod};
use rolecall::identity::Caller;
use rolecall::identity::pods::Pod;

use crate::http;
use crate::ladder::*;
use crate::process::Process;

const TEN_MINUTES: Duration = Duration::from_secs(600);

#[test]
fn a_pod_that_the_api_does_not_have_is_refused() {
    let Some(node) = node("objects_gone") else { return };
    let pods = [
        ("10.0.1.7", "fd00::7", node.routed_pod("r", "10.0.1.7", Some("fd00::7"))),
        ("10.0.2.7", "fd00:2::7", node.bridged_pod("b", "10.0.2.7", Some("fd00:2::7"))),
    ];
    let _processes = pods.each_ref().map(|(.., pod)| Process::of(&uid("a"), pod));
    with_agent(&node, |agent| {
        agent.set(&[shown("b", &["10.0.1.8"])]);
        for (ip, ipv6, pod) in &pods {
            refused(&settled(pod, ip, V4), 403, "CallerNotIdentified");
            refused(&settled(pod, ipv6, V6), 403, "CallerNotIdentified");
        }
    });
}

#[test]
fn a_pod_deleted_while_its_connection_stays_open_gets_nothing_more() {
    let Some(node) = node("objects_deleted") else { return };
    let pods = [
        ("10.0.1.7", V4, node.routed_pod("r", "10.0.1.7", None)),
        ("fd00:2::7", V6, node.bridged_pod("b", "10.0.2.7", Some("fd00:2::7"))),
    ];
    with_agent(&node, |agent| {
        for (from, to, pod) in &pods {
            let _process = Process::of(&uid("a"), pod);
            let to = to.parse().unwrap();
            // Deleted and shown; deleted and its address another pod's; deleted and only etcd knows of both.
            for (after, watched) in
                [(vec![], true), (vec![shown("b", &[from])], true), (vec![shown("b", &[from])], false)]
            {
                agent.set(&[shown("a", &[from])]);
                pod.run(async || {
                    let mut stream = http::connect(from, to).await;
                    let first = http::ask(&mut stream, &http::request(to)).await.unwrap();
                    assert_eq!(account(&first), "a");
                    agent.cluster.set_pods(after.clone());
                    if watched {
                        agent.pods.reset(after.clone());
                    } else {
                        // The watch shows the new owner, and not yet that the old one has gone.
                        agent.pods.apply(after[0].clone());
                    }
                    let second = http::ask(&mut stream, &http::request(to)).await.unwrap();
                    assert!(second.status == 403 || second.status == 503, "{second:?}");
                    assert!(http::read(&mut stream).await.is_none(), "and the connection is closed");
                });
            }
        }
    });
}

#[test]
fn two_pods_that_claim_one_address_get_nothing_under_it() {
    let Some(node) = node("objects_two") else { return };
    let pods = [
        ("10.0.1.7", V4, node.routed_pod("r", "10.0.1.7", Some("fd00::7"))),
        ("fd00:2::7", V6, node.bridged_pod("b", "10.0.2.7", Some("fd00:2::7"))),
    ];
    let _processes = pods.each_ref().map(|(.., pod)| Process::of(&uid("a"), pod));
    with_agent(&node, |agent| {
        for (from, to, pod) in &pods {
            agent.set(&[shown("a", &[from]), shown("b", &[from])]);
            refused(&settled(pod, from, to), 403, "SourceMismatch");
            // Nor when the pod itself shows another one.
            agent.set(&[shown("a", &["10.0.1.99"]), shown("b", &[from])]);
            refused(&settled(pod, from, to), 403, "SourceMismatch");
            // One that has finished, or is going, has no claim.
            for weak in [
                Pod { finished: true, ..shown("b", &[from]) },
                Pod { terminating: true, ..shown("b", &[from]) },
            ] {
                agent.set(&[shown("a", &[from]), weak]);
                assert_eq!(account(&settled(pod, from, to)), "a");
            }
        }
    });
}

/// Nothing from the watches for ten minutes, while etcd goes on: an old pod ends, and its address has a new one.
#[tokio::test(start_paused = true)]
async fn with_the_watch_stalled_for_ten_minutes_everybody_is_itself_or_refused() {
    let world = World::new();
    let (stays, old, new) = (pod("stays", "10.0.0.6"), pod("old", "10.0.0.7"), pod("new", "10.0.0.7"));
    // A token for the new one's ServiceAccount is asked for in this one's name.
    let sibling = Pod { service_account: new.service_account.clone(), ..pod("sibling", "10.0.0.9") };
    for pod in [&stays, &old, &sibling] {
        world.add_pod(pod.clone());
    }
    for name in ["stays", "old", "new"] {
        world.annotate(name, &[("rolecall.dev/role-arn", &role(name))]);
    }
    let connect = |pod: &Pod| caller(pod.addresses[0], Some(&pod.uid));
    let (of_stays, of_old) = (connect(&stays), connect(&old));
    assert_eq!(role_of(&world, &of_stays).await.unwrap(), role("stays"));
    assert_eq!(role_of(&world, &of_old).await.unwrap(), role("old"));
    // From here on the watch says nothing.
    world.cluster.set_pods(vec![stays, new.clone(), sibling]);
    world.cluster.lose(&old.uid);
    for _ in 0..10 {
        tokio::time::sleep(TEN_MINUTES / 10).await;
        assert_eq!(role_of(&world, &of_stays).await.unwrap(), role("stays"));
        // The new one is known by a list, under the address that the watch shows as the old one's.
        assert_eq!(role_of(&world, &connect(&new)).await.unwrap(), role("new"));
        // By its address alone nobody knows whose it is.
        let by_address = role_of(&world, &caller(new.addresses[0], None)).await;
        assert!(by_address.is_err(), "{by_address:?}");
        // Who never was in the API is still nobody.
        let stranger = pod("stranger", "10.0.0.8");
        assert_eq!(role_of(&world, &connect(&stranger)).await.unwrap_err(), "CallerNotIdentified");
    }
    world.app.pods.delete(&old.uid);
    assert_eq!(role_of(&world, &of_old).await.unwrap_err(), "CallerNotIdentified");
}

/// The role that `caller` is given, or why none.
async fn role_of(world: &World, caller: &Caller) -> Result<String, &'static str> {
    let served = world.credentials(caller).await.map_err(|refusal| refusal.code())?;
    let document: serde_json::Value = serde_json::from_slice(&served.body).unwrap();
    Ok(document["RoleArn"].as_str().unwrap().to_owned())
}

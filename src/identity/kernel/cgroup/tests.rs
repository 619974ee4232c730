//! Every shape that was seen or read about, each a folder under tests/support/proc/<runtime>/<scenario>.

use std::fs;
use std::path::Path;

use super::*;

fn pod() -> Owner {
    Owner::Pod(PodUid::new("3f2a9c1e-7b64-4d05-9e8a-1c2d3e4f5a6b"))
}

fn check(expected: &[(&str, Owner)]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/proc");
    for (scenario, owner) in expected {
        let text = fs::read_to_string(root.join(scenario).join("cgroup")).unwrap();
        assert_eq!(super::owner(&text), *owner, "{scenario}");
    }
}

#[test]
fn a_pod_is_known_in_every_runtimes_shape() {
    check(
        &[
            "containerd/systemd-burstable",
            "containerd/systemd-guaranteed",
            "containerd/cgroupfs-besteffort",
            "containerd/cgroupfs-guaranteed",
            "containerd/cgroupfs-under-systemd-kubelet",
            "containerd/private-cgroup-namespace-systemd",
            "containerd/private-cgroup-namespace-cgroupfs",
            "containerd/v1-many-lines",
            "containerd/v1-lines-without-a-pod",
            "containerd/removed-cgroup",
            "crio/systemd",
            "docker/cri-dockerd-systemd",
            "docker/docker-in-a-pod",
            "kind/node-in-docker-systemd",
            "kind/node-in-docker-cgroupfs",
        ]
        .map(|scenario| (scenario, pod())),
    );
}

#[test]
fn a_child_cgroup_named_for_a_victim_names_its_maker() {
    check(&[
        ("containerd/its-own-child-named-for-a-victim", pod()),
        ("containerd/its-own-child-named-for-a-victims-slice", pod()),
        ("containerd/static-pod-with-a-child-named-for-a-victim", Owner::Static),
    ]);
}

#[test]
fn what_is_no_pods_is_nobodys() {
    check(
        &[
            "containerd/the-runtime-itself",
            "crio/conmon-outside-the-pod",
            "docker/plain-container",
            "host/init",
            "host/root",
            "host/service-with-a-look-alike-name",
        ]
        .map(|scenario| (scenario, Owner::Nobody)),
    );
}

#[test]
fn a_static_pod_and_a_contradiction_are_told_apart_from_a_pod() {
    check(&[
        ("containerd/static-pod", Owner::Static),
        ("containerd/v1-lines-of-two-pods", Owner::Contradiction),
    ]);
}

#[test]
fn text_that_is_no_cgroup_file_is_nobodys() {
    for text in [
        "",
        "\n",
        ":",
        "::",
        "0:",
        "0::",
        "nonsense",
        "0::/pod",
        "0::/pod/",
        "0::/kubepods-pod.slice",
        "\u{fffd}",
    ] {
        assert_eq!(owner(text), Owner::Nobody, "{text:?}");
    }
}

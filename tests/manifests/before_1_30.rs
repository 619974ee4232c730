//! Kubernetes before 1.30, which has no admission policies: what of daemonset/ is for it, and what a user sees who takes the rest all the same.
//!
//! Not run unless asked for, because that version is built first; tests/cluster/README.md has the command.

use crate::apiserver::ApiServer;
use crate::applied;
use crate::manifest;

/// In the words of kubectl, which then ends with 1.
fn missing(kind: &str) -> String {
    format!("no matches for kind \"{kind}\" in version \"admissionregistration.k8s.io/v1\"")
}

#[test]
#[ignore = "for KUBERNETES_MINOR=1.27: see tests/cluster/README.md"]
fn what_is_beside_the_rights_applies_with_strict_validation() {
    let server = ApiServer::shared();
    for (folder, objects) in [
        ("3-agent.yaml", 1),
        ("example", 3),
        ("example/host-network", 1),
        ("pod-annotation", 2),
        ("uninstall", 2),
        ("inject/envfrom", 1),
        ("inject/aws-webhook/identities.yaml", 1),
    ] {
        assert_eq!(applied(server, folder).len(), objects, "{folder}");
    }
    // It brings its own namespace, which a dry run does not make.
    server.kubectl(&["apply", "--validate=strict", "-f", &manifest("local/example")]);
}

#[test]
#[ignore = "for KUBERNETES_MINOR=1.27: see tests/cluster/README.md"]
fn the_installations_for_newer_ones_are_refused_by_name_and_mint_nothing() {
    let server = ApiServer::shared();
    let mints = ["create", "serviceaccounts", "--subresource=token", "-n", "default"];
    // What daemonset/local has given it.
    assert!(server.agent_may(&mints));
    server.kubectl(&["delete", "clusterrolebinding", "rolecall-mint"]);
    for (folder, kinds) in [
        ("before-1.36", &["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"][..]),
        ("inject", &["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"]),
        ("", &["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"]),
    ] {
        let said = server.try_kubectl(&["apply", "-f", &manifest(folder)]).expect_err("it is refused");
        for kind in kinds {
            assert!(said.contains(&missing(kind)), "{folder}: {said}");
        }
        // kubectl applies what is left. Nothing of that is a right to mint.
        assert!(!server.agent_may(&mints), "{folder}");
    }
    // And back to what suits it, over all that.
    let rendered =
        server.kubectl(&["kustomize", "--load-restrictor=LoadRestrictionsNone", &manifest("local")]);
    let file = server.state().join("again.yaml");
    std::fs::write(&file, rendered).expect("the state can be written");
    server.kubectl(&["apply", "-f", file.to_str().expect("UTF-8")]);
    server.until_agent_may(&mints);
}

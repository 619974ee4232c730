//! What is shipped applies, with strict validation.

use serde_json::json;

use crate::apiserver::ApiServer;
use crate::injection::{URI, env_of, pair};
use crate::{applied, manifest};

#[test]
fn every_manifest_applies_with_strict_validation() {
    let server = ApiServer::shared();
    // daemonset/ alone, as in the README: kubectl does not descend into the folders beside it.
    assert_eq!(
        applied(server, ""),
        [
            "clusterrole/rolecall-agent",
            "clusterrole/rolecall-audiences",
            "clusterrole/rolecall-mint",
            "clusterrolebinding/rolecall-agent",
            "clusterrolebinding/rolecall-audiences",
            "clusterrolebinding/rolecall-mint",
            "configmap/rolecall-rights",
            "daemonset/rolecall",
            "namespace/rolecall",
            "serviceaccount/rolecall",
            "validatingadmissionpolicy/rolecall-tokens",
            "validatingadmissionpolicybinding/rolecall-tokens",
        ]
    );
    assert_eq!(
        applied(server, "example"),
        ["job/whoami", "namespace/rolecall-example", "serviceaccount/whoami"]
    );
    assert_eq!(applied(server, "example/host-network"), ["job/whoami-host"]);
    assert_eq!(
        applied(server, "pod-annotation"),
        ["clusterrole/rolecall-namespaces", "clusterrolebinding/rolecall-namespaces"]
    );
    assert_eq!(
        applied(server, "uninstall"),
        ["daemonset/rolecall-uninstall", "namespace/rolecall-uninstall"]
    );
    assert_eq!(
        applied(server, "inject"),
        [
            "mutatingadmissionpolicy/rolecall-inject",
            "mutatingadmissionpolicybinding/rolecall-inject-namespace",
            "mutatingadmissionpolicybinding/rolecall-inject-pod",
        ]
    );
    assert_eq!(applied(server, "inject/envfrom"), ["configmap/rolecall"]);
    assert_eq!(applied(server, "inject/aws-webhook/identities.yaml"), ["configmap/rolecall-identities"]);
}

#[test]
fn the_example_on_the_host_network_shows_a_token_for_the_agent() {
    let server = ApiServer::shared();
    let _ = server.try_kubectl(&["create", "namespace", "rolecall-example"]);
    let path = manifest("example/host-network");
    let job = server.json(&["apply", "--server-side", "--dry-run=server", "-f", &path]);
    let spec = &job["spec"]["template"]["spec"];
    assert_eq!(spec["hostNetwork"], true);
    let token = &spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], rolecall::identity::authorization::AUDIENCE);
    let mount = &spec["containers"][0]["volumeMounts"][0];
    let file = format!("{}/{}", mount["mountPath"].as_str().unwrap(), token["path"].as_str().unwrap());
    let env = env_of(&json!({"spec": spec}), "whoami");
    assert!(env.contains(&format!("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE={file}")), "{env:?}");
    assert!(env.contains(&pair(URI)), "{env:?}");
}

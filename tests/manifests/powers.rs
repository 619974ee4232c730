//! What the pods of the DaemonSet may do to their node, and how they stay there.

use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::{containers, manifest, pod_spec};

#[test]
fn no_container_is_privileged_or_claims_a_port_of_the_node() {
    let server = ApiServer::shared();
    for file in ["3-agent.yaml", "uninstall/uninstall.yaml"] {
        let spec = pod_spec(server, file);
        assert_eq!(spec["hostNetwork"], true, "{file}");
        for shared in ["hostIPC", "shareProcessNamespace"] {
            assert_eq!(spec.get(shared), None, "{file}: {shared}");
        }
        // What proves callers, and nothing else, sees the node's processes.
        assert_eq!(spec.get("hostPID"), (file == "3-agent.yaml").then_some(&json!(true)), "{file}");
        assert_eq!(spec["securityContext"], json!({"seccompProfile": {"type": "RuntimeDefault"}}), "{file}");
        for container in containers(&spec) {
            let name = &container["name"];
            assert_eq!(container.get("ports"), None, "{file}: {name}");
            let security = &container["securityContext"];
            assert_eq!(security["privileged"], false, "{file}: {name}");
            assert_eq!(security["allowPrivilegeEscalation"], false, "{file}: {name}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{file}: {name}");
            assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{file}: {name}");
            assert_eq!(security.get("seccompProfile"), None, "{file}: {name}: the pod's holds");
        }
    }
}

#[test]
fn what_sets_the_network_up_is_root_with_two_capabilities_and_the_agent_is_nobody_with_none() {
    let server = ApiServer::shared();
    for file in ["3-agent.yaml", "uninstall/uninstall.yaml"] {
        for container in containers(&pod_spec(server, file)) {
            let name = container["name"].as_str().expect("a name");
            let security = &container["securityContext"];
            let user = (&security["runAsUser"], &security["runAsGroup"], &security["runAsNonRoot"]);
            let added = &security["capabilities"]["add"];
            match name {
                "agent" => {
                    assert_eq!(user, (&json!(9902), &json!(9902), &json!(true)));
                    assert_eq!(added, &Value::Null);
                }
                "net-install" | "net-remove" => {
                    assert_eq!(user, (&json!(0), &json!(0), &Value::Null), "{name}");
                    assert_eq!(added, &json!(["NET_ADMIN", "CHOWN"]), "{name}");
                }
                _ => panic!("{file} has a container that nobody judged: {name}"),
            }
        }
    }
}

#[test]
fn the_optional_keeper_is_one_more_container_with_one_capability() {
    let server = ApiServer::shared();
    let without = pod_spec(server, "3-agent.yaml");
    let patched = server.kubectl(&[
        "patch",
        "--local",
        "-o=yaml",
        "-f",
        &manifest("3-agent.yaml"),
        "--patch-file",
        &manifest("net-keep/patch.yaml"),
    ]);
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().expect("a file");
    std::fs::write(&file, patched).expect("it is written");
    let path = file.path().to_str().expect("UTF-8");
    let applied =
        server.json(&["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", path]);
    let mut spec = applied["spec"]["template"]["spec"].clone();
    let mut all = spec["containers"].as_array().expect("containers").clone();
    let keeper = all.iter().position(|container| container["name"] == "net-keep").expect("net-keep");
    let keeper = all.remove(keeper);
    spec["containers"] = Value::Array(all);
    assert_eq!(spec, without, "nothing else has changed");

    assert_eq!(keeper["args"], json!(["net", "keep"]));
    let install = without["initContainers"][0].clone();
    assert_eq!((&keeper["image"], &keeper["env"]), (&install["image"], &install["env"]));
    assert_eq!((keeper.get("volumeMounts"), keeper.get("ports")), (None, None));
    let mut security = install["securityContext"].clone();
    security["capabilities"]["add"] = json!(["NET_ADMIN"]);
    assert_eq!(keeper["securityContext"], security);
}

#[test]
fn the_agent_sees_one_folder_of_the_node() {
    let spec = pod_spec(ApiServer::shared(), "3-agent.yaml");
    assert_eq!(
        spec["volumes"],
        json!([{"name": "run", "hostPath": {"path": "/run/rolecall", "type": "DirectoryOrCreate"}}])
    );
    for container in containers(&spec) {
        assert_eq!(container["volumeMounts"], json!([{"name": "run", "mountPath": "/run/rolecall"}]));
    }
}

#[test]
fn the_agent_runs_on_every_node_and_is_the_last_to_be_evicted() {
    let spec = pod_spec(ApiServer::shared(), "3-agent.yaml");
    assert_eq!(spec["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(spec["priorityClassName"], "system-node-critical");
    assert_eq!(spec["dnsPolicy"], "Default");
    assert_eq!(spec["terminationGracePeriodSeconds"], 30);
    for container in containers(&spec) {
        assert!(container["resources"]["requests"]["memory"].is_string(), "{container}");
    }
}

#[test]
fn the_harness_gives_the_agent_its_own_rights_and_no_more() {
    let server = ApiServer::shared();
    let kubeconfig = server.agent_kubeconfig("harness-node");
    let kubeconfig = kubeconfig.to_str().expect("UTF-8");
    let as_agent = |args: &[&str]| server.try_kubectl(&[&["--kubeconfig", kubeconfig], args].concat());
    let who = as_agent(&["auth", "whoami", "-o", "json"]).expect("the token is good");
    assert!(who.contains("system:serviceaccount:rolecall:rolecall"), "{who}");
    assert!(who.contains("harness-node"), "the token is bound to a pod of the node: {who}");
    let pods = ["get", "pods", "-A", "--field-selector=spec.nodeName=harness-node"];
    as_agent(&[&["--as=system:node:harness-node"], pods.as_slice()].concat()).expect("the agent lists pods");
    let refused = as_agent(&["get", "secrets", "-A"]).expect_err("the agent reads no Secrets");
    assert!(refused.contains("Forbidden"), "{refused}");
}

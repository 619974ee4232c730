//! daemonset/issuer: what applies, what it can do, and that agent, issuer and manifests mean the same files, names and audience.

use std::process::Command;

use rolecall::{config, issuer};
use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::{applied, containers, help, manifest};

fn objects() -> Vec<Value> {
    let args = ["apply", "--server-side", "--dry-run=server", "--force-conflicts", "-f", &manifest("issuer")];
    ApiServer::shared().json(&args)["items"].as_array().cloned().expect("a list")
}

fn object(kind: &str) -> Value {
    objects().into_iter().find(|object| object["kind"] == kind).expect("it is there")
}

fn template() -> Value {
    object("Deployment")["spec"]["template"]["spec"].clone()
}

#[test]
fn the_issuer_applies_with_strict_validation() {
    assert_eq!(
        applied(ApiServer::shared(), "issuer"),
        [
            "clusterrole/rolecall-audiences",
            "clusterrole/rolecall-issuer",
            "clusterrolebinding/rolecall-issuer",
            "deployment/rolecall-issuer",
            "networkpolicy/rolecall-issuer",
            "poddisruptionbudget/rolecall-issuer",
            "service/rolecall-issuer",
            "serviceaccount/rolecall-issuer",
        ]
    );
}

#[test]
fn the_issuer_is_nobody_with_nothing_of_the_node() {
    let spec = template();
    for shared in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
        assert_eq!(spec.get(shared), None, "{shared}");
    }
    assert_eq!(spec["securityContext"]["seccompProfile"], json!({"type": "RuntimeDefault"}));
    let all: Vec<&Value> = containers(&spec).collect();
    assert_eq!(all.len(), 1);
    let security = &all[0]["securityContext"];
    assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
    for (field, value) in [
        ("privileged", false),
        ("allowPrivilegeEscalation", false),
        ("readOnlyRootFilesystem", true),
        ("runAsNonRoot", true),
    ] {
        assert_eq!(security[field], value, "{field}");
    }
    let secrets: Vec<&str> = spec["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["secret"]["secretName"].as_str().unwrap())
        .collect();
    assert_eq!(secrets, ["rolecall-issuer-keys", "rolecall-issuer-tls"]);
}

#[test]
fn the_issuer_outlives_a_node_and_is_reached_by_its_name_alone() {
    assert_eq!(object("Deployment")["spec"]["replicas"], 2);
    assert_eq!(object("PodDisruptionBudget")["spec"]["minAvailable"], 1);
    let labels = object("Deployment")["spec"]["template"]["metadata"]["labels"].clone();
    for (kind, selector) in [
        ("Service", "/spec/selector"),
        ("PodDisruptionBudget", "/spec/selector/matchLabels"),
        ("NetworkPolicy", "/spec/podSelector/matchLabels"),
    ] {
        assert_eq!(object(kind).pointer(selector), Some(&labels), "{kind}");
    }
}

#[test]
fn program_and_manifests_mean_the_same_folders_ports_and_audience() {
    let (spec, help) = (template(), help(&["issuer"]));
    let container = &spec["containers"][0];
    for mount in container["volumeMounts"].as_array().unwrap() {
        let default = format!("[default: {}]", mount["mountPath"].as_str().unwrap());
        assert!(help.contains(&default), "{default}: {help}");
    }
    for port in container["ports"].as_array().unwrap() {
        assert!(help.contains(&format!("[default: 0.0.0.0:{}]", port["containerPort"])), "{port}");
    }
    for variable in container["env"].as_array().unwrap() {
        assert!(help.contains(&format!("[env: {}=]", variable["name"].as_str().unwrap())), "{variable}");
    }
    let audiences = objects().into_iter().find(|object| object["metadata"]["name"] == "rolecall-audiences");
    assert_eq!(audiences.unwrap()["rules"][0]["resources"], json!([issuer::AUDIENCE]));
    // It starts with what the manifest says, as far as there are files.
    let issuer = Command::new(env!("CARGO_BIN_EXE_rolecall"))
        .arg("issuer")
        .env_clear()
        .envs(
            container["env"]
                .as_array()
                .unwrap()
                .iter()
                .map(|one| (one["name"].as_str().unwrap(), one["value"].as_str().unwrap())),
        )
        .output()
        .unwrap();
    assert_eq!(issuer.status.code(), Some(1), "{}", String::from_utf8_lossy(&issuer.stderr));
}

#[test]
fn the_agents_patch_gives_it_a_token_for_the_issuer_and_the_issuers_ca() {
    let server = ApiServer::shared();
    let (agent, patch) = (manifest("3-agent.yaml"), manifest("issuer/agent/patch.yaml"));
    let patched = server.kubectl(&["patch", "--local", "-o=yaml", "-f", &agent, "--patch-file", &patch]);
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(&file, patched).unwrap();
    let path = file.path().to_str().unwrap();
    let applied =
        server.json(&["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", path]);
    let spec = &applied["spec"]["template"]["spec"];
    let agent = containers(spec).find(|one| one["name"] == "agent").unwrap();
    let env = |name: &str| {
        let mut env = agent["env"].as_array().unwrap().iter();
        env.find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name}"))["value"].as_str().unwrap()
    };
    assert_eq!(env("ROLECALL_TOKEN_SOURCE"), "issuer");
    let service = object("Service");
    let name = |field: &str| service["metadata"][field].as_str().unwrap();
    assert_eq!(env("ROLECALL_ISSUER_URL"), format!("https://{}.{}.svc", name("name"), name("namespace")));
    // A name of the cluster's, from the host network.
    assert_eq!(spec["dnsPolicy"], "ClusterFirstWithHostNet");

    let volume = spec["volumes"].as_array().unwrap().iter().find(|one| one["name"] == "issuer").unwrap();
    let sources = &volume["projected"]["sources"];
    let mount = agent["volumeMounts"].as_array().unwrap().iter().find(|one| one["name"] == "issuer").unwrap();
    let at = |path: &Value| format!("{}/{}", mount["mountPath"].as_str().unwrap(), path.as_str().unwrap());
    let token = &sources[0]["serviceAccountToken"];
    assert_eq!(
        (at(&token["path"]), &token["audience"]),
        (config::ISSUER_TOKEN.into(), &json!(issuer::AUDIENCE))
    );
    assert_eq!(at(&sources[1]["configMap"]["items"][0]["path"]), env("ROLECALL_ISSUER_CA_BUNDLE"));
    // The init container has neither.
    let init = &spec["initContainers"][0];
    assert_eq!(init["volumeMounts"].as_array().unwrap().len(), 1);
}

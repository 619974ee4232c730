//! daemonset/ and the Dockerfile: what is shipped applies to a real API server, holds no right and no power beyond the list,
//! and agrees with the program.

#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "manifests/issuer.rs"]
#[allow(clippy::unwrap_used)]
mod issuer;

#[path = "manifests/local.rs"]
mod local;

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use apiserver::ApiServer;
use rolecall::config;
use serde_json::{Value, json};

const URI: (&str, &str) = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23:9902/v1/credentials");
const WORD: (&str, &str) = ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "rolecall");
const REGIONS: [(&str, &str); 2] = [("AWS_REGION", "us-east-1"), ("AWS_DEFAULT_REGION", "us-east-1")];
const DIRECT: &str = "169.254.170.23,169.254.170.2,fd00:ec2::23";

// ---- what applies

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

/// Applies a folder in a dry run of the server and returns "kind/name" of what is in it, sorted. The namespaces are there
/// before: a dry run makes none.
fn applied(server: &ApiServer, folder: &str) -> Vec<String> {
    for namespace in ["rolecall-example", "rolecall-uninstall"] {
        let _ = server.try_kubectl(&["create", "namespace", namespace]);
    }
    let path = manifest(folder);
    let output = server.kubectl(&[
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "-o=name",
        "-f",
        &path,
    ]);
    let mut names: Vec<String> = output
        .lines()
        .map(|line| {
            let (kind, name) = line.split_once('/').expect("kind/name");
            format!("{}/{name}", kind.split('.').next().expect("split gives one"))
        })
        .collect();
    names.sort();
    names
}

// ---- powers

/// A DaemonSet as the server completes it, its pod template's spec.
fn pod_spec(server: &ApiServer, file: &str) -> Value {
    let _ = server.try_kubectl(&["create", "namespace", "rolecall-uninstall"]);
    let applied = server.json(&["apply", "--server-side", "--dry-run=server", "-f", &manifest(file)]);
    let items = applied["items"].as_array().cloned().unwrap_or_else(|| vec![applied]);
    let daemonset = items.into_iter().find(|object| object["kind"] == "DaemonSet").expect("a DaemonSet");
    daemonset["spec"]["template"]["spec"].clone()
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().filter_map(|kind| spec[kind].as_array()).flatten()
}

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

// ---- rights

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

// ---- injection

/// The server with the injection policy in force, and the pod `plain` as it was made without the policy.
fn injection() -> (&'static ApiServer, &'static Value) {
    static BEFORE: OnceLock<Value> = OnceLock::new();
    let server = ApiServer::shared();
    let before = BEFORE.get_or_init(|| {
        server.namespace("injection", &[]);
        let before = plain_pod(server);
        server.kubectl(&["apply", "--server-side", "-f", &manifest("inject")]);
        // The server reads policies into its admission chain a moment after they are stored, and has no word for it.
        let probe = pod(
            "injection",
            "probe",
            &[("rolecall.dev/inject", "true")],
            json!([{"name": "c", "image": "i"}]),
        );
        let in_force =
            (0..200).any(|_| env_of(&server.dry_run(&probe).expect("a pod"), "c").contains(&pair(URI)));
        assert!(in_force, "the policy was not in force after 200 pods");
        before
    });
    (server, before)
}

/// An unlabelled pod with a bit of everything that the policy looks at; made, read as the server stores it, deleted.
fn plain_pod(server: &ApiServer) -> Value {
    let object = pod(
        "injection",
        "plain",
        &[("app", "plain")],
        json!([
            {"name": "c", "image": "i", "env": [{"name": "NO_PROXY", "value": "a"}, {"name": "HTTP_PROXY", "value": "b"}]},
            {"name": "d", "image": "i"},
        ]),
    );
    server.create(&object).expect("a pod");
    let stored = server.kubectl(&["get", "--raw", "/api/v1/namespaces/injection/pods/plain"]);
    server.delete_pod("injection", "plain");
    serde_json::from_str(&stored).expect("the server answers JSON")
}

fn pod(namespace: &str, name: &str, labels: &[(&str, &str)], containers: Value) -> Value {
    let labels: serde_json::Map<String, Value> =
        labels.iter().map(|&(key, value)| (key.into(), value.into())).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        // No token volume: its name is random.
        "spec": {"automountServiceAccountToken": false, "containers": containers},
    })
}

/// The env of a container or init container, in order, as "NAME=value".
fn env_of(pod: &Value, container: &str) -> Vec<String> {
    let found = containers(&pod["spec"]).find(|one| one["name"] == container).expect("the container");
    let env = found["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    env.iter()
        .map(|e| format!("{}={}", e["name"].as_str().unwrap_or(""), e["value"].as_str().unwrap_or("?")))
        .collect()
}

fn pair((name, value): (&str, &str)) -> String {
    format!("{name}={value}")
}

/// The env of container `c` of a labelled pod that is given `spec` as its container.
fn injected(mut container: Value) -> Vec<String> {
    let (server, _) = injection();
    container["name"] = "c".into();
    container["image"] = "i".into();
    let object = pod("injection", "labelled", &[("rolecall.dev/inject", "true")], json!([container]));
    env_of(&server.dry_run(&object).expect("a pod"), "c")
}

#[test]
fn an_unlabelled_pod_stays_byte_identical() {
    let (server, before) = injection();
    let bytes = |pod: &Value| {
        let mut pod = pod.clone();
        let metadata = pod["metadata"].as_object_mut().expect("metadata");
        // What every creation has anew.
        for own in ["uid", "creationTimestamp", "resourceVersion"] {
            metadata.remove(own).expect("the server sets it");
        }
        for entry in metadata["managedFields"].as_array_mut().expect("managed fields") {
            entry["time"].take();
        }
        pod.to_string()
    };
    assert_eq!(bytes(&plain_pod(server)), bytes(before));
}

#[test]
fn a_labelled_pod_gets_the_variables_in_every_container() {
    let (server, _) = injection();
    let mut object = pod(
        "injection",
        "labelled",
        &[("rolecall.dev/inject", "true")],
        json!([{"name": "first", "image": "i"}, {"name": "second", "image": "i", "env": [{"name": "A", "value": "1"}]}]),
    );
    object["spec"]["initContainers"] = json!([
        {"name": "init", "image": "i"},
        {"name": "sidecar", "image": "i", "restartPolicy": "Always"},
    ]);
    let made = server.dry_run(&object).expect("a pod");
    let variables: Vec<String> = [URI, WORD, REGIONS[0], REGIONS[1]].map(pair).to_vec();
    for name in ["first", "init", "sidecar"] {
        assert_eq!(env_of(&made, name), variables, "{name}");
    }
    // The pod's own first, in their order: a later variable may refer to an earlier one.
    assert_eq!(env_of(&made, "second"), [vec!["A=1".to_owned()], variables].concat());
}

#[test]
fn a_labelled_namespace_labels_its_pods_and_a_pod_may_stay_out() {
    let (server, _) = injection();
    server.namespace("injection-namespace", &[("rolecall.dev/inject", "true")]);
    let made = |labels: &[(&str, &str)]| {
        let object = pod("injection-namespace", "p", labels, json!([{"name": "c", "image": "i"}]));
        env_of(&server.dry_run(&object).expect("a pod"), "c")
    };
    let variables = [URI, WORD, REGIONS[0], REGIONS[1]].map(pair);
    assert_eq!(made(&[]), variables);
    // Both bindings' labels at once: still each variable once.
    assert_eq!(made(&[("rolecall.dev/inject", "true")]), variables);
    assert_eq!(made(&[("rolecall.dev/inject", "false")]), [""; 0]);
}

#[test]
fn what_a_pod_sets_itself_stays() {
    let own = |name: &str, value: &str| json!({"env": [{"name": name, "value": value}]});
    let regions = REGIONS.map(pair).to_vec();
    let with = |first: &str, rest: &[Vec<String>]| [vec![first.to_owned()], rest.concat()].concat();
    // A further role by name, or another provider: then the word is the pod's own matter too.
    let uri = "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://169.254.170.23:9902/v1/credentials/other";
    assert_eq!(
        injected(own(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "http://169.254.170.23:9902/v1/credentials/other"
        )),
        with(uri, std::slice::from_ref(&regions))
    );
    // Most SDKs take it before the full one.
    assert_eq!(
        injected(own("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v1/credentials")),
        with("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v1/credentials", std::slice::from_ref(&regions))
    );
    // The file wins over the variable in some SDKs, and the variable over the file in others.
    assert_eq!(
        injected(own("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/token")),
        with("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=/token", &[vec![pair(URI)], regions])
    );
    for name in ["AWS_REGION", "AWS_DEFAULT_REGION"] {
        assert_eq!(
            injected(own(name, "eu-central-1")),
            with(&format!("{name}=eu-central-1"), &[vec![pair(URI), pair(WORD)]]),
        );
    }
    // A ConfigMap's names cannot be seen, and env would win over them.
    assert_eq!(
        injected(json!({"envFrom": [{"configMapRef": {"name": "settings"}}]})),
        [pair(URI), pair(WORD)]
    );
    // A value from elsewhere is a value.
    let region =
        json!({"env": [{"name": "AWS_REGION", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}]});
    assert_eq!(injected(region), with("AWS_REGION=?", &[vec![pair(URI), pair(WORD)]]));
}

#[test]
fn a_pod_behind_a_proxy_reaches_the_agent_directly() {
    let variables = [URI, WORD, REGIONS[0], REGIONS[1]].map(pair).to_vec();
    let env = |pairs: &[(&str, &str)]| {
        let env: Vec<Value> =
            pairs.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        injected(json!({"env": env}))
    };
    for proxy in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        let made = env(&[(proxy, "http://proxy:3128")]);
        let expected = [format!("{proxy}=http://proxy:3128")].into_iter().chain(variables.clone());
        let expected: Vec<String> =
            expected.chain([format!("NO_PROXY={DIRECT}"), format!("no_proxy={DIRECT}")]).collect();
        assert_eq!(made, expected);
    }
    // Its own exceptions are lengthened, with or without a proxy in sight: that may come from the image or from envFrom.
    for no_proxy in ["NO_PROXY", "no_proxy"] {
        assert_eq!(env(&[(no_proxy, ".svc,10.0.0.0/8")])[0], format!("{no_proxy}=.svc,10.0.0.0/8,{DIRECT}"));
        assert_eq!(env(&[(no_proxy, "*")])[0], format!("{no_proxy}=*"));
    }
    let both = env(&[("HTTP_PROXY", "http://proxy:3128"), ("NO_PROXY", "a"), ("no_proxy", "b")]);
    assert_eq!(both[1..3], [format!("NO_PROXY=a,{DIRECT}"), format!("no_proxy=b,{DIRECT}")]);
    assert_eq!(both[3..], variables);
}

#[test]
fn a_pod_that_names_a_variable_twice_is_still_made() {
    let made = injected(json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}));
    assert_eq!(made[..2], ["A=1", "A=2"]);
}

#[test]
fn the_variables_for_clusters_without_the_policy_are_the_ones_it_sets() {
    let readme = std::fs::read_to_string(manifest("README.md")).expect("daemonset/README.md");
    for (name, value) in [URI, WORD] {
        assert!(readme.contains(&format!("{{name: {name}, value: {value}}}")), "{name}");
    }
    assert!(readme.contains(DIRECT));
}

// ---- agreement with the program

#[test]
fn every_command_in_a_manifest_is_one_that_the_program_knows() {
    let server = ApiServer::shared();
    for file in ["3-agent.yaml", "uninstall/uninstall.yaml"] {
        for container in containers(&pod_spec(server, file)) {
            let commands = [
                &container["args"],
                &container["livenessProbe"]["exec"]["command"],
                &container["readinessProbe"]["exec"]["command"],
            ];
            let commands: Vec<Vec<&str>> = commands
                .into_iter()
                .filter_map(Value::as_array)
                .map(|words| {
                    words.iter().filter_map(Value::as_str).filter(|&word| word != "/rolecall").collect()
                })
                .collect();
            assert!(!commands.is_empty(), "{file}");
            let help: String = commands.iter().map(|command| help(command)).collect();
            for variable in container["env"].as_array().into_iter().flatten() {
                let name = variable["name"].as_str().expect("a name");
                assert!(help.contains(&format!("[env: {name}=")), "{file}: nothing reads {name}");
            }
        }
    }
}

/// The help of a command. A word before `--help` that the program does not know is an error.
fn help(command: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_rolecall")).args(command).arg("--help").output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("help is UTF-8")
}

#[test]
fn manifests_and_program_mean_the_same_addresses_user_and_folder() {
    let install = help(&["net", "install"]);
    for value in ["[default: 9902]", "[default: /run/rolecall]"] {
        assert!(install.contains(value), "net install: {value}");
    }
    assert_eq!(URI.1, format!("http://{}{}", config::LISTEN[0], "/v1/credentials"));
    assert_eq!(Path::new(config::LOCAL_SOCKET).parent(), Some(Path::new("/run/rolecall")));
    for address in DIRECT.split(',') {
        assert!(
            config::LISTEN.iter().any(|listen| listen.replace(['[', ']'], "").starts_with(address)),
            "{address}"
        );
    }
}

#[test]
fn manifests_name_the_images_of_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    for file in ["3-agent.yaml", "uninstall/uninstall.yaml"] {
        for container in containers(&pod_spec(ApiServer::shared(), file)) {
            let image = container["image"].as_str().expect("an image");
            assert!(
                [format!("rolecall/agent:{version}"), format!("rolecall/net:{version}")]
                    .contains(&image.to_owned()),
                "{file}: {image}"
            );
        }
    }
}

#[test]
fn the_image_is_built_by_the_toolchain_of_the_tree() {
    let toolchain = std::fs::read_to_string(manifest("../rust-toolchain.toml")).expect("rust-toolchain.toml");
    let channel = toolchain.split('"').nth(1).expect("a channel");
    let dockerfile = std::fs::read_to_string(manifest("../Dockerfile")).expect("Dockerfile");
    assert!(dockerfile.contains(&format!("ARG RUST_IMAGE=rust:{channel}-")), "{channel}");
    for last in dockerfile.split("FROM scratch").skip(1) {
        assert!(last.contains("USER 9902:9902"), "a final stage runs as root");
    }
}

fn manifest(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset").join(path).to_str().expect("UTF-8").to_owned()
}

//! daemonset/local: what it makes of the other manifests, on a real API server, and what the page about it says.

use std::collections::BTreeMap;

use rolecall::config;
use serde_json::Value;

use crate::apiserver::ApiServer;
use crate::{containers, help, manifest};

const PAGE: &str = include_str!("../../docs/local-cluster.md");

/// All objects as the server completes them, by "kind/name".
fn overlay() -> BTreeMap<String, Value> {
    let server = ApiServer::shared();
    let rendered =
        server.kubectl(&["kustomize", "--load-restrictor=LoadRestrictionsNone", &manifest("local")]);
    let file = server.state().join("local.yaml");
    std::fs::write(&file, rendered).expect("the state can be written");
    let applied = server.json(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        file.to_str().expect("UTF-8"),
    ]);
    let name = |object: &Value| {
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
    };
    applied["items"].as_array().expect("a list").iter().map(|object| (name(object), object.clone())).collect()
}

#[test]
fn the_overlay_applies_and_holds_nothing_that_kubernetes_1_27_lacks() {
    let names: Vec<String> = overlay().into_keys().collect();
    assert_eq!(
        names,
        [
            "ClusterRole/rolecall-agent",
            "ClusterRole/rolecall-mint",
            "ClusterRoleBinding/rolecall-agent",
            "ClusterRoleBinding/rolecall-mint",
            "ClusterRoleBinding/rolecall-sts",
            "ConfigMap/rolecall-rights",
            "ConfigMap/sts",
            "DaemonSet/rolecall",
            "Deployment/sts",
            "Namespace/rolecall",
            "Service/sts",
            "ServiceAccount/rolecall",
            "ServiceAccount/sts",
        ],
        "no admission policy: those are there from 1.30 on"
    );
}

#[test]
fn the_overlay_redirects_instance_metadata_to_where_the_agent_answers_it() {
    let overlay = overlay();
    let spec = &overlay["DaemonSet/rolecall"]["spec"]["template"]["spec"];
    let variable = |container: &Value, name: &str| {
        let found = container["env"].as_array().into_iter().flatten().find(|one| one["name"] == name);
        found.and_then(|one| one["value"].as_str()).map(str::to_owned)
    };
    let containers: Vec<&Value> = containers(spec).collect();
    assert_eq!(containers.len(), 2);
    for container in &containers {
        let listen = variable(container, "ROLECALL_IMDS_LISTEN");
        assert_eq!(listen, Some(config::imds::LISTEN.join(",")), "{}", container["name"]);
        let help = help(
            &container["args"].as_array().expect("args").iter().filter_map(Value::as_str).collect::<Vec<_>>(),
        );
        for variable in container["env"].as_array().expect("env") {
            let name = variable["name"].as_str().expect("a name");
            assert!(
                name.starts_with("AWS_") || help.contains(&format!("[env: {name}=")),
                "nothing reads {name}"
            );
        }
    }
    assert_eq!(variable(containers[0], "ROLECALL_METADATA_GUARD").as_deref(), Some("enforce"));
    // The kubelet names a Service's variable after it.
    assert_eq!(
        variable(containers[1], "AWS_ENDPOINT_URL_STS").as_deref(),
        Some("http://$(STS_SERVICE_HOST)")
    );
    assert_eq!(spec["enableServiceLinks"], true, "else the kubelet sets no STS_SERVICE_HOST");
    let service = &overlay["Service/sts"]["spec"];
    assert_eq!(
        (&service["ports"][0]["port"], &service["selector"]),
        (&80.into(), &overlay["Deployment/sts"]["spec"]["selector"]["matchLabels"])
    );
}

#[test]
fn the_sts_of_the_overlay_has_no_power_and_a_configuration_that_it_reads() {
    let overlay = overlay();
    let spec = &overlay["Deployment/sts"]["spec"]["template"]["spec"];
    assert!(spec["hostNetwork"].is_null() && spec["hostPID"].is_null());
    let container = &spec["containers"][0];
    let context = &container["securityContext"];
    assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
    assert_eq!((&context["runAsNonRoot"], &context["readOnlyRootFilesystem"]), (&true.into(), &true.into()));
    let args: Vec<&str> =
        container["args"].as_array().expect("args").iter().filter_map(Value::as_str).collect();
    let help = help(&args[..1]);
    for flag in args.iter().filter(|arg| arg.starts_with("--")) {
        assert!(help.contains(flag), "{flag}");
    }
    let config = overlay["ConfigMap/sts"]["data"]["emulator.yaml"].as_str().expect("the file");
    let file = ApiServer::shared().state().join("sts.yaml");
    std::fs::write(&file, config).expect("the state can be written");
    let config = rolecall::emulator::Config::read(&file).expect("it is such a file");
    assert!(config.any_role && config.issuers[0].api_server);
}

#[test]
fn the_command_that_switches_instance_metadata_on_reaches_both_who_need_it() {
    let page = include_str!("../../docs/instance-metadata.md");
    let set = "    kubectl -n rolecall set env daemonset/rolecall ROLECALL_IMDS_LISTEN=";
    let command = page.lines().find(|line| line.starts_with(set)).expect("a command");
    let variables: Vec<String> = command
        .split(' ')
        .filter(|word| word.starts_with("ROLECALL_"))
        .map(|word| word.replace('\'', ""))
        .collect();
    let file = manifest("3-agent.yaml");
    let args: Vec<&str> = ["set", "env", "--local", "-f", &file]
        .into_iter()
        .chain(variables.iter().map(String::as_str))
        .collect();
    let changed = ApiServer::shared().json(&args);
    for container in containers(&changed["spec"]["template"]["spec"]) {
        let env = container["env"].as_array().expect("env");
        let has =
            |name: &str, value: &str| env.iter().any(|one| one["name"] == name && one["value"] == value);
        assert!(has("ROLECALL_IMDS_LISTEN", &config::imds::LISTEN.join(",")), "{env:?}");
        assert!(has("ROLECALL_METADATA_GUARD", "enforce"), "{env:?}");
    }
}

#[test]
fn localstack_applies_as_the_version_that_the_tests_run() {
    let server = ApiServer::shared();
    let file = manifest("local/localstack.yaml");
    let applied =
        server.json(&["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", &file]);
    let (deployment, service) = (&applied["items"][0], &applied["items"][1]);
    let pod = &deployment["spec"]["template"];
    let pinned = include_str!("../sdk/localstack/requirements.txt");
    let version = pinned.lines().find_map(|line| line.strip_prefix("localstack-core==")).expect("a pin");
    assert_eq!(pod["spec"]["containers"][0]["image"], format!("localstack/localstack:{version}"));
    assert!(PAGE.contains(&format!("The file has LocalStack {version}.")));
    assert_eq!(service["spec"]["selector"], pod["metadata"]["labels"]);
    // Else its Service's variables would be settings of its own.
    assert_eq!(pod["spec"]["enableServiceLinks"], false);

    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let (name, port) = (text(&service["metadata"]["name"]), &service["spec"]["ports"][0]["port"]);
    assert!(PAGE.contains(&format!("AWS_ENDPOINT_URL=http://{name}.rolecall:{port}`")));
    // The agent has the variable of a Service of its own namespace, and `kubectl set env` leaves it to the kubelet to put it in.
    let set = "    kubectl -n rolecall set env daemonset/rolecall -c agent ";
    let variable =
        PAGE.lines().find_map(|line| line.strip_prefix(set)).expect("a command").trim_matches('\'');
    let value = format!("http://$({}_SERVICE_HOST):{port}", name.to_uppercase());
    assert_eq!(variable, format!("AWS_ENDPOINT_URL_STS={value}"));
    assert_eq!(service["metadata"]["namespace"], "rolecall");
    let agent = manifest("3-agent.yaml");
    let changed = server.json(&["set", "env", "--local", "-f", &agent, "-c", "agent", variable]);
    let agent = &changed["spec"]["template"]["spec"]["containers"][0]["env"];
    let set = agent.as_array().expect("env").iter().find(|one| one["name"] == "AWS_ENDPOINT_URL_STS");
    assert_eq!(set.expect("it is set")["value"], value.as_str());
}

#[test]
fn the_pages_commands_are_those_of_the_overlay() {
    let overlay = std::fs::read_to_string(manifest("local/kustomization.yaml")).expect("it is there");
    let command = overlay.lines().find_map(|line| line.strip_prefix("#     ")).expect("a command");
    assert!(PAGE.contains(&format!("    {command}\n")), "{command}");
    for file in ["local/example", "local/kustomization.yaml", "local/localstack.yaml", "uninstall"] {
        assert!(std::path::Path::new(&manifest(file)).exists(), "{file}");
    }
    assert!(PAGE.contains("daemonset/local/example/"));
    assert!(PAGE.contains("    kubectl apply -f daemonset/local/localstack.yaml\n"));
}

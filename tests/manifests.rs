//! daemonset/ and the Dockerfile: what is shipped applies to a real API server, holds no right and no power beyond the list,
//! and agrees with the program.

#[path = "support/apiserver.rs"]
mod apiserver;

#[path = "manifests/apply.rs"]
mod apply;
#[path = "manifests/before_1_30.rs"]
mod before_1_30;
#[path = "manifests/injection.rs"]
mod injection;
#[path = "manifests/issuer.rs"]
mod issuer;
#[path = "manifests/local.rs"]
mod local;
#[path = "manifests/powers.rs"]
mod powers;
#[path = "manifests/program.rs"]
mod program;

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use apiserver::ApiServer;

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

/// The help of a command. A word before `--help` that the program does not know is an error.
fn help(command: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_rolecall")).args(command).arg("--help").output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("help is UTF-8")
}

fn manifest(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset").join(path).to_str().expect("UTF-8").to_owned()
}

//! Manifests, Dockerfile and program mean the same commands, addresses, versions and toolchain.

use std::path::Path;

use rolecall::config;
use serde_json::Value;

use crate::apiserver::ApiServer;
use crate::injection::{DIRECT, URI};
use crate::{containers, help, manifest, pod_spec};

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

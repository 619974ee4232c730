//! `--sts-mode=assume-role` as an operator meets it: `rolecall roles` and the manifest, on a real API server.

#[path = "support/apiserver.rs"]
mod apiserver;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use apiserver::ApiServer;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

const ROLECALL: &str = env!("CARGO_BIN_EXE_rolecall");
const PATCH: &str = "daemonset/base-credentials/patch.yaml";

/// One test after the other: a dry run of the server shows what the others have left there.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn manifest(path: &str) -> String {
    format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))
}

fn arn(name: &str) -> String {
    format!("arn:aws:iam::111122223333:role/{name}")
}

fn roles(args: &[&str]) -> Output {
    let kubeconfig = ApiServer::shared().kubeconfig();
    Command::new(ROLECALL).args(["roles", "--kubeconfig"]).arg(kubeconfig).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_flags_are_those_of_every_role_that_the_cluster_names_and_what_is_none_is_told() {
    let _alone = alone();
    let server = ApiServer::shared();
    for namespace in ["roles-a", "roles-b"] {
        server.namespace(namespace, &[]);
    }
    let chain = [("rolecall.dev/role-arn", arn("a-web")), ("rolecall.dev/assume-role-arn", arn("a-team"))];
    let named =
        [("eks.amazonaws.com/role-arn", arn("b-api")), ("rolecall.dev/role-arn.backup", arn("b-backup"))];
    let wrong = [("rolecall.dev/role-arn", "arn:aws:s3:::bucket".to_owned())];
    for (namespace, account, annotations) in [
        ("roles-a", "web", &chain[..]),
        ("roles-b", "api", &named),
        ("roles-b", "same", &named[..1]),
        ("roles-b", "wrong", &wrong),
        ("roles-b", "none", &[]),
    ] {
        let annotations: Vec<(&str, &str)> = annotations.iter().map(|(key, arn)| (*key, &**arn)).collect();
        server.service_account(namespace, account, &annotations);
    }
    let entries =
        [("roles-a", "a-team"), ("roles-a", "a-web"), ("roles-b", "b-api"), ("roles-b", "b-backup")]
            .map(|(namespace, name)| format!("{namespace}={}", arn(name)));

    let printed = roles(&[]);
    let flags: String = entries.iter().map(|entry| format!("--allow-role {entry}\n")).collect();
    assert_eq!(text(&printed.stdout), flags);
    let said = text(&printed.stderr);
    assert!(said.contains("roles-b/wrong") && said.contains("arn:aws:s3:::bucket"), "{said}");
    assert_eq!(printed.status.code(), Some(1), "a flag is missing, so a script must not go on");

    // The agent takes what is printed, and then starts: it fails for another reason than its configuration.
    server.kubectl(&["delete", "serviceaccount", "wrong", "-n", "roles-b"]);
    let line = roles(&["--env"]);
    assert_eq!(text(&line.stdout), format!("ROLECALL_ALLOW_ROLE={}\n", entries.join(",")));
    assert_eq!((line.status.code(), text(&line.stderr)), (Some(0), String::new()));
    let (name, value) = line.stdout.split_at("ROLECALL_ALLOW_ROLE=".len());
    let variables = [(text(name).trim_end_matches('=').to_owned(), text(value).trim().to_owned())];
    let (code, said) = agent_with(&[patched_variables(PATCH), variables.to_vec()].concat());
    assert_eq!(code, Some(1), "{said}");
}

/// What the patched manifest gives the agent's container, as a server completes it; `fieldRef` and `secretKeyRef` have a word of ours.
fn patched_variables(patch: &str) -> Vec<(String, String)> {
    let container = agent_container(&patched(patch));
    let env = container["env"].as_array().unwrap().iter();
    let word = |one: &Value| one["value"].as_str().map_or("127.0.0.1".into(), str::to_owned);
    let set = env.map(|one| (one["name"].as_str().unwrap().to_owned(), word(one)));
    // It is a ConfigMap's word, `true` or `false`.
    set.filter(|(name, _)| name != "ROLECALL_IMPERSONATE_NODE").collect()
}

/// How the shipped binary ends with these variables and no API server, and what it says.
fn agent_with(variables: &[(String, String)]) -> (Option<i32>, String) {
    let socket = tempfile::tempdir().unwrap();
    let mut command = Command::new(ROLECALL);
    command.env_clear().args([
        "agent",
        "--identity=ip",
        "--listen=127.0.0.1:0",
        "--metrics-listen=127.0.0.1:0",
    ]);
    command.arg("--local-socket").arg(socket.path().join("agent.sock"));
    let output = command.envs(variables.iter().cloned()).output().unwrap();
    (output.status.code(), text(&output.stderr) + &text(&output.stdout))
}

/// The shipped DaemonSet's pods with that patch, as a server that takes nothing which it does not know completes them.
fn patched(patch: &str) -> Value {
    let server = ApiServer::shared();
    let daemonset = manifest("daemonset/3-agent.yaml");
    let patched =
        server.kubectl(&["patch", "--local", "-o=yaml", "-f", &daemonset, "--patch-file", &manifest(patch)]);
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(&file, patched).unwrap();
    let path = file.path().to_str().unwrap();
    let strict = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", path];
    server.json(&strict)["spec"]["template"]["spec"].clone()
}

fn agent_container(spec: &Value) -> Value {
    spec["containers"].as_array().unwrap().iter().find(|one| one["name"] == "agent").unwrap().clone()
}

#[test]
fn the_patch_mounts_the_keys_and_changes_nothing_else() {
    let _alone = alone();
    let server = ApiServer::shared();
    let path = manifest("daemonset/3-agent.yaml");
    let before = server.json(&["apply", "--server-side", "--dry-run=server", "-f", &path]);
    let before = before["spec"]["template"]["spec"].clone();
    let mut after = patched(PATCH);
    let volumes = after["volumes"].as_array_mut().unwrap();
    let place = volumes.iter().position(|volume| volume["name"] == "base-credentials").unwrap();
    let secret = volumes.remove(place)["secret"].clone();
    assert_eq!(
        (&secret["secretName"], &secret["optional"]),
        (&json!("rolecall-base-credentials"), &Value::Null)
    );

    let agent =
        after["containers"].as_array_mut().unwrap().iter_mut().find(|one| one["name"] == "agent").unwrap();
    let mounts = agent["volumeMounts"].as_array_mut().unwrap();
    let place = mounts.iter().position(|mount| mount["name"] == "base-credentials").unwrap();
    let mount = mounts.remove(place);
    assert_eq!(mount["readOnly"], true);
    let env = agent["env"].as_array_mut().unwrap();
    let mut take = |name: &str| {
        let place = env.iter().position(|one| one["name"] == name).unwrap_or_else(|| panic!("{name}"));
        env.remove(place)["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(take("ROLECALL_STS_MODE"), "assume-role");
    let file = take("AWS_SHARED_CREDENTIALS_FILE");
    assert_eq!(file, format!("{}/credentials", mount["mountPath"].as_str().unwrap()));
    assert_eq!(after, before);
}

#[test]
fn without_allow_role_the_patched_agent_does_not_start_and_says_what_to_do() {
    let _alone = alone();
    let (code, said) = agent_with(&patched_variables(PATCH));
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("--allow-role: is required") && said.contains("`rolecall roles`"), "{said}");
}

/// Each file that the page's table offers, and what the agent says of it when it starts.
#[test]
fn every_source_has_a_patch_that_fits_the_shipped_agent_and_sets_that_source_up() {
    let _alone = alone();
    let secrets = "/var/run/secrets/rolecall.dev";
    for (patch, source) in [
        ("environment.yaml", "environment".to_owned()),
        ("patch.yaml", format!("profile default of {secrets}/base-credentials/credentials")),
        ("roles-anywhere/patch.yaml", format!("profile default of {secrets}/roles-anywhere/config")),
        ("container.yaml", "container credentials of http://169.254.170.23/v1/credentials".to_owned()),
        ("instance-profile.yaml", "instance metadata at http://169.254.169.254".to_owned()),
    ] {
        let patch = format!("daemonset/base-credentials/{patch}");
        let spec = patched(&patch);
        let container = agent_container(&spec);
        let mounts: Vec<&str> = container["volumeMounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| mount["mountPath"].as_str().unwrap())
            .collect();
        // A server refuses a mount without its volume; that a file is looked for in a mount, it does not know.
        let mut variables = patched_variables(&patch);
        for (name, path) in variables.iter().filter(|(_, value)| value.starts_with(secrets)) {
            assert!(mounts.iter().any(|mount| path.starts_with(&format!("{mount}/"))), "{patch}: {name}");
        }
        variables.push(("ROLECALL_ALLOW_ROLE".into(), format!("shop={}", arn("k8s-*"))));
        let (code, said) = agent_with(&variables);
        assert!(
            code == Some(1) && said.contains(&format!("base-credentials=\\\"{source}\\\"")),
            "{patch}: {said}"
        );
    }
}

#[test]
fn the_config_of_roles_anywhere_is_a_map_with_what_its_patch_mounts() {
    let _alone = alone();
    let path = manifest("daemonset/base-credentials/roles-anywhere/config.yaml");
    let strict = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", &path];
    let map = ApiServer::shared().json(&strict);
    let spec = patched("daemonset/base-credentials/roles-anywhere/patch.yaml");
    let volumes = spec["volumes"].as_array().unwrap();
    let sources =
        &volumes.iter().find(|volume| volume["name"] == "roles-anywhere").unwrap()["projected"]["sources"];
    assert_eq!(sources[0]["configMap"]["name"], map["metadata"]["name"]);
    let key = sources[0]["configMap"]["items"][0]["key"].as_str().unwrap();
    assert!(
        map["data"][key]
            .as_str()
            .unwrap()
            .starts_with("[default]\ncredential_process = /aws_signing_helper ")
    );
}

/// AWS's helper is not here. Another program that is linked to a C library is put in its place, and runs where nothing else is.
#[test]
fn the_image_for_roles_anywhere_has_all_that_a_linked_program_loads() {
    let dockerfile = include_str!("../daemonset/base-credentials/roles-anywhere/Dockerfile");
    let run = dockerfile.split_once("\nRUN ").unwrap().1.split_once("\n\n").unwrap().0;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let build = |program: &str| {
        std::fs::copy(program, at("program")).unwrap();
        // The build's own root is this machine's here, so what it makes is made in a folder.
        let script = run
            .replace("\\\n", "\n")
            .replace("/aws_signing_helper", &at("program"))
            .replace("/libraries", &at("libraries"))
            .replace("/helper", &at("image"));
        Command::new("sh").args(["-c", &script]).output().unwrap()
    };
    let built = build("/bin/cat");
    assert!(built.status.success(), "{}", text(&built.stderr));
    let chroot = ["--map-root-user", "chroot", &at("image"), &at("program"), "--version"];
    let ran = Command::new("unshare").args(chroot).output().unwrap();
    assert!(ran.status.success() && text(&ran.stdout).contains("cat"), "{ran:?}");
    std::fs::remove_dir_all(at("image")).unwrap();
    // What is no program at all would be found out on the nodes only.
    assert!(!build(&manifest("Cargo.toml")).status.success());
}

/// The commands of docs/base-credentials.md from the Secret on, as they stand there, one after the other; `kubectl rollout status` would wait
/// for a controller that is not here.
#[test]
fn the_pages_commands_lead_to_an_agent_with_the_keys_and_without_the_right_to_mint() {
    let _alone = alone();
    let server = ApiServer::shared();
    server.kubectl(&["apply", "--server-side", "-f", &manifest("daemonset/3-agent.yaml")]);
    server.namespace("page", &[]);
    server.service_account("page", "web", &[("rolecall.dev/role-arn", &arn("page-web"))]);
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    std::fs::create_dir(at(".kube")).unwrap();
    std::fs::copy(server.kubeconfig(), at(".kube/config")).unwrap();
    std::os::unix::fs::symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/daemonset"), at("daemonset")).unwrap();
    let page = include_str!("../docs/base-credentials.md");
    let steps = page.split_once("**3. The Secret**").unwrap().1.split("\n## ").next().unwrap();
    let lines = steps.lines().filter_map(|line| line.strip_prefix("    "));
    let script: Vec<&str> = lines.filter(|line| !line.contains("rollout status")).collect();
    assert!(script.len() > 10, "{script:?}");
    let directory = |path: &Path| path.parent().unwrap().to_str().unwrap().to_owned();
    let path = [directory(Path::new(ROLECALL)), server.state().join("bin").to_str().unwrap().to_owned()];
    let path = format!("{}:{}", path.join(":"), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.args(["-euc", &script.join("\n")])
        .current_dir(home.path())
        .env("HOME", home.path())
        .env("PATH", path)
        .env_remove("KUBECONFIG");
    let output = bash.output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));

    let stored = server.json(&["get", "daemonset", "rolecall", "-n", "rolecall"]);
    let agent = agent_container(&stored["spec"]["template"]["spec"]);
    let env = agent["env"].as_array().unwrap();
    let value = |name: &str| {
        env.iter().find(|one| one["name"] == name).unwrap()["value"].as_str().unwrap().to_owned()
    };
    assert!(value("ROLECALL_ALLOW_ROLE").contains(&format!("page={}", arn("page-web"))));
    assert_eq!(value("ROLECALL_STS_MODE"), "assume-role");
    let secret = server.json(&["get", "secret", "rolecall-base-credentials", "-n", "rolecall"]);
    let file = BASE64_STANDARD.decode(secret["data"]["credentials"].as_str().unwrap()).unwrap();
    assert!(text(&file).contains("AKIA_THE_NEW_ONE"), "the second file has taken the place of the first");
    server.try_kubectl(&["get", "clusterrolebinding", "rolecall-mint"]).unwrap_err();
    server.kubectl(&["delete", "daemonset", "rolecall", "-n", "rolecall"]);
    server.kubectl(&["delete", "serviceaccount", "web", "-n", "page"]);
}

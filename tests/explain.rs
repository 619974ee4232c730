//! `rolecall explain`, and `rolecall roles` for pods, against a real API server: by one who may list three kinds of objects, and by one
//! who may not.
// clippy.toml allows it in tests, and does not know their helpers for such.
#![allow(clippy::unwrap_used)]

#[path = "support/apiserver.rs"]
mod apiserver;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::{Value, json};

use apiserver::{ApiServer, Pod};

const BASE: &str = "arn:aws:iam::111122223333:role/";

fn explain(kubeconfig: &Path, args: &[&str]) -> Output {
    rolecall("explain", kubeconfig, args)
}

/// A command of ours that has nothing of this test's environment.
fn rolecall(subcommand: &str, kubeconfig: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolecall"));
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("ROLECALL_") || name.starts_with("AWS_"))
    {
        command.env_remove(name);
    }
    command.arg(subcommand).arg("--kubeconfig").arg(kubeconfig).args(args).output().unwrap()
}

/// The verdicts of the namespace's pods.
fn verdicts(output: &Output, namespace: &str) -> Vec<(String, String)> {
    let document: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pods = document["pods"].as_array().unwrap().iter().filter(|pod| pod["namespace"] == namespace);
    pods.map(|pod| (text(&pod["pod"]), text(&pod["verdict"]))).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(pod, verdict)| ((*pod).to_owned(), (*verdict).to_owned())).collect()
}

/// Namespaces with a pod each that asks for `app`: the annotation, whose it is, and what is to be told.
const NAMESPACES: [(&str, &str, &str, &str); 5] = [
    ("mixed", r#"iam.amazonaws.com/allowed-roles=["app", 1]"#, "kube2iam", "loses"),
    ("letters", r#"iam.amazonaws.com/allowed-roles=["\\pL+"]"#, "kube2iam", "loses"),
    ("words", "iam.amazonaws.com/allowed-roles=app", "kube2iam", "none"),
    ("by-name", "iam.amazonaws.com/permitted=^app$", "kiam3", "loses"),
    ("by-arn", "iam.amazonaws.com/permitted=.*/app", "kiam3", "gains"),
];

/// More pods than one page holds, and what is asked for in them; all that the tests below need, made once.
fn cluster() -> &'static (&'static ApiServer, PathBuf) {
    static MADE: OnceLock<(&ApiServer, PathBuf)> = OnceLock::new();
    MADE.get_or_init(|| {
        let server = ApiServer::shared();
        server.namespace("legacy", &[]);
        server.kubectl(&["annotate", "namespace", "legacy", "iam.amazonaws.com/permitted=.*/legacy-[ab]"]);
        let role = |role: &'static str| [("iam.amazonaws.com/role", role)];
        for (name, annotations) in
            [("a", &role("legacy-a")[..]), ("b", &role("legacy-b")), ("c", &role("legacy-c")), ("none", &[])]
        {
            server.pod(&Pod { namespace: "legacy", name, service_account: "default", annotations, ..Pod::default() });
        }
        for (namespace, annotation, ..) in NAMESPACES {
            server.namespace(namespace, &[]);
            server.kubectl(&["annotate", "namespace", namespace, annotation]);
            let annotations = &[("iam.amazonaws.com/role", "app")];
            server.pod(&Pod { namespace, name: "a", service_account: "default", annotations, ..Pod::default() });
        }
        server.namespace("crowd", &[]);
        let pod = |number: usize| {
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "crowd", "name": format!("p{number:03}")},
                "spec": {"containers": [{"name": "main", "image": "none:1"}]},
            })
        };
        let list = json!({"apiVersion": "v1", "kind": "List", "items": (0..520).map(pod).collect::<Vec<_>>()});
        let file = server.state().join("crowd.json");
        std::fs::write(&file, list.to_string()).unwrap();
        server.kubectl(&["create", "-f", file.to_str().unwrap()]);
        (server, reader(server))
    })
}

/// Who may list those three kinds and do nothing else.
fn reader(server: &ApiServer) -> PathBuf {
    let kinds = "--resource=pods,serviceaccounts,namespaces";
    server.kubectl(&["create", "clusterrole", "reader", "--verb=list", kinds]);
    server.kubectl(&["create", "clusterrolebinding", "reader", "--clusterrole=reader", "--user=reader"]);
    let mut config = server.json(&["config", "view", "--raw", "--flatten"]);
    config["users"][0]["user"]["as"] = "reader".into();
    let path = server.state().join("reader.kubeconfig");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

#[test]
fn every_pod_of_the_cluster_has_its_role_of_today_beside_the_one_it_would_get() {
    let (_, reader) = cluster();
    let ours = [
        "--base-role-arn",
        BASE,
        "--role-source",
        "pod-annotation",
        "--allow-role=legacy=*",
        "--allow-role=by-arn=*",
        "--output=json",
    ];
    let output = explain(reader, &[&["--as", "kube2iam"], &ours[..]].concat());
    // kube2iam looked at no namespace; here its annotation counts.
    let expected = [("a", "same"), ("b", "same"), ("c", "loses"), ("none", "none")];
    assert_eq!(verdicts(&output, "legacy"), pairs(&expected));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(verdicts(&output, "crowd").len(), 520, "more than a page");

    let output = explain(reader, &[&["--as", "kiam"], &ours[..]].concat());
    let expected = [("a", "same"), ("b", "same"), ("c", "none"), ("none", "none")];
    assert_eq!(verdicts(&output, "legacy"), pairs(&expected));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// The text of each annotation as it comes from a real API server. What the tools make of it is in `src/explain/today.rs`.
#[test]
fn what_the_tools_read_otherwise_than_we_do_is_a_role_to_lose() {
    let (_, reader) = cluster();
    let ours = [
        "--base-role-arn",
        BASE,
        "--role-source=pod-annotation",
        "--allow-role=*=*",
        "--namespace-restrictions",
    ];
    for (namespace, annotation, tool, verdict) in NAMESPACES {
        let regexp: &[&str] = match tool {
            "kube2iam" => &["--namespace-restriction-format=regexp"],
            _ => &[],
        };
        let output = explain(reader, &[&["--as", tool, "--output=json"], &ours[..], regexp].concat());
        assert_eq!(verdicts(&output, namespace), pairs(&[("a", verdict)]), "{annotation}");
    }
}

/// What the flags allow is what the agent needs to be content, and nothing more.
#[test]
fn the_flags_for_pods_are_those_of_every_role_that_a_pod_names_and_its_namespace_permits() {
    let (_, reader) = cluster();
    let pods = ["--role-source", "pod-annotation", "--base-role-arn", BASE];
    let printed = rolecall("roles", reader, &pods);
    let flags = String::from_utf8(printed.stdout).unwrap();
    // A test beside this one has pods of its own.
    let flags: Vec<&str> = flags.lines().filter(|line| line.contains(" legacy=")).collect();
    let entries = ["legacy-a", "legacy-b"].map(|role| format!("--allow-role legacy={BASE}{role}"));
    assert_eq!(flags, entries);
    let said = String::from_utf8(printed.stderr).unwrap();
    assert!(said.contains("left out: ") && said.contains("role/legacy-c"), "{said}");
    assert_eq!(printed.status.code(), Some(1), "a pod is left out, so a script must not go on");

    let flags: Vec<&str> = entries.iter().flat_map(|entry| entry.split(' ')).collect();
    let output = explain(reader, &[&["--as", "kiam", "--output=json"], &pods[..], &flags].concat());
    let expected = [("a", "same"), ("b", "same"), ("c", "none"), ("none", "none")];
    assert_eq!(verdicts(&output, "legacy"), pairs(&expected));

    let typo = rolecall("roles", reader, &["--base-role-arn", BASE]);
    let said = String::from_utf8(typo.stderr).unwrap();
    assert!(said.contains("--base-role-arn: means something only with"), "{said}");
    assert_eq!(typo.status.code(), Some(64));
}

#[test]
fn the_table_names_the_reason() {
    let (_, reader) = cluster();
    let args = ["--as", "kube2iam", "--base-role-arn", BASE];
    let output = explain(reader, &args);
    let table = String::from_utf8(output.stdout).unwrap();
    let row = table.lines().find(|line| line.starts_with("legacy/a ")).unwrap();
    assert!(row.contains(&format!("{BASE}legacy-a")) && row.ends_with("LOSES ITS ROLE"), "{row}");
    assert!(table.contains("NoRole") && table.contains("not honoured"), "{table:.2000}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("8 lose it"), "{said}");
}

#[test]
fn who_may_not_read_the_cluster_and_who_mistypes_is_told() {
    let (server, reader) = cluster();
    let nobody = server.agent_kubeconfig("explain-nobody");
    let output = explain(&nobody, &["--as", "kiam"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    // The right to list namespaces comes and goes with the test of the page below.
    assert!(
        said.starts_with("error: ") && said.contains(" cannot be listed: ") && said.contains("forbidden"),
        "{said}"
    );

    let output = explain(reader, &["--as", "kiam", "--role-source=pod-annotation"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.starts_with("error: --allow-role: is required"), "{said}");
    assert_eq!(explain(reader, &["--as", "irsa"]).status.code(), Some(64));

    let nowhere = explain(Path::new("/nonexistent/kubeconfig"), &["--as", "kiam"]);
    assert_eq!(nowhere.status.code(), Some(1), "{nowhere:?}");
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("/nonexistent/kubeconfig"), "{nowhere:?}");
}

/// What the page tells to copy, in its order.
#[test]
fn the_page_about_moving_in_can_be_copied() {
    let page = include_str!("../docs/moving-in.md");
    let (server, reader) = cluster();
    server.namespace("shop", &[]);
    server.service_account("shop", "web", &[]);
    server.kubectl(&["apply", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/daemonset/3-agent.yaml")]);
    let agent = || {
        server.json(&["get", "daemonset", "rolecall", "-n", "rolecall"])["spec"]["template"]["spec"]["containers"][0]["env"].to_string()
    };
    server.documented_in(page, "kubectl apply -f daemonset/pod-annotation/", &[]);
    server.until_agent_may(&["watch", "namespaces"]);
    server.documented_in(
        page,
        "kubectl -n rolecall set env daemonset/rolecall -c agent ROLECALL_ROLE_SOURCE=",
        &[],
    );
    assert!(agent().contains(r#"{"name":"ROLECALL_ROLE_SOURCE","value":"pod-annotation"}"#), "{}", agent());
    let from_kube2iam = "kubectl -n shop annotate serviceaccount web rolecall.dev/role-arn=arn:aws:iam::111122223333:role/shop-web";
    let lines = page
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("kubectl") || line.starts_with("rolecall "));
    let mut read = 0;
    for line in lines {
        if line == from_kube2iam || line.contains("eks.amazonaws.com/role-arn") {
            let words: Vec<&str> = line.split_whitespace().skip(1).collect();
            server.kubectl(&[&words[..], &["--overwrite"]].concat());
        } else if let Some((command, rest)) =
            line.strip_prefix("rolecall ").and_then(|line| line.split_once(" --kubeconfig ~/.kube/config "))
        {
            let words: Vec<String> = rest.split_whitespace().map(|word| word.replace('\'', "")).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let output = rolecall(command, reader, &words);
            assert!(
                matches!(output.status.code(), Some(0 | 1)) && !output.stdout.is_empty(),
                "{line}: {output:?}"
            );
            read += 1;
        } else if let Some(rest) = line.strip_prefix("rolecall oidc trust-policy ") {
            let words = rest.replace("ISSUER_URL", "https://oidc.example.com/a");
            let mut trust_policy = Command::new(env!("CARGO_BIN_EXE_rolecall"));
            let output = trust_policy.args(["oidc", "trust-policy"]).args(words.split(' ')).output().unwrap();
            let policy: Value = serde_json::from_slice(&output.stdout).unwrap();
            let condition = policy["Statement"][0]["Condition"].to_string();
            assert!(condition.contains("system:serviceaccount:shop:web"), "{policy}");
            read += 1;
        } else {
            // What is not read here is run by its beginning, before or after.
            assert!(
                line.contains("daemonset/rolecall -c agent ROLECALL_ROLE_SOURCE")
                    || line.contains("daemonset/pod-annotation/"),
                "{line}"
            );
        }
    }
    assert_eq!(read, 5);
    server.documented_in(
        page,
        "kubectl -n rolecall set env daemonset/rolecall -c agent ROLECALL_ROLE_SOURCE-",
        &[],
    );
    assert!(!agent().contains("ROLECALL_ROLE_SOURCE"), "{}", agent());
    server.documented_in(page, "kubectl delete -f daemonset/pod-annotation/", &[]);
    let account = server.json(&["get", "serviceaccount", "web", "-n", "shop"]);
    assert_eq!(
        account["metadata"]["annotations"],
        json!({"eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/shop-web"})
    );
}

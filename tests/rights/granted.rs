//! daemonset/2-rbac.yaml and daemonset/before-1.36: whom they give what, and that the agent is told.

use std::process::Command;

use rolecall::config::AUDIENCE;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::apiserver::ApiServer;

/// Held by whoever compares what was granted with what ships, and by tests that grant otherwise for a while.
pub(crate) static SHIPPED: Mutex<()> = Mutex::const_new(());

#[test]
fn the_agent_has_these_rights_and_no_other() {
    let _as_shipped = SHIPPED.blocking_lock();
    let as_node = |group: &str, resource: &str, verbs: &[&str]| {
        let verbs: Vec<String> =
            verbs.iter().map(|verb| format!("impersonate-on:associated-node:{verb}")).collect();
        json!({"apiGroups": [group], "resources": [resource], "verbs": verbs})
    };
    let rule = |group: &str, resource: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
    let to_agent = json!([{"kind": "ServiceAccount", "name": "rolecall", "namespace": "rolecall"}]);
    let to_nodes =
        json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}]);
    let audiences = json!([rule("", AUDIENCE, &["request-serviceaccounts-token-audience"])]);

    let agent = json!([
        rule("authentication.k8s.io", "nodes", &["impersonate:associated-node"]),
        as_node("", "pods", &["list", "watch"]),
        as_node("", "nodes", &["get"]),
        as_node("authentication.k8s.io", "tokenreviews", &["create"]),
        rule("", "serviceaccounts", &["list", "watch"]),
    ]);
    assert_eq!(
        granted(ApiServer::shared()),
        [
            ("rolecall-agent".to_owned(), agent, vec![to_agent.clone()]),
            ("rolecall-audiences".to_owned(), audiences.clone(), vec![to_nodes]),
            (
                "rolecall-mint".to_owned(),
                json!([as_node("", "serviceaccounts/token", &["create"])]),
                vec![to_agent.clone()],
            ),
        ]
    );
    let agent = json!([
        rule("", "pods", &["list", "watch"]),
        rule("", "serviceaccounts", &["list", "watch"]),
        rule("", "nodes", &["get"]),
        rule("authentication.k8s.io", "tokenreviews", &["create"]),
    ]);
    assert_eq!(
        granted(ApiServer::before_1_36()),
        [
            ("rolecall-agent".to_owned(), agent, vec![to_agent]),
            ("rolecall-audiences".to_owned(), audiences, vec![]),
            ("rolecall-mint".to_owned(), json!([rule("", "serviceaccounts/token", &["create"])]), vec![]),
        ]
    );
}

/// Every role of ours with its rules and whom it is bound to, cluster-wide; and no other role is bound to the agent.
fn granted(server: &ApiServer) -> Vec<(String, Value, Vec<Value>)> {
    let list = |kinds: &str| server.json(&["get", kinds, "-A"])["items"].as_array().cloned().expect("a list");
    let bindings = list("clusterrolebindings,rolebindings");
    for binding in &bindings {
        let to_agent = binding["subjects"].as_array().into_iter().flatten().any(|subject| {
            subject["namespace"] == "rolecall" || subject["name"] == "system:serviceaccounts:rolecall"
        });
        let role = binding["roleRef"]["name"].as_str().expect("a role");
        assert!(!to_agent || role.starts_with("rolecall-"), "{binding}");
    }
    // The issuer's role is another ServiceAccount's, and has its own tests.
    let ours = |object: &Value| {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        name.starts_with("rolecall") && name != "rolecall-issuer"
    };
    let roles = list("clusterroles,roles").into_iter().filter(ours);
    roles
        .map(|role| {
            let name = role["metadata"]["name"].as_str().expect("a name").to_owned();
            // The RoleBindings are of the tests beside this one, which opt namespaces in.
            let bound = bindings.iter().filter(|binding| {
                binding["kind"] == "ClusterRoleBinding" && binding["roleRef"]["name"] == name.as_str()
            });
            let bound = bound.map(|binding| binding["subjects"].clone()).collect();
            (name, role["rules"].clone(), bound)
        })
        .collect()
}

/// The grant and the policy read one list; the agent's default is what ships in it.
#[test]
fn the_audience_that_ships_is_the_agents_default() {
    let _as_shipped = SHIPPED.blocking_lock();
    for (server, file) in [(ApiServer::shared(), "2-rbac.yaml"), (ApiServer::before_1_36(), "before-1.36")] {
        let list =
            server.json(&["get", "clusterrole", "rolecall-audiences"])["rules"][0]["resources"].clone();
        assert_eq!(list, json!([AUDIENCE]), "{file}");
        let policy = server.json(&["get", "validatingadmissionpolicy", "rolecall-tokens"]);
        assert!(!policy["spec"].to_string().contains(AUDIENCE), "{file}: a second list");
        assert_eq!(policy["spec"]["paramKind"]["kind"], "ClusterRole");
        let binding = server.json(&["get", "validatingadmissionpolicybinding", "rolecall-tokens"]);
        assert_eq!(
            binding["spec"]["paramRef"],
            json!({"name": "rolecall-audiences", "parameterNotFoundAction": "Deny"}),
            "{file}"
        );
    }
}

#[test]
fn the_agent_is_told_to_use_the_rights_that_it_was_given() {
    for (server, told) in [(ApiServer::shared(), "true"), (ApiServer::before_1_36(), "false")] {
        let settings =
            server.json(&["get", "configmap", "rolecall-rights", "-n", "rolecall"])["data"].clone();
        assert_eq!(settings, json!({"ROLECALL_IMPERSONATE_NODE": told}));
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/daemonset/3-agent.yaml");
        let strict = ["--server-side", "--dry-run=server", "--validate=strict"];
        let agent = server.json(&[&["apply"], strict.as_slice(), &["-f", manifest]].concat());
        // That word alone: who may write the ConfigMap must not set the agent's other flags.
        let agent = &agent["spec"]["template"]["spec"]["containers"][0];
        let key = json!({"name": "rolecall-rights", "key": "ROLECALL_IMPERSONATE_NODE"});
        assert_eq!(agent["envFrom"], serde_json::Value::Null);
        assert_eq!(agent["env"][0]["name"], "ROLECALL_IMPERSONATE_NODE");
        assert_eq!(agent["env"][0]["valueFrom"]["configMapKeyRef"], key);
        // The program takes the words; what is wrong is another thing.
        let agent = Command::new(env!("CARGO_BIN_EXE_rolecall"))
            .arg("agent")
            .env_clear()
            .env("ROLECALL_IMPERSONATE_NODE", told)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&agent.stderr).into_owned();
        assert!(said.starts_with("error: --node-name: is required"), "{said}");
    }
}

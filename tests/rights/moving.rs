//! What a cluster needs that moves in: the right to read namespaces' annotations, by choice; and operators that mint tokens for themselves.

use rolecall::config::AUDIENCE;
use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::granted::SHIPPED;
use crate::{before_1_36, kubernetes_1_36};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/daemonset/pod-annotation");

#[test]
fn the_agent_reads_namespaces_where_pods_are_asked_for_their_role_and_changes_none() {
    let _otherwise = SHIPPED.blocking_lock();
    for server in [ApiServer::shared(), ApiServer::before_1_36()] {
        assert!(!server.agent_may(&["list", "namespaces"]), "by choice alone");
        server.kubectl(&["apply", "--server-side", "--validate=strict", "-f", FOLDER]);
        server.until_agent_may(&["list", "namespaces"]);
        let role = server.json(&["get", "clusterrole", "rolecall-namespaces"]);
        assert_eq!(
            role["rules"],
            json!([{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["list", "watch"]}])
        );
        for verb in ["get", "create", "update", "patch", "delete", "impersonate"] {
            assert!(!server.agent_may(&[verb, "namespaces"]), "{verb}");
        }
        // As the page about leaving has it.
        server.kubectl(&["delete", "-f", FOLDER]);
    }
}

/// external-secrets, Flux and KEDA each mint for ServiceAccounts that somebody names to them: unbound, for audiences of their own,
/// for as long as they like. Our policy is about the agent alone.
#[tokio::test]
async fn an_operator_mints_its_own_tokens_as_if_we_were_not_there() {
    for cluster in [kubernetes_1_36::cluster(), before_1_36::cluster()] {
        let server = cluster.server;
        server.namespace("operator", &[]);
        server.namespace("tenant", &[]);
        server.service_account("tenant", "store", &[]);
        server.kubectl(&[
            "create",
            "clusterrole",
            "operator",
            "--verb=create",
            "--resource=serviceaccounts/token",
        ]);
        let to = "--serviceaccount=operator:default";
        server.kubectl(&["create", "clusterrolebinding", "operator", "--clusterrole=operator", to]);
        let token = server.kubectl(&["create", "token", "default", "-n", "operator"]);
        let operator = cluster.login("operator", json!({"token": token.trim()}));
        for (audiences, seconds) in [
            (json!([AUDIENCE]), 600),
            (json!([]), 3600),
            (json!(["vault", AUDIENCE]), 86_400),
            (json!(["https://kubernetes.default.svc"]), 7200),
        ] {
            let request = json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                "spec": {"audiences": audiences, "expirationSeconds": seconds},
            });
            let path = "/api/v1/namespaces/tenant/serviceaccounts/store/token";
            let answer = cluster.by(&operator).post(path, request).answer().await;
            let answer = answer.unwrap_or_else(|refused| panic!("{audiences}: {refused:?}"));
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["spec"]["expirationSeconds"], seconds, "{audiences}");
        }
    }
}

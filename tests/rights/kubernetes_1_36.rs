//! The agent acts as its node, and the Node authorizer, NodeRestriction and our policy hold it to its pods and to STS.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rolecall::cluster::api::KubeApi;
use rolecall::cluster::{self, Cluster as _, client};
use rolecall::identity;
use rolecall::identity::pods::{Pod, PodUid, Pods, ServiceAccountName};
use serde_json::{Value, json};
use tokio::time::{Instant, interval};

use crate::apiserver::ApiServer;
use crate::cluster::Expected::{Allowed, Refused};
use crate::cluster::{Cluster, STS};
use crate::rows;

pub(crate) fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::new(ApiServer::shared()))
}

const HERE: &str = "/api/v1/pods?fieldSelector=spec.nodeName%3Dhere";
const KUBE: &str = "https://kubernetes.default.svc.cluster.local";
/// How the API server puts that the agent may not do this as a node.
const NOT_AS_NODE: &str = "cannot impersonate-on:associated-node:";

// ---- what it needs

rows! {
    as_its_node_it_lists_the_pods_there: |c: &Cluster| c.as_node().get(HERE) => Allowed;
    as_its_node_it_watches_the_pods_there: |c: &Cluster| c.as_node().watch("/api/v1/pods", "spec.nodeName%3Dhere") => Allowed;
    as_its_node_it_reads_that_nodes_region: |c: &Cluster| c.as_node().get("/api/v1/nodes/here") => Allowed;
    as_its_node_it_mints_for_a_pod_there: |c: &Cluster| c.as_node().token(c, "shop/web", "web-1") => Allowed;
    as_its_node_it_reviews_a_callers_token:
        |c: &Cluster| c.as_node().post("/apis/authentication.k8s.io/v1/tokenreviews", review()) => Allowed;
    by_itself_it_lists_service_accounts: |c: &Cluster| c.itself().get("/api/v1/namespaces/shop/serviceaccounts") => Allowed;
    by_itself_it_watches_a_service_account:
        |c: &Cluster| c.itself().watch("/api/v1/namespaces/shop/serviceaccounts", "metadata.name%3Dweb") => Allowed;
}

// ---- what is left to a thief, on purpose

rows! {
    // A namespace does not opt in: `--allow-role` says which namespace may have which role.
    for_sts_it_mints_in_every_namespace_that_has_a_pod_on_the_node:
        |c: &Cluster| c.as_node().token(c, "kube-system/controller", "controller-1") => Allowed;
    by_itself_it_lists_the_service_accounts_of_the_cluster: |c: &Cluster| c.itself().get("/api/v1/serviceaccounts") => Allowed;
}

// ---- minting

rows! {
    by_itself_it_mints_nothing:
        |c: &Cluster| c.itself().token(c, "shop/web", "web-1") => Refused("cannot create resource \"serviceaccounts/token\"");
    a_token_of_a_pod_of_another_node_is_refused:
        |c: &Cluster| c.as_node().token(c, "shop/db", "db-1") => Refused("no relationship found between node 'here'");
    a_token_bound_to_a_pod_of_another_node_is_refused_for_any_account:
        |c: &Cluster| c.as_node().token(c, "shop/web", "db-1") => Refused("scheduled on a different node");
    a_token_of_an_account_without_a_pod_there_is_refused:
        |c: &Cluster| c.as_node().token(c, "shop/idle", "web-1") => Refused("no relationship found between node 'here'");
    a_token_that_is_bound_to_nothing_is_refused:
        |c: &Cluster| c.as_node().token(c, "shop/web", "web-1").but("boundObjectRef", Value::Null)
            => Refused("not bound to a pod");
    a_token_bound_to_a_pod_without_its_uid_is_refused:
        |c: &Cluster| c.as_node().token(c, "shop/web", "web-1").but("boundObjectRef/uid", json!("")) => Refused("without a uid");
    a_token_bound_to_a_pod_that_was_there_before_is_refused:
        |c: &Cluster| c.as_node().token(c, "shop/web", "web-1").but("boundObjectRef/uid", json!("another"))
            => Refused("does not match the UID");
    a_token_bound_to_a_secret_is_refused:
        |c: &Cluster| c.as_node().token(c, "shop/web", "web-1").but("boundObjectRef/kind", json!("Secret"))
            => Refused("not bound to a pod");
    a_token_for_the_api_server_is_refused:
        |c: &Cluster| c.as_node().token(c, "shop/web", "web-1").but("audiences", json!([KUBE]))
            => Refused("not authorized to request tokens for this audience");
    // web-1 has a volume with such a token, as nearly all pods have, so the API server alone would mint it.
    a_token_without_an_audience_which_is_for_the_api_server_is_refused:
        |c: &Cluster| c.as_node().token(c, "shop/web", "web-1").but("audiences", json!([]))
            => Refused("ClusterRole rolecall-audiences");
    a_token_for_an_audience_of_the_pods_own_volumes_is_refused:
        |c: &Cluster| c.as_node().token(c, "shop/web", "web-1").but("audiences", json!(["vault"]))
            => Refused("ClusterRole rolecall-audiences");
    a_token_for_sts_and_another_audience_is_refused:
        |c: &Cluster| c.as_node().token(c, "shop/web", "web-1").but("audiences", json!([STS, "vault"]))
            => Refused("0 or 1 audiences");
    a_token_of_the_agent_itself_for_the_api_server_is_refused:
        |c: &Cluster| c.as_node().token(c, "rolecall/rolecall", "agent-here").but("audiences", json!([]))
            => Refused("ClusterRole rolecall-audiences");
    a_token_that_outlives_an_hour_is_refused:
        |c: &Cluster| c.as_node().token(c, "shop/web", "web-1").but("expirationSeconds", json!(3601))
            => Refused("an hour at most");
}

// ---- being somebody else

rows! {
    impersonating_another_node_is_refused:
        |c: &Cluster| c.as_user("system:node:there").get(HERE) => Refused("cannot impersonate-on:arbitrary-node:list");
    impersonating_a_user_is_refused:
        |c: &Cluster| c.as_user("admin").get(HERE) => Refused("cannot impersonate-on:user-info:list");
    impersonating_a_service_account_is_refused:
        |c: &Cluster| c.as_user("system:serviceaccount:shop:web").get(HERE)
            => Refused("cannot impersonate-on:serviceaccount:list");
    impersonating_the_node_with_a_group_beside_it_is_refused:
        |c: &Cluster| c.as_node().header("impersonate-group", "system:masters").get(HERE) => Refused("cannot impersonate");
    // With one, the policy would take it for a kubelet.
    impersonating_the_node_with_more_about_it_is_refused:
        |c: &Cluster| c.as_node().header("impersonate-extra-authentication.kubernetes.io%2fcredential-id", "x").get(HERE)
            => Refused("cannot impersonate");
    impersonating_the_node_with_a_uid_is_refused:
        |c: &Cluster| c.as_node().header("impersonate-uid", "x").get(HERE) => Refused("cannot impersonate");
    a_token_of_the_agent_that_is_bound_to_no_pod_is_nobodys_node:
        |c: &Cluster| c.by(&c.unbound_agent()).header("impersonate-user", "system:node:here").get(HERE)
            => Refused("cannot impersonate");
}

// ---- reading

rows! {
    the_pods_of_the_cluster_are_not_shown: |c: &Cluster| c.as_node().get("/api/v1/pods") => Refused("field selector");
    the_pods_of_another_node_are_not_shown:
        |c: &Cluster| c.as_node().get("/api/v1/pods?fieldSelector=spec.nodeName%3Dthere") => Refused("field selector");
    the_pods_of_a_namespace_are_not_shown:
        |c: &Cluster| c.as_node().get("/api/v1/namespaces/shop/pods") => Refused("field selector");
    by_itself_it_lists_no_pods: |c: &Cluster| c.itself().get(HERE) => Refused("cannot list resource \"pods\"");
    by_itself_it_reads_no_node: |c: &Cluster| c.itself().get("/api/v1/nodes/here") => Refused("cannot get resource \"nodes\"");
    another_node_is_not_shown: |c: &Cluster| c.as_node().get("/api/v1/nodes/there") => Refused("only its own Node object");
    the_nodes_are_not_shown: |c: &Cluster| c.as_node().get("/api/v1/nodes") => Refused(NOT_AS_NODE);
    by_itself_it_reads_no_secret:
        |c: &Cluster| c.itself().get("/api/v1/namespaces/shop/secrets/key") => Refused("cannot get resource \"secrets\"");
    by_itself_it_lists_no_secrets: |c: &Cluster| c.itself().get("/api/v1/secrets") => Refused("cannot list resource \"secrets\"");
    // A pod of the node mounts it: the node itself may read it.
    a_secret_of_a_pod_there_is_not_shown:
        |c: &Cluster| c.as_node().get("/api/v1/namespaces/shop/secrets/key") => Refused(NOT_AS_NODE);
    a_config_map_of_a_pod_there_is_not_shown:
        |c: &Cluster| c.as_node().get("/api/v1/namespaces/shop/configmaps/settings") => Refused(NOT_AS_NODE);
    by_itself_it_reads_no_config_map:
        |c: &Cluster| c.itself().get("/api/v1/namespaces/shop/configmaps/settings")
            => Refused("cannot get resource \"configmaps\"");
    by_itself_it_reviews_no_token:
        |c: &Cluster| c.itself().post("/apis/authentication.k8s.io/v1/tokenreviews", review())
            => Refused("cannot create resource \"tokenreviews\"");
}

// ---- changing

rows! {
    a_taint_of_the_node_cannot_be_set:
        |c: &Cluster| c.as_node().patch("/api/v1/nodes/here", json!({"spec": {"unschedulable": true}})) => Refused(NOT_AS_NODE);
    the_status_of_the_node_cannot_be_set:
        |c: &Cluster| c.as_node().patch("/api/v1/nodes/here/status", json!({"status": {}})) => Refused(NOT_AS_NODE);
    by_itself_it_changes_no_node:
        |c: &Cluster| c.itself().patch("/api/v1/nodes/here", json!({"spec": {"taints": []}}))
            => Refused("cannot patch resource \"nodes\"");
    a_pod_of_the_node_cannot_be_deleted:
        |c: &Cluster| c.as_node().delete("/api/v1/namespaces/shop/pods/web-1") => Refused(NOT_AS_NODE);
    by_itself_it_deletes_no_pod:
        |c: &Cluster| c.itself().delete("/api/v1/namespaces/shop/pods/web-1") => Refused("cannot delete resource \"pods\"");
    a_pod_cannot_be_evicted:
        |c: &Cluster| c.as_node().post("/api/v1/namespaces/shop/pods/web-1/eviction", json!({})) => Refused(NOT_AS_NODE);
    a_pod_of_the_nodes_own_cannot_be_made:
        |c: &Cluster| c.as_node().post("/api/v1/namespaces/shop/pods", pod_of("web", "made")) => Refused(NOT_AS_NODE);
    by_itself_it_makes_no_pod:
        |c: &Cluster| c.itself().post("/api/v1/namespaces/rolecall/pods", pod_of("web", "made"))
            => Refused("cannot create resource \"pods\"");
    // An address there would be another pod's role, with --identity=ip.
    the_address_of_a_pod_cannot_be_set:
        |c: &Cluster| c.as_node().patch("/api/v1/namespaces/shop/pods/web-1/status", json!({"status": {}}))
            => Refused(NOT_AS_NODE);
    no_command_runs_in_a_pod:
        |c: &Cluster| c.itself().post("/api/v1/namespaces/shop/pods/web-1/exec?command=id", json!({}))
            => Refused("cannot create resource \"pods/exec\"");
    a_service_account_cannot_be_annotated:
        |c: &Cluster| c.itself().patch("/api/v1/namespaces/shop/serviceaccounts/web", json!({"metadata": {"annotations": {}}}))
            => Refused("cannot patch resource \"serviceaccounts\"");
    its_own_rights_cannot_be_widened:
        |c: &Cluster| c.itself().patch("/apis/rbac.authorization.k8s.io/v1/clusterroles/rolecall-agent", json!({"rules": []}))
            => Refused("cannot patch resource \"clusterroles\"");
    the_list_of_audiences_cannot_be_widened:
        |c: &Cluster| c.itself().patch("/apis/rbac.authorization.k8s.io/v1/clusterroles/rolecall-audiences", json!({"rules": []}))
            => Refused("cannot patch resource \"clusterroles\"");
    no_role_can_be_bound:
        |c: &Cluster| c.itself().post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding())
            => Refused("cannot create resource \"clusterrolebindings\"");
    the_policy_cannot_be_taken_away:
        |c: &Cluster| c.itself().delete("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/rolecall-tokens")
            => Refused("cannot delete resource \"validatingadmissionpolicies\"");
    no_certificate_of_the_node_can_be_asked_for:
        |c: &Cluster| c.as_node().post("/apis/certificates.k8s.io/v1/certificatesigningrequests", json!({}))
            => Refused(NOT_AS_NODE);
    the_nodes_lease_cannot_be_touched:
        |c: &Cluster| c.as_node().get("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/here")
            => Refused(NOT_AS_NODE);
    no_event_is_written_in_the_nodes_name:
        |c: &Cluster| c.as_node().post("/api/v1/namespaces/shop/events", json!({})) => Refused(NOT_AS_NODE);
}

fn review() -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "x"}})
}

fn pod_of(account: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "nodeName": "here", "serviceAccountName": account, "containers": [{"name": "main", "image": "none:1"}],
    }})
}

fn binding() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "made"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "rolecall", "namespace": "rolecall"}],
    })
}

// ---- lives

#[tokio::test]
async fn the_agents_token_ends_with_its_pod() {
    let server = cluster().server;
    let kubeconfig = server.agent_kubeconfig("leaving");
    let list = || cluster().by(&kubeconfig).get("/api/v1/namespaces/shop/serviceaccounts");
    list().answer().await.unwrap();
    server.delete_pod("rolecall", "agent-leaving");
    // The API server remembers for 10 s that a token was good.
    let begun = Instant::now();
    let mut looks = interval(Duration::from_millis(200));
    loop {
        match list().answer().await {
            Err((401, _)) => break,
            other => assert!(begun.elapsed() < Duration::from_secs(30), "{other:?}"),
        }
        looks.tick().await;
    }
}

/// The agent's own calls, with the shipped client.
async fn api() -> KubeApi {
    let config = client::config(Some(&cluster().agent)).await.unwrap();
    KubeApi::new(client::clients(&config, Some("here")).unwrap().node, "here")
}

/// A pod of an account of its own, on the node; as the agent's watch would show it.
fn pod_of_its_own(name: &str) -> Pod {
    let server = cluster().server;
    server.service_account("shop", name, &[]);
    let uid = server.pod(&crate::apiserver::Pod {
        namespace: "shop",
        name,
        service_account: name,
        node: "here",
        ..crate::apiserver::Pod::default()
    });
    Pod {
        uid: PodUid::new(uid),
        name: name.into(),
        service_account: ServiceAccountName { namespace: "shop".into(), name: name.into() },
        addresses: Vec::new(),
        ..rolecall::fakes::pod(name, "192.0.2.1")
    }
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_pod_that_is_being_deleted_still_gets_its_token_and_one_that_is_gone_does_not() {
    let pod = pod_of_its_own("ending");
    let (server, api) = (cluster().server, api().await);
    // No kubelet ends it, so it stays for its grace period.
    server.kubectl(&["delete", "pod", "ending", "-n", "shop", "--wait=false"]);
    api.request_token(&pod, STS, HOUR).await.unwrap();
    server.delete_pod("shop", "ending");
    let gone = api.request_token(&pod, STS, HOUR).await;
    assert!(matches!(gone, Err(cluster::Error::PodGone(_))), "{gone:?}");
}

#[tokio::test]
async fn a_pod_that_was_made_again_under_its_name_gets_no_token_of_the_one_before() {
    let before = pod_of_its_own("again");
    let server = cluster().server;
    server.delete_pod("shop", "again");
    let uid = server.pod(&crate::apiserver::Pod {
        namespace: "shop",
        name: "again",
        service_account: "again",
        node: "here",
        ..crate::apiserver::Pod::default()
    });
    let api = api().await;
    let gone = api.request_token(&before, STS, HOUR).await;
    assert!(matches!(gone, Err(cluster::Error::PodGone(_))), "{gone:?}");
    api.request_token(&Pod { uid: PodUid::new(uid), ..before }, STS, HOUR).await.unwrap();
}

#[tokio::test]
async fn the_agent_reads_its_nodes_region_and_its_pods() {
    let server = cluster().server;
    server.kubectl(&["label", "--overwrite", "node", "here", "topology.kubernetes.io/region=eu-central-1"]);
    let api = api().await;
    assert_eq!(api.facts().await.unwrap().region.as_deref(), Some("eu-central-1"));
    let pods = api.pods_now().await.unwrap();
    assert!(pods.iter().any(|pod| &*pod.name == "web-1") && !pods.iter().any(|pod| &*pod.name == "db-1"));
}

/// The agent's own token shows what the API server takes for itself; and nobody on the way may see such a token.
#[test]
fn an_agent_that_would_show_tokens_for_the_api_server_to_anybody_does_not_start() {
    let start = |args: &[&str]| {
        let socket = cluster().server.state().join("audience.sock");
        let agent = std::process::Command::new(env!("CARGO_BIN_EXE_rolecall"))
            .args(["agent", "--node-name", "here", "--identity", "ip", "--region", "eu-central-1"])
            .args(["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--local-socket"])
            .arg(socket)
            .arg("--kubeconfig")
            .arg(&cluster().agent)
            .args(args)
            .output()
            .unwrap();
        assert_eq!(agent.status.code(), Some(64), "{args:?}: {agent:?}");
        String::from_utf8(agent.stderr).unwrap()
    };
    let said = start(&["--audience", KUBE]);
    assert!(said.starts_with("error: --audience:") && said.contains("--allow-audience"), "{said}");
    let allowed = format!("{STS},{KUBE}");
    let said = start(&["--allow-audience", &allowed, "--sts-endpoint-url", "http://sts.example.com"]);
    assert!(
        said.starts_with("error: --allow-audience:") && said.contains("http://sts.example.com"),
        "{said}"
    );
}

#[tokio::test]
async fn another_audience_is_allowed_by_one_documented_command() {
    let _changes = crate::granted::SHIPPED.lock().await;
    let server = cluster().server;
    let ask = || cluster().as_node().token(cluster(), "shop/web", "web-1").but("audiences", json!(["minio"]));
    assert!(ask().answer().await.is_err());
    server.documented("kubectl patch clusterrole rolecall-audiences ", &[("AUDIENCE", "minio")]);
    // RBAC and the policy each learn of it by a watch.
    let begun = Instant::now();
    let mut looks = interval(Duration::from_millis(50));
    while let Err(refused) = ask().answer().await {
        assert!(begun.elapsed() < Duration::from_secs(15), "{refused:?}");
        looks.tick().await;
    }
    let shipped = r#"[{"op": "remove", "path": "/rules/0/resources/1"}]"#;
    server.kubectl(&["patch", "clusterrole", "rolecall-audiences", "--type=json", "-p", shipped]);
}

/// RoleBindings in place of the ClusterRoleBinding, by the documented command, for an agent of the test's own.
#[tokio::test]
async fn a_cluster_may_have_its_namespaces_opt_in() {
    let _changes = crate::granted::SHIPPED.lock().await;
    let cluster = cluster();
    let server = cluster.server;
    server.service_account("rolecall", "narrow", &[]);
    let subject = "--serviceaccount=rolecall:narrow";
    server.kubectl(&["create", "clusterrolebinding", "narrow", "--clusterrole=rolecall-agent", subject]);
    server.documented(
        "kubectl create rolebinding ",
        &[("NAMESPACE", "shop"), ("rolecall:rolecall", "rolecall:narrow")],
    );
    let narrow = server.kubeconfig_of_agent("narrow", "here", "narrow");
    let mint = |account: &str, pod: &str| {
        cluster
            .by(&narrow)
            .header("impersonate-user", "system:node:here")
            .token(cluster, account, pod)
            .answer()
    };
    let begun = Instant::now();
    let mut looks = interval(Duration::from_millis(50));
    while let Err(refused) = mint("shop/web", "web-1").await {
        assert!(begun.elapsed() < Duration::from_secs(15), "{refused:?}");
        looks.tick().await;
    }
    let refused = mint("kube-system/controller", "controller-1").await;
    assert!(matches!(&refused, Err((403, why)) if why.contains(NOT_AS_NODE)), "{refused:?}");
    server.kubectl(&["delete", "clusterrolebinding", "narrow"]);
    server.kubectl(&["delete", "rolebinding", "rolecall-mint", "-n", "shop"]);
}

/// The policy is about whoever impersonates a node. Nodes themselves log in with a certificate, and go on as before.
#[tokio::test]
async fn a_kubelet_with_its_certificate_gets_every_token_of_its_pods_volumes() {
    let kubelet = kubelet("here");
    for audiences in [json!([]), json!(["vault"])] {
        let ask =
            cluster().by(&kubelet).token(cluster(), "shop/web", "web-1").but("audiences", audiences.clone());
        let answer = ask.but("expirationSeconds", json!(7200)).answer().await;
        assert!(answer.is_ok(), "{audiences}: {answer:?}");
    }
}

/// A kubeconfig with a certificate of the cluster's CA, as a kubelet has it.
fn kubelet(node: &str) -> std::path::PathBuf {
    let state = cluster().server.state();
    let script = r#"
        openssl ecparam -name prime256v1 -genkey -noout -out "$1.key" &&
        openssl req -new -key "$1.key" -subj "/O=system:nodes/CN=system:node:$1" |
            openssl x509 -req -CA pki/ca.crt -CAkey pki/ca.key -days 1 -out "$1.crt" \
                -extfile <(echo basicConstraints=CA:FALSE)"#;
    let made =
        std::process::Command::new("bash").current_dir(state).args(["-c", script, "bash", node]).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let file = |end: &str| state.join(format!("{node}.{end}"));
    cluster().login("kubelet", json!({"client-certificate": file("crt"), "client-key": file("key")}))
}

/// The Node authorizer learns of a pod by a watch of its own, which may be behind the agent's.
#[tokio::test]
async fn a_new_pods_token_does_not_wait_for_the_agents_next_attempt() {
    let cluster = cluster();
    let admin = client::config(Some(&cluster.server.kubeconfig())).await.unwrap();
    let admin = client::client(&admin).unwrap();
    let post = async |path: &str, body: Value| -> Value {
        let request = http::Request::post(path).header("content-type", "application/json");
        admin.request(request.body(body.to_string().into_bytes()).unwrap()).await.unwrap()
    };
    let agent = client::clients(&client::config(Some(&cluster.agent)).await.unwrap(), Some("here")).unwrap();
    let api = KubeApi::new(agent.node.clone(), "here");
    let pods = Arc::new(Pods::default());
    let (client, seen) = (agent.node, Arc::clone(&pods));
    let watch = async { match identity::watch::follow(client, "here", seen, Arc::default(), false).await {} };
    let test = async {
        pods.wait_synced().await;
        let mut changes = pods.changes();
        for number in 0..60 {
            let name = format!("new-{number}");
            post("/api/v1/namespaces/shop/serviceaccounts", json!({"metadata": {"name": name}})).await;
            let made = post("/api/v1/namespaces/shop/pods", pod_of(&name, &name)).await;
            let uid = PodUid::new(made["metadata"]["uid"].as_str().unwrap());
            let pod = loop {
                if let Some(pod) = pods.by_uid(&uid) {
                    break pod;
                }
                changes.changed().await.unwrap();
            };
            api.request_token(&pod, STS, HOUR).await.unwrap();
        }
    };
    tokio::select! { () = test => {}, () = watch => {} }
}

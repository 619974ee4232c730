//! Without impersonation: what the agent reads is cluster-wide, a namespace opts in to minting, and our policy pins the rest.

use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::cluster::Cluster;
use crate::cluster::Expected::{Allowed, Refused};
use crate::rows;

/// `shop` has opted in; `closed` has not; somebody bound the role in kube-system and in the agent's own namespace all the same.
pub(crate) fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let cluster = Cluster::new(ApiServer::before_1_36());
        cluster.server.opt_in("shop");
        cluster.server.opt_in("kube-system");
        cluster.server.opt_in("rolecall");
        cluster.server.until_tokens_are_for_sts_alone(&cluster.agent, None, "shop", "web", "web-1");
        cluster
    })
}

const KUBE: &str = "https://kubernetes.default.svc.cluster.local";
const STS: &str = crate::cluster::STS;

// ---- what it needs

rows! {
    it_lists_the_pods_of_its_node: |c: &Cluster| c.itself().get("/api/v1/pods?fieldSelector=spec.nodeName%3Dhere") => Allowed;
    it_watches_the_pods_of_its_node: |c: &Cluster| c.itself().watch("/api/v1/pods", "spec.nodeName%3Dhere") => Allowed;
    it_reads_its_nodes_region: |c: &Cluster| c.itself().get("/api/v1/nodes/here") => Allowed;
    it_lists_service_accounts: |c: &Cluster| c.itself().get("/api/v1/namespaces/shop/serviceaccounts") => Allowed;
    it_watches_a_service_account:
        |c: &Cluster| c.itself().watch("/api/v1/namespaces/shop/serviceaccounts", "metadata.name%3Dweb") => Allowed;
    it_reviews_a_callers_token: |c: &Cluster| c.itself().post("/apis/authentication.k8s.io/v1/tokenreviews", review()) => Allowed;
    it_mints_in_a_namespace_that_has_opted_in: |c: &Cluster| c.itself().token(c, "shop/web", "web-1") => Allowed;
}

// ---- what is left to a thief, because nothing before 1.36 can say it

rows! {
    it_reads_the_pods_of_the_cluster: |c: &Cluster| c.itself().get("/api/v1/pods") => Allowed;
    it_reads_every_node_by_name: |c: &Cluster| c.itself().get("/api/v1/nodes/there") => Allowed;
    it_mints_for_sts_for_pods_of_other_nodes_in_a_namespace_that_has_opted_in:
        |c: &Cluster| c.itself().token(c, "shop/db", "db-1") => Allowed;
}

// ---- minting

rows! {
    in_a_namespace_that_has_not_opted_in_it_mints_nothing:
        |c: &Cluster| c.itself().token(c, "closed/web", "closed-1")
            => Refused("cannot create resource \"serviceaccounts/token\"");
    in_kube_system_it_mints_nothing_even_where_somebody_bound_the_role:
        |c: &Cluster| c.itself().token(c, "kube-system/controller", "controller-1") => Refused("no token in kube-system");
    // With one of another node's agent the issuer would take the holder for that agent.
    in_its_own_namespace_it_mints_nothing_even_where_somebody_bound_the_role:
        |c: &Cluster| c.itself().token(c, "rolecall/rolecall", "agent-here") => Refused("nor in its own namespace");
    a_token_for_the_api_server_is_refused:
        |c: &Cluster| c.itself().token(c, "shop/web", "web-1").but("audiences", json!([KUBE]))
            => Refused("ClusterRole rolecall-audiences");
    a_token_without_an_audience_which_is_for_the_api_server_is_refused:
        |c: &Cluster| c.itself().token(c, "shop/web", "web-1").but("audiences", json!([]))
            => Refused("ClusterRole rolecall-audiences");
    a_token_for_sts_and_the_api_server_is_refused:
        |c: &Cluster| c.itself().token(c, "shop/web", "web-1").but("audiences", json!([STS, KUBE]))
            => Refused("ClusterRole rolecall-audiences");
    a_token_that_is_bound_to_nothing_is_refused:
        |c: &Cluster| c.itself().token(c, "shop/web", "web-1").but("boundObjectRef", Value::Null)
            => Refused("bound to a pod, by name and UID");
    a_token_bound_to_a_pod_without_its_uid_is_refused:
        |c: &Cluster| c.itself().token(c, "shop/web", "web-1").but("boundObjectRef/uid", json!(""))
            => Refused("bound to a pod, by name and UID");
    a_token_bound_to_a_secret_is_refused:
        |c: &Cluster| c.itself().token(c, "shop/web", "web-1").but("boundObjectRef/kind", json!("Secret"))
            => Refused("bound to a pod, by name and UID");
    a_token_that_outlives_an_hour_is_refused:
        |c: &Cluster| c.itself().token(c, "shop/web", "web-1").but("expirationSeconds", json!(3601))
            => Refused("an hour at most");
    a_token_of_the_agent_that_is_bound_to_no_pod_mints_nothing:
        |c: &Cluster| c.by(&c.unbound_agent()).token(c, "shop/web", "web-1") => Refused("the token of its own pod");
}

// ---- the rest

rows! {
    impersonating_its_node_is_refused:
        |c: &Cluster| c.as_node().get("/api/v1/pods?fieldSelector=spec.nodeName%3Dhere")
            => Refused("cannot impersonate resource \"users\"");
    impersonating_a_service_account_is_refused:
        |c: &Cluster| c.as_user("system:serviceaccount:shop:web").get("/api/v1/pods")
            => Refused("cannot impersonate resource \"serviceaccounts\"");
    the_nodes_are_not_listed: |c: &Cluster| c.itself().get("/api/v1/nodes") => Refused("cannot list resource \"nodes\"");
    no_secret_is_read:
        |c: &Cluster| c.itself().get("/api/v1/namespaces/shop/secrets/key") => Refused("cannot get resource \"secrets\"");
    no_secrets_are_listed: |c: &Cluster| c.itself().get("/api/v1/secrets") => Refused("cannot list resource \"secrets\"");
    no_config_map_is_read:
        |c: &Cluster| c.itself().get("/api/v1/namespaces/shop/configmaps/settings")
            => Refused("cannot get resource \"configmaps\"");
    no_node_is_changed:
        |c: &Cluster| c.itself().patch("/api/v1/nodes/here", json!({"spec": {"taints": []}}))
            => Refused("cannot patch resource \"nodes\"");
    no_pod_is_deleted:
        |c: &Cluster| c.itself().delete("/api/v1/namespaces/shop/pods/web-1") => Refused("cannot delete resource \"pods\"");
    no_pod_is_made:
        |c: &Cluster| c.itself().post("/api/v1/namespaces/shop/pods", json!({})) => Refused("cannot create resource \"pods\"");
    no_service_account_is_annotated:
        |c: &Cluster| c.itself().patch("/api/v1/namespaces/shop/serviceaccounts/web", json!({"metadata": {"annotations": {}}}))
            => Refused("cannot patch resource \"serviceaccounts\"");
    no_namespace_is_opted_in:
        |c: &Cluster| c.itself().post("/apis/rbac.authorization.k8s.io/v1/namespaces/closed/rolebindings", json!({}))
            => Refused("cannot create resource \"rolebindings\"");
    the_list_of_audiences_is_not_widened:
        |c: &Cluster| c.itself().patch("/apis/rbac.authorization.k8s.io/v1/clusterroles/rolecall-audiences", json!({"rules": []}))
            => Refused("cannot patch resource \"clusterroles\"");
    the_policy_is_not_taken_away:
        |c: &Cluster| c.itself().delete("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/rolecall-tokens")
            => Refused("cannot delete resource \"validatingadmissionpolicies\"");
}

fn review() -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "x"}})
}

//! The central issuer's own right, on both servers: it asks whose token it was shown. A thief of its token has nothing else of the cluster.

use serde_json::{Value, json};

use crate::cluster::{Ask, Cluster};

/// The shipped ServiceAccount of the issuer, by a token of a pod of its own.
fn issuer(cluster: &Cluster) -> Ask {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/daemonset/issuer/issuer.yaml");
    cluster.server.kubectl(&["apply", "--server-side", "-f", manifest]);
    let pod = format!("issuer-{:x}", fastrand::u64(..));
    cluster.by(&cluster.server.kubeconfig_of_agent("rolecall-issuer", "", &pod))
}

macro_rules! on_both_servers {
    ($($name:ident: $ask:expr => $expected:expr;)+) => {
        mod kubernetes_1_36 {
            use super::{issuer, review};
            use crate::cluster::Expected::{Allowed, Refused};
            use crate::cluster::{Ask, Cluster};
            use crate::kubernetes_1_36::cluster;
            use serde_json::json;
            crate::rows! { $($name: |c: &Cluster| -> Ask { let ask: fn(&Cluster, Ask) -> Ask = $ask; ask(c, issuer(c)) } => $expected;)+ }
        }
        mod before_1_36 {
            use super::{issuer, review};
            use crate::before_1_36::cluster;
            use crate::cluster::Expected::{Allowed, Refused};
            use crate::cluster::{Ask, Cluster};
            use serde_json::json;
            crate::rows! { $($name: |c: &Cluster| -> Ask { let ask: fn(&Cluster, Ask) -> Ask = $ask; ask(c, issuer(c)) } => $expected;)+ }
        }
    };
}

fn review() -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "x"}})
}

on_both_servers! {
    the_issuer_reviews_tokens: |_, ask| ask.post("/apis/authentication.k8s.io/v1/tokenreviews", review()) => Allowed;
    the_issuer_mints_nothing_at_the_api_server:
        |c, ask| ask.token(c, "shop/web", "web-1") => Refused("cannot create resource \"serviceaccounts/token\"");
    the_issuer_reads_no_pods: |_, ask| ask.get("/api/v1/pods") => Refused("cannot list resource \"pods\"");
    the_issuer_reads_no_pod: |_, ask| ask.get("/api/v1/namespaces/shop/pods/web-1") => Refused("cannot get resource \"pods\"");
    the_issuer_reads_no_service_accounts:
        |_, ask| ask.get("/api/v1/serviceaccounts") => Refused("cannot list resource \"serviceaccounts\"");
    the_issuer_reads_no_secret:
        |_, ask| ask.get("/api/v1/namespaces/rolecall/secrets/rolecall-issuer-keys") => Refused("cannot get resource \"secrets\"");
    the_issuer_reads_no_node: |_, ask| ask.get("/api/v1/nodes/here") => Refused("cannot get resource \"nodes\"");
    the_issuer_is_no_node: |_, ask| ask.header("impersonate-user", "system:node:here").get("/api/v1/nodes/here")
        => Refused("cannot impersonate");
    the_issuer_changes_no_policy:
        |_, ask| ask.patch("/apis/rbac.authorization.k8s.io/v1/clusterroles/rolecall-audiences", json!({"rules": []}))
            => Refused("cannot patch resource \"clusterroles\"");
}

//! What the agent may do in the cluster, row by row, with the token of its own pod and the rights that ship, on real API servers:
//! all that it needs is possible, and what a thief of that token would try is refused.
//!
//! `kubernetes_1_36` has `daemonset/2-rbac.yaml`, where the agent acts as its node; `before_1_36` has `daemonset/before-1.36/`; `granted` compares
//! both with the list.

#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "rights/before_1_36.rs"]
mod before_1_36;
#[path = "rights/cluster.rs"]
mod cluster;
#[path = "rights/granted.rs"]
mod granted;
#[path = "rights/issuer.rs"]
mod issuer;
#[path = "rights/kubernetes_1_36.rs"]
mod kubernetes_1_36;
#[path = "rights/moving.rs"]
mod moving;

/// A test for each row: its name is the claim, and the request is allowed, or refused with 403 for that reason.
macro_rules! rows {
    ($($name:ident: $ask:expr => $expected:expr;)+) => {$(
        #[tokio::test]
        async fn $name() {
            cluster().judge($ask, $expected).await;
        }
    )+};
}
pub(crate) use rows;

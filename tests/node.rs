//! The main job on real parts: a pod of the node gets the credentials of its ServiceAccount's role.
//!
//! Real are the agent (the binary that ships, on its default addresses, with the ServiceAccount and the rights that ship), the API server
//! that mints the tokens, the kernel between pod and node, and the SDKs. STS is the emulator, which checks every token against the API
//! server's own keys and the role's trust policy. Made by hand is what a kubelet would do: namespaces, processes' cgroups, and the status of pods.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/http.rs"]
mod http;
#[path = "support/in_pods.rs"]
mod in_pods;
#[path = "support/net.rs"]
mod net;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/node_metadata.rs"]
mod node_metadata;
#[path = "support/process.rs"]
mod process;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/sdk.rs"]
mod sdk;
#[path = "support/tenant.rs"]
mod tenant;
#[path = "support/world.rs"]
mod world;

#[path = "node/grants.rs"]
mod grants;
#[path = "node/lifecycle.rs"]
mod lifecycle;
#[path = "node/metadata.rs"]
mod metadata;
#[path = "node/pod_annotation.rs"]
mod pod_annotation;
#[path = "node/sdks.rs"]
mod sdks;
#[path = "node/tokens.rs"]
mod tokens;
#[path = "node/trouble.rs"]
mod trouble;

/// What `net install` and the agent are told beside their defaults.
const INSTALL: &[&str] = &[];
const AGENT: &[&str] = &[];

/// The Kubernetes namespaces of the tests: STS has roles for the ServiceAccounts of each.
const NAMESPACES: &[&str] = &[
    "routed",
    "bridged",
    "ipv6",
    "relative",
    "proxied",
    "back",
    "slow",
    "denied",
    "no-role",
    "bound",
    "hundred",
    "host",
    "host-token",
    "own-token",
    "deleted",
    "reused",
    "changed",
    "revoked",
    "distrusted",
    "failing",
    "tls",
    "away",
    "early",
    "drained",
    "second-signal",
    "by-address",
    "stalled",
    "secrets",
    "enforced",
    "kube2iam",
    "kiam",
    "permitted",
    "trespass",
];

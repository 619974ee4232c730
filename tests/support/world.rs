//! One node for a whole test binary: a real API server, the shipped agent as a process, an STS that validates, pods in namespaces.
//!
//! All of it is in the network namespace of that node. A test's own code runs there too, on a thread of its own, so `127.0.0.1` means
//! the node; what a pod does goes through [`RunningPod`].
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::fs;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

use rolecall::emulator::{Bound, Config, Emulator, Fault, IssuerConfig, RoleConfig, Tls};
use serde_json::{Value, json};

use crate::agent::{Agent, ROLECALL};
use crate::apiserver::ApiServer;
use crate::gateway::Gateway;
use crate::net;
use crate::netns::{NODE_IP, Node};
use crate::tenant::{RunningPod, Shape, Tenant, pod_object};

/// Where the node's own agent listens.
pub const V4: &str = "169.254.170.23:9902";
/// The ServiceAccounts that have a role in every namespace: `NAMESPACE-ACCOUNT`, which trusts nobody else. The SDKs' names are among
/// them. And each namespace has a role `NAMESPACE-any` for all of its ServiceAccounts.
const ACCOUNTS: [&str; 8] = ["web", "api", "boto3", "aws-cli", "go", "java", "js", "rust"];
/// The account of those roles.
const ACCOUNT_ID: &str = "111122223333";

/// Runs a test inside the node, in a Kubernetes namespace of its own. Not at all where this machine has no network namespaces, which
/// has been said, and is a failure under `CI`.
pub fn on_the_node(namespace: &'static str, test: impl AsyncFnOnce(&Case) + Send) {
    static WORLD: OnceLock<Option<World>> = OnceLock::new();
    let Some(world) = WORLD.get_or_init(World::start) else {
        // Says so, once for every test.
        assert!(Node::new(namespace).is_none());
        return;
    };
    world.node.run(async || {
        let case = Case::new(world, namespace).await;
        test(&case).await;
        world.agent.has_told_no_secret();
    });
}

/// What all tests share.
pub struct World {
    pub node: Node,
    pub emulator: Emulator,
    /// Its URL, for agents and for pods.
    pub sts: String,
    pub agent: Agent,
    pub server: &'static ApiServer,
    numbers: AtomicU16,
}

impl World {
    fn start() -> Option<Self> {
        let node = Node::new("node")?;
        net::install(&node, crate::INSTALL);
        let (server, emulator, sts, agent) = node.run(async || {
            let server = ApiServer::shared();
            let (emulator, sts) = serve_sts(&node, server, &format!("{NODE_IP}:0"), None);
            let kubeconfig = server.agent_kubeconfig("node");
            let args = [crate::AGENT, &["--sts-endpoint-url", &sts]].concat();
            let agent = start_agent(&node, server, "node", &kubeconfig, &args);
            agent.until_ready().await;
            (server, emulator, sts, agent)
        });
        Some(Self { node, emulator, sts, agent, server, numbers: AtomicU16::new(10) })
    }

    /// Never the same twice, and never a whole node's own.
    fn number(&self) -> u16 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

/// The agent with the word about its rights that stands in the manifests for that Kubernetes.
fn start_agent(node: &Node, server: &ApiServer, name: &str, kubeconfig: &Path, args: &[&str]) -> Agent {
    let mut command = node.command(ROLECALL);
    command.env("ROLECALL_IMPERSONATE_NODE", server.impersonation.to_string());
    Agent::start_by(command, name, &format!("/run/{name}.sock"), kubeconfig, args)
}

/// An STS that believes the API server's keys, on a thread inside the node for as long as this process lives.
fn serve_sts(node: &Node, server: &ApiServer, at: &str, tls: Option<Tls>) -> (Emulator, String) {
    let issuer = server.issuer();
    let issuer_name = issuer.trim_start_matches("https://").to_owned();
    let role = |namespace: &str, name: &str, account: &str| RoleConfig {
        arn: arn(namespace, name),
        trust_policy: json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow",
            "Principal": {"Federated": format!("arn:aws:iam::{ACCOUNT_ID}:oidc-provider/{issuer_name}")},
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": {
                "StringEquals": {format!("{issuer_name}:aud"): "sts.amazonaws.com"},
                "StringLike": {format!("{issuer_name}:sub"): format!("system:serviceaccount:{namespace}:{account}")},
            },
        }]}),
        ..RoleConfig::default()
    };
    let config = Config {
        issuers: vec![IssuerConfig {
            url: issuer.clone(),
            jwks: Some(server.jwks().into()),
            ..IssuerConfig::default()
        }],
        roles: crate::NAMESPACES
            .iter()
            .flat_map(|namespace| {
                let own = ACCOUNTS.map(|account| role(namespace, account, account));
                own.into_iter().chain([role(namespace, "any", "*")])
            })
            .collect(),
        ..Config::default()
    };
    let (sender, started) = std::sync::mpsc::channel();
    let at = at.parse().unwrap();
    node.serve(async move || {
        let mut bound: Bound = Emulator::bind(config, at).await.unwrap();
        if let Some(tls) = tls {
            bound = bound.with_tls(tls);
        }
        sender.send((bound.emulator(), bound.url())).unwrap();
        bound.serve().await;
    });
    started.recv().unwrap()
}

/// The role that `account` may have.
pub fn arn(namespace: &str, account: &str) -> String {
    format!("arn:aws:iam::{ACCOUNT_ID}:role/{namespace}-{account}")
}

/// Whom STS takes the holder of that role's credentials for.
pub fn session_arn(namespace: &str, account: &str) -> String {
    format!("arn:aws:sts::{ACCOUNT_ID}:assumed-role/{namespace}-{account}/{namespace}.{account}")
}

/// One test's part of the world: its Kubernetes namespace.
pub struct Case {
    pub world: &'static World,
    pub namespace: &'static str,
    tenant: Tenant,
}

impl Deref for Case {
    type Target = Tenant;
    fn deref(&self) -> &Tenant {
        &self.tenant
    }
}

impl Case {
    async fn new(world: &'static World, namespace: &'static str) -> Self {
        assert!(crate::NAMESPACES.contains(&namespace), "STS has no roles for {namespace}");
        Self { world, namespace, tenant: Tenant::new(world.server, namespace, json!({})).await }
    }

    /// A ServiceAccount with the role that trusts it.
    pub async fn account(&self, name: &str) {
        self.account_with(name, json!({"rolecall.dev/role-arn": arn(self.namespace, name)})).await;
    }

    /// Gives agents the right that `--role-source=pod-annotation` needs.
    pub fn may_read_namespaces(&self) {
        self.world.server.may_read_namespaces();
    }

    /// A pod of `account` on the node, behind a cable of its own.
    pub async fn pod(&self, account: &str) -> RunningPod {
        self.pod_on("node", account, Shape::Routed).await
    }

    /// A pod whose API object has everything that a kubelet would have written, on the node or on one that only agents' names tell
    /// from it.
    pub async fn pod_on(&self, node: &str, account: &str, shape: Shape) -> RunningPod {
        self.start(node, account, shape, true).await
    }

    /// A pod as it is when it starts: its object has no address yet.
    pub async fn new_pod_on(&self, node: &str, account: &str) -> RunningPod {
        self.start(node, account, Shape::Routed, false).await
    }

    async fn start(&self, node: &str, account: &str, shape: Shape, published: bool) -> RunningPod {
        let number = self.world.number();
        let object = pod_object(node, &format!("{account}-{number}"), account);
        RunningPod::start(self, &self.world.node, number, shape, &object, published).await
    }

    /// One more agent: for another node by name, on a port of the node's address. Returns where it listens, which it does already.
    pub async fn agent(&self, node: &str, kubeconfig: &Path, args: &[&str]) -> (Agent, SocketAddr) {
        let at = format!("{NODE_IP}:{}", 10_000 + self.world.number());
        let args = [&["--listen", &at, "--metrics-listen", "127.0.0.1:0"], args].concat();
        let agent = start_agent(&self.world.node, self.world.server, node, kubeconfig, &args);
        agent.until_page("/livez", |status, _| status == 200).await;
        (agent, at.parse().unwrap())
    }

    /// A kubeconfig for an agent on a node of that name: the ServiceAccount and the rights that ship.
    pub fn kubeconfig(&self, node: &str) -> PathBuf {
        self.world.server.agent_kubeconfig(node)
    }

    /// A gateway before the API server, and the agent's kubeconfig by way of it.
    pub async fn gateway(&self, node: &str) -> (Gateway, PathBuf) {
        let path = self.kubeconfig(node);
        let gateway = Gateway::start(rolecall::cluster::client::config(Some(&path)).await.unwrap()).await;
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config["clusters"][0]["cluster"] = json!({"server": format!("http://127.0.0.1:{}", gateway.port)});
        fs::write(&path, config.to_string()).unwrap();
        (gateway, path)
    }

    /// The same by way of another port of 127.0.0.1.
    pub fn kubeconfig_by(&self, node: &str, port: u16) -> PathBuf {
        let path = self.kubeconfig(node);
        let by = format!("127.0.0.1:{port}");
        fs::write(
            &path,
            fs::read_to_string(&path)
                .unwrap()
                .replace(&format!("127.0.0.1:{}", self.world.server.port()), &by),
        )
        .unwrap();
        path
    }

    /// One more STS with the same roles, for 127.0.0.1.
    pub fn sts_with(&self, tls: Option<Tls>) -> (Emulator, String) {
        serve_sts(&self.world.node, self.world.server, "127.0.0.1:0", tls)
    }

    /// Trouble with the calls for one role alone.
    pub fn fault(&self, account: &str, fault: Fault) {
        let role = Some(arn(self.namespace, account));
        let action = Some("AssumeRoleWithWebIdentity".to_owned());
        self.world.emulator.add_fault(Fault { role, action, ..fault }).unwrap();
    }

    /// How many calls STS has received for that role.
    pub fn calls(&self, account: &str) -> u64 {
        let role = arn(self.namespace, account);
        self.world
            .emulator
            .calls()
            .iter()
            .filter(|calls| calls.role == role)
            .map(|calls| calls.received)
            .sum()
    }
}

//! One node for a whole test binary: a real API server, the shipped agent as a process, an STS that validates, pods in namespaces.
//!
//! All of it is in the network namespace of that node. A test's own code runs there too, on a thread of its own, so `127.0.0.1` means
//! the node; what a pod does goes through [`RunningPod`].
#![allow(clippy::unwrap_used, dead_code)]

use std::fs;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use rolecall::emulator::{Bound, Config, Emulator, Fault, IssuerConfig, RoleConfig, Tls};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::agent::{Agent, SOON, ask, until};
use crate::apiserver::ApiServer;
use crate::gateway::Gateway;
use crate::http::{self, Answer};
use crate::net;
use crate::netns::{self, NODE_IP, NODE_IP_V6, Node};
use crate::process::Process;

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
    server: &'static ApiServer,
    numbers: AtomicU16,
}

impl World {
    fn start() -> Option<Self> {
        let node = Node::new("node")?;
        net::install(&node, &[]);
        let (server, emulator, sts, agent) = node.run(async || {
            let server = ApiServer::shared();
            let (emulator, sts) = serve_sts(&node, server, &format!("{NODE_IP}:0"), None);
            let kubeconfig = server.agent_kubeconfig("node");
            let agent = Agent::start(&node, "node", &kubeconfig, &["--sts-endpoint-url", &sts]);
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
    let (path, at) = (format!("/run/netns/{}", node.name()), at.parse().unwrap());
    std::thread::spawn(move || {
        netns::enter_thread(&path);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut bound: Bound = Emulator::bind(config, at).await.unwrap();
            if let Some(tls) = tls {
                bound = bound.with_tls(tls);
            }
            sender.send((bound.emulator(), bound.url())).unwrap();
            bound.serve().await;
        });
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
    world: &'static World,
    pub namespace: &'static str,
    admin: kube::Client,
}

impl Deref for Case {
    type Target = World;
    fn deref(&self) -> &World {
        self.world
    }
}

impl Case {
    async fn new(world: &'static World, namespace: &'static str) -> Self {
        assert!(crate::NAMESPACES.contains(&namespace), "STS has no roles for {namespace}");
        let config = rolecall::cluster::client::config(Some(&world.server.kubeconfig())).await.unwrap();
        let admin = rolecall::cluster::client::client(&config).unwrap();
        let case = Self { world, namespace, admin };
        case.post("/api/v1/namespaces", &json!({"metadata": {"name": namespace}})).await;
        case
    }

    async fn send(&self, method: &str, path: &str, content: &str, body: &Value) -> Value {
        let request = ::http::Request::builder().method(method).uri(path).header("content-type", content);
        let answer = self.admin.request(request.body(body.to_string().into_bytes()).unwrap()).await;
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    async fn post(&self, path: &str, object: &Value) -> Value {
        self.send("POST", path, "application/json", object).await
    }

    fn path(&self, kind: &str, name: &str) -> String {
        format!("/api/v1/namespaces/{}/{kind}/{name}", self.namespace)
    }

    /// A ServiceAccount with the role that trusts it.
    pub async fn account(&self, name: &str) {
        self.account_with(name, json!({"rolecall.dev/role-arn": arn(self.namespace, name)})).await;
    }

    pub async fn account_with(&self, name: &str, annotations: Value) {
        let object = json!({"metadata": {"name": name, "annotations": annotations}});
        self.post(&self.path("serviceaccounts", ""), &object).await;
    }

    /// Sets annotations; `null` removes one.
    pub async fn annotate(&self, name: &str, annotations: Value) {
        let patch = json!({"metadata": {"annotations": annotations}});
        self.send("PATCH", &self.path("serviceaccounts", name), "application/merge-patch+json", &patch).await;
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
        let number = self.number();
        let name = format!("{account}-{number}");
        let net_name = format!("p{number}");
        let (ip, ipv6, net) = match shape {
            Shape::Routed => {
                let (ip, ipv6) = (format!("10.0.1.{number}"), format!("fd00:1::{number}"));
                let net = self.node.routed_pod(&net_name, &ip, Some(&ipv6));
                (ip, ipv6, net)
            }
            Shape::Bridged => {
                let (ip, ipv6) = (format!("10.0.2.{number}"), format!("fd00:2::{number}"));
                let net = self.node.bridged_pod(&net_name, &ip, Some(&ipv6));
                (ip, ipv6, net)
            }
        };
        let both: &[&str] = &[&ip, &ipv6];
        let uid = self.pod_object(node, &name, account, if published { both } else { &[] }).await;
        let process = Process::of(&uid, &net);
        RunningPod { name, uid, ip, ipv6, process, net }
    }

    /// A pod's object alone, and its UID: for two of them that show one address.
    pub async fn pod_object(&self, node: &str, name: &str, account: &str, addresses: &[&str]) -> String {
        self.bound_object(node, name, account, false, addresses).await
    }

    /// The object of the pod `host` on the node's own network, and its UID.
    pub async fn host_pod(&self, account: &str) -> String {
        self.bound_object("node", "host", account, true, &[NODE_IP, NODE_IP_V6]).await
    }

    /// A token as the kubelet projects it into that pod.
    pub async fn token(&self, account: &str, pod: &str, uid: &str, audience: &str) -> String {
        let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid});
        let request = json!({"spec": {"audiences": [audience], "boundObjectRef": bound}});
        let answer = self.post(&self.path("serviceaccounts", &format!("{account}/token")), &request).await;
        answer["status"]["token"].as_str().unwrap().to_owned()
    }

    async fn bound_object(
        &self,
        node: &str,
        name: &str,
        account: &str,
        host: bool,
        addresses: &[&str],
    ) -> String {
        let object = json!({"metadata": {"name": name}, "spec": {
            "serviceAccountName": account, "nodeName": node, "hostNetwork": host,
            "containers": [{"name": "main", "image": "none:1"}],
        }});
        let made = self.post(&self.path("pods", ""), &object).await;
        if let Some(first) = addresses.first() {
            let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
            let status = json!({"status": {"phase": "Running", "podIP": first, "podIPs": ips}});
            let path = self.path("pods", &format!("{name}/status"));
            self.send("PATCH", &path, "application/merge-patch+json", &status).await;
        }
        made["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// Deletes a pod's object at once; its processes and connections are still there.
    pub async fn delete(&self, pod: &str) {
        let now = json!({"gracePeriodSeconds": 0});
        self.send("DELETE", &self.path("pods", pod), "application/json", &now).await;
    }

    /// What the API server thinks of a token.
    pub async fn review(&self, token: &str, audiences: &[&str]) -> Value {
        let review = json!({"spec": {"token": token, "audiences": audiences}});
        self.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await["status"].clone()
    }

    /// One more agent: for another node by name, on a port of the node's address. Returns where it listens, which it does already.
    pub async fn agent(&self, node: &str, kubeconfig: &Path, args: &[&str]) -> (Agent, SocketAddr) {
        let at = format!("{NODE_IP}:{}", 10_000 + self.number());
        let args = [&["--listen", &at, "--metrics-listen", "127.0.0.1:0"], args].concat();
        let agent = Agent::start(&self.node, node, kubeconfig, &args);
        agent.until_page("/livez", |status, _| status == 200).await;
        (agent, at.parse().unwrap())
    }

    /// A kubeconfig for an agent on a node of that name: the ServiceAccount and the rights that ship.
    pub fn kubeconfig(&self, node: &str) -> PathBuf {
        self.server.agent_kubeconfig(node)
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
            fs::read_to_string(&path).unwrap().replace(&format!("127.0.0.1:{}", self.server_port()), &by),
        )
        .unwrap();
        path
    }

    /// Where the API server listens.
    pub fn server_port(&self) -> u16 {
        let config: Value = self.server.json(&["config", "view"]);
        let url: ::http::Uri = config["clusters"][0]["cluster"]["server"].as_str().unwrap().parse().unwrap();
        url.port_u16().unwrap()
    }

    /// One more STS with the same roles, for 127.0.0.1.
    pub fn sts_with(&self, tls: Option<Tls>) -> (Emulator, String) {
        serve_sts(&self.node, self.server, "127.0.0.1:0", tls)
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

/// How a pod is connected to its node.
#[derive(Clone, Copy)]
pub enum Shape {
    Routed,
    Bridged,
}

/// A pod: its namespace, a process in it, and the object that the API server has of it.
pub struct RunningPod {
    pub name: String,
    pub uid: String,
    pub ip: String,
    pub ipv6: String,
    process: Process,
    net: netns::Pod,
}

impl RunningPod {
    /// The same address and cable, as if at once given to the pod with that name and UID.
    pub fn now_runs(self, name: &str, uid: &str) -> Self {
        drop(self.process);
        let process = Process::of(uid, &self.net);
        Self { name: name.to_owned(), uid: uid.to_owned(), process, ..self }
    }

    /// A command in the pod.
    pub fn command(&self, program: &Path) -> Command {
        self.net.command(program.to_str().unwrap())
    }

    /// A connection from the pod, for the test's own runtime.
    pub fn connect(&self, to: SocketAddr) -> TcpStream {
        let from = if to.is_ipv6() { &self.ipv6 } else { &self.ip };
        let stream = self.net.run(async || http::connect(from, to).await.into_std().unwrap());
        TcpStream::from_std(stream).unwrap()
    }

    /// What an SDK would be answered, on a connection of its own.
    pub async fn get(&self, to: SocketAddr) -> Answer {
        ask(&mut self.connect(to), to).await.expect("an answer")
    }

    /// Asks until the answer is so; returns it, and how long that took.
    pub async fn until(
        &self,
        to: SocketAddr,
        within: Duration,
        so: impl Fn(&Answer) -> bool,
    ) -> (Answer, Duration) {
        let begun = Instant::now();
        let last = Mutex::new(String::new());
        let answer = until(
            within,
            || last.lock().unwrap().clone(),
            async || {
                let answer = self.get(to).await;
                *last.lock().unwrap() = format!("{answer:?}");
                so(&answer).then_some(answer)
            },
        )
        .await;
        (answer, begun.elapsed())
    }

    /// Asks as SDKs do, again after a 503, and returns the document.
    pub async fn credentials(&self, to: SocketAddr) -> Value {
        self.credentials_within(to, SOON).await
    }

    pub async fn credentials_within(&self, to: SocketAddr, within: Duration) -> Value {
        let (answer, _) = self.until(to, within, |answer| answer.status != 503).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }
}

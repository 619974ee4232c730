//! What a scenario is made of: a cluster, a node with the agent, pods with real SDKs, and an AWS of two judges.
//!
//! Real are the kube-apiserver, the agent (the binary that ships, with the ServiceAccount and the rights that ship), the kernel between pod and
//! node, and the SDK. AWS is [`Aws`](crate::aws::Aws). Each scenario has a node, an agent and an AWS of its own; the API server is one for all.
// Clippy allows it in test functions, but not in what they are made of.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::agent::{Agent, SOON, tells_no_secret, until};
use crate::apiserver::ApiServer;
use crate::aws::Aws;
use crate::http::Answer;
use crate::moto;
use crate::net;
use crate::netns::Node;
use crate::proxy::Proxy;
use crate::sdk::{Environment, tool};
use crate::tenant::{RunningPod, Shape, Tenant, pod_object};

/// What the README tells users to set in a pod.
pub const VARIABLES: [(&str, &str); 4] = [
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23:9902/v1/credentials"),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "rolecall"),
    ("AWS_REGION", moto::REGION),
    ("AWS_DEFAULT_REGION", moto::REGION),
];

/// Where moto is, for an SDK in a pod that does not say itself where its services are.
const SERVICES: [&str; 3] =
    ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_KMS", "AWS_ENDPOINT_URL_SECRETS_MANAGER"];

/// Plays a scenario on a node and in a Kubernetes namespace of its own, both named for it. Not at all where this machine has no
/// network namespaces, which has been said, and is a failure under `CI`.
pub fn scenario(name: &'static str, play: impl AsyncFnOnce(&Scenario) + Send) {
    scenario_on(name, ApiServer::shared, play);
}

/// The same with another API server than Kubernetes 1.36's.
pub fn scenario_on(
    name: &'static str,
    server: impl FnOnce() -> &'static ApiServer,
    play: impl AsyncFnOnce(&Scenario) + Send,
) {
    play_at(name, server, ("aws", moto::REGION), play);
}

/// The same in another partition, `aws-cn`, and a region of it.
pub fn scenario_in(
    name: &'static str,
    place: (&'static str, &'static str),
    play: impl AsyncFnOnce(&Scenario) + Send,
) {
    play_at(name, ApiServer::shared, place, play);
}

fn play_at(
    name: &'static str,
    server: impl FnOnce() -> &'static ApiServer,
    place: (&'static str, &'static str),
    play: impl AsyncFnOnce(&Scenario) + Send,
) {
    let Some(node) = Node::new(name) else { return };
    // It listens on loopback, outside of all nodes; each node sees it at the same address.
    let server = server();
    let port = server.port();
    let listener = node.run(async || std::net::TcpListener::bind(("127.0.0.1", port)).unwrap());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            let _forwarding = Proxy::forward(TcpListener::from_std(listener).unwrap(), port);
            std::future::pending::<()>().await
        });
    });
    net::install(&node, &[]);
    node.run(async || {
        let name = name.replace('_', "-");
        let tenant = Tenant::new(server, &name, json!({})).await;
        let aws = Aws::new(server, &node, place);
        let log = format!("/run/{name}.log");
        let seen = Arc::new(Seen::default());
        let (agents, pods) = (OnceLock::new(), AtomicU16::new(10));
        play(&Scenario { name, node: &node, server, aws, tenant, agents, pods, seen: Arc::clone(&seen) })
            .await;
        assert!(seen.served.load(Ordering::Relaxed), "no call of a service with the served keys");
        assert!(seen.denied.load(Ordering::Relaxed), "no refusal after it");
        tells_no_secret(&std::fs::read_to_string(log).expect("every scenario has an agent"));
    });
}

/// The parts of one scenario. It derefs to its Kubernetes namespace.
pub struct Scenario<'n> {
    /// With hyphens: the name of the node and of the namespace.
    pub name: String,
    pub node: &'n Node,
    pub server: &'static ApiServer,
    pub aws: Aws<'n>,
    tenant: Tenant,
    /// The kubeconfig of the agent's pod, in which one agent may follow another.
    agents: OnceLock<PathBuf>,
    pods: AtomicU16,
    seen: Arc<Seen>,
}

/// What a scenario has shown so far: each must show both.
#[derive(Default)]
struct Seen {
    served: AtomicBool,
    denied: AtomicBool,
}

impl Deref for Scenario<'_> {
    type Target = Tenant;
    fn deref(&self) -> &Tenant {
        &self.tenant
    }
}

impl Scenario<'_> {
    /// The agent of the node, on its default addresses, when it is ready. It has AWS's region, and what `args` say.
    pub async fn agent(&self, args: &[&str]) -> Agent {
        self.agent_by(self.node.command(crate::agent::ROLECALL), args).await
    }

    /// The same by a command of the scenario's: the agent with variables of its own.
    pub async fn agent_by(&self, mut command: Command, args: &[&str]) -> Agent {
        command.env("ROLECALL_IMPERSONATE_NODE", self.server.impersonation.to_string());
        if !command.get_envs().any(|(name, _)| name == "ROLECALL_REGION") {
            command.env("ROLECALL_REGION", self.aws.moto.region());
        }
        let kubeconfig = self.agents.get_or_init(|| self.server.agent_kubeconfig(&self.name));
        let socket = format!("/run/{}.sock", self.name);
        let agent = Agent::start_by(command, &self.name, &socket, kubeconfig, args);
        agent.until_ready().await;
        agent
    }

    /// Waits until the API server gives the pods of the namespace our address by itself: a policy counts a moment after it is
    /// stored, and nothing tells when.
    pub async fn until_injected(&self, tenant: &Tenant, object: &Value) {
        let made = async || {
            let made = tenant.post(&(tenant.path("pods", "") + "?dryRun=All"), object).await;
            made.to_string().contains("AWS_CONTAINER_CREDENTIALS_FULL_URI").then_some(())
        };
        until(SOON, || "no variable".into(), made).await;
    }

    /// One more Kubernetes namespace.
    pub async fn namespace(&self, name: &str, labels: Value) -> Tenant {
        Tenant::new(self.server, name, labels).await
    }

    /// A pod of `account` with the variables that the README tells users to set.
    pub async fn pod(&self, account: &str) -> App {
        let region = self.aws.moto.region();
        let regional = |name: &str| name.ends_with("REGION");
        let variables = VARIABLES.map(|(name, value)| (name, if regional(name) { region } else { value }));
        self.start(&self.tenant, &self.object(account, &variables)).await
    }

    /// The object of such a pod, for the scenario to change.
    pub fn object(&self, account: &str, variables: &[(&str, &str)]) -> Value {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let mut object = pod_object(&self.name, &format!("{account}-{number}"), account);
        object["spec"]["containers"][0]["env"] =
            variables.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        object
    }

    /// Makes the object, and does as the kubelet does with what the API server has made of it.
    pub async fn start(&self, tenant: &Tenant, object: &Value) -> App {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let pod = RunningPod::start(tenant, self.node, number, Shape::Routed, object, true).await;
        let container = &pod.object["spec"]["containers"][0];
        let mut variables = BTreeMap::new();
        for from in container["envFrom"].as_array().unwrap_or(&Vec::new()) {
            let name = from["configMapRef"]["name"].as_str().expect("only ConfigMaps are known here");
            let map = tenant.get(&tenant.path("configmaps", name)).await;
            for (name, value) in map["data"].as_object().unwrap() {
                variables.insert(name.clone(), value.as_str().unwrap().to_owned());
            }
        }
        // These win over those.
        for one in container["env"].as_array().unwrap_or(&Vec::new()) {
            let value = one["value"].as_str().expect("only values are known here");
            variables.insert(one["name"].as_str().unwrap().to_owned(), value.to_owned());
        }
        let mut mounts = Vec::new();
        for volume in pod.object["spec"]["volumes"].as_array().unwrap_or(&Vec::new()) {
            let all = container["volumeMounts"].as_array().unwrap();
            let mount = all.iter().find(|mount| mount["name"] == volume["name"]);
            let (Some(mount), Some(token)) =
                (mount, volume["projected"]["sources"][0]["serviceAccountToken"].as_object())
            else {
                continue;
            };
            // The one that every pod has is for the API server, and has no audience.
            let Some(audience) = token.get("audience").and_then(Value::as_str) else { continue };
            let account = pod.object["spec"]["serviceAccountName"].as_str().unwrap();
            let token_text = tenant.token(account, &pod.name, &pod.uid, audience).await;
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(token["path"].as_str().unwrap()), token_text).unwrap();
            mounts.push((folder, mount["mountPath"].as_str().unwrap().to_owned()));
        }
        App { pod, variables, mounts, moto: self.aws.moto.endpoint(), seen: Arc::clone(&self.seen) }
    }
}

/// A pod in which an application runs: an unchanged SDK with the pod's own variables.
pub struct App {
    pod: RunningPod,
    /// As the kubelet would set them.
    pub variables: BTreeMap<String, String>,
    /// Folders with what the kubelet would have written, and where the container sees them.
    mounts: Vec<(tempfile::TempDir, String)>,
    moto: String,
    seen: Arc<Seen>,
}

impl Deref for App {
    type Target = RunningPod;
    fn deref(&self) -> &RunningPod {
        &self.pod
    }
}

impl App {
    /// What an SDK in the pod sees: its variables, and where the services are. STS is not among them: the application calls none.
    pub fn environment(&self) -> Environment {
        let environment = Environment::new().without("AWS_EC2_METADATA_DISABLED");
        // These would win over one for all services.
        let services = if self.variables.contains_key("AWS_ENDPOINT_URL") { &[][..] } else { &SERVICES };
        let environment = services.iter().fold(environment, |all, name| all.with(*name, &self.moto));
        self.variables.iter().fold(environment, |all, (name, value)| all.with(name, value))
    }

    /// A command in the pod that sees the container's variables and volumes.
    pub fn container(&self, program: &std::path::Path) -> Command {
        // Nothing of the machine's changes: these mounts are in a namespace of the command's own.
        let mount = |(folder, at): &(tempfile::TempDir, String)| {
            format!("mkdir -p {at} && mount --bind {} {at} && ", folder.path().display())
        };
        let script: String = self.mounts.iter().map(mount).collect();
        let mut command = self.command("unshare".as_ref());
        self.environment().apply(&mut command);
        command.args(["--mount", "sh", "-c", &format!("{script}exec \"$0\" \"$@\"")]).arg(program);
        command
    }

    /// One call by boto3: `call("s3", "get_object", …)` with its parameters. The error is boto3's. What the agent answers 503 is
    /// asked again, as it says. It blocks the scenario's thread: a server that it needs must be on another, by `it.node.serve`.
    pub fn call(&self, service: &str, operation: &str, parameters: &Value) -> Result<Value, String> {
        let begun = Instant::now();
        loop {
            let answer = self.call_once(service, operation, parameters);
            let passing = answer.as_ref().is_err_and(|said| said.contains("non 200 response 503"));
            if !passing || begun.elapsed() > SOON {
                match &answer {
                    Ok(_) => self.seen.served.store(true, Ordering::Relaxed),
                    // By a service, or by STS through the agent; by the agent alone, where STS judges nobody.
                    Err(said)
                        if ["AccessDenied", "RoleNotAllowed"].iter().any(|code| said.contains(code)) =>
                    {
                        self.seen.denied.store(true, Ordering::Relaxed);
                    }
                    Err(_) => {}
                }
                return answer;
            }
        }
    }

    fn call_once(&self, service: &str, operation: &str, parameters: &Value) -> Result<Value, String> {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/python/boto3_call.py");
        let mut command = self.container(&tool("python", "python"));
        let output = command.args([program, service, operation, &parameters.to_string()]).output().unwrap();
        if output.status.success() {
            Ok(serde_json::from_slice(&output.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// The same, and it must be so.
    pub fn must(&self, service: &str, operation: &str, parameters: &Value) -> Value {
        self.call(service, operation, parameters).unwrap_or_else(|err| panic!("{service} {operation}: {err}"))
    }

    /// The service itself refuses it: the keys are good, and the role's policy does not allow the call.
    pub fn is_denied_by(&self, service: &str, operation: &str, parameters: &Value) {
        let said = self.call(service, operation, parameters).expect_err("the role does not allow it");
        // Where boto3 expects JSON, it shows moto's XML as it is.
        let denied = said.contains("An error occurred (") && said.contains("AccessDenied");
        assert!(denied, "{service} {operation}: {said}");
    }

    /// The agent gives it keys of that role: now, or when what was changed in the cluster counts.
    pub async fn has_role(&self, role: &str) {
        assert_eq!(self.credentials("169.254.170.23:9902".parse().unwrap()).await["RoleArn"], role);
    }

    /// The agent refuses with that code, and the SDK has no credentials. `StsDenied` is for what STS itself calls AccessDenied.
    pub async fn is_refused_with(&self, code: &str) {
        let why = if code == "StsDenied" { ": AccessDenied. " } else { "" };
        self.is_refused_saying(code, why).await;
    }

    /// The same, and the answer says why.
    pub async fn is_refused_saying(&self, code: &str, why: &str) {
        let said = self.call("s3", "list_buckets", &json!({})).expect_err("there are no credentials");
        let refused =
            said.contains("CredentialRetrievalError") && said.contains(&format!("\"code\":\"{code}\""));
        assert!(refused && said.contains(why), "not {code} {why:?}: {said}");
    }

    /// The same when what was changed in the cluster counts.
    pub async fn comes_to_be_refused_saying(&self, code: &str, why: &str) {
        let so = |answer: &Answer| answer.status != 200 && answer.code() == code && answer.body.contains(why);
        self.until("169.254.170.23:9902".parse().unwrap(), SOON, so).await;
        self.is_refused_saying(code, why).await;
    }
}

/// One call by boto3 from this node, by whoever the environment says: the owner of a service that a scenario has started itself.
pub fn boto3(environment: &Environment, service: &str, operation: &str, parameters: &Value) -> Value {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/python/boto3_call.py");
    let mut command = Command::new(tool("python", "python"));
    environment.apply(&mut command);
    let output = command.args([program, service, operation, &parameters.to_string()]).output().unwrap();
    assert!(output.status.success(), "{operation}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// From now on `name` is that address, as a resolver would say. Every scenario of this process sees it.
pub fn knows(name: &str, address: &str) {
    static MOUNTED: Mutex<bool> = Mutex::new(false);
    let (file, none) = ("/run/hosts", None::<&str>);
    let mut mounted = MOUNTED.lock().unwrap();
    if !*mounted {
        std::fs::copy("/etc/hosts", file).unwrap();
        nix::mount::mount(Some(file), "/etc/hosts", none, nix::mount::MsFlags::MS_BIND, none).unwrap();
        *mounted = true;
    }
    // At its end: others read it meanwhile.
    let mut hosts = std::fs::OpenOptions::new().append(true).open(file).unwrap();
    hosts.write_all(format!("\n{address} {name}\n").as_bytes()).unwrap();
}

//! What `figures` measures in: a node and its pods as network namespaces, a real kube-apiserver with 110 pods of 10 KB and
//! 30 annotated ServiceAccounts, an STS that validates, and the image's own binary as the agent.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::apiserver::ApiServer;
use crate::http;
use crate::netns::{Namespace, Node, Pod};

/// The pods of a full node.
pub const PODS: usize = 110;
/// ServiceAccounts with a role, so plans.
pub const PLANS: usize = 30;
/// Where the agent listens; the bare server takes another port of this address.
pub const AGENT: &str = "169.254.170.23:9902";

/// Of the pods.
pub const NAMESPACE: &str = "bench";
const NODE_NAME: &str = "bench";
/// Where the STS listens.
pub const STS: &str = "127.0.0.1:9910";
/// A pod object of a real cluster, in bytes: two containers with a dozen variables each, and `managedFields`.
const POD_BYTES: usize = 10_000;

/// Everything but the agent.
pub struct World<'a> {
    node: &'a Node,
    pods: Pod,
    admin: kube::Client,
    run_dir: String,
    /// Kubeconfig, emulator's file, the answer's body.
    files: tempfile::TempDir,
    _sts: Process,
}

impl<'a> World<'a> {
    /// Sets all up. Runs in the node's namespace, so the API server and STS are there, too.
    pub async fn start(node: &'a Node) -> Result<Self> {
        let pods = node.routed_pod("pods", "10.0.1.1", None);
        for number in 2..=PODS {
            pods.ip(&format!("address add 10.0.1.{number}/32 dev eth0"));
            node.ip(&format!("route add 10.0.1.{number}/32 dev veth1"));
        }
        let run_dir = format!("/run/{}", node.name());
        let install = ["net", "install", "--run-dir", &run_dir, "--run-uid", "0"];
        let installed = node.command(&image("rolecall")?).args(install).output()?;
        ensure!(installed.status.success(), "net install: {}", String::from_utf8_lossy(&installed.stderr));

        let config = rolecall::cluster::client::config(Some(&ApiServer::shared().kubeconfig())).await?;
        let admin = rolecall::cluster::client::client(&config)?;
        let files = tempfile::tempdir()?;
        let roles = files.path().join("roles.yaml");
        std::fs::write(&roles, emulated(&admin).await?.to_string())?;
        let mut sts = node.command(&image("rolecall")?);
        // It says every call there; what it counts is enough here.
        sts.args(["emulator", "--listen", STS, "--config"]).arg(&roles).stderr(Stdio::null());
        let sts = Process::start(sts)?;
        let world = Self { node, pods, admin, run_dir, files, _sts: sts };
        world.fill().await?;
        Ok(world)
    }

    /// The node's objects, as a control plane and a kubelet write them.
    async fn fill(&self) -> Result<()> {
        self.send("POST", "/api/v1/namespaces", &json!({"metadata": {"name": NAMESPACE}})).await?;
        try_join_all((0..PLANS).map(|number| async move {
            let account = json!({"metadata": {"name": account(number), "annotations": annotation("plan")}});
            self.send("POST", &self.path("serviceaccounts"), &account).await
        }))
        .await?;
        let sizes = try_join_all((0..PODS).map(|number| async move {
            let path = format!("{}/pod-{number}", self.path("pods"));
            self.send("POST", &self.path("pods"), &pod(number)).await?;
            let shown = self.send("PATCH", &format!("{path}/status"), &status(number)).await?;
            anyhow::Ok(shown.to_string().len())
        }))
        .await?;
        let size = sizes.iter().sum::<usize>() / sizes.len();
        println!("node: {PODS} pods of {size} bytes, {PLANS} plans");
        ensure!(
            (POD_BYTES..POD_BYTES * 11 / 10).contains(&size),
            "a pod should have about {POD_BYTES} bytes"
        );
        Ok(())
    }

    /// The name of the Node object.
    pub fn node_name(&self) -> &'static str {
        NODE_NAME
    }

    /// The path of the pods' namespace's objects of this kind.
    pub fn path(&self, kind: &str) -> String {
        format!("/api/v1/namespaces/{NAMESPACE}/{kind}")
    }

    /// One call as administrator.
    pub async fn send(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let content = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = ::http::Request::builder().method(method).uri(path).header("content-type", content);
        let answer = self.admin.request(request.body(body.to_string().into_bytes())?).await;
        answer.with_context(|| format!("{method} {path}"))
    }

    /// Gives the first `plans` ServiceAccounts another role.
    pub async fn annotate(&self, plans: usize, role: &str) -> Result<()> {
        let patch = json!({"metadata": {"annotations": annotation(role)}});
        let patch = &patch;
        try_join_all((0..plans).map(|number| async move {
            self.send("PATCH", &format!("{}/{}", self.path("serviceaccounts"), account(number)), patch).await
        }))
        .await?;
        Ok(())
    }

    /// A fresh agent with its shipped defaults but for this `--identity`, ready.
    pub async fn agent(&self, identity: &str) -> Result<Process> {
        let socket = format!("{}/agent.sock", self.run_dir);
        let mut command = self.node.command(&image("rolecall")?);
        command.args(["agent", "--node-name", NODE_NAME, "--local-socket", &socket, "--identity", identity]);
        command.arg("--kubeconfig").arg(ApiServer::shared().kubeconfig());
        command.args(["--sts-endpoint-url", &format!("http://{STS}")]);
        let agent = Process::start(command)?;
        for _ in 0..300 {
            let mut probe = self.node.command(&image("rolecall")?);
            let probe =
                probe.args(["probe", "ready", "--local-socket", &socket]).stderr(Stdio::null()).status()?;
            if probe.success() {
                return Ok(agent);
            }
            sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("the agent is not ready: {}", agent.said());
    }

    /// The bare server with the agent's answer; its address.
    pub async fn bare(&self) -> Result<(Process, &'static str)> {
        let (address, body) = ("169.254.170.23:9904", self.files.path().join("body.json"));
        let sample = self.caller(&["sample", AGENT])?.output()?;
        ensure!(sample.status.success() && !sample.stdout.is_empty(), "no answer to copy");
        std::fs::write(&body, sample.stdout)?;
        let mut bare = self.node.command(&image("bare")?);
        bare.arg(address).arg(body);
        let bare = Process::start(bare)?;
        for _ in 0..100 {
            if self.caller(&["sample", address])?.stderr(Stdio::null()).output()?.status.success() {
                return Ok((bare, address));
            }
            sleep(Duration::from_millis(50)).await;
        }
        anyhow::bail!("the bare server does not answer: {}", bare.said());
    }

    /// The load client in the pods' namespace.
    fn caller(&self, args: &[&str]) -> Result<Command> {
        caller(&self.pods, args)
    }

    /// Runs the load client in the pods' namespace to its end; what it counted.
    pub async fn load(&self, args: &[&str]) -> Result<Counted> {
        self.load_from(&self.pods, args).await
    }

    /// Where the pods that only an address can tell apart are.
    pub fn pods(&self) -> &Namespace {
        &self.pods
    }

    /// The same, from another namespace.
    pub async fn load_from(&self, namespace: &Namespace, args: &[&str]) -> Result<Counted> {
        let mut command = tokio::process::Command::from(caller(namespace, args)?);
        let output = command.stderr(Stdio::inherit()).output().await?;
        ensure!(output.status.success(), "load {args:?} failed");
        Ok(Counted(String::from_utf8(output.stdout)?))
    }

    /// AssumeRoleWithWebIdentity calls that have reached STS so far.
    pub async fn sts_calls(&self) -> u64 {
        let calls = self.control("GET", "calls", "").await;
        let calls = calls["calls"].as_array().expect("a list of calls");
        calls.iter().map(|call| call["received"].as_u64().expect("a count")).sum()
    }

    /// Every STS call takes `delay` from now on.
    pub async fn slow_sts(&self, delay: Duration) {
        let fault = json!({"delay_ms": delay.as_millis() as u64});
        self.control("POST", "faults", &fault.to_string()).await;
    }

    async fn control(&self, method: &str, what: &str, body: &str) -> Value {
        let at: SocketAddr = STS.parse().expect("a constant");
        let length = body.len();
        let request = format!(
            "{method} /_emulator/{what} HTTP/1.1\r\nHost: {at}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        let answer = http::get("127.0.0.1", at, &request).await;
        assert!((200..300).contains(&answer.status), "{method} {what}: {answer:?}");
        serde_json::from_str(&answer.body).unwrap_or_default()
    }
}

fn caller(namespace: &Namespace, args: &[&str]) -> Result<Command> {
    let mut command = namespace.command(&image("load")?);
    command.args(args);
    Ok(command)
}

/// The ServiceAccount of this plan.
pub fn account(plan: usize) -> String {
    format!("account-{plan}")
}

/// The ARN of this role.
pub fn role(name: &str) -> String {
    format!("arn:aws:iam::111122223333:role/{name}")
}

/// The annotation that asks for this role.
pub fn annotation(name: &str) -> Value {
    json!({"rolecall.dev/role-arn": role(name)})
}

/// The emulator's file: the API server's issuer and keys, and a role for every name that [`World::annotate`] is given.
async fn emulated(admin: &kube::Client) -> Result<Value> {
    let get = |path: &str| ::http::Request::get(path).body(Vec::new());
    let discovered: Value = admin.request(get("/.well-known/openid-configuration")?).await?;
    let jwks: Value = admin.request(get("/openid/v1/jwks")?).await?;
    let url = discovered["issuer"].as_str().context("no issuer")?;
    let name = url.trim_start_matches("https://");
    let trust = json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Allow",
            "Principal": {"Federated": format!("arn:aws:iam::111122223333:oidc-provider/{name}")},
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": {
                "StringEquals": {format!("{name}:aud"): "sts.amazonaws.com"},
                "StringLike": {format!("{name}:sub"): format!("system:serviceaccount:{NAMESPACE}:*")},
            },
        }],
    });
    let names = std::iter::once("plan".to_owned())
        .chain((0..super::COLD_ROUNDS).map(|round| format!("cold-{round}")));
    let roles: Vec<Value> = names.map(|name| json!({"arn": role(&name), "trust_policy": trust})).collect();
    Ok(json!({"issuers": [{"url": url, "jwks": jwks}], "roles": roles}))
}

/// Without our variable, so that nothing is fetched before somebody asks.
fn pod(number: usize) -> Value {
    let variables: Vec<Value> = (0..12)
        .map(|n| json!({"name": format!("SETTING_{n}"), "value": format!("value-of-setting-{n}")}))
        .collect();
    let container = |name: &str| {
        json!({
            "name": name, "image": format!("registry.example.com/team/{name}:1.2.3"), "env": variables,
            "ports": [{"name": "http", "containerPort": 8080}],
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
            "livenessProbe": {"httpGet": {"path": "/live", "port": "http"}},
            "securityContext": {"runAsNonRoot": true, "readOnlyRootFilesystem": true},
        })
    };
    json!({
        "metadata": {
            "name": format!("pod-{number}"),
            "labels": {"app.kubernetes.io/name": "web", "pod-template-hash": "7d4b9c6f58"},
        },
        "spec": {
            "nodeName": NODE_NAME, "serviceAccountName": account(number % PLANS),
            "containers": [container("main"), container("sidecar")],
        },
    })
}

fn status(number: usize) -> Value {
    let address = format!("10.0.1.{}", number + 1);
    let now = "2026-01-01T00:00:00Z";
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let container = |name: &str| {
        json!({
            "name": name, "ready": true, "started": true, "restartCount": 0,
            "image": format!("registry.example.com/team/{name}:1.2.3"),
            "imageID": format!("registry.example.com/team/{name}@sha256:{}", "0".repeat(64)),
            "containerID": format!("containerd://{}", "1".repeat(64)),
            "state": {"running": {"startedAt": now}},
        })
    };
    let kinds = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    json!({"status": {
        "phase": "Running", "hostIP": "10.0.0.1", "podIP": address, "podIPs": [{"ip": address}], "startTime": now,
        "conditions": kinds.map(condition),
        "containerStatuses": [container("main"), container("sidecar")],
    }})
}

/// Something that was built with the image's profile, which leaves it in `target/image`.
pub fn image(name: &str) -> Result<String> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(3).context("not in a target directory")?;
    let path: PathBuf = target.join("image").join(name);
    ensure!(path.exists(), "{} is missing: see `make bench`", path.display());
    Ok(path.to_str().context("a path that is text")?.to_owned())
}

/// A process that ends with its owner. Its output is read and forgotten, but for the last of it.
pub struct Process {
    child: Child,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Process {
    fn start(mut command: Command) -> Result<Self> {
        for (name, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("AWS_") || name.starts_with("ROLECALL_"))
        {
            command.env_remove(name);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let (said, mut out) = (Arc::<Mutex<Vec<u8>>>::default(), child.stdout.take().context("piped")?);
        let last = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut bytes = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = out.read(&mut bytes) {
                let mut last = last.lock().expect("nothing panics while it holds this lock");
                last.clear();
                last.extend_from_slice(&bytes[..length]);
            }
        });
        Ok(Self { child, said })
    }

    fn said(&self) -> String {
        let said = self.said.lock().expect("nothing panics while it holds this lock");
        String::from_utf8_lossy(&said).into_owned()
    }

    fn proc(&self, file: &str) -> Result<String> {
        let path = Path::new("/proc").join(self.child.id().to_string()).join(file);
        std::fs::read_to_string(&path).with_context(|| format!("{}: {}", path.display(), self.said()))
    }

    /// User and system time of all its threads, ended ones included. The kernel counts in hundredths.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = self.proc("stat")?;
        // After the name, which is in parentheses: utime and stime are the fields 14 and 15 of the line.
        let (_, fields) = stat.rsplit_once(") ").context("no name")?;
        let ticks: u64 =
            fields.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Memory that it occupies.
    pub fn rss_mib(&self) -> Result<f64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the load client prints: words and their numbers.
pub struct Counted(pub String);

impl Counted {
    /// The number behind `word`.
    pub fn of(&self, word: &str) -> f64 {
        let mut words = self.0.split_whitespace().skip_while(|found| *found != word).skip(1);
        words
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("no {word} in {:?}", self.0))
    }
}

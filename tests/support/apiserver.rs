//! Real kube-apiservers with their etcd for one test binary: started by `tests/cluster/up`, gone when the process is.
//!
//! No controllers and no kubelet: what they would make (ServiceAccounts, nodes, pod status) is made here, by kubectl.
//! `KUBERNETES_MINOR` names another version than the tests take by themselves; tests/cluster/README.md says for which tests.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

/// The running API server.
pub(crate) struct ApiServer {
    /// Kubeconfig, certificates, logs; removed at the end.
    state: PathBuf,
    /// The 36 of Kubernetes 1.36.
    pub(crate) minor: u32,
    /// May the agent impersonate its node here?
    pub(crate) impersonation: bool,
    /// Set once the policy about tokens is in force.
    in_force: OnceLock<()>,
    /// Takes everything down when its standard input closes: when this process ends, however it ends.
    _undertaker: Child,
}

/// A pod to create; the rest of it is fixed.
#[derive(Default)]
pub(crate) struct Pod<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) service_account: &'a str,
    /// Empty: not bound to a node yet.
    pub(crate) node: &'a str,
    pub(crate) labels: &'a [(&'a str, &'a str)],
    pub(crate) annotations: &'a [(&'a str, &'a str)],
    pub(crate) env: &'a [(&'a str, &'a str)],
    pub(crate) host_network: bool,
}

impl ApiServer {
    /// The one of this process, started by the first test that asks.
    ///
    /// # Panics
    /// When it cannot run: a test that needs it then fails, and is not skipped.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<ApiServer> = OnceLock::new();
        SHARED.get_or_init(|| {
            let minor = chosen("1.36");
            let manifests: &[&str] = match number(&minor) {
                36.. => &["1-namespace.yaml", "2-rbac.yaml"],
                32.. => &["1-namespace.yaml", "before-1.36"],
                _ => &["local"],
            };
            Self::start(&minor, "t", "", "", manifests)
        })
    }

    /// The other one of this process: a Kubernetes without constrained impersonation.
    pub(crate) fn before_1_36() -> &'static Self {
        static SHARED: OnceLock<ApiServer> = OnceLock::new();
        SHARED.get_or_init(|| Self::start("1.34", "o", "", "", &["1-namespace.yaml", "before-1.36"]))
    }

    /// The same with the beta of MutatingAdmissionPolicy, by the flags that docs/injection.md has.
    pub(crate) fn before_1_36_with_policies() -> &'static Self {
        static SHARED: OnceLock<ApiServer> = OnceLock::new();
        let page = include_str!("../../docs/injection.md");
        let flags =
            page.split('`').skip(1).step_by(2).filter(|flag| flag.starts_with("--") && flag.contains('='));
        let flags: Vec<&str> = flags.collect();
        SHARED.get_or_init(|| {
            Self::start("1.34", "p", "", &flags.join(" "), &["1-namespace.yaml", "before-1.36"])
        })
    }

    /// One more of that version, or of the chosen one, of a cluster on a laptop: all that it has is what daemonset/local makes.
    pub(crate) fn local() -> &'static Self {
        static SHARED: OnceLock<ApiServer> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&chosen("1.34"), "l", "", "", &["local"]))
    }

    /// One that issues tokens of `issuer`, by the flags of step 3 of docs/oidc.md.
    pub(crate) fn self_hosted(issuer: &str) -> &'static Self {
        static SHARED: OnceLock<ApiServer> = OnceLock::new();
        let page = include_str!("../../docs/oidc.md");
        let mut flags = page.lines().filter_map(|line| line.strip_prefix("    --"));
        let first = flags.next().expect("step 3 has flags");
        assert!(first.starts_with("service-account-issuer="), "the new issuer stands first: {first}");
        let others: Vec<String> = flags.map(|flag| format!("--{flag}")).collect();
        assert_eq!(others.len(), 2, "{others:?}");
        SHARED.get_or_init(|| {
            Self::start("1.36", "s", issuer, &others.join(" "), &["1-namespace.yaml", "2-rbac.yaml"])
        })
    }

    /// `issuer` is its first one, if not the usual; `flags` are more of the kube-apiserver's; `manifests` are the namespace and the
    /// rights, in daemonset/.
    fn start(minor: &str, prefix: &str, issuer: &str, flags: &str, manifests: &[&str]) -> Self {
        let name = format!("{prefix}{}", std::process::id());
        let state = PathBuf::from("/var/tmp").join(format!("rolecall-{name}"));
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster");
        let port = free_port(match prefix {
            "t" => 0,
            "o" => 500,
            "l" => 1500,
            "s" => 2000,
            _ => 1000,
        });
        let cluster = |script: &str| {
            let mut command = Command::new(scripts.join(script));
            command
                .env("KUBERNETES_MINOR", minor)
                .env("CLUSTER_NAME", &name)
                .env("CLUSTER_STATE", &state)
                .env("APISERVER_PORT", &port)
                .env("SERVICE_ACCOUNT_ISSUER", issuer)
                .env("APISERVER_FLAGS", flags);
            if minor != "1.36" {
                // It has one version's programs, and that is the newest.
                command.env_remove("KUBEBUILDER_ASSETS");
            }
            command
        };
        // Before `up`, so that a test run that is interrupted half way leaves nothing either. In a process group of
        // its own, which Ctrl-C does not reach.
        let undertaker = cluster("down");
        let undertaker = Command::new("bash")
            .args(["-c", r#"cat; exec "$0""#])
            .arg(undertaker.get_program())
            .envs(undertaker.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("bash runs");
        let up = cluster("up").arg("apiserver-only").output().expect("bash runs");
        assert!(up.status.success(), "no API server to test with: {}", String::from_utf8_lossy(&up.stderr));
        let minor = number(minor);
        let impersonation = minor >= 36;
        let server = Self { state, minor, impersonation, in_force: OnceLock::new(), _undertaker: undertaker };
        // What an installation has: the agent's namespace, ServiceAccount and rights, from the files that ship.
        for file in manifests {
            let mut file = format!("{}/daemonset/{file}", env!("CARGO_MANIFEST_DIR"));
            if Path::new(&file).join("kustomization.yaml").exists() {
                let rendered =
                    server.kubectl(&["kustomize", "--load-restrictor=LoadRestrictionsNone", &file]);
                file = server.state.join("rendered.yaml").to_str().expect("it is a test's own").to_owned();
                std::fs::write(&file, rendered).expect("the state can be written");
            }
            server.kubectl(&["apply", "--server-side", "--validate=strict", "-f", &file]);
        }
        server.until_agent_may(&["watch", "serviceaccounts", "-A"]);
        server
    }

    /// The node that its agent is to ask as: none where Kubernetes cannot let it.
    pub(crate) fn as_node<'n>(&self, node: &'n str) -> Option<&'n str> {
        self.impersonation.then_some(node)
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// Where a test may put files that go with the server.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// kubectl of the server's own version, as administrator.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.state.join("bin/kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig());
        command
    }

    /// kubectl's standard output; on failure its standard error as the error.
    pub(crate) fn try_kubectl(&self, args: &[&str]) -> Result<String, String> {
        let output = self.command().args(args).stdin(Stdio::null()).output().expect("kubectl runs");
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).expect("kubectl prints UTF-8"))
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// kubectl's standard output.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(args).unwrap_or_else(|error| panic!("kubectl {args:?}: {error}"))
    }

    /// kubectl's answer to a command with `-o json`.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[args, &["-o", "json"]].concat())).expect("kubectl prints JSON")
    }

    /// Creates an object and returns what the server made of it.
    pub(crate) fn create(&self, object: &Value) -> Result<Value, String> {
        self.create_with(object, &[])
    }

    /// What the server would make of an object: defaults, admission, validation.
    pub(crate) fn dry_run(&self, object: &Value) -> Result<Value, String> {
        self.create_with(object, &["--dry-run=server"])
    }

    fn create_with(&self, object: &Value, args: &[&str]) -> Result<Value, String> {
        let mut child = self
            .command()
            .args(["create", "-o", "json", "-f", "-"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(object.to_string().as_bytes()).expect("kubectl reads");
        drop(stdin);
        let output = child.wait_with_output().expect("kubectl ends");
        if output.status.success() {
            Ok(serde_json::from_slice(&output.stdout).expect("kubectl prints JSON"))
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn must_create(&self, object: &Value) -> Value {
        self.create(object).unwrap_or_else(|error| panic!("{error}\n{object}"))
    }

    /// Creates a namespace with its `default` ServiceAccount.
    pub(crate) fn namespace(&self, name: &str, labels: &[(&str, &str)]) {
        self.must_create(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": map(labels)},
        }));
        self.service_account(name, "default", &[]);
    }

    /// Whether the shipped ServiceAccount of the agent may do it: `create serviceaccounts --subresource=token -n default`.
    pub(crate) fn agent_may(&self, what: &[&str]) -> bool {
        // kubectl says "no" by its exit code.
        self.try_kubectl(&[&["auth", "can-i", "--as=system:serviceaccount:rolecall:rolecall"], what].concat())
            .is_ok()
    }

    /// Gives agents the right that `--role-source=pod-annotation` needs, from the file that ships.
    pub(crate) fn may_read_namespaces(&self) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/daemonset/pod-annotation");
        self.kubectl(&["apply", "--server-side", "-f", folder]);
        self.until_agent_may(&["watch", "namespaces"]);
    }

    /// Waits for a right: a role counts a moment after it is stored, and nothing tells when.
    pub(crate) fn until_agent_may(&self, what: &[&str]) {
        assert!((0..200).any(|_| self.agent_may(what)), "after asking 200 times the agent may not {what:?}");
    }

    /// Opts a namespace in by the documented command, as a Kubernetes before 1.36 needs it.
    pub(crate) fn opt_in(&self, namespace: &str) {
        self.documented("kubectl create rolebinding ", &[("NAMESPACE", namespace)]);
        self.until_agent_may(&["create", "serviceaccounts", "--subresource=token", "-n", namespace]);
    }

    /// Runs the one command of daemonset/README.md that starts so, with its placeholders filled in.
    pub(crate) fn documented(&self, start: &str, placeholders: &[(&str, &str)]) {
        self.documented_in(include_str!("../../daemonset/README.md"), start, placeholders);
    }

    /// The same of another page.
    pub(crate) fn documented_in(&self, page: &str, start: &str, placeholders: &[(&str, &str)]) {
        let mut lines = page.lines().map(str::trim).filter(|line| line.starts_with(start));
        let mut command = lines.next().expect("the page has the command").to_owned();
        assert_eq!(lines.next(), None);
        for (name, value) in placeholders {
            command = command.replace(name, value);
        }
        let path = std::env::var("PATH").expect("a PATH");
        let path = format!("{}:{path}", self.state.join("bin").display());
        let output = Command::new("bash")
            .args(["-c", &command])
            .env("PATH", path)
            .env("KUBECONFIG", self.kubeconfig())
            .output();
        let output = output.expect("bash runs");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Creates a ServiceAccount; returns its UID.
    pub(crate) fn service_account(
        &self,
        namespace: &str,
        name: &str,
        annotations: &[(&str, &str)],
    ) -> String {
        uid(&self.must_create(&json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": namespace, "annotations": map(annotations)},
        })))
    }

    /// Creates a node, once.
    pub(crate) fn node(&self, name: &str, labels: &[(&str, &str)]) {
        let node =
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": map(labels)}});
        if let Err(error) = self.create(&node) {
            assert!(error.contains("AlreadyExists"), "{error}");
        }
    }

    /// Creates a pod; returns its UID.
    pub(crate) fn pod(&self, pod: &Pod) -> String {
        let env: Vec<Value> =
            pod.env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let mut spec = json!({
            "serviceAccountName": pod.service_account,
            "hostNetwork": pod.host_network,
            "containers": [{"name": "main", "image": "none:1", "env": env}],
        });
        if !pod.node.is_empty() {
            spec["nodeName"] = pod.node.into();
        }
        uid(&self.must_create(&json!({
            "apiVersion": "v1", "kind": "Pod", "spec": spec,
            "metadata": {
                "name": pod.name, "namespace": pod.namespace,
                "labels": map(pod.labels), "annotations": map(pod.annotations),
            },
        })))
    }

    /// Sets what a kubelet would: the phase and the addresses.
    pub(crate) fn set_pod_status(&self, namespace: &str, name: &str, phase: &str, ips: &[&str]) {
        let pod_ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"status": {"phase": phase, "podIP": ips.first(), "podIPs": pod_ips}});
        let patch = status.to_string();
        self.kubectl(&[
            "patch",
            "pod",
            name,
            "-n",
            namespace,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ]);
    }

    /// Deletes a pod at once: there is no kubelet that would end it.
    pub(crate) fn delete_pod(&self, namespace: &str, name: &str) {
        self.kubectl(&["delete", "pod", name, "-n", namespace, "--grace-period=0", "--force"]);
    }

    /// A kubeconfig for the agent on `node`: the shipped ServiceAccount, by a token bound to a pod of its own there.
    pub(crate) fn agent_kubeconfig(&self, node: &str) -> PathBuf {
        self.node(node, &[]);
        let path = self.kubeconfig_of_agent("rolecall", node, &format!("agent-{node}"));
        if self.impersonation {
            self.in_force.get_or_init(|| {
                let pod = format!("agent-{node}");
                self.until_tokens_are_for_sts_alone(&path, Some(node), "rolecall", "rolecall", &pod)
            });
        }
        path
    }

    /// The same for another ServiceAccount of the agent's namespace, with a pod of that name.
    pub(crate) fn kubeconfig_of_agent(&self, account: &str, node: &str, pod: &str) -> PathBuf {
        self.pod(&Pod { namespace: "rolecall", name: pod, service_account: account, node, ..Pod::default() });
        let bound = ["--bound-object-kind=Pod", "--bound-object-name", pod];
        let token =
            self.kubectl(&[&["create", "token", account, "-n", "rolecall"], bound.as_slice()].concat());
        let mut config = self.json(&["config", "view", "--raw", "--flatten"]);
        config["users"][0]["user"] = json!({"token": token.trim()});
        let path = self.state.join(format!("{pod}.kubeconfig"));
        std::fs::write(&path, config.to_string()).expect("the state directory is ours");
        path
    }

    /// Waits until the agent gets tokens for STS and for nothing else, as its node or by itself: a policy counts a moment
    /// after it is stored, and nothing tells when.
    pub(crate) fn until_tokens_are_for_sts_alone(
        &self,
        agent: &Path,
        node: Option<&str>,
        namespace: &str,
        account: &str,
        pod: &str,
    ) {
        let uid = self.kubectl(&["get", "pod", pod, "-n", namespace, "-o=jsonpath={.metadata.uid}"]);
        let mint = |audience: &[&str]| {
            let mut command = self.command();
            command.arg("--kubeconfig").arg(agent);
            command.args(node.map(|node| format!("--as=system:node:{node}")));
            command.args([
                "create",
                "token",
                account,
                "-n",
                namespace,
                "--bound-object-kind=Pod",
                "--bound-object-name",
                pod,
            ]);
            let output =
                command.arg("--bound-object-uid").arg(&uid).args(audience).output().expect("kubectl runs");
            if output.status.success() {
                "minted".into()
            } else {
                String::from_utf8_lossy(&output.stderr).into_owned()
            }
        };
        let mut last = (String::new(), String::new());
        for _ in 0..100 {
            last = (mint(&["--audience=sts.amazonaws.com"]), mint(&[]));
            if last.0 == "minted" && last.1.contains("rolecall-tokens") {
                return;
            }
        }
        panic!("after asking 100 times tokens for STS, and no others, are not what the agent gets: {last:?}");
    }

    /// Where it listens, on loopback.
    pub(crate) fn port(&self) -> u16 {
        let config = self.json(&["config", "view"]);
        let url =
            config["clusters"][0]["cluster"]["server"].as_str().expect("the kubeconfig names the server");
        url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    }

    /// The keys that the server signs ServiceAccount tokens with, as JSON.
    pub(crate) fn jwks(&self) -> String {
        self.kubectl(&["get", "--raw", "/openid/v1/jwks"])
    }

    /// The issuer that stands in those tokens.
    pub(crate) fn issuer(&self) -> String {
        let discovery = self.kubectl(&["get", "--raw", "/.well-known/openid-configuration"]);
        let discovery: Value = serde_json::from_str(&discovery).expect("the server answers JSON");
        discovery["issuer"].as_str().expect("an issuer").to_owned()
    }
}

/// The Kubernetes that whoever runs the tests has named, or `usual`.
fn chosen(usual: &str) -> String {
    std::env::var("KUBERNETES_MINOR").ok().filter(|minor| !minor.is_empty()).unwrap_or_else(|| usual.into())
}

/// The 36 of 1.36.
fn number(minor: &str) -> u32 {
    minor.strip_prefix("1.").and_then(|minor| minor.parse().ok()).expect("KUBERNETES_MINOR is like 1.36")
}

fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().expect("the server gives a UID").to_owned()
}

fn map(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().map(|&(key, value)| (key.to_owned(), Value::from(value))).collect()
}

/// A port that nothing listens on, below those that the kernel hands out to connections: the API server binds it a moment later.
fn free_port(offset: u32) -> String {
    let first = 20_000 + std::process::id() % 10_000 + offset;
    (first..first + 500)
        .find(|&port| TcpListener::bind(("127.0.0.1", port as u16)).is_ok())
        .expect("one port of 500 is free")
        .to_string()
}

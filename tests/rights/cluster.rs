//! One cluster of the rights' tests: two nodes, some pods, the agent of one of the nodes, and whoever has its token.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rolecall::cluster::client;
use serde_json::{Value, json};

use crate::apiserver::ApiServer;

pub(crate) const STS: &str = "sts.amazonaws.com";
/// How long a token may live.
const HOUR: u64 = 3600;

/// The API server with everything in it; made once.
pub(crate) struct Cluster {
    pub(crate) server: &'static ApiServer,
    /// The agent's, on the node `here`.
    pub(crate) agent: PathBuf,
    /// Pods by name.
    uids: HashMap<String, String>,
}

/// What a row expects.
pub(crate) enum Expected {
    Allowed,
    /// With 403, and these words.
    Refused(&'static str),
}

/// A request to the API server, and who asks.
pub(crate) struct Ask {
    kubeconfig: PathBuf,
    headers: Vec<(&'static str, String)>,
    method: &'static str,
    path: String,
    content: &'static str,
    body: Value,
}

impl Cluster {
    /// `here` has pods of `shop/web`, `shop/tools` and `kube-system/controller`, `there` one of `shop/db`. `shop/idle` has none.
    pub(crate) fn new(server: &'static ApiServer) -> Self {
        server.node("there", &[]);
        let agent = server.agent_kubeconfig("here");
        let account = |namespace: &str, name: &str| json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": namespace, "name": name}});
        let namespace =
            |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let pod = |namespace: &str, name: &str, account: &str, node: &str, volumes: Value| {
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name},
                "spec": {
                    "serviceAccountName": account, "nodeName": node, "volumes": volumes,
                    "containers": [{"name": "main", "image": "none:1"}],
                },
            })
        };
        // What the Node authorizer lets the node itself have, because a pod there needs it.
        let volumes = json!([
            {"name": "secret", "secret": {"secretName": "key"}},
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "vault", "projected": {"sources": [
                {"serviceAccountToken": {"audience": "vault", "path": "token"}},
            ]}},
        ]);
        let items = json!({"apiVersion": "v1", "kind": "List", "items": [
            namespace("shop"), namespace("closed"), namespace("kube-system"),
            account("shop", "web"), account("shop", "db"), account("shop", "idle"), account("shop", "tools"),
            account("closed", "web"), account("kube-system", "controller"),
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "shop", "name": "key"}},
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "shop", "name": "settings"}},
            pod("shop", "web-1", "web", "here", volumes),
            pod("shop", "tools-1", "tools", "here", json!([])),
            pod("shop", "db-1", "db", "there", json!([])),
            pod("closed", "closed-1", "web", "here", json!([])),
            pod("kube-system", "controller-1", "controller", "here", json!([])),
        ]});
        let file = server.state().join("rights.json");
        std::fs::write(&file, items.to_string()).unwrap();
        server.kubectl(&["apply", "--server-side", "-f", file.to_str().unwrap()]);
        let pods = server.json(&["get", "pods", "-A"]);
        let field = |pod: &Value, name: &str| pod["metadata"][name].as_str().unwrap().to_owned();
        let uids = pods["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pod| (field(pod, "name"), field(pod, "uid")))
            .collect();
        Self { server, agent, uids }
    }

    /// The holder of the agent's token, as itself.
    pub(crate) fn itself(&self) -> Ask {
        self.by(&self.agent)
    }

    /// The holder of the agent's token, as the agent's node.
    pub(crate) fn as_node(&self) -> Ask {
        self.as_user("system:node:here")
    }

    /// The holder of the agent's token, as somebody else.
    pub(crate) fn as_user(&self, name: &str) -> Ask {
        self.itself().header("impersonate-user", name)
    }

    /// The holder of that kubeconfig.
    pub(crate) fn by(&self, kubeconfig: &Path) -> Ask {
        Ask {
            kubeconfig: kubeconfig.to_owned(),
            headers: Vec::new(),
            method: "GET",
            path: String::new(),
            content: "application/json",
            body: Value::Null,
        }
    }

    pub(crate) fn uid(&self, pod: &str) -> &str {
        &self.uids[pod]
    }

    /// A kubeconfig for the agent with a token that is bound to no pod, so that no node is in it.
    pub(crate) fn unbound_agent(&self) -> PathBuf {
        let token = self.server.kubectl(&["create", "token", "rolecall", "-n", "rolecall"]);
        self.login("unbound", json!({"token": token.trim()}))
    }

    /// A kubeconfig of that user.
    pub(crate) fn login(&self, name: &str, user: Value) -> PathBuf {
        let mut config: Value = serde_json::from_slice(&std::fs::read(&self.agent).unwrap()).unwrap();
        config["users"][0]["user"] = user;
        let path = self.server.state().join(format!("{name}-{}.kubeconfig", fastrand::u64(..)));
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// A row of the table.
    pub(crate) async fn judge(&self, ask: impl FnOnce(&Self) -> Ask, expected: Expected) {
        let ask = ask(self);
        let told = format!("{} {} {:?} {}", ask.method, ask.path, ask.headers, ask.body);
        match (ask.answer().await, expected) {
            (Ok(_), Expected::Allowed) => {}
            (Err((403, message)), Expected::Refused(why)) if message.contains(why) => {}
            (Ok(answer), Expected::Refused(_)) => panic!("allowed: {told}\n{answer}"),
            (Err((status, message)), Expected::Refused(why)) => {
                panic!("{told}: no {why:?}: {status} {message}")
            }
            (Err((status, message)), Expected::Allowed) => panic!("{told}: {status} {message}"),
        }
    }
}

impl Ask {
    fn request(self, method: &'static str, path: &str, body: Value) -> Self {
        Self { method, path: path.to_owned(), body, ..self }
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(crate) fn get(self, path: &str) -> Self {
        self.request("GET", path, Value::Null)
    }

    pub(crate) fn post(self, path: &str, body: Value) -> Self {
        self.request("POST", path, body)
    }

    pub(crate) fn delete(self, path: &str) -> Self {
        self.request("DELETE", path, json!({}))
    }

    pub(crate) fn patch(self, path: &str, body: Value) -> Self {
        Self { content: "application/merge-patch+json", ..self.request("PATCH", path, body) }
    }

    /// A watch that the server ends soon.
    pub(crate) fn watch(self, path: &str, fields: &str) -> Self {
        self.get(&format!("{path}?watch=1&timeoutSeconds=1&fieldSelector={fields}"))
    }

    /// A token as the agent asks for it: for STS, for an hour, bound to the pod.
    pub(crate) fn token(self, cluster: &Cluster, account: &str, pod: &str) -> Self {
        let (namespace, name) = account.split_once('/').unwrap();
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
            "audiences": [STS],
            "expirationSeconds": HOUR,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": cluster.uid(pod)},
        }});
        self.post(&format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"), body)
    }

    /// The same, but for one field of the request.
    pub(crate) fn but(mut self, pointer: &str, value: Value) -> Self {
        *self.body.pointer_mut(&format!("/spec/{pointer}")).unwrap() = value;
        self
    }

    /// The body of a good answer; else status and message.
    pub(crate) async fn answer(self) -> Result<String, (u16, String)> {
        let config = client::config(Some(&self.kubeconfig)).await.unwrap();
        let client = client::client(&config).unwrap();
        let mut request =
            http::Request::builder().method(self.method).uri(self.path).header("content-type", self.content);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let body = if self.body.is_null() { Vec::new() } else { self.body.to_string().into_bytes() };
        match client.request_text(request.body(body).unwrap()).await {
            Ok(text) => Ok(text),
            Err(kube::Error::Api(status)) => Err((status.code, status.message)),
            Err(other) => panic!("{other}"),
        }
    }
}

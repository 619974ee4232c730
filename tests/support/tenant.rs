//! A Kubernetes namespace of a test: its ServiceAccounts, its tokens, and its pods with everything that a kubelet would do for them.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::agent::{SOON, ask, until};
use crate::apiserver::ApiServer;
use crate::http::{self, Answer};
use crate::netns::{self, NODE_IP, NODE_IP_V6, Node};
use crate::process::Process;

/// A namespace, and the administrator who makes things in it.
pub struct Tenant {
    pub namespace: String,
    admin: kube::Client,
}

impl Tenant {
    /// A new namespace.
    pub async fn new(server: &ApiServer, namespace: &str, labels: Value) -> Self {
        let config = rolecall::cluster::client::config(Some(&server.kubeconfig())).await.unwrap();
        let admin = rolecall::cluster::client::client(&config).unwrap();
        let tenant = Self { namespace: namespace.to_owned(), admin };
        tenant.post("/api/v1/namespaces", &json!({"metadata": {"name": namespace, "labels": labels}})).await;
        tenant
    }

    pub async fn send(&self, method: &str, path: &str, content: &str, body: &Value) -> Value {
        let request = ::http::Request::builder().method(method).uri(path).header("content-type", content);
        let answer = self.admin.request(request.body(body.to_string().into_bytes()).unwrap()).await;
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub async fn post(&self, path: &str, object: &Value) -> Value {
        self.send("POST", path, "application/json", object).await
    }

    pub async fn get(&self, path: &str) -> Value {
        let request = ::http::Request::get(path).body(Vec::new()).unwrap();
        self.admin.request(request).await.unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// Where the API server has an object of the namespace, or without a name all of them.
    pub fn path(&self, kind: &str, name: &str) -> String {
        format!("/api/v1/namespaces/{}/{kind}/{name}", self.namespace)
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

    /// Sets annotations of a pod; `null` removes one.
    pub async fn annotate_pod(&self, pod: &str, annotations: Value) {
        let patch = json!({"metadata": {"annotations": annotations}});
        self.send("PATCH", &self.path("pods", pod), "application/merge-patch+json", &patch).await;
    }

    /// Sets annotations of the namespace; `null` removes one.
    pub async fn annotate_namespace(&self, annotations: Value) {
        let patch = json!({"metadata": {"annotations": annotations}});
        let path = format!("/api/v1/namespaces/{}", self.namespace);
        self.send("PATCH", &path, "application/merge-patch+json", &patch).await;
    }

    /// A pod's object alone, and its UID: for two of them that show one address.
    pub async fn pod_object(&self, node: &str, name: &str, account: &str, addresses: &[&str]) -> String {
        uid(&self.bound_object(&pod_object(node, name, account), addresses).await)
    }

    /// The object of the pod `host` on the node's own network, and its UID.
    pub async fn host_pod(&self, account: &str) -> String {
        let mut object = pod_object("node", "host", account);
        object["spec"]["hostNetwork"] = true.into();
        uid(&self.bound_object(&object, &[NODE_IP, NODE_IP_V6]).await)
    }

    /// Makes a pod's object, and shows its addresses as the kubelet does; returns what the API server made of it.
    pub async fn bound_object(&self, object: &Value, addresses: &[&str]) -> Value {
        let made = self.post(&self.path("pods", ""), object).await;
        if let Some(first) = addresses.first() {
            let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
            let status = json!({"status": {"phase": "Running", "podIP": first, "podIPs": ips}});
            let path = self.path("pods", &format!("{}/status", made["metadata"]["name"].as_str().unwrap()));
            self.send("PATCH", &path, "application/merge-patch+json", &status).await;
        }
        made
    }

    /// A token as the kubelet projects it into that pod.
    pub async fn token(&self, account: &str, pod: &str, uid: &str, audience: &str) -> String {
        let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid});
        let request = json!({"spec": {"audiences": [audience], "boundObjectRef": bound}});
        let answer = self.post(&self.path("serviceaccounts", &format!("{account}/token")), &request).await;
        answer["status"]["token"].as_str().unwrap().to_owned()
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
}

/// The least that a pod's object needs, bound to `node`.
pub fn pod_object(node: &str, name: &str, account: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "serviceAccountName": account, "nodeName": node,
        "containers": [{"name": "main", "image": "none:1"}],
    }})
}

fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().unwrap().to_owned()
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
    /// What the API server made of what it was sent.
    pub object: Value,
    process: Process,
    net: netns::Pod,
}

impl RunningPod {
    /// Makes `object` a pod that runs on `node`: the number, which no other pod there has, is in its addresses. Its object shows
    /// those if it is `published`; a pod that starts has none yet.
    pub async fn start(
        tenant: &Tenant,
        node: &Node,
        number: u16,
        shape: Shape,
        object: &Value,
        published: bool,
    ) -> Self {
        let net_name = format!("p{number}");
        let (ip, ipv6, net) = match shape {
            Shape::Routed => {
                let (ip, ipv6) = (format!("10.0.1.{number}"), format!("fd00:1::{number}"));
                let net = node.routed_pod(&net_name, &ip, Some(&ipv6));
                (ip, ipv6, net)
            }
            Shape::Bridged => {
                let (ip, ipv6) = (format!("10.0.2.{number}"), format!("fd00:2::{number}"));
                let net = node.bridged_pod(&net_name, &ip, Some(&ipv6));
                (ip, ipv6, net)
            }
        };
        let both: &[&str] = &[&ip, &ipv6];
        let object = tenant.bound_object(object, if published { both } else { &[] }).await;
        let uid = uid(&object);
        let process = Process::of(&uid, &net);
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        Self { name, uid, ip, ipv6, object, process, net }
    }

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

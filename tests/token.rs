//! Tokens in Authorization on a real API server: the whole path, with the rights that ship, from a hostNetwork pod's
//! request to its credentials. STS is the one in memory; the ServiceAccounts, pods and tokens are real.
// clippy.toml allows it in tests, and does not know their helpers for such.

#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "support/http.rs"]
mod http;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rolecall::app::App;
use rolecall::cluster::api::KubeApi;
use rolecall::cluster::client;
use rolecall::fakes::{FakeSts, ROLE};
use rolecall::identity::authorization::{Authorization, Required, TokenSource};
use rolecall::identity::evidence::Source;
use rolecall::identity::pods::PodUid;
use rolecall::metrics::Metrics;
use rolecall::role::Defaults;
use rolecall::shutdown::{self, Trigger};
use rolecall::telemetry::Lines;
use rolecall::{identity, server, service_accounts};
use tokio::task::JoinSet;
use tokio::time::timeout;

use apiserver::{ApiServer, Pod};

/// For what should take milliseconds, on a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(15);
/// A process of the host dials our address from that address; here it is loopback.
const HOST: &str = "127.0.0.1";
/// The address of the pod that has a network of its own.
const WEB: &str = "127.0.0.7";

/// One namespace, one node, and the agent on it with the rights that ship.
struct Node {
    server: &'static ApiServer,
    name: &'static str,
    address: SocketAddr,
    pods: Arc<identity::pods::Pods>,
    sts: Arc<FakeSts>,
    lines: Written,
    _trigger: Trigger,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A kubeconfig for an agent on `node` whose ServiceAccount has the role `rolecall-agent`, and nobody bound `rolecall-mint` to it.
fn without_the_right_to_mint(server: &ApiServer, node: &str) -> PathBuf {
    server.node(node, &[]);
    server.service_account("rolecall", "watcher", &[]);
    let subject = "--serviceaccount=rolecall:watcher";
    server.kubectl(&["create", "clusterrolebinding", "watcher", "--clusterrole=rolecall-agent", subject]);
    server.kubeconfig_of_agent("watcher", node, "watcher")
}

impl Node {
    /// The namespace `name` has a ServiceAccount `demo` with a role, and its hostNetwork pod `proxy` is on the node `name`.
    async fn new(name: &'static str, authorization: Authorization) -> Self {
        let server = ApiServer::shared();
        server.namespace(name, &[]);
        server.service_account(name, "demo", &[("rolecall.dev/role-arn", ROLE)]);
        let kubeconfig = match authorization.tokens {
            TokenSource::Kubernetes | TokenSource::Issuer(_) => server.agent_kubeconfig(name),
            TokenSource::Caller => without_the_right_to_mint(server, name),
        };
        let config = client::config(Some(&kubeconfig)).await.unwrap();
        let kube = client::clients(&config, server.as_node(name)).unwrap();

        let (metrics, lines) = (Arc::new(Metrics::new()), Written::default());
        let written = Lines::start(lines.clone(), metrics.dropped_lines.clone()).unwrap();
        let api = Arc::new(KubeApi::new(kube.node.clone(), name));
        let sts = Arc::new(FakeSts::default());
        let app = App::new(
            Source::Address,
            authorization,
            Defaults::of_node(name),
            api,
            Arc::clone(&sts) as _,
            metrics,
            written,
        );
        let (trigger, drain) = shutdown::drain();
        let mut tasks = JoinSet::new();
        let (client, pods) = (kube.node, Arc::clone(&app.pods));
        tasks.spawn(async move {
            match identity::watch::follow(client, name, pods, Arc::default(), false).await {}
        });
        let (pods, accounts) = (Arc::clone(&app.pods), Arc::clone(&app.accounts));
        tasks.spawn(async move {
            match service_accounts::watch::follow(kube.own, pods, accounts, Arc::default()).await {}
        });
        let listener = server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, pods) = (listener.local_addr().unwrap(), Arc::clone(&app.pods));
        app.serve(vec![listener], &drain, &mut tasks).unwrap();
        drop(drain);
        let node = Self { server, name, address, pods, sts, lines, _trigger: trigger, _tasks: tasks };
        node.pod("proxy", true).await;
        node
    }

    /// A pod of `demo` on the node, once the agent sees it.
    async fn pod(&self, name: &str, host_network: bool) {
        let pod = Pod { name, node: self.name, host_network, ..self.demo() };
        let uid = PodUid::new(self.server.pod(&pod));
        if !host_network {
            self.server.set_pod_status(self.name, name, "Running", &[WEB]);
        }
        let mut changes = self.pods.changes();
        let seen = async {
            while self.pods.by_uid(&uid).is_none_or(|pod| !host_network && pod.addresses.is_empty()) {
                changes.changed().await.unwrap();
            }
        };
        timeout(SOON, seen).await.unwrap_or_else(|_| panic!("{name} is not seen"));
    }

    fn demo(&self) -> Pod<'static> {
        Pod { namespace: self.name, service_account: "demo", ..Pod::default() }
    }

    /// A token as the kubelet would project it into the pod.
    fn token(&self, pod: &str, audience: &str) -> String {
        self.mint(&["--bound-object-kind=Pod", "--bound-object-name", pod, "--audience", audience])
    }

    fn mint(&self, args: &[&str]) -> String {
        let token = self.server.kubectl(&[&["create", "token", "demo", "-n", self.name], args].concat());
        token.trim().to_owned()
    }

    /// Asks as SDKs do, again after a 503, with this Authorization; the status and the code, or the role.
    async fn ask(&self, from: &str, authorization: &str) -> (u16, String) {
        let request = http::request(self.address)
            .replace("Accept:", &format!("Authorization: {authorization}\r\nAccept:"));
        for _ in 0..30 {
            let answer = http::get(from, self.address, &request).await;
            match answer.status {
                503 => {}
                200 => return (200, answer.json()["RoleArn"].as_str().unwrap().to_owned()),
                status => return (status, answer.code()),
            }
        }
        panic!("503 for 30 times: {}", String::from_utf8_lossy(&self.lines.0.lock().unwrap()))
    }

    /// Nothing of any of these tokens is in a line that the agent wrote.
    fn has_told_nothing_of(&self, tokens: &[&str]) {
        let lines = String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap();
        assert!(!lines.is_empty() && !lines.contains("eyJ"), "{lines}");
        for part in tokens.iter().flat_map(|token| token.split('.')) {
            assert!(!lines.contains(part), "{lines}");
        }
    }
}

fn good() -> (u16, String) {
    (200, ROLE.to_owned())
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test]
async fn a_host_network_pod_gets_its_role_for_its_own_token_and_nobody_for_another() {
    let node = Node::new("host-pods", Authorization::default()).await;
    node.pod("web", false).await;
    let good_one = node.token("proxy", "rolecall");
    assert_eq!(node.ask(HOST, &good_one).await, good());
    assert_eq!(node.ask(HOST, &format!("Bearer {good_one}")).await, good());

    assert_eq!(node.ask(HOST, "rolecall").await, refused(403, "CallerNotIdentified"));
    let (head, signature) = good_one.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
    assert_eq!(node.ask(HOST, &forged).await, refused(401, "AuthorizationInvalid"));
    let for_sts = node.token("proxy", "sts.amazonaws.com");
    assert_eq!(node.ask(HOST, &for_sts).await, refused(401, "AuthorizationInvalid"));
    let unbound = node.mint(&["--audience", "rolecall"]);
    assert_eq!(node.ask(HOST, &unbound).await, refused(401, "AuthorizationInvalid"));
    let web = node.token("web", "rolecall");
    assert_eq!(node.ask(HOST, &web).await, refused(403, "SourceMismatch"));
    // And the other way round: the pod with an address shows a token of the hostNetwork pod.
    assert_eq!(node.ask(WEB, &good_one).await, refused(403, "SourceMismatch"));
    assert_eq!(node.ask(WEB, &web).await, good());
    assert_eq!(node.ask(WEB, "rolecall").await, good());
    node.has_told_nothing_of(&[&good_one, &forged, &for_sts, &unbound, &web]);
}

#[tokio::test]
async fn a_token_is_good_for_as_long_as_its_pod_and_on_its_node_alone() {
    let node = Node::new("host-ends", Authorization::default()).await;
    node.server.node("host-ends-2", &[]);
    let elsewhere = Pod { name: "elsewhere", node: "host-ends-2", host_network: true, ..node.demo() };
    node.server.pod(&elsewhere);
    let elsewhere = node.token("elsewhere", "rolecall");
    assert_eq!(node.ask(HOST, &elsewhere).await, refused(401, "AuthorizationInvalid"));

    let (kept, unseen) = (node.token("proxy", "rolecall"), node.token("proxy", "rolecall"));
    assert_eq!(node.ask(HOST, &kept).await, good());
    node.server.delete_pod(node.name, "proxy");
    assert_eq!(node.ask(HOST, &unseen).await, refused(401, "AuthorizationInvalid"), "by TokenReview");
    let mut changes = node.pods.changes();
    let gone = async {
        while node.pods.all().iter().any(|pod| &*pod.name == "proxy") {
            changes.changed().await.unwrap();
        }
    };
    timeout(SOON, gone).await.unwrap();
    assert_eq!(node.ask(HOST, &kept).await, refused(401, "AuthorizationInvalid"), "by the watch");
    // A new pod of the old name is not the old pod.
    node.pod("proxy", true).await;
    assert_eq!(node.ask(HOST, &kept).await, refused(401, "AuthorizationInvalid"));
    assert_eq!(node.ask(HOST, &node.token("proxy", "rolecall")).await, good());
    node.has_told_nothing_of(&[&elsewhere, &kept, &unseen]);
}

#[tokio::test]
async fn the_default_token_will_do_where_its_audience_is_allowed() {
    let issuer = ApiServer::shared().issuer();
    let audiences = vec!["rolecall".to_owned(), issuer.clone()];
    let node = Node::new("host-default", Authorization { audiences, ..Authorization::default() }).await;
    // What the kubelet asks for when it mounts /var/run/secrets/kubernetes.io/serviceaccount/token.
    let default = node.mint(&["--bound-object-kind=Pod", "--bound-object-name", "proxy"]);
    assert_eq!(node.ask(HOST, &default).await, good());
    assert_eq!(node.ask(HOST, &node.token("proxy", "rolecall")).await, good());
    assert_eq!(node.ask(HOST, &node.token("proxy", "another")).await, refused(401, "AuthorizationInvalid"));
    let plain = Node::new("host-strict", Authorization::default()).await;
    let default = plain.mint(&["--bound-object-kind=Pod", "--bound-object-name", "proxy"]);
    assert_eq!(plain.ask(HOST, &default).await, refused(401, "AuthorizationInvalid"));
}

#[tokio::test]
async fn where_tokens_are_required_a_pod_needs_its_own_beside_its_address() {
    let authorization = Authorization { required: Required::Token, ..Authorization::default() };
    let node = Node::new("required", authorization).await;
    node.pod("web", false).await;
    let (web, proxy) = (node.token("web", "rolecall"), node.token("proxy", "rolecall"));
    assert_eq!(node.ask(WEB, &web).await, good());
    assert_eq!(node.ask(WEB, &proxy).await, refused(403, "SourceMismatch"));
    assert_eq!(node.ask(WEB, "rolecall").await, refused(401, "AuthorizationInvalid"));
    assert_eq!(node.ask(WEB, "").await, refused(401, "AuthorizationRequired"));
    assert_eq!(node.ask(HOST, &proxy).await, good());
}

#[tokio::test]
async fn an_agent_without_the_right_to_mint_shows_sts_the_pods_own_token() {
    let authorization = Authorization { tokens: TokenSource::Caller, ..Authorization::default() };
    let node = Node::new("own-tokens", authorization).await;
    node.pod("web", false).await;
    node.pod("other", true).await;
    assert_eq!(node.ask(WEB, "rolecall").await, refused(401, "AuthorizationRequired"));
    let others = node.token("other", "sts.amazonaws.com");
    assert_eq!(node.ask(WEB, &others).await, refused(401, "AuthorizationInvalid"));
    let own = node.token("web", "sts.amazonaws.com");
    assert_eq!(node.ask(WEB, &own).await, good());
    assert_eq!(node.ask(WEB, "rolecall").await, good(), "it is cached");
    assert_eq!(node.sts.shown(), [own.as_str()]);
    node.has_told_nothing_of(&[&others, &own]);
}

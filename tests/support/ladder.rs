//! The whole path behind `--identity=kernel`, on a node made of network namespaces: fakes at its two doors, the kernel's own in between.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rolecall::fakes::{FakeCluster, FakeSts, World, pod};
use rolecall::identity::evidence::Source;
use rolecall::identity::kernel::Kernel;
use rolecall::identity::pods::{Pod, PodUid, Pods};
use rolecall::service_accounts::ServiceAccounts;
use rolecall::{server, shutdown};
use tokio::task::JoinSet;

use crate::http::{self, Answer};
use crate::netns::{Namespace, Node};

pub const V4: &str = "169.254.170.23:9902";
pub const V6: &str = "[fd00:ec2::23]:9902";

/// A node that has our addresses.
pub fn node(test: &str) -> Option<Node> {
    let node = Node::new(test)?;
    node.ip("address add 169.254.170.23/32 dev lo scope link");
    node.ip("address add fd00:ec2::23/128 dev lo nodad");
    Some(node)
}

/// The UID of pod `name`, as the kubelet writes it into cgroup names.
pub fn uid(name: &str) -> String {
    let hash = name.bytes().fold(7_u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte));
    format!("00000000-0000-4000-8000-{:012x}", hash & 0xffff_ffff_ffff)
}

/// What the kube API has of pod `name`; of a new pod it has no address yet.
pub fn shown(name: &str, addresses: &[&str]) -> Pod {
    Pod {
        uid: PodUid::new(uid(name)),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ..pod(name, "192.0.2.1")
    }
}

/// The agent's two doors, and what its watches have shown, from outside its thread.
pub struct Agent {
    pub cluster: Arc<FakeCluster>,
    pub sts: Arc<FakeSts>,
    pub pods: Arc<Pods>,
    pub accounts: Arc<ServiceAccounts>,
}

impl Agent {
    /// The API server has these pods, and the watch has shown them.
    pub fn set(&self, pods: &[Pod]) {
        self.cluster.set_pods(pods.to_vec());
        self.pods.reset(pods.to_vec());
    }
}

/// An agent on `node` for as long as `test` runs. ServiceAccounts `a`, `b` and `new` have a role.
pub fn with_agent<T>(node: &Node, test: impl FnOnce(&Agent) -> T) -> T {
    with_late_agent(node, || {}, test)
}

/// Connections made by `before` wait in the accept queue: the agent looks at them only when it has returned.
pub fn with_late_agent<T>(node: &Node, before: impl FnOnce(), test: impl FnOnce(&Agent) -> T) -> T {
    with_agent_over(Path::new("/proc"), node, before, test)
}

/// An agent that takes `proc` for `/proc`.
pub fn with_agent_over<T>(
    proc: &Path,
    node: &Node,
    before: impl FnOnce(),
    test: impl FnOnce(&Agent) -> T,
) -> T {
    let (bound, is_bound) = std::sync::mpsc::channel();
    let (ready, agent) = std::sync::mpsc::channel();
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            node.run(async move || {
                let kernel = Kernel::start(proc).unwrap();
                let World { cluster, sts, app } = {
                    let world = World::with_evidence(Source::Kernel(Arc::new(kernel)), std::io::sink());
                    for account in ["a", "b", "new"] {
                        world.annotate(account, &[("rolecall.dev/role-arn", &role(account))]);
                    }
                    world
                };
                let listeners = [V4, V6].map(|at| server::bind(at.parse().unwrap()).unwrap());
                let (pods, accounts) = (Arc::clone(&app.pods), Arc::clone(&app.accounts));
                let (_trigger, drain) = shutdown::drain();
                let mut tasks = JoinSet::new();
                bound.send(()).unwrap();
                let _ = gone.await;
                ready.send(Agent { cluster, sts, pods, accounts }).unwrap();
                app.serve(listeners.into(), &drain, &mut tasks).unwrap();
                let _ = stopped.await;
            });
        });
        is_bound.recv().unwrap();
        before();
        drop(go);
        let answer = test(&agent.recv().unwrap());
        drop(stop);
        answer
    })
}

/// Asks from `namespace`, under its address `from`.
pub fn ask(namespace: &Namespace, from: &str, to: &str) -> Answer {
    let to: SocketAddr = to.parse().unwrap();
    namespace.run(async || http::get(from, to, &http::request(to)).await)
}

/// Likewise, with a token in Authorization.
pub fn ask_with(token: &str, namespace: &Namespace, from: &str, to: &str) -> Answer {
    let to: SocketAddr = to.parse().unwrap();
    let request = http::request(to).replace("Accept:", &format!("Authorization: {token}\r\nAccept:"));
    namespace.run(async || http::get(from, to, &request).await)
}

/// As an SDK does it: again, while it is passing trouble.
pub fn settled(namespace: &Namespace, from: &str, to: &str) -> Answer {
    (0..10)
        .map(|_| ask(namespace, from, to))
        .find(|answer| answer.status != 503)
        .expect("an end to the trouble")
}

/// The role of ServiceAccount `name`, and of no other.
pub fn role(name: &str) -> String {
    format!("arn:aws:iam::123456789012:role/{name}")
}

/// The ServiceAccount whose keys these are, for its own role.
pub fn account(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let document = answer.json();
    let account = document["AccessKeyId"].as_str().unwrap().split_once('.').unwrap().1.to_owned();
    assert_eq!(document["RoleArn"], role(&account));
    account
}

pub fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, &*answer.code()), (status, code), "{}", answer.body);
}

//! `--identity=kernel` on real kernels: whose connection it is, on nodes and pods made of network namespaces.
//!
//! A pod is a namespace with a process in it, whose `/proc/<pid>/cgroup` is a file of the test's: a bind mount, which
//! needs no root. Everything else is the kernel's own.

#![cfg(target_os = "linux")]
// Clippy allows it in test functions, but not in what they are made of.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/netns.rs"]
mod netns;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use rolecall::fakes::{FakeCluster, ROLE, World, pod};
use rolecall::identity::evidence::Source;
use rolecall::identity::kernel::Kernel;
use rolecall::identity::pods::{Pod, PodUid, Pods};
use rolecall::{server, shutdown};
use tokio::task::JoinSet;

use http::Answer;
use netns::{Namespace, Node};

const V4: &str = "169.254.170.23:9902";
const V6: &str = "[fd00:ec2::23]:9902";
const VICTIM: &str = "10.0.2.7";

/// A node that has our addresses.
fn node(test: &str) -> Option<Node> {
    let node = Node::new(test)?;
    node.ip("address add 169.254.170.23/32 dev lo scope link");
    node.ip("address add fd00:ec2::23/128 dev lo nodad");
    Some(node)
}

/// The UID of pod `name`, as the kubelet writes it into cgroup names.
fn uid(name: &str) -> String {
    let hash = name.bytes().fold(7_u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte));
    format!("00000000-0000-4000-8000-{:012x}", hash & 0xffff_ffff_ffff)
}

/// What the kube API has of pod `name`; of a new pod it has no address yet.
fn shown(name: &str, addresses: &[&str]) -> Pod {
    Pod {
        uid: PodUid::new(uid(name)),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ..pod(name, "192.0.2.1")
    }
}

/// A process in `namespace` whose cgroup reads `cgroup`.
struct Process(Child);

impl Process {
    fn start(namespace: &Namespace, cgroup: &str) -> Self {
        static FILES: AtomicU32 = AtomicU32::new(0);
        let mut command = namespace.command("sh");
        // The line tells that it is in the namespace by now.
        command.args(["-c", "echo there; exec sleep 600"]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let file = format!("/run/cgroup-{}", FILES.fetch_add(1, Ordering::Relaxed));
        fs::write(&file, cgroup).unwrap();
        let (proc, none) = (format!("/proc/{}/cgroup", child.id()), None::<&str>);
        mount(Some(&*file), &*proc, none, MsFlags::MS_BIND, none).unwrap();
        Self(child)
    }

    /// The first process of pod `name`.
    fn of(name: &str, namespace: &Namespace) -> Self {
        Self::start(namespace, &cgroup(name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn cgroup(name: &str) -> String {
    let uid = uid(name).replace('-', "_");
    let slice = format!("kubepods-burstable-pod{uid}.slice");
    format!("0::/kubepods.slice/kubepods-burstable.slice/{slice}/cri-containerd-{:064x}.scope\n", 7)
}

/// The agent's two doors, from outside its thread.
struct Agent {
    cluster: Arc<FakeCluster>,
    pods: Arc<Pods>,
}

impl Agent {
    /// The API server has these pods, and the watch has shown them.
    fn set(&self, pods: &[Pod]) {
        self.cluster.set_pods(pods.to_vec());
        self.pods.reset(pods.to_vec());
    }
}

/// An agent on `node` for as long as `test` runs. ServiceAccounts `a`, `b` and `new` have a role.
fn with_agent<T>(node: &Node, test: impl FnOnce(&Agent) -> T) -> T {
    with_late_agent(node, || {}, test)
}

/// Connections made by `before` wait in the accept queue: the agent looks at them only when it has returned.
fn with_late_agent<T>(node: &Node, before: impl FnOnce(), test: impl FnOnce(&Agent) -> T) -> T {
    let (bound, is_bound) = std::sync::mpsc::channel();
    let (ready, agent) = std::sync::mpsc::channel();
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            node.run(async move || {
                let kernel = Kernel::start("/proc").unwrap();
                let World { cluster, app, .. } = {
                    let world = World::with_evidence(Source::Kernel(Arc::new(kernel)), std::io::sink());
                    for account in ["a", "b", "new"] {
                        world.annotate(account, &[("rolecall.dev/role-arn", ROLE)]);
                    }
                    world
                };
                let listeners = [V4, V6].map(|at| server::bind(at.parse().unwrap()).unwrap());
                let pods = Arc::clone(&app.pods);
                let (_trigger, drain) = shutdown::drain();
                let mut tasks = JoinSet::new();
                bound.send(()).unwrap();
                let _ = gone.await;
                ready.send(Agent { cluster, pods }).unwrap();
                app.serve(listeners.into(), None, &drain, &mut tasks).unwrap();
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
fn ask(namespace: &Namespace, from: &str, to: &str) -> Answer {
    let to: SocketAddr = to.parse().unwrap();
    namespace.run(async || http::get(from, to, &http::request(to)).await)
}

/// The ServiceAccount whose keys these are.
fn account(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let key = answer.json()["AccessKeyId"].as_str().unwrap().to_owned();
    key.split_once('.').unwrap().1.to_owned()
}

fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, &*answer.code()), (status, code), "{}", answer.body);
}

#[test]
fn routed_pods_get_their_own_keys_over_both_families() {
    let Some(node) = node("attest_routed") else { return };
    let a = node.routed_pod("a", "10.0.1.7", Some("fd00::7"));
    let b = node.routed_pod("b", "10.0.1.8", Some("fd00::8"));
    let _processes = [Process::of("a", &a), Process::of("b", &b)];
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7", "fd00::7"]), shown("b", &["10.0.1.8", "fd00::8"])]);
        for _ in 0..2 {
            assert_eq!(account(&ask(&a, "10.0.1.7", V4)), "a");
            assert_eq!(account(&ask(&b, "10.0.1.8", V4)), "b");
            assert_eq!(account(&ask(&a, "fd00::7", V6)), "a");
            assert_eq!(account(&ask(&b, "fd00::8", V6)), "b");
        }
    });
}

#[test]
fn bridged_pods_get_their_own_keys_over_both_families() {
    let Some(node) = node("attest_bridged") else { return };
    let a = node.bridged_pod("a", "10.0.2.7", Some("fd00:2::7"));
    let b = node.bridged_pod("b", "10.0.2.8", Some("fd00:2::8"));
    let _processes = [Process::of("a", &a), Process::of("b", &b)];
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.2.7", "fd00:2::7"]), shown("b", &["10.0.2.8", "fd00:2::8"])]);
        for _ in 0..2 {
            assert_eq!(account(&ask(&a, "10.0.2.7", V4)), "a");
            assert_eq!(account(&ask(&b, "10.0.2.8", V4)), "b");
            assert_eq!(account(&ask(&a, "fd00:2::7", V6)), "a");
            assert_eq!(account(&ask(&b, "fd00:2::8", V6)), "b");
        }
    });
}

#[test]
fn a_dual_stack_client_of_a_bridged_pod_is_known() {
    let Some(node) = node("attest_mapped") else { return };
    let a = node.bridged_pod("a", "10.0.2.7", None);
    let _process = Process::of("a", &a);
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.2.7"])]);
        let to: SocketAddr = "[::ffff:169.254.170.23]:9902".parse().unwrap();
        let ours: SocketAddr = V4.parse().unwrap();
        let answer = a.run(async || http::get("::", to, &http::request(ours)).await);
        assert_eq!(account(&answer), "a");
    });
}

#[test]
fn a_bridged_pod_that_is_redirected_from_port_80_is_known() {
    let Some(node) = node("attest_redirect") else { return };
    let a = node.bridged_pod("a", "10.0.2.7", Some("fd00:2::7"));
    let _process = Process::of("a", &a);
    for file in [include_str!("../iptables/00-table.nft"), include_str!("../iptables/20-eks-port.nft")] {
        let path = format!("/run/{}.nft", node.name());
        fs::write(&path, file).unwrap();
        assert!(node.command("nft").args(["-f", &path]).status().unwrap().success());
    }
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.2.7", "fd00:2::7"])]);
        assert_eq!(account(&ask(&a, "10.0.2.7", "169.254.170.23:80")), "a");
        assert_eq!(account(&ask(&a, "fd00:2::7", "[fd00:ec2::23]:80")), "a");
    });
}

#[test]
fn a_new_pod_needs_no_published_address_and_no_watch() {
    let Some(node) = node("attest_new") else { return };
    let new = node.routed_pod("new", "10.0.1.7", None);
    let _process = Process::of("new", &new);
    with_agent(&node, |agent| {
        agent.set(&[shown("new", &[])]);
        assert_eq!(account(&ask(&new, "10.0.1.7", V4)), "new");
    });
}

#[test]
fn an_address_reused_at_once_names_the_new_pod_while_the_watch_shows_the_old_one() {
    let Some(node) = node("attest_reuse") else { return };
    let old = node.routed_pod("a", "10.0.1.7", None);
    let process = Process::of("a", &old);
    with_agent(&node, |agent| {
        // Another pod of b's ServiceAccount: a token is asked for in its name, until the watch shows the new one.
        let sibling = Pod { uid: PodUid::new(uid("sibling")), ..shown("b", &["10.0.1.9"]) };
        agent.set(&[shown("a", &["10.0.1.7"]), sibling.clone()]);
        assert_eq!(account(&ask(&old, "10.0.1.7", V4)), "a");
        drop(process);
        drop(old);
        let new = node.routed_pod("b", "10.0.1.7", None);
        let _process = Process::of("b", &new);
        // Only etcd knows; the watch has shown nothing since.
        agent.cluster.set_pods(vec![shown("b", &[]), sibling]);
        assert_eq!(account(&ask(&new, "10.0.1.7", V4)), "b");
    });
}

#[test]
fn a_spoofer_on_the_bridge_is_itself_and_not_its_victim() {
    let Some(node) = node("attest_spoof") else { return };
    let (victim, attacker) = (node.bridged_pod("a", VICTIM, None), node.bridged_pod("b", "10.0.2.8", None));
    let _processes = [Process::of("a", &victim), Process::of("b", &attacker)];
    attacker.ip(&format!("address add {VICTIM}/24 dev eth0"));
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &[VICTIM]), shown("b", &["10.0.2.8"])]);
        // What a gratuitous ARP does.
        points_to(&node, &attacker);
        let answer = ask(&attacker, VICTIM, V4);
        refused(&answer, 403, "SourceMismatch");
        assert!(answer.body.contains(&uid("b")), "the attacker is named: {}", answer.body);
        points_to(&node, &victim);
        assert_eq!(account(&ask(&victim, VICTIM, V4)), "a");
    });
}

#[test]
fn a_spoofer_that_gives_the_neighbour_entry_back_in_time_gets_nothing() {
    let Some(node) = node("attest_flap") else { return };
    spoof_in_turns(&node, |_, _| {}, |node, attacker, _| points_to(node, attacker), points_to);
}

/// Neither entry's age tells: the neighbour entry never changes, and every frame refreshes the forwarding entry.
#[test]
fn a_spoofer_under_its_victims_link_layer_address_gets_nothing() {
    let Some(node) = node("attest_mac") else { return };
    let same_mac = |victim: &Namespace, attacker: &Namespace| {
        attacker.ip(&format!("link set eth0 address {}", mac(victim)));
    };
    // Whoever sends a frame has the port.
    let send = |pod: &Namespace| {
        pod.ip("neighbour flush dev eth0");
        let refused = pod.run(async || TcpStream::connect("10.0.2.1:1")).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    };
    spoof_in_turns(
        &node,
        same_mac,
        |node, attacker, victim| {
            points_to(node, victim);
            send(attacker);
        },
        |_, victim| send(victim),
    );
}

/// The attacker has its victim's address for the handshake, the victim has it while the agent looks, and then the
/// attacker again, for the answer.
fn spoof_in_turns(
    node: &Node,
    prepare: impl Fn(&Namespace, &Namespace),
    to_attacker: impl Fn(&Node, &Namespace, &Namespace),
    to_victim: impl Fn(&Node, &Namespace),
) {
    let (victim, attacker) = (node.bridged_pod("a", VICTIM, None), node.bridged_pod("b", "10.0.2.8", None));
    let _processes = [Process::of("a", &victim), Process::of("b", &attacker)];
    attacker.ip(&format!("address add {VICTIM}/24 dev eth0"));
    prepare(&victim, &attacker);
    // Silent, or its kernel would end a connection that it does not know.
    for rule in [
        "add table inet t",
        "add chain inet t c { type filter hook output priority 0; }",
        "add rule inet t c tcp flags rst drop",
    ] {
        assert!(victim.command("nft").arg(rule).status().unwrap().success());
    }
    let to: SocketAddr = V4.parse().unwrap();
    let connection = std::cell::RefCell::new(None);
    let before = || {
        to_attacker(node, &attacker, &victim);
        let mut stream = attacker.run(async || {
            let stream = http::connect(VICTIM, to).await.into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            stream
        });
        stream.write_all(http::request(to).as_bytes()).unwrap();
        connection.replace(Some(stream));
        to_victim(node, &victim);
    };
    with_late_agent(node, before, |agent| {
        agent.set(&[shown("a", &[VICTIM]), shown("b", &["10.0.2.8"])]);
        let mut connection: TcpStream = connection.take().unwrap();
        // The answer is sent to the victim first, and again to the attacker once it has the address back.
        while unacknowledged(node) == 0 {
            std::thread::yield_now();
        }
        to_attacker(node, &attacker, &victim);
        connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answer = [0; 4096];
        let length = connection.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.contains("SourceMismatch") && answer.contains("did not open"), "{answer}");
    });
}

/// Bytes of the agent's answers that nobody has acknowledged.
fn unacknowledged(node: &Node) -> u32 {
    let sockets = node.command("cat").arg("/proc/thread-self/net/tcp").output().unwrap();
    let sockets = String::from_utf8(sockets.stdout).unwrap();
    let established = sockets.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let established = established.filter(|columns| columns[3] != "0A" && columns[1].ends_with(":26AE"));
    established.map(|columns| u32::from_str_radix(&columns[4][..8], 16).unwrap()).sum()
}

/// The node takes the address of [`VICTIM`] to be at `pod`.
fn points_to(node: &Node, pod: &Namespace) {
    node.ip(&format!("neighbour replace {VICTIM} lladdr {} dev cni0 nud reachable", mac(pod)));
}

fn mac(pod: &Namespace) -> String {
    let link = pod.ip("-o link show eth0");
    link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap().to_owned()
}

#[test]
fn a_process_of_the_host_is_refused() {
    let Some(node) = node("attest_host") else { return };
    with_agent(&node, |agent| {
        agent.set(&[Pod { host_network: true, ..shown("a", &[netns::NODE_IP]) }]);
        for (from, to) in [("169.254.170.23", V4), (netns::NODE_IP, V4), ("fd00:ec2::23", V6)] {
            refused(&ask(&node, from, to), 403, "CallerNotIdentified");
        }
    });
}

#[test]
fn a_namespace_without_a_pods_process_is_refused() {
    let Some(node) = node("attest_nobody") else { return };
    let a = node.routed_pod("a", "10.0.1.7", None);
    let _process = Process::start(&a, "0::/system.slice/docker.service\n");
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"])]);
        refused(&ask(&a, "10.0.1.7", V4), 403, "CallerNotIdentified");
    });
}

#[test]
fn a_link_that_asks_for_too_many_walks_waits_and_its_neighbour_does_not() {
    let Some(node) = node("attest_flood") else { return };
    let nobody = node.routed_pod("nobody", "10.0.1.7", None);
    let a = node.routed_pod("a", "10.0.1.8", None);
    let _process = Process::of("a", &a);
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.8"])]);
        let busy = (0..1000).find_map(|_| {
            let answer = ask(&nobody, "10.0.1.7", V4);
            (answer.status != 403).then_some(answer)
        });
        refused(&busy.expect("an end to its patience"), 503, "Overloaded");
        assert_eq!(account(&ask(&a, "10.0.1.8", V4)), "a");
    });
}

#[test]
fn processes_of_two_pods_in_one_namespace_are_refused() {
    let Some(node) = node("attest_two") else { return };
    let a = node.routed_pod("a", "10.0.1.7", None);
    let _processes = [Process::of("a", &a), Process::of("b", &a)];
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"]), shown("b", &[])]);
        refused(&ask(&a, "10.0.1.7", V4), 403, "CallerAmbiguous");
    });
}

#[test]
fn processes_of_nobody_are_passed_over_and_a_dead_witness_is_replaced() {
    let Some(node) = node("attest_witness") else { return };
    let a = node.routed_pod("a", "10.0.1.7", None);
    let _runtime = Process::start(&a, "0::/system.slice/containerd.service\n");
    let (first, _second) = (Process::of("a", &a), Process::of("a", &a));
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"])]);
        assert_eq!(account(&ask(&a, "10.0.1.7", V4)), "a");
        drop(first);
        assert_eq!(account(&ask(&a, "10.0.1.7", V4)), "a");
    });
}

#[test]
fn a_pod_that_the_api_does_not_have_is_refused() {
    let Some(node) = node("attest_gone") else { return };
    let a = node.routed_pod("a", "10.0.1.7", None);
    let _process = Process::of("a", &a);
    with_agent(&node, |agent| {
        agent.set(&[shown("b", &["10.0.1.8"])]);
        refused(&ask(&a, "10.0.1.7", V4), 403, "CallerNotIdentified");
    });
}

#[test]
fn docker_in_a_pod_gets_the_pods_keys_in_both_shapes() {
    let Some(node) = node("attest_dind") else { return };
    let pods = [
        ("10.0.1.7", "a", node.routed_pod("a", "10.0.1.7", None)),
        ("10.0.2.7", "b", node.bridged_pod("b", "10.0.2.7", None)),
    ];
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"]), shown("b", &["10.0.2.7"])]);
        for (number, (ip, name, pod)) in pods.iter().enumerate() {
            let _daemon = Process::of(name, pod);
            // A bridge, a container behind it, and its address translated to the pod's.
            let inner = inner(&node, pod, number);
            let nested = format!("{}/docker/{:064x}\n", cgroup(name).trim_end(), 9);
            let _container = Process::start(&inner, &nested);
            assert_eq!(account(&ask(&inner, "172.17.0.2", V4)), *name, "{ip}");
        }
    });
}

#[test]
fn an_address_that_a_pod_forwards_untranslated_is_not_its_own() {
    let Some(node) = node("attest_forward") else { return };
    let a = node.routed_pod("a", "10.0.1.7", None);
    let _daemon = Process::of("a", &a);
    let inner = inner(&node, &a, 0);
    assert!(a.command("nft").args(["flush", "ruleset"]).status().unwrap().success());
    node.ip("route add 172.17.0.2/32 via 10.0.1.7 dev veth1 onlink");
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"])]);
        refused(&ask(&inner, "172.17.0.2", V4), 403, "SourceMismatch");
    });
}

#[test]
fn an_agent_that_sees_only_its_own_processes_refuses_to_start_and_says_what_is_missing() {
    let Some(node) = node("attest_no_host_pid") else { return };
    let mut agent = node.command("unshare");
    agent.args(["--pid", "--fork", "--kill-child", "--mount-proc", env!("CARGO_BIN_EXE_rolecall")]);
    agent.args(["agent", "--identity=kernel", "--node-name=n", "--local-socket=/run/none.sock"]);
    let output = agent.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--identity=kernel is not possible") && said.contains("hostPID: true"), "{said}");
}

/// A container as Docker in `pod` would make it.
fn inner(node: &Node, pod: &Namespace, number: usize) -> Namespace {
    let inner = node.detached(&format!("inner{number}"));
    pod.ip("link add docker0 type bridge");
    pod.ip("address add 172.17.0.1/16 dev docker0");
    pod.ip("link set docker0 up");
    pod.ip(&format!("link add inner type veth peer name eth0 netns {}", inner.name()));
    pod.ip("link set inner master docker0 up");
    inner.ip("address add 172.17.0.2/16 dev eth0");
    inner.ip("link set eth0 up");
    inner.ip("route add default via 172.17.0.1");
    pod.sysctl("ipv4/ip_forward", "1");
    for rule in [
        "add table ip docker",
        "add chain ip docker p { type nat hook postrouting priority srcnat; }",
        "add rule ip docker p ip saddr 172.17.0.0/16 oifname eth0 masquerade",
    ] {
        assert!(pod.command("nft").arg(rule).status().unwrap().success());
    }
    inner
}

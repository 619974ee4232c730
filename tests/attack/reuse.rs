//! An address is given to another pod: at once, and ten thousand times.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use rolecall::fakes::pod;
use rolecall::identity::pods::{Pod, PodUid};
use rtnetlink::RouteMessageBuilder;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::{Instant, timeout};

use crate::http::{self, Answer};
use crate::ladder::*;
use crate::netns::{self, Namespace, Node, Pod as Cable};
use crate::process::Process;

#[test]
fn an_address_reused_at_once_names_the_new_pod_while_the_watch_shows_the_old_one() {
    let Some(node) = node("reuse_once") else { return };
    for (shape, ip, ipv6) in [(true, "10.0.1.7", "fd00::7"), (false, "10.0.2.7", "fd00:2::7")] {
        let make = |name| match shape {
            true => node.routed_pod(name, ip, Some(ipv6)),
            false => node.bridged_pod(name, ip, Some(ipv6)),
        };
        let old = make("a");
        let process = Process::of(&uid("a"), &old);
        with_agent(&node, |agent| {
            agent.set(&[shown("a", &[ip, ipv6])]);
            assert_eq!(account(&settled(&old, ip, V4)), "a");
            assert_eq!(account(&settled(&old, ipv6, V6)), "a");
            drop(process);
            drop(old);
            let new = make("b");
            let _process = Process::of(&uid("b"), &new);
            // Only etcd knows; the watch has shown nothing since.
            agent.cluster.set_pods(vec![shown("b", &[])]);
            assert_eq!(account(&settled(&new, ip, V4)), "b");
            assert_eq!(account(&settled(&new, ipv6, V6)), "b");
        });
    }
}

/// How many times in all; on a busy machine as many as there is time for, which is said.
const REUSES: u32 = 10_000;
const TIME: Duration = Duration::from_secs(40);
/// Each has cables and addresses of its own, so that it knows the right answer at every moment; to the others it is load.
const WORKERS: usize = 4;
/// Per worker. Each address is always given to a cable that has none. A real pod's is always new, and these are used again and again: so
/// many that none of them asks for more walks over all processes than one cable may.
const CABLES: usize = 24;
const ADDRESSES: usize = 4;
/// ServiceAccounts, each with a role of its own.
const ACCOUNTS: usize = 32;

#[test]
fn addresses_reused_thousands_of_times_in_random_order_under_load_never_name_another_pod() {
    let Some(node) = node("reuse_many") else { return };
    let seed =
        std::env::var("ROLECALL_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    netns::say(&format!("reuse: ROLECALL_SEED={seed}"));
    let begun = Instant::now();
    let cables: Vec<(Cable, u32)> = (0..WORKERS).flat_map(|worker| lay(&node, worker)).collect();
    netns::say(&format!("reuse: {} cables in {:.1?}", cables.len(), begun.elapsed()));
    let (reuses, held_back) = (AtomicU32::new(0), AtomicU32::new(0));
    let took = with_agent(&node, |agent| {
        let api = Api { agent, pods: Mutex::default() };
        for number in 0..ACCOUNTS {
            agent.accounts.apply(
                &rolecall::fakes::account(&format!("s{number}")),
                &format!("uid-s{number}"),
                &BTreeMap::from([("rolecall.dev/role-arn".to_owned(), role(&format!("s{number}")))]),
            );
        }
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for (worker, cables) in cables.chunks(CABLES).enumerate() {
                let (api, node, reuses, held_back) = (&api, &node, &reuses, &held_back);
                scope.spawn(move || {
                    let mut worker = Worker::new(worker, seed, node, cables, api);
                    while begun.elapsed() < TIME && reuses.fetch_add(1, Ordering::Relaxed) < REUSES {
                        worker.reuse(held_back);
                    }
                });
            }
        });
        begun.elapsed()
    });
    let reuses = reuses.into_inner().min(REUSES);
    netns::say(&format!(
        "reuse: {reuses} times in {took:.1?}, {} of them with the watch held back: 0 wrong, 0 refused",
        held_back.into_inner()
    ));
    // Ten thousand times whatever the machine, without its kernel, are in `any_order`.
    assert!(reuses >= 500, "{reuses} in {took:?}");
}

/// One worker's cables: each end in a namespace that has all addresses of the worker, so that they tell nothing. The last worker's are
/// ports of the bridge.
fn lay(node: &Node, worker: usize) -> Vec<(Cable, u32)> {
    let cable = |number: usize| {
        let (name, n) = (format!("w{worker}c{number}"), worker * CABLES + number + 10);
        let namespace = match bridged(worker) {
            true => node.bridged_pod(&name, &format!("10.0.2.{n}"), Some(&format!("fd00:2::{n}"))),
            false => node.routed_pod(&name, &format!("10.0.1.{n}"), Some(&format!("fd00::{n}"))),
        };
        let bits = if bridged(worker) { (24, 64) } else { (32, 128) };
        namespace.ip_batch(addresses(worker).into_iter().flat_map(|(ip, ipv6)| {
            let (v4, v6) = (format!("{ip}/{}", bits.0), format!("{ipv6}/{}", bits.1));
            [format!("address add {v4} dev eth0"), format!("address add {v6} dev eth0 nodad")]
        }));
        let peer = namespace.ip("-o link show eth0");
        let link = peer.split_once("eth0@if").unwrap().1.split(':').next().unwrap().parse().unwrap();
        (namespace, link)
    };
    (0..CABLES).map(cable).collect()
}

fn bridged(worker: usize) -> bool {
    worker == WORKERS - 1
}

fn addresses(worker: usize) -> Vec<(IpAddr, IpAddr)> {
    let net = if bridged(worker) { 2 } else { 1 };
    let one = |number: usize| {
        let n = 240 - worker * ADDRESSES - number;
        (format!("10.0.{net}.{n}").parse().unwrap(), format!("fd00:{net}::{n}").parse().unwrap())
    };
    (0..ADDRESSES).map(one).collect()
}

/// What etcd has, and the watch of it.
struct Api<'a> {
    agent: &'a Agent,
    pods: Mutex<BTreeMap<String, Pod>>,
}

impl Api<'_> {
    /// Changes what etcd has; shown by the watch at once, or not.
    fn change(&self, shown: bool, change: impl FnOnce(&mut BTreeMap<String, Pod>)) {
        let mut pods = self.pods.lock().unwrap();
        change(&mut pods);
        let all: Vec<Pod> = pods.values().cloned().collect();
        self.agent.cluster.set_pods(all.clone());
        if shown {
            // Under the lock, or an older list could be shown after a newer one.
            self.agent.pods.reset(all);
        }
    }
}

/// A pod that has an address now.
struct Live {
    name: String,
    account: usize,
    cable: usize,
    kept: Option<(TcpStream, SocketAddr)>,
    _process: Process,
}

struct Worker<'a> {
    number: usize,
    random: fastrand::Rng,
    runtime: Runtime,
    netlink: rtnetlink::Handle,
    bridge: u32,
    cables: Vec<(File, u32, Vec<u8>)>,
    free: VecDeque<usize>,
    addresses: Vec<(IpAddr, IpAddr)>,
    live: Vec<Option<Live>>,
    /// Dead pods whose objects are still there.
    ghosts: VecDeque<String>,
    pods: u32,
    api: &'a Api<'a>,
}

impl<'a> Worker<'a> {
    fn new(number: usize, seed: u64, node: &Node, cables: &[(Cable, u32)], api: &'a Api<'a>) -> Self {
        let open = |namespace: &Namespace| File::open(format!("/run/netns/{}", namespace.name())).unwrap();
        let mac = |namespace: &Namespace| {
            let link = namespace.ip("-o link show eth0");
            let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
            mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
        };
        let cables: Vec<_> =
            cables.iter().map(|(namespace, link)| (open(namespace), *link, mac(namespace))).collect();
        let bridge = node.ip("-o link show cni0").split(':').next().unwrap().trim().parse().unwrap();
        enter(&open(node));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (connection, netlink, _) = runtime.block_on(async { rtnetlink::new_connection() }).unwrap();
        runtime.spawn(connection);
        Self {
            number,
            random: fastrand::Rng::with_seed(seed.wrapping_add(number as u64)),
            runtime,
            netlink,
            bridge,
            free: (0..cables.len()).collect(),
            cables,
            addresses: addresses(number),
            live: (0..ADDRESSES).map(|_| None).collect(),
            ghosts: VecDeque::new(),
            pods: 0,
            api,
        }
    }

    /// One address goes from one pod to the next, which asks at once; then another pod does.
    fn reuse(&mut self, held_back: &AtomicU32) {
        let at = self.random.usize(..ADDRESSES);
        let (ip, ipv6) = self.addresses[at];
        let old = self.live[at].take();
        let shown = self.random.u8(..64) != 0;
        held_back.fetch_add(u32::from(!shown), Ordering::Relaxed);
        let cable = self.free.remove(self.random.usize(..self.free.len())).unwrap();
        let (name, account) = (format!("w{}p{}", self.number, self.pods), self.random.usize(..ACCOUNTS));
        self.pods += 1;
        // Its address is not always known yet.
        let known = if self.random.bool() { vec![ip, ipv6] } else { vec![] };
        let new = Pod {
            uid: PodUid::new(uid(&name)),
            service_account: rolecall::fakes::account(&format!("s{account}")),
            addresses: known,
            ..pod(&name, "192.0.2.1")
        };
        // The old one's object stays for a while, or goes first.
        let fate = self.random.u8(..3);
        let forgotten = if self.ghosts.len() > 2 { self.ghosts.pop_front() } else { None };
        let old_name = old.as_ref().map(|old| old.name.clone());
        self.api.change(shown, |pods| {
            if let Some(name) = &old_name
                && let Some(pod) = pods.get_mut(name)
            {
                match fate {
                    0 => pod.terminating = true,
                    1 => pod.finished = true,
                    _ => drop(pods.remove(name)),
                }
            }
            forgotten.map(|name| pods.remove(&name));
            pods.insert(name.clone(), new);
        });
        if let Some(Live { name, cable, .. }) = old {
            if fate < 2 {
                self.ghosts.push_back(name);
            }
            self.free.push_back(cable);
        }
        self.point(ip, cable);
        self.point(ipv6, cable);
        enter(&self.cables[cable].0);
        let process = Process::start_here();
        process.set_cgroup(&crate::process::cgroup(&uid(&name)));
        self.live[at] = Some(Live { name, account, cable, kept: None, _process: process });
        self.ask(at, true);
        let other = self.random.usize(..ADDRESSES);
        self.ask(other, false);
    }

    /// The pod at this address asks, on a new connection or on the one that it has kept.
    fn ask(&mut self, at: usize, new: bool) {
        let Some(live) = &mut self.live[at] else { return };
        let (ip, ipv6) = self.addresses[at];
        let (from, to) = if self.random.bool() { (ip, V4) } else { (ipv6, V6) };
        let to: SocketAddr = to.parse().unwrap();
        enter(&self.cables[live.cable].0);
        let kept = live.kept.take().filter(|_| !new);
        let asking = async {
            let (mut stream, to) = match kept {
                Some(kept) => kept,
                None => (http::connect(&from.to_string(), to).await, to),
            };
            (http::ask(&mut stream, &http::request(to)).await, (stream, to))
        };
        let answer = self.runtime.block_on(async { timeout(Duration::from_secs(10), asking).await });
        let (answer, stream) = answer.unwrap_or_else(|_| panic!("no answer for {} under {from}", live.name));
        // A kept one is closed after two idle seconds; then it asks again.
        let Some(answer) = answer else { return };
        live.kept = Some(stream);
        live.is_told_its_own(&answer);
    }

    /// The node takes `address` to be at the end of this cable.
    fn point(&self, address: IpAddr, cable: usize) {
        let (_, link, mac) = &self.cables[cable];
        let pointed = self.runtime.block_on(async {
            if bridged(self.number) {
                let entry = self.netlink.neighbours().add(self.bridge, address);
                return entry.link_layer_address(mac).replace().execute().await;
            }
            let route = match address {
                IpAddr::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                    .destination_prefix(v4, 32)
                    .output_interface(*link)
                    .build(),
                IpAddr::V6(v6) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                    .destination_prefix(v6, 128)
                    .output_interface(*link)
                    .build(),
            };
            self.netlink.route().add(route).replace().execute().await
        });
        pointed.unwrap();
    }
}

impl Live {
    fn is_told_its_own(&self, answer: &Answer) {
        let own = format!("s{}", self.account);
        assert_eq!(answer.status, 200, "{} of {own} was refused: {}", self.name, answer.body);
        assert_eq!(account(answer), own, "{} was given another's", self.name);
    }
}

fn enter(namespace: &File) {
    setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
}

//! Nodes and pods as network namespaces, without root: the kernel's real routing, bridging, NAT and netlink under a test.
//!
//! The test process enters user, network and mount namespaces of its own before libtest starts a thread (the kernel lets only a process
//! with one thread do that). In there it is root, `/run` is an empty file system of its own, and `ip netns` touches nothing of the machine.
//!
//! ```no_run
//! let Some(node) = netns::Node::new("the_name_of_the_test") else { return };
//! let pod = node.routed_pod("a", "10.0.1.7", Some("fd00::7"));
//! let listener = node.run(async || std::net::TcpListener::bind("169.254.170.2:9902").unwrap());
//! assert!(pod.command("curl").arg("http://169.254.170.2/").status().unwrap().success());
//! ```
//!
//! A socket stays in the namespace of the thread that made it: one made inside [`Namespace::run`] can be used from anywhere after.
//! The other way round, `/run` is one for all tests of a binary: give each agent a socket of its own.
//!
//! Needs iproute2, nftables, iptables and util-linux, and a kernel that allows user namespaces.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::{io, thread};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Whether the process is in its own namespaces; if not, why.
static ENTERED: OnceLock<Result<(), String>> = OnceLock::new();

const HINT: &str = "see sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns (Ubuntu), or run as root";

/// Where a routed pod sends everything, as Calico does: an address that is on no link, at the link-layer address of the node's end.
const ROUTED_GATEWAY: &str = "169.254.1.1";
const ROUTED_GATEWAY_V6: &str = "fe80::1";
/// The bridge of bridged pods, and the node's addresses on it.
const BRIDGE: &str = "cni0";
const BRIDGE_GATEWAY: &str = "10.0.2.1";
const BRIDGE_GATEWAY_V6: &str = "fd00:2::1";
/// The node's own addresses, on its `eth0`.
pub const NODE_IP: &str = "10.0.0.1";
pub const NODE_IP_V6: &str = "fd00:ffff::1";

/// The user that the agent runs as on a node, and one that is neither it nor root.
pub const AGENT_USER: u32 = 9902;
pub const OTHER_USER: u32 = 1234;

/// The neighbour's, in [`Node::outside`].
pub const OUTSIDE_IP: &str = "10.0.9.2";
pub const OUTSIDE_IP_V6: &str = "fd00:9::2";

/// Runs before `main`, so before any other thread exists.
// Safe before `main`: single-threaded, on glibc, and it calls only files, environment and system calls.
#[ctor::ctor(unsafe)]
fn enter() {
    let entered = enter_namespaces();
    match &entered {
        // Straight to the descriptor: libtest shows what `eprintln!` writes only for tests that fail.
        Ok(()) => {
            say(&format!("netns: to look inside: nsenter -t {} --user --net --mount", std::process::id()))
        }
        Err(why) => say(&format!("netns: CANNOT RUN, every test of this file is skipped: {why}; {HINT}")),
    }
    ENTERED.set(entered).ok();
}

fn enter_namespaces() -> Result<(), String> {
    for program in ["ip", "iptables", "nft", "nsenter", "setpriv"] {
        let found =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        // iproute2 knows `-V` and answers `--version` too; what counts is that it starts.
        found.map_err(|err| format!("the program {program}: {err}"))?;
    }
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let outside = uid.is_root().then(mapper).transpose().map_err(|err| format!("sh: {err}"))?;
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|err| format!("unshare(CLONE_NEWUSER): {err}"))?;
    if !outside.is_some_and(map_users) {
        // Without `deny`, an unprivileged process may not write gid_map.
        for (file, line) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("0 {uid} 1")),
            ("gid_map", format!("0 {gid} 1")),
        ] {
            fs::write(format!("/proc/self/{file}"), line)
                .map_err(|err| format!("/proc/self/{file}: {err}"))?;
        }
    }
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(|err| format!("unshare: {err}"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)
        .map_err(|err| format!("private /: {err}"))?;
    mount(Some("rolecall"), "/run", Some("tmpfs"), MsFlags::empty(), none)
        .map_err(|err| format!("/run: {err}"))?;
    fs::create_dir("/run/netns").map_err(|err| format!("/run/netns: {err}"))?;
    // For tests of the same binary that use loopback outside of any node.
    ip(&["link", "set", "lo", "up"]);
    Ok(())
}

/// Root can have other users beside itself in its namespace; only a process outside of that may say so. This one waits to be told.
fn mapper() -> io::Result<Child> {
    let map = format!("0 0 1\n{AGENT_USER} {AGENT_USER} 1\n{OTHER_USER} {OTHER_USER} 1");
    let script =
        r#"read -r go && printf '%s\n' "$0" >/proc/$PPID/uid_map && printf '%s\n' "$0" >/proc/$PPID/gid_map"#;
    Command::new("sh").args(["-c", script, &map]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn()
}

fn map_users(mut mapper: Child) -> bool {
    use io::Write;
    let told = mapper.stdin.take().is_some_and(|mut stdin| stdin.write_all(b"go\n").is_ok());
    told && mapper.wait().is_ok_and(|status| status.success())
}

/// Whether [`AGENT_USER`] and [`OTHER_USER`] exist here.
pub fn has_users() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.lines().count() > 1)
}

/// Moves this thread, for good, into the network namespace at `path`.
pub fn enter_thread(path: &str) {
    setns(File::open(path).expect("namespace"), CloneFlags::CLONE_NEWNET).expect("setns");
}

/// Says that a test cannot run here, where `tests/run` finds it; under `CI` that is a failure, since a skip nobody sees proves nothing.
pub fn skipped(test: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{test} must run under CI: {why}");
    say(&format!("netns: SKIPPED {test}: {why}"));
}

/// Seen whether the test fails or not.
pub fn say(line: &str) {
    use io::Write;
    let _ = writeln!(io::stderr(), "{line}");
}

/// A network namespace with a name; gone, with every process in it, when dropped.
pub struct Namespace {
    name: String,
}

impl Namespace {
    fn new(name: String) -> Self {
        ip(&["netns", "add", &name]);
        let namespace = Self { name };
        namespace.enter_with(|| {
            // Addresses are usable at once; no router advertisements; and nothing is dropped for coming in where it would not go out.
            for (key, value) in [
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/default/accept_ra", "0"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
            ] {
                sysctl(key, value);
            }
        });
        namespace.ip("link set lo up");
        namespace
    }

    /// The test's name and the part that this plays in it, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs in this namespace. Its process id is the program's own.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }

    /// Runs `work` on a thread inside this namespace, in a runtime of its own, and waits for it.
    pub fn run<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.enter_with(|| {
            // A network namespace belongs to a thread, so a runtime with several would leave it.
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(work())
        })
    }

    /// Runs `work` on a thread inside this namespace for as long as it takes, or as this process lives.
    pub fn serve(&self, work: impl AsyncFnOnce() + Send + 'static) {
        let path = format!("/run/netns/{}", self.name);
        thread::spawn(move || {
            enter_thread(&path);
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(work());
        });
    }

    /// Runs `ip ARGS` here; panics with what it said if it fails.
    pub fn ip(&self, args: &str) -> String {
        let args: Vec<&str> = ["-n", &self.name].into_iter().chain(args.split_whitespace()).collect();
        ip(&args)
    }

    /// Runs `ip LINE` for each of these, in one process.
    pub fn ip_batch(&self, lines: impl IntoIterator<Item = String>) {
        let script = format!("/run/{}.ip", self.name);
        fs::write(&script, lines.into_iter().map(|line| line + "\n").collect::<String>()).expect("/run");
        ip(&["-n", &self.name, "-batch", &script]);
    }

    /// Sets `net/KEY` under /proc/sys, as this namespace sees it.
    pub fn sysctl(&self, key: &str, value: &str) {
        self.enter_with(|| sysctl(key, value));
    }

    fn enter_with<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name);
        let inside = thread::scope(|scope| {
            let thread = thread::Builder::new().name(self.name.clone()).spawn_scoped(scope, || {
                enter_thread(&path);
                work()
            });
            thread.expect("thread").join()
        });
        inside.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A process that a failed test left behind would keep the namespace alive.
        let pids = Command::new("ip").args(["netns", "pids", &self.name]).output();
        for pid in
            pids.iter().flat_map(|pids| std::str::from_utf8(&pids.stdout)).flat_map(str::split_whitespace)
        {
            if let Ok(pid) = pid.parse() {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        // The kernel takes its links, and the routes over them, some time after a namespace; the next test may not wait.
        let _ =
            Command::new("ip").args(["-n", &self.name, "link", "del", "eth0"]).stderr(Stdio::null()).status();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A node: the namespace that an agent would see with `hostNetwork: true`, with [`NODE_IP`] and [`NODE_IP_V6`].
pub struct Node {
    namespace: Namespace,
    links: AtomicU8,
}

/// A pod's namespace, with `eth0` towards its node.
pub struct Pod {
    namespace: Namespace,
}

impl Deref for Node {
    type Target = Namespace;
    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl Deref for Pod {
    type Target = Namespace;
    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl Node {
    /// A node named for its test, so that parallel tests do not meet. `None` where this machine cannot do it, which has been said; under
    /// `CI` that is a failure, since a skip nobody sees proves nothing.
    pub fn new(test: &str) -> Option<Self> {
        if let Err(why) = ENTERED.get().expect("the ctor has run") {
            skipped(test, &format!("no network namespaces: {why}"));
            return None;
        }
        let namespace = Namespace::new(format!("{test}-node"));
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            namespace.sysctl(key, "1");
        }
        // Not every kernel has dummy links; a bridge without ports stands in for the uplink.
        namespace.ip("link add eth0 type bridge");
        namespace.ip("link set eth0 up");
        namespace.ip(&format!("address add {NODE_IP}/24 dev eth0"));
        namespace.ip(&format!("address add {NODE_IP_V6}/64 dev eth0 nodad"));
        Some(Self { namespace, links: AtomicU8::new(1) })
    }

    /// A pod behind a veth of its own whose node side has no IPv4 address, as Calico, Cilium and the AWS VPC CNI do. Any address will do.
    pub fn routed_pod(&self, name: &str, ip: &str, ipv6: Option<&str>) -> Pod {
        let (pod, link, mac) = self.plug(name);
        pod.ip(&format!("address add {ip}/32 dev eth0"));
        pod.ip(&format!("neighbour add {ROUTED_GATEWAY} lladdr {mac} dev eth0 nud permanent"));
        pod.ip(&format!("route add {ROUTED_GATEWAY} dev eth0 scope link"));
        pod.ip(&format!("route add default via {ROUTED_GATEWAY} dev eth0"));
        self.ip(&format!("route add {ip}/32 dev {link}"));
        if let Some(ipv6) = ipv6 {
            pod.ip(&format!("address add {ipv6}/128 dev eth0 nodad"));
            self.ip(&format!("address add {ROUTED_GATEWAY_V6}/64 dev {link} nodad"));
            pod.ip(&format!("route add default via {ROUTED_GATEWAY_V6} dev eth0"));
            self.ip(&format!("route add {ipv6}/128 dev {link}"));
        }
        pod
    }

    /// A pod on the bridge cni0, as the bridge plug-in and kubenet do: `ip` in 10.0.2.0/24, `ipv6` in fd00:2::/64. Bridged packets pass the
    /// node's netfilter hooks (`bridge-nf-call-iptables=1`), which is what kube-proxy needs and so what nodes have.
    pub fn bridged_pod(&self, name: &str, ip: &str, ipv6: Option<&str>) -> Pod {
        let inside = |ip: &str, net: IpAddr, bits| same_net(ip.parse().expect("address"), net, bits);
        assert!(inside(ip, Ipv4Addr::new(10, 0, 2, 0).into(), 24), "{ip} is not in 10.0.2.0/24");
        if self
            .command("ip")
            .args(["link", "show", BRIDGE])
            .output()
            .is_ok_and(|shown| !shown.status.success())
        {
            self.ip(&format!("link add {BRIDGE} type bridge"));
            self.ip(&format!("address add {BRIDGE_GATEWAY}/24 dev {BRIDGE}"));
            self.ip(&format!("address add {BRIDGE_GATEWAY_V6}/64 dev {BRIDGE} nodad"));
            self.ip(&format!("link set {BRIDGE} up"));
            // Absent where the module is not loaded, and then bridged packets pass no hook: the other of the two cases that nodes have.
            self.enter_with(|| {
                for key in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
                    let _ = fs::write(format!("/proc/sys/net/bridge/{key}"), "1");
                }
            });
        }
        let (pod, link, _) = self.plug(name);
        self.ip(&format!("link set {link} master {BRIDGE}"));
        pod.ip(&format!("address add {ip}/24 dev eth0"));
        pod.ip(&format!("route add default via {BRIDGE_GATEWAY}"));
        if let Some(ipv6) = ipv6 {
            let net = IpAddr::V6(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0));
            assert!(inside(ipv6, net, 64), "{ipv6} is not in fd00:2::/64");
            pod.ip(&format!("address add {ipv6}/64 dev eth0 nodad"));
            pod.ip(&format!("route add default via {BRIDGE_GATEWAY_V6} dev eth0"));
        }
        pod
    }

    /// What lies behind the node's default routes: a neighbour with [`OUTSIDE_IP`] and [`OUTSIDE_IP_V6`], which sends all it has for others
    /// to the node, and the addresses of instance metadata. The uplink is named as any pod's link is.
    pub fn outside(&self) -> Pod {
        let (outside, link, _) = self.plug("outside");
        for (net, mine, its) in
            [("10.0.9.", "10.0.9.1/24", OUTSIDE_IP), ("fd00:9::", "fd00:9::1/64", OUTSIDE_IP_V6)]
        {
            let bits = mine.split('/').nth(1).expect("a length");
            let nodad = if net.contains(':') { "nodad" } else { "" };
            self.ip(&format!("address add {mine} dev {link} {nodad}"));
            outside.ip(&format!("address add {its}/{bits} dev eth0 {nodad}"));
            self.ip(&format!("route add default via {its}"));
            outside.ip(&format!("route add default via {net}1"));
        }
        outside.ip("address add 169.254.169.254/32 dev lo");
        outside.ip("address add fd00:ec2::254/128 dev lo nodad");
        outside
    }

    /// A namespace that no cable leads to.
    pub fn detached(&self, name: &str) -> Namespace {
        Namespace::new(format!("{}-{name}", self.name.trim_end_matches("-node")))
    }

    /// A namespace with `eth0`, the name of the node's end of that cable, and its link-layer address.
    fn plug(&self, name: &str) -> (Pod, String, String) {
        let pod = Namespace::new(format!("{}-{name}", self.name.trim_end_matches("-node")));
        let number = self.links.fetch_add(1, Ordering::Relaxed);
        let (link, mac) = (format!("veth{number}"), format!("02:00:00:00:00:{number:02x}"));
        self.ip(&format!("link add {link} address {mac} type veth peer name eth0 netns {}", pod.name));
        self.ip(&format!("link set {link} up"));
        pod.ip("link set eth0 up");
        (Pod { namespace: pod }, link, mac)
    }
}

fn same_net(ip: IpAddr, net: IpAddr, bits: u32) -> bool {
    match (ip, net) {
        (IpAddr::V4(ip), IpAddr::V4(net)) => (ip.to_bits() ^ net.to_bits()).leading_zeros() >= bits,
        (IpAddr::V6(ip), IpAddr::V6(net)) => (ip.to_bits() ^ net.to_bits()).leading_zeros() >= bits,
        _ => false,
    }
}

fn ip(args: &[&str]) -> String {
    let output = Command::new("ip").args(args).output().expect("ip starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {said}", args.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn sysctl(key: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{key}"), value).unwrap_or_else(|err| panic!("net/{key}: {err}"));
}

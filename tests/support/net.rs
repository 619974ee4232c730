//! What the tests of `rolecall net` are made of: the command, an agent that answers what `verify` asks, and looks at a node.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use crate::netns::{Namespace, Node};

pub const FILES: [&str; 7] = [
    include_str!("../../iptables/00-table.nft"),
    include_str!("../../iptables/10-relative-uri.nft"),
    include_str!("../../iptables/20-eks-port.nft"),
    include_str!("../../iptables/30-addresses.nft"),
    include_str!("../../iptables/31-answers.nft"),
    include_str!("../../iptables/40-metadata.nft"),
    include_str!("../../iptables/41-metadata-enforce.nft"),
];

const ROLECALL: &str = env!("CARGO_BIN_EXE_rolecall");

pub const ALL: [&str; 3] = ["169.254.170.23:9902", "[fd00:ec2::23]:9902", "169.254.170.2:9902"];

pub fn net_command(node: &Node, act: &str) -> Command {
    let mut command = node.command(ROLECALL);
    for name in [
        "LISTEN",
        "IMDS_LISTEN",
        "REDIRECT_EKS_PORT",
        "METADATA_GUARD",
        "METADATA_GUARD_PODS_CGROUP",
        "METADATA_GUARD_EXEMPT_CGROUP",
        "RUN_DIR",
        "LOCAL_SOCKET",
    ] {
        command.env_remove(format!("ROLECALL_{name}"));
    }
    // The tests' own processes stand in for the agent.
    command.env("ROLECALL_RUN_UID", "0").args(["net", act]);
    command
}

pub fn net(node: &Node, act: &str, args: &[&str]) -> Output {
    net_command(node, act).args(args).output().unwrap()
}

pub fn install(node: &Node, args: &[&str]) -> String {
    install_for(node, 0, args)
}

/// For an agent of that user.
pub fn install_for(node: &Node, user: u32, args: &[&str]) -> String {
    let (run_dir, user) = (run_dir(node), user.to_string());
    let args: Vec<&str> = ["--run-dir", &run_dir, "--run-uid", &user].iter().chain(args).copied().collect();
    done(&net(node, "install", &args))
}

pub fn remove(node: &Node) -> String {
    done(&net(node, "remove", &["--run-dir", &run_dir(node)]))
}

pub fn with_capabilities(node: &Node, set: &str, act: &str, args: &[&str]) -> Output {
    let mut command = node.command("setpriv");
    command.args(["--bounding-set", set, "--inh-caps", set, ROLECALL, "net", act]).args(args);
    command.output().unwrap()
}

pub fn run_dir(node: &Node) -> String {
    format!("/run/{}", node.name())
}

pub fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What EKS's agent sets up: a link of its own with the addresses, and a route for each.
pub fn their_link(node: &Node) {
    node.ip("link add pod-id-link0 type bridge");
    node.ip("link set pod-id-link0 up");
    node.ip("address add 169.254.170.23/32 dev pod-id-link0");
    node.ip("address add fd00:ec2::23/128 dev pod-id-link0 nodad");
    node.ip("route replace 169.254.170.23/32 dev pod-id-link0");
}

/// All that `net` may change: addresses with their marks, routes of every table, nf_tables of everybody.
pub fn state(node: &Node) -> String {
    addresses_and_routes(node) + &ruleset(node)
}

pub fn addresses_and_routes(node: &Node) -> String {
    ["-d -o address", "route show table all", "-6 route show table all"].map(|what| node.ip(what)).join("\n")
}

pub fn main_routes(node: &Node) -> String {
    node.ip("route show table main") + &node.ip("-6 route show table main")
}

pub fn links_of(node: &Node, address: &str) -> Vec<String> {
    let shown = node.ip(&format!("-o address show to {address}"));
    shown.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
}

pub fn ruleset(node: &Node) -> String {
    nft_args(node, &["list", "ruleset"])
}

pub fn nft(node: &Node, script: &str) -> String {
    done(&nft_output(node, &["-f", "-"], script))
}

pub fn nft_args(node: &Node, args: &[&str]) -> String {
    done(&nft_output(node, args, ""))
}

pub fn nft_output(node: &Node, args: &[&str], script: &str) -> Output {
    let mut command: Command = node.command("nft");
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(script.as_bytes()).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    command.args(args).stdin(file).output().unwrap()
}

pub fn listen(namespace: &Namespace, at: SocketAddr) -> TcpListener {
    namespace.run(async || TcpListener::bind(at)).unwrap_or_else(|err| panic!("listen on {at}: {err}"))
}

pub fn connect(namespace: &Namespace, to: SocketAddr) -> TcpStream {
    try_connect(namespace, to, Duration::from_secs(5)).unwrap_or_else(|err| panic!("connect to {to}: {err}"))
}

pub fn try_connect(namespace: &Namespace, to: SocketAddr, patience: Duration) -> std::io::Result<TcpStream> {
    namespace.run(async || TcpStream::connect_timeout(&to, patience))
}

/// The two things that `verify` asks an agent: its socket's `/statusz`, and any path that it does not serve.
pub struct FakeAgent {
    pub socket: tempfile::TempPath,
}

impl FakeAgent {
    pub fn start(node: &Node, instance: &str, listeners: &[&str]) -> Self {
        let not_found = format!(
            "HTTP/1.1 404 Not Found\r\nx-rolecall-instance: {instance}\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        for at in listeners {
            serve(listen(node, at.parse().unwrap()), not_found.clone());
        }
        let body = format!("{{\"pods\":0,\"instance\":\"{instance}\"}}");
        let status = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let socket = tempfile::Builder::new().make(|path| UnixListener::bind(path)).unwrap();
        let (listener, socket) = socket.into_parts();
        thread::spawn(move || listener.incoming().for_each(|stream| answer(stream.unwrap(), &status)));
        Self { socket }
    }

    pub fn verify(&self, node: &Node, args: &[&str]) -> Output {
        let socket = self.socket.to_str().unwrap();
        let args: Vec<&str> = ["--local-socket", socket].iter().chain(args).copied().collect();
        net(node, "verify", &args)
    }
}

pub fn serve(listener: TcpListener, response: String) {
    thread::spawn(move || listener.incoming().for_each(|stream| answer(stream.unwrap(), &response)));
}

pub fn answer(mut stream: impl Read + Write, response: &str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let _ = stream.write_all(response.as_bytes());
}

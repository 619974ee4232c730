//! `rolecall net` on real kernels: addresses, redirect and proof, on nodes and pods made of network namespaces.

#![cfg(target_os = "linux")]
// Clippy allows it in test functions, but not in what they are made of.
#![allow(clippy::unwrap_used)]

#[path = "support/net.rs"]
mod net;
#[path = "support/netns.rs"]
mod netns;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use net::*;
use netns::{Node, Pod};

const ADDRESSES: [&str; 3] = ["169.254.170.23", "169.254.170.2", "fd00:ec2::23"];

// Addresses.

#[test]
fn the_addresses_are_on_a_link_of_our_own_or_on_lo_without_dummy_links() {
    let Some(node) = Node::new("own_link") else { return };
    let has_dummies =
        node.command("ip").args("link add probe type dummy".split(' ')).output().unwrap().status.success();
    install(&node, &[]);
    let home = if has_dummies { "rolecall0" } else { "lo" };
    for address in ADDRESSES {
        assert_eq!(links_of(&node, address), [home], "{address}");
    }
}

#[test]
fn install_twice_changes_nothing() {
    let Some(node) = Node::new("install_twice") else { return };
    install(&node, &[]);
    let once = state(&node);
    let said = install(&node, &[]);
    assert_eq!(state(&node), once);
    assert!(said.contains("already on"), "{said}");
}

#[test]
fn install_adds_no_route_that_another_agent_would_take_for_a_conflict() {
    let Some(node) = Node::new("no_route") else { return };
    let before = main_routes(&node);
    install(&node, &[]);
    assert_eq!(main_routes(&node), before);
}

#[test]
fn an_address_somebody_else_holds_is_left_alone() {
    let Some(node) = Node::new("they_first") else { return };
    their_link(&node);
    let before = state(&node);
    let without_rules = addresses_and_routes(&node);
    let said = install(&node, &["--listen", "169.254.170.23:9902", "--listen", "[fd00:ec2::23]:9902"]);
    assert_eq!(addresses_and_routes(&node), without_rules);
    assert!(said.contains("warning 169.254.170.23: held by link pod-id-link0"), "{said}");
    remove(&node);
    assert_eq!(state(&node), before);
}

#[test]
fn an_address_that_somebody_else_adds_after_us_is_still_theirs_when_we_leave() {
    let Some(node) = Node::new("we_first") else { return };
    let pod = node.routed_pod("a", "10.0.1.7", Some("fd00::7"));
    install(&node, &[]);
    their_link(&node);
    install(&node, &[]);
    remove(&node);
    for address in ["169.254.170.23", "fd00:ec2::23"] {
        assert_eq!(links_of(&node, address), ["pod-id-link0"]);
        let theirs = SocketAddr::new(address.parse().unwrap(), 80);
        let listener = listen(&node, theirs);
        connect(&pod, theirs);
        drop(listener);
    }
    assert_eq!(links_of(&node, "169.254.170.2"), [""; 0]);
}

#[test]
fn an_address_that_somebody_else_adds_before_us_is_still_theirs_when_they_stay() {
    let Some(node) = Node::new("they_stay") else { return };
    their_link(&node);
    install(&node, &[]);
    assert_eq!(links_of(&node, "169.254.170.23"), ["pod-id-link0"]);
    node.ip("link del pod-id-link0");
    install(&node, &[]);
    assert_eq!(links_of(&node, "169.254.170.23").len(), 1, "free now, so it is ours to add");
}

#[test]
fn an_address_somebody_routes_is_left_alone() {
    let Some(node) = Node::new("routed_away") else { return };
    let _pod = node.routed_pod("a", "10.0.1.7", None);
    node.ip("route add 169.254.170.23/32 dev veth1");
    node.ip("-6 route add fd00:ec2::/64 dev veth1 table 77");
    let said = install(&node, &[]);
    assert_eq!(links_of(&node, "169.254.170.23"), [""; 0], "{said}");
    assert_eq!(links_of(&node, "fd00:ec2::23"), [""; 0], "{said}");
    assert_eq!(links_of(&node, "169.254.170.2").len(), 1, "{said}");
    assert!(said.contains("warning 169.254.170.23: routed through veth1"), "{said}");
    remove(&node);
    assert!(main_routes(&node).contains("169.254.170.23 dev veth1"));
}

#[test]
fn remove_takes_only_what_we_added() {
    let Some(node) = Node::new("remove") else { return };
    node.ip("address add 169.254.20.10/32 dev lo");
    node.ip("address add fd00:ec2::10/128 dev lo");
    nft(&node, "add table inet theirs; add chain inet theirs c; add rule inet theirs c counter");
    let before = state(&node);
    install(&node, &["--redirect-eks-port"]);
    assert_ne!(state(&node), before);
    remove(&node);
    assert_eq!(state(&node), before);
    assert!(!fs::exists(run_dir(&node)).unwrap());
    remove(&node);
}

#[test]
fn remove_can_stay_until_it_is_told_to_stop() {
    let Some(node) = Node::new("remove_wait") else { return };
    let before = state(&node);
    install(&node, &[]);
    let mut command = net_command(&node, "remove");
    command.args(["--wait", "--run-dir", &run_dir(&node)]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with(&format!("ok      {}: removed", run_dir(&node)))));
    assert_eq!(state(&node), before);
    // SIGTERM as the kubelet sends it; without the flag there would be nobody left to get it.
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_node_without_ipv6_gets_ipv4_and_a_warning() {
    let Some(node) = Node::new("no_ipv6") else { return };
    for conf in ["all", "default"] {
        node.sysctl(&format!("ipv6/conf/{conf}/disable_ipv6"), "1");
    }
    let said = install(&node, &[]);
    assert!(said.contains("warning fd00:ec2::23: not added: IPv6 is switched off"), "{said}");
    assert_eq!(links_of(&node, "169.254.170.23").len(), 1);
    let agent = FakeAgent::start(&node, "the-word", &["169.254.170.23:9902", "169.254.170.2:9902"]);
    let proof = agent.verify(&node, &[]);
    assert!(proof.status.success(), "{}", text(&proof));
}

#[test]
fn every_address_is_reached_from_pods_of_both_shapes() {
    let Some(node) = Node::new("reached") else { return };
    let pods = [
        ("10.0.1.7", "fd00::7", node.routed_pod("a", "10.0.1.7", Some("fd00::7"))),
        ("10.0.2.7", "fd00:2::7", node.bridged_pod("b", "10.0.2.7", Some("fd00:2::7"))),
    ];
    install(&node, &[]);
    for address in ADDRESSES {
        let target = SocketAddr::new(address.parse().unwrap(), 9902);
        let listener = listen(&node, target);
        for (ip, ipv6, pod) in &pods {
            let _connection = connect(pod, target);
            let source: IpAddr = if target.is_ipv6() { ipv6 } else { ip }.parse().unwrap();
            assert_eq!(listener.accept().unwrap().1.ip(), source);
        }
    }
}

#[test]
fn no_address_of_ours_is_the_source_of_the_nodes_own_traffic() {
    let Some(node) = Node::new("source") else { return };
    let pods = [
        node.routed_pod("a", "10.0.1.7", Some("fd00:ec2:0:1::7")),
        node.bridged_pod("b", "10.0.2.7", Some("fd00:2::7")),
    ];
    let targets = [["10.0.1.7:80", "[fd00:ec2:0:1::7]:80"], ["10.0.2.7:80", "[fd00:2::7]:80"]];
    let sources = || {
        let ask = |target: &str| connect(&node, target.parse().unwrap()).local_addr().unwrap().ip();
        targets.map(|targets| targets.map(ask))
    };
    let _listeners: Vec<_> = pods
        .iter()
        .zip(targets)
        .flat_map(|(pod, at)| at.map(|at| listen(pod, at.parse().unwrap())))
        .collect();
    let before = sources();
    install(&node, &[]);
    assert_eq!(sources(), before);
}

// The redirect.

#[test]
fn the_redirect_serves_port_80_and_keeps_the_address_of_a_routed_pod() {
    let Some(node) = Node::new("redirect_routed") else { return };
    let pod = node.routed_pod("a", "10.0.1.7", Some("fd00::7"));
    port_80_reaches_9902(&node, &pod, "10.0.1.7", "fd00::7");
}

#[test]
fn the_redirect_serves_port_80_and_keeps_the_address_of_a_bridged_pod() {
    let Some(node) = Node::new("redirect_bridged") else { return };
    let pod = node.bridged_pod("a", "10.0.2.7", Some("fd00:2::7"));
    port_80_reaches_9902(&node, &pod, "10.0.2.7", "fd00:2::7");
}

fn port_80_reaches_9902(node: &Node, pod: &Pod, ip: &str, ipv6: &str) {
    install(node, &["--redirect-eks-port"]);
    for address in ADDRESSES {
        let address: IpAddr = address.parse().unwrap();
        let listener = listen(node, SocketAddr::new(address, 9902));
        let mut at_pod = connect(pod, SocketAddr::new(address, 80));
        let (mut at_agent, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), if address.is_ipv6() { ipv6 } else { ip }.parse::<IpAddr>().unwrap());
        // The way back passes the translation too.
        at_agent.write_all(b"x").unwrap();
        at_pod.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn port_80_of_the_eks_addresses_is_redirected_only_by_choice() {
    let Some(node) = Node::new("eks_port") else { return };
    let pod = node.routed_pod("a", "10.0.1.7", None);
    install(&node, &[]);
    let _ours = listen(&node, "169.254.170.23:9902".parse().unwrap());
    let refused = pod.run(async || TcpStream::connect("169.254.170.23:80"));
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    // And their agent can have it.
    let theirs = listen(&node, "169.254.170.23:80".parse().unwrap());
    connect(&pod, "169.254.170.23:80".parse().unwrap());
    theirs.accept().unwrap();
}

#[test]
fn another_port_is_redirected_to_as_well() {
    let Some(node) = Node::new("other_port") else { return };
    let pod = node.routed_pod("a", "10.0.1.7", None);
    install(&node, &["--listen", "169.254.170.2:1234"]);
    let listener = listen(&node, "169.254.170.2:1234".parse().unwrap());
    connect(&pod, "169.254.170.2:80".parse().unwrap());
    listener.accept().unwrap();
}

#[test]
fn an_ingress_on_host_port_80_does_not_get_what_is_ours() {
    let Some(node) = Node::new("host_port") else { return };
    let pod = node.routed_pod("a", "10.0.1.7", None);
    // What the portmap plug-in does for a pod with hostPort 80: every local address.
    nft(
        &node,
        "add table ip portmap; add chain ip portmap p { type nat hook prerouting priority dstnat; };
         add rule ip portmap p fib daddr type local tcp dport 80 dnat to 10.0.1.99:8080",
    );
    install(&node, &[]);
    let listener = listen(&node, "169.254.170.2:9902".parse().unwrap());
    connect(&pod, "169.254.170.2:80".parse().unwrap());
    listener.accept().unwrap();
}

#[test]
fn instance_metadata_is_ours_while_we_answer_it_and_kube2iams_before_and_after() {
    let Some(node) = Node::new("moving_in") else { return };
    let pod = node.routed_pod("a", "10.0.1.7", None);
    let metadata = || pod.run(async || TcpStream::connect("169.254.169.254:80"));
    // As kube2iam and kiam do it: iptables' own chain of that priority.
    nft(
        &node,
        "add table ip nat; add chain ip nat PREROUTING { type nat hook prerouting priority dstnat; };
         add rule ip nat PREROUTING ip daddr 169.254.169.254 tcp dport 80 dnat to 10.0.0.1:8181",
    );
    let theirs = listen(&node, "10.0.0.1:8181".parse().unwrap());
    install(&node, &[]);
    let ours = listen(&node, "169.254.170.2:9904".parse().unwrap());
    for flags in [&[][..], &["--imds-listen", "169.254.170.2:9904"], &[]] {
        install(&node, flags);
        let _asked = metadata().unwrap();
        let (has_it, has_not) = if flags.is_empty() { (&theirs, &ours) } else { (&ours, &theirs) };
        has_it.accept().unwrap();
        has_not.set_nonblocking(true).unwrap();
        assert!(has_not.accept().is_err(), "{flags:?}");
        has_not.set_nonblocking(false).unwrap();
    }
}

#[test]
fn the_redirect_is_not_put_over_an_address_that_somebody_else_holds() {
    let Some(node) = Node::new("ecs_agent") else { return };
    node.ip("link add ecs0 type bridge");
    node.ip("address add 169.254.170.2/32 dev ecs0");
    install(&node, &[]);
    assert!(!ruleset(&node).contains("relative_uri"));
}

#[test]
fn flushing_iptables_leaves_the_redirect_in_place() {
    let Some(node) = Node::new("iptables_flush") else { return };
    install(&node, &[]);
    let before = ruleset(&node);
    for args in [["-t", "filter", "-F"], ["-t", "nat", "-F"], ["-t", "nat", "-X"]] {
        assert!(node.command("iptables").args(args).status().unwrap().success());
    }
    let after = nft(&node, "list table inet rolecall");
    assert!(before.contains(&after), "{after}");
}

#[test]
fn what_is_applied_is_what_the_files_say() {
    let (Some(node), Some(by_hand)) = (Node::new("applied"), Node::new("by_hand")) else { return };
    install(&node, &["--redirect-eks-port", "--metadata-guard", "enforce"]);
    // `net::install` is for an agent of the tests' own user.
    nft(&by_hand, &FILES.concat().replace("define agent_uid = 9902", "define agent_uid = 0"));
    let json = |node: &Node| {
        let mut listed: serde_json::Value =
            serde_json::from_str(&nft_args(node, &["-j", "list", "ruleset"])).unwrap();
        // Handles count every object the kernel ever made in the table.
        for object in listed["nftables"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .flat_map(|item| item.as_object_mut().unwrap().values_mut())
        {
            object.as_object_mut().unwrap().remove("handle");
        }
        listed
    };
    assert_eq!(json(&node), json(&by_hand));
}

#[test]
fn installing_again_leaves_no_moment_without_the_redirect() {
    let Some(node) = Node::new("no_gap") else { return };
    let pod = node.routed_pod("a", "10.0.1.7", None);
    install(&node, &[]);
    serve(listen(&node, "169.254.170.2:9902".parse().unwrap()), String::new());
    let installed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            pod.run(async || {
                while !installed.load(Ordering::Relaxed) {
                    TcpStream::connect("169.254.170.2:80").expect("the redirect is in place");
                }
            });
        });
        // Other rules each time: the same ones are left alone.
        for mode in ["off", "observe", "enforce", "observe", "off"] {
            install(&node, &["--metadata-guard", mode]);
        }
        installed.store(true, Ordering::Relaxed);
        asking.join().unwrap();
    });
}

// The proof.

#[test]
fn verify_is_good_when_our_agent_answers_everywhere() {
    let Some(node) = Node::new("verify_good") else { return };
    install(&node, &[]);
    let agent = FakeAgent::start(&node, "the-word", &ALL);
    let proof = agent.verify(&node, &[]);
    assert!(proof.status.success(), "{}", text(&proof));
    assert_eq!(text(&proof).matches("our agent answers").count(), 3, "{}", text(&proof));
}

#[test]
fn verify_names_an_impostor() {
    let Some(node) = Node::new("verify_impostor") else { return };
    install(&node, &[]);
    let agent = FakeAgent::start(&node, "the-word", &["169.254.170.23:9902", "[fd00:ec2::23]:9902"]);
    serve(listen(&node, ALL[2].parse().unwrap()), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned());
    let proof = agent.verify(&node, &[]);
    assert_eq!(proof.status.code(), Some(1));
    assert!(
        text(&proof).contains("FAILED  169.254.170.2:9902: answered by something other"),
        "{}",
        text(&proof)
    );
}

#[test]
fn verify_names_an_agent_that_was_left_behind() {
    let Some(node) = Node::new("verify_old") else { return };
    install(&node, &[]);
    let _old = FakeAgent::start(&node, "the-old-word", &ALL);
    let new = FakeAgent::start(&node, "the-word", &[]);
    let proof = new.verify(&node, &[]);
    assert_eq!(proof.status.code(), Some(1));
    assert_eq!(text(&proof).matches("another rolecall agent").count(), 3, "{}", text(&proof));
}

#[test]
fn verify_names_an_address_where_nobody_answers() {
    let Some(node) = Node::new("verify_nobody") else { return };
    install(&node, &[]);
    let agent = FakeAgent::start(&node, "the-word", &ALL[..2]);
    let proof = agent.verify(&node, &[]);
    assert_eq!(proof.status.code(), Some(1));
    assert!(text(&proof).contains("FAILED  169.254.170.2:9902: cannot connect"), "{}", text(&proof));
}

#[test]
fn verify_names_an_agent_that_is_not_there() {
    let Some(node) = Node::new("verify_no_agent") else { return };
    install(&node, &[]);
    let proof = net(&node, "verify", &["--local-socket", "/run/no-agent.sock"]);
    assert_eq!(proof.status.code(), Some(1));
    assert!(
        text(&proof).contains("cannot ask the agent who it is at /run/no-agent.sock"),
        "{}",
        text(&proof)
    );
}

#[test]
fn verify_names_what_is_missing_on_the_node() {
    let Some(node) = Node::new("verify_missing") else { return };
    install(&node, &[]);
    let agent = FakeAgent::start(&node, "the-word", &ALL);
    nft(&node, "flush chain inet rolecall relative_uri");
    let link = links_of(&node, "169.254.170.23").remove(0);
    node.ip(&format!("address del 169.254.170.23/32 dev {link}"));
    let proof = agent.verify(&node, &[]);
    assert_eq!(proof.status.code(), Some(1));
    assert!(text(&proof).contains("FAILED  169.254.170.23: on no link of this node"), "{}", text(&proof));
    assert!(
        text(&proof).contains("FAILED  rules: missing in table inet rolecall: `ip daddr"),
        "{}",
        text(&proof)
    );
}

#[test]
fn verify_names_a_rule_in_our_table_that_is_not_ours() {
    let Some(node) = Node::new("verify_foreign") else { return };
    install(&node, &["--redirect-eks-port"]);
    let agent = FakeAgent::start(&node, "the-word", &ALL);
    assert!(agent.verify(&node, &["--redirect-eks-port"]).status.success());
    nft(&node, "add rule inet rolecall relative_uri ip daddr 169.254.170.2 drop");
    let proof = agent.verify(&node, &["--redirect-eks-port"]);
    assert!(
        text(&proof).contains("not ours, but in table inet rolecall: `ip daddr 169.254.170.2 drop`"),
        "{}",
        text(&proof)
    );
}

// Rights and flags.

#[test]
fn install_needs_no_right_but_net_admin_and_chown() {
    let Some(node) = Node::new("rights") else { return };
    let run_dir = run_dir(&node);
    let said = with_capabilities(
        &node,
        "-all,+net_admin,+chown",
        "install",
        &["--run-dir", &run_dir, "--run-uid", "0"],
    );
    assert!(said.status.success(), "{}", text(&said));
    assert_eq!(links_of(&node, "169.254.170.2").len(), 1);
    assert!(ruleset(&node).contains("relative_uri"));
    let made = fs::metadata(&run_dir).unwrap();
    assert_eq!((made.mode() & 0o7777, made.uid()), (0o700, 0));
}

#[test]
fn install_names_the_capability_that_is_missing() {
    let Some(node) = Node::new("no_rights") else { return };
    let said = with_capabilities(&node, "-all", "install", &["--run-dir", &run_dir(&node), "--run-uid", "0"]);
    assert_eq!(said.status.code(), Some(1));
    // Three addresses and the rules.
    assert_eq!(text(&said).matches("needs the capability NET_ADMIN").count(), 4, "{}", text(&said));
}

#[test]
fn verify_without_any_right_proves_all_but_the_rules_and_says_so() {
    let Some(node) = Node::new("verify_no_rights") else { return };
    install(&node, &[]);
    let agent = FakeAgent::start(&node, "the-word", &ALL);
    let said =
        with_capabilities(&node, "-all", "verify", &["--local-socket", agent.socket.to_str().unwrap()]);
    assert!(said.status.success(), "{}", text(&said));
    assert!(text(&said).contains("warning rules: not checked"), "{}", text(&said));
}

#[test]
fn install_finishes_when_nobody_reads_what_it_says() {
    let Some(node) = Node::new("closed_pipe") else { return };
    let run_dir = run_dir(&node);
    let mut command = net_command(&node, "install");
    command.args(["--run-uid", "0", "--run-dir", &run_dir]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command.stderr(writer.try_clone().unwrap()).stdout(writer).status().unwrap();
    assert!(status.success(), "{status}");
    assert!(ruleset(&node).contains("relative_uri"));
}

#[test]
fn a_run_directory_that_kubelet_made_is_closed_to_others() {
    let Some(node) = Node::new("run_dir") else { return };
    let run_dir = run_dir(&node);
    fs::create_dir(&run_dir).unwrap();
    fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o755)).unwrap();
    install(&node, &[]);
    assert_eq!(fs::metadata(&run_dir).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn bad_flags_are_64_with_every_mistake_and_change_nothing() {
    let Some(node) = Node::new("bad_flags") else { return };
    let before = state(&node);
    let said = net(&node, "install", &["--listen", "0.0.0.0:9902", "--listen", "here"]);
    assert_eq!(said.status.code(), Some(64));
    assert_eq!(text(&said).matches("error: --listen").count(), 2, "{}", text(&said));
    assert_eq!(state(&node), before);
}

//! A pod that floods the agent costs itself its answers, and nobody else theirs.
//!
//! With `--identity=kernel`, where a pod is the node's end of its cable. How fast its neighbours are answered meanwhile is a
//! figure of `make bench`; here is what must be so on any machine.

#![cfg(target_os = "linux")]

#[path = "support/http.rs"]
mod http;
#[path = "support/ladder.rs"]
mod ladder;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/process.rs"]
mod process;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use http::{Answer, connect, request};
use ladder::{V4, account, ask, node, shown, uid, with_agent};
use netns::Namespace;
use process::Process;

/// Requests of one pod at once, and each second.
const BURST: u32 = 1000;
const RATE: u32 = 1000;
/// Open connections of one pod, while nobody else has many.
const CONNECTIONS: usize = 241;
/// More callers than that.
const CROWD: usize = CONNECTIONS + 60;

/// How often each status and code was answered.
type Answers = BTreeMap<String, u32>;

/// Asks from `pod` as fast as it can, by so many callers at once, for as long as `meanwhile` runs.
fn flood<T>(
    pod: &Namespace,
    callers: usize,
    keep: bool,
    meanwhile: impl FnOnce() -> T,
) -> (Answers, Duration, T) {
    let (begun, over) = (Instant::now(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| pod.run(async || answers(callers, keep, &over).await));
        // Also where a neighbour's assertion fails, or the scope would wait for a flood without an end.
        let end = EndOf(&over);
        let result = meanwhile();
        drop(end);
        (flood.join().unwrap(), begun.elapsed(), result)
    })
}

/// Ends a flood when it is dropped.
struct EndOf<'a>(&'a AtomicBool);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn answers(callers: usize, keep: bool, over: &AtomicBool) -> Answers {
    let to: SocketAddr = V4.parse().unwrap();
    let caller = async || {
        let mut answers = Answers::new();
        while !over.load(Ordering::Relaxed) {
            // A connection that ends with nothing said is one that the agent, or its kernel, has closed.
            let Ok(mut stream) = TcpStream::connect(to).await else { continue };
            while let Some(answer) = exchange(&mut stream, to).await {
                let code = if answer.status == 200 { "ok".into() } else { answer.code() };
                *answers.entry(format!("{} {code}", answer.status)).or_default() += 1;
                if !keep || answer.status != 200 || over.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
        answers
    };
    let all = futures_util::future::join_all((0..callers).map(|_| caller())).await;
    all.into_iter().flatten().fold(Answers::new(), |mut sum, (code, count)| {
        *sum.entry(code).or_default() += count;
        sum
    })
}

/// As an SDK does it, but that an end in the middle is no panic.
async fn exchange(stream: &mut TcpStream, to: SocketAddr) -> Option<Answer> {
    let _ = stream.write_all(request(to).as_bytes()).await;
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let mut answer =
                Answer { status: head[9..12].parse().unwrap(), head: head.into(), body: body.into() };
            answer.head.push_str("\r\n");
            let length: usize = answer.header("content-length").unwrap().trim().parse().unwrap();
            if body.len() >= length {
                return Some(answer);
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// Questions of a neighbour, each on a connection of its own.
fn neighbour(pod: &Namespace, from: &str, name: &str) {
    for _ in 0..30 {
        assert_eq!(account(&ask(pod, from, V4)), name);
    }
}

/// What a flood may be told: keys, at its rate, or 503.
fn within_bounds((answers, took, ()): (Answers, Duration, ())) -> Answers {
    let good = answers.get("200 ok").copied().unwrap_or_default();
    let most = BURST + (took.as_secs_f64() * f64::from(RATE)) as u32 + 1;
    assert!(good <= most, "{good} answers in {took:?}: {answers:?}");
    let others: Vec<&String> = answers.keys().filter(|code| *code != "200 ok").collect();
    assert!(others.iter().all(|code| *code == "503 Overloaded"), "{answers:?}");
    answers
}

#[test]
fn a_flooding_pod_leaves_its_neighbours_their_answers() {
    let Some(node) = node("flood_routed") else { return };
    let (a, b) = (node.routed_pod("a", "10.0.1.7", None), node.routed_pod("b", "10.0.1.8", None));
    let _processes = [Process::of(&uid("a"), &a), Process::of(&uid("b"), &b)];
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"]), shown("b", &["10.0.1.8"])]);
        // Its processes are known, so no more walks are needed.
        assert_eq!(account(&ask(&a, "10.0.1.7", V4)), "a");
        // Few callers that keep their connections are slowed down, and never refused.
        let neighbour = || neighbour(&b, "10.0.1.8", "b");
        let answers = within_bounds(flood(&a, 16, true, neighbour));
        assert_eq!(answers.keys().collect::<Vec<_>>(), ["200 ok"]);
        within_bounds(flood(&a, 16, false, neighbour));
        // More callers than it has connections are refused as well.
        assert!(within_bounds(flood(&a, CROWD, true, neighbour)).contains_key("503 Overloaded"));
        within_bounds(flood(&a, CROWD, false, neighbour));
    });
}

#[test]
fn whatever_address_it_sends_from_a_pod_has_one_share() {
    let Some(node) = node("flood_addresses") else { return };
    let (nobody, b) = (node.routed_pod("nobody", "10.0.1.7", None), node.routed_pod("b", "10.0.1.8", None));
    let _process = Process::of(&uid("b"), &b);
    for last in 10..20 {
        nobody.ip(&format!("address add 10.0.1.{last}/32 dev eth0"));
        node.ip(&format!("route add 10.0.1.{last}/32 dev veth1"));
    }
    with_agent(&node, |agent| {
        agent.set(&[shown("b", &["10.0.1.8"])]);
        let told = nobody.run(async || {
            let to = V4.parse().unwrap();
            // Silent, so each is open until somebody has waited long enough for its question.
            let silent = async |number| {
                let mut stream = connect(&format!("10.0.1.{}", 10 + number % 10), to).await;
                let mut told = String::new();
                let _ = stream.read_to_string(&mut told).await;
                told
            };
            futures_util::future::join_all((0..CROWD).map(silent)).await
        });
        assert!(told.iter().any(|told| told.contains("Overloaded")), "all {CROWD} were open at once");
        neighbour(&b, "10.0.1.8", "b");
    });
}

#[test]
fn callers_on_the_host_share_one_share_and_leave_the_pods_theirs() {
    let Some(node) = node("flood_host") else { return };
    let b = node.routed_pod("b", "10.0.1.8", None);
    let _process = Process::of(&uid("b"), &b);
    with_agent(&node, |agent| {
        agent.set(&[shown("b", &["10.0.1.8"])]);
        let (answers, _, ()) = flood(&node, CROWD, true, || neighbour(&b, "10.0.1.8", "b"));
        let codes: Vec<&String> = answers.keys().collect();
        assert_eq!(codes, ["403 CallerNotIdentified", "503 Overloaded"], "{answers:?}");
    });
}

#[test]
fn ports_of_one_bridge_have_a_share_each() {
    let Some(node) = node("flood_bridge") else { return };
    let (a, b) = (node.bridged_pod("a", "10.0.2.7", None), node.bridged_pod("b", "10.0.2.8", None));
    let _processes = [Process::of(&uid("a"), &a), Process::of(&uid("b"), &b)];
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.2.7"]), shown("b", &["10.0.2.8"])]);
        let flood = flood(&a, CROWD, true, || {
            neighbour(&b, "10.0.2.8", "b");
        });
        assert!(within_bounds(flood).contains_key("503 Overloaded"));
    });
}

#[test]
fn two_hundred_processes_that_start_at_once_are_all_served() {
    let Some(node) = node("flood_start") else { return };
    let pods = [
        ("a", "10.0.1.7", node.routed_pod("a", "10.0.1.7", None)),
        ("b", "10.0.2.7", node.bridged_pod("b", "10.0.2.7", None)),
    ];
    let _processes = pods.each_ref().map(|(name, _, pod)| Process::of(&uid(name), pod));
    with_agent(&node, |agent| {
        agent.set(&[shown("a", &["10.0.1.7"]), shown("b", &["10.0.2.7"])]);
        for (name, address, pod) in &pods {
            let answers = pod.run(async || {
                let to: SocketAddr = V4.parse().unwrap();
                // As SDKs do: three tries, and a second after a 503. Behind a bridge each costs milliseconds on one thread.
                let process = async || {
                    let mut tries = 0;
                    loop {
                        tries += 1;
                        let answer = exchange(&mut connect(address, to).await, to).await.unwrap();
                        if answer.status != 503 || tries == 3 {
                            return answer;
                        }
                        assert_eq!(answer.header("retry-after"), Some("1"));
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                };
                futures_util::future::join_all((0..200).map(|_| process())).await
            });
            let good = answers.iter().filter(|answer| answer.status == 200).count();
            assert_eq!(good, 200, "{name}, within an SDK's tries");
        }
    });
}

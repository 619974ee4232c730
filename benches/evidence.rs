//! What the kernel's evidence costs, and what a new pod waits for: pods in namespaces of their own, each with a process in
//! its pod's cgroup, asked for by `--identity=kernel`.

use std::collections::VecDeque;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::http;
use crate::netns::{Namespace, Node, Pod};
use crate::process::Process;
use crate::world::{AGENT, Counted, NAMESPACE, STS, World, account, annotation, image, role};

/// New pods whose first request is measured, and how late the API server is told their addresses.
const NEW_PODS: usize = 50;
const ADDRESS_DELAY: Duration = Duration::from_secs(10);
/// What a kubelet and a runtime need at least from a bound pod to its first process. Meanwhile the agent's watches have
/// shown what they must; the API server takes up to 0.1 s to begin one.
const SANDBOX: Duration = Duration::from_millis(300);
/// Processes of a node, for a walk over all of them.
const PROCESSES: usize = 300;
/// For the ladder by itself.
const ALONE: &str = "169.254.170.23:9905";

/// A pod that the ladder can tell.
pub struct Known {
    /// Its namespace.
    pub pod: Pod,
    _process: Process,
}

/// The pods of this part, which stay until its end.
pub struct Evidence<'a> {
    world: &'a World<'a>,
    node: &'a Node,
    /// Behind a veth of its own.
    pub routed: Known,
    /// On a bridge.
    pub bridged: Known,
    new: Vec<Known>,
}

impl<'a> Evidence<'a> {
    /// One pod of each shape, of a ServiceAccount whose plan will be warm.
    pub async fn start(world: &'a World<'a>, node: &'a Node) -> Result<Self> {
        let account = account(0);
        let routed =
            Self::pod(world, "routed", &account, || node.routed_pod("routed", "10.0.3.1", None)).await?;
        let bridged =
            Self::pod(world, "bridged", &account, || node.bridged_pod("bridged", "10.0.2.7", None)).await?;
        Ok(Self { world, node, routed, bridged, new: Vec::new() })
    }

    /// In the order of a node: the object, the namespace, the process. The address is not published.
    async fn pod(
        world: &World<'_>,
        name: &str,
        account: &str,
        namespace: impl FnOnce() -> Pod,
    ) -> Result<Known> {
        let object = json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": world.node_name(), "serviceAccountName": account,
                "containers": [{"name": "main", "image": "registry.example.com/team/main:1.2.3"}],
            },
        });
        let object = world.send("POST", &world.path("pods"), &object).await?;
        let uid = object["metadata"]["uid"].as_str().context("no UID")?;
        sleep(SANDBOX).await;
        let pod = namespace();
        let process = Process::of(uid, &pod);
        Ok(Known { pod, _process: process })
    }

    /// The pods of [`Evidence::new_pod_ms`], once it has run.
    pub fn new_pods(&self) -> Vec<&Namespace> {
        self.new.iter().map(|known| &*known.pod).collect()
    }

    /// Microseconds of CPU for a connection of a known pod, at the median.
    pub async fn warm_us(&self, from: &Known, connections: usize) -> Result<f64> {
        let counted = self.attest("warm", &from.pod, connections)?;
        Ok(counted.of("median"))
    }

    /// Milliseconds of CPU for a connection of a pod that only a walk over all processes can tell, as many as a node has.
    pub async fn rescan_ms(&self) -> Result<f64> {
        let missing = PROCESSES.saturating_sub(processes()?);
        let namespaces = self.new.iter().cycle().take(missing);
        let others = namespaces.map(|known| known.pod.run(async || Process::start_here()));
        let _others: Vec<Process> = others.collect();
        let found = processes()?;
        let counted = self.attest("rescan", &self.routed.pod, 200)?;
        let ms = counted.of("median") / 1e3;
        println!(
            "rescan: {ms:.2} ms with {found} processes, {:.2} ms until it is known on this machine",
            counted.of("known") / 1e3
        );
        // A walk is as long as what it walks over; on a busy machine that is more.
        Ok(ms * PROCESSES as f64 / found as f64)
    }

    /// Runs the ladder by itself, and calls it.
    fn attest(&self, mode: &str, from: &Namespace, connections: usize) -> Result<Counted> {
        let mut ladder = self.node.command(&image("attest")?);
        ladder.args([mode, ALONE, &connections.to_string()]).stdout(Stdio::piped());
        let ladder = ladder.spawn()?;
        from.run(async || call(ALONE.parse()?, connections))?;
        let output = ladder.wait_with_output()?;
        ensure!(output.status.success(), "attest {mode} failed");
        Ok(Counted(String::from_utf8(output.stdout)?))
    }

    /// Milliseconds that a new pod's first request takes, less those of a TokenRequest and an STS call in the same
    /// moment, at the median.
    pub async fn new_pod_ms(&mut self) -> Result<f64> {
        let (mut beyond, mut firsts, mut hops) = (Vec::new(), Vec::new(), Vec::new());
        let mut unpublished = VecDeque::new();
        for number in 0..NEW_PODS {
            let (name, address) = (format!("new-{number}"), format!("10.0.4.{}", number + 1));
            let object = json!({"metadata": {"name": name, "annotations": annotation("plan")}});
            self.world.send("POST", &self.world.path("serviceaccounts"), &object).await?;
            let namespace = || self.node.routed_pod(&name, &address, None);
            let new = Self::pod(self.world, &name, &name, namespace).await?;
            let begun = Instant::now();
            unpublished.push_back((name.clone(), address.clone(), begun));
            let to: SocketAddr = AGENT.parse()?;
            let answer = new.pod.run(async || http::get(&address, to, &http::request(to)).await);
            let first = begun.elapsed();
            ensure!(answer.status == 200, "{name}: {} {}", answer.status, answer.body);
            self.new.push(new);
            let two = self.token_and_sts(&name).await?;
            firsts.push(millis(first));
            hops.push(millis(two));
            beyond.push(millis(first) - millis(two));
            while let Some((name, address, begun)) = unpublished.pop_front() {
                if begun.elapsed() < ADDRESS_DELAY {
                    unpublished.push_front((name, address, begun));
                    break;
                }
                let status =
                    json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}});
                let path = format!("{}/{name}/status", self.world.path("pods"));
                self.world.send("PATCH", &path, &status).await?;
            }
        }
        println!(
            "new pods: first request {:.1} ms, TokenRequest and STS alone {:.1} ms",
            super::median(firsts),
            super::median(hops)
        );
        Ok(super::median(beyond))
    }

    /// The two calls that no first request can do without, one after the other.
    async fn token_and_sts(&self, name: &str) -> Result<Duration> {
        let begun = Instant::now();
        let path = format!("{}/{name}/token", self.world.path("serviceaccounts"));
        let request = json!({"spec": {
            "audiences": ["sts.amazonaws.com"], "expirationSeconds": 3600,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name},
        }});
        let answer: Value = self.world.send("POST", &path, &request).await?;
        let token = answer["status"]["token"].as_str().context("no token")?;
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("Action", "AssumeRoleWithWebIdentity")
            .append_pair("Version", "2011-06-15")
            .append_pair("RoleArn", &role("plan"))
            .append_pair("RoleSessionName", &format!("{NAMESPACE}.{name}"))
            .append_pair("WebIdentityToken", token)
            .finish();
        let at: SocketAddr = STS.parse()?;
        let head = "Content-Type: application/x-www-form-urlencoded";
        let request = format!(
            "POST / HTTP/1.1\r\nHost: {at}\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = http::get("127.0.0.1", at, &request).await;
        ensure!(answer.status == 200, "STS: {}", answer.body);
        Ok(begun.elapsed())
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// One connection after the other, each until it is closed.
fn call(to: SocketAddr, connections: usize) -> Result<()> {
    let begun = Instant::now();
    for _ in 0..connections {
        let mut stream = loop {
            match TcpStream::connect(to) {
                Ok(stream) => break stream,
                // It has not begun to listen yet.
                Err(_) if begun.elapsed() < Duration::from_secs(10) => std::thread::yield_now(),
                Err(err) => return Err(err.into()),
            }
        };
        ensure!(stream.read(&mut [0])? == 0, "bytes instead of an end");
    }
    Ok(())
}

fn processes() -> Result<usize> {
    let mut found = 0;
    for entry in std::fs::read_dir("/proc")? {
        found += usize::from(entry?.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()));
    }
    Ok(found)
}

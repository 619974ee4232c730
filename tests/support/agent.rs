//! The shipped binary as the agent of a node: a process with its output, its local socket and its signals.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;
use tokio::time::{Instant, interval};

use crate::http::{self, Answer};
use crate::netns::Node;

/// The shipped binary.
pub const ROLECALL: &str = env!("CARGO_BIN_EXE_rolecall");
/// For what should take milliseconds, on a machine that is busy with other things.
pub const SOON: Duration = Duration::from_secs(15);
/// How often a state is looked at that nothing tells of.
const LOOK: Duration = Duration::from_millis(20);
/// What agents have handed out in this process: it must be in no line that one of them wrote.
static SECRETS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The agent as a process. It ends with this value, and with the test process, however that ends.
pub struct Agent {
    child: Child,
    undertaker: Child,
    pub socket: PathBuf,
    output: PathBuf,
}

/// Does the variable change what an agent does? Those of whoever runs the tests do not count.
fn is_a_setting(name: &str) -> bool {
    name.starts_with("ROLECALL_") || name.starts_with("AWS_") || name.to_ascii_lowercase().ends_with("_proxy")
}

impl Agent {
    /// Starts the shipped binary on `node`; what it says goes to a file.
    pub fn start(node: &Node, name: &str, kubeconfig: &Path, args: &[&str]) -> Self {
        Self::start_by(node.command(ROLECALL), name, &format!("/run/{name}.sock"), kubeconfig, args)
    }

    /// The same by a command of the caller's, to which the agent's arguments are added.
    pub fn start_by(
        mut command: Command,
        name: &str,
        socket: &str,
        kubeconfig: &Path,
        args: &[&str],
    ) -> Self {
        let (socket, output) = (socket.into(), format!("/run/{name}.log").into());
        let file = File::create::<&PathBuf>(&output).unwrap();
        let chosen: BTreeSet<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
        for (name, _) in std::env::vars().filter(|(name, _)| is_a_setting(name)) {
            if !chosen.contains(std::ffi::OsStr::new(&name)) {
                command.env_remove(name);
            }
        }
        for (name, value) in [("ROLECALL_IMPERSONATE_NODE", "true"), ("ROLECALL_REGION", "eu-central-1")] {
            if !command.get_envs().any(|(chosen, _)| chosen == name) {
                command.env(name, value);
            }
        }
        let child = command
            .args(["agent", "--node-name", name, "--kubeconfig"])
            .arg(kubeconfig)
            .arg("--local-socket")
            .arg(&socket)
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        // In a process group of its own, which Ctrl-C does not reach.
        let undertaker = Command::new("bash")
            .args(["-c", "cat; kill -KILL $0", &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        Self { child, undertaker, socket, output }
    }

    /// All that it has written so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    /// Waits for a text in what it writes: a thread of its own writes it, maybe after what it tells of.
    pub async fn until_it_says(&self, text: &str) {
        until(SOON, || self.output(), async || self.output().contains(text).then_some(())).await;
    }

    /// Waits for an audit line about the pod of that UID.
    pub async fn line_about(&self, uid: &str, so: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        until(SOON, || self.output(), async || self.lines_about(uid).into_iter().find(&so)).await
    }

    /// Its audit lines about the pod of that UID, by now.
    pub fn lines_about(&self, uid: &str) -> Vec<serde_json::Value> {
        let uid = format!("\"pod.uid\":\"{uid}\"");
        self.output()
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n') && line.contains(&uid))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// A page of its local socket; `None` while nobody answers there.
    pub async fn page(&self, path: &str) -> Option<(u16, String)> {
        let (status, body) = rolecall::admin::ask(&self.socket, path).await.ok()?;
        Some((status.as_u16(), body))
    }

    pub async fn until_ready(&self) {
        self.until_page("/readyz", |status, _| status == 200).await;
    }

    /// Waits for a page to be so.
    pub async fn until_page(&self, path: &str, so: impl Fn(u16, &str) -> bool) -> String {
        until(
            SOON,
            || self.output(),
            async || self.page(path).await.filter(|(status, body)| so(*status, body)).map(|(_, body)| body),
        )
        .await
    }

    /// `rolecall probe WHAT`
    pub fn probe(&self, what: &str) -> Output {
        Command::new(ROLECALL).args(["probe", what, "--local-socket"]).arg(&self.socket).output().unwrap()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// How it ended; waits for it.
    pub async fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        let mut looks = interval(LOOK);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < SOON, "it still runs: {}", self.output());
            looks.tick().await;
        }
    }

    /// No key, session token or JWT in anything it wrote, whoever was given them.
    pub fn has_told_no_secret(&self) {
        tells_no_secret(&self.output());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Before its subject, whose process id is another's afterwards.
        for process in [&mut self.undertaker, &mut self.child] {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// From now on no agent may write it.
pub fn keep_secret(secret: &str) {
    SECRETS.lock().unwrap().insert(secret.to_owned());
}

/// No key, session token or JWT in what agents wrote.
pub fn tells_no_secret(output: &str) {
    assert!(!output.contains("eyJ"), "a JWT: {output}");
    for secret in &*SECRETS.lock().unwrap() {
        assert!(!output.contains(secret), "{secret}: {output}");
    }
}

/// One request on a connection that may have been used before; `None` if the agent closed it instead.
pub async fn ask(stream: &mut TcpStream, to: SocketAddr) -> Option<Answer> {
    let answer = http::ask(stream, &http::request(to)).await?;
    if answer.status == 200 {
        let document = answer.json();
        for field in ["SecretAccessKey", "Token"] {
            keep_secret(document[field].as_str().unwrap());
        }
    }
    Some(answer)
}

/// Looks until there is something to see.
pub async fn until<T>(within: Duration, state: impl Fn() -> String, look: impl AsyncFn() -> Option<T>) -> T {
    let begun = Instant::now();
    let mut looks = interval(LOOK);
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(begun.elapsed() < within, "not so within {within:?}: {}", state());
        looks.tick().await;
    }
}

//! The agent's process on a real kernel: what it has given up, and what others of its node can do to it.

#![cfg(target_os = "linux")]

#[path = "support/agent.rs"]
mod agent;
#[path = "support/http.rs"]
mod http;
#[path = "support/net.rs"]
mod net;
#[path = "support/netns.rs"]
mod netns;

#[path = "harden/files.rs"]
mod files;
#[path = "harden/process.rs"]
mod process;
#[path = "harden/rivals.rs"]
mod rivals;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use agent::{Agent, ROLECALL};
use netns::{AGENT_USER, Node};
use serde_json::json;

/// A node with its addresses and guard, and the shipped binary as its agent: its own user from the start, no capability.
struct Hardened {
    node: Node,
    kubeconfig: PathBuf,
}

impl Hardened {
    fn new(test: &str) -> Option<Self> {
        let node = Node::new(test)?;
        if !netns::has_users() {
            netns::skipped(test, "a second user needs root outside of the namespaces");
            return None;
        }
        net::install_for(&node, AGENT_USER, &[]);
        // It needs no API server to be on its addresses.
        let nowhere = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "none",
            "clusters": [{"name": "none", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": "none", "user": {"token": "none"}}],
            "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
        });
        let folder = PathBuf::from(format!("/run/{test}-kubeconfig"));
        fs::create_dir(&folder).unwrap();
        let kubeconfig = folder.join("config");
        fs::write(&kubeconfig, nowhere.to_string()).unwrap();
        Some(Self { node, kubeconfig })
    }

    /// The socket's directory is what `net install` made.
    fn socket(&self) -> String {
        format!("{}/agent.sock", net::run_dir(&self.node))
    }

    fn agent(&self, name: &str, args: &[&str]) -> Agent {
        // It reads the processes of the node, as its user and through Landlock; an agent that cannot does not start.
        let args = [&["--identity", "kernel"], args].concat();
        let command = as_user(&self.node, AGENT_USER, ROLECALL);
        Agent::start_by(command, name, &self.socket(), &self.kubeconfig, &args)
    }

    async fn running(&self, name: &str, args: &[&str]) -> Agent {
        let agent = self.agent(name, args);
        agent.until_page("/livez", |status, _| status == 200).await;
        agent
    }
}

/// A command of another user, without any capability, as a container runtime starts it.
fn as_user(node: &Node, user: u32, program: &str) -> Command {
    let mut command = node.command("setpriv");
    let user = user.to_string();
    command.args([
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ]);
    command.arg(program);
    command
}

//! A real kube-apiserver and etcd for one test binary: started by `tests/cluster/up`, gone when the process is.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// The running API server.
pub(crate) struct ApiServer {
    /// Kubeconfig, certificates, logs; removed at the end.
    state: PathBuf,
    /// Takes everything down when its standard input closes: when this process ends, however it ends.
    _undertaker: Child,
}

impl ApiServer {
    /// The one of this process, started by the first test that asks.
    ///
    /// # Panics
    /// When it cannot run: a test that needs it then fails, and is not skipped.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<ApiServer> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn start() -> Self {
        let name = format!("t{}", std::process::id());
        let state = PathBuf::from("/var/tmp").join(format!("rolecall-{name}"));
        let port = free_port();
        let script = |script: &str| {
            let mut command =
                Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster").join(script));
            command.env("CLUSTER_NAME", &name).env("CLUSTER_STATE", &state).env("APISERVER_PORT", &port);
            command
        };
        // Before `up`, so that a run that is interrupted half way leaves nothing either.
        let down = script("down");
        let undertaker = Command::new("bash")
            .args(["-c", r#"cat; exec "$0""#])
            .arg(down.get_program())
            .envs(down.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("bash runs");
        let up = script("up").arg("apiserver-only").output().expect("bash runs");
        assert!(up.status.success(), "no API server to test with: {}", String::from_utf8_lossy(&up.stderr));
        Self { state, _undertaker: undertaker }
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }
}

/// Below those that the kernel hands out to connections: the API server binds it a moment later.
fn free_port() -> String {
    let first = 20_000 + std::process::id() % 10_000;
    (first..first + 1_000)
        .find(|&port| TcpListener::bind(("127.0.0.1", port as u16)).is_ok())
        .expect("one port of a thousand is free")
        .to_string()
}

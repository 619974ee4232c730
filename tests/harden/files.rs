//! Which files are closed to the agent, and that what it needs is not.

use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use nix::sys::signal::Signal;
use rolecall::config::{self, Config};
use rolecall::harden::{self, FileSystem};

use crate::netns::{self, AGENT_USER};
use crate::{Hardened, net};

fn config(args: &[&str], variables: &[(&str, &str)]) -> Config {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: config::Args,
    }
    let args = ["rolecall", "--node-name", "n"].iter().chain(args);
    let parsed = <Cli as clap::Parser>::try_parse_from(args).unwrap();
    let variable =
        |name: &str| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
    Config::from_args(parsed.args, variable).unwrap()
}

/// Runs `work` on a thread to which all is closed but what an agent of this configuration needs.
fn closed(test: &str, args: &[&str], work: impl FnOnce() + Send) {
    closed_with(test, args, &[], work);
}

/// The same, where the agent's environment has these variables.
fn closed_with(test: &str, args: &[&str], variables: &[(&str, &str)], work: impl FnOnce() + Send) {
    let config = config(args, variables);
    thread::scope(|scope| {
        let thread = scope.spawn(|| match harden::files(&config).unwrap() {
            FileSystem::Open => netns::skipped(test, "this kernel has no Landlock"),
            FileSystem::Closed | FileSystem::PartlyClosed => work(),
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn refused<T>(result: std::io::Result<T>) -> bool {
    matches!(result, Err(err) if err.kind() == ErrorKind::PermissionDenied)
}

#[test]
fn no_other_file_is_read_written_made_or_run() {
    let folder = tempfile::tempdir().unwrap();
    let (file, kubeconfig) = (folder.path().join("file"), folder.path().join("own/config"));
    fs::write(&file, "not for the agent").unwrap();
    fs::create_dir(folder.path().join("own")).unwrap();
    fs::write(&kubeconfig, "{}").unwrap();
    let socket = folder.path().join("run/agent.sock");
    fs::create_dir(folder.path().join("run")).unwrap();
    let args = ["--kubeconfig", kubeconfig.to_str().unwrap(), "--local-socket", socket.to_str().unwrap()];
    closed("no_other_file", &args, || {
        assert!(refused(fs::read(&file)));
        assert!(refused(fs::read("/etc/passwd")));
        assert!(refused(fs::read_dir(folder.path())));
        assert!(refused(fs::write(&file, "x")));
        assert!(refused(fs::write(&kubeconfig, "x")), "what it reads it may not write");
        assert!(refused(fs::write(folder.path().join("run/left-behind"), "x")));
        assert!(refused(fs::create_dir(folder.path().join("run/left-behind"))));
        assert!(refused(Command::new("/bin/true").status()));
        let ours = std::env::current_exe().unwrap();
        assert!(refused(Command::new(ours).status()), "nor itself");
    });
}

#[test]
fn the_agents_work_is_still_possible() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("own/config");
    let token = folder.path().join("elsewhere/token");
    for file in [&kubeconfig, &token] {
        fs::create_dir(file.parent().unwrap()).unwrap();
    }
    let named = serde_json::json!({"users": [{"name": "me", "user": {"tokenFile": token}}]});
    fs::write(&kubeconfig, named.to_string()).unwrap();
    fs::write(&token, "first").unwrap();
    let socket = folder.path().join("run/agent.sock");
    fs::create_dir(folder.path().join("run")).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    let args = ["--kubeconfig", kubeconfig.to_str().unwrap(), "--local-socket", socket.to_str().unwrap()];
    // The kubelet, to which nothing is closed: the agent waits at the same two points.
    let (step, old) = (Arc::new(Barrier::new(2)), token.clone());
    let kubelet = Arc::clone(&step);
    thread::spawn(move || {
        kubelet.wait();
        let new = old.with_extension("new");
        fs::write(&new, "second").unwrap();
        fs::rename(new, old).unwrap();
        kubelet.wait();
    });
    closed("work", &[&args[..], &["--identity", "kernel"]].concat(), || {
        assert!(fs::read(&kubeconfig).is_ok());
        // A renewed token is another file of the same name.
        step.wait();
        step.wait();
        assert_eq!(fs::read_to_string(&token).unwrap(), "second");

        for file in ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"] {
            assert!(!refused(fs::read(file)), "{file}");
        }
        assert!(("localhost", 80).to_socket_addrs().unwrap().next().is_some());
        assert!(fs::read_dir("/etc/ssl/certs").is_ok());

        // The last agent's socket makes way.
        fs::remove_file(&socket).unwrap();
        drop(UnixListener::bind(&socket).unwrap());

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap();

        assert!(fs::read_to_string("/proc/1/cgroup").is_ok());
        assert!(fs::read_to_string(format!("/proc/{}/net/tcp", std::process::id())).is_ok());
    });
    closed("no_processes", &[&args[..], &["--identity", "ip"]].concat(), || {
        assert!(refused(fs::read("/proc/1/cgroup")), "--identity=ip asks nobody's")
    });
}

#[test]
fn of_all_programs_the_credential_process_runs_and_it_is_closed_in_too() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let document = r#"{"Version": 1, "AccessKeyId": "AKIA1", "SecretAccessKey": "x"}"#;
    for (directory, file) in [("config", "config/config"), ("keys", "keys/key"), ("other", "other/key")] {
        fs::create_dir(at(directory)).unwrap();
        fs::write(at(file), document).unwrap();
    }
    let configure = |command: &str| {
        fs::write(at("config/config"), format!("[default]\ncredential_process = {command}\n")).unwrap();
    };
    configure(&format!("/bin/cat {}", at("keys/key")));
    let args = ["--sts-mode=assume-role", "--allow-role=*=*"];
    let variables = [("AWS_CONFIG_FILE", &*at("config/config"))];
    let source = config(&args, &variables).sts_mode.base().unwrap().clone();
    closed_with("credential_process", &args, &variables, || {
        let (sender, brought) = std::sync::mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let base = Arc::new(rolecall::base_credentials::BaseCredentials::new(source.clone()));
        runtime.block_on(async {
            let mut changes = base.changes();
            let keeper = tokio::spawn({
                let base = Arc::clone(&base);
                async move { base.keep().await }
            });
            changes.changed().await.unwrap();
            keeper.abort();
            sender.send(base.current().unwrap().keys.access_key_id.clone()).unwrap();
        });
        assert_eq!(brought.recv().unwrap(), "AKIA1");
        let runs = |program: &str, file: &str| {
            // What it is not given is piped: /dev/null is closed, too.
            let piped = std::process::Stdio::piped;
            let mut command = Command::new(program);
            command.arg(file).stdin(piped()).stdout(piped()).stderr(piped());
            command.spawn().and_then(|child| child.wait_with_output())
        };
        assert!(runs("/bin/cat", &at("keys/key")).unwrap().status.success());
        let elsewhere = runs("/bin/cat", &at("other/key")).unwrap();
        assert!(!elsewhere.status.success() && elsewhere.stdout.is_empty(), "{elsewhere:?}");
        assert!(refused(runs("/bin/ls", "/")));
        assert!(refused(fs::read(at("other/key"))));
    });
}

#[test]
fn a_file_directly_in_the_root_opens_itself_and_not_all_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("own/config"), folder.path().join("other"));
    fs::create_dir(folder.path().join("own")).unwrap();
    fs::write(&other, "not for the agent").unwrap();
    // Not a file of ours: tests write nothing there.
    let words = "/bin/cat /nothing /tmp/../nothing --etc=/etc /";
    fs::write(&path, format!("[default]\ncredential_process = {words}\n")).unwrap();
    let base = ["--sts-mode=assume-role", "--allow-role=*=*"];
    let issuer = [
        "--token-source=issuer",
        "--issuer-url=https://issuer.example.com",
        "--issuer-token-file=/nothing.token",
    ];
    let closed_to_all_else = || {
        assert!(refused(fs::read_dir("/")));
        assert!(refused(fs::read(&other)));
    };
    closed_with("root", &base, &[("AWS_CONFIG_FILE", path.to_str().unwrap())], || {
        assert!(fs::read(&path).is_ok());
        assert!(fs::read("/etc/passwd").is_ok(), "it is named");
        closed_to_all_else();
    });
    closed_with("root", &base, &[("AWS_CONFIG_FILE", "/nothing")], closed_to_all_else);
    closed("root", &issuer, closed_to_all_else);
    closed("root", &["--kubeconfig=/nothing"], closed_to_all_else);
}

#[test]
fn a_ca_bundle_is_readable_after_each_renewal() {
    let folder = tempfile::tempdir().unwrap();
    // As a kubelet mounts a Secret: ca.crt -> ..data/ca.crt, and ..data -> the last renewal.
    let (mount, data) = (folder.path().join("sts-ca"), folder.path().join("sts-ca/..data"));
    let renewed = |name: &str| {
        let _ = fs::remove_dir_all(mount.join(name));
        fs::create_dir_all(mount.join(name)).unwrap();
        fs::copy(
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/emulator/ca.pem"),
            mount.join(name).join("ca.crt"),
        )
        .unwrap();
        std::os::unix::fs::symlink(name, mount.join("new")).unwrap();
        fs::rename(mount.join("new"), &data).unwrap();
    };
    renewed("..1");
    std::os::unix::fs::symlink("..data/ca.crt", mount.join("ca.crt")).unwrap();
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(mount.join("ca.crt"), elsewhere.join("link.pem")).unwrap();
    let other = &folder.path().join("other");
    fs::write(other, "not for the agent").unwrap();
    for bundle in &[mount.join("ca.crt"), elsewhere.join("link.pem")] {
        // The kubelet is asked over a channel, which a test that fails closes.
        let (ask, asked) = mpsc::channel();
        let (done, renewal) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                for name in asked {
                    renewed(name);
                    done.send(()).unwrap();
                }
            });
            closed("bundle", &["--sts-ca-bundle", bundle.to_str().unwrap()], move || {
                assert!(fs::read(bundle).is_ok());
                for name in ["..2", "..3"] {
                    ask.send(name).unwrap();
                    renewal.recv().unwrap();
                    assert!(fs::read(bundle).is_ok(), "{}", bundle.display());
                }
                assert!(refused(fs::read(other)));
                assert!(refused(fs::write(bundle, "x")));
            });
        });
    }
}

#[test]
fn a_running_agent_touches_nothing_in_a_directory_that_was_put_in_the_place_of_its_own() {
    let Some(world) = Hardened::new("swapped") else { return };
    world.node.run(async || {
        let mut agent = world.running("swapped", &[]).await;
        if agent.output().contains("this kernel has no Landlock") {
            return netns::skipped("swapped", "this kernel has no Landlock");
        }
        // Its own user's, so nothing but Landlock is in the way.
        let run_dir = net::run_dir(&world.node);
        fs::rename(&run_dir, format!("{run_dir}-before")).unwrap();
        fs::create_dir(&run_dir).unwrap();
        std::os::unix::fs::chown(&run_dir, Some(AGENT_USER), None).unwrap();
        fs::write(&agent.socket, "somebody's").unwrap();
        agent.signal(Signal::SIGTERM);
        assert_eq!(agent.ended().await.code(), Some(0), "{}", agent.output());
        assert!(agent.socket.exists(), "an agent removes its socket when it leaves");
    });
}

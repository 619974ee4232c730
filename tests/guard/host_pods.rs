//! Pods on the host network, told from the host by their cgroup. The cgroups are real, below the one that the tests run in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

use nix::mount::{MsFlags, mount};

use super::*;

const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup for all pods and some below it; gone with this value.
struct Cgroups {
    /// From the root, as a flag has it.
    pods: String,
}

impl Cgroups {
    /// `None` where this machine has no cgroup version 2 that we may write to, which has been said.
    fn new(test: &str) -> Option<Self> {
        match root().and_then(|own| {
            let pods = format!("{own}rolecall-{test}-{}/kubepods.slice", std::process::id());
            fs::create_dir_all(Path::new(ROOT).join(&pods)).map_err(|err| format!("{pods}: {err}"))?;
            Ok(pods)
        }) {
            Ok(pods) => Some(Self { pods }),
            Err(why) => {
                netns::skipped(test, &format!("cgroup version 2: {why}"));
                None
            }
        }
    }

    fn make(&self, name: &str) -> String {
        let path = format!("{}/{name}", self.pods);
        fs::create_dir(Path::new(ROOT).join(&path)).unwrap();
        path
    }

    fn remove(path: &str) {
        fs::remove_dir(Path::new(ROOT).join(path)).unwrap();
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let pods = Path::new(ROOT).join(&self.pods);
        let below = fs::read_dir(&pods).into_iter().flatten().flatten().map(|entry| entry.path());
        let all: Vec<PathBuf> = below
            .filter(|path| path.is_dir())
            .chain([pods.clone(), pods.parent().unwrap().to_owned()])
            .collect();
        for path in all {
            let _ = fs::remove_dir(path);
        }
    }
}

/// Our own cgroup, as the beginning of a path. Beside version 1 the tree stands in `unified`; nft looks for it at the root.
fn root() -> Result<String, String> {
    static MOUNTED: OnceLock<Result<(), String>> = OnceLock::new();
    let unified = format!("{ROOT}/unified");
    let is_v2 = |path: &str| fs::exists(format!("{path}/cgroup.controllers")).unwrap_or(false);
    MOUNTED
        .get_or_init(|| match (is_v2(ROOT), is_v2(&unified)) {
            (true, _) => Ok(()),
            // In the tests' own mount namespace.
            (false, true) => mount(Some(&*unified), ROOT, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|err| format!("mount: {err}")),
            (false, false) => Err("it is not mounted".into()),
        })
        .clone()?;
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|err| err.to_string())?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("no line for it")?.to_owned();
    Ok(if own.is_empty() { own } else { own + "/" })
}

/// What a process of the host network in that cgroup meets at `to`.
fn from(node: &Node, cgroup: &str, to: &str) -> Result<(), String> {
    let (host, port) = to.rsplit_once(':').unwrap();
    let target = format!("/dev/tcp/{}/{port}", host.trim_matches(['[', ']']));
    let mut command = node.command("bash");
    // The socket's cgroup is the one of its maker at that moment.
    command.args(["-c", "echo $$ >$0 && exec 3<>$1", &format!("{ROOT}/{cgroup}/cgroup.procs"), &target]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn is_refused(outcome: Result<(), String>) -> bool {
    matches!(outcome, Err(why) if why.contains("Connection refused"))
}

#[test]
fn pods_on_the_host_network_are_refused_and_the_host_and_the_exempt_are_not() {
    let Some(world) = World::new("host_pods") else { return };
    let Some(cgroups) = Cgroups::new("host_pods") else { return };
    let (pod, exempt) = (cgroups.make("kubepods-pod1.slice"), cgroups.make("kubepods-pod2.slice"));
    install(&world.node, &ENFORCE);
    for at in METADATA {
        assert_eq!(from(&world.node, &pod, at), Ok(()), "{at}: without the flag this shows nothing");
    }
    let (all, gone) = (&*cgroups.pods, format!("{}/gone", cgroups.pods));
    let with = ["--metadata-guard-pods-cgroup", all, "--metadata-guard-exempt-cgroup", &exempt];
    let with = [&ENFORCE[..], &with, &["--metadata-guard-exempt-cgroup", &gone]].concat();
    let said = install(&world.node, &with);
    assert!(said.contains(&format!("no cgroup {gone} now")), "{said}");
    for at in METADATA {
        assert!(is_refused(from(&world.node, &pod, at)), "{at}");
        assert_eq!(from(&world.node, &exempt, at), Ok(()), "{at}");
        assert_eq!(outcome(&world.node, at), Ok(()), "{at}: the host's own");
        assert_eq!(
            outcome(&world.routed, at),
            Err(ErrorKind::ConnectionRefused),
            "{at}: a pod of its own network"
        );
    }
    let said = world.verify(&with);
    assert!(said.contains("2 packets of pods on the host network: refused"), "{said}");
}

#[test]
fn a_cgroup_that_is_made_anew_is_named_anew() {
    let Some(world) = World::new("cgroup_anew") else { return };
    let Some(cgroups) = Cgroups::new("cgroup_anew") else { return };
    let exempt = cgroups.make("kubepods-pod1.slice");
    let with = ["--metadata-guard-pods-cgroup", &cgroups.pods, "--metadata-guard-exempt-cgroup", &exempt];
    let with = [&ENFORCE[..], &with].concat();
    install(&world.node, &with);
    let agent = FakeAgent::start(&world.node, "the-word", &ALL);
    Cgroups::remove(&exempt);
    Cgroups::remove(&cgroups.pods);
    fs::create_dir(Path::new(ROOT).join(&cgroups.pods)).unwrap();
    let exempt = cgroups.make("kubepods-pod1.slice");
    let pod = cgroups.make("kubepods-pod2.slice");
    assert_eq!(from(&world.node, &pod, METADATA[0]), Ok(()), "the rule is for a cgroup that has gone");
    let proof = agent.verify(&world.node, &with);
    assert!(
        text(&proof).contains("FAILED  rules: missing in table inet rolecall: `socket cgroupv2"),
        "{}",
        text(&proof)
    );
    install(&world.node, &with);
    assert!(is_refused(from(&world.node, &pod, METADATA[0])));
    assert_eq!(from(&world.node, &exempt, METADATA[0]), Ok(()));
    assert!(agent.verify(&world.node, &with).status.success());
}

#[test]
fn a_cgroup_that_cannot_be_named_fails_loudly_and_leaves_the_other_rules() {
    let Some(world) = World::new("no_cgroup") else { return };
    let with = [&ENFORCE[..], &["--metadata-guard-pods-cgroup", "rolecall-none/kubepods.slice"]].concat();
    let said = net(&world.node, "install", &[&["--run-dir", &run_dir(&world.node)], &with[..]].concat());
    assert_eq!(said.status.code(), Some(1));
    assert!(text(&said).contains("FAILED  metadata guard: pods on the host network: "), "{}", text(&said));
    assert_eq!(outcome(&world.routed, METADATA[0]), Err(ErrorKind::ConnectionRefused));
}

#[test]
fn the_keeper_finds_a_cgroup_that_is_made_anew_by_itself() {
    let Some(world) = World::new("cgroup_kept") else { return };
    let Some(cgroups) = Cgroups::new("cgroup_kept") else { return };
    let with = [&ENFORCE[..], &["--metadata-guard-pods-cgroup", &cgroups.pods]].concat();
    install(&world.node, &with);
    let mut keep = net_command(&world.node, "keep");
    let mut keeper = keep.args(&with).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    Cgroups::remove(&cgroups.pods);
    fs::create_dir(Path::new(ROOT).join(&cgroups.pods)).unwrap();
    let pod = cgroups.make("kubepods-pod1.slice");
    let begun = tokio::time::Instant::now();
    while !is_refused(from(&world.node, &pod, METADATA[0])) {
        // It looks every 5 s.
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    keeper.kill().unwrap();
    keeper.wait().unwrap();
}

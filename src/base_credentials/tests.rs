use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use super::*;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// The source that these variables set up, for an agent that listens at 127.0.0.1:9902.
fn choose(variables: &[(&str, &str)]) -> Result<Source, String> {
    let variables: HashMap<&str, &str> = variables.iter().copied().collect();
    let ours = [SocketAddr::from(([127, 0, 0, 1], 9902)), SocketAddr::from(([169, 254, 170, 23], 9902))];
    Source::choose(|name| variables.get(name).map(|value| (*value).to_owned()), &ours)
}

fn base(variables: &[(&str, &str)]) -> Arc<BaseCredentials> {
    Arc::new(BaseCredentials::new(choose(variables).unwrap()))
}

/// Keeps them, until the test ends.
fn kept(base: &Arc<BaseCredentials>) {
    let base = Arc::clone(base);
    tokio::spawn(async move { base.keep().await });
}

async fn changed(changes: &mut watch::Receiver<u64>) {
    timeout(Duration::from_secs(60), changes.changed()).await.expect("other keys").unwrap();
}

fn document(id: &str, token: &str, life: Duration) -> String {
    let expiration = time::plus(time::now(), life);
    serde_json::json!({
        "Version": 1, "Code": "Success", "AccessKeyId": id, "SecretAccessKey": SECRET, token: "session",
        "Expiration": format!("{expiration:.0}"),
    })
    .to_string()
}

#[test]
fn the_first_source_that_is_set_up_is_the_one() {
    let keys = [("AWS_ACCESS_KEY_ID", "AKIA1"), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    let file = [("AWS_SHARED_CREDENTIALS_FILE", "/f")];
    let container = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials")];
    let named = |variables: &[&[(&str, &str)]]| choose(&variables.concat()).unwrap().to_string();
    assert_eq!(named(&[&container, &file, &keys]), "environment");
    assert_eq!(named(&[&container, &file]), "profile default of /f");
    assert_eq!(named(&[&[("AWS_CONFIG_FILE", "/c"), ("AWS_PROFILE", "p")], &file]), "profile p of /f and /c");
    assert_eq!(named(&[&container]), "container credentials of http://169.254.170.23/v1/credentials");
    assert_eq!(
        named(&[&[("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/x")]]),
        "container credentials of http://169.254.170.2/x"
    );
    assert_eq!(named(&[]), "instance metadata at http://169.254.169.254");
}

#[test]
fn a_source_that_is_set_up_by_half_or_is_none_is_a_mistake() {
    const FULL: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
    for (variables, says) in [
        (&[("AWS_ACCESS_KEY_ID", "AKIA1")][..], "AWS_SECRET_ACCESS_KEY is not"),
        (&[("AWS_SECRET_ACCESS_KEY", SECRET)], "AWS_ACCESS_KEY_ID is not"),
        (&[("AWS_ACCESS_KEY_ID", "AKIA 1"), ("AWS_SECRET_ACCESS_KEY", SECRET)], "space"),
        (&[("AWS_WEB_IDENTITY_TOKEN_FILE", "/t")], "--sts-mode=web-identity"),
        (&[(FULL, "http://example.com/x")], "loopback"),
        (&[(FULL, "https://169.254.170.2/x")], "loopback"),
        (&[(FULL, "no url")], "URL"),
        (&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", "ftp://x")], "http://HOST"),
    ] {
        let why = choose(variables).unwrap_err();
        assert!(why.contains(says) && !why.contains(SECRET), "{variables:?}: {why}");
    }
}

#[test]
fn our_own_address_is_no_source() {
    for uri in [
        "http://169.254.170.23:9902/v1/credentials",
        "http://127.0.0.1:9902/v1/credentials",
        "http://localhost:9902/v1/credentials",
    ] {
        let why = choose(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri)]).unwrap_err();
        assert!(why.contains("made of themselves"), "{uri}: {why}");
    }
    let why = choose(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9902/")]).unwrap_err();
    assert!(why.contains("made of themselves"), "{why}");
    // EKS's own agent, and ECS's, answer there.
    for uri in ["http://169.254.170.23/v1/credentials", "http://169.254.170.2:80/"] {
        choose(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri)]).unwrap();
    }
}

#[test]
fn neither_debug_nor_an_error_shows_a_key() {
    let source = choose(&[("AWS_ACCESS_KEY_ID", "AKIA1"), ("AWS_SECRET_ACCESS_KEY", SECRET)]).unwrap();
    assert!(!format!("{source:?}").contains(SECRET), "{source:?}");
    let why = BaseKeys::from_document(
        format!("{{\"AccessKeyId\":\"A\",\"SecretAccessKey\":[\"{SECRET}\"]}}").as_bytes(),
    );
    assert!(!format!("{why:?}").contains(SECRET), "{why:?}");
    let token = ("AWS_CONTAINER_AUTHORIZATION_TOKEN", SECRET);
    let source = choose(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1/"), token]).unwrap();
    assert!(!format!("{source:?}").contains(SECRET), "{source:?}");
}

fn write_keys(path: &Path, id: &str) {
    fs::write(path, format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {SECRET}\n"))
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_replaced_by_its_symlink_gives_the_new_keys_without_a_restart() {
    // As the kubelet does it: the files are links through `..data`, which is renamed over.
    let mount = tempfile::tempdir().unwrap();
    let at = |name: &str| mount.path().join(name);
    let publish = |version: &str, id: &str| {
        fs::create_dir(at(version)).unwrap();
        write_keys(&at(version).join("credentials"), id);
        std::os::unix::fs::symlink(version, at("..new")).unwrap();
        fs::rename(at("..new"), at("..data")).unwrap();
    };
    publish("..1", "AKIA1");
    std::os::unix::fs::symlink("..data/credentials", at("credentials")).unwrap();
    let base = base(&[("AWS_SHARED_CREDENTIALS_FILE", at("credentials").to_str().unwrap())]);
    let mut changes = base.changes();
    kept(&base);
    changed(&mut changes).await;
    assert_eq!(base.current().unwrap().keys.access_key_id, "AKIA1");

    publish("..2", "AKIA2");
    fs::remove_dir_all(at("..1")).unwrap();
    let begun = Instant::now();
    changed(&mut changes).await;
    assert_eq!(base.current().unwrap().keys.access_key_id, "AKIA2");
    assert!(begun.elapsed() <= LOOK, "{:?}", begun.elapsed());

    // A look that brings nothing takes nothing away, and neither does one that brings the same.
    fs::remove_file(at("credentials")).unwrap();
    sleep(4 * LOOK).await;
    assert_eq!(base.current().unwrap().keys.access_key_id, "AKIA2");
    assert!(base.why().unwrap().contains("No such file"));
    std::os::unix::fs::symlink("..data/credentials", at("credentials")).unwrap();
    sleep(4 * LOOK).await;
    assert_eq!((base.why(), changes.has_changed().unwrap()), (None, false));
}

#[tokio::test(start_paused = true)]
async fn without_any_every_source_that_was_tried_is_named_with_its_reason() {
    let base = base(&[("AWS_SHARED_CREDENTIALS_FILE", "/nowhere/credentials")]);
    kept(&base);
    sleep(LOOK).await;
    let why = base.current().unwrap_err().to_string();
    assert_eq!(
        why,
        "no base credentials; tried, in this order: environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY not set); \
         profile default of /nowhere/credentials: /nowhere/credentials: No such file or directory (os error 2); nothing \
         after it is tried, because this is what is set up"
    );
    let base = BaseCredentials::new(choose(&[("AWS_EC2_METADATA_DISABLED", "true")]).unwrap());
    base.failed(base.source.read(&mut process::Last::default()).await.unwrap_err());
    let why = base.current().unwrap_err().to_string();
    for part in
        ["environment (", "files (", "container (", "instance metadata: AWS_EC2_METADATA_DISABLED is set"]
    {
        assert!(why.contains(part), "{why}");
    }
}

fn program(folder: &Path, script: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("helper");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let config = folder.join("config");
    fs::write(&config, format!("[default]\ncredential_process = {} a 'b c'\n", path.display())).unwrap();
    config.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_program_is_run_with_its_arguments_and_again_only_when_its_keys_are_half_through() {
    let folder = tempfile::tempdir().unwrap();
    let (runs, answer) = (folder.path().join("runs"), folder.path().join("answer"));
    fs::write(&answer, document("ASIA1", "SessionToken", Duration::from_secs(3600))).unwrap();
    let script = format!("echo \"$#-$2\" >> {}; cat {}", runs.display(), answer.display());
    let source = choose(&[("AWS_CONFIG_FILE", &program(folder.path(), &script))]).unwrap();
    let mut last = process::Last::default();
    for _ in 0..3 {
        let keys = source.read(&mut last).await.unwrap();
        assert_eq!((keys.keys.access_key_id.as_str(), keys.keys.session_token.is_some()), ("ASIA1", true));
        assert_eq!(source.look_again(&keys), LOOK);
    }
    assert_eq!(fs::read_to_string(&runs).unwrap(), "2-b c\n");
}

#[tokio::test]
async fn a_program_that_fails_is_told_by_its_status_and_by_nothing_that_it_prints() {
    let folder = tempfile::tempdir().unwrap();
    for (script, says) in [
        (format!("echo {SECRET}; echo {SECRET} >&2; exit 3"), "exit status: 3), with 41 bytes on stderr"),
        (format!("echo '{{\"Version\": 2, \"SecretAccessKey\": \"{SECRET}\"}}'"), "\"Version\": 1"),
        (format!("echo '{{\"Version\": 1, \"SecretAccessKey\": \"{SECRET}\"}}'"), "AccessKeyId"),
        (format!("echo {SECRET}"), "did not print JSON"),
    ] {
        let source = choose(&[("AWS_CONFIG_FILE", &program(folder.path(), &script))]).unwrap();
        let why = source.read(&mut process::Last::default()).await.unwrap_err();
        assert!(why.contains(says) && !why.contains(SECRET), "{why}");
    }
}

/// An HTTP server that answers by method, path and what the head holds, and remembers what it was asked.
async fn serve(
    answers: impl Fn(&str) -> (u16, String) + Send + 'static,
) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let heads = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let (status, body) = answers(&head);
            heads.lock().unwrap().push(head);
            let (fields, body) = body.split_once("||").map_or(("", &*body), |(fields, body)| (fields, body));
            let answer = format!(
                "HTTP/1.1 {status} X\r\n{fields}content-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (format!("http://{at}"), asked)
}

#[tokio::test]
async fn a_containers_endpoint_is_shown_the_token_that_its_file_has_now() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "first\n").unwrap();
    let (url, asked) = serve(|_| (200, document("ASIA2", "Token", Duration::from_secs(3600)))).await;
    let source = choose(&[
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{url}/creds")),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "a word"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap()),
    ])
    .unwrap();
    for word in ["first", "second"] {
        fs::write(&token, word).unwrap();
        let keys = source.read(&mut process::Last::default()).await.unwrap();
        assert_eq!(keys.keys.access_key_id, "ASIA2");
        let next = source.look_again(&keys).as_secs();
        assert!((1790..=1800).contains(&next), "half of an hour: {next}");
        let head = asked.lock().unwrap().pop().unwrap();
        assert!(
            head.starts_with("GET /creds ") && head.contains(&format!("authorization: {word}\r\n")),
            "{head}"
        );
    }
}

#[tokio::test]
async fn an_agent_of_ours_by_another_name_is_found_by_its_answer() {
    let (url, _) = serve(|_| (503, "x-rolecall-instance: 1\r\n||{}".into())).await;
    let source = choose(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url)]).unwrap();
    let why = source.read(&mut process::Last::default()).await.unwrap_err();
    assert!(why.contains("made of themselves"), "{why}");
}

#[tokio::test]
async fn the_instance_is_asked_by_version_2_alone() {
    const ROLE: &str = "GET /latest/meta-data/iam/security-credentials/";
    let (url, asked) = serve(|head| match head.split(" HTTP").next().unwrap() {
        "PUT /latest/api/token" if head.contains("x-aws-ec2-metadata-token-ttl-seconds: ") => {
            (200, "word".into())
        }
        _ if !head.contains("x-aws-ec2-metadata-token: word\r\n") => (401, String::new()),
        ROLE => (200, "node-role".into()),
        path if path == format!("{ROLE}node-role") => {
            (200, document("ASIA3", "Token", Duration::from_secs(6 * 3600)))
        }
        _ => (404, String::new()),
    })
    .await;
    let source = choose(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url)]).unwrap();
    let keys = source.read(&mut process::Last::default()).await.unwrap();
    assert_eq!(keys.keys.access_key_id, "ASIA3");

    // Version 1 would answer a request without a session; it is never sent.
    asked.lock().unwrap().clear();
    let (old, asked) =
        serve(|head| if head.starts_with("GET") { (200, "x".into()) } else { (405, String::new()) }).await;
    let source = choose(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &old)]).unwrap();
    let why = source.read(&mut process::Last::default()).await.unwrap_err();
    assert!(why.contains("IMDSv2") && why.contains("405"), "{why}");
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn keys_are_kept_while_they_last_and_not_longer() {
    let base = base(&[]);
    let keys = |life: i64| BaseKeys {
        expiration: Some(Timestamp::now() + jiff::SignedDuration::from_millis(life)),
        ..BaseKeys::new("ASIA".into(), SECRET.into(), Some("t".into())).unwrap()
    };
    base.take(keys(-1));
    assert!(base.current().is_err(), "they had ended before they came");
    base.take(keys(60_000));
    base.failed("away".into());
    assert_eq!(base.current().unwrap().keys.access_key_id, "ASIA");
    // Time alone ends them.
    base.keys.store(Some(Arc::new(keys(-1))));
    let why = base.current().unwrap_err();
    assert!(matches!(&why, Error::Ended { why, .. } if why == "away"), "{why}");
}

/// What daemonset/ ships for IAM Roles Anywhere: the agent takes the command apart, and opens the certificate's folder to it.
#[test]
fn the_shipped_command_of_roles_anywhere_is_one_without_a_shell() {
    let map = include_str!("../../daemonset/base-credentials/roles-anywhere/config.yaml");
    let line = map.lines().find_map(|line| line.trim().strip_prefix("credential_process = ")).unwrap();
    let command = process::Command::parse(line).unwrap();
    assert_eq!(command.program(), Path::new("/aws_signing_helper"));
    let folder = Path::new("/var/run/secrets/rolecall.dev/roles-anywhere");
    assert_eq!(command.files(), [folder.join("tls.crt"), folder.join("tls.key")]);
}

//! `rolecall emulator` as a process: its file, its end, and the AWS CLI before it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aws_smithy_http_client::tls::TlsContext;
use rolecall::emulator::{Config, Emulator, Fault, IssuerConfig, RoleConfig};
use serde_json::json;

use crate::world::{ISSUER, USER, USER_KEY, USER_SECRET, WEB, World, client, here, raw, role, user};

#[tokio::test]
async fn all_mistakes_of_a_file_are_reported_together() {
    let config = Config {
        issuers: vec![
            IssuerConfig { url: "http://oidc.example.com".to_owned(), ..IssuerConfig::default() },
            IssuerConfig {
                url: ISSUER.to_owned(),
                jwks_file: Some("absent.json".into()),
                ..IssuerConfig::default()
            },
        ],
        roles: vec![
            RoleConfig {
                arn: "web".to_owned(),
                max_session_duration: Some("13h".to_owned()),
                ..RoleConfig::default()
            },
            role(
                WEB,
                json!({"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole",
                "Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}}),
            ),
        ],
        users: Vec::new(),
        faults: vec![Fault::default()],
        ..Config::default()
    };
    let mistakes =
        Emulator::bind(config, ([127, 0, 0, 1], 0).into()).await.map(|_| ()).unwrap_err().to_string();
    for expected in [
        "\"http://oidc.example.com\": url must be https",
        "cannot read absent.json",
        "role \"web\": arn must be",
        "max_session_duration must be between 1h and 12h",
        "role \"web\": trust_policy: the trust policy must be an object",
        "IpAddress aws:SourceIp",
        "fault 1: it does nothing",
    ] {
        assert!(mistakes.contains(expected), "{expected} in\n{mistakes}");
    }
}

#[tokio::test]
async fn the_command_reads_the_example_prints_its_url_and_stops_when_told() {
    let mut child = emulator_command(&here("example.yaml"));
    let url = first_line(&mut child);
    let answer = raw(&url, "GET /?Action=GetCallerIdentity&Version=2011-06-15 HTTP/1.1\r\n", "").await;
    answer.assert_refused(403, "MissingAuthenticationToken", "");
    let signed = client(&url, user(), TlsContext::default()).get_caller_identity().send().await.unwrap();
    assert_eq!(signed.arn(), Some(USER));
    let told = Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status().unwrap();
    assert!(told.success());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("GetCallerIdentity") && log.contains("MissingAuthenticationToken"), "{log}");
    assert!(!log.contains(USER_SECRET), "{log}");
}

#[test]
fn a_bad_file_ends_the_command_with_64() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bad.yaml");
    std::fs::write(&file, "users:\n  - arn: a\n    secret_access_key: hush\n    trust: {}\n").unwrap();
    let output = emulator_command(&file).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("bad.yaml") && said.contains("trust"), "{said}");
    assert!(!said.contains("hush"), "{said}");
}

/// The real AWS CLI, with nothing but the environment that a pod would have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_aws_cli_shows_the_assumed_role_and_the_user() {
    let Some(aws) = aws_cli() else { return };
    let world = World::new().await;
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, world.token(|_| {})).unwrap();
    let run = |variables: &[(&str, &str)]| {
        let mut command = Command::new(&aws);
        command.args(["sts", "get-caller-identity", "--query", "Arn", "--output", "text"]);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        command
            .envs(variables.iter().copied())
            .env("AWS_ENDPOINT_URL_STS", &world.url)
            .env("HOME", directory.path());
        command
            .env("AWS_REGION", "eu-west-1")
            .env("AWS_DEFAULT_REGION", "eu-west-1") // AWS CLI 1 reads only this
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("NO_PROXY", "127.0.0.1");
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        format!("{}{}", out.trim(), err.trim())
    };
    let role = run(&[
        ("AWS_ROLE_ARN", WEB),
        ("AWS_ROLE_SESSION_NAME", "cli"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
    ]);
    assert_eq!(role, "arn:aws:sts::111122223333:assumed-role/web/cli");
    let by_user = run(&[("AWS_ACCESS_KEY_ID", USER_KEY), ("AWS_SECRET_ACCESS_KEY", USER_SECRET)]);
    assert_eq!(by_user, USER);
    let wrong = run(&[("AWS_ACCESS_KEY_ID", USER_KEY), ("AWS_SECRET_ACCESS_KEY", "wrong")]);
    assert!(wrong.contains("An error occurred (SignatureDoesNotMatch)"), "{wrong}");
}

/// `ROLECALL_TEST_AWS_CLI`, else `aws` on the PATH. Without it this is no pass under CI, and is said elsewhere.
fn aws_cli() -> Option<PathBuf> {
    let named = std::env::var_os("ROLECALL_TEST_AWS_CLI").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        named.or_else(|| std::env::split_paths(&path).map(|dir| dir.join("aws")).find(|aws| aws.is_file()));
    if found.is_none() {
        let missing = "no AWS CLI: set ROLECALL_TEST_AWS_CLI or put aws on the PATH";
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        eprintln!("SKIPPED the_aws_cli_shows_the_assumed_role_and_the_user: {missing}");
    }
    found
}

fn emulator_command(config: &Path) -> std::process::Child {
    Command::new(env!("CARGO_BIN_EXE_rolecall"))
        .args(["emulator", "--listen", "127.0.0.1:0", "--config"])
        .arg(config)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn first_line(child: &mut std::process::Child) -> String {
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line)
        .unwrap();
    line.trim().to_owned()
}

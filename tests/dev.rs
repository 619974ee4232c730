//! `rolecall dev` as a stranger meets it: steps, environment, exit codes, and what it never prints.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};

fn dev(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolecall"));
    command.arg("dev").args(arguments).env_remove("AWS_REGION").env_remove("AWS_DEFAULT_REGION");
    command
}

fn run(arguments: &[&str]) -> Output {
    dev(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Served until dropped; knows the variables that it printed.
struct Served {
    child: Child,
    exports: Vec<(String, String)>,
}

impl Served {
    fn start(arguments: &[&str]) -> Self {
        let mut child = dev(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut exports = Vec::new();
        for line in BufReader::new(child.stdout.as_mut().unwrap()).lines() {
            let line = line.unwrap();
            if let Some((name, value)) = line.strip_prefix("export ").and_then(|line| line.split_once('=')) {
                exports.push((name.to_owned(), value.trim_matches('\'').to_owned()));
            }
            if line == "export BOTO_CONFIG=/dev/null" {
                break;
            }
        }
        Self { child, exports }
    }

    fn export(&self, name: &str) -> &str {
        &self.exports.iter().find(|(export, _)| export == name).unwrap_or_else(|| panic!("no {name}")).1
    }

    fn get(&self, authorization: &str) -> String {
        let address = self.export("AWS_CONTAINER_CREDENTIALS_FULL_URI").split('/').nth(2).unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        let head = format!("GET /v1/credentials HTTP/1.0\r\nHost: {address}\r\n{authorization}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Ends it as a terminal does, and returns its exit code and what it said.
    fn interrupt(mut self) -> (Option<i32>, String) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), nix::sys::signal::SIGINT)
            .unwrap();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_step_is_told_and_no_secret() {
    let served = Served::start(&[]);
    let authorization = format!("Authorization: {}\r\n", served.export("AWS_CONTAINER_AUTHORIZATION_TOKEN"));
    let answer = served.get(&authorization);
    let document: serde_json::Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let (code, said) = served.interrupt();
    assert_eq!(code, Some(0));
    for step in [
        "real:",
        "not real:",
        "pod:             default/dev-pod",
        "ServiceAccount:  default/dev",
        "role:            arn:aws:iam::123456789012:role/dev",
        "token:           sub=system:serviceaccount:default:dev aud=sts.amazonaws.com",
        "STS:             ASIA",
        "expires:",
    ] {
        assert!(said.contains(step), "no {step:?} in {said}");
    }
    assert!(said.contains(document["AccessKeyId"].as_str().unwrap()));
    for secret in [document["SecretAccessKey"].as_str().unwrap(), document["Token"].as_str().unwrap(), "eyJ"]
    {
        assert!(!said.contains(secret), "{said}");
    }
}

#[test]
fn secrets_are_shown_to_who_asks_for_them() {
    let served = Served::start(&["--show-secrets"]);
    served.get(&format!("Authorization: {}\r\n", served.export("AWS_CONTAINER_AUTHORIZATION_TOKEN")));
    let (_, said) = served.interrupt();
    assert!(said.contains("eyJ"), "{said}");
}

#[test]
fn another_user_of_this_machine_gets_nothing() {
    let (one, other) = (Served::start(&[]), Served::start(&[]));
    let foreign = format!("Authorization: {}\r\n", other.export("AWS_CONTAINER_AUTHORIZATION_TOKEN"));
    assert!(one.get("").contains("AuthorizationRequired"));
    assert!(one.get(&foreign).contains("AuthorizationInvalid"), "the value is random");
}

#[test]
fn it_listens_on_loopback_only() {
    let output = run(&["--listen", "0.0.0.0:0"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).contains("is not loopback"));
}

#[test]
fn a_role_that_is_none_is_bad_usage() {
    let output = run(&["--role-arn", "demo", "--", "true"]);
    assert_eq!(output.status.code(), Some(64), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("--role-arn: \"demo\": "), "{}", text(&output.stderr));
}

#[test]
fn an_sts_that_is_no_url_is_bad_usage() {
    let output = run(&["--sts-endpoint-url", "foo", "--", "true"]);
    assert_eq!(output.status.code(), Some(64), "{}", text(&output.stderr));
}

#[test]
fn the_commands_exit_code_is_passed_on() {
    assert_eq!(run(&["--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(run(&["--", "sh", "-c", "kill -TERM $$"]).status.code(), Some(128 + 15));
    assert_eq!(run(&["--", "/no/such/command"]).status.code(), Some(127));
}

#[test]
fn the_command_sees_ours_and_no_other_source_of_credentials() {
    let output = dev(&["--", "env"])
        .env("AWS_ACCESS_KEY_ID", "AKIAOTHER")
        .env("AWS_SECRET_ACCESS_KEY", "other")
        .env("AWS_PROFILE", "other")
        .env("AWS_ROLE_ARN", "other")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", "/other")
        .env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/other")
        .env("NO_PROXY", "example.com")
        .output()
        .unwrap();
    let environment = text(&output.stdout);
    assert!(!environment.contains("other") && !environment.contains("AKIAOTHER"), "{environment}");
    for line in [
        "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:",
        "AWS_ENDPOINT_URL_STS=http://127.0.0.1:",
        "AWS_REGION=us-east-1",
        "AWS_EC2_METADATA_DISABLED=true",
        "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
        "NO_PROXY=example.com,127.0.0.1",
    ] {
        assert!(environment.lines().any(|entry| entry.starts_with(line)), "no {line} in {environment}");
    }
    let output = dev(&["--", "env"]).env("AWS_REGION", "eu-west-1").output().unwrap();
    assert!(text(&output.stdout).contains("AWS_REGION=eu-west-1"), "a region that is set stays");
}

#[test]
fn the_commands_standard_input_is_its_own() {
    let mut child = dev(&["--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello").unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout), "hello");
}

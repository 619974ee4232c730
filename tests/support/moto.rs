//! A moto server: an STS, an IAM and services that nobody here wrote.
//!
//! It checks no web-identity token. Once told to, it checks signatures, session tokens and role policies of all calls, and
//! then answers the unsigned ones, AssumeRoleWithWebIdentity among them, with 500.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::sdk::{Environment, tool};

/// The account in which moto makes roles.
pub(crate) const ACCOUNT: &str = "123456789012";
/// The region of all calls, but to a server that [`Moto::start_in`] has started.
pub(crate) const REGION: &str = "eu-central-1";

/// A running moto server; ends with this value.
pub(crate) struct Moto {
    process: Child,
    address: SocketAddr,
    /// It says which partition IAM and services are of.
    region: &'static str,
}

impl Moto {
    /// Starts a server on a free port of loopback, and returns when it listens.
    pub(crate) fn start() -> Self {
        Self::start_at("127.0.0.1")
    }

    /// The same at another address, in the network namespace of the calling thread.
    pub(crate) fn start_at(ip: &str) -> Self {
        Self::start_in(REGION, ip)
    }

    /// The same for calls to that region.
    pub(crate) fn start_in(region: &'static str, ip: &str) -> Self {
        let mut process = Command::new(tool("moto", "moto_server"))
            .args(["-H", ip, "-p", "0"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("moto_server starts");
        let mut log = BufReader::new(process.stderr.take().expect("stderr is a pipe")).lines();
        // Printed after listen(2), with the port that the kernel chose.
        let address = log.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, address) = line.split_once("Running on http://")?;
            address.trim().parse().ok()
        });
        // A pipe that nobody reads would stop the server; and libtest shows the lines of a failed test.
        std::thread::spawn(move || log.map_while(Result::ok).for_each(|line| eprintln!("moto: {line}")));
        let Some(address) = address else { panic!("moto_server ended: {:?}", process.wait()) };
        Self { process, address, region }
    }

    /// The region of all calls.
    pub(crate) fn region(&self) -> &'static str {
        self.region
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of all its services.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes a role that has `policy` and can be assumed, and returns its ARN.
    pub(crate) fn create_role(&self, name: &str, policy: &str) -> String {
        let trust = r#"{"Version": "2012-10-17", "Statement": []}"#;
        self.iam("create-role", name, &["--assume-role-policy-document", trust]);
        self.iam("put-role-policy", name, &["--policy-name", name, "--policy-document", policy]);
        format!("arn:aws:iam::{ACCOUNT}:role/{name}")
    }

    /// From now on every call must be signed by known keys, whose policies must allow it.
    pub(crate) fn enforce_iam(&self) {
        self.unjudged_calls(0);
    }

    /// The next calls, so many, are served whoever sends them; those after them are judged.
    pub(crate) fn unjudged_calls(&self, count: u32) {
        // No Content-Type: with that of a form, moto does not find the number.
        self.send("POST", "/moto-api/reset-auth", &[], &count.to_string());
    }

    /// Calls an action of IAM or STS, or of another service that takes forms, while nothing is judged.
    pub(crate) fn query(&self, service: &str, action: &str, fields: &[(&str, &str)]) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("Action", action).extend_pairs(fields);
        self.send(
            "POST",
            "/",
            &[&self.scope(service), "Content-Type: application/x-www-form-urlencoded"],
            &form.finish(),
        )
    }

    /// Calls an action of a service that takes JSON by the name in `X-Amz-Target`, while nothing is judged.
    pub(crate) fn json(&self, service: &str, target: &str, body: &Value) -> Value {
        let target = format!("X-Amz-Target: {target}");
        let headers = [&*self.scope(service), &target, "Content-Type: application/x-amz-json-1.1"];
        let answer = self.send("POST", "/", &headers, &body.to_string());
        serde_json::from_str(&answer).unwrap_or_else(|err| panic!("{target}: {err}: {answer}"))
    }

    /// Makes a bucket or an object, while nothing is judged.
    pub(crate) fn put(&self, path: &str, body: &str) {
        self.send("PUT", path, &[&self.scope("s3")], body);
    }

    fn send(&self, method: &str, path: &str, headers: &[&str], body: &str) -> String {
        let mut stream = TcpStream::connect(self.address).expect("moto listens");
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let (host, length) = (self.address, body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).expect("moto reads");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("moto answers");
        assert!(reply.starts_with("HTTP/1.1 200 "), "{method} {path} {body}: {reply}");
        reply.split_once("\r\n\r\n").expect("a head").1.to_owned()
    }

    /// Tells moto which service and region a call is for, and proves nothing.
    fn scope(&self, service: &str) -> String {
        let region = self.region;
        format!(
            "Authorization: AWS4-HMAC-SHA256 Credential=any/20260101/{region}/{service}/aws4_request, SignedHeaders=host, Signature=none"
        )
    }

    fn iam(&self, action: &str, role: &str, args: &[&str]) {
        self.aws(&[&["iam", action, "--role-name", role], args].concat());
    }

    /// What the AWS CLI prints when it is called with these.
    pub(crate) fn aws(&self, args: &[&str]) -> String {
        // Any keys will do until `enforce_iam`.
        let environment = Environment::new()
            .region(self.region)
            .with("AWS_ENDPOINT_URL", self.endpoint())
            .with("AWS_ACCESS_KEY_ID", "any")
            .with("AWS_SECRET_ACCESS_KEY", "any");
        let mut command = Command::new(tool("python", "aws"));
        environment.apply(&mut command);
        let output = command.args(args).output().expect("aws starts");
        assert!(output.status.success(), "aws {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("aws prints UTF-8")
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

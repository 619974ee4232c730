//! A moto server on loopback: an STS, an IAM and an S3 that nobody here wrote.
//!
//! It checks no web-identity token. Once told to, it checks signatures, session tokens and role policies of all calls, and
//! then answers the unsigned ones, AssumeRoleWithWebIdentity among them, with 500.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use crate::sdk::{Environment, tool};

/// The account in which moto makes roles.
pub(crate) const ACCOUNT: &str = "123456789012";
/// The region of all calls.
pub(crate) const REGION: &str = "eu-central-1";

/// A running moto server; ends with this value.
pub(crate) struct Moto {
    process: Child,
    address: SocketAddr,
}

impl Moto {
    /// Starts a server on a free port, and returns when it listens.
    pub(crate) fn start() -> Self {
        let mut process = Command::new(tool("moto", "moto_server"))
            .args(["-H", "127.0.0.1", "-p", "0"])
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
        Self { process, address }
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
        let mut stream = TcpStream::connect(self.address).expect("moto listens");
        // No Content-Type: with that of a form, moto does not find the number.
        let request = "POST /moto-api/reset-auth HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 1\r\n\r\n0";
        stream.write_all(request.as_bytes()).expect("moto reads");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("moto answers");
        assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    }

    fn iam(&self, action: &str, role: &str, args: &[&str]) {
        self.aws(&[&["iam", action, "--role-name", role], args].concat());
    }

    /// What the AWS CLI prints when it is called with these.
    pub(crate) fn aws(&self, args: &[&str]) -> String {
        // Any keys will do until `enforce_iam`.
        let environment = Environment::new()
            .region(REGION)
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

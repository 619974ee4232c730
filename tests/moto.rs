//! What the credentials are worth at services that nobody here wrote: moto's STS issues them, its IAM judges them, at its S3.

#[path = "support/moto.rs"]
mod moto;
#[path = "support/sdk.rs"]
mod sdk;

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use moto::Moto;
use sdk::Environment;

#[test]
fn the_policy_of_the_role_decides_which_bucket_can_be_made() {
    let moto = Moto::start();
    let role_arn = moto.create_role(
        "demo",
        r#"{"Version": "2012-10-17", "Statement":
            [{"Effect": "Allow", "Action": "s3:CreateBucket", "Resource": "arn:aws:s3:::k8s-*"}]}"#,
    );
    let mut shell = Shell::in_dev(&moto, &role_arn);

    // The fetch comes first: moto serves no unsigned call, and so no AssumeRoleWithWebIdentity, once it enforces.
    let (status, arn) = shell.run("aws sts get-caller-identity --query Arn --output text");
    assert_eq!(status, 0, "{arn}");
    assert!(arn.contains(&format!("arn:aws:sts::{}:assumed-role/demo/", moto::ACCOUNT)), "{arn}");
    moto.enforce_iam();

    let (status, output) = shell.run("aws s3 mb s3://k8s-default-aws-cli-demo");
    assert_eq!(status, 0, "{output}");
    assert!(output.contains("make_bucket: k8s-default-aws-cli-demo"), "{output}");
    let (status, output) = shell.run("aws s3 mb s3://k9s-default-aws-cli-demo");
    assert_eq!(status, 1, "{output}");
    assert!(output.contains("AccessDenied"), "{output}");
    shell.leave();
}

#[test]
fn the_aws_cli_takes_what_oidc_writes() {
    let moto = Moto::start();
    let folder = tempfile::tempdir().expect("there is room");
    let written = |name: &str, args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_rolecall")).arg("oidc").args(args).output();
        let output = output.expect("rolecall starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = folder.path().join(name);
        std::fs::write(&path, output.stdout).expect("the folder is ours");
        format!("file://{}", path.display())
    };
    let issuer = ["--cluster", "https://oidc.example.com/a"];
    let sha1 = "c9bb5bbca8823f0dcf6b3e64a5237ff4686779bb";
    let provider = written("provider", &[&["provider", "--thumbprint", sha1], &issuer[..]].concat());
    let arn = moto.aws(&[
        "iam",
        "create-open-id-connect-provider",
        "--cli-input-json",
        &provider,
        "--output",
        "text",
    ]);
    let arn = arn.trim();
    assert_eq!(arn, format!("arn:aws:iam::{}:oidc-provider/oidc.example.com/a", moto::ACCOUNT));
    let seen = moto.aws(&["iam", "get-open-id-connect-provider", "--open-id-connect-provider-arn", arn]);
    assert!(seen.contains("sts.amazonaws.com") && seen.contains(sha1), "{seen}");

    let who = ["--account", moto::ACCOUNT, "--service-account", "shop/web", "--service-account", "batch/*"];
    let policy = written("policy", &[&["trust-policy"], &who[..], &issuer[..]].concat());
    let role = ["iam", "create-role", "--role-name", "web", "--assume-role-policy-document", &policy];
    let role = moto.aws(&role);
    assert!(role.contains(arn), "the policy names the provider as IAM does: {role}");
}

/// A shell as the child of `rolecall dev`, so that moto can change between two commands of one served identity.
struct Shell {
    dev: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Shell {
    fn in_dev(moto: &Moto, role_arn: &str) -> Self {
        let aws = sdk::tool("python", "aws");
        let tools =
            aws.parent().expect("a tool is in a folder").to_str().expect("paths in the cache are UTF-8");
        let mut command = Command::new(env!("CARGO_BIN_EXE_rolecall"));
        Environment::new()
            .region(moto::REGION)
            .with("AWS_ENDPOINT_URL", moto.endpoint())
            .with("PATH", format!("{tools}:/usr/bin:/bin"))
            .apply(&mut command);
        let mut dev = command
            .args(["dev", "--sts-endpoint-url", &moto.endpoint(), "--role-arn", role_arn, "--", "sh"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("rolecall starts");
        let input = dev.stdin.take().expect("stdin is a pipe");
        let output = BufReader::new(dev.stdout.take().expect("stdout is a pipe")).lines();
        Self { dev, input, output }
    }

    /// Runs `command`; returns its exit code, and its stdout and stderr.
    fn run(&mut self, command: &str) -> (i32, String) {
        writeln!(self.input, "{command} </dev/null 2>&1; echo exit $?").expect("rolecall dev runs the shell");
        let mut output = String::new();
        for line in self.output.by_ref() {
            let line = line.expect("UTF-8");
            if let Some(status) = line.strip_prefix("exit ") {
                return (status.parse().expect("$? is a number"), output);
            }
            output.push_str(&line);
            output.push('\n');
        }
        panic!("rolecall dev ended during {command:?}: {output}");
    }

    /// Ends the shell, and `rolecall dev` with it.
    fn leave(mut self) {
        writeln!(self.input, "exit 0").expect("rolecall dev runs the shell");
        let status = self.dev.wait().expect("rolecall dev ends");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.dev.kill();
        let _ = self.dev.wait();
    }
}

//! Unchanged SDKs and `rolecall dev`: each finds its credentials, and STS knows it by the role.

#[path = "support/sdk.rs"]
mod sdk;

use std::process::Command;

use sdk::Environment;

/// Starts `program` as the child of `rolecall dev`, which sets region, credentials and STS.
fn in_dev(program: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolecall"));
    command.args(["dev", "--"]).arg(program);
    command
}

#[test]
fn every_sdk_has_the_role_that_dev_serves() {
    for sdk in sdk::programs() {
        let output = sdk.identity(in_dev, &Environment::new()).output().expect("rolecall starts");
        let (arn, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: {}\n{errors}", sdk.name, output.status);
        assert!(arn.contains(":assumed-role/"), "{}: {arn:?}\n{errors}", sdk.name);
    }
}

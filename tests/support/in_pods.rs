//! The SDK programs in pods of the node: what each prints there, and whose role that is.

use std::process::Output;
use std::thread;

use crate::sdk::{self, Environment, Sdk};
use crate::tenant::{RunningPod, Shape};
use crate::world::{Case, session_arn};

/// Runs every SDK in its pod, all at once, and returns what each has printed, in the order of `sdk::programs`.
pub(crate) fn identities<'p>(
    environment: &Environment,
    pod: impl Fn(&Sdk) -> &'p RunningPod,
) -> Vec<(&'static Sdk, Output)> {
    thread::scope(|scope| {
        let started: Vec<_> = sdk::programs()
            .iter()
            .map(|sdk| {
                let mut command = sdk.identity(|program| pod(sdk).command(program), environment);
                (sdk, scope.spawn(move || command.output().unwrap()))
            })
            .collect();
        started.into_iter().map(|(sdk, running)| (sdk, running.join().unwrap())).collect()
    })
}

pub(crate) fn has_identity(sdk: &Sdk, output: &Output, arn: &str) {
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {said}", sdk.name);
    assert_eq!(printed.trim(), arn, "{}: {said}", sdk.name);
}

/// In two pods of two ServiceAccounts, every SDK must see its own pod's role.
pub(crate) async fn every_sdk_has_its_pods_role(case: &Case, shape: Shape, environment: &Environment) {
    for account in ["web", "api"] {
        case.account(account).await;
        let pod = case.pod_on("node", account, shape).await;
        for (sdk, output) in identities(environment, |_| &pod) {
            has_identity(sdk, &output, &session_arn(case.namespace, account));
        }
        assert_eq!(case.calls(account), 1, "one call for all SDKs of {account}");
    }
}

/// A pod for each SDK, each with a role of its own, so that each meets the trouble that was made for it.
pub(crate) async fn a_pod_each(case: &Case) -> Vec<RunningPod> {
    let mut pods = Vec::new();
    for sdk in sdk::programs() {
        case.account(&sdk.name).await;
        pods.push(case.pod(&sdk.name).await);
    }
    pods
}

/// Of [`a_pod_each`], the SDK's.
pub(crate) fn its_own<'p>(pods: &'p [RunningPod]) -> impl Fn(&Sdk) -> &'p RunningPod {
    move |sdk| pods.iter().find(|pod| pod.name.starts_with(&format!("{}-", sdk.name))).unwrap()
}

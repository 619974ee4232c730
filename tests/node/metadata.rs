//! A pod that the agent refuses, and the node's own role behind instance metadata: some SDKs go on to ask there.

use std::process::Output;
use std::thread;

use rolecall::emulator::Fault;
use serde_json::json;

use crate::net;
use crate::node_metadata::{Metadata, NODE_KEY};
use crate::sdk::{self, Environment, Sdk};
use crate::tenant::RunningPod;
use crate::world::{Case, V4, on_the_node};

/// What each of the SDKs finds in `pod`, whose variables name the agent. Their time-outs are their own.
fn keys(case: &Case, pod: &RunningPod, sdks: &[&'static Sdk]) -> Vec<(&'static Sdk, Output)> {
    let environment = Environment::new()
        .region("eu-central-1")
        .sts(&case.world.sts)
        .full_uri(&format!("http://{V4}/v1/credentials"))
        .with("AWS_EC2_METADATA_DISABLED", "false");
    thread::scope(|scope| {
        let started: Vec<_> = sdks
            .iter()
            .map(|sdk| {
                let mut command = sdk.resolve(|program| pod.command(program), &environment, 1);
                (*sdk, scope.spawn(move || command.output().unwrap()))
            })
            .collect();
        started.into_iter().map(|(sdk, running)| (sdk, running.join().unwrap())).collect()
    })
}

#[test]
fn with_enforce_a_pod_that_is_refused_gets_nothing_from_instance_metadata_either() {
    on_the_node("enforced", async |case| {
        let outside = case.world.node.outside();
        let metadata = Metadata::start(&outside);
        case.account_with("no-role", json!({})).await;
        case.account("web").await;
        case.fault("web", Fault { code: Some("AccessDenied".into()), ..Fault::default() });
        let (no_role, denied) = (case.pod("no-role").await, case.pod("web").await);
        let pods = [(&no_role, "NoRole"), (&denied, "StsDenied")];
        let all: Vec<&Sdk> = sdk::programs().iter().collect();
        let java: Vec<&Sdk> = all.iter().copied().filter(|sdk| sdk.name == "java").collect();

        net::install(&case.world.node, &["--metadata-guard", "enforce"]);
        for (pod, code) in pods {
            for (sdk, output) in keys(case, pod, &all) {
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(!output.status.success(), "{}: {said}", sdk.name);
                assert!(!String::from_utf8_lossy(&output.stdout).contains(NODE_KEY), "{}: {said}", sdk.name);
            }
            case.world.agent.line_about(&pod.uid, |line| line["code"] == code).await;
        }
        assert_eq!(metadata.asked().len(), 0);

        // Without it one SDK at least finds the node's role: so that is what enforce has stopped.
        net::install(&case.world.node, &[]);
        for (pod, code) in pods {
            for (sdk, output) in keys(case, pod, &java) {
                let said = String::from_utf8_lossy(&output.stderr);
                assert_eq!(
                    String::from_utf8_lossy(&output.stdout).trim(),
                    NODE_KEY,
                    "{code}, {}: {said}",
                    sdk.name
                );
            }
        }
        assert!(!metadata.asked().is_empty());
    });
}

//! `--role-source=pod-annotation`: pods as kube2iam and kiam knew them, by the shipped agent and with unchanged SDKs.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::Agent;
use crate::http::Answer;
use crate::sdk::{self, Environment};
use crate::tenant::{RunningPod, Shape};
use crate::world::{Case, arn, on_the_node, session_arn};

/// A change of annotations must count by then.
const WITHIN: Duration = Duration::from_secs(10);
const BASE: &str = "arn:aws:iam::111122223333:role/";

/// An agent that asks pods, where the operator leaves a namespace the roles that begin with its name; ServiceAccounts `web` and `api`.
async fn agent(case: &Case, args: &[&str]) -> (Agent, SocketAddr) {
    case.may_read_namespaces();
    let allow = format!("{0}={BASE}{0}-*", case.namespace);
    let ours =
        ["--sts-endpoint-url", &case.world.sts, "--role-source", "pod-annotation", "--base-role-arn", BASE];
    let args = [&ours[..], &["--allow-role", &allow], args].concat();
    let (agent, at) = case.agent(case.namespace, &case.kubeconfig(case.namespace), &args).await;
    agent.until_ready().await;
    for account in ["web", "api"] {
        case.account_with(account, Value::Null).await;
    }
    (agent, at)
}

async fn pod(case: &Case, account: &str, role: &str) -> RunningPod {
    let pod = case.pod_on(case.namespace, account, Shape::Routed).await;
    case.annotate_pod(&pod.name, json!({"iam.amazonaws.com/role": role})).await;
    pod
}

async fn has_role(pod: &RunningPod, at: SocketAddr, role: &str) {
    let arn = format!("{BASE}{role}");
    pod.until(at, WITHIN, |answer| answer.status == 200 && answer.json()["RoleArn"] == arn).await;
}

/// Waits for the refusal; returns its sentence.
async fn is_refused(pod: &RunningPod, at: SocketAddr, code: &str) -> String {
    let (answer, _) = pod.until(at, WITHIN, |answer| answer.status != 200 && answer.code() == code).await;
    answer.json()["message"].as_str().unwrap().to_owned()
}

#[test]
fn every_sdk_in_a_kube2iam_pod_has_the_role_of_its_name_or_arn() {
    on_the_node("kube2iam", async |case| {
        // SDKs go to no other addresses.
        let (agent, at) = agent(case, &["--listen", "169.254.170.23:9912"]).await;
        let by_name = pod(case, "web", "kube2iam-web").await;
        let by_arn = pod(case, "api", &arn("kube2iam", "api")).await;
        for (pod, account) in [(&by_name, "web"), (&by_arn, "api")] {
            has_role(pod, at, &format!("kube2iam-{account}")).await;
            let environment = Environment::new().region("eu-central-1").sts(&case.world.sts);
            let environment = environment.full_uri("http://169.254.170.23:9912/v1/credentials");
            for sdk in sdk::programs() {
                let output =
                    sdk.identity(|program: &Path| pod.command(program), &environment).output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                let printed = String::from_utf8_lossy(&output.stdout);
                assert_eq!(printed.trim(), session_arn("kube2iam", account), "{}: {said}", sdk.name);
            }
        }
        let none = case.pod_on("kube2iam", "web", Shape::Routed).await;
        is_refused(&none, at, "NoRole").await;
        agent.has_told_no_secret();
    });
}

#[test]
fn a_pods_changed_annotation_counts_while_it_runs() {
    on_the_node("kiam", async |case| {
        let (_agent, at) = agent(case, &[]).await;
        let pod = pod(case, "web", "kiam-web").await;
        has_role(&pod, at, "kiam-web").await;
        case.annotate_pod(&pod.name, json!({"iam.amazonaws.com/role": "kiam-any"})).await;
        has_role(&pod, at, "kiam-any").await;
        // The role trusts another ServiceAccount, and it is that which STS sees.
        case.annotate_pod(&pod.name, json!({"iam.amazonaws.com/role": "kiam-api"})).await;
        is_refused(&pod, at, "StsDenied").await;
        case.annotate_pod(&pod.name, json!({"iam.amazonaws.com/external-id": "x"})).await;
        is_refused(&pod, at, "InvalidPlan").await;
        case.annotate_pod(
            &pod.name,
            json!({"iam.amazonaws.com/external-id": null, "iam.amazonaws.com/role": null}),
        )
        .await;
        is_refused(&pod, at, "NoRole").await;
        case.annotate_pod(&pod.name, json!({"iam.amazonaws.com/role": "kiam-web"})).await;
        has_role(&pod, at, "kiam-web").await;
        // The ServiceAccount's own annotation agrees, or nobody guesses.
        case.annotate("web", json!({"rolecall.dev/role-arn": arn("kiam", "any")})).await;
        is_refused(&pod, at, "InvalidPlan").await;
        case.annotate("web", json!({"rolecall.dev/role-arn": arn("kiam", "web")})).await;
        has_role(&pod, at, "kiam-web").await;
    });
}

#[test]
fn what_the_namespace_permits_counts_while_its_pods_run() {
    on_the_node("permitted", async |case| {
        let (agent, at) = agent(case, &["--namespace-restrictions"]).await;
        let pod = pod(case, "web", "permitted-web").await;
        let said = is_refused(&pod, at, "RoleNotAllowed").await;
        assert!(said.contains("--namespace-restrictions"), "{said}");
        let (permitted, allowed) = ("iam.amazonaws.com/permitted", "iam.amazonaws.com/allowed-roles");
        for (annotations, has) in [
            (json!({permitted: ".*/permitted-.*"}), true),
            (json!({permitted: "permitted-web"}), false),
            (json!({permitted: format!("{BASE}(permitted-api|permitted-web)")}), true),
            (json!({permitted: ".*/permitted-we"}), false),
            (json!({permitted: ".*"}), true),
            (json!({permitted: null, allowed: r#"["permitted-api"]"#}), false),
            (json!({allowed: r#"["permitted-w*"]"#}), true),
            (json!({permitted: ".*/another"}), false),
            (json!({permitted: ".*"}), true),
            (json!({permitted: null, allowed: null}), false),
        ] {
            case.annotate_namespace(annotations.clone()).await;
            match has {
                true => has_role(&pod, at, "permitted-web").await,
                false => drop(is_refused(&pod, at, "RoleNotAllowed").await),
            }
        }
        // What was there before is not what made the difference.
        agent.until_it_says("iam.amazonaws.com/permitted").await;
    });
}

/// The attacker makes pods in its namespace, and writes what it likes on them.
#[test]
fn no_annotation_of_a_pod_leads_out_of_what_the_operator_left_its_namespace() {
    on_the_node("trespass", async |case| {
        let (_agent, at) = agent(case, &[]).await;
        let pod = pod(case, "web", "trespass-web").await;
        has_role(&pod, at, "trespass-web").await;
        for (role, code) in [
            (arn("kube2iam", "any"), "RoleNotAllowed"),
            ("kube2iam-any".into(), "RoleNotAllowed"),
            ("xtrespass-web".into(), "RoleNotAllowed"),
            ("arn:aws:iam::999999999999:role/trespass-web".into(), "RoleNotAllowed"),
            ("arn:aws-cn:iam::111122223333:role/trespass-web".into(), "RoleNotAllowed"),
            ("../role/kube2iam-any".into(), "InvalidRole"),
            ("trespass-web/../kube2iam-any".into(), "InvalidRole"),
            ("x:role/kube2iam-any".into(), "InvalidRole"),
            ("arn:aws:iam::111122223333:user/trespass-web".into(), "InvalidRole"),
            ("trespass-web\nkube2iam-any".into(), "InvalidRole"),
            ("trespass-*".into(), "InvalidRole"),
        ] {
            case.annotate_pod(&pod.name, json!({"iam.amazonaws.com/role": role})).await;
            // Each names what it refuses, so that no answer is the one before's.
            let shown = role.escape_debug().to_string();
            let so = |answer: &Answer| {
                answer.status != 200
                    && answer.code() == code
                    && answer.body.contains(&shown.escape_debug().to_string())
            };
            pod.until(at, WITHIN, so).await;
        }
    });
}

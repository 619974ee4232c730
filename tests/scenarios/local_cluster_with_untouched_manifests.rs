//! A cluster on a laptop, Kubernetes 1.34 or `KUBERNETES_MINOR`, as daemonset/local makes it: its STS believes the cluster's tokens and has every role, and an
//! application with nothing but the annotation reads S3 from a service that takes any key, as LocalStack does.
//!
//! What no kubelet does here, the scenario does with what stands in the objects: variables, flags, configuration.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::agent::ROLECALL;
use crate::apiserver::ApiServer;
use crate::net;
use crate::netns::{NODE_IP, Node};
use crate::scenario::scenario_on;

/// The variables of a container, as the object has them.
fn variables(server: &ApiServer, kind: &str, container: &str) -> Vec<(String, String)> {
    let daemonset: Value = server.json(&["get", "daemonset", "rolecall", "-n", "rolecall"]);
    let containers = daemonset["spec"]["template"]["spec"][kind].as_array().unwrap();
    let found = containers.iter().find(|one| one["name"] == container).unwrap();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let pairs = found["env"].as_array().unwrap().iter();
    pairs.filter_map(|one| Some((text(&one["name"])?, text(&one["value"])?))).collect()
}

/// Ends when dropped.
struct Sts(Child);

impl Drop for Sts {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The configuration that the Deployment mounts.
fn configuration(server: &ApiServer) -> String {
    let map = server.json(&["get", "configmap", "sts", "-n", "rolecall"]);
    map["data"]["emulator.yaml"].as_str().unwrap().to_owned()
}

/// The emulator with that configuration, and its URL.
fn start_sts(node: &Node, server: &ApiServer, configuration: &str, address: &str) -> (Sts, String) {
    let config = server.state().join("emulator.yaml");
    std::fs::write(&config, configuration).unwrap();
    let mut command = node.command(ROLECALL);
    command.args(["emulator", "--listen", address, "--kubeconfig"]).arg(server.kubeconfig());
    let mut child = command.arg("--config").arg(&config).stdout(Stdio::piped()).spawn().unwrap();
    let mut url = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
    (Sts(child), url.trim().to_owned())
}

#[test]
fn local_cluster_with_untouched_manifests() {
    scenario_on("local_cluster_with_untouched_manifests", ApiServer::local, async |it| {
        it.aws.bucket("shop", "prices", "42");
        let install: Vec<String> = variables(it.server, "initContainers", "net-install")
            .into_iter()
            .map(|(name, value)| {
                let flag = name.trim_start_matches("ROLECALL_").to_lowercase().replace('_', "-");
                format!("--{flag}={value}")
            })
            .collect();
        net::install(it.node, &install.iter().map(String::as_str).collect::<Vec<_>>());
        let shipped = configuration(it.server);
        let (running, sts) = start_sts(it.node, it.server, &shipped, &format!("{NODE_IP}:0"));
        let mut command = it.node.command(ROLECALL);
        for (name, value) in variables(it.server, "containers", "agent") {
            // What the kubelet writes in place of the Service's address.
            command.env(name, value.replace("http://$(STS_SERVICE_HOST)", &sts));
        }
        let agent = it.agent_by(command, &[]).await;
        agent.until_it_says(&format!(r#""kubernetes.version":"1.{}""#, it.server.minor)).await;
        if it.server.minor < 30 {
            agent.until_it_says("no admission policy limits the tokens that the agent may mint").await;
        }

        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/daemonset/local/example");
        it.server.kubectl(&["apply", "-f", example]);
        let job = it.server.json(&["get", "job", "whoami", "-n", "rolecall-local"]);
        let template = &job["spec"]["template"]["spec"];
        assert_eq!(template["serviceAccountName"], "whoami");
        let env = template["containers"][0]["env"].as_array().unwrap();
        assert!(env.iter().all(|one| !one["name"].as_str().unwrap().starts_with("AWS_CONTAINER")), "{env:?}");
        assert_eq!(
            (&env[1]["name"], &env[1]["value"]),
            (&"AWS_ENDPOINT_URL_STS".into(), &"http://sts.rolecall".into())
        );

        // The application's own namespace, with the example's annotation.
        let account = it.server.json(&["get", "serviceaccount", "whoami", "-n", "rolecall-local"]);
        let role = account["metadata"]["annotations"]["rolecall.dev/role-arn"].as_str().unwrap();
        it.account_with("whoami", json!({"rolecall.dev/role-arn": role})).await;
        let pod = it
            .start(
                it,
                &it.object("whoami", &[("AWS_ENDPOINT_URL_STS", &sts), ("AWS_DEFAULT_REGION", "us-east-1")]),
            )
            .await;
        let identity = pod.must("sts", "get_caller_identity", &json!({}));
        let session = format!("arn:aws:sts::000000000000:assumed-role/whoami/{}.whoami", it.namespace);
        assert_eq!(identity["Arn"], session.as_str());
        let read = pod.must("s3", "get_object", &json!({"Bucket": "shop", "Key": "prices"}));
        assert_eq!(read["Body"], "42");

        // Tokens are checked: one for somebody else is none for this STS.
        let token = it.token("whoami", &pod.name, &pod.uid, "vault").await;
        let asks = json!({"RoleArn": role, "RoleSessionName": "me", "WebIdentityToken": token});
        let said = pod.call("sts", "assume_role_with_web_identity", &asks).expect_err("it is for vault");
        assert!(said.contains("InvalidIdentityToken"), "{said}");

        // And there is no role that nobody asked for.
        it.account_with("nobody", json!({})).await;
        let pod = it.start(it, &it.object("nobody", &[])).await;
        let said = pod.call("s3", "list_buckets", &json!({})).expect_err("there are no credentials");
        assert!(said.contains("NoCredentialsError"), "{said}");
        agent.line_about(&pod.uid, |line| line["code"] == "NoRole").await;

        // With a role of one's own in place of every role, as the page has it, its trust policy judges.
        drop(running);
        let trust = json!({
            "Effect": "Allow",
            "Principal": {"Federated": format!("arn:aws:iam::000000000000:oidc-provider/{}", it.server.issuer().trim_start_matches("https://"))},
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": {"StringEquals": {
                format!("{}:sub", it.server.issuer().trim_start_matches("https://")):
                    format!("system:serviceaccount:{}:judged", it.namespace),
            }},
        });
        let roles = json!([{"arn": role, "trust_policy": {"Version": "2012-10-17", "Statement": [trust]}}]);
        assert!(shipped.contains("any_role: true"), "{shipped}");
        let stricter = shipped.replace("any_role: true", &format!("roles: {roles}"));
        let _running = start_sts(it.node, it.server, &stricter, sts.trim_start_matches("http://"));
        for account in ["judged", "other"] {
            it.account_with(account, json!({"rolecall.dev/role-arn": role})).await;
        }
        it.pod("judged").await.has_role(role).await;
        it.pod("other").await.is_refused_with("StsDenied").await;
    });
}

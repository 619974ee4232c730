//! The commands of docs/, copied as they stand into a shell: kubectl against a real API server, the AWS CLI against moto.
//!
//! A page's other tests see what comes of them: these see that each is taken, so that no page rots. What is left out has its reason here.
#![allow(clippy::unwrap_used)]

#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "support/moto.rs"]
mod moto;
#[path = "support/page.rs"]
mod page;
#[path = "support/pki.rs"]
mod pki;
#[path = "support/sdk.rs"]
mod sdk;
#[path = "support/stub.rs"]
mod stub;

use std::sync::{Mutex, MutexGuard, PoisonError};

use apiserver::ApiServer;
use moto::Moto;
use page::{Reader, commands, section};
use serde_json::Value;
use stub::Stub;

/// One page after the other: each patches the same DaemonSet.
fn installed() -> (MutexGuard<'static, ()>, &'static ApiServer) {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = ApiServer::shared();
    let _ = server.try_kubectl(&["delete", "daemonset", "rolecall", "-n", "rolecall"]);
    let agent = concat!(env!("CARGO_MANIFEST_DIR"), "/daemonset/3-agent.yaml");
    server.kubectl(&["apply", "-f", agent]);
    if server.try_kubectl(&["get", "namespace", "shop"]).is_err() {
        server.namespace("shop", &[]);
        server.service_account("shop", "web", &[]);
    }
    (alone, server)
}

/// The pods that the DaemonSet makes.
fn pods(server: &ApiServer) -> Value {
    server.json(&["get", "daemonset", "rolecall", "-n", "rolecall"])["spec"]["template"]["spec"].clone()
}

/// A variable of the agent's container.
fn variable(server: &ApiServer, name: &str) -> Value {
    let pods = pods(server);
    let agent = pods["containers"].as_array().unwrap().iter().find(|one| one["name"] == "agent").unwrap();
    let variables = agent["env"].as_array().unwrap();
    variables.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}: {pods}")).clone()
}

/// The commands but those that hold one of these words.
fn but(commands: Vec<String>, left_out: &[&str]) -> String {
    let lines = commands.iter().flat_map(|block| block.lines());
    let kept: Vec<&str> = lines.filter(|line| !left_out.iter().any(|word| line.contains(word))).collect();
    // Two examples of one annotation follow each other.
    let again = r#"kubectl() { if [ "$1" = annotate ]; then command kubectl "$@" --overwrite; else command kubectl "$@"; fi; }"#;
    format!("{again}\n{}", kept.join("\n"))
}

#[test]
fn another_sts_is_set_as_the_page_says() {
    let page = include_str!("../docs/other-sts.md");
    let (_alone, server) = installed();
    let reader = Reader::new(server, None);
    std::fs::write(reader.file("ca.crt"), "a bundle").unwrap();
    let all = commands(page);
    assert!(all.len() > 7, "{all:?}");
    for block in &all {
        reader.play(&but(vec![block.clone()], &[]));
        // What it sets is then in the agent's environment.
        for line in block.lines().filter(|line| line.contains(" set env ")) {
            for (name, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
                assert_eq!(variable(server, name)["value"], value, "{line}");
            }
        }
    }
    let pods = pods(server);
    assert_eq!(pods["dnsPolicy"], "ClusterFirstWithHostNet");
    assert!(pods["volumes"].as_array().unwrap().iter().any(|volume| volume["configMap"]["name"] == "sts-ca"));
    assert_eq!(variable(server, "ROLECALL_STS_CA_BUNDLE")["value"], "/etc/rolecall/sts-ca/ca.crt");
    let account = server.json(&["get", "serviceaccount", "web", "-n", "shop"]);
    let role = &account["metadata"]["annotations"]["rolecall.dev/role-arn"];
    assert_eq!(*role, "arn:aws-us-gov:iam::111122223333:role/web");
}

#[test]
fn an_issuer_of_ones_own_is_published_and_told_to_iam_as_the_page_says() {
    let page = include_str!("../docs/oidc.md");
    let ((_alone, server), moto) = (installed(), Moto::start());
    let reader = Reader::new(server, Some(&moto.endpoint()));
    // The names of AWS's own hosts lead nowhere here, and there is no control-plane node. What is left out is played with other hosts in
    // tests/oidc.rs and tests/oidc_cluster.rs.
    let left_out = ["--check $ISSUER", "/etc/kubernetes/pki/sa.pub", "oidc thumbprint $ISSUER"];
    let mut steps = Vec::new();
    for heading in [
        "## An issuer of your own, for AWS",
        "## Several clusters, one role",
        "## Another audience",
        "## A private CA",
    ] {
        steps.extend(commands(section(page, heading)));
    }
    let said = reader.play(&but(steps, &left_out));
    assert!(said.contains("https://kubernetes.default.svc"), "a trust policy with another audience: {said}");

    let issuer = "my-oidc.s3.eu-central-1.amazonaws.com/cluster-a";
    for key in [".well-known/openid-configuration", "openid/v1/jwks"] {
        let key = format!("cluster-a/{key}");
        let head = moto.aws(&["s3api", "head-object", "--bucket", "my-oidc", "--key", &key]);
        assert!(head.contains("application/json"), "{head}");
    }
    let policy = moto.aws(&["s3api", "get-bucket-policy", "--bucket", "my-oidc"]);
    assert!(policy.contains("arn:aws:s3:::my-oidc/cluster-a/*"), "{policy}");
    let providers = moto.aws(&["iam", "list-open-id-connect-providers"]);
    assert!(providers.contains(&format!("oidc-provider/{issuer}")), "{providers}");
    let role = moto.aws(&["iam", "get-role", "--role-name", "web"]);
    assert!(role.contains(&format!("{issuer}:sub")) && role.contains("serviceaccount:shop:web"), "{role}");
    assert_eq!(variable(server, "ROLECALL_AUDIENCE")["value"], "https://kubernetes.default.svc");
}

#[test]
fn the_central_issuers_documents_are_published_and_its_keys_rotated_as_the_page_says() {
    let page = include_str!("../docs/issuer.md");
    let ((_alone, server), moto) = (installed(), Moto::start());
    let reader = Reader::new(server, Some(&moto.endpoint()));
    moto.aws(&["s3", "mb", "s3://my-oidc"]);
    // The name of AWS's own host leads nowhere here.
    reader.play(&but(commands(page), &["--check $ISSUER"]));
    let published = moto.aws(&["s3", "cp", "s3://my-oidc/cluster-a/openid/v1/jwks", "-"]);
    assert!(published.contains("\"kid\""), "{published}");
    let keys = server.json(&["get", "secret", "rolecall-issuer-keys", "-n", "rolecall"]);
    let names: Vec<&String> = keys["data"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["next.pem", "signing.pem"]);
    let account = server.json(&["get", "serviceaccount", "web", "-n", "shop"]);
    let annotations = &account["metadata"]["annotations"];
    assert_eq!(annotations["rolecall.dev/source-identity"], "{namespace}.{service-account}");
    assert_eq!(
        annotations["rolecall.dev/session-tags"],
        "kubernetes-namespace,kubernetes-pod-name:transitive"
    );
}

/// From step 3 on they are played in tests/base_credentials.rs.
#[test]
fn the_user_and_a_role_that_trusts_it_are_made_as_the_page_says() {
    let page = include_str!("../docs/base-credentials.md");
    let ((_alone, server), moto) = (installed(), Moto::start());
    let reader = Reader::new(server, Some(&moto.endpoint()));
    let steps = section(page, "## With an IAM user's keys in a Secret").split("**3. The Secret**").next();
    let printed = reader.play(&but(commands(steps.unwrap()), &[]));
    assert!(printed.contains("AccessKeyId") && printed.contains("SecretAccessKey"), "{printed}");
    let policy = ["get-user-policy", "--user-name", "rolecall", "--policy-name", "assume"];
    let policy = moto.aws(&[&["iam"], &policy[..]].concat());
    assert!(policy.contains("arn:aws:iam::111122223333:role/k8s-*"), "{policy}");
    let role = moto.aws(&["iam", "get-role", "--role-name", "k8s-shop-web"]);
    assert!(role.contains(":user/rolecall") && role.contains("shop.web"), "{role}");
}

#[test]
fn keys_in_the_agents_environment_are_set_as_the_page_says() {
    let page = include_str!("../docs/base-credentials.md");
    let (_alone, server) = installed();
    let reader = Reader::new(server, None);
    let _ = server.try_kubectl(&["delete", "secret", "rolecall-base-credentials", "-n", "rolecall"]);
    reader.play(&but(commands(section(page, "## Where base credentials come from")), &[]));
    let secret = server.json(&["get", "secret", "rolecall-base-credentials", "-n", "rolecall"]);
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        let from = &variable(server, name)["valueFrom"]["secretKeyRef"];
        assert_eq!(from["name"], secret["metadata"]["name"]);
        assert!(secret["data"][from["key"].as_str().unwrap()].is_string(), "{from}");
    }
    assert!(!reader.file("keys").exists());
}

/// moto has no Roles Anywhere: a stand-in notes what it is asked. There is no builder of images either: tests/base_credentials.rs has what the
/// Dockerfile does.
#[tokio::test(flavor = "multi_thread")]
async fn iam_roles_anywhere_is_set_up_as_the_page_says() {
    let page = include_str!("../docs/base-credentials.md");
    let [anchor, profile] = ["trust-anchor", "profile"]
        .map(|kind| format!("arn:aws:rolesanywhere:eu-central-1:111122223333:{kind}/1"));
    let body = serde_json::json!({
        "trustAnchor": {"trustAnchorArn": anchor}, "profile": {"profileArn": profile},
    });
    let body = body.to_string();
    let stand_in = Stub::plain(format!(
        "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    ))
    .await;
    let ((_alone, server), moto) = (installed(), Moto::start());
    let reader = Reader::new(server, Some(&moto.endpoint()))
        .with("AWS_ENDPOINT_URL_ROLESANYWHERE", &format!("http://{}", stand_in.addr));
    let certificates = "docker() { test -f \"$4/Dockerfile\"; }\n\
        openssl req -x509 -newkey rsa:2048 -nodes -days 1 -keyout tls.key -out tls.crt -subj /CN=rolecall; cp tls.crt ca.crt";
    let steps = but(commands(section(page, "## IAM Roles Anywhere")), &[]);
    reader.play(&format!("{certificates}\n{steps}"));

    let asked = stand_in.requests();
    assert_eq!(
        asked.iter().map(|one| one.line()).collect::<Vec<_>>(),
        ["POST /trustanchors HTTP/1.1", "POST /profiles HTTP/1.1"]
    );
    let asked: Vec<Value> = asked.iter().map(|one| serde_json::from_str(&one.body).unwrap()).collect();
    let ca = std::fs::read_to_string(reader.file("ca.crt")).unwrap();
    assert_eq!(asked[0]["source"]["sourceData"]["x509CertificateData"], ca.trim());
    assert_eq!(asked[1]["roleArns"][0], "arn:aws:iam::111122223333:role/rolecall");
    let role = moto.aws(&["iam", "get-role", "--role-name", "rolecall"]);
    assert!(role.contains(&anchor) && role.contains("x509Subject/CN"), "{role}");
    let role = moto.aws(&["iam", "get-role", "--role-name", "k8s-shop-api"]);
    assert!(role.contains(":role/rolecall") && role.contains("sts:SetSourceIdentity"), "{role}");

    let map = server.json(&["get", "configmap", "rolecall-roles-anywhere", "-n", "rolecall"]);
    let command = map["data"]["config"].as_str().unwrap();
    let words = format!(
        "--trust-anchor-arn {anchor} --profile-arn {profile} --role-arn arn:aws:iam::111122223333:role/rolecall\n"
    );
    assert!(command.ends_with(&words), "{command}");
    assert!(pods(server).to_string().contains("rolecall/agent-roles-anywhere:0.1.0"));
}

#[test]
fn instance_metadata_is_switched_on_and_off_as_the_page_says() {
    let page = include_str!("../docs/instance-metadata.md");
    let (_alone, server) = installed();
    let reader = Reader::new(server, None);
    // The call of an application is played by each SDK in tests/node_imds.rs.
    let on = but(commands(page), &["aws sts get-caller-identity"]);
    reader.play(&on);
    assert!(
        variable(server, "ROLECALL_IMDS_LISTEN")["value"].as_str().unwrap().contains("169.254.170.2:9904")
    );
    assert_eq!(variable(server, "ROLECALL_IMDS_PASSTHROUGH_NAMESPACE")["value"], "kube-system");
    let off =
        page.split('`').find(|text| text.starts_with("kubectl ") && text.contains("ROLECALL_IMDS_LISTEN-"));
    reader.play(off.unwrap());
    assert!(!pods(server).to_string().contains("ROLECALL_IMDS_LISTEN"));
}

/// The stand-in could speak TLS, and rustls asks for it where two crypto libraries could be linked.
#[ctor::ctor(unsafe)]
fn provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

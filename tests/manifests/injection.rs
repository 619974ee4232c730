//! The variable by policy: which pods get it, in which words, and which stay as they are.

use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::{containers, manifest};

pub(crate) const URI: (&str, &str) =
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23:9902/v1/credentials");
const WORD: (&str, &str) = ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "rolecall");
const REGIONS: [(&str, &str); 2] = [("AWS_REGION", "us-east-1"), ("AWS_DEFAULT_REGION", "us-east-1")];
pub(crate) const DIRECT: &str = "169.254.170.23,169.254.170.2,fd00:ec2::23";

/// The server with the injection policy in force, and the pod `plain` as it was made without the policy.
fn injection() -> (&'static ApiServer, &'static Value) {
    static BEFORE: OnceLock<Value> = OnceLock::new();
    let server = ApiServer::shared();
    let before = BEFORE.get_or_init(|| {
        server.namespace("injection", &[]);
        let before = plain_pod(server);
        server.kubectl(&["apply", "--server-side", "-f", &manifest("inject")]);
        // The server reads policies into its admission chain a moment after they are stored, and has no word for it.
        let probe = pod(
            "injection",
            "probe",
            &[("rolecall.dev/inject", "true")],
            json!([{"name": "c", "image": "i"}]),
        );
        let in_force =
            (0..200).any(|_| env_of(&server.dry_run(&probe).expect("a pod"), "c").contains(&pair(URI)));
        assert!(in_force, "the policy was not in force after 200 pods");
        before
    });
    (server, before)
}

/// An unlabelled pod with a bit of everything that the policy looks at; made, read as the server stores it, deleted.
fn plain_pod(server: &ApiServer) -> Value {
    let object = pod(
        "injection",
        "plain",
        &[("app", "plain")],
        json!([
            {"name": "c", "image": "i", "env": [{"name": "NO_PROXY", "value": "a"}, {"name": "HTTP_PROXY", "value": "b"}]},
            {"name": "d", "image": "i"},
        ]),
    );
    server.create(&object).expect("a pod");
    let stored = server.kubectl(&["get", "--raw", "/api/v1/namespaces/injection/pods/plain"]);
    server.delete_pod("injection", "plain");
    serde_json::from_str(&stored).expect("the server answers JSON")
}

pub(crate) fn pod(namespace: &str, name: &str, labels: &[(&str, &str)], containers: Value) -> Value {
    let labels: serde_json::Map<String, Value> =
        labels.iter().map(|&(key, value)| (key.into(), value.into())).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        // No token volume: its name is random.
        "spec": {"automountServiceAccountToken": false, "containers": containers},
    })
}

/// The env of a container or init container, in order, as "NAME=value".
pub(crate) fn env_of(pod: &Value, container: &str) -> Vec<String> {
    let found = containers(&pod["spec"]).find(|one| one["name"] == container).expect("the container");
    let env = found["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    env.iter()
        .map(|e| format!("{}={}", e["name"].as_str().unwrap_or(""), e["value"].as_str().unwrap_or("?")))
        .collect()
}

pub(crate) fn pair((name, value): (&str, &str)) -> String {
    format!("{name}={value}")
}

/// The env of container `c` of a labelled pod that is given `spec` as its container.
fn injected(mut container: Value) -> Vec<String> {
    let (server, _) = injection();
    container["name"] = "c".into();
    container["image"] = "i".into();
    let object = pod("injection", "labelled", &[("rolecall.dev/inject", "true")], json!([container]));
    env_of(&server.dry_run(&object).expect("a pod"), "c")
}

#[test]
fn an_unlabelled_pod_stays_byte_identical() {
    let (server, before) = injection();
    let bytes = |pod: &Value| {
        let mut pod = pod.clone();
        let metadata = pod["metadata"].as_object_mut().expect("metadata");
        // What every creation has anew.
        for own in ["uid", "creationTimestamp", "resourceVersion"] {
            metadata.remove(own).expect("the server sets it");
        }
        for entry in metadata["managedFields"].as_array_mut().expect("managed fields") {
            entry["time"].take();
        }
        pod.to_string()
    };
    assert_eq!(bytes(&plain_pod(server)), bytes(before));
}

#[test]
fn a_labelled_pod_gets_the_variables_in_every_container() {
    let (server, _) = injection();
    let mut object = pod(
        "injection",
        "labelled",
        &[("rolecall.dev/inject", "true")],
        json!([{"name": "first", "image": "i"}, {"name": "second", "image": "i", "env": [{"name": "A", "value": "1"}]}]),
    );
    object["spec"]["initContainers"] = json!([
        {"name": "init", "image": "i"},
        {"name": "sidecar", "image": "i", "restartPolicy": "Always"},
    ]);
    let made = server.dry_run(&object).expect("a pod");
    let variables: Vec<String> = [URI, WORD, REGIONS[0], REGIONS[1]].map(pair).to_vec();
    for name in ["first", "init", "sidecar"] {
        assert_eq!(env_of(&made, name), variables, "{name}");
    }
    // The pod's own first, in their order: a later variable may refer to an earlier one.
    assert_eq!(env_of(&made, "second"), [vec!["A=1".to_owned()], variables].concat());
}

#[test]
fn a_labelled_namespace_labels_its_pods_and_a_pod_may_stay_out() {
    let (server, _) = injection();
    server.namespace("injection-namespace", &[("rolecall.dev/inject", "true")]);
    let made = |labels: &[(&str, &str)]| {
        let object = pod("injection-namespace", "p", labels, json!([{"name": "c", "image": "i"}]));
        env_of(&server.dry_run(&object).expect("a pod"), "c")
    };
    let variables = [URI, WORD, REGIONS[0], REGIONS[1]].map(pair);
    assert_eq!(made(&[]), variables);
    // Both bindings' labels at once: still each variable once.
    assert_eq!(made(&[("rolecall.dev/inject", "true")]), variables);
    assert_eq!(made(&[("rolecall.dev/inject", "false")]), [""; 0]);
}

#[test]
fn what_a_pod_sets_itself_stays() {
    let own = |name: &str, value: &str| json!({"env": [{"name": name, "value": value}]});
    let regions = REGIONS.map(pair).to_vec();
    let with = |first: &str, rest: &[Vec<String>]| [vec![first.to_owned()], rest.concat()].concat();
    // A further role by name, or another provider: then the word is the pod's own matter too.
    let uri = "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://169.254.170.23:9902/v1/credentials/other";
    assert_eq!(
        injected(own(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "http://169.254.170.23:9902/v1/credentials/other"
        )),
        with(uri, std::slice::from_ref(&regions))
    );
    // Most SDKs take it before the full one.
    assert_eq!(
        injected(own("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v1/credentials")),
        with("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v1/credentials", std::slice::from_ref(&regions))
    );
    // The file wins over the variable in some SDKs, and the variable over the file in others.
    assert_eq!(
        injected(own("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/token")),
        with("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=/token", &[vec![pair(URI)], regions])
    );
    for name in ["AWS_REGION", "AWS_DEFAULT_REGION"] {
        assert_eq!(
            injected(own(name, "eu-central-1")),
            with(&format!("{name}=eu-central-1"), &[vec![pair(URI), pair(WORD)]]),
        );
    }
    // A ConfigMap's names cannot be seen, and env would win over them.
    assert_eq!(
        injected(json!({"envFrom": [{"configMapRef": {"name": "settings"}}]})),
        [pair(URI), pair(WORD)]
    );
    // A value from elsewhere is a value.
    let region =
        json!({"env": [{"name": "AWS_REGION", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}]});
    assert_eq!(injected(region), with("AWS_REGION=?", &[vec![pair(URI), pair(WORD)]]));
}

#[test]
fn a_pod_behind_a_proxy_reaches_the_agent_directly() {
    let variables = [URI, WORD, REGIONS[0], REGIONS[1]].map(pair).to_vec();
    let env = |pairs: &[(&str, &str)]| {
        let env: Vec<Value> =
            pairs.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        injected(json!({"env": env}))
    };
    for proxy in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        let made = env(&[(proxy, "http://proxy:3128")]);
        let expected = [format!("{proxy}=http://proxy:3128")].into_iter().chain(variables.clone());
        let expected: Vec<String> =
            expected.chain([format!("NO_PROXY={DIRECT}"), format!("no_proxy={DIRECT}")]).collect();
        assert_eq!(made, expected);
    }
    // Its own exceptions are lengthened, with or without a proxy in sight: that may come from the image or from envFrom.
    for no_proxy in ["NO_PROXY", "no_proxy"] {
        assert_eq!(env(&[(no_proxy, ".svc,10.0.0.0/8")])[0], format!("{no_proxy}=.svc,10.0.0.0/8,{DIRECT}"));
        assert_eq!(env(&[(no_proxy, "*")])[0], format!("{no_proxy}=*"));
    }
    let both = env(&[("HTTP_PROXY", "http://proxy:3128"), ("NO_PROXY", "a"), ("no_proxy", "b")]);
    assert_eq!(both[1..3], [format!("NO_PROXY=a,{DIRECT}"), format!("no_proxy=b,{DIRECT}")]);
    assert_eq!(both[3..], variables);
}

#[test]
fn a_pod_that_names_a_variable_twice_is_still_made() {
    let made = injected(json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}));
    assert_eq!(made[..2], ["A=1", "A=2"]);
}

#[test]
fn the_variables_for_clusters_without_the_policy_are_the_ones_it_sets() {
    let readme = std::fs::read_to_string(manifest("README.md")).expect("daemonset/README.md");
    for (name, value) in [URI, WORD] {
        assert!(readme.contains(&format!("{{name: {name}, value: {value}}}")), "{name}");
    }
    assert!(readme.contains(DIRECT));
}

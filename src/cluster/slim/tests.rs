//! What is read of objects as a real API server writes them, and of ones that none should.

use super::*;
use crate::identity::pods::Pod;
use serde_json::{Value, json};

/// A Deployment's pod as kube-apiserver 1.36 shows it, managedFields and all: about 10 KB.
fn realistic() -> Value {
    let variables: Vec<Value> = (0..24)
        .map(|i| json!({"name": format!("SETTING_{i}"), "value": "https://example.com/\"a\"/".repeat(3)}))
        .collect();
    let mut container = json!({
        "name": "web", "image": "registry.example.com/team/web:1.2.3", "env": variables,
        "resources": {"limits": {"memory": "128Mi"}, "requests": {"cpu": "10m"}},
        "volumeMounts": [{"name": "kube-api-access-x", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
        "envFrom": [{"configMapRef": {"name": "settings"}}],
    });
    let plain = container.clone();
    container["env"].as_array_mut().unwrap().insert(3, json!({
        "name": "AWS_CONTAINER_CREDENTIALS_FULL_URI", "value": "http://169.254.170.23:9902/v1/credentials",
    }));
    container["env"].as_array_mut().unwrap().push(json!({
        "name": "NODE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}},
    }));
    let fields: serde_json::Map<String, Value> = (0..40)
        .map(|i| (format!("f:field{i}"), json!({"f:a": {}, "f:b": {"k:{\"name\":\"x\"}": {}}})))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web-5d9c7b8f4-x2x7k", "generateName": "web-5d9c7b8f4-", "namespace": "shop",
            "uid": "9f1c4f0e-5b0e-4f0e-9d5e-0a7c6e1d2b3c", "resourceVersion": "81234", "generation": 1,
            "creationTimestamp": "2026-11-22T05:00:00Z",
            "labels": {"app": "web"}, "annotations": {"note": "é \n"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d9c7b8f4", "uid": "u", "controller": true}],
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": fields}],
        },
        "spec": {
            "serviceAccountName": "web", "serviceAccount": "web", "nodeName": "node1",
            "initContainers": [plain.clone()], "containers": [container, plain],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300}],
        },
        "status": {
            "phase": "Running", "hostIP": "192.0.2.1", "podIP": "10.244.1.7",
            "podIPs": [{"ip": "10.244.1.7"}, {"ip": "fd00:10:244:1::7"}],
            "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null}],
        },
    })
}

fn read(object: &Value) -> SlimPod {
    serde_json::from_str(&object.to_string()).unwrap()
}

fn pod(object: &Value) -> Pod {
    read(object).understood().expect("a pod that can be read")
}

fn with(pointer: &str, value: Value) -> Value {
    let mut object = realistic();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[key] = value;
    object
}

#[test]
fn a_realistic_pod_is_read_down_to_the_fields_that_are_used() {
    let object = realistic();
    assert!(object.to_string().len() > 9_000, "{}", object.to_string().len());
    let pod = pod(&object);
    assert_eq!(pod.uid.as_str(), "9f1c4f0e-5b0e-4f0e-9d5e-0a7c6e1d2b3c");
    assert_eq!(&*pod.name, "web-5d9c7b8f4-x2x7k");
    assert_eq!(pod.service_account.to_string(), "shop/web");
    assert_eq!(pod.addresses, ["10.244.1.7".parse::<IpAddr>().unwrap(), "fd00:10:244:1::7".parse().unwrap()]);
    assert!(pod.asks && !pod.host_network && !pod.finished && !pod.terminating);
    assert_eq!(read(&object).resource_version(), Some("81234"));
}

#[test]
fn only_our_variables_in_a_container_or_init_container_say_that_a_pod_will_ask() {
    assert!(!pod(&with("/spec/containers", json!([{"name": "web", "env": [{"name": "AWS_REGION"}]}]))).asks);
    assert!(!pod(&with("/spec/containers", json!([{"name": "web"}]))).asks);
    assert!(!pod(&with("/spec/containers", Value::Null)).asks);
    let relative = json!([{"name": "init", "env": [{"name": "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"}]}]);
    let mut object = with("/spec/initContainers", relative);
    object["spec"]["containers"] = json!([{"name": "web", "env": null}]);
    assert!(pod(&object).asks);
}

#[test]
fn a_pod_that_names_no_service_account_has_the_default_one() {
    assert_eq!(&*pod(&with("/spec/serviceAccountName", json!(""))).service_account.name, "default");
    assert_eq!(&*pod(&with("/spec/serviceAccountName", Value::Null)).service_account.name, "default");
}

#[test]
fn addresses_are_unmapped_and_the_old_field_counts_where_the_new_one_is_absent() {
    let mapped = pod(&with("/status/podIPs", json!([{"ip": "::ffff:10.0.0.7"}])));
    assert_eq!(mapped.addresses, ["10.0.0.7".parse::<IpAddr>().unwrap()]);
    let old = pod(&with("/status/podIPs", Value::Null));
    assert_eq!(old.addresses, ["10.244.1.7".parse::<IpAddr>().unwrap()]);
    assert_eq!(pod(&with("/status", json!({"phase": "Pending"}))).addresses, Vec::<IpAddr>::new());
}

#[test]
fn phase_and_deletion_timestamp_are_told_apart() {
    for (phase, finished) in
        [("Pending", false), ("Running", false), ("Succeeded", true), ("Failed", true), ("Unknown", false)]
    {
        assert_eq!(pod(&with("/status/phase", json!(phase))).finished, finished, "{phase}");
    }
    let going = pod(&with("/metadata/deletionTimestamp", json!("2026-11-22T05:00:00Z")));
    assert!(going.terminating && going.live());
    assert!(pod(&with("/spec/hostNetwork", json!(true))).host_network);
}

#[test]
fn a_pod_that_cannot_be_read_is_left_out_and_the_others_stay() {
    for broken in [
        with("/status/podIPs", json!([{"ip": "10.0.0.300"}])),
        with("/metadata/uid", json!(7)),
        with("/spec/hostNetwork", json!("yes")),
        with("/spec/containers", json!("none")),
        json!({"metadata": {}}),
        json!("not even an object"),
    ] {
        let list = json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": [realistic(), broken, realistic()]});
        let list: kube::core::ObjectList<SlimPod> = serde_json::from_str(&list.to_string()).unwrap();
        assert_eq!(list.items[1].resource_version(), None);
        assert_eq!(list.items.into_iter().filter_map(SlimPod::understood).count(), 2);
    }
}

#[test]
fn two_forms_of_one_address_are_one_claim() {
    let twice = json!([{"ip": "10.244.1.7"}, {"ip": "::ffff:10.244.1.7"}, {"ip": "fd00::7"}]);
    let addresses = pod(&with("/status/podIPs", twice)).addresses;
    assert_eq!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.244.1.7", "fd00::7"]);
}

#[test]
fn of_a_pods_annotations_those_that_ask_for_a_role_are_kept() {
    assert_eq!(pod(&realistic()).asked, None);
    let annotations = json!({
        "iam.amazonaws.com/role": "team/\"web\"", "iam.amazonaws.com/external-id": "x", "note": "y",
        "iam.amazonaws.com/session-name": "web",
    });
    let asked = pod(&with("/metadata/annotations", annotations)).asked.unwrap();
    assert_eq!(asked.role.as_deref(), Some("team/\"web\""));
    assert_eq!((asked.external_id.as_deref(), asked.session_name.as_deref()), (Some("x"), Some("web")));
    assert_eq!(pod(&with("/metadata/annotations", Value::Null)).asked, None);
    let wrong = read(&with("/metadata/annotations", json!({"iam.amazonaws.com/role": ["a", "b"]})));
    assert!(wrong.understood().is_none(), "what no API server writes gets nothing");
}

#[test]
fn irsas_variable_is_preferred_where_one_container_has_it_beside_ours() {
    let containers = |names: [&[&str]; 2]| {
        let container = |names: &[&str]| json!({"env": names.iter().map(|name| json!({"name": name, "value": "x"})).collect::<Vec<_>>()});
        pod(&with("/spec/containers", json!(names.map(container))))
    };
    let (ours, irsas) = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_WEB_IDENTITY_TOKEN_FILE");
    assert!(containers([&[], &[irsas, ours]]).prefers_web_identity);
    for neither in [[&[ours][..], &[irsas]], [&[ours], &[]], [&[irsas], &[irsas]]] {
        assert!(!containers(neither).prefers_web_identity, "{neither:?}");
    }
    assert!(containers([&[ours], &[irsas]]).asks);
}

#[test]
fn irsas_variable_is_seen_in_any_container() {
    let env = json!([{"env": [{"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": "x"}]}, {}]);
    for list in ["/spec/containers", "/spec/initContainers"] {
        assert!(read(&with(list, env.clone())).has_web_identity(), "{list}");
    }
    assert!(!read(&realistic()).has_web_identity());
}

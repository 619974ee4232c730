//! What strangers write, as they never should: request heads, annotations, ARNs, session names, pods. The kernel's texts and messages are
//! in `src/identity/kernel/fuzz.rs`, the API server's token answers beside the code that reads them.
//!
//! Each has an oracle beyond "it does not panic".

#[path = "support/fuzz.rs"]
mod fuzz;
#[path = "support/http.rs"]
mod http;
#[path = "support/loopback.rs"]
mod loopback;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fuzz::{fuzz, inputs, rounds};
use loopback::{Loopback, WEB};
use rolecall::cluster::slim::SlimPod;
use rolecall::fakes::account;
use rolecall::role::arn::RoleArn;
use rolecall::role::session_name::Template;
use rolecall::role::{By, Defaults, RolePlan, Roles, SESSION_LIFE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const ROLE: &str = "arn:aws:iam::123456789012:role/team/web";
const SECOND: &str = "arn:aws:iam::999988887777:role/service";

/// Whatever is answered with credentials asked for exactly them, of us, by itself.
#[tokio::test]
async fn only_a_request_for_our_path_at_our_address_is_given_credentials() {
    let agent = Loopback::start();
    let own = agent.address;
    let corpus = [
        http::request(own),
        format!(
            "GET /v1/credentials HTTP/1.1\r\nHost: {}\r\nUser-Agent: aws-sdk-go-v2/1.30\r\nAuthorization: x\r\n\r\n",
            own.ip()
        ),
        "GET /v1/credentials HTTP/1.0\r\n\r\n".to_owned(),
        // What is refused is as good to begin with.
        format!("GET /v1/credentials HTTP/1.1\r\nHost: {}.\r\n\r\n", own.ip()),
        format!("GET /v1/credentials HTTP/1.1\r\nHost: [{}]\r\n\r\n", own.ip()),
        format!(
            "POST /v1/credentials HTTP/1.1\r\nHost: {own}\r\nContent-Length: 3\r\n\r\nabc{}",
            http::request(own)
        ),
        format!(
            "GET /v1/credentials HTTP/1.1\r\nHost: {own}\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\n\r\n"
        ),
        format!(
            "GET http://{own}/v1/credentials HTTP/1.1\r\nHost: {own}\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n"
        ),
    ];
    let words = [
        "\r\n",
        "\n",
        "\r",
        "\r\n\r\n",
        "Host: ",
        "Host: evil.example\r\n",
        "GET ",
        "/v1/credentials",
        " HTTP/1.1",
        " HTTP/1.0",
        "Origin: x\r\n",
        "Referer:",
        "Sec-Fetch-Mode: a\r\n",
        "Forwarded: a\r\n",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "@",
        "127.0.0.1",
        "[::1]",
        "http://",
        "%2f",
        "?",
        "#",
        "..",
    ];
    let first =
        std::env::var("ROLECALL_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let inputs: Vec<_> = inputs(first, rounds(3000), &corpus, &words).collect();
    let mut granted = 0;
    for batch in inputs.chunks(32) {
        let answers = batch.iter().map(async |(_, input)| answered(own, input).await);
        for ((seed, input), answer) in batch.iter().zip(futures_util::future::join_all(answers).await) {
            // Whoever is answered twice has asked twice.
            let grants = answer.matches("HTTP/1.1 200").count() + answer.matches("HTTP/1.0 200").count();
            let questions = String::from_utf8_lossy(input).matches("GET /v1/credentials").count();
            assert!(grants <= questions, "ROLECALL_SEED={seed} {answer}");
            let answer = answer.split("HTTP/1.").nth(1).unwrap_or("1 closed");
            let status = answer.split(' ').nth(1).unwrap_or_default();
            if status == "200" {
                granted += 1;
                assert!(is_for_us(input, own), "ROLECALL_SEED={seed} {:?}", String::from_utf8_lossy(input));
            } else {
                assert!(status == "closed" || status.starts_with('4'), "ROLECALL_SEED={seed} {answer}");
                assert!(!answer.contains("SecretAccessKey"), "ROLECALL_SEED={seed} {answer}");
            }
        }
    }
    assert!(granted >= 3, "{granted} of {}: nothing was tried", inputs.len());
}

/// What is answered at once, or the beginning of it.
async fn answered(to: SocketAddr, input: &[u8]) -> String {
    let mut stream = http::connect(WEB, to).await;
    let _ = stream.write_all(input).await;
    let mut answer = vec![0; 4096];
    // What is only the beginning of a request is not answered, and is no business of this test.
    let read = timeout(Duration::from_millis(20), stream.read(&mut answer)).await;
    let length = read.ok().and_then(Result::ok).unwrap_or(0);
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

/// Read by other means: lines, as every parser takes them.
fn is_for_us(input: &[u8], own: SocketAddr) -> bool {
    let text = String::from_utf8_lossy(input);
    let mut lines = text
        .split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
        .skip_while(|line| line.is_empty());
    // A fragment is dropped by the HTTP library before anybody sees it.
    let line = lines.next().unwrap_or_default();
    let line = match line.split_once('#') {
        Some((target, rest)) => format!("{target} {}", rest.rsplit(' ').next().unwrap_or_default()),
        None => line.to_owned(),
    };
    let old = match &*line {
        "GET /v1/credentials HTTP/1.1" => false,
        "GET /v1/credentials HTTP/1.0" => true,
        _ => return false,
    };
    let mut hosts = Vec::new();
    for line in lines.take_while(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(':') else { return false };
        let name = name.to_ascii_lowercase();
        if ["origin", "referer", "forwarded", "x-forwarded-for"].contains(&&*name)
            || name.starts_with("sec-fetch-")
        {
            return false;
        }
        if name == "host" {
            hosts.push(value.trim_matches([' ', '\t']).to_owned());
        }
    }
    match &hosts[..] {
        [] => old,
        [host] => {
            let (ip, port) = host.split_once(':').unwrap_or((host, "1"));
            ip == own.ip().to_string()
                && port.parse::<u16>().is_ok()
                && port.bytes().all(|b| b.is_ascii_digit())
        }
        _ => false,
    }
}

#[test]
fn what_is_taken_for_a_role_arn_is_one_and_stays_as_it_was() {
    let corpus = [
        ROLE,
        "arn:aws-cn:iam::123456789012:role/x",
        "arn:minio:iam:::role/abc",
        "arn:aws:iam:::role/ceph",
        "arn:aws:iam::RGW33567154695143645:role/ceph",
        "arn:aws:iam::aws:policy/x",
    ];
    let words = ["arn:", "aws", "iam", "::", ":", "role/", "/", "123456789012", "user/", "*", "é", "\n", " "];
    let is_aws = |account: &str| account.len() == 12 && account.parse::<u64>().is_ok();
    fuzz(50_000, &corpus, &words, |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        let Ok(arn) = RoleArn::parse(text) else { return };
        assert_eq!(arn.as_str(), text);
        assert_eq!(RoleArn::parse(arn.as_str()).unwrap(), arn);
        assert_eq!(arn.to_string(), text);
        // By other means: six parts, nothing in them that could end a line, a URL or a pattern.
        let parts: Vec<&str> = text.split(':').collect();
        assert!(matches!(parts[..], ["arn", _, "iam", "", account, role]
            if role.starts_with("role/") && role.len() > 5 && (account.is_empty() || is_aws(account)
                // A tenant of Ceph's is never a mistyped account.
                || account.starts_with(|first: char| first.is_ascii_alphabetic()))));
        assert!(
            text.bytes().all(|byte| byte.is_ascii_graphic() && !b"*?\"'\\<>#%&".contains(&byte)),
            "{text}"
        );
        assert_eq!(arn.account(), Some(parts[4]).filter(|account| is_aws(account)));
    });
}

/// `NAME=VALUE` lines stand for a ServiceAccount's annotations.
#[test]
fn a_plan_is_made_only_of_annotations_that_are_all_understood() {
    let known = [
        "role-arn",
        "assume-role-arn",
        "session-name",
        "session-duration",
        "policy-arns",
        "external-id",
        "session-tags",
        "source-identity",
        "not-before",
    ];
    let all = format!(
        "rolecall.dev/role-arn={ROLE}\nrolecall.dev/session-name={{namespace}}.{{pod}}\nrolecall.dev/session-duration=2h\n\
         rolecall.dev/policy-arns=arn:aws:iam::aws:policy/ReadOnlyAccess,arn:aws:iam::123456789012:policy/x\n\
         rolecall.dev/not-before=2026-11-22T05:00:00Z\neks.amazonaws.com/audience=sts.amazonaws.com\n\
         eks.amazonaws.com/token-expiration=86400\neks.amazonaws.com/sts-regional-endpoints=true\nother.example/x=y"
    );
    let corpus = [
        all,
        format!("rolecall.dev/role-arn={ROLE}"),
        format!("eks.amazonaws.com/role-arn={ROLE}\neks.amazonaws.com/token-expiration=600"),
        format!("rolecall.dev/role-arn={ROLE}\nrolecall.dev/external-id=x"),
        format!(
            "rolecall.dev/role-arn={ROLE}\nrolecall.dev/assume-role-arn={SECOND}\nrolecall.dev/external-id=x1\n\
             rolecall.dev/session-tags=kubernetes-namespace,kubernetes-pod-name:transitive\n\
             rolecall.dev/source-identity={{namespace}}.{{pod}}\nrolecall.dev/session-duration=2h"
        ),
        format!(
            "rolecall.dev/role-arn={ROLE}\nrolecall.dev/assume-role-arn.x={SECOND}\nrolecall.dev/session-tags.x=kubernetes-node"
        ),
    ];
    let words = [
        "rolecall.dev/",
        "eks.amazonaws.com/",
        "role-arn",
        "session-name",
        "audience",
        "=",
        "\n",
        "{namespace}",
        "{service-account}",
        "{pod}",
        "{node}",
        "{",
        "}",
        "15m",
        "12h",
        "13h",
        "0",
        "-1",
        "99999999999999999999h",
        "false",
        "https://kubernetes.default.svc",
        ",",
        "é",
        ROLE,
        "assume-role-arn",
        SECOND,
        "external-id",
        "session-tags",
        "source-identity",
        ".x",
        ":transitive",
        "kubernetes-pod-uid",
        "eks-cluster-name",
    ];
    let (defaults, name) = (Defaults::of_node("node-1"), account("web"));
    fuzz(30_000, &corpus, &words, |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        let annotations: BTreeMap<String, String> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let roles = Roles::from_annotations(&name, "uid-web", &annotations, &defaults);
        let other = Roles::from_annotations(&account("other"), "uid-other", &annotations, &defaults);
        let named = roles.named.iter().map(|(role, plan)| (format!(".{role}"), plan, &other.named[role]));
        for (role, plan, other) in
            std::iter::once((String::new(), &roles.default, &other.default)).chain(named)
        {
            let Ok(plan) = plan else { continue };
            is_what_was_asked(&role, plan, &annotations, &known);
            // And another account's are other plans, from the first hop on.
            let keys = |plan: &Arc<RolePlan>| plan.hops().map(|hop| hop.key()).collect::<Vec<_>>();
            assert!(keys(other.as_ref().unwrap()).iter().all(|key| !keys(plan).contains(key)));
        }
        // The same annotations give the same plans, wherever and however often.
        assert_eq!(Roles::from_annotations(&name, "uid-web", &annotations, &defaults), roles);
    });
}

/// `role` is empty for the default one, or `.NAME`.
fn is_what_was_asked(
    role: &str,
    plan: &Arc<RolePlan>,
    annotations: &BTreeMap<String, String>,
    known: &[&str],
) {
    // Rule 8: nothing of ours that is not understood.
    for ours in annotations.keys().filter_map(|name| name.strip_prefix("rolecall.dev/")) {
        assert!(known.contains(&ours.split('.').next().unwrap()), "{ours}");
    }
    let text = |annotation: &str| annotations.get(annotation).map(|text| text.trim());
    let own = |annotation: &str| text(&format!("rolecall.dev/{annotation}{role}"));
    // The first role is what an annotation says, ours before EKS's; the last one, too.
    let first = own("role-arn")
        .or_else(|| text("rolecall.dev/role-arn"))
        .or_else(|| text("eks.amazonaws.com/role-arn"));
    let last = own("assume-role-arn").or(first);
    assert_eq!(Some(plan.role.as_str()), last);
    assert_eq!(plan.hops().last().map(|hop| hop.role.as_str()), first);
    for hop in plan.hops() {
        assert_eq!(hop.account_uid, plan.account_uid);
        assert_eq!(hop.not_before, plan.not_before);
        assert!((SESSION_LIFE.0..=SESSION_LIFE.1).contains(&hop.session_duration));
        is_a_session_name(hop.session_name.as_str());
        // The agent mints for nobody but STS, and STS gets what it takes.
        match &hop.by {
            By::WebIdentity { audience, token_life, .. } => {
                assert_eq!(&**audience, "sts.amazonaws.com");
                assert!((Duration::from_secs(600)..=Duration::from_secs(3600)).contains(token_life));
            }
            By::AssumeRole { external_id, tags, source_identity, .. } => {
                assert!(hop.session_duration <= SESSION_LIFE.0 * 4, "a chain's limit is an hour");
                assert!(external_id.as_ref().is_none_or(|id| (2..=1224).contains(&id.len())));
                assert!(tags.len() <= 6 && tags.iter().all(|tag| tag.value().len() <= 256));
                source_identity.iter().for_each(|name| is_a_session_name(name.as_str()));
            }
        }
    }
    // What narrows or marks the session is on the last hop, whichever that is.
    let setting = |annotation: &str| own(annotation).or_else(|| text(&format!("rolecall.dev/{annotation}")));
    assert_eq!(setting("policy-arns").map_or(0, |list| list.split(',').count()), plan.policy_arns.len());
    assert!(
        plan.policy_arns.len() <= 10
            && plan.policy_arns.iter().all(|arn| arn.starts_with("arn:") && arn.contains(":iam::"))
    );
    let (external_id, tags, source_identity) = match &plan.by {
        By::WebIdentity { .. } => (false, 0, false),
        By::AssumeRole { external_id, tags, source_identity, .. } => {
            (external_id.is_some(), tags.len(), source_identity.is_some())
        }
    };
    assert_eq!(external_id, setting("external-id").is_some());
    assert_eq!(tags, setting("session-tags").map_or(0, |list| list.split(',').count()));
    assert_eq!(source_identity, setting("source-identity").is_some());
}

fn is_a_session_name(name: &str) {
    assert!((2..=64).contains(&name.len()), "{name:?}");
    assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c)), "{name:?}");
}

#[test]
fn whatever_a_template_renders_is_a_session_name() {
    let corpus = [
        "{namespace}.{service-account}",
        "{cluster}/{node}:{pod}",
        "x",
        "{pod}",
        "{namespace}{namespace}{namespace}",
    ];
    let words =
        ["{", "}", "{pod}", "{node}", "{cluster}", "é", "\0", " ", "long-long-long-long-long-long-long-long"];
    fuzz(30_000, &corpus, &words, |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        let Ok(template) = Template::parse(text, "node-1.example", "cluster one") else { return };
        for pod in [
            None,
            Some("web-0"),
            Some("a pod whose name is very long indeed, and of many words, as none can be"),
        ] {
            let name = template.render(&account("web"), pod);
            is_a_session_name(name.as_str());
            assert_eq!(name, template.render(&account("web"), pod));
        }
    });
}

/// A pod that cannot be read is left out; one that can has nothing that is not in it.
#[test]
fn a_pod_of_the_api_server_has_only_what_its_object_says() {
    let pod = |status: &str| {
        format!(
            r#"{{"metadata":{{"name":"web-0","namespace":"shop","uid":"3f2a9c1e-7b64-4d05-9e8a-1c2d3e4f5a6b","resourceVersion":"7"}},"spec":{{"serviceAccountName":"web","hostNetwork":false,"containers":[{{"name":"main","env":[{{"name":"AWS_CONTAINER_CREDENTIALS_FULL_URI","value":"http://169.254.170.23/v1/credentials"}}]}}]}},"status":{status}}}"#
        )
    };
    let corpus = [
        pod(r#"{"phase":"Running","podIP":"10.0.0.7","podIPs":[{"ip":"10.0.0.7"},{"ip":"fd00::7"}]}"#),
        pod(r#"{"phase":"Succeeded","podIP":"::ffff:10.0.0.7"}"#),
        pod("{}"),
    ];
    let words = [
        "null",
        "[]",
        "{}",
        "\"\"",
        "1",
        "true",
        ",",
        "\"uid\":",
        "\"hostNetwork\":true",
        "\"phase\":\"Failed\"",
        "\"ip\":",
        "10.0.0.8",
        "\\u0000",
    ];
    fuzz(20_000, &corpus, &words, |input| {
        let Ok(object) = serde_json::from_slice::<SlimPod>(input) else { return };
        let Some(pod) = object.understood() else { return };
        // What is skipped may be a number that no float holds.
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(input) else { return };
        assert_eq!(value["metadata"]["uid"], pod.uid.as_str());
        assert_eq!(value["metadata"]["namespace"], *pod.service_account.namespace);
        let named = value["spec"]["serviceAccountName"].as_str().filter(|name| !name.is_empty());
        assert_eq!(named.unwrap_or("default"), &*pod.service_account.name);
        let text = String::from_utf8_lossy(input).to_ascii_lowercase();
        for address in &pod.addresses {
            assert!(text.contains(&address.to_string()) || address.is_ipv6(), "{address} in {text}");
        }
        assert_eq!(pod.host_network, value["spec"]["hostNetwork"] == true);
        assert_eq!(
            pod.finished,
            ["Succeeded", "Failed"].iter().any(|phase| value["status"]["phase"] == *phase)
        );
    });
}

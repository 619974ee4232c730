//! Who gets what: tokens that name their pod, one flight for all, refusals, and annotations that change under running pods.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use jiff::Timestamp;
use rolecall::emulator::Fault;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::agent::{SOON, ask, until};
use crate::http;
use crate::netns::{NODE_IP, NODE_IP_V6};
use crate::tenant::Shape;
use crate::world::{V4, arn, on_the_node};

/// A changed annotation counts within this.
const ANNOTATION: Duration = Duration::from_secs(10);

#[test]
fn the_token_is_for_sts_alone_and_ends_with_its_pod() {
    on_the_node("bound", async |case| {
        // An STS that keeps what it is shown, and is good for nothing else.
        let sts = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", sts.local_addr().unwrap());
        let (_agent, to) =
            case.agent("bound", &case.kubeconfig("bound"), &["--sts-endpoint-url", &url]).await;
        case.account("web").await;
        let pod = case.pod_on("bound", "web", Shape::Routed).await;
        let asking = async {
            loop {
                let answer = pod.get(to).await;
                assert_eq!(answer.status, 503, "{answer:?}");
            }
        };
        let token = tokio::select! {
            () = asking => unreachable!(),
            token = timeout(SOON, web_identity_token(&sts)) => token.unwrap(),
        };

        let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(claims["aud"], json!(["sts.amazonaws.com"]));
        assert_eq!(claims["sub"], "system:serviceaccount:bound:web");
        assert_eq!(claims["kubernetes.io"]["pod"], json!({"name": pod.name, "uid": pod.uid}));
        let life = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
        assert_eq!(life, 3600);
        let good = async |audiences: &[&str]| case.review(&token, audiences).await["authenticated"] == true;
        assert!(good(&["sts.amazonaws.com"]).await);
        case.delete(&pod.name).await;
        // The API server remembers its own judgement for ten seconds: another question is judged anew.
        let ended = async || (!good(&["sts.amazonaws.com", "another"]).await).then_some(());
        until(SOON, || "the token outlives its pod".into(), ended).await;
    });
}

/// The token of the next call, which fails.
async fn web_identity_token(sts: &TcpListener) -> String {
    let (mut call, _) = sts.accept().await.unwrap();
    let mut read = String::new();
    loop {
        let mut chunk = [0; 4096];
        let length = call.read(&mut chunk).await.unwrap();
        read.push_str(std::str::from_utf8(&chunk[..length]).unwrap());
        let fields = read.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        // The Version of STS's API is the last field, and the token stands before it.
        if length == 0 || fields.contains("&Version=") || fields.matches('&').count() >= 5 {
            let mut fields = form_urlencoded::parse(fields.as_bytes());
            let token = fields.find(|(name, _)| name == "WebIdentityToken").expect("a token").1.into_owned();
            call.write_all(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            return token;
        }
    }
}

#[test]
fn a_hundred_callers_at_once_cost_one_sts_call() {
    on_the_node("hundred", async |case| {
        let to = V4.parse().unwrap();
        case.account("web").await;
        case.fault("web", Fault { delay_ms: 1500, ..Fault::default() });
        let pod = case.pod("web").await;
        let mut connections: Vec<_> = (0..100).map(|_| pod.connect(to)).collect();
        let documents = join_all(connections.iter_mut().map(async |stream| {
            loop {
                match ask(stream, to).await {
                    Some(answer) if answer.status == 200 => return answer.json(),
                    Some(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
                    // A refusal while the address was not confirmed has ended it.
                    None => *stream = pod.connect(to),
                }
            }
        }));
        let documents = timeout(SOON, documents).await.unwrap();
        assert!(documents.iter().all(|document| document["AccessKeyId"] == documents[0]["AccessKeyId"]));
        assert_eq!(documents[0]["RoleArn"], arn("hundred", "web"));
        assert_eq!(case.calls("web"), 1);
    });
}

#[test]
fn a_process_of_the_node_is_no_pod() {
    on_the_node("host", async |case| {
        // Its addresses are known from any pod on the host network: on a real node, the agent's own is one.
        case.account("web").await;
        case.host_pod("web").await;
        for (from, to) in [
            (NODE_IP, V4),
            ("127.0.0.1", V4),
            // What the kernel picks for a connection to one of the node's own addresses.
            ("169.254.170.23", V4),
            (NODE_IP_V6, "[fd00:ec2::23]:9902"),
        ] {
            let to = to.parse().unwrap();
            let ask = async || {
                let answer = http::get(from, to, &http::request(to)).await;
                (answer.status != 503).then_some(answer)
            };
            let answer = until(SOON, || format!("503 for {from}"), ask).await;
            assert_eq!((answer.status, &*answer.code()), (403, "CallerNotIdentified"), "{from}: {answer:?}");
            assert_eq!(answer.header("connection"), Some("close"));
        }
    });
}

#[test]
fn a_pod_whose_object_was_deleted_gets_no_answer_on_its_kept_connection() {
    on_the_node("deleted", async |case| {
        let to = V4.parse().unwrap();
        case.account("web").await;
        let pod = case.pod("web").await;
        pod.credentials(to).await;
        let mut kept = pod.connect(to);
        assert_eq!(ask(&mut kept, to).await.unwrap().status, 200);
        case.delete(&pod.name).await;
        let refusal = last_answer(&mut kept, to).await;
        assert_eq!((refusal.status, &*refusal.code()), (403, "CallerNotIdentified"), "{refusal:?}");
        assert!(ask(&mut kept, to).await.is_none(), "the connection is closed");
        let (again, _) = pod.until(to, SOON, |answer| answer.status != 503).await;
        assert_eq!((again.status, &*again.code()), (403, "CallerNotIdentified"), "{again:?}");
    });
}

/// The first answer that is not 200.
async fn last_answer(kept: &mut TcpStream, to: std::net::SocketAddr) -> http::Answer {
    let answers = async {
        loop {
            let answer = ask(kept, to).await.expect("an answer before the end");
            if answer.status != 200 {
                return answer;
            }
        }
    };
    timeout(SOON, answers).await.expect("200 without end")
}

#[test]
fn a_pod_whose_address_the_api_shows_as_anothers_is_refused_and_the_new_owner_has_its_own_role() {
    on_the_node("reused", async |case| {
        let to = V4.parse().unwrap();
        case.account("web").await;
        case.account("api").await;
        let pod = case.pod("web").await;
        assert_eq!(pod.credentials(to).await["RoleArn"], arn("reused", "web"));
        let mut kept = pod.connect(to);
        assert_eq!(ask(&mut kept, to).await.unwrap().status, 200);

        let next = case.pod_object("node", "next", "api", &[&pod.ip, &pod.ipv6]).await;
        let (both, _) = pod.until(to, SOON, |answer| ![200, 503].contains(&answer.status)).await;
        assert_eq!((both.status, &*both.code()), (403, "SourceMismatch"), "{both:?}");
        assert_ne!(ask(&mut kept, to).await.unwrap().status, 200);
        // Which of the two it is, the processes say; and of two live claims to one address neither is believed.
        let last = pod.name.clone();
        let pod = pod.now_runs("next", &next);
        let (answer, _) = pod.until(to, SOON, |answer| answer.status != 503).await;
        assert_eq!(answer.code(), "SourceMismatch");
        case.delete(&last).await;
        assert_eq!(pod.credentials(to).await["RoleArn"], arn("reused", "api"));
    });
}

#[test]
fn by_address_the_next_owner_gets_its_own_role_and_the_last_one_nothing() {
    on_the_node("by-address", async |case| {
        let args = ["--sts-endpoint-url", &case.world.sts, "--identity", "ip"];
        let (agent, to) = case.agent("by-address", &case.kubeconfig("by-address"), &args).await;
        case.account("web").await;
        case.account("api").await;
        let pod = case.pod_on("by-address", "web", Shape::Routed).await;
        assert_eq!(pod.credentials(to).await["RoleArn"], arn("by-address", "web"));
        let mut kept = pod.connect(to);
        assert_eq!(ask(&mut kept, to).await.unwrap().status, 200);

        case.pod_object("by-address", "next", "api", &[&pod.ip, &pod.ipv6]).await;
        let (both, _) = pod.until(to, SOON, |answer| answer.status != 200).await;
        assert_eq!((both.status, &*both.code()), (403, "CallerAmbiguous"), "{both:?}");
        case.delete(&pod.name).await;
        let (next, _) = pod.until(to, SOON, |answer| answer.status == 200).await;
        assert_eq!(next.json()["RoleArn"], arn("by-address", "api"));
        // For a moment the last owner may still be there, terminating; then it is gone.
        let refusal = last_answer(&mut kept, to).await;
        assert_eq!(refusal.status, 403, "{refusal:?}");
        assert!(["CallerAmbiguous", "CallerNotIdentified"].contains(&&*refusal.code()), "{refusal:?}");
        agent.until_it_says("--identity=ip believes the source address").await;
    });
}

#[test]
fn an_annotation_counts_for_running_pods_within_ten_seconds() {
    on_the_node("changed", async |case| {
        let to = V4.parse().unwrap();
        case.account("web").await;
        let pod = case.pod("web").await;
        assert_eq!(pod.credentials(to).await["RoleArn"], arn("changed", "web"));
        let any = arn("changed", "any");
        case.annotate("web", json!({"rolecall.dev/role-arn": any})).await;
        let other = |answer: &http::Answer| answer.status == 200 && answer.json()["RoleArn"] == any;
        let (_, changed) = pod.until(to, ANNOTATION, other).await;
        case.annotate("web", json!({"rolecall.dev/role-arn": null})).await;
        let (answer, removed) = pod.until(to, ANNOTATION, |answer| answer.status != 200).await;
        assert_eq!((answer.status, &*answer.code()), (404, "NoRole"));
        case.annotate("web", json!({"rolecall.dev/role-arn": any})).await;
        let (_, granted) = pod.until(to, ANNOTATION, other).await;
        println!(
            "a change counted after {changed:?}, the removal after {removed:?}, a grant after {granted:?}"
        );
    });
}

#[test]
fn not_before_drops_what_was_issued_before() {
    on_the_node("revoked", async |case| {
        let to = V4.parse().unwrap();
        case.account("web").await;
        let pod = case.pod("web").await;
        let old = pod.credentials(to).await["AccessKeyId"].clone();
        assert_eq!(pod.credentials(to).await["AccessKeyId"], old);
        case.annotate("web", json!({"rolecall.dev/not-before": Timestamp::now().to_string()})).await;
        let new = |answer: &http::Answer| answer.status == 200 && answer.json()["AccessKeyId"] != old;
        pod.until(to, ANNOTATION, new).await;
        assert_eq!(case.calls("web"), 2);
    });
}

#[test]
fn a_trust_policy_for_another_service_account_is_a_remembered_refusal_with_its_fix() {
    on_the_node("distrusted", async |case| {
        let to = V4.parse().unwrap();
        case.account_with("web", json!({"rolecall.dev/role-arn": arn("distrusted", "api")})).await;
        let pod = case.pod("web").await;
        let (answer, _) = pod.until(to, SOON, |answer| answer.status != 503).await;
        assert_eq!((answer.status, &*answer.code()), (403, "StsDenied"), "{answer:?}");
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        for part in
            ["AccessDenied", "trust policy must allow sts:AssumeRoleWithWebIdentity", "ServiceAccount"]
        {
            assert!(message.contains(part), "{message}");
        }
        for _ in 0..20 {
            assert_eq!(pod.get(to).await.code(), "StsDenied");
        }
        assert_eq!(case.calls("api"), 1, "the refusal is remembered");
        // Another annotation is another question.
        case.annotate("web", json!({"rolecall.dev/role-arn": arn("distrusted", "web")})).await;
        pod.until(to, ANNOTATION, |answer| answer.status == 200).await;
        // What the agent knows of the first is gone with it.
        let known = async || {
            let (_, status) = case.world.agent.page("/statusz").await?;
            (!status.contains(&arn("distrusted", "api"))).then_some(())
        };
        until(SOON, || case.world.agent.output(), known).await;
    });
}

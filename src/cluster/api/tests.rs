//! Which answer of an API server is which error, and that no token leaves by one.

use std::io;

use http::{Request, Response};
use kube::client::Body;
use serde_json::Value;

use super::*;
use crate::identity::pods::PodUid;

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.secret.secret";

fn api(status: u16, date: &'static str, body: impl ToString) -> KubeApi {
    let body = body.to_string();
    let service = tower::service_fn(move |_: Request<Body>| {
        let answer =
            Response::builder().status(status).header(DATE, date).body(Body::from(body.clone().into_bytes()));
        async { Ok::<_, io::Error>(answer.unwrap()) }
    });
    KubeApi::new(kube::Client::new(service, "default"), "node1")
}

fn pod() -> Pod {
    Pod {
        uid: PodUid::new("uid-1"),
        name: "web-1".into(),
        addresses: Vec::new(),
        ..crate::fakes::pod("web", "192.0.2.1")
    }
}

async fn token(api: &KubeApi) -> Result<BoundToken, Error> {
    api.request_token(&pod(), "sts.amazonaws.com", Duration::from_secs(3600)).await
}

fn minted(expires: &str, seconds: u64) -> Value {
    json!({"spec": {"expirationSeconds": seconds}, "status": {"token": TOKEN, "expirationTimestamp": expires}})
}

#[tokio::test(start_paused = true)]
async fn each_answer_of_the_api_server_is_sorted() {
    let status = |code: u16| json!({"kind": "Status", "code": code, "message": "pod \"web-1\"\nnot so"});
    for code in [404, 409] {
        let error = token(&api(code, "", status(code))).await.unwrap_err();
        assert!(matches!(&error, Error::PodGone(text) if text.contains("pod \"web-1\" not so")), "{error:?}");
    }
    for code in [400, 403, 422, 302] {
        let error = token(&api(code, "", status(code))).await.unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{code}: {error:?}");
    }
    for code in [401, 429, 500, 503, 504] {
        let error = token(&api(code, "", "<html>bad day</html>")).await.unwrap_err();
        assert!(matches!(error, Error::Away(_)), "{code}: {error:?}");
    }
    // A list that is not there is no news of a pod.
    assert!(matches!(api(404, "", status(404)).pods_now().await, Err(Error::Refused(_))));
}

/// As the node, of a pod that was bound to it a moment ago: the first `refusals` answers are the Node authorizer's.
async fn minted_after(refusals: usize) -> Result<BoundToken, Error> {
    let refused = json!({"kind": "Status", "code": 403, "message": "serviceaccounts \"web\" is forbidden: \
        User \"system:node:node1\" cannot create: no relationship found between node 'node1' and this object"});
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let service = tower::service_fn(move |_: Request<Body>| {
        let nth = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (status, body) = if nth < refusals {
            (403, refused.to_string())
        } else {
            (201, minted("2030-01-01T01:00:00Z", 3600).to_string())
        };
        let answer = Response::builder().status(status).body(Body::from(body.into_bytes()));
        async { Ok::<_, io::Error>(answer.unwrap()) }
    });
    token(&KubeApi::new(kube::Client::new(service, "default"), "node1")).await
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_node_authorizer_does_not_know_yet_is_asked_for_again_and_then_taken_as_gone() {
    let begun = Instant::now();
    minted_after(4).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
    let begun = Instant::now();
    assert!(matches!(minted_after(usize::MAX).await, Err(Error::PodGone(_))));
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_says_nothing_is_away_after_five_seconds() {
    let service =
        tower::service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, io::Error>>());
    let api = KubeApi::new(kube::Client::new(service, "default"), "node1");
    let begun = Instant::now();
    assert!(matches!(token(&api).await, Err(Error::Away(_))));
    assert_eq!(begun.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_token_lives_by_the_api_servers_clock_and_never_longer_than_asked() {
    // The dates are years away from this machine's clock, whatever it shows.
    let date = "Tue, 01 Jan 2030 00:00:00 GMT";
    for (expires, seconds, life) in [
        ("2030-01-01T01:00:00Z", 3600, 3600),
        ("2030-01-01T00:10:00Z", 3600, 600),
        ("2030-01-01T01:00:00Z", 1200, 1200),
        ("2031-01-01T00:00:00Z", 31_536_000, 3600),
    ] {
        let token = token(&api(200, date, minted(expires, seconds))).await.unwrap();
        assert_eq!(token.remaining().as_secs(), life, "{expires} {seconds}");
    }
    let expired = token(&api(200, date, minted("2029-12-31T23:59:59Z", 3600))).await;
    assert!(matches!(expired, Err(Error::Refused(_))));
}

#[tokio::test(start_paused = true)]
async fn no_error_holds_the_token() {
    let answer = minted("2030-01-01T01:00:00Z", 3600).to_string();
    for body in [answer.replace("\"spec\"", "\"spec"), answer.replace("3600", &format!("\"{TOKEN}\""))] {
        let error = token(&api(200, "", body)).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }
}

/// Whatever stands in an answer, a token is not believed for longer than it was asked for, nor made of anything but the answer.
#[test]
fn a_token_answer_is_taken_as_it_is_or_not_at_all() {
    let corpus = [minted("2026-11-22T06:00:00Z", 3600).to_string(), minted("nonsense", 600).to_string()];
    let words = [
        "null",
        "\"\"",
        "-1",
        "99999999999999999999",
        "1e9",
        "9999-12-31T23:59:60Z",
        "{",
        "}",
        ",",
        "\"token\":",
    ];
    let sent: Timestamp = "2026-11-22T05:30:00Z".parse().unwrap();
    crate::fuzz::fuzz(20_000, &corpus, &words, |input| {
        let Ok(answer) = serde_json::from_slice::<TokenAnswer>(input) else { return };
        let asked = Duration::from_secs(3600);
        for sent in [None, Some(sent), Some(Timestamp::MIN), Some(Timestamp::MAX)] {
            assert!(answer.life(asked, sent) <= asked);
        }
        // What is skipped may be a number that no float holds.
        let Ok(value) = serde_json::from_slice::<Value>(input) else { return };
        assert_eq!(value["status"]["token"], answer.status.token);
    });
}

/// Whoever may make four pods of 1.5 MiB on a node decides how large a list of its pods is.
#[tokio::test(start_paused = true)]
async fn a_list_that_a_tenant_has_made_too_large_is_read_in_pieces() {
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = std::sync::Arc::clone(&asked);
    let service = tower::service_fn(move |request: Request<Body>| {
        let uri = request.uri().to_string();
        let page = |name: &str, more: &str| {
            let uid = format!("uid-{name}");
            let pod =
                json!({"metadata": {"name": name, "namespace": "shop", "uid": uid, "resourceVersion": "7"}});
            json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7", "continue": more}, "items": [pod]})
        };
        // What follows is asked for by more, until that is too much again; at last one by one.
        let limit = uri.split(['?', '&']).find_map(|part| part.strip_prefix("limit="));
        let body = match (limit, uri.contains("continue=more")) {
            (Some("3"), false) => page("large", "more").to_string(),
            (Some("1"), true) => page("web", "").to_string(),
            (None | Some("3" | "6"), _) => " ".repeat(MAX_ANSWER + 1),
            other => panic!("{other:?}"),
        };
        log.lock().unwrap().push(uri);
        async { Ok::<_, io::Error>(Response::new(Body::from(body.into_bytes()))) }
    });
    let api = KubeApi::new(kube::Client::new(service, "default"), "node1");
    let pods = api.pods_now().await.unwrap();
    assert_eq!(pods.iter().map(|pod| &*pod.name).collect::<Vec<_>>(), ["large", "web"]);
    let asked = asked.lock().unwrap();
    assert!(
        asked.len() == 5 && asked.iter().all(|uri| uri.contains("fieldSelector=spec.nodeName")),
        "{asked:?}"
    );
    assert!(!asked.iter().any(|uri| uri.contains("resourceVersion=")), "each is a quorum read: {asked:?}");
}

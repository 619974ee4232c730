//! What the client does with servers that are not as they should be.

use std::convert::Infallible;

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::net::TcpListener;

use super::*;

async fn ask(client: &kube::Client) -> Result<Response<Body>, kube::Error> {
    client.send(Request::get("/version").body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_server_without_http2_is_spoken_to_in_http1_from_the_second_attempt_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = service_fn(async |request: Request<Incoming>| {
                assert_eq!(request.version(), http::Version::HTTP_11);
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("{}"))))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
    let client = client(&kube::Config::new(url.parse().unwrap())).unwrap();
    let first = ask(&client).await.unwrap_err();
    assert!(crate::cluster::api::causes(&first).contains("no HTTP/2"), "{first:?}");
    for _ in 0..2 {
        assert_eq!(ask(&client).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_given_up_after_the_connect_timeout() {
    // The kernel accepts into the backlog; nobody ever answers the TLS hello.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let client = client(&kube::Config::new(url.parse().unwrap())).unwrap();
    let begun = tokio::time::Instant::now();
    let error = tokio::time::timeout(CONNECT * 2, ask(&client)).await.expect("it gives up").unwrap_err();
    assert!(begun.elapsed() >= CONNECT, "{error:?}");
}

#[tokio::test]
async fn a_kubeconfig_that_is_not_there_is_named_and_a_proxy_is_refused() {
    let error = config(Some(Path::new("/nonexistent/config"))).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/config"));
    let mut behind = kube::Config::new(Uri::from_static("https://127.0.0.1:6443"));
    behind.proxy_url = Some(Uri::from_static("http://127.0.0.1:3128"));
    assert!(matches!(client(&behind), Err(Error::Proxy)));
}

/// In a process of its own: variables belong to the whole process.
#[test]
fn stss_proxy_is_not_the_api_servers() {
    const CHILD: &str = "ROLECALL_TEST_PROXY_CHILD";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if std::env::var_os(CHILD).is_some() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let named = |cluster: serde_json::Value| {
            let config = serde_json::json!({
                "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}], "current-context": "x",
            });
            std::fs::write(file.path(), config.to_string()).unwrap();
            runtime.block_on(config_of(file.path())).proxy_url
        };
        let server = "http://127.0.0.1:8080";
        assert_eq!(named(serde_json::json!({"server": server})), None);
        let own = named(serde_json::json!({"server": server, "proxy-url": "http://mine:3128"}));
        assert_eq!(own.unwrap().host(), Some("mine"), "that is still refused, by name");
        return;
    }
    let name = "cluster::client::tests::stss_proxy_is_not_the_api_servers";
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .envs([(CHILD, "1"), ("HTTPS_PROXY", "http://proxy:3128")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&child.stderr)
    );
}

async fn config_of(path: &Path) -> kube::Config {
    config(Some(path)).await.unwrap()
}

//! What a system pod is told while the node's own service is ill.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::*;
use crate::broker::Trail;
use crate::fakes::{World, caller, pod};
use crate::identity::Caller;
use crate::server::front::Front;
use crate::server::imds::token::Key;
use crate::server::imds::{Answer, Endpoint, HOLD, Settings};
use crate::server::reply::Refusal;

const SYSTEM: &str = "10.0.0.7";

/// A pod of a namespace that is passed on, what is known of it, and the endpoint that it asks.
struct Node {
    world: World,
    endpoint: std::sync::Arc<Endpoint>,
}

impl Node {
    fn beside(service: SocketAddr) -> Self {
        let world = World::new();
        world.add_pod(pod("cni", SYSTEM));
        let passthrough = Passthrough { service, ..Passthrough::new(vec!["shop".into()]) };
        let settings = Settings {
            key: Key::random(),
            v1: false,
            facts: Default::default(),
            passthrough: Some(passthrough),
        };
        let (broker, audit) = (world.app.broker.clone(), world.app.audit.clone());
        let endpoint = Endpoint::new(Front::new(broker, audit, &[], "0"), settings);
        Self { world, endpoint }
    }

    async fn ask(&self, question: &Question, deadline: Instant) -> Result<Answer, Refusal> {
        self.endpoint.find(&cni(), question, deadline, &mut Trail::default()).await
    }

    fn is_ours(&self, token: &str) -> bool {
        let caller = cni();
        self.endpoint.is_ours(&caller, caller.known().unwrap(), &token.parse().unwrap())
    }
}

fn cni() -> Caller {
    caller(SYSTEM.parse().unwrap(), Some(&pod("cni", SYSTEM).uid))
}

fn put() -> Question {
    Question {
        method: http::Method::PUT,
        path: "/latest/api/token".into(),
        query: false,
        token: None,
        ttl: Some(HeaderValue::from_static("21600")),
    }
}

fn get() -> Question {
    Question {
        method: http::Method::GET,
        path: "/latest/meta-data/mac".into(),
        token: Some(HeaderValue::from_static("of-the-real-service")),
        ..put()
    }
}

/// A service that answers everything with `status`.
async fn service(status: u16) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let answer = format!("HTTP/1.1 {status} \r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    at
}

#[tokio::test]
async fn a_put_that_the_real_service_cannot_answer_brings_a_token_of_ours() {
    let no_hurry = Instant::now() + Duration::from_secs(60);
    for status in [500, 502, 503, 504, 429] {
        let node = Node::beside(service(status).await);
        node.world.annotate("cni", &[]);
        let Ok(Answer::StoodIn(token, 21600, _)) = node.ask(&put(), no_hurry).await else {
            panic!("no token after {status}")
        };
        assert!(node.is_ours(&token), "{status}");
        // What is asked by a token of the real service is answered as that answers it.
        let Ok(Answer::Passed(passed)) = node.ask(&get(), no_hurry).await else { panic!("{status}") };
        assert_eq!(passed.status(), status);
    }
    // Of these SDKs know what to make.
    for status in [200, 400, 403, 404] {
        let node = Node::beside(service(status).await);
        node.world.annotate("cni", &[]);
        let Ok(Answer::Passed(passed)) = node.ask(&put(), no_hurry).await else { panic!("{status}") };
        assert_eq!(passed.status(), status);
    }
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_comes_late_and_a_service_that_is_silent_have_one_deadline() {
    // The kernel takes the connection, and nobody ever reads from it.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for question in [put(), get()] {
        let node = Node::beside(silent.local_addr().unwrap());
        let begun = Instant::now();
        let late = async {
            tokio::time::sleep(HOLD * 2 / 3).await;
            node.world.annotate("cni", &[]);
        };
        let (answer, ()) = tokio::join!(node.ask(&question, begun + HOLD), late);
        // To the timer's millisecond.
        assert!(
            (HOLD..HOLD + 2 * Duration::from_millis(1)).contains(&begun.elapsed()),
            "{question}: {:?}",
            begun.elapsed()
        );
        match answer {
            Ok(Answer::StoodIn(token, _, _)) => {
                assert!(question.method == http::Method::PUT && node.is_ours(&token))
            }
            Err(Refusal::Request(RequestError::NodeMetadata(_))) => {
                assert_eq!(question.method, http::Method::GET)
            }
            _ => panic!("{question}"),
        }
    }
}

//! The watch loop against scripted answers, on the paused clock.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::cluster::slim::SlimObject;
use crate::fakes::log::Log;

/// What the API server does with one request.
#[derive(Clone)]
enum Answer {
    /// A whole answer.
    Whole(u16, String),
    /// A watch that says this, and then nothing more.
    Open(String),
    /// Nothing, ever.
    Silence,
}

fn list(version: &str, names: &[&str]) -> Answer {
    let items: Vec<Value> = names.iter().map(|name| object(name, version)).collect();
    Answer::Whole(
        200,
        json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items})
            .to_string(),
    )
}

fn object(name: &str, version: &str) -> Value {
    json!({"metadata": {"name": name, "uid": name, "resourceVersion": version}})
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn status(code: u16) -> String {
    json!({"kind": "Status", "status": "Failure", "code": code, "message": "no\nmore"}).to_string()
}

/// A client to which the answers are given in order, the last one for ever; with the paths that were asked for.
fn scripted(answers: Vec<Answer>) -> (kube::Client, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let left = Mutex::new(VecDeque::from(answers));
    let log = Arc::clone(&asked);
    let service = tower::service_fn(move |request: Request<Body>| {
        log.lock().unwrap().push(request.uri().to_string());
        let mut left = left.lock().unwrap();
        let answer = if left.len() > 1 { left.pop_front().unwrap() } else { left[0].clone() };
        async move {
            let (code, text, open) = match answer {
                Answer::Whole(code, text) => (code, text, false),
                Answer::Open(text) => (200, text, true),
                Answer::Silence => std::future::pending().await,
            };
            let said = stream::iter([Ok::<_, io::Error>(Frame::data(Bytes::from(text)))]);
            let after = stream::pending().take(if open { 1 } else { 0 });
            Ok::<_, io::Error>(
                Response::builder().status(code).body(StreamBody::new(said.chain(after))).unwrap(),
            )
        }
    });
    (kube::Client::new(service, "default"), asked)
}

/// Starts a watch and shows its events as text.
fn follow_scripted(
    answers: Vec<Answer>,
) -> (mpsc::UnboundedReceiver<String>, Arc<Mutex<Vec<String>>>, Arc<WatchHealth>) {
    let (client, asked) = scripted(answers);
    let (tell, events) = mpsc::unbounded_channel();
    let health = Arc::new(WatchHealth::default());
    let counted = Arc::clone(&health);
    tokio::spawn(async move {
        let source = Source { path: "/api/v1/things".into(), fields: "a=b".into(), metadata_only: true };
        follow(&client, &source, &counted, |event: Event<SlimObject>| {
            let _ = tell.send(match event {
                Event::Listed(list) => {
                    let names: Vec<String> = list.iter().map(|object| object.uid().to_owned()).collect();
                    format!("listed {}", names.join(" "))
                }
                Event::Applied(object) => format!("applied {}", object.uid()),
                Event::Deleted(object) => format!("deleted {}", object.uid()),
            });
        })
        .await
    });
    (events, asked, health)
}

async fn expect(events: &mut mpsc::UnboundedReceiver<String>, wanted: &[&str]) {
    for wanted in wanted {
        let event = timeout(Duration::from_secs(3600), events.recv()).await;
        assert_eq!(event.expect("an event within an hour").as_deref(), Some(*wanted));
    }
}

fn watches(asked: &Mutex<Vec<String>>) -> Vec<String> {
    asked.lock().unwrap().iter().filter(|path| path.contains("watch=true")).cloned().collect()
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_goes_on_where_it_was_without_a_list() {
    let events = line("ADDED", &object("b", "12"))
        + &line("BOOKMARK", &json!({"apiVersion": "v1", "kind": "X", "metadata": {"resourceVersion": "17"}}));
    let (mut heard, asked, health) = follow_scripted(vec![
        list("10", &["a"]),
        Answer::Whole(200, events),
        Answer::Open(line("DELETED", &object("b", "20"))),
    ]);
    expect(&mut heard, &["listed a", "applied b", "deleted b"]).await;
    let watches = watches(&asked);
    assert!(
        watches[0].ends_with("resourceVersion=10") && watches[1].ends_with("resourceVersion=17"),
        "{watches:?}"
    );
    assert_eq!(asked.lock().unwrap().len(), 3);
    assert_eq!(health.restarts.load(Ordering::Relaxed), 1);
    assert!(health.last_event.load(Ordering::Relaxed) > 0);
}

#[tokio::test(start_paused = true)]
async fn an_expired_version_is_listed_anew_whether_it_comes_as_event_or_as_http_status() {
    let (mut heard, _, _) = follow_scripted(vec![
        list("10", &["a", "b"]),
        Answer::Open(line("ERROR", &serde_json::from_str(&status(410)).unwrap())),
        list("20", &["a"]),
        Answer::Whole(410, status(410)),
        list("30", &["c"]),
        Answer::Open(String::new()),
    ]);
    expect(&mut heard, &["listed a b", "listed a", "listed c"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_refused_five_times_begins_anew_with_a_list() {
    let mut answers = vec![list("10", &["a"])];
    answers.extend(vec![Answer::Whole(400, status(400)); 5]);
    answers.extend([list("20", &["b"]), Answer::Open(String::new())]);
    let (mut heard, asked, _) = follow_scripted(answers);
    expect(&mut heard, &["listed a", "listed b"]).await;
    let refused = watches(&asked).iter().filter(|path| path.ends_with("resourceVersion=10")).count();
    assert_eq!(refused, 5);
}

#[tokio::test(start_paused = true)]
async fn a_long_outage_costs_no_list() {
    let mut answers = vec![list("10", &["a"])];
    answers.extend(vec![Answer::Whole(503, status(503)); 50]);
    answers.push(Answer::Open(line("ADDED", &object("b", "12"))));
    let (mut heard, asked, _) = follow_scripted(answers);
    expect(&mut heard, &["listed a", "applied b"]).await;
    assert_eq!(watches(&asked).len(), asked.lock().unwrap().len() - 1);
}

#[tokio::test(start_paused = true)]
async fn neither_a_list_nor_a_watch_that_is_never_answered_is_waited_for_for_ever() {
    let (mut heard, _, _) = follow_scripted(vec![
        Answer::Silence,
        list("10", &["a"]),
        Answer::Silence,
        Answer::Open(line("ADDED", &object("b", "12"))),
    ]);
    let begun = Instant::now();
    expect(&mut heard, &["listed a", "applied b"]).await;
    assert!(begun.elapsed() < Duration::from_secs(70), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_outlives_its_time_in_silence_is_dropped() {
    let (mut heard, _, _) = follow_scripted(vec![
        list("10", &["a"]),
        Answer::Open(String::new()),
        Answer::Open(line("ADDED", &object("b", "12"))),
    ]);
    let begun = Instant::now();
    expect(&mut heard, &["listed a", "applied b"]).await;
    assert!(begun.elapsed() < Duration::from_secs(300), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_understood_is_answered_with_a_list() {
    let (mut heard, _, _) = follow_scripted(vec![
        list("10", &["a"]),
        Answer::Open(line("MODIFIED", &json!({"metadata": {"name": "a", "uid": 7}}))),
        list("20", &[]),
        Answer::Open(String::new()),
    ]);
    expect(&mut heard, &["listed a", "listed "]).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_every_watch_at_once_is_not_hammered() {
    let (mut heard, asked, _) = follow_scripted(vec![list("10", &["a"]), Answer::Whole(200, String::new())]);
    expect(&mut heard, &["listed a"]).await;
    sleep(Duration::from_secs(300)).await;
    let asked = asked.lock().unwrap().len();
    assert!((20..50).contains(&asked), "{asked} requests in 5 min");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_one_line_in_the_log_and_its_end_another() {
    let (log, _guard) = Log::listen();
    // A watch that breaks off and comes back is no outage.
    let mut answers =
        vec![list("10", &["a"]), Answer::Whole(200, String::new()), Answer::Open(String::new())];
    answers.extend(vec![Answer::Whole(503, "<html>\nbad day".into()); 20]);
    answers.push(Answer::Open(line("ADDED", &object("b", "12"))));
    let (mut heard, _, _) = follow_scripted(answers);
    expect(&mut heard, &["listed a", "applied b"]).await;
    sleep(Duration::from_secs(1)).await;
    let log = log.text();
    assert_eq!(log.matches("watch waits for the API server").count(), 1, "{log}");
    assert!(log.contains("503: <html> bad day"), "{log}");
    assert_eq!(log.matches("watch works again").count(), 1, "{log}");
}

//! What repeats itself is counted, whoever repeats it, and nothing of it is lost.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};

use serde_json::Value;

use super::*;
use crate::server::reply::RequestError;

/// An audit and what it writes.
struct World {
    audit: Audit,
    lines: Arc<Lines>,
    written: Receiver<Vec<u8>>,
}

struct Out(Sender<Vec<u8>>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl World {
    fn new() -> Self {
        let (sender, written) = channel();
        let metrics = Arc::new(Metrics::new());
        let lines = Lines::start(Out(sender), metrics.dropped_lines.clone()).unwrap();
        Self { audit: Audit::new(metrics, Arc::clone(&lines)), lines, written }
    }

    /// A refusal of a caller from 10.0.0.0 and so many.
    fn refuse(&self, caller: u32, error: RequestError) -> String {
        let peer = SocketAddr::new(std::net::Ipv4Addr::from_bits(0x0a00_0000 + caller).into(), 4711);
        let caller = Caller::new(peer, "169.254.170.23:9902".parse().unwrap());
        let endpoint = Endpoint::ContainerCredentials;
        let asked = Asked { endpoint, begun: Instant::now(), caller: &caller, trail: &Trail::default() };
        self.audit.refused(&asked, &Refusal::Request(error))
    }

    /// All that it has written, at the end.
    fn written(self) -> Vec<Value> {
        self.lines.flush(Duration::from_secs(10));
        let text: Vec<u8> = self.written.try_iter().flatten().collect();
        String::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// How many refusals these lines stand for.
fn refusals<'a>(lines: impl IntoIterator<Item = &'a Value>) -> u64 {
    lines.into_iter().map(|line| line["repeats"].as_u64().unwrap_or(1)).sum()
}

#[test]
fn ten_thousand_refusals_are_two_lines_that_add_up() {
    let world = World::new();
    for _ in 0..10_000 {
        world.refuse(7, RequestError::NotFound);
    }
    world.audit.flush();
    world.audit.flush();
    let lines = world.written();
    assert_eq!((lines.len(), refusals(&lines)), (2, 10_000));
}

#[test]
fn callers_and_codes_are_told_apart() {
    let world = World::new();
    for _ in 0..100 {
        world.refuse(7, RequestError::NotFound);
        world.refuse(8, RequestError::NotFound);
        world.refuse(7, RequestError::MethodNotAllowed);
    }
    let lines = world.written();
    assert_eq!(lines.len(), 3, "{lines:?}");
}

#[test]
fn a_repeats_line_says_the_last_reason() {
    let world = World::new();
    let first = world.refuse(7, RequestError::NotDirect("a browser sent this"));
    assert_eq!(world.refuse(7, RequestError::NotDirect("a proxy sent this")), first);
    world.audit.flush();
    let lines = world.written();
    assert!(lines[0]["reason"].as_str().unwrap().contains("browser"));
    assert!(lines[1]["reason"].as_str().unwrap().contains("proxy"));
}

#[tokio::test(start_paused = true)]
async fn what_goes_on_has_a_line_a_minute_and_what_has_ended_is_new_again() {
    let world = World::new();
    let first = world.refuse(7, RequestError::NotFound);
    tokio::select! {
        never = world.audit.keep_flushing() => match never {},
        () = async {
            for _ in 0..600 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert_eq!(world.refuse(7, RequestError::NotFound), first);
            }
            tokio::time::sleep(3 * PERIOD).await;
        } => {}
    }
    assert_ne!(world.refuse(7, RequestError::NotFound), first);
    let lines = world.written();
    assert!((11..=13).contains(&lines.len()), "{}", lines.len());
    assert_eq!(refusals(&lines), 602);
}

#[test]
fn any_number_of_callers_is_remembered_within_a_bound_and_none_goes_uncounted() {
    let world = World::new();
    for caller in 0..10 * MAX_REPEATED as u32 {
        world.refuse(caller, RequestError::NotFound);
    }
    let remembered = world.audit.locked().len();
    assert!(remembered <= MAX_REPEATED + 1, "{remembered}");
    world.audit.flush();
    world.audit.flush();
    assert!(world.audit.locked().is_empty());
    let lines = world.written();
    assert!(lines.len() <= MAX_REPEATED + 2, "{}", lines.len());
    assert_eq!(refusals(&lines), 10 * MAX_REPEATED as u64);
    assert_eq!(lines.last().unwrap()["client.addr"], Value::Null, "it is nobody's in particular");
}

#[test]
fn every_value_makes_a_line_of_json_that_holds_it() {
    let random = |_| -> String {
        let strange = [
            '"', '\\', '\n', '\r', '\0', '\u{1b}', '\u{7f}', '\u{2028}', '\u{fffd}', 'é', '😀', 'a', '{', ',',
        ];
        (0..fastrand::usize(..12)).map(|_| strange[fastrand::usize(..strange.len())]).collect()
    };
    for value in (0..5000).map(random) {
        let mut line = r#"{"status":200"#.to_owned();
        text(&mut line, "pod.name", &value);
        let line = String::from_utf8(finish(line)).unwrap();
        assert_eq!(line.matches('\n').count(), 1, "{line:?}");
        let parsed: Value = serde_json::from_str(&line).unwrap_or_else(|err| panic!("{err}: {line}"));
        assert_eq!(parsed["pod.name"], value);
    }
}

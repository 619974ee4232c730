//! Log and access lines: JSON, through a bounded queue to a writer thread. A stdout that nobody reads delays no
//! answer; what does not fit is dropped and counted.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::time::Instant;
use tracing_subscriber::fmt::MakeWriter;

use crate::broker::Trail;
use crate::cache::{Lookup, Served};
use crate::metrics::Metrics;
use crate::server::reply::Refusal;
use crate::time;

/// A few thousand lines: enough for a burst, and a bound on what an unread stdout costs.
const QUEUE_BYTES: usize = 512 * 1024;
/// Lines of this long are written together, so that a burst costs one wake-up and one write.
const GATHER: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    writing: bool,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// The queue in front of the writer thread.
pub struct Lines {
    shared: Arc<Shared>,
    dropped: IntCounter,
}

impl Lines {
    /// Starts the thread that writes to `out`. `dropped` counts the lines that did not fit.
    ///
    /// # Errors
    /// The kernel's, if no thread can be started.
    pub fn start(out: impl Write + Send + 'static, dropped: IntCounter) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new() });
        let writer = Arc::clone(&shared);
        thread::Builder::new().name("lines".into()).spawn(move || write(&writer, out))?;
        Ok(Arc::new(Self { shared, dropped }))
    }

    /// Queues one line, whole or not at all.
    pub fn push(&self, line: &[u8]) {
        let mut queue = self.lock();
        if queue.bytes.len() + line.len() > QUEUE_BYTES {
            drop(queue);
            self.dropped.inc();
            return;
        }
        let wake = queue.bytes.is_empty();
        queue.bytes.extend_from_slice(line);
        drop(queue);
        if wake {
            self.shared.changed.notify_one();
        }
    }

    /// Waits until everything is written, or `patience` is over: the last lines say why the process left.
    pub fn flush(&self, patience: Duration) {
        let mut queue = self.lock();
        queue.closed = true;
        self.shared.changed.notify_one();
        let done = self
            .shared
            .changed
            .wait_timeout_while(queue, patience, |queue| queue.writing || !queue.bytes.is_empty());
        drop(done);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.shared.queue.lock().expect("nothing panics while it holds this lock")
    }
}

fn write(shared: &Shared, mut out: impl Write) {
    let mut bytes = Vec::new();
    loop {
        {
            let queue = shared.queue.lock().expect("nothing panics while it holds this lock");
            let queue = shared.changed.wait_while(queue, |queue| queue.bytes.is_empty());
            let queue = queue.expect("nothing panics while it holds this lock");
            // Let the burst arrive, unless the process is leaving.
            let gathered = shared.changed.wait_timeout_while(queue, GATHER, |queue| !queue.closed);
            let (mut queue, _) = gathered.expect("nothing panics while it holds this lock");
            std::mem::swap(&mut queue.bytes, &mut bytes);
            queue.writing = true;
        }
        // A reader that went away is no reason to end: credentials matter more than lines.
        let _ = out.write_all(&bytes).and_then(|()| out.flush());
        bytes.clear();
        bytes.shrink_to(16 * 1024);
        shared.queue.lock().expect("nothing panics while it holds this lock").writing = false;
        shared.changed.notify_all();
    }
}

/// Log events go the same way as access lines, so that their order holds.
pub fn install(lines: &Arc<Lines>) {
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_current_span(false)
        .with_span_list(false)
        .with_max_level(tracing::Level::INFO)
        .with_writer(Queued(Arc::clone(lines)))
        .finish();
    // A second agent in one process (tests) keeps the first one's subscriber.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

struct Queued(Arc<Lines>);

impl<'a> MakeWriter<'a> for Queued {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter(&self.0)
    }
}

/// tracing-subscriber writes a whole line at a time.
pub struct LineWriter<'a>(&'a Lines);

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One answer: counted and, where it says something new, written down. The two cannot disagree.
pub struct Access<'a> {
    /// The end of the request's head.
    pub begun: Instant,
    /// The first answer of its connection.
    pub first: bool,
    /// Who asked.
    pub peer: SocketAddr,
    /// What became known on the way.
    pub trail: &'a Trail,
}

impl Access<'_> {
    /// 200. Further cache hits of a connection are counted only: a line costs as much as the answer.
    pub fn granted(&self, metrics: &Metrics, lines: &Lines, served: &Served) {
        let took = self.begun.elapsed();
        metrics.answered("ok", took);
        if !self.first && self.trail.lookup == Some(Lookup::Hit) {
            return;
        }
        let mut line = self.line("ok", 200, took);
        text(&mut line, "access_key_id", &served.access_key_id);
        lines.push(&finish(line));
    }

    /// Any other answer.
    pub fn refused(&self, metrics: &Metrics, lines: &Lines, refusal: &Refusal, request_id: &str) {
        let took = self.begun.elapsed();
        metrics.answered(refusal.code(), took);
        let mut line = self.line(refusal.code(), refusal.status().as_u16(), took);
        text(&mut line, "request_id", request_id);
        text(&mut line, "reason", &refusal.to_string());
        lines.push(&finish(line));
    }

    fn line(&self, code: &str, status: u16, took: Duration) -> String {
        let mut line = String::with_capacity(512);
        // `write!` to a String cannot fail.
        let _ = write!(
            line,
            r#"{{"timestamp":"{:.3}","target":"access","code":"{code}","status":{status}"#,
            time::now()
        );
        let _ = write!(line, r#","duration_us":{},"client.addr":"{}""#, took.as_micros(), self.peer);
        if let Some(lookup) = self.trail.lookup {
            text(&mut line, "cache", lookup.as_str());
        }
        if let Some(pod) = &self.trail.pod {
            text(&mut line, "pod.namespace", pod.namespace());
            text(&mut line, "pod.name", &pod.name);
            text(&mut line, "pod.uid", pod.uid.as_str());
            text(&mut line, "service_account", &pod.service_account.name);
        }
        if let Some(plan) = &self.trail.plan {
            text(&mut line, "role.arn", plan.role.as_str());
        }
        line
    }
}

/// Adds a string field. Most values need no escapes; those that do go through serde_json.
fn text(line: &mut String, name: &str, value: &str) {
    let plain = value.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\');
    let _ = if plain {
        write!(line, r#","{name}":"{value}""#)
    } else {
        write!(line, r#","{name}":{}"#, serde_json::Value::from(value))
    };
}

fn finish(mut line: String) -> Vec<u8> {
    line.push_str("}\n");
    line.into_bytes()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn every_value_makes_a_line_of_json_that_holds_it() {
        let random = |_| -> String {
            let strange = [
                '"', '\\', '\n', '\r', '\0', '\u{1b}', '\u{7f}', '\u{2028}', '\u{fffd}', 'é', '😀', 'a', '{',
                ',',
            ];
            (0..fastrand::usize(..12)).map(|_| strange[fastrand::usize(..strange.len())]).collect()
        };
        for value in (0..5000).map(random) {
            let mut line = r#"{"status":200"#.to_owned();
            text(&mut line, "pod.name", &value);
            let line = String::from_utf8(finish(line)).unwrap();
            assert_eq!(line.matches('\n').count(), 1, "{line:?}");
            let parsed: serde_json::Value =
                serde_json::from_str(&line).unwrap_or_else(|err| panic!("{err}: {line}"));
            assert_eq!(parsed["pod.name"], value);
        }
    }

    struct Channel(mpsc::Sender<Vec<u8>>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_longer_than_the_queue_is_dropped_whole_and_counted() {
        let (sender, written) = mpsc::channel();
        let dropped = IntCounter::new("dropped", "Lines.").unwrap();
        let lines = Lines::start(Channel(sender), dropped.clone()).unwrap();
        lines.push(b"before\n");
        lines.push(&vec![b'x'; QUEUE_BYTES + 1]);
        lines.push(b"after\n");
        lines.flush(Duration::from_secs(10));
        let written: Vec<u8> = written.try_iter().flatten().collect();
        assert_eq!((written, dropped.get()), (b"before\nafter\n".to_vec(), 1));
    }
}

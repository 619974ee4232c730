//! Log and audit lines: JSON, through a bounded queue to a writer thread. A stdout that nobody reads delays no
//! answer; what does not fit is dropped and counted.

use std::error::Error;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use prometheus::IntCounter;
use tracing_subscriber::fmt::MakeWriter;

/// A few thousand lines: enough for a burst, and a bound on what an unread stdout costs.
const QUEUE_BYTES: usize = 512 * 1024;
/// Lines of this long are written together, so that a burst costs one wake-up and one write.
const GATHER: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    writing: bool,
    closed: bool,
    /// Nobody can queue a line any more.
    gone: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// An error and all that caused it, on one line. Some libraries' errors keep their cause for whoever asks, others have its text in
/// their own; nobody reads it twice.
pub fn in_full(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line = line + ": " + &text;
        }
        cause = error.source();
    }
    line
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

impl Drop for Lines {
    fn drop(&mut self) {
        let mut queue = self.lock();
        (queue.closed, queue.gone) = (true, true);
        self.shared.changed.notify_one();
    }
}

fn write(shared: &Shared, mut out: impl Write) {
    let mut bytes = Vec::new();
    loop {
        {
            let queue = shared.queue.lock().expect("nothing panics while it holds this lock");
            let queue = shared.changed.wait_while(queue, |queue| queue.bytes.is_empty() && !queue.gone);
            let queue = queue.expect("nothing panics while it holds this lock");
            if queue.bytes.is_empty() {
                return;
            }
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

/// Log events go the same way as audit lines, so that their order holds.
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_cause_that_stands_in_its_effects_text_is_not_said_twice() {
        let error =
            anyhow::anyhow!("no such file").context("cannot read a: no such file").context("--kubeconfig a");
        assert_eq!(in_full(error.as_ref()), "--kubeconfig a: cannot read a: no such file");
        assert_eq!(in_full(anyhow::anyhow!("b").context("a").as_ref()), "a: b");
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
    fn the_thread_ends_with_its_queue_and_writes_what_is_in_it() {
        let (sender, written) = mpsc::channel();
        let lines = Lines::start(Channel(sender), IntCounter::new("dropped", "Lines.").unwrap()).unwrap();
        lines.push(b"last\n");
        drop(lines);
        assert_eq!(written.recv_timeout(Duration::from_secs(10)), Ok(b"last\n".to_vec()));
        assert_eq!(written.recv_timeout(Duration::from_secs(10)), Err(mpsc::RecvTimeoutError::Disconnected));
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

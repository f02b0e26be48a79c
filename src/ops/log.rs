//! The log: lines that wait in a bounded queue for a thread that writes them to stderr.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use parking_lot::{Condvar, Mutex};
use tracing::level_filters::LevelFilter;
use tracing::{error, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::format;
use tracing_subscriber::fmt::time::FormatTime;

use crate::config::LogFormat;

/// Bytes that may wait for stderr; as many again are being written. Lines beyond are lost.
const MAX_WAITING: usize = 1 << 20;

/// Lines are coalesced for this long: under load, a line costs no system call and no thread switch.
const COALESCING: Duration = Duration::from_millis(10);

/// How long the process waits at its end for stderr to take the last lines.
const MAX_FLUSH: Duration = Duration::from_secs(1);

/// The only writer of stderr. A reader that is slow or gone loses lines, but never blocks or ends the
/// process. Dropping it writes what waits.
#[derive(Debug)]
pub struct Log {
    queue: Arc<Queue>,
}

impl Log {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start() -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let writer = queue.clone();
        let thread = thread::Builder::new().name("log".into());
        thread.spawn(move || writer.write_all_to(io::stderr()))?;
        Ok(Self { queue })
    }

    /// Sends events and panics of the whole process here; `RUST_LOG` selects the events.
    pub fn subscribe(&self, format: LogFormat) {
        let (filter, refused) = match filter() {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new(DEFAULT_LEVEL.to_string()), Some(error)),
        };
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_timer(Utc)
            .log_internal_errors(false)
            .with_writer(self.queue.clone());
        match format {
            LogFormat::Text => log.with_target(false).with_ansi(false).init(),
            LogFormat::Json => log.json().init(),
        }
        if let Some(error) = refused {
            warn!("RUST_LOG is passed over: {error}; write a level such as debug or wscast=debug");
        }
        // The usual hook waits for stderr, and holds a lock meanwhile.
        std::panic::set_hook(Box::new(|panic| {
            error!("{}", panic.to_string().replace('\n', " "));
        }));
    }

    /// Writes an error on one line, without the reminder how the command is used.
    pub fn print_error(&self, text: &str) {
        let mut line = String::new();
        for part in text.lines().map(str::trim) {
            match part {
                "" => continue,
                _ if part.starts_with("Usage:") => continue,
                _ if line.is_empty() => {}
                _ if line.ends_with(':') || part.starts_with('[') => line.push(' '),
                _ => line.push_str("; "),
            }
            line.push_str(part);
        }
        self.print(&line.replace("; For more", "; for more"));
    }

    /// Writes a line as it is, whatever `RUST_LOG` says.
    pub fn print(&self, line: &str) {
        self.queue.push(format!("{line}\n").as_bytes());
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.close(MAX_FLUSH);
    }
}

const DEFAULT_LEVEL: LevelFilter = LevelFilter::INFO;

fn filter() -> Result<EnvFilter, ParseError> {
    let directives = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_default();
    EnvFilter::builder()
        .with_default_directive(DEFAULT_LEVEL.into())
        .parse(directives)
}

/// Lines on their way to the thread that writes them.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    /// A line came while the thread had nothing to do, or the queue was closed.
    changed: Condvar,
    /// The thread has written everything of a closed queue.
    finished: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines that were lost since the last line that reports them.
    lost: u64,
    is_idle: bool,
    is_closed: bool,
    is_finished: bool,
}

impl Queue {
    /// Queues a line if there is room for it.
    fn push(&self, line: &[u8]) {
        let mut state = self.state.lock();
        if state.waiting.len() + line.len() > MAX_WAITING {
            state.lost += 1;
            return;
        }
        state.waiting.extend_from_slice(line);
        if std::mem::take(&mut state.is_idle) {
            self.changed.notify_one();
        }
    }

    /// Writes lines until the queue is closed and empty.
    fn write_all_to(&self, mut out: impl Write) {
        let mut lines = Vec::new();
        let mut outcome = Ok(());
        while self.take(&mut lines, outcome.is_ok()) {
            outcome = write_blocking(&mut out, &lines);
            let mut state = self.state.lock();
            if outcome.is_err() {
                state.lost += lines.iter().filter(|it| **it == b'\n').count() as u64;
            }
            if !state.is_closed {
                self.changed.wait_for(&mut state, COALESCING);
            }
            lines.clear();
        }
    }

    /// Waits for lines and swaps them with the empty `lines`; false at the end. Lost lines are reported
    /// ahead of later ones, once stderr is `writable` again.
    fn take(&self, lines: &mut Vec<u8>, writable: bool) -> bool {
        let mut state = self.state.lock();
        while state.waiting.is_empty() {
            if state.is_closed {
                state.is_finished = true;
                self.finished.notify_all();
                return false;
            }
            state.is_idle = true;
            self.changed.wait(&mut state);
        }
        state.is_idle = false;
        std::mem::swap(lines, &mut state.waiting);
        let lost = if writable {
            std::mem::take(&mut state.lost)
        } else {
            0
        };
        drop(state);
        if lost > 0 {
            warn!(
                "{lost} lines of the log were lost: stderr is read too slowly or cannot be written to"
            );
        }
        true
    }

    /// Ends the thread; waits for it for at most `patience`.
    fn close(&self, patience: Duration) {
        let mut state = self.state.lock();
        state.is_closed = true;
        self.changed.notify_one();
        self.finished
            .wait_while_for(&mut state, |it| !it.is_finished, patience);
    }
}

impl Write for &Queue {
    /// Takes a whole line at a time, as the subscriber writes it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes all of `bytes`, also if stderr is non-blocking.
fn write_blocking(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(COALESCING),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The time in UTC (RFC 3339, microseconds), at a fraction of what the usual timer costs.
struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, line: &mut format::Writer<'_>) -> fmt::Result {
        let now = SystemTime::now();
        write!(line, "{}", humantime::format_rfc3339_micros(now))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A stderr that takes a write when the test opens it, or fails.
    struct Gate(mpsc::Receiver<io::Result<()>>, mpsc::Sender<Vec<u8>>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().unwrap()?;
            self.1.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A queue that is written to a gate, with what opens the gate and what passes it.
    fn gated() -> (
        Arc<Queue>,
        mpsc::Sender<io::Result<()>>,
        mpsc::Receiver<Vec<u8>>,
    ) {
        let queue = Arc::new(Queue::default());
        let (open, opened) = mpsc::channel();
        let (pass, passed) = mpsc::channel();
        let writer = queue.clone();
        thread::spawn(move || {
            let subscriber = tracing_subscriber::fmt()
                .without_time()
                .with_ansi(false)
                .with_writer(writer.clone())
                .finish();
            tracing::subscriber::with_default(subscriber, || {
                writer.write_all_to(Gate(opened, pass))
            });
        });
        (queue, open, passed)
    }

    /// Waits until the thread holds what was queued, and the queue is empty again.
    fn taken(queue: &Queue) {
        while !queue.state.lock().waiting.is_empty() {
            thread::yield_now();
        }
    }

    #[test]
    fn lines_that_do_not_fit_are_counted_and_reported_later() {
        let (queue, open, passed) = gated();
        queue.push(b"first\n");
        taken(&queue);
        let line = [[b'x'; 1023].as_slice(), b"\n"].concat();
        for _ in 0..MAX_WAITING / line.len() + 7 {
            queue.push(&line);
        }
        let waiting = queue.state.lock().waiting.len();
        assert!(waiting <= MAX_WAITING && waiting > MAX_WAITING - line.len());
        open.send(Ok(())).unwrap();
        assert_eq!(passed.recv().unwrap(), b"first\n");
        taken_with_lost(&queue);
        queue.push(b"last\n");
        open.send(Ok(())).unwrap();
        assert_eq!(passed.recv().unwrap().len(), waiting);
        open.send(Ok(())).unwrap();
        let rest = String::from_utf8(passed.recv().unwrap()).unwrap();
        let (reported, last) = rest.split_once('\n').unwrap();
        assert!(
            reported.contains("7 lines of the log were lost: stderr is read too slowly"),
            "{reported}"
        );
        assert_eq!(last, "last\n");
    }

    /// Waits until the queue holds the report of the loss.
    fn taken_with_lost(queue: &Queue) {
        loop {
            let state = queue.state.lock();
            if state.lost == 0 && state.waiting.windows(4).any(|it| it == b"lost") {
                return;
            }
            drop(state);
            thread::yield_now();
        }
    }

    #[test]
    fn lines_lost_to_a_full_disk_are_reported_once_it_has_space() {
        let (queue, open, passed) = gated();
        for line in [b"one\n".as_slice(), b"two\n"] {
            queue.push(line);
            open.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
            taken(&queue);
        }
        open.send(Ok(())).unwrap();
        queue.push(b"three\n");
        assert_eq!(passed.recv().unwrap(), b"three\n");
        open.send(Ok(())).unwrap();
        queue.push(b"four\n");
        assert_eq!(passed.recv().unwrap(), b"four\n");
        open.send(Ok(())).unwrap();
        let reported = String::from_utf8(passed.recv().unwrap()).unwrap();
        assert!(
            reported.contains("2 lines of the log were lost"),
            "{reported}"
        );
    }

    #[test]
    fn a_nonblocking_stream_gets_everything() {
        let (queue, open, passed) = gated();
        queue.push(b"line\n");
        for _ in 0..3 {
            open.send(Err(io::ErrorKind::WouldBlock.into())).unwrap();
        }
        open.send(Ok(())).unwrap();
        assert_eq!(passed.recv().unwrap(), b"line\n");
    }

    #[test]
    fn closing_writes_everything_within_its_timeout() {
        let (queue, open, passed) = gated();
        open.send(Ok(())).unwrap();
        queue.push(b"last words\n");
        queue.close(Duration::from_secs(30));
        assert_eq!(passed.recv().unwrap(), b"last words\n");

        let (blocked, _open, _passed) = gated();
        blocked.push(b"unread\n");
        blocked.close(Duration::from_millis(10));
    }
}

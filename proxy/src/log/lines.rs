//! Writes lines from a thread of its own: whoever logs never waits for the output.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait. With the access log's longest lines (about 4 KiB) that is 16 MiB.
const QUEUE: usize = 4_096;
/// Lines written with one system call.
const BATCH: usize = 256;

/// A sender of lines; cheap to clone.
#[derive(Clone, Debug)]
pub struct Lines {
    // Sending takes no lock: tokio's queue is a list of blocks with an atomic count.
    queue: mpsc::Sender<Message>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Answered once all before it is written.
    Flush(std::sync::mpsc::SyncSender<()>),
}

impl Lines {
    /// Starts the thread `heddle-<name>`, which ends with the last sender.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(name: &str, out: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let lines = Self { queue, dropped: Arc::default() };
        let dropped = Arc::clone(&lines.dropped);
        thread::Builder::new().name(format!("heddle-{name}")).spawn(move || write(out, waiting, &dropped))?;
        Ok(lines)
    }

    /// Queues a line, its newline included, or drops it when there is no room.
    pub fn send(&self, line: Vec<u8>) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until what was queued before is written, at most for `limit`. Blocks: not for a worker.
    pub fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let (done, written) = std::sync::mpsc::sync_channel(1);
        let mut message = Message::Flush(done);
        while let Err(mpsc::error::TrySendError::Full(back)) = self.queue.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            message = back;
            thread::sleep(Duration::from_millis(5));
        }
        // An error is the time-out, or a thread that is gone: nothing is left to wait for either way.
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

fn write(mut out: impl Write, mut waiting: mpsc::Receiver<Message>, dropped: &AtomicU64) {
    let (mut batch, mut text, mut flushes) = (Vec::with_capacity(BATCH), Vec::new(), Vec::new());
    while waiting.blocking_recv_many(&mut batch, BATCH) > 0 {
        let mut lines = 0;
        for message in batch.drain(..) {
            match message {
                Message::Line(line) => {
                    text.extend_from_slice(&line);
                    lines += 1;
                }
                Message::Flush(done) => flushes.push(done),
            }
        }
        // There is nowhere to report that the log cannot be written, but in the metric.
        if out.write_all(&text).and_then(|()| out.flush()).is_err() {
            dropped.fetch_add(lines, Ordering::Relaxed);
        }
        text.clear();
        for done in flushes.drain(..) {
            // Whoever asked may have stopped waiting.
            let _ = done.try_send(());
        }
    }
}

/// One event of `tracing`, which its formatter hands over in one piece.
impl Write for &Lines {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.send(event.to_vec());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    /// An output that keeps what it gets, and takes nothing while shut.
    #[derive(Clone, Default)]
    pub(in crate::log) struct Output(Arc<(Mutex<Taken>, Condvar)>);

    #[derive(Default)]
    struct Taken {
        shut: bool,
        bytes: Vec<u8>,
    }

    impl Output {
        fn shut(&self, shut: bool) {
            self.0.0.lock().unwrap().shut = shut;
            self.0.1.notify_all();
        }

        pub(in crate::log) fn text(&self) -> String {
            String::from_utf8(self.0.0.lock().unwrap().bytes.clone()).unwrap()
        }
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut taken = self.0.1.wait_while(self.0.0.lock().unwrap(), |taken| taken.shut).unwrap();
            taken.bytes.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flush_returns_when_all_before_it_is_written_in_order() {
        let output = Output::default();
        let lines = Lines::start("test", output.clone()).unwrap();
        for n in 0..1_000 {
            lines.send(format!("{n}\n").into_bytes());
        }
        lines.flush(LONG);
        assert!(output.text().lines().eq((0..1_000).map(|n| n.to_string())));
        assert_eq!(lines.dropped(), 0);
    }

    #[test]
    fn an_output_that_takes_nothing_costs_lines_and_never_the_sender() {
        let output = Output::default();
        output.shut(true);
        let lines = Lines::start("test", output.clone()).unwrap();
        let sent = QUEUE + BATCH + 100;
        for n in 0..sent {
            lines.send(format!("{n}\n").into_bytes());
        }
        let dropped = lines.dropped();
        assert!(dropped >= 100, "{dropped}");
        lines.flush(Duration::ZERO);
        output.shut(false);
        lines.flush(LONG);
        assert_eq!(output.text().lines().count() as u64 + dropped, sent as u64);
    }

    #[test]
    fn lines_that_cannot_be_written_count_as_dropped() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::start("test", Broken).unwrap();
        lines.send(b"a\n".to_vec());
        lines.send(b"b\n".to_vec());
        lines.flush(LONG);
        assert_eq!(lines.dropped(), 2);
    }
}

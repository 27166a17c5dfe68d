//! HTTP/1.1 at a fixed rate, each latency measured from the moment at which the request was due.
//!
//! A request that waits because the one before it on its connection is late counts its waiting (wrk2 calls the lack of
//! this 'coordinated omission'). Blocking threads, one a connection: asynchronous timers tick in milliseconds, which is
//! more than what is measured.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    num::NonZeroU64,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use super::{Done, Percentiles, Target};
use crate::latency::Latencies;

/// How late the kernel may wake a thread for thrift, in nanoseconds; its usual 50 µs would be half of a latency.
const TIMER_SLACK: NonZeroU64 = NonZeroU64::new(1_000).unwrap();
/// After this an answer counts as none.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends `rate` requests a second over so many connections.
///
/// # Errors
/// When a connection cannot be made, breaks, or gives what is no answer; an answer that is not 200 only counts as failed.
pub fn run(target: &Target, connections: usize, rate: f64, length: Duration) -> anyhow::Result<Done> {
    let mut sockets = Vec::new();
    for _ in 0..connections {
        let socket = TcpStream::connect(target.address).with_context(|| target.address.to_string())?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        sockets.push(socket);
    }
    let pace = Duration::from_secs_f64(connections as f64 / rate);
    let began = Instant::now() + Duration::from_millis(5);
    let mut all = Latencies::default();
    let mut failed = 0;
    thread::scope(|scope| {
        let lanes: Vec<_> = sockets
            .into_iter()
            .enumerate()
            .map(|(lane, socket)| {
                // Lanes follow each other evenly.
                let first = began + pace.mul_f64(lane as f64 / connections as f64);
                scope.spawn(move || {
                    Lane { socket, target, buffer: Vec::new() }.run(first, pace, began + length)
                })
            })
            .collect();
        for lane in lanes {
            let (latencies, bad) = lane.join().map_err(|_| anyhow::anyhow!("a lane panicked"))??;
            all.add(&latencies);
            failed += bad;
        }
        anyhow::Ok(())
    })?;
    Ok(Done {
        requests: all.len() as u64,
        failed,
        bytes: 0,
        took: began.elapsed(),
        latency: Percentiles::of(&all),
    })
}

/// One connection.
struct Lane<'a> {
    socket: TcpStream,
    target: &'a Target,
    buffer: Vec<u8>,
}

impl Lane<'_> {
    fn run(mut self, first: Instant, pace: Duration, end: Instant) -> anyhow::Result<(Latencies, u64)> {
        // Without it the latencies are coarser, not wrong.
        let _ = rustix::thread::set_current_timer_slack(Some(TIMER_SLACK));
        let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", self.target.path, self.target.host);
        let (mut latencies, mut failed, mut due) = (Latencies::default(), 0, first);
        while due < end {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            self.socket.write_all(request.as_bytes())?;
            if self.status()? == 200 {
                latencies.record(due.elapsed());
            } else {
                failed += 1;
            }
            due += pace;
        }
        Ok((latencies, failed))
    }

    /// Reads one answer to its end.
    fn status(&mut self) -> anyhow::Result<u16> {
        self.buffer.clear();
        loop {
            if let Some((status, length)) = head(&self.buffer)? {
                while self.buffer.len() < length {
                    self.more()?;
                }
                ensure!(self.buffer.len() == length, "more than one answer to one request");
                return Ok(status);
            }
            self.more()?;
        }
    }

    fn more(&mut self) -> anyhow::Result<()> {
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => bail!("{} closed a kept-alive connection", self.target.address),
                Ok(read) => {
                    self.buffer.extend_from_slice(&chunk[..read]);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("no answer"),
            }
        }
    }
}

/// The status of an answer, and its length with the body; `None` while the head is not all there.
fn head(bytes: &[u8]) -> anyhow::Result<Option<(u16, usize)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end])?;
    let status = head.split(' ').nth(1).with_context(|| format!("no status in {head:?}"))?.parse()?;
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .with_context(|| format!("no Content-Length in {head:?}"))?
        .1;
    Ok(Some((status, end + 4 + length.trim().parse::<usize>()?)))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_head_is_read_once_it_is_all_there() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-length: 3\r\n\r\nabc";
        assert_eq!(head(&answer[..30]).unwrap(), None);
        assert_eq!(head(answer).unwrap(), Some((200, answer.len())));
        assert!(head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[test]
    fn an_answer_that_comes_late_delays_those_behind_it_and_they_say_so() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut first = true;
            while socket.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {
                if std::mem::take(&mut first) {
                    thread::sleep(Duration::from_millis(100));
                }
                let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            }
        });
        let target = Target { address, host: "app".to_owned(), path: "/".to_owned() };
        let done = run(&target, 1, 100.0, Duration::from_millis(100)).unwrap();
        server.join().unwrap();
        assert_eq!((done.requests, done.failed), (10, 0));
        // Due 50 ms after the first, but sent only after 100.
        assert!(done.latency.unwrap().p50 >= 50.0, "{done:?}");
    }
}

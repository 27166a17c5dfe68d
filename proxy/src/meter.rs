//! Limits on the HTTP/2 frames that cost the receiver more than the sender, whatever `h2` itself allows.
//!
//! `h2` counts some of them over a connection's whole life, where an honest connection that lives long enough hits any
//! limit, and others not at all. [`Metered`] stands between a connection and `h2`, wherever Heddle speaks HTTP/2 (to
//! sidecars, to applications, to strangers), follows the frames' borders in the bytes that pass (RFC 9113, 4.1), and
//! ends the connection of a peer that sends too many of one sort too fast, or begins a header block and does not end
//! it. What it does not look at: floods of CONTINUATION and of empty DATA frames, which `h2` ends by itself.
//!
//! On the answering side it also resets the streams of readers that stall ([`windows`]), for `h2` sends when it may and
//! waits for ever when it may not: neither it nor hyper, which hands an answer over whole, lets anybody else end a stream
//! whose answer is written but not taken. So the meter speaks for each side to the other: RST_STREAM goes out to the peer,
//! and comes in to `h2` as if the peer had sent it, which then forgets what it held.
//!
//! What is sent to a peer earns it frames: libraries measure the network by a PING for each DATA frame (gRPC in Go),
//! or open both windows after each, and an answer has as many HEADERS as there were requests, times a few.

mod frames;
mod windows;

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use self::{
    frames::{
        ACK, DATA, END_STREAM, Frames, GOAWAY, HEAD_BYTES, HEADERS, Head, PING, PREFACE, PRIORITY,
        RST_STREAM, SETTINGS, Seen, WINDOW_UPDATE,
    },
    windows::{LOOKS, Verdict, Windows},
};

/// How long the headers of a message may take from their first byte to their last, here and in HTTP/1.
pub const HEAD: Duration = Duration::from_secs(30);

/// How long a peer may take nothing of an answer that is ready for it, or send nothing of a request's body that is waited
/// for, unless `--stall-timeout` says otherwise. As nginx has it (`send_timeout`, `client_body_timeout`).
pub const STALL: Duration = Duration::from_secs(60);
/// With what a stream is reset whose client stalls.
pub const STALLED: h2::Reason = h2::Reason::ENHANCE_YOUR_CALM;

/// So many at once, and so many a second after.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: u32,
    per_second: u32,
}

/// Streams cancelled by the caller: a deadline may cancel a thousand at once, and again a second later.
const CANCELS: Rate = Rate { burst: 4096, per_second: 2000 };
/// PING, SETTINGS, PRIORITY, GOAWAY and unknown frames: an honest peer that is sent nothing sends one in many seconds.
const CONTROL: Rate = Rate { burst: 200, per_second: 20 };
/// WINDOW_UPDATE: mostly one for each half window that was read, so this is far above 4 GiB a second.
const WINDOW_UPDATES: Rate = Rate { burst: 50_000, per_second: 50_000 };
/// Resets that the peer made us send by breaking the protocol (CVE-2025-8671, MadeYouReset).
const PROVOKED: Rate = Rate { burst: 200, per_second: 20 };
/// Bytes that may come on a stream after we reset it, from a peer that does not know yet: the largest window that we open
/// (1 MiB, `carrier/settings.rs`), and the frames' heads.
const LATE: u32 = 1024 * 1024 + 64 * 1024;
/// Streams that we reset, as many as are remembered.
const RESET: usize = 128;
/// HEADERS to the calling side beyond those that its requests earn: there is no honest one.
const ANSWERS: Rate = Rate { burst: 4096, per_second: 20 };
/// HEADERS that a request earns its answer: interim ones (1xx), the answer's own, trailers.
const ANSWERS_EARNED: u32 = 8;

/// A token bucket that looks at the clock only when it is empty.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    left: u32,
    refilled: Instant,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        Self { rate, left: rate.burst, refilled: Instant::now() }
    }

    fn take(&mut self) -> bool {
        if self.left == 0 {
            let passed = self.refilled.elapsed().min(Duration::from_secs(3600));
            let gained = passed.as_millis() * u128::from(self.rate.per_second) / 1000;
            self.left = u32::try_from(gained).unwrap_or(u32::MAX).min(self.rate.burst);
            if self.left == 0 {
                return false;
            }
            self.refilled = Instant::now();
        }
        self.left -= 1;
        true
    }

    const fn earn(&mut self, count: u32) {
        let left = self.left.saturating_add(count);
        self.left = if left < self.rate.burst { left } else { self.rate.burst };
    }
}

/// Streams that we reset, and what may still come on them. `h2` takes it for data on its way, gives the connection's
/// window back, and would do so for as long as it remembers the stream.
#[derive(Debug, Default)]
struct Reset {
    streams: VecDeque<u32>,
    left: u32,
}

impl Reset {
    fn add(&mut self, stream: u32) {
        if self.streams.len() == RESET {
            self.streams.pop_front();
        }
        self.streams.push_back(stream);
        self.left = (self.left + LATE).min(RESET as u32 * LATE);
    }

    /// DATA came, of so many bytes. Whether that may be.
    fn take(&mut self, stream: u32, bytes: u32) -> bool {
        if !self.streams.contains(&stream) {
            return true;
        }
        let Some(left) = self.left.checked_sub(bytes + HEAD_BYTES as u32) else { return false };
        self.left = left;
        true
    }
}

/// Which side this is: callers cancel streams, which harms the answering side; answers come unasked to the calling one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The calling side.
    Client,
    /// The answering side.
    Server,
}

/// Counts what passes both ways.
#[derive(Debug)]
struct Meter {
    side: Side,
    read: Frames,
    written: Frames,
    cancels: Bucket,
    control: Bucket,
    window_updates: Bucket,
    provoked: Bucket,
    answers: Bucket,
    reset: Reset,
    /// Where readers are watched.
    windows: Option<Windows>,
    /// Streams that were given up because their client stalls, and that nobody has looked at yet.
    strikes: u32,
}

impl Meter {
    fn new(side: Side, watches: bool) -> Self {
        let (read, written) = if side == Side::Server { (PREFACE, 0) } else { (0, PREFACE) };
        Self {
            side,
            read: Frames::new(read),
            written: Frames::new(written),
            cancels: Bucket::new(CANCELS),
            control: Bucket::new(CONTROL),
            window_updates: Bucket::new(WINDOW_UPDATES),
            provoked: Bucket::new(PROVOKED),
            answers: Bucket::new(ANSWERS),
            reset: Reset::default(),
            windows: watches.then(Windows::new),
            strikes: 0,
        }
    }

    fn on_read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Self { side, read, cancels, control, window_updates, answers, reset, windows, .. } = self;
        let mut what = "";
        let fine = read.follow(bytes, |seen| {
            let (Head { kind, flags, stream, length }, value) = match seen {
                Seen::Frame(head, value) => (head, value),
                Seen::InitialWindow(size) => {
                    if let Some(windows) = windows {
                        windows.resized(size);
                    }
                    return true;
                }
            };
            if let Some(windows) = windows {
                match kind {
                    HEADERS => windows.asked(stream),
                    WINDOW_UPDATE => windows.opened(stream, value),
                    RST_STREAM => windows.closed(stream),
                    PING if flags & ACK != 0 => windows.ponged(),
                    _ => {}
                }
            }
            let bucket = match kind {
                DATA => {
                    what = "DATA";
                    return reset.take(stream, length);
                }
                RST_STREAM if *side == Side::Server => {
                    what = "RST_STREAM";
                    &mut *cancels
                }
                HEADERS if *side == Side::Client => {
                    what = "HEADERS";
                    &mut *answers
                }
                PRIORITY | SETTINGS | PING | GOAWAY | 10.. => {
                    what = "control";
                    &mut *control
                }
                WINDOW_UPDATE => {
                    what = "WINDOW_UPDATE";
                    &mut *window_updates
                }
                _ => return true,
            };
            bucket.take()
        });
        if fine { Ok(()) } else { Err(flood(what)) }
    }

    fn on_written(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Self { written, provoked, control, window_updates, answers, reset, windows, strikes, .. } = self;
        let fine = written.follow(bytes, |seen| {
            let Seen::Frame(Head { kind, flags, stream, length }, value) = seen else { return true };
            if let Some(windows) = windows {
                let ends = flags & END_STREAM != 0;
                match kind {
                    DATA => windows.sent(stream, length, ends),
                    HEADERS => windows.answered(stream, ends),
                    RST_STREAM => windows.closed(stream),
                    PING if flags & ACK == 0 => windows.pinged(),
                    _ => {}
                }
            }
            match kind {
                DATA => {
                    control.earn(1);
                    // The stream's and the connection's.
                    window_updates.earn(2);
                    true
                }
                HEADERS => {
                    control.earn(1);
                    answers.earn(ANSWERS_EARNED);
                    true
                }
                RST_STREAM => {
                    reset.add(stream);
                    let code = h2::Reason::from(value);
                    *strikes += u32::from(code == STALLED);
                    let broke_protocol = [
                        h2::Reason::PROTOCOL_ERROR,
                        h2::Reason::FLOW_CONTROL_ERROR,
                        h2::Reason::STREAM_CLOSED,
                        h2::Reason::FRAME_SIZE_ERROR,
                    ];
                    !broke_protocol.contains(&code) || provoked.take()
                }
                _ => true,
            }
        });
        if fine { Ok(()) } else { Err(flood("stream error")) }
    }
}

fn flood(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, format!("the peer floods with {what} frames"))
}

fn stalls(how: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, how)
}

/// RST_STREAM for each stream (RFC 9113, 6.4).
fn resets(streams: &[u32]) -> Vec<u8> {
    let code = u32::from(STALLED).to_be_bytes();
    let reset = |stream: &u32| [&[0, 0, 4, RST_STREAM, 0], &stream.to_be_bytes()[..], &code].concat();
    streams.iter().flat_map(reset).collect()
}

/// Streams whose reader stalls, while they are looked after.
#[derive(Debug)]
struct Watch {
    patience: Duration,
    /// While a window is used up.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Resets on their way to the peer, and to `h2`.
    out: Vec<u8>,
    into: Vec<u8>,
}

/// A connection whose frames are counted.
#[derive(Debug)]
pub struct Metered<IO> {
    io: IO,
    meter: Meter,
    /// While a header block is being read: which one, and how long it may still take.
    head: Option<(u64, Pin<Box<Sleep>>)>,
    watch: Option<Watch>,
}

impl<IO> Metered<IO> {
    /// Counts from the first byte on: `io` must not have carried any HTTP/2 yet.
    pub fn new(io: IO, side: Side) -> Self {
        Self { io, meter: Meter::new(side, false), head: None, watch: None }
    }

    /// The answering side, where readers are given `patience` to take what is ready for them.
    pub fn server(io: IO, patience: Duration) -> Self {
        let watch = Watch { patience, alarm: None, out: Vec::new(), into: Vec::new() };
        Self { io, meter: Meter::new(Side::Server, true), head: None, watch: Some(watch) }
    }

    /// The peer keeps us waiting: an error if that is for the rest of a header block, and for too long.
    fn wait(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(block) = self.meter.read.block() else {
            self.head = None;
            return Ok(());
        };
        self.head = self.head.take().filter(|(before, _)| *before == block);
        let (_, limit) = self.head.get_or_insert_with(|| (block, Box::pin(sleep(HEAD))));
        match limit.as_mut().poll(cx) {
            Poll::Ready(()) => Err(stalls(&format!("the peer did not end its headers within {HEAD:?}"))),
            Poll::Pending => Ok(()),
        }
    }

    /// Looks after readers for as long as one may stall.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let (Some(watch), Some(windows)) = (&mut self.watch, &mut self.meter.windows) else { return Ok(()) };
        for _ in 0..std::mem::take(&mut self.meter.strikes) {
            if let Verdict::End(how) = windows.strike(Instant::now(), watch.patience) {
                return Err(stalls(how));
            }
        }
        while windows.is_suspect() {
            let pause = watch.patience / LOOKS;
            let alarm = watch.alarm.get_or_insert_with(|| Box::pin(sleep(pause)));
            if alarm.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            watch.alarm = None;
            if !watch.into.is_empty() {
                return Err(stalls("the peer stalls, and in the middle of a frame"));
            }
            match windows.look(Instant::now(), watch.patience) {
                Verdict::End(how) => return Err(stalls(how)),
                Verdict::Reset(streams) => {
                    watch.into = resets(&streams);
                    watch.out.extend(&watch.into);
                    if !streams.is_empty() {
                        // Both are seen to when `h2` reads.
                        cx.waker().wake_by_ref();
                    }
                }
            }
        }
        watch.alarm = None;
        Ok(())
    }
}

impl<IO: AsyncWrite + Unpin> Metered<IO> {
    /// Sends the resets that are due, where a frame may stand.
    fn send_resets(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(watch) = self.watch.as_mut().filter(|watch| !watch.out.is_empty()) else {
            return Poll::Ready(Ok(()));
        };
        while !watch.out.is_empty() && self.meter.written.at_border() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &watch.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            watch.out.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Metered<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.watch(cx)?;
        if let Some(watch) = &mut this.watch {
            if !watch.into.is_empty() && this.meter.read.at_border() {
                let count = watch.into.len().min(buf.remaining());
                buf.put_slice(&watch.into[..count]);
                watch.into.drain(..count);
                return Poll::Ready(Ok(()));
            }
            if !watch.out.is_empty() && this.send_resets(cx)?.is_ready() {
                // What cannot be written now is written with what `h2` writes.
                let _flushed = Pin::new(&mut this.io).poll_flush(cx)?;
            }
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        match polled {
            Poll::Ready(Ok(())) => this.meter.on_read(&buf.filled()[before..])?,
            Poll::Pending => this.wait(cx)?,
            Poll::Ready(Err(_)) => {}
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Metered<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.send_resets(cx))?;
        let polled = Pin::new(&mut this.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = polled {
            this.meter.on_written(&buf[..written])?;
            this.watch(cx)?;
        }
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.send_resets(cx))?;
        let polled = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(mut written)) = polled {
            for buf in bufs {
                let part = written.min(buf.len());
                this.meter.on_written(&buf[..part])?;
                written -= part;
            }
            this.watch(cx)?;
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.send_resets(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;

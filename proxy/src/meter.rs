//! Limits on the HTTP/2 frames that cost the receiver more than the sender, whatever `h2` itself allows.
//!
//! `h2` counts some of them over a connection's whole life, where an honest connection that lives long enough hits any
//! limit, and others not at all. [`Metered`] stands between a connection and `h2`, wherever Heddle speaks HTTP/2 (to
//! sidecars, to applications, to strangers), follows the frames' borders in the bytes that pass (RFC 9113, 4.1), and
//! ends the connection of a peer that sends too many of one sort too fast, or begins a header block and does not end
//! it. What it does not look at: floods of CONTINUATION and of empty DATA frames, which `h2` ends by itself.
//!
//! What is sent to a peer earns it frames: libraries measure the network by a PING for each DATA frame (gRPC in Go),
//! or open both windows after each, and an answer has as many HEADERS as there were requests, times a few.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

const FRAME_HEAD: usize = 9;
/// The client's first bytes, no frame (RFC 9113, 3.4).
const PREFACE: usize = 24;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// How long the headers of a message may take from their first byte to their last, here and in HTTP/1.
pub const HEAD: Duration = Duration::from_secs(30);

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

/// Which side this is: callers cancel streams, which harms the answering side; answers come unasked to the calling one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The calling side.
    Client,
    /// The answering side.
    Server,
}

/// Follows frames in a stream of bytes: yields each frame's type, and a reset's reason.
#[derive(Debug)]
struct Frames {
    /// Bytes that are no part of a frame's head, still to pass.
    skip: usize,
    head: [u8; FRAME_HEAD],
    filled: usize,
    /// Of a RST_STREAM: the code's bytes still to come, and what came.
    code_left: u8,
    code: u32,
    /// A header block has begun, and its last byte has not passed.
    in_block: bool,
    /// The frame that passes is the block's last.
    ends_block: bool,
    /// Header blocks that passed whole.
    blocks: u64,
}

impl Frames {
    fn new(skip: usize) -> Self {
        Self {
            skip,
            head: [0; FRAME_HEAD],
            filled: 0,
            code_left: 0,
            code: 0,
            in_block: false,
            ends_block: false,
            blocks: 0,
        }
    }

    fn follow(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8, u32) -> bool) -> bool {
        loop {
            if self.code_left > 0 {
                let Some((&byte, rest)) = bytes.split_first() else { return true };
                self.code = self.code << 8 | u32::from(byte);
                self.code_left -= 1;
                bytes = rest;
                if self.code_left == 0 && !each(RST_STREAM, self.code) {
                    return false;
                }
                continue;
            }
            let passing = self.skip.min(bytes.len());
            self.skip -= passing;
            bytes = &bytes[passing..];
            if self.skip == 0 && self.ends_block {
                (self.in_block, self.ends_block) = (false, false);
                self.blocks += 1;
            }
            if bytes.is_empty() {
                return true;
            }
            let taken = bytes.len().min(FRAME_HEAD - self.filled);
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled < FRAME_HEAD {
                return true;
            }
            self.filled = 0;
            self.skip =
                usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2]);
            let kind = self.head[3];
            if matches!(kind, HEADERS | PUSH_PROMISE | CONTINUATION) {
                (self.in_block, self.ends_block) = (true, self.head[4] & END_HEADERS != 0);
            }
            if kind == RST_STREAM && self.skip >= 4 {
                self.skip -= 4;
                (self.code_left, self.code) = (4, 0);
            } else if !each(kind, 0) {
                return false;
            }
        }
    }
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
}

impl Meter {
    fn new(side: Side) -> Self {
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
        }
    }

    fn on_read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Self { side, read, cancels, control, window_updates, answers, .. } = self;
        let mut what = "";
        let fine = read.follow(bytes, |kind, _| {
            let bucket = match kind {
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
        let Self { written, provoked, control, window_updates, answers, .. } = self;
        let fine = written.follow(bytes, |kind, code| match kind {
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
                let code = h2::Reason::from(code);
                let broke_protocol = [
                    h2::Reason::PROTOCOL_ERROR,
                    h2::Reason::FLOW_CONTROL_ERROR,
                    h2::Reason::STREAM_CLOSED,
                    h2::Reason::FRAME_SIZE_ERROR,
                ];
                !broke_protocol.contains(&code) || provoked.take()
            }
            _ => true,
        });
        if fine { Ok(()) } else { Err(flood("stream error")) }
    }
}

fn flood(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, format!("the peer floods with {what} frames"))
}

/// A connection whose frames are counted.
#[derive(Debug)]
pub struct Metered<IO> {
    io: IO,
    meter: Meter,
    /// While a header block is being read: which one, and how long it may still take.
    head: Option<(u64, Pin<Box<Sleep>>)>,
}

impl<IO> Metered<IO> {
    /// Counts from the first byte on: `io` must not have carried any HTTP/2 yet.
    pub fn new(io: IO, side: Side) -> Self {
        Self { io, meter: Meter::new(side), head: None }
    }

    /// The peer keeps us waiting: an error if that is for the rest of a header block, and for too long.
    fn wait(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Frames { in_block, blocks, .. } = self.meter.read;
        self.head = self.head.take().filter(|(block, _)| in_block && *block == blocks);
        if !in_block {
            return Ok(());
        }
        let (_, limit) = self.head.get_or_insert_with(|| (blocks, Box::pin(sleep(HEAD))));
        match limit.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the peer did not end its headers within {HEAD:?}"),
            )),
            Poll::Pending => Ok(()),
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Metered<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
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
        let polled = Pin::new(&mut this.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = polled {
            this.meter.on_written(&buf[..written])?;
        }
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(mut written)) = polled {
            for buf in bufs {
                let part = written.min(buf.len());
                this.meter.on_written(&buf[..part])?;
                written -= part;
            }
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([kind, 0, 0, 0, 0, 1]);
        bytes.extend(payload);
        bytes
    }

    proptest! {
        #[test]
        fn frames_are_found_however_the_bytes_are_cut(
            frames in prop::collection::vec((0u8..12, prop::collection::vec(any::<u8>(), 4..40)), 0..20),
            cuts in prop::collection::vec(1usize..30, 1..60),
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(kind, payload)| frame(*kind, payload)).collect();
            let mut follower = Frames::new(0);
            let (mut seen, mut rest, mut cuts) = (Vec::new(), &bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                follower.follow(now, |kind, code| { seen.push((kind, code)); true });
                rest = later;
            }
            let sent: Vec<_> = frames.iter().map(|(kind, payload)| {
                let code = if *kind == RST_STREAM { u32::from_be_bytes(payload[..4].try_into().unwrap()) } else { 0 };
                (*kind, code)
            }).collect();
            prop_assert_eq!(seen, sent);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_refused_and_the_same_number_over_time_is_not() {
        let ping = frame(PING, &[0; 8]);
        let mut flooded = Meter::new(Side::Client);
        let sent = (0..1000).take_while(|_| flooded.on_read(&ping).is_ok()).count();
        assert_eq!(sent, 200);

        let mut calm = Meter::new(Side::Client);
        for _ in 0..1000 {
            assert!(calm.on_read(&ping).is_ok());
            tokio::time::advance(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_thousand_cancels_at_once_pass_and_rapid_reset_does_not() {
        let cancel = frame(RST_STREAM, &8u32.to_be_bytes());
        let mut meter = Meter::new(Side::Server);
        assert!(meter.on_read(&[b'P'; PREFACE]).is_ok());
        assert!((0..2000).all(|_| meter.on_read(&cancel).is_ok()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!((0..2000).all(|_| meter.on_read(&cancel).is_ok()));
        assert!((0..10_000).any(|_| meter.on_read(&cancel).is_err()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ping_for_each_data_frame_and_two_window_updates_are_no_flood() {
        let mut meter = Meter::new(Side::Server);
        assert!(meter.on_read(&[b'P'; PREFACE]).is_ok());
        let (ping, update) = (frame(PING, &[0; 8]), frame(WINDOW_UPDATE, &[0, 0, 0, 1]));
        for _ in 0..100_000 {
            assert!(meter.on_written(&frame(DATA, b"x")).is_ok());
            assert!(meter.on_read(&ping).is_ok());
            assert!(meter.on_read(&update).is_ok() && meter.on_read(&update).is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_interim_answers_to_each_request_pass_and_a_flood_of_them_does_not() {
        let mut meter = Meter::new(Side::Client);
        assert!(meter.on_written(&[b'P'; PREFACE]).is_ok());
        for _ in 0..10_000 {
            assert!(meter.on_written(&frame(HEADERS, b"GET ")).is_ok());
            assert!((0..4).all(|_| meter.on_read(&frame(HEADERS, b"103 ")).is_ok()));
        }
        let flooded = (0..10_000).take_while(|_| meter.on_read(&frame(HEADERS, b"103 ")).is_ok()).count();
        assert!(flooded <= 4096, "{flooded}");
    }

    fn part(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = frame(kind, payload);
        bytes[4] = flags;
        bytes
    }

    /// Writes each piece, with a pause before it, and gives what reading them ended with.
    async fn read_slowly(pieces: Vec<Vec<u8>>, pause: Duration) -> io::Result<usize> {
        let (mut peer, io) = tokio::io::duplex(65536);
        let mut io = Metered::new(io, Side::Client);
        let writing = async move {
            for piece in pieces {
                tokio::time::sleep(pause).await;
                if peer.write_all(&piece).await.is_err() {
                    return;
                }
            }
        };
        let mut bytes = Vec::new();
        tokio::join!(writing, io.read_to_end(&mut bytes)).1
    }

    #[tokio::test(start_paused = true)]
    async fn headers_that_come_byte_by_byte_are_given_up_and_many_slow_messages_are_not() {
        let trickle = std::iter::once(part(HEADERS, 0, b"head"))
            .chain((0..100).map(|_| part(CONTINUATION, 0, b"x")))
            .collect();
        let ended = read_slowly(trickle, Duration::from_secs(1)).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);

        let whole = part(HEADERS, END_HEADERS, &[0; 100]);
        let (begun, rest) = whole.split_at(20);
        let halves = (0..20).map(|_| [rest, begun].concat()).collect::<Vec<_>>();
        let pieces = std::iter::once(begun.to_vec()).chain(halves).chain([rest.to_vec()]).collect();
        let read = read_slowly(pieces, HEAD / 2).await.unwrap();
        assert_eq!(read, 21 * whole.len(), "each ends in time, and none between two reads");

        let body = std::iter::once(part(DATA, 0, &[0; 100])[..50].to_vec()).chain([vec![0; 59]]).collect();
        assert!(read_slowly(body, HEAD * 2).await.is_ok(), "a body may pause");
    }

    #[tokio::test(start_paused = true)]
    async fn only_resets_for_breaking_the_protocol_count_against_the_peer() {
        let mut meter = Meter::new(Side::Server);
        let refused = frame(RST_STREAM, &7u32.to_be_bytes());
        assert!((0..10_000).all(|_| meter.on_written(&refused).is_ok()));
        let flow_control = frame(RST_STREAM, &3u32.to_be_bytes());
        assert!((0..1000).any(|_| meter.on_written(&flow_control).is_err()));
    }
}

//! Bytes both ways between a socket and a tunnel: half-close, resets, back-pressure, an idle timeout.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::Reason as Code;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::TcpStream,
    time::{Instant, sleep_until},
};

use super::{
    pump::PumpError,
    settings::{BODY_FRAME, TUNNEL_FRAME},
    tunnel::Tunnel,
};
use crate::{detect::Rewind, plain::head::Listened};

/// Sizes of the read buffer: a stream that fills one gets the next, one that rests falls back to the first. So ten
/// thousand quiet connections cost 10 MiB, and a bulk one reads a whole frame of opaque TCP at a time.
const READ: [usize; 3] = [1024, BODY_FRAME, TUNNEL_FRAME];
/// Left free at the beginning of the larger buffers. Both they and what TLS encrypts into begin at a page's beginning or a
/// few bytes behind it, and a copy to a place up to 63 bytes further into its page than where it comes from runs at a
/// seventh of the speed where glibc 2.36 copies by `rep movsb` on AMD's Zen 4 (glibc bug 30994; measured: 3 and 21 GB/s).
const AHEAD: usize = 128;
/// How often rest and idleness are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// Chunks that go to the socket in one write.
const GATHER: usize = 16;
/// Reads or writes of one direction before the other directions' and other tasks' turn.
const TURN: usize = 16;

/// A socket whose connection can be broken off so that its peer sees RST, not FIN.
pub trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// Breaks off.
    fn abort(self);

    /// How long what was written may lie unread at the peer's before the system breaks off; none: as long as it likes.
    /// Where a connection is within another one, that is for the outer one to say, and this does nothing.
    fn limit_unread(&self, _: Option<Duration>) {}
}

impl Socket for TcpStream {
    fn abort(self) {
        // Closing with a linger time of 0 is what sends RST. It fails only for a socket that is gone already.
        let _gone = socket2::SockRef::from(&self).set_linger(Some(Duration::ZERO));
    }

    fn limit_unread(&self, limit: Option<Duration>) {
        // TCP_USER_TIMEOUT (RFC 5482) counts a shut window in; 0 is none. It fails only for a socket that is gone.
        let _gone = socket2::SockRef::from(self).set_tcp_user_timeout(Some(limit.unwrap_or(Duration::ZERO)));
    }
}

impl<S: Socket> Socket for Rewind<S> {
    fn abort(self) {
        self.into_parts().1.abort();
    }

    fn limit_unread(&self, limit: Option<Duration>) {
        self.get_ref().limit_unread(limit);
    }
}

impl Socket for TokioIo<Upgraded> {
    fn abort(self) {
        // hyper gives a connection back only as what it was made from: dialled, accepted (looked into, and
        // listened to), or the same within a CONNECT, on HTTP/1 or HTTP/2. What was read ahead is lost with it.
        let upgraded = match self.into_inner().downcast::<TokioIo<TcpStream>>() {
            Ok(parts) => return parts.io.into_inner().abort(),
            Err(upgraded) => upgraded,
        };
        let upgraded = match upgraded.downcast::<TokioIo<Listened<Rewind<TcpStream>>>>() {
            Ok(parts) => return parts.io.into_inner().into_inner().abort(),
            Err(upgraded) => upgraded,
        };
        let upgraded = match upgraded.downcast::<TokioIo<Listened<Rewind<Rewind<TcpStream>>>>>() {
            Ok(parts) => return parts.io.into_inner().into_inner().abort(),
            Err(upgraded) => upgraded,
        };
        if let Ok(parts) = upgraded.downcast::<TokioIo<Listened<Rewind<Self>>>>() {
            parts.io.into_inner().into_inner().abort();
        }
    }
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides said FIN.
    Finished,
    /// The socket's side broke off; the tunnel was reset.
    SocketReset,
    /// The tunnel's side broke off; the socket was reset.
    TunnelReset,
    /// No byte either way for the idle timeout; both were reset.
    Idle,
    /// It was told to stop; both were reset.
    Stopped,
}

/// What a copy did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Bytes from the socket into the tunnel.
    pub sent: u64,
    /// Bytes from the tunnel into the socket.
    pub received: u64,
    /// How it ended.
    pub end: End,
}

/// Copies until both sides have ended, one has broken off, or nothing has moved for `idle` (looked at every ten
/// seconds, or more often when it is shorter). `early` was already read from the socket and goes first. `count` hears of
/// the bytes as they pass: those into the tunnel, and those out of it.
pub async fn both_ways<S: Socket>(
    socket: S,
    tunnel: Tunnel,
    early: Bytes,
    idle: Duration,
    count: impl Fn(u64, u64),
) -> Copied {
    both_ways_until(socket, tunnel, early, idle, count, std::future::pending()).await
}

/// The same, but no longer than until `stop` is through.
pub async fn both_ways_until<S: Socket>(
    mut socket: S,
    tunnel: Tunnel,
    early: Bytes,
    idle: Duration,
    count: impl Fn(u64, u64),
    stop: impl Future<Output = ()>,
) -> Copied {
    let mut stop = pin!(stop);
    let mut copy = Copy {
        tunnel,
        up: Up { early, buffer: BytesMut::new(), size: 0, done: false, bytes: 0 },
        down: Down { chunks: Chunks::default(), ended: false, done: false, bytes: 0 },
        moved: false,
    };
    let look = LOOK.min(idle);
    let mut rested = Duration::ZERO;
    let mut alarm = pin!(sleep_until(Instant::now() + look));
    let end = poll_fn(|cx| {
        loop {
            // First, so that no byte passes that may not.
            if stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready(End::Stopped);
            }
            let (up, down) = (copy.up.bytes, copy.down.bytes);
            let polled = copy.poll(&mut socket, cx);
            let (up, down) = (copy.up.bytes - up, copy.down.bytes - down);
            if up + down > 0 {
                copy.moved = true;
                count(up, down);
            }
            if let Poll::Ready(end) = polled {
                return Poll::Ready(end);
            }
            ready!(alarm.as_mut().poll(cx));
            alarm.as_mut().reset(Instant::now() + look);
            rested = if copy.moved { Duration::ZERO } else { rested + look };
            if rested >= idle {
                return Poll::Ready(End::Idle);
            }
            if !std::mem::take(&mut copy.moved) {
                copy.up.rest();
            }
        }
    })
    .await;
    match end {
        End::Finished => {}
        End::SocketReset => copy.tunnel.reset(Code::CONNECT_ERROR),
        End::TunnelReset => socket.abort(),
        End::Idle | End::Stopped => {
            copy.tunnel.reset(Code::CANCEL);
            socket.abort();
        }
    }
    Copied { sent: copy.up.bytes, received: copy.down.bytes, end }
}

struct Copy {
    tunnel: Tunnel,
    up: Up,
    down: Down,
    /// Since the alarm last looked.
    moved: bool,
}

impl Copy {
    fn poll<S: Socket>(&mut self, socket: &mut S, cx: &mut Context<'_>) -> Poll<End> {
        let up = self.up.poll(&mut self.tunnel, socket, cx);
        let down = self.down.poll(&mut self.tunnel, socket, cx);
        match (up, down) {
            (Poll::Ready(Err(end)), _) | (_, Poll::Ready(Err(end))) => Poll::Ready(end),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(End::Finished),
            // A direction that is through no longer hears of a reset; the other's wait may have no end by itself.
            (Poll::Pending, Poll::Ready(Ok(()))) => self.tunnel.poll_reset(cx).map(|()| End::TunnelReset),
            _ => Poll::Pending,
        }
    }
}

/// From the socket into the tunnel.
struct Up {
    early: Bytes,
    buffer: BytesMut,
    /// Index into [`READ`].
    size: usize,
    done: bool,
    bytes: u64,
}

impl Up {
    /// Nothing moves: keep no buffer.
    fn rest(&mut self) {
        self.buffer = BytesMut::new();
        self.size = 0;
    }

    fn poll<S: Socket>(
        &mut self,
        tunnel: &mut Tunnel,
        socket: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), End>> {
        for _ in 0..TURN {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            // Only what may be sent is read, so the application feels a peer that does not read.
            let room = match ready!(tunnel.poll_room(cx, READ[self.size])) {
                Ok(room) => room,
                Err(PumpError::Peer(_) | PumpError::Stream(_) | PumpError::Body(_)) => {
                    return Poll::Ready(Err(End::TunnelReset));
                }
            };
            if !self.early.is_empty() {
                let now = self.early.split_to(room.min(self.early.len()));
                self.send(tunnel, now)?;
                continue;
            }
            match ready!(self.poll_read(socket, room, cx)) {
                Ok(0) => {
                    self.done = true;
                    tunnel.finish().map_err(|_| End::TunnelReset)?;
                }
                Ok(_) => {
                    let data = self.buffer.split().freeze();
                    self.send(tunnel, data)?;
                }
                Err(_) => return Poll::Ready(Err(End::SocketReset)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn send(&mut self, tunnel: &mut Tunnel, data: Bytes) -> Result<(), End> {
        self.bytes += data.len() as u64;
        tunnel.send(data).map_err(|_| End::TunnelReset)
    }

    fn poll_read<S: Socket>(
        &mut self,
        socket: &mut S,
        room: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let size = READ[self.size];
        // What is left of the last allocation does while it is worth a read.
        if self.buffer.capacity() < size / 4 {
            let ahead = if self.size > 0 { AHEAD } else { 0 };
            self.buffer.reserve(ahead + size);
            self.buffer.put_bytes(0, ahead);
            self.buffer.advance(ahead);
        }
        let space = self.buffer.capacity().min(room);
        let mut target = (&mut self.buffer).limit(space);
        // `read_buf` keeps nothing between polls, so it may be made anew for each.
        let read = ready!(pin!(socket.read_buf(&mut target)).poll(cx))?;
        if read == space && read >= size / 4 && self.size + 1 < READ.len() {
            self.size += 1;
        }
        Poll::Ready(Ok(read))
    }
}

/// From the tunnel into the socket.
struct Down {
    chunks: Chunks,
    /// END_STREAM came.
    ended: bool,
    /// And FIN was passed on.
    done: bool,
    bytes: u64,
}

impl Down {
    fn poll<S: Socket>(
        &mut self,
        tunnel: &mut Tunnel,
        socket: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), End>> {
        for _ in 0..TURN {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            let mut waiting = false;
            // All that is there, though the socket may not take it: the window bounds it, and h2 keeps small frames at a
            // higher cost than this does.
            while !self.ended && !waiting {
                match tunnel.poll_receive(cx) {
                    Poll::Pending => waiting = true,
                    Poll::Ready(None) => self.ended = true,
                    Poll::Ready(Some(Ok(chunk))) => self.chunks.push(chunk),
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(End::TunnelReset)),
                }
            }
            if self.chunks.is_empty() {
                if !self.ended {
                    return Poll::Pending;
                }
                let shut = ready!(Pin::new(&mut *socket).poll_shutdown(cx));
                self.done = true;
                // An application that closed both ways already needs no FIN.
                if let Err(error) = shut
                    && error.kind() != io::ErrorKind::NotConnected
                {
                    return Poll::Ready(Err(End::SocketReset));
                }
                continue;
            }
            match ready!(self.chunks.poll_write(socket, cx)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(End::SocketReset)),
                Ok(written) => {
                    tunnel.release(written);
                    self.bytes += written as u64;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Received chunks on their way into the socket. The first few go as they came, in one system call; when the socket does
/// not keep up, the rest is copied together, since a chunk of a few bytes keeps alive the whole buffer it was read into.
#[derive(Default)]
struct Chunks {
    held: VecDeque<Bytes>,
    /// After all of `held`.
    packed: BytesMut,
}

impl Chunks {
    fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    fn push(&mut self, chunk: Bytes) {
        if self.held.len() < GATHER && self.packed.is_empty() {
            self.held.push_back(chunk);
        } else {
            self.packed.extend_from_slice(&chunk);
        }
    }

    fn poll_write<S: Socket>(&mut self, socket: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let socket = Pin::new(socket);
        let written = if self.held.len() > 1 && socket.is_write_vectored() {
            let mut slices = [IoSlice::new(&[]); GATHER];
            for (slice, chunk) in slices.iter_mut().zip(&self.held) {
                *slice = IoSlice::new(chunk);
            }
            ready!(socket.poll_write_vectored(cx, &slices[..self.held.len()]))?
        } else {
            ready!(socket.poll_write(cx, &self.held[0]))?
        };
        let mut left = written;
        while let Some(first) = self.held.front_mut() {
            if left < first.len() {
                first.advance(left);
                break;
            }
            left -= first.len();
            self.held.pop_front();
        }
        if self.held.is_empty() && !self.packed.is_empty() {
            self.held.push_back(self.packed.split().freeze());
        }
        Poll::Ready(Ok(written))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that takes at most so many bytes at a time.
    struct Narrow {
        taken: Vec<u8>,
        at_once: usize,
    }

    impl AsyncRead for Narrow {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let taken = buf.len().min(self.at_once);
            self.taken.extend_from_slice(&buf[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Socket for Narrow {
        fn abort(self) {}
    }

    #[test]
    fn chunks_that_are_packed_keep_their_order_and_their_bytes() {
        let mut chunks = Chunks::default();
        let mut sent = Vec::new();
        for number in 0..1000u32 {
            let chunk = number.to_be_bytes();
            sent.extend(chunk);
            chunks.push(Bytes::copy_from_slice(&chunk));
            assert!(chunks.held.len() <= GATHER);
        }
        let mut socket = Narrow { taken: Vec::new(), at_once: 7 };
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut written = 0;
        while !chunks.is_empty() {
            let Poll::Ready(Ok(more)) = chunks.poll_write(&mut socket, &mut cx) else {
                panic!("it takes some")
            };
            written += more;
            // More comes while the rest goes.
            if written % 5 == 0 && sent.len() < 8000 {
                sent.extend(b"more");
                chunks.push(Bytes::from_static(b"more"));
            }
        }
        assert_eq!((written, &socket.taken), (sent.len(), &sent));
    }
}

//! What lies between TLS and the socket, to make few system calls of many. It reads ahead of the TLS library, which
//! asks for 4 KiB at a time, so that a frame of 256 KiB would be 64 reads; and it takes nothing while it is [`Cork`]ed, so
//! that the library keeps several frames encrypted and writes them at once.

use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::batch::Cork;

/// Bytes that are read at once.
const SIZE: usize = 64 * 1024;

thread_local! {
    /// A buffer for whoever reads next, empty or of [`SIZE`]: connections keep one only while they hold unread bytes.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A socket that is read in large pieces, and written in large ones.
#[derive(Debug)]
pub struct ReadAhead<IO> {
    io: IO,
    cork: Cork,
    /// What was read, of which `unread` is left.
    buffer: Vec<u8>,
    unread: std::ops::Range<usize>,
}

impl<IO> ReadAhead<IO> {
    /// Nothing is read yet.
    pub fn new(io: IO) -> Self {
        Self { io, cork: Cork::default(), buffer: Vec::new(), unread: 0..0 }
    }

    /// While it is on, writes wait, without being woken when it is off.
    pub fn cork(&self) -> Cork {
        self.cork.clone()
    }

    /// Gives away what is held, as far as it fits.
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.buffer[self.unread.start..self.unread.start + count]);
        self.unread.start += count;
        if self.unread.is_empty() {
            SPARE.set(std::mem::take(&mut self.buffer));
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ReadAhead<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.unread.is_empty() {
            if buf.remaining() >= SIZE {
                return Pin::new(&mut this.io).poll_read(cx, buf);
            }
            let mut buffer = SPARE.take();
            buffer.resize(SIZE, 0);
            let mut space = ReadBuf::new(&mut buffer);
            let polled = Pin::new(&mut this.io).poll_read(cx, &mut space);
            let read = space.filled().len();
            if read == 0 {
                SPARE.set(buffer);
                return polled;
            }
            ready!(polled)?;
            (this.buffer, this.unread) = (buffer, 0..read);
        }
        this.give(buf);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ReadAhead<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.cork.is_on() {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.cork.is_on() {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn small_reads_get_the_same_bytes_and_the_same_end() {
        let (mut far, near) = tokio::io::duplex(3 * SIZE);
        let sent: Vec<u8> = (0..2 * SIZE + 77).map(|at| (at % 251) as u8).collect();
        far.write_all(&sent).await.unwrap();
        drop(far);
        let mut near = ReadAhead::new(near);
        let mut got = Vec::new();
        for size in [1, 5, 4096, SIZE - 1, SIZE, 10, SIZE].into_iter().cycle() {
            let mut piece = vec![0; size];
            let read = near.read(&mut piece).await.unwrap();
            if read == 0 {
                break;
            }
            got.extend_from_slice(&piece[..read]);
        }
        assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
        assert!(near.buffer.capacity() == 0, "nothing unread is nothing kept");
    }

    #[tokio::test]
    async fn a_socket_that_has_nothing_keeps_its_reader_waiting() {
        let (mut far, near) = tokio::io::duplex(64);
        let mut near = ReadAhead::new(near);
        let mut piece = [0; 4];
        assert!(is_pending(&mut near, &mut piece));
        far.write_all(b"word").await.unwrap();
        near.read_exact(&mut piece).await.unwrap();
        assert_eq!(&piece, b"word");
    }

    fn is_pending<IO: AsyncRead + Unpin>(io: &mut IO, piece: &mut [u8]) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        Pin::new(io).poll_read(&mut cx, &mut ReadBuf::new(piece)).is_pending()
    }
}

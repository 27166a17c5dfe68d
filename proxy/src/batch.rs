//! Writes of an HTTP/2 connection, sent together at the end of its task's turn.
//!
//! `h2` writes and flushes each DATA frame of 256 bytes or more by itself: a system call for each message or answer, and
//! between sidecars a TLS record too. [`Batched`] stands below it, keeps what is small, and says that it was flushed;
//! whoever polls the connection ends the turn ([`Turns::end`], [`InTurns`]), and that sends all of it. Nothing waits longer
//! than until the poll that wrote it returns. What is large goes straight on, behind what is kept.
//!
//! Where bytes are many and pass through, reading is bounded by the turn too ([`Habits::read`]): whoever passes them on gets
//! its turn while they are in the processor's cache.
//!
//! A socket that takes no more is felt by `h2` as before, [`LIMIT`] bytes later. A write that fails after `h2` was told
//! that it succeeded is the error of the next read, once what the peer sent is read, or of the next write.

use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, ready},
};

use hyper::rt::Executor;
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::spawn_local,
};

/// Bytes that are kept at most.
const LIMIT: usize = 32 * 1024;
/// A write from here on is not worth a copy.
const LARGE: usize = 8 * 1024;
/// Parts of one write.
const PARTS: usize = 8;

thread_local! {
    /// A buffer for whoever writes next: connections that rest keep none.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Keeps what is below TLS from writing, so that TLS keeps what it has encrypted for as long as its own limit lets it.
#[derive(Clone, Debug, Default)]
pub struct Cork(Rc<Cell<bool>>);

impl Cork {
    /// Whether nothing is to be written.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.get()
    }
}

/// What is particular to a connection.
#[derive(Clone, Debug)]
pub struct Habits {
    /// Of what is below it. With one, large writes too wait for the end of the turn, or until no more is kept below.
    pub cork: Option<Cork>,
    /// Once a turn has read so many bytes, the rest is left to the next one.
    pub read: usize,
}

impl Default for Habits {
    /// Large writes go on at once, and everything is read that is there.
    fn default() -> Self {
        Self { cork: None, read: usize::MAX }
    }
}

/// A connection whose small writes wait for the end of the turn.
#[derive(Debug)]
pub struct Batched<IO>(Rc<RefCell<Shared<IO>>>);

/// Ends the turns of a connection.
#[derive(Debug)]
pub struct Turns<IO>(Weak<RefCell<Shared<IO>>>);

impl<IO> Clone for Turns<IO> {
    fn clone(&self) -> Self {
        Self(Weak::clone(&self.0))
    }
}

#[derive(Debug)]
struct Shared<IO> {
    io: IO,
    /// What is kept, of which so many bytes are sent.
    kept: Vec<u8>,
    sent: usize,
    /// `io` was given bytes, and was not flushed since.
    unflushed: bool,
    /// The connection was polled in this turn. Who does not poll it must not be woken instead of who does.
    touched: bool,
    failed: Option<io::Error>,
    /// Bytes read in this turn.
    read: usize,
    habits: Habits,
}

impl<IO> Batched<IO> {
    /// Whoever polls what is made of it must end its turns.
    pub fn new(io: IO, habits: Habits) -> (Self, Turns<IO>) {
        let (kept, sent, read) = (Vec::new(), 0, 0);
        let shared = Shared { io, kept, sent, unflushed: false, touched: false, failed: None, read, habits };
        let shared = Rc::new(RefCell::new(shared));
        let turns = Turns(Rc::downgrade(&shared));
        (Self(shared), turns)
    }
}

impl<IO: AsyncWrite + Unpin> Shared<IO> {
    fn waiting(&self) -> usize {
        self.kept.len() - self.sent
    }

    fn keep(&mut self, bufs: &[IoSlice<'_>]) {
        if self.kept.capacity() == 0 {
            self.kept = SPARE.take();
        }
        bufs.iter().for_each(|buf| self.kept.extend_from_slice(buf));
    }

    /// So many bytes of what is kept are gone.
    fn gone(&mut self, count: usize) {
        self.sent += count;
        if self.waiting() == 0 && self.kept.capacity() > 0 {
            let mut spare = std::mem::take(&mut self.kept);
            spare.clear();
            SPARE.set(spare);
            self.sent = 0;
        }
    }

    fn failure(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Sends what is kept, but does not flush.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.waiting() > 0 {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.kept[self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.gone(written);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what is kept and a large write behind it; gives how much went of the latter.
    fn poll_write_through(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            let before = self.waiting();
            let mut parts = [IoSlice::new(&[]); PARTS];
            parts[0] = IoSlice::new(&self.kept[self.sent..]);
            let count = bufs.len().min(PARTS - 1);
            parts[1..=count].copy_from_slice(&bufs[..count]);
            let from = usize::from(before == 0);
            let cork = self.habits.cork.as_ref();
            cork.inspect(|cork| cork.0.set(true));
            let polled = Pin::new(&mut self.io).poll_write_vectored(cx, &parts[from..=count]);
            cork.inspect(|cork| cork.0.set(false));
            let written = match polled? {
                Poll::Ready(written) => written,
                Poll::Pending if cork.is_none() => return Poll::Pending,
                // It keeps no more, and nothing would wake us: the socket was not asked.
                Poll::Pending => {
                    ready!(Pin::new(&mut self.io).poll_flush(cx))?;
                    continue;
                }
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            if before > 0 {
                self.gone(written.min(before));
            }
            if written > before {
                return Poll::Ready(Ok(written - before));
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.touched = true;
        self.failure()?;
        let size = bufs.iter().map(|buf| buf.len()).sum();
        if size >= LARGE {
            return self.poll_write_through(cx, bufs);
        }
        if self.waiting() + size > LIMIT {
            ready!(self.poll_send(cx))?;
        }
        self.keep(bufs);
        Poll::Ready(Ok(size))
    }

    fn end_turn(&mut self, cx: &mut Context<'_>) {
        self.read = 0;
        if !std::mem::take(&mut self.touched) || self.failed.is_some() {
            return;
        }
        if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
            self.failed = Some(error);
            self.unflushed = false;
            self.gone(self.waiting());
            // The connection is to hear of it.
            cx.waker().wake_by_ref();
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Batched<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let shared = &mut *self.0.borrow_mut();
        shared.touched = true;
        if shared.read >= shared.habits.read {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut shared.io).poll_read(cx, buf);
        shared.read += buf.filled().len() - before;
        match polled {
            Poll::Pending => shared.failed.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error))),
            ready => ready,
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Batched<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing: the turn's end flushes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = &mut *self.0.borrow_mut();
        shared.touched = true;
        Poll::Ready(shared.failure())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = &mut *self.0.borrow_mut();
        shared.touched = true;
        shared.failure()?;
        ready!(shared.poll_flush(cx))?;
        Pin::new(&mut shared.io).poll_shutdown(cx)
    }
}

impl<IO: AsyncWrite + Unpin> Turns<IO> {
    /// Ends the turn of whoever polled the connection with this task.
    pub fn end(&self, cx: &mut Context<'_>) {
        if let Some(shared) = self.0.upgrade() {
            shared.borrow_mut().end_turn(cx);
        }
    }
}

pin_project! {
    /// A future that polls a connection; each of its turns is ended.
    #[derive(Debug)]
    pub struct InTurns<F, IO> {
        #[pin]
        future: F,
        turns: Turns<IO>,
    }
}

impl<F, IO> InTurns<F, IO> {
    /// Where all that polls the connection is within `future`.
    pub const fn new(future: F, turns: Turns<IO>) -> Self {
        Self { future, turns }
    }

    /// The future itself, between polls.
    pub const fn get_mut(&mut self) -> &mut F {
        &mut self.future
    }

    /// The future itself.
    pub fn get_pin_mut(self: Pin<&mut Self>) -> Pin<&mut F> {
        self.project().future
    }
}

impl<F: Future, IO: AsyncWrite + Unpin> Future for InTurns<F, IO> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let polled = this.future.poll(cx);
        this.turns.end(cx);
        polled
    }
}

/// Spawns hyper's tasks onto the worker's own thread; the one that polls the connection ends its turns.
#[derive(Debug)]
pub struct TurnsExecutor<IO>(pub Turns<IO>);

impl<IO> Clone for TurnsExecutor<IO> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<IO, F> Executor<F> for TurnsExecutor<IO>
where
    IO: AsyncWrite + Unpin + 'static,
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, future: F) {
        spawn_local(InTurns::new(future, self.0.clone()));
    }
}

#[cfg(test)]
mod tests;

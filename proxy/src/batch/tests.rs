use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Wake, Waker},
};

use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use super::*;

/// A socket that takes so many bytes a write, and after so many in all nothing until it is emptied, or an error.
#[derive(Debug)]
struct Narrow {
    taken: Vec<u8>,
    writes: usize,
    flushes: usize,
    at_once: usize,
    room: usize,
    breaks: bool,
    shut: bool,
    endless: bool,
}

impl Narrow {
    fn new(at_once: usize) -> Self {
        let taken = Vec::new();
        Self {
            taken,
            writes: 0,
            flushes: 0,
            at_once,
            room: usize::MAX,
            breaks: false,
            shut: false,
            endless: false,
        }
    }
}

impl AsyncRead for Narrow {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.endless {
            return Poll::Pending;
        }
        buf.put_slice(&vec![0; buf.remaining()]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Narrow {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.breaks {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let count = buf.len().min(self.at_once).min(self.room);
        if count == 0 {
            return Poll::Pending;
        }
        self.writes += 1;
        self.room -= count;
        self.taken.extend_from_slice(&buf[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.poll_write(cx, &all)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flushes += 1;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut = true;
        Poll::Ready(Ok(()))
    }
}

/// As TLS does it: keeps so many bytes while it cannot write, and then takes no more.
#[derive(Debug)]
struct Keeping {
    cork: Cork,
    keeps: usize,
    kept: usize,
    writes: Vec<usize>,
}

impl AsyncWrite for Keeping {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = buf.len().min(self.keeps - self.kept);
        self.kept += count;
        if !self.cork.is_on() {
            let _flushed = self.poll_flush(cx)?;
        }
        if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let kept = std::mem::take(&mut self.kept);
        self.writes.extend((kept > 0).then_some(kept));
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_corked_connection_writes_large_pieces_at_the_end_of_the_turn_or_when_it_keeps_no_more() {
    let cork = Cork::default();
    let io = Keeping { cork: cork.clone(), keeps: 5 * LARGE, kept: 0, writes: Vec::new() };
    let (mut io, turns) = Batched::new(io, Habits { cork: Some(cork), ..Habits::default() });
    for _ in 0..7 {
        let written = Pin::new(&mut io).poll_write(&mut cx(), &[1; LARGE]);
        assert!(matches!(written, Poll::Ready(Ok(LARGE))), "{written:?}");
    }
    assert_eq!(io.0.borrow().io.writes, [5 * LARGE]);
    turns.end(&mut cx());
    assert_eq!(io.0.borrow().io.writes, [5 * LARGE, 2 * LARGE]);
}

fn narrow(at_once: usize) -> (Batched<Narrow>, Turns<Narrow>) {
    Batched::new(Narrow::new(at_once), Habits::default())
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn write(io: &mut Batched<Narrow>, parts: &[&[u8]]) -> Poll<io::Result<usize>> {
    let parts: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    Pin::new(io).poll_write_vectored(&mut cx(), &parts)
}

fn taken(io: &Batched<Narrow>) -> Vec<u8> {
    io.0.borrow().io.taken.clone()
}

#[test]
fn what_is_written_and_flushed_in_one_turn_is_one_write_at_its_end() {
    let (mut io, turns) = narrow(usize::MAX);
    for _ in 0..10 {
        assert!(matches!(write(&mut io, &[b"head", &[7; 1000]]), Poll::Ready(Ok(1004))));
        assert!(matches!(Pin::new(&mut io).poll_flush(&mut cx()), Poll::Ready(Ok(()))));
    }
    assert!(taken(&io).is_empty());
    turns.end(&mut cx());
    turns.end(&mut cx());
    let shared = io.0.borrow();
    assert_eq!((shared.io.taken.len(), shared.io.writes, shared.io.flushes), (10_040, 1, 1));
    assert_eq!(shared.kept.capacity(), 0, "a connection that rests keeps nothing");
}

#[test]
fn a_large_write_takes_what_was_kept_with_it_and_is_not_copied() {
    let (mut io, turns) = narrow(usize::MAX);
    assert!(write(&mut io, &[b"before"]).is_ready());
    assert!(
        matches!(write(&mut io, &[b"head", &[1; LARGE]]), Poll::Ready(Ok(written)) if written == LARGE + 4)
    );
    assert_eq!(io.0.borrow().io.writes, 1);
    assert!(taken(&io).starts_with(b"beforehead\x01"));
    turns.end(&mut cx());
    assert_eq!(io.0.borrow().io.flushes, 1);
}

#[test]
fn a_socket_that_takes_no_more_is_felt_and_what_waits_is_bounded() {
    let (mut io, turns) = narrow(usize::MAX);
    io.0.borrow_mut().io.room = 10;
    let mut accepted = 0;
    while let Poll::Ready(Ok(written)) = write(&mut io, &[&[3; 1000]]) {
        accepted += written;
        turns.end(&mut cx());
    }
    assert!(accepted <= LIMIT + 10, "{accepted}");
    assert!(write(&mut io, &[&[3; LARGE]]).is_pending());
    io.0.borrow_mut().io.room = usize::MAX;
    assert!(Pin::new(&mut io).poll_read(&mut cx(), &mut ReadBuf::new(&mut [0; 4])).is_pending());
    turns.end(&mut cx());
    assert_eq!(taken(&io).len(), accepted);
}

#[test]
fn a_task_that_does_not_poll_the_connection_ends_no_turn_of_it() {
    let (mut io, turns) = narrow(usize::MAX);
    io.0.borrow_mut().io.room = 1;
    assert!(write(&mut io, &[b"two"]).is_ready());
    turns.end(&mut cx());
    let writes = io.0.borrow().io.writes;
    io.0.borrow_mut().io.room = usize::MAX;
    // Its waker would take the place of the connection's.
    turns.end(&mut cx());
    assert_eq!(io.0.borrow().io.writes, writes);
}

#[test]
fn a_write_that_fails_at_the_end_of_a_turn_is_the_next_ones_error() {
    let (mut io, turns) = narrow(usize::MAX);
    assert!(write(&mut io, &[b"lost"]).is_ready());
    io.0.borrow_mut().io.breaks = true;
    turns.end(&mut cx());
    let read = Pin::new(&mut io).poll_read(&mut cx(), &mut ReadBuf::new(&mut [0; 4]));
    assert!(matches!(read, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe));
    assert!(write(&mut io, &[b"kept"]).is_ready());
    turns.end(&mut cx());
    assert!(matches!(write(&mut io, &[b"more"]), Poll::Ready(Err(_))));
}

#[tokio::test]
async fn a_shutdown_sends_what_is_kept_first() {
    let (mut io, _turns) = narrow(2);
    io.write_all(b"the last words").await.unwrap();
    io.shutdown().await.unwrap();
    let shared = io.0.borrow();
    assert_eq!((&shared.io.taken[..], shared.io.shut), (&b"the last words"[..], true));
}

#[test]
fn a_turn_reads_no_more_than_it_may_and_the_next_goes_on() {
    struct Woken(AtomicUsize);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let woken = Arc::new(Woken(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    let endless = Narrow { endless: true, ..Narrow::new(usize::MAX) };
    let (mut io, turns) = Batched::new(endless, Habits { read: 10, ..Habits::default() });
    for turn in 1..4 {
        let reads = std::iter::from_fn(|| {
            let polled = Pin::new(&mut io).poll_read(&mut cx, &mut ReadBuf::new(&mut [0; 4]));
            matches!(polled, Poll::Ready(Ok(()))).then_some(())
        });
        assert_eq!(reads.count(), 3, "what it was reading when it came to its limit is whole");
        assert_eq!(woken.0.load(Ordering::Relaxed), turn, "it comes back by itself");
        turns.end(&mut cx);
    }
}

#[tokio::test]
async fn a_future_that_polls_the_connection_sends_whenever_it_waits() {
    let (io, turns) = narrow(usize::MAX);
    let shared = Rc::clone(&io.0);
    let mut writer = io;
    let mut step = 0;
    let writes = poll_fn(|cx| {
        step += 1;
        let _written = Pin::new(&mut writer).poll_write(cx, b"word");
        if step == 3 {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    });
    InTurns::new(writes, turns).await;
    assert_eq!(shared.borrow().io.writes, 3);
}

proptest! {
    /// Whatever is written, in whatever pieces, arrives in order and once.
    #[test]
    fn bytes_arrive_as_they_were_written(
        steps in prop::collection::vec((0usize..20_000, 0usize..3_000, any::<bool>()), 1..30),
        at_once in 1usize..40_000,
    ) {
        let (mut io, turns) = narrow(at_once);
        let mut sent = Vec::new();
        for (index, (first, second, ends)) in steps.into_iter().enumerate() {
            let whole: Vec<u8> = (0..first + second).map(|at| (at + index * 7) as u8).collect();
            let mut at = 0;
            while at < whole.len() {
                let (a, b) = whole[at..].split_at(first.saturating_sub(at).min(whole.len() - at));
                let Poll::Ready(Ok(written)) = write(&mut io, &[a, b]) else { panic!("it takes some") };
                prop_assert!(written > 0);
                at += written;
            }
            sent.extend(whole);
            if ends {
                turns.end(&mut cx());
                prop_assert_eq!(taken(&io).len(), sent.len());
            }
        }
        let _read = Pin::new(&mut io).poll_read(&mut cx(), &mut ReadBuf::new(&mut [0; 4]));
        turns.end(&mut cx());
        prop_assert!(taken(&io) == sent);
    }
}

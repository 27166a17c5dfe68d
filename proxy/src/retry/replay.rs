//! A request body that can be sent again while no more than 64 KiB of it have passed.
//!
//! The first reader pulls frames from the source and leaves them for the readers after it. A reader that begins
//! takes over: the one before it, whose try was given up, gets an error instead of frames. For one thread.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// Bytes of a body that are kept for another try.
pub const MAX_BYTES: usize = 64 * 1024;
/// Frames that are kept.
const MAX_FRAMES: usize = 256;
/// Frames smaller than this are copied, since each would hold on to the whole buffer that it was read into. So at
/// most sixteen buffers are held.
const COPIED_BELOW: usize = 4 * 1024;

/// Why a replayed body gives no more frames.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError<E> {
    /// The client's body failed.
    #[error("the request's body ended with an error: {0}")]
    Source(E),
    /// A later try has taken the body over, so this one was given up.
    #[error("a later try took over the request's body")]
    TakenOver,
    /// What this reader would need next was not kept, or failed for an earlier reader.
    #[error("the request's body cannot be sent again")]
    Gone,
}

/// One reader of the body. Keep one as the handle and send what [`again`](Self::again) gives, or send the body and
/// keep what `again` gave: readers are alike. While only one exists nothing is kept.
#[derive(Debug)]
pub struct ReplayBody<B> {
    shared: Rc<RefCell<Shared<B>>>,
    id: u32,
    /// Whether it was ever the active one.
    begun: bool,
    /// Frames that it has read of those kept.
    read: usize,
    /// Whether it has read to the end.
    done: bool,
}

#[derive(Debug)]
struct Shared<B> {
    source: Pin<Box<B>>,
    kept: Vec<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
    state: State,
    readers: u32,
    active: Option<u32>,
    waker: Option<Waker>,
}

/// Of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// More may come; what came is kept.
    Replayable,
    /// More may come; not all that came is kept, so only the active reader can go on.
    Passing,
    /// It ended, and all that came is kept.
    Ended,
    /// It ended, or failed, and cannot be read from the start.
    Over,
}

impl<B: Body<Data = Bytes>> ReplayBody<B> {
    /// The first reader.
    pub fn new(source: B) -> Self {
        let state = if source.is_end_stream() { State::Ended } else { State::Replayable };
        let shared = Shared {
            source: Box::pin(source),
            kept: Vec::new(),
            bytes: 0,
            trailers: None,
            state,
            readers: 1,
            active: None,
            waker: None,
        };
        Self { shared: Rc::new(RefCell::new(shared)), id: 0, begun: false, read: 0, done: false }
    }

    /// A reader from the start. None: more than 64 KiB have passed, the source failed, or nobody kept what passed.
    #[must_use]
    pub fn again(&self) -> Option<Self> {
        let mut shared = self.shared.borrow_mut();
        if !matches!(shared.state, State::Replayable | State::Ended) {
            return None;
        }
        let id = shared.readers;
        shared.readers += 1;
        Some(Self { shared: Rc::clone(&self.shared), id, begun: false, read: 0, done: false })
    }
}

impl<B: Body<Data = Bytes>> Shared<B> {
    /// Makes `id`, which has not begun, the one that reads. False: what it would have to begin with is gone.
    fn take_over(&mut self, id: u32) -> bool {
        if self.active.is_some() && !matches!(self.state, State::Replayable | State::Ended) {
            return false;
        }
        self.active = Some(id);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        true
    }

    /// Keeps a frame's data for the readers to come, or gives up keeping.
    fn keep(&mut self, data: &Bytes, wanted: bool) {
        if self.state != State::Replayable {
            return;
        }
        if !wanted || self.bytes + data.len() > MAX_BYTES || self.kept.len() == MAX_FRAMES {
            self.state = State::Passing;
            self.kept = Vec::new();
            return;
        }
        self.bytes += data.len();
        let small = data.len() < COPIED_BELOW;
        self.kept.push(if small { Bytes::copy_from_slice(data) } else { data.clone() });
    }
}

impl<B: Body<Data = Bytes>> Body for ReplayBody<B> {
    type Data = Bytes;
    type Error = ReplayError<B::Error>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let wanted = Rc::strong_count(&this.shared) > 1;
        let shared = &mut *this.shared.borrow_mut();
        if !this.begun {
            if !shared.take_over(this.id) {
                return Poll::Ready(Some(Err(ReplayError::Gone)));
            }
            this.begun = true;
        } else if shared.active != Some(this.id) {
            return Poll::Ready(Some(Err(ReplayError::TakenOver)));
        }
        if let Some(data) = shared.kept.get(this.read) {
            this.read += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        match shared.state {
            State::Ended => {
                let trailers = shared.trailers.clone().filter(|_| !this.done);
                this.done = true;
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
            }
            State::Over if this.done => return Poll::Ready(None),
            State::Over => return Poll::Ready(Some(Err(ReplayError::Gone))),
            State::Replayable | State::Passing => {}
        }
        let Poll::Ready(frame) = shared.source.as_mut().poll_frame(cx) else {
            shared.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let over = if shared.state == State::Replayable { State::Ended } else { State::Over };
        Poll::Ready(match frame {
            None => {
                shared.state = over;
                this.done = true;
                None
            }
            Some(Err(error)) => {
                shared.state = State::Over;
                this.done = true;
                Some(Err(ReplayError::Source(error)))
            }
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    shared.keep(data, wanted);
                    // Where nothing is kept this only says that the reader has begun.
                    this.read += 1;
                } else if let Some(trailers) = frame.trailers_ref() {
                    shared.trailers = wanted.then(|| trailers.clone());
                    shared.state = if wanted { over } else { State::Over };
                    this.done = true;
                }
                Some(Ok(frame))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.shared.borrow();
        match shared.state {
            State::Ended => self.read >= shared.kept.len() && (self.done || shared.trailers.is_none()),
            State::Over => self.done,
            State::Replayable => self.read >= shared.kept.len() && shared.source.is_end_stream(),
            State::Passing => shared.source.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let shared = self.shared.borrow();
        let kept: u64 = shared.kept.iter().skip(self.read).map(|data| data.len() as u64).sum();
        let mut hint = match shared.state {
            State::Ended | State::Over => SizeHint::with_exact(0),
            State::Replayable | State::Passing => shared.source.size_hint(),
        };
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(kept));
        }
        hint.set_lower(hint.lower().saturating_add(kept));
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        collections::VecDeque,
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        task::Wake,
    };

    use http_body_util::{BodyExt, Full};
    use proptest::prelude::*;

    use super::*;

    /// Gives its frames one after the other, and says how many were taken.
    struct Script {
        frames: VecDeque<Result<Frame<Bytes>, &'static str>>,
        taken: Rc<Cell<usize>>,
    }

    fn script(chunks: &[usize], trailers: bool) -> Script {
        let mut frames: VecDeque<_> = chunks
            .iter()
            .enumerate()
            .map(|(index, len)| Ok(Frame::data(Bytes::from(vec![b'a' + (index % 26) as u8; *len]))))
            .collect();
        if trailers {
            let mut map = HeaderMap::new();
            map.insert("x-end", "yes".parse().unwrap());
            frames.push_back(Ok(Frame::trailers(map)));
        }
        Script { frames, taken: Rc::default() }
    }

    impl Body for Script {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            self.taken.set(self.taken.get() + 1);
            Poll::Ready(self.frames.pop_front())
        }
    }

    type Read<E> = Result<(Vec<u8>, Option<HeaderMap>), ReplayError<E>>;

    async fn read<B: Body<Data = Bytes>>(body: ReplayBody<B>) -> Read<B::Error> {
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned();
        Ok((collected.to_bytes().to_vec(), trailers))
    }

    async fn next<B: Body<Data = Bytes>>(body: &mut ReplayBody<B>) -> Bytes {
        body.frame().await.unwrap().ok().unwrap().into_data().unwrap()
    }

    #[tokio::test]
    async fn a_body_is_sent_again_with_its_trailers() {
        let handle = ReplayBody::new(script(&[10, 0, 2_000], true));
        let first = read(handle.again().unwrap()).await.unwrap();
        let second = read(handle.again().unwrap()).await.unwrap();
        assert_eq!(first.0.len(), 2_010);
        assert_eq!(first.1.as_ref().unwrap()["x-end"], "yes");
        assert_eq!(first, second);
        assert_eq!(read(handle).await.unwrap(), second, "the handle is a reader like any other");
    }

    #[tokio::test]
    async fn a_second_try_gets_what_the_first_had_and_then_the_rest() {
        let mut first = ReplayBody::new(script(&[3, 4, 5], false));
        let second = first.again().unwrap();
        let kept = second.again().unwrap();
        assert_eq!(next(&mut first).await.len(), 3);
        assert_eq!(read(second).await.unwrap().0.len(), 12);
        assert!(matches!(first.frame().await, Some(Err(ReplayError::TakenOver))));
        assert_eq!(read(kept).await.unwrap().0.len(), 12);
    }

    #[tokio::test]
    async fn exactly_64_kib_can_be_sent_again_and_a_byte_more_cannot() {
        for (chunks, again) in
            [(&[32_768, 32_768][..], true), (&[32_768, 32_768, 1], false), (&[65_537], false)]
        {
            let handle = ReplayBody::new(script(chunks, false));
            let sent = read(handle.again().unwrap()).await.unwrap().0.len();
            assert_eq!(sent, chunks.iter().sum::<usize>(), "the body itself arrives whole");
            assert_eq!(handle.again().is_some(), again, "{chunks:?}");
            if !again {
                assert!(handle.shared.borrow().kept.is_empty(), "nothing is kept for nobody");
                assert!(matches!(read(handle).await, Err(ReplayError::Gone)));
            }
        }
    }

    #[tokio::test]
    async fn a_reader_that_comes_too_late_does_not_begin_in_the_middle() {
        let mut first = ReplayBody::new(script(&[65_537, 3], false));
        let late = first.again().unwrap();
        next(&mut first).await;
        assert!(matches!(read(late).await, Err(ReplayError::Gone)));
        assert_eq!(next(&mut first).await.len(), 3, "the one before it goes on");
    }

    #[test]
    fn a_reader_that_waits_is_woken_when_another_takes_over() {
        struct Silent;
        impl Body for Silent {
            type Data = Bytes;
            type Error = Infallible;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
                Poll::Pending
            }
        }
        #[derive(Default)]
        struct Woken(AtomicBool);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let woken = Arc::new(Woken::default());
        let mut first = ReplayBody::new(Silent);
        let mut second = first.again().unwrap();
        let waker = Waker::from(Arc::clone(&woken));
        assert!(Pin::new(&mut first).poll_frame(&mut Context::from_waker(&waker)).is_pending());
        assert!(!woken.0.load(Ordering::Relaxed));
        assert!(Pin::new(&mut second).poll_frame(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(woken.0.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn many_small_frames_are_not_kept_for_ever() {
        let handle = ReplayBody::new(script(&[1; MAX_FRAMES + 1], false));
        assert_eq!(read(handle.again().unwrap()).await.unwrap().0.len(), MAX_FRAMES + 1);
        assert!(handle.again().is_none());
    }

    #[tokio::test]
    async fn a_reader_without_company_keeps_nothing() {
        let mut only = ReplayBody::new(script(&[3, 4], true));
        drop(only.again());
        assert_eq!(next(&mut only).await.len(), 3);
        assert!(only.shared.borrow().kept.is_empty());
        assert!(only.again().is_none());
        assert_eq!(read(only).await.unwrap().0.len(), 4);
    }

    #[tokio::test]
    async fn a_body_that_failed_is_not_sent_again() {
        let mut body = script(&[3], false);
        body.frames.push_back(Err("the client went away"));
        let handle = ReplayBody::new(body);
        let failed = read(handle.again().unwrap()).await;
        assert!(matches!(failed, Err(ReplayError::Source("the client went away"))));
        assert!(handle.again().is_none());
    }

    #[tokio::test]
    async fn nothing_is_read_before_somebody_asks_nor_after_the_end() {
        let body = script(&[3], true);
        let taken = Rc::clone(&body.taken);
        let handle = ReplayBody::new(body);
        let mut reader = handle.again().unwrap();
        assert_eq!(taken.get(), 0);
        while reader.frame().await.is_some() {}
        assert!(reader.frame().await.is_none() && reader.is_end_stream());
        assert_eq!(taken.get(), 2);
    }

    #[tokio::test]
    async fn an_empty_body_ends_before_it_is_read_and_a_known_length_stays_known() {
        let empty = ReplayBody::new(Full::new(Bytes::new()));
        assert!(empty.is_end_stream() && empty.size_hint().exact() == Some(0));
        assert!(empty.again().unwrap().is_end_stream());

        let mut known = ReplayBody::new(Full::new(Bytes::from_static(b"twelve bytes")));
        let again = known.again().unwrap();
        assert_eq!(known.size_hint().exact(), Some(12));
        next(&mut known).await;
        assert!(known.is_end_stream() && known.size_hint().exact() == Some(0));
        assert!(!again.is_end_stream() && again.size_hint().exact() == Some(12));
        let sent: Result<_, ReplayError<Infallible>> = read(again).await;
        assert_eq!(sent.unwrap().0, b"twelve bytes");
    }

    proptest! {
        #[test]
        fn whatever_the_first_try_read_the_next_sends_the_same(
            chunks in prop::collection::vec(0usize..3_000, 0..20), trailers: bool, stop in 0usize..22
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let handle = ReplayBody::new(script(&chunks, trailers));
                let mut first = handle.again().unwrap();
                for _ in 0..stop {
                    if first.frame().await.is_none() {
                        break;
                    }
                }
                let (sent, end) = read(handle.again().unwrap()).await.unwrap();
                let expected = read(ReplayBody::new(script(&chunks, trailers))).await.unwrap();
                prop_assert_eq!((sent, end), expected);
                Ok(())
            })?;
        }
    }
}

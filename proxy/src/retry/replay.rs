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

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// Bytes of a body that are kept for another try.
pub const MAX_BYTES: usize = 64 * 1024;
/// Frames that are kept: each may hold on to the larger buffer that it was read into.
const MAX_FRAMES: usize = 64;

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
        if !wanted || self.bytes + data.remaining() > MAX_BYTES || self.kept.len() == MAX_FRAMES {
            self.state = State::Passing;
            self.kept = Vec::new();
            return;
        }
        self.bytes += data.remaining();
        self.kept.push(data.clone());
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

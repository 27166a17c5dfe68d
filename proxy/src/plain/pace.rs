//! How long a request's body may keep its answer waiting.
//!
//! Whoever reads a body waits for the client, and who does not send holds what waits: a stream here and a connection of
//! the application. [`Paced`] notes when nothing, or next to nothing, has come for a while in which something was asked
//! for; [`Pace::watch`] gives the request up then. It is over with the first byte of the answer: who answers before it was
//! told everything means to talk, and may be silent for as long as it likes. So may gRPC, whose answer may come last.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::edge;

/// Bytes of a body that must come within the time that it is given.
pub const LEAST: usize = 1024;

/// What a body and whoever waits for its request's answer share.
#[derive(Debug, Default)]
pub struct Pace {
    stalled: Cell<bool>,
    over: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// The client sent too little of its request's body for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client sent next to nothing of the request's body while it was waited for")]
pub struct Stalled;

impl Pace {
    /// Waits for an answer for as long as the request's body moves, or nobody asks for it.
    ///
    /// # Errors
    /// When the body stalls; the answer's future is to be dropped then.
    pub async fn watch<F: Future>(
        pace: Option<Rc<Self>>,
        mut answer: Pin<&mut F>,
    ) -> Result<F::Output, Stalled> {
        let Some(pace) = pace else { return Ok(answer.await) };
        std::future::poll_fn(|cx| {
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                pace.over.set(true);
                return Poll::Ready(Ok(answer));
            }
            if pace.stalled.get() {
                return Poll::Ready(Err(Stalled));
            }
            let mut waker = pace.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn stall(&self) {
        self.stalled.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The body of a request: it says when it stalls, and its trailers have the form that holds inside the sidecar.
#[derive(Debug)]
pub struct Paced<B> {
    body: B,
    watch: Option<Watch>,
}

#[derive(Debug)]
struct Watch {
    pace: Rc<Pace>,
    patience: Duration,
    /// Since a reader first had to wait.
    limit: Option<Pin<Box<Sleep>>>,
    /// Bytes since then.
    came: usize,
    /// The reader had to wait when it asked last.
    waits: bool,
}

impl<B: Body<Data = Bytes> + Unpin> Paced<B> {
    /// The body of a request with these headers, which may keep a reader waiting for `patience`; and its pace, where there
    /// is one to be watched.
    pub fn new(body: B, headers: &HeaderMap, patience: Duration) -> (Self, Option<Rc<Pace>>) {
        if edge::is_grpc(headers) || body.is_end_stream() {
            return (Self { body, watch: None }, None);
        }
        let pace = Rc::new(Pace::default());
        let watch = Watch { pace: Rc::clone(&pace), patience, limit: None, came: 0, waits: false };
        (Self { body, watch: Some(watch) }, Some(pace))
    }
}

impl Watch {
    /// The reader has to wait.
    fn wait(&mut self, cx: &mut Context<'_>) {
        let waited = std::mem::replace(&mut self.waits, true);
        let limit = self.limit.get_or_insert_with(|| {
            self.came = 0;
            Box::pin(sleep(self.patience))
        });
        while limit.as_mut().poll(cx).is_ready() {
            // Time in which nobody asked is not the client's.
            if waited && self.came < LEAST {
                return self.pace.stall();
            }
            self.came = 0;
            limit.as_mut().reset(Instant::now() + self.patience);
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Paced<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let mut polled = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            edge::trailers(trailers);
        }
        if let Some(watch) = &mut this.watch {
            if watch.pace.over.get() {
                this.watch = None;
            } else if let Poll::Ready(frame) = &polled {
                watch.waits = false;
                if let Some(Ok(frame)) = frame {
                    watch.came += frame.data_ref().map_or(0, Bytes::len);
                }
            } else {
                watch.wait(cx);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, pin::pin};

    use http::header::CONTENT_TYPE;
    use http_body_util::{BodyExt, Full};
    use tokio::{sync::mpsc, time::timeout};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);

    struct Channel(mpsc::UnboundedReceiver<Bytes>);

    impl Body for Channel {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    fn paced(kind: &str) -> (mpsc::UnboundedSender<Bytes>, Paced<Channel>, Option<Rc<Pace>>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, kind.parse().unwrap());
        let (body, pace) = Paced::new(Channel(receiver), &headers, PATIENCE);
        (sender, body, pace)
    }

    /// What a client that sends so many bytes each second gets from a server that reads everything first.
    async fn upload(bytes_a_second: usize, seconds: usize) -> Result<usize, Stalled> {
        let (sender, body, pace) = paced("text/plain");
        let sending = async move {
            for _ in 0..seconds {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let _stalled = sender.send(Bytes::from(vec![b'x'; bytes_a_second]));
            }
        };
        let mut read = pin!(async { body.collect().await.unwrap().to_bytes().len() });
        let reading = Pace::watch(pace, read.as_mut());
        tokio::join!(sending, reading).1
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_crawls_is_given_up_and_one_that_is_slow_arrives() {
        assert_eq!(upload(1, 600).await, Err(Stalled));
        assert_eq!(upload(20, 600).await, Ok(12_000));
        assert_eq!(upload(1, 50).await, Ok(50), "a short one may crawl");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_of_which_nothing_comes_is_given_up() {
        let (_sender, body, pace) = paced("text/plain");
        let began = Instant::now();
        let read = Pace::watch(pace, pin!(body.collect())).await;
        assert!(read.is_err() && began.elapsed() <= PATIENCE + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_nobody_asks_for_does_not_stall() {
        let (sender, mut body, pace) = paced("text/plain");
        let reading = async {
            for _ in 0..3 {
                assert!(body.frame().await.is_some());
                tokio::time::sleep(HOUR).await;
            }
            let again = timeout(PATIENCE / 2, body.frame()).await;
            assert!(again.is_err());
        };
        let sending = async {
            for _ in 0..3 {
                tokio::time::sleep(PATIENCE / 2).await;
                sender.send(Bytes::from_static(b"x")).unwrap();
            }
        };
        let mut reading = pin!(reading);
        let (read, ()) = tokio::join!(Pace::watch(pace, reading.as_mut()), sending);
        assert_eq!(read, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn once_there_is_an_answer_a_body_may_rest() {
        let (sender, mut body, pace) = paced("text/plain");
        let pending = timeout(PATIENCE / 2, body.frame()).await;
        assert!(pending.is_err());
        assert_eq!(Pace::watch(pace, pin!(async { 200 })).await, Ok(200));
        let rested = async {
            tokio::time::sleep(HOUR).await;
            sender.send(Bytes::from_static(b"more")).unwrap();
        };
        let (frame, ()) = tokio::join!(body.frame(), rested);
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), "more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_grpc_call_may_rest_before_its_answer() {
        let (_sender, body, pace) = paced("application/grpc+proto");
        assert!(pace.is_none());
        assert!(timeout(HOUR, Pace::watch(pace, pin!(body.collect()))).await.is_err(), "it still waits");
    }

    #[test]
    fn a_request_without_a_body_costs_no_pace() {
        assert!(Paced::new(Full::<Bytes>::default(), &HeaderMap::new(), PATIENCE).1.is_none());
    }
}

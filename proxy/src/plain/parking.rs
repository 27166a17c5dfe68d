//! Serving HTTP/1 to applications, on connections that cost next to nothing while they are idle.
//!
//! For as long as a connection lives, hyper keeps two buffers of 8 KiB and room for a whole request's future. Most
//! connections of most pools are idle, so one that was quiet for a while is parked: hyper is taken off it, and the
//! socket alone waits for the next byte, which puts hyper on again. A worker looks once a second at all its connections,
//! so a request costs no timer.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::poll_fn,
    io,
    mem::{self, MaybeUninit},
    pin::Pin,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body::Body;
use hyper::{body::Incoming, server::conn::http1::UpgradeableConnection, service::service_fn};
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::sleep,
};

use super::{BoxError, farewell::hear_out, head::Waiting, settings};
use crate::{detect::Rewind, worker::Drain};

/// How often a worker looks for idle connections. One that shows no request between two looks is parked.
const LOOK: Duration = Duration::from_secs(1);
/// What is read of a parked connection at once: most requests' heads whole.
const FIRST_READ: usize = 2048;

/// A worker's HTTP/1 connections that are not parked.
#[derive(Debug, Default)]
pub struct Lot {
    moving: RefCell<Vec<Weak<Spot>>>,
    looking: Cell<bool>,
    leaving: Cell<bool>,
}

/// One connection while hyper serves it.
#[derive(Debug)]
struct Spot {
    waiting: Arc<Waiting>,
    /// What [`Waiting::between_requests`] said at the last look.
    seen: Cell<Option<usize>>,
    /// Nothing happened between two looks.
    quiet: Cell<bool>,
    /// A request asked for another protocol.
    upgrade: Cell<bool>,
    /// The last request had content, which may not be read to its end when it is answered.
    content: Cell<bool>,
    task: RefCell<Option<Waker>>,
}

/// How hyper came off a connection.
enum Left<T> {
    Ended(hyper::Result<()>),
    Quiet(Rewind<T>),
}

impl Lot {
    /// An empty one, whose connections end when the sidecar leaves.
    #[must_use]
    pub fn new(mut drain: Drain) -> Rc<Self> {
        let lot = Rc::new(Self::default());
        let weak = Rc::downgrade(&lot);
        tokio::task::spawn_local(async move {
            drain.leaving().await;
            if let Some(lot) = weak.upgrade() {
                lot.leaving.set(true);
                lot.moving.borrow().iter().filter_map(Weak::upgrade).for_each(|spot| spot.wake());
            }
        });
        lot
    }

    fn enter(self: &Rc<Self>, waiting: Arc<Waiting>) -> Rc<Spot> {
        let spot = Rc::new(Spot {
            waiting,
            seen: Cell::default(),
            quiet: Cell::default(),
            upgrade: Cell::default(),
            content: Cell::default(),
            task: RefCell::default(),
        });
        self.moving.borrow_mut().push(Rc::downgrade(&spot));
        if !self.looking.replace(true) {
            let lot = Rc::downgrade(self);
            tokio::task::spawn_local(async move {
                // A timer that ends before all others wakes the runtime once more. The request that has just come is to
                // be sent on first.
                tokio::task::yield_now().await;
                loop {
                    sleep(LOOK).await;
                    let Some(lot) = lot.upgrade() else { return };
                    if !lot.look() {
                        lot.looking.set(false);
                        return;
                    }
                }
            });
        }
        spot
    }

    /// False: there is nothing to look at.
    fn look(&self) -> bool {
        let mut moving = self.moving.borrow_mut();
        moving.retain(|spot| {
            let Some(spot) = spot.upgrade() else { return false };
            let now = spot.waiting.between_requests();
            if now.is_some() && spot.seen.replace(now) == now {
                spot.quiet.set(true);
                spot.wake();
            }
            true
        });
        moving.shrink_to(64);
        !moving.is_empty()
    }
}

impl Spot {
    fn wake(&self) {
        if let Some(task) = &*self.task.borrow() {
            task.wake_by_ref();
        }
    }

    fn remember(&self, cx: &Context<'_>) {
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *task = Some(cx.waker().clone());
        }
    }
}

/// Serves HTTP/1 until either side closes or the sidecar leaves. A connection without a request for `idle`, if that is
/// said, is closed too.
///
/// # Errors
/// When what the client sent is no HTTP, or the connection broke.
pub async fn serve_http1<T, F, R, B>(
    lot: &Rc<Lot>,
    mut io: Rewind<T>,
    idle: Option<Duration>,
    mut drain: Drain,
    answer: F,
) -> hyper::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R + 'static,
    R: Future<Output = Response<B>> + 'static,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    let answer = Rc::new(answer);
    loop {
        io = match serve(lot, io, &answer).await {
            Left::Ended(ended) => return ended,
            Left::Quiet(io) => io,
        };
        let next = tokio::select! {
            next = next_bytes(&mut io) => next,
            () = drain.leaving() => return Ok(()),
            () = expire(idle) => return Ok(()),
        };
        match next {
            Ok(bytes) if !bytes.is_empty() => io = Rewind::new(bytes, io.into_parts().1),
            // As when hyper meets the end of a connection that is between requests.
            Ok(_) | Err(_) => return Ok(()),
        }
    }
}

pin_project! {
    /// An answer on its way. No `async` block around it: that would hold the answer's future twice over.
    struct Answering<R> {
        #[pin]
        answer: R,
        // Once, before all else.
        yields: bool,
    }
}

impl<R: Future> Future for Answering<R> {
    type Output = Result<R::Output, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if mem::take(this.yields) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.answer.poll(cx).map(Ok)
    }
}

/// Has hyper serve a connection until it ends or is quiet.
async fn serve<T, F, R, B>(lot: &Rc<Lot>, io: Rewind<T>, answer: &Rc<F>) -> Left<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R + 'static,
    R: Future<Output = Response<B>> + 'static,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    let (http1, io, waiting) = settings::http1_server(io);
    let spot = lot.enter(waiting);
    let service = service_fn({
        let (answer, spot) = (Rc::clone(answer), Rc::clone(&spot));
        move |request: Request<Incoming>| {
            let upgrade =
                request.method() == Method::CONNECT || request.headers().contains_key(header::UPGRADE);
            if upgrade {
                spot.upgrade.set(true);
            }
            spot.content.set(!request.body().is_end_stream());
            // Until the connection has become one that can be upgraded.
            Answering { answer: answer(request), yields: upgrade }
        }
    });
    // On the heap, so that a parked connection does not keep the room for it.
    let mut parkable = Some(Box::new(http1.serve_connection(io, service)));
    let mut upgradeable: Option<Box<UpgradeableConnection<_, _>>> = None;
    let mut farewell = None;
    let mut leaving = false;
    poll_fn(|cx| {
        spot.remember(cx);
        loop {
            if let Some(farewell) = &mut farewell {
                let heard: Poll<()> = Future::poll(Pin::as_mut(farewell), cx);
                let over = heard.is_ready() || lot.leaving.get();
                return if over { Poll::Ready(Left::Ended(Ok(()))) } else { Poll::Pending };
            }
            let polled = match (&mut parkable, &mut upgradeable) {
                (Some(connection), _) => Pin::new(connection).poll(cx),
                (None, Some(connection)) => Pin::new(connection).poll(cx),
                (None, None) => unreachable!("polled after its end"),
            };
            if let Poll::Ready(ended) = polled {
                if ended.is_ok()
                    && spot.content.get()
                    && let Some(connection) = parkable.take()
                {
                    // On the heap: seldom, and no reason for every connection's task to be larger.
                    let io = connection.into_parts().io.into_inner().into_inner();
                    farewell = Some(Box::pin(hear_out(io)));
                    continue;
                }
                return Poll::Ready(Left::Ended(ended));
            }
            if spot.upgrade.get()
                && let Some(connection) = parkable.take()
            {
                upgradeable = Some(Box::new(connection.with_upgrades()));
            } else if lot.leaving.get() && !leaving {
                leaving = true;
                match (&mut parkable, &mut upgradeable) {
                    (Some(connection), _) => Pin::new(&mut **connection).graceful_shutdown(),
                    (None, Some(connection)) => Pin::new(&mut **connection).graceful_shutdown(),
                    (None, None) => {}
                }
            } else if spot.quiet.take()
                && spot.waiting.between_requests().is_some()
                && let Some(connection) = parkable.take()
            {
                let parts = connection.into_parts();
                let (early, io) = parts.io.into_inner().into_inner().into_parts();
                debug_assert!(early.is_empty(), "hyper has read all that was replayed");
                // Nothing read is nothing kept: an empty part of hyper's buffer would hold on to all of it.
                let unread = if parts.read_buf.is_empty() { Bytes::new() } else { parts.read_buf };
                return Poll::Ready(Left::Quiet(Rewind::new(unread, io)));
            } else {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// The next bytes of a parked connection; none: its end.
async fn next_bytes<T: AsyncRead + Unpin>(io: &mut Rewind<T>) -> io::Result<Bytes> {
    poll_fn(|cx| {
        // On the stack: while there is nothing to read, nothing is kept.
        let mut space = [const { MaybeUninit::uninit() }; FIRST_READ];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut *io).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(Bytes::copy_from_slice(buffer.filled())))
    })
    .await
}

async fn expire(idle: Option<Duration>) {
    match idle {
        Some(idle) => sleep(idle).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;

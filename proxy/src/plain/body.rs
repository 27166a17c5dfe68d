//! Bodies on plaintext connections: the one that is sent, and the one that gives its connection back.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::{edge, http1, http2};

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body; a pooled connection serves bodies of all types. Without content it allocates nothing.
pub(super) struct SendBody {
    content: Option<Pin<Box<dyn Body<Data = Bytes, Error = BoxError>>>>,
    /// Held until the connection has all of it.
    unsent: Option<http1::Unsent>,
}

impl SendBody {
    pub(super) fn new<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + 'static,
        B::Error: Into<BoxError>,
    {
        if body.is_end_stream() {
            return Self::empty();
        }
        Self { content: Some(Box::pin(body.map_err(Into::into))), unsent: None }
    }

    pub(super) const fn empty() -> Self {
        Self { content: None, unsent: None }
    }

    /// The body goes on `connection`, which knows from here on whether it has ended.
    pub(super) fn on(mut self, connection: &http1::Connection) -> Self {
        self.unsent = self.content.is_some().then(|| connection.unsent());
        self
    }
}

impl Body for SendBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.content {
            Some(body) => body.as_mut().poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.content.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.content.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// The body of an answer, its trailers in the form that holds inside the sidecar. It holds its connection until its end,
/// and gives it back then; dropped before that, it closes an HTTP/1 connection and resets an HTTP/2 stream.
pub struct PlainBody {
    incoming: Incoming,
    lease: Option<Lease>,
}

/// What a body holds while it lasts.
pub(super) enum Lease {
    /// A whole connection.
    Http1(http1::Lease),
    /// One of a connection's streams.
    Http2(http2::StreamCount),
}

impl PlainBody {
    pub(super) fn new(incoming: Incoming, lease: Lease) -> Self {
        let mut body = Self { incoming, lease: Some(lease) };
        if body.incoming.is_end_stream() {
            body.release();
        }
        body
    }

    fn release(&mut self) {
        match self.lease.take() {
            Some(Lease::Http1(lease)) => lease.give_back(),
            Some(Lease::Http2(count)) => drop(count),
            None => {}
        }
    }
}

impl Body for PlainBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut polled = Pin::new(&mut self.incoming).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            edge::trailers(trailers);
        }
        match &polled {
            Poll::Ready(None) => self.release(),
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() || self.incoming.is_end_stream() => {
                self.release();
            }
            Poll::Ready(Some(Err(_))) => self.lease = None,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl fmt::Debug for PlainBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainBody").field("incoming", &self.incoming).finish_non_exhaustive()
    }
}

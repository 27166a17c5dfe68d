//! Bodies coming in: an `h2` stream as `http_body::Body`.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, Request, Response, header::CONTENT_LENGTH};
use http_body::{Body, Frame, SizeHint};

use super::{connection::Slot, pump::Pump};

/// A body that comes over the carrier. The peer's window opens as frames are taken, so who does not read holds a
/// stream's window and no more. A stream that was reset ends with an error, never like one that was complete.
pub struct CarrierBody {
    received: RecvStream,
    state: State,
    /// What Content-Length still promises; `h2` itself refuses a body of another length.
    left: Option<u64>,
    /// The request's place on its connection, at the calling side.
    slot: Option<Slot>,
    /// The request's body, where it still runs; without the response it is of no use.
    pump: Option<Pump>,
    latency: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Data,
    Trailers,
    Done,
}

impl CarrierBody {
    /// The body of a response. An answer to HEAD or a 304 names a length and has no body: its stream ends with the
    /// headers, and that goes before.
    pub(super) fn of_response(
        response: Response<RecvStream>,
        slot: Slot,
        pump: Option<Pump>,
    ) -> Response<Self> {
        let left = content_length(response.headers());
        response.map(|received| Self::new(received, left, Some(slot), pump))
    }

    fn new(received: RecvStream, left: Option<u64>, slot: Option<Slot>, pump: Option<Pump>) -> Self {
        let mut body = Self { received, state: State::Data, left, slot, pump, latency: Duration::ZERO };
        if body.received.is_end_stream() {
            body.end();
        }
        body
    }

    /// How long the response's headers took.
    pub(super) fn after(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// How long the response's headers took from the opening of the stream on; what the making of a connection took
    /// says nothing of the endpoint's load.
    #[must_use]
    pub fn latency(&self) -> Duration {
        self.latency
    }

    /// The body of an accepted request.
    #[must_use]
    pub fn of_request(request: Request<RecvStream>) -> Request<Self> {
        let left = content_length(request.headers());
        request.map(|received| Self::new(received, left, None, None))
    }

    fn end(&mut self) {
        self.state = State::Done;
        // While the request's own body runs the stream is not closed, and its place not free.
        if self.pump.as_ref().is_none_or(Pump::is_finished)
            && let Some(slot) = self.slot.take()
        {
            slot.end();
        }
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Body for CarrierBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = self.get_mut();
        while this.state == State::Data {
            match ready!(this.received.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only for more than was received.
                    let released = this.received.flow_control().release_capacity(data.len());
                    debug_assert!(released.is_ok());
                    this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                    if this.received.is_end_stream() {
                        this.end();
                    }
                    // A frame that only carries END_STREAM is no chunk.
                    if !data.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Some(Err(error)) => {
                    this.end();
                    return Poll::Ready(Some(Err(error)));
                }
                None => this.state = State::Trailers,
            }
        }
        if this.state == State::Trailers {
            let trailers = ready!(this.received.poll_trailers(cx));
            this.end();
            return Poll::Ready(match trailers {
                Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
                Err(error) => Some(Err(error)),
            });
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.state == State::Done
    }

    fn size_hint(&self) -> SizeHint {
        match (self.state, self.left) {
            (State::Done, _) => SizeHint::with_exact(0),
            (_, Some(left)) => SizeHint::with_exact(left),
            (_, None) => SizeHint::default(),
        }
    }
}

impl std::fmt::Debug for CarrierBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CarrierBody").field("left", &self.left).finish_non_exhaustive()
    }
}

//! Bodies on their way: the request's, which may be needed again, and the response's, which tells when it ends.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::{
    http::ClientBody,
    mirror::{Copy, Tee},
    record::Record,
};
use crate::{balance::LoadGuard, carrier::CarrierBody, plain::PlainBody, reason::Reason, retry::ReplayBody};

/// Any error of a body; hyper and the carrier turn it into a reset.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What is sent upstream.
#[derive(Debug)]
pub enum RequestBody {
    /// Nothing.
    Empty,
    /// Once, as it comes.
    Once(Tee),
    /// Again when a try fails, as long as it is small.
    Replay(ReplayBody<Tee>),
    /// A copy of what was sent elsewhere.
    Kept(VecDeque<Bytes>),
}

impl RequestBody {
    /// The client's body; `again` if the request may be tried again. The copies are sent when it has ended.
    #[must_use]
    pub fn new(incoming: ClientBody, again: bool, copies: Vec<Copy>) -> Self {
        if incoming.is_end_stream() {
            copies.into_iter().for_each(Copy::send);
            return Self::Empty;
        }
        let source = Tee::new(incoming, copies);
        if again { Self::Replay(ReplayBody::new(source)) } else { Self::Once(source) }
    }

    /// The same from its beginning; none when that is gone.
    #[must_use]
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Once(_) | Self::Kept(_) => None,
            Self::Replay(body) => body.again().map(Self::Replay),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Once(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Replay(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Kept(chunks) => Poll::Ready(chunks.pop_front().map(|data| Ok(Frame::data(data)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(body) => body.is_end_stream(),
            Self::Replay(body) => body.is_end_stream(),
            Self::Kept(chunks) => chunks.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Once(body) => body.size_hint(),
            Self::Replay(body) => body.size_hint(),
            Self::Kept(chunks) => SizeHint::with_exact(chunks.iter().map(|data| data.len() as u64).sum()),
        }
    }
}

/// Where a response's bytes come from.
#[derive(Debug)]
enum Source {
    Own(Option<Bytes>),
    Carrier(CarrierBody),
    Plain(PlainBody),
}

/// What the application gets.
#[derive(Debug)]
pub struct ResponseBody {
    source: Source,
    /// The request counts as in flight until the body has ended.
    load: Option<LoadGuard>,
    record: Option<Record>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl ResponseBody {
    /// None.
    #[must_use]
    pub const fn empty() -> Self {
        Self::of(Source::Own(None))
    }

    /// The sidecar's own words.
    #[must_use]
    pub const fn full(bytes: Bytes) -> Self {
        Self::of(Source::Own(Some(bytes)))
    }

    /// From another sidecar.
    #[must_use]
    pub const fn carrier(body: CarrierBody) -> Self {
        Self::of(Source::Carrier(body))
    }

    /// From an endpoint without a sidecar.
    #[must_use]
    pub const fn plain(body: PlainBody) -> Self {
        Self::of(Source::Plain(body))
    }

    const fn of(source: Source) -> Self {
        Self { source, load: None, record: None, deadline: None }
    }

    /// Keeps the endpoint's load counted until the end.
    #[must_use]
    pub fn with_load(mut self, load: LoadGuard) -> Self {
        self.load = Some(load);
        self
    }

    /// Records the request when the body ends.
    #[must_use]
    pub fn with_record(mut self, record: Record) -> Self {
        self.record = Some(record);
        self
    }

    /// Breaks the body off at that time.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
        self
    }

    fn failed(&mut self, reason: Reason) {
        self.load = None;
        if let Some(record) = &mut self.record {
            record.reason = Some(reason);
        }
        self.record = None;
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        // Asked first: who reads slowly finds something to read each time.
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            this.failed(Reason::RequestTimeout);
            return Poll::Ready(Some(Err("the request's time is over".into())));
        }
        let polled = match &mut this.source {
            Source::Own(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Source::Carrier(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Source::Plain(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        };
        match &polled {
            Poll::Ready(None) => {
                this.load = None;
                this.record = None;
            }
            Poll::Ready(Some(Err(_))) => this.failed(Reason::UpstreamReset),
            Poll::Pending => {}
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(record), Some(data)) = (&mut this.record, frame.data_ref()) {
                    record.bytes_out += data.len() as u64;
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(bytes) => bytes.is_none(),
            Source::Carrier(body) => body.is_end_stream(),
            Source::Plain(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Source::Carrier(body) => body.size_hint(),
            Source::Plain(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_requests_time_ends_also_for_who_always_finds_something_to_read() {
        let at = Instant::now() + std::time::Duration::from_secs(1);
        let body = || ResponseBody::full(Bytes::from_static(b"more")).with_deadline(Some(at));
        assert!(body().frame().await.unwrap().is_ok());
        let mut late = body();
        tokio::time::sleep_until(at).await;
        assert!(late.frame().await.unwrap().is_err());
    }
}

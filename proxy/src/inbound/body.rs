//! The body of an answer on its way out of the pod; it tells when it ends.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};

use super::record::Record;
use crate::{plain::PlainBody, reason::Reason};

/// What the caller gets: the application's words, or the sidecar's.
#[derive(Debug)]
pub(super) struct InboundBody {
    source: Source,
    /// Written when the body has ended, however it ends.
    record: Option<Record>,
}

/// What came of a request that was let in.
pub(super) enum Passed {
    /// The application's answer.
    Application(Response<PlainBody>),
    /// A head that the sidecar writes: of a switch of protocols, or to a request that must not be passed on.
    Head(Response<()>),
}

#[derive(Debug)]
enum Source {
    Own(Option<Bytes>),
    Application(PlainBody),
}

impl InboundBody {
    pub(super) fn application(answer: Response<PlainBody>, mut record: Record) -> Response<Self> {
        record.status = Some(answer.status());
        answer.map(|body| Self { source: Source::Application(body), record: Some(record) })
    }

    /// The answer to a request that was let in.
    pub(super) fn passed(passed: Passed, mut record: Record) -> Response<Self> {
        match passed {
            Passed::Application(answer) => Self::application(answer, record),
            Passed::Head(head) => {
                record.status = Some(head.status());
                Self::own(head.map(|()| Bytes::new()))
            }
        }
    }

    pub(super) fn own(answer: Response<Bytes>) -> Response<Self> {
        answer.map(|text| Self { source: Source::Own((!text.is_empty()).then_some(text)), record: None })
    }
}

impl Body for InboundBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let polled = match &mut this.source {
            Source::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Source::Application(body) => Pin::new(body).poll_frame(cx),
        };
        match (&polled, &mut this.record) {
            (Poll::Ready(None), record) => *record = None,
            (Poll::Ready(Some(Ok(frame))), Some(record)) => {
                record.bytes_out += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            (Poll::Ready(Some(Err(_))), Some(record)) => {
                record.reason = Some(Reason::UpstreamReset);
                this.record = None;
            }
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(text) => text.is_none(),
            Source::Application(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Source::Application(body) => body.size_hint(),
        }
    }
}

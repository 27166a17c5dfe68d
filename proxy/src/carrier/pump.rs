//! Bodies going out: `http_body::Body` into an `h2` stream, at the peer's pace; and a request's head as HTTP/2 wants it.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream, server::SendResponse};
use http::{Request, Response, Uri, Version, header::HOST, request, uri};
use http_body::{Body, Frame};
use tokio::task::spawn_local;

use super::{
    keeper::AbortOnDrop,
    settings::{BODY_FRAME, RECORD},
};

/// Chunks below this are merged with what follows at once …
const SMALL: usize = 4 * 1024;
/// … up to this, so that a body of many small writes is a few frames.
const MERGED: usize = BODY_FRAME;

/// Why a body did not go out whole.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The peer cancelled the stream, or the connection ended.
    #[error("the peer reset the stream: {0}")]
    Peer(Reason),
    /// The stream can take no more.
    #[error("the stream ended: {0}")]
    Stream(#[from] h2::Error),
    /// The body's source failed; the peer was told by a reset, so that it cannot take what it has for the whole.
    #[error("the body broke off: {0}")]
    Body(String),
}

/// A stream that is reset unless its end was sent: a pump that is dropped must not leave the peer waiting.
struct Unfinished {
    stream: SendStream<Bytes>,
    finished: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            self.stream.send_reset(Reason::CANCEL);
        }
    }
}

/// A request's body on its way.
pub(super) struct Pump {
    task: AbortOnDrop,
    broke_off: Rc<Cell<bool>>,
}

impl Pump {
    /// Runs until the body's end. Dropping the handle before resets the stream.
    pub(super) fn spawn<B>(body: B, stream: SendStream<Bytes>) -> Self
    where
        B: Body<Data = Bytes> + 'static,
        B::Error: std::fmt::Display,
    {
        let mut stream = Unfinished { stream, finished: false };
        let broke_off = Rc::new(Cell::new(false));
        let tell = Rc::clone(&broke_off);
        let task = spawn_local(async move {
            // A body that breaks off here is a client that went away.
            if let Err(error) = pump(pin!(body), &mut stream, Reason::CANCEL).await {
                tell.set(matches!(error, PumpError::Body(_)));
                tracing::debug!(%error, "a request body ended early");
            }
        });
        Self { task: AbortOnDrop(task.abort_handle()), broke_off }
    }

    /// Whether the body's source failed: the reset that follows is none of the peer's.
    pub(super) fn broke_off(&self) -> bool {
        self.broke_off.get()
    }

    pub(super) fn is_finished(&self) -> bool {
        self.task.0.is_finished()
    }
}

/// Sends a response and its body.
///
/// # Errors
/// When the peer cancelled, or the body broke off; the stream is reset then.
pub async fn respond<B>(mut to: SendResponse<Bytes>, response: Response<B>) -> Result<(), PumpError>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let (parts, body) = response.into_parts();
    let body = pin!(body);
    let no_body = body.is_end_stream();
    let stream = to.send_response(Response::from_parts(parts, ()), no_body)?;
    if no_body {
        return Ok(());
    }
    let mut stream = Unfinished { stream, finished: false };
    pump(body, &mut stream, Reason::INTERNAL_ERROR).await
}

/// Runs a future unless the caller cancels its request first. Until the response is sent nothing else notices that.
pub async fn unless_reset<F: Future>(
    respond: &mut SendResponse<Bytes>,
    mut future: Pin<&mut F>,
) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        // An error is the connection's end: the caller is as gone.
        Poll::Pending => respond.poll_reset(cx).map(|_| None),
    })
    .await
}

/// Pumps until the end, and resets with `broken` when the body fails.
async fn pump<B>(mut body: Pin<&mut B>, to: &mut Unfinished, broken: Reason) -> Result<(), PumpError>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let mut trailers = None;
    let outcome = loop {
        // The body is asked only when there is room: a peer that does not read is felt by who sends.
        room(&mut to.stream, 1).await?;
        let frame = poll_fn(|cx| match body.as_mut().poll_frame(cx) {
            Poll::Pending => to.stream.poll_reset(cx).map(|reset| Err(reset_of(reset))),
            ready => ready.map(Ok),
        })
        .await?;
        match frame.map(|frame| frame.map(Frame::into_data)) {
            None => break Ok(()),
            Some(Err(error)) => break Err(PumpError::Body(error.to_string())),
            Some(Ok(Err(frame))) => {
                trailers = frame.into_trailers().ok();
                break Ok(());
            }
            Some(Ok(Ok(data))) => {
                let merged = merge(body.as_mut(), data, &mut trailers);
                let whole = merged.ended || (merged.error.is_none() && body.is_end_stream());
                let last = whole && trailers.is_none();
                send(&mut to.stream, merged.data, last).await?;
                if last {
                    to.finished = true;
                    return Ok(());
                }
                if let Some(error) = merged.error {
                    break Err(PumpError::Body(error));
                }
                if trailers.is_some() {
                    break Ok(());
                }
            }
        }
    };
    if outcome.is_err() {
        to.stream.send_reset(broken);
    } else if let Some(trailers) = trailers {
        to.stream.send_trailers(trailers)?;
    } else {
        to.stream.send_data(Bytes::new(), true)?;
    }
    to.finished = true;
    outcome
}

struct Merged {
    data: Bytes,
    ended: bool,
    error: Option<String>,
}

/// Adds to a small chunk what the body has ready, without waiting.
fn merge<B>(mut body: Pin<&mut B>, first: Bytes, trailers: &mut Option<http::HeaderMap>) -> Merged
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    if first.len() >= SMALL || body.is_end_stream() {
        return Merged { data: first, ended: false, error: None };
    }
    let mut cx = Context::from_waker(Waker::noop());
    let mut merged = None::<BytesMut>;
    let (mut ended, mut error) = (false, None);
    while merged.as_ref().map_or(first.len(), BytesMut::len) < MERGED && !body.is_end_stream() {
        // The next real poll registers the task again, so nothing is lost by a waker that does nothing.
        match body.as_mut().poll_frame(&mut cx) {
            Poll::Pending => break,
            Poll::Ready(None) => {
                ended = true;
                break;
            }
            Poll::Ready(Some(Err(broke))) => {
                error = Some(broke.to_string());
                break;
            }
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    let merged = merged.get_or_insert_with(|| {
                        let mut all = BytesMut::with_capacity(MERGED.min(4 * (first.len() + data.len())));
                        all.extend_from_slice(&first);
                        all
                    });
                    merged.extend_from_slice(&data);
                }
                Err(frame) => {
                    *trailers = frame.into_trailers().ok();
                    break;
                }
            },
        }
    }
    Merged { data: merged.map_or(first, BytesMut::freeze), ended, error }
}

/// Sends a chunk in frames of [`BODY_FRAME`], the last of what is left, and of less where the peer's windows ask for it.
async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes, last: bool) -> Result<(), PumpError> {
    if data.is_empty() {
        // Not worth a frame: peers count empty ones.
        if last {
            stream.send_data(data, true)?;
        }
        return Ok(());
    }
    while !data.is_empty() {
        let room = room(stream, data.len()).await?;
        let mut part = data.split_to(room.min(data.len()));
        while !part.is_empty() {
            // The 16 KiB that many write at once are no more records as one frame, and two frames would be dearer.
            let size = if part.len() <= RECORD { part.len() } else { BODY_FRAME };
            let frame = part.split_to(size);
            stream.send_data(frame, last && part.is_empty() && data.is_empty())?;
        }
    }
    Ok(())
}

/// Waits until some of `wanted` bytes may be sent, and gives how many.
async fn room(stream: &mut SendStream<Bytes>, wanted: usize) -> Result<usize, PumpError> {
    stream.reserve_capacity(wanted);
    poll_fn(|cx| poll_room(stream, cx)).await
}

/// Room in the windows and in the send buffer.
pub(super) fn poll_room(
    stream: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, PumpError>> {
    // h2 reports only growth, so what is there already has to be asked for.
    loop {
        let room = stream.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room));
        }
        match stream.poll_capacity(cx) {
            Poll::Ready(Some(Ok(0))) => {}
            Poll::Ready(Some(Ok(room))) => return Poll::Ready(Ok(room)),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
            // The stream cannot send any more: what poll_reset says is why.
            Poll::Ready(None) => {
                return match stream.poll_reset(cx) {
                    Poll::Ready(reset) => Poll::Ready(Err(reset_of(reset))),
                    Poll::Pending => Poll::Ready(Err(PumpError::Peer(Reason::CANCEL))),
                };
            }
            Poll::Pending => return stream.poll_reset(cx).map(|reset| Err(reset_of(reset))),
        }
    }
}

fn reset_of(reset: Result<Reason, h2::Error>) -> PumpError {
    reset.map_or_else(PumpError::Stream, PumpError::Peer)
}

/// A request's head as HTTP/2 carries it: Host becomes `:authority` (RFC 9113, 8.3.1).
///
/// # Errors
/// When Host is no authority.
pub(super) fn head(mut parts: request::Parts) -> Result<Request<()>, &'static str> {
    if parts.uri.authority().is_none()
        && let Some(host) = parts.headers.remove(HOST)
    {
        let authority = uri::Authority::try_from(host.as_bytes()).map_err(|_| "Host is no authority")?;
        let mut uri = uri::Parts::default();
        uri.scheme = Some(uri::Scheme::HTTP);
        uri.authority = Some(authority);
        uri.path_and_query = parts.uri.into_parts().path_and_query;
        uri.path_and_query.get_or_insert(uri::PathAndQuery::from_static("/"));
        parts.uri = Uri::from_parts(uri).map_err(|_| "the target is no URI")?;
    } else {
        parts.headers.remove(HOST);
    }
    // h2 takes a target without authority (HTTP/1.0 without Host) for anything but HTTP/2.
    parts.version = if parts.uri.authority().is_some() { Version::HTTP_2 } else { Version::HTTP_11 };
    Ok(Request::from_parts(parts, ()))
}

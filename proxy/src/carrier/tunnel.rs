//! A stream that carries bytes: opaque TCP (CONNECT, RFC 9113, 8.5) or what follows an upgrade (RFC 8441).

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason as Code, RecvStream, SendStream, server::SendResponse};
use http::{Method, Request, Response, Uri, Version};

use super::{
    connection::Slot,
    peer::{Peer, SendError},
    pump::{PumpError, poll_room},
};
use crate::reason::{self, Reason};

/// What CONNECT names. The answering side dials its own pod's address and the server name's port, whatever stands here.
const AUTHORITY: &str = "tunnel.heddle";

/// Both directions of one stream. Dropped before both ended, it is reset.
pub struct Tunnel {
    pub(super) send: SendStream<Bytes>,
    pub(super) received: RecvStream,
    /// Whether END_STREAM or a reset was sent.
    finished: bool,
    slot: Option<Slot>,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("finished", &self.finished).finish_non_exhaustive()
    }
}

impl Tunnel {
    pub(super) fn new(send: SendStream<Bytes>, received: RecvStream, slot: Option<Slot>) -> Self {
        Self { send, received, finished: false, slot }
    }

    /// Answers an accepted CONNECT (`response`: a 200, or what [`upgrade::answer`](super::upgrade::answer) made).
    ///
    /// # Errors
    /// When the caller is gone.
    pub fn accept(
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        response: Response<()>,
    ) -> Result<Self, h2::Error> {
        let send = respond.send_response(response, false)?;
        Ok(Self::new(send, request.into_body(), None))
    }

    /// The next bytes; none after the peer's FIN. They count against the peer's window until [`Self::release`].
    pub(super) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        loop {
            match ready!(self.received.poll_data(cx)) {
                // An empty frame that carries END_STREAM.
                Some(Ok(data)) if data.is_empty() => {}
                other => return Poll::Ready(other),
            }
        }
    }

    /// Waits for the peer's next bytes and takes them; none: it ended. For whoever must know who speaks first before
    /// the copying begins.
    ///
    /// # Errors
    /// When the peer broke off.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, h2::Error> {
        let Some(data) = poll_fn(|cx| self.poll_receive(cx)).await.transpose()? else { return Ok(None) };
        self.release(data.len());
        Ok(Some(data))
    }

    /// The bytes have gone on.
    pub(super) fn release(&mut self, bytes: usize) {
        // Fails only for more than was received.
        let released = self.received.flow_control().release_capacity(bytes);
        debug_assert!(released.is_ok());
    }

    /// Room for sending; asks for `wanted` bytes.
    pub(super) fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<usize, PumpError>> {
        self.send.reserve_capacity(wanted);
        poll_room(&mut self.send, cx)
    }

    pub(super) fn send(&mut self, data: Bytes) -> Result<(), h2::Error> {
        self.send.send_data(data, false)
    }

    /// FIN.
    pub(super) fn finish(&mut self) -> Result<(), h2::Error> {
        self.finished = true;
        self.send.send_data(Bytes::new(), true)
    }

    /// RST.
    pub(super) fn reset(&mut self, code: Code) {
        self.finished = true;
        self.send.send_reset(code);
    }

    /// Whether the peer reset the stream, its connection's end included.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.send.poll_reset(cx).map(drop)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.finished {
            self.send.send_reset(Code::CANCEL);
        } else if let Some(slot) = self.slot.take()
            && self.received.is_end_stream()
        {
            slot.end();
        }
    }
}

/// The request that opens a tunnel.
pub(super) fn request() -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = Uri::from_static(AUTHORITY);
    *request.version_mut() = Version::HTTP_2;
    request
}

/// Reads the answer to CONNECT. It is the far sidecar's own: no application has a say in it.
pub(super) fn opened(
    peer: &Peer,
    response: Response<RecvStream>,
    send: SendStream<Bytes>,
    slot: Slot,
) -> Result<Tunnel, SendError> {
    if response.status().is_success() {
        return Ok(Tunnel::new(send, response.into_body(), Some(slot)));
    }
    let word = response.headers().get(reason::HEADER).and_then(|word| word.to_str().ok());
    let reason = word.and_then(|word| Reason::ALL.into_iter().find(|reason| reason.as_str() == word));
    let what = format!("the tunnel was refused with status {}", response.status());
    Err(SendError::of_answer(reason.unwrap_or(Reason::UpstreamReset), peer, what))
}

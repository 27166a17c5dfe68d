//! Copies of requests for another backend (HTTPRequestMirrorFilter). Their answers are thrown away, and whatever
//! goes wrong with them is nobody's failure.
//!
//! A copy is sent once the original's body has ended, since only then is all of it there to be copied; a body over
//! [`MAX_BYTES`] is not copied.

use std::{
    cell::Cell,
    collections::VecDeque,
    fmt,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Version, request};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;

use super::{body::RequestBody, http::ClientBody, send};
use crate::{balance, config::Backend, worker::Worker};

/// Bytes of a body that are copied.
const MAX_BYTES: usize = 64 * 1024;
/// Copies in flight on one worker; more are not made.
const MAX_IN_FLIGHT: usize = 256;
/// The longest that a copy may take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Copies in flight on a worker.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Rc<Cell<usize>>);

struct Counted(InFlight);

impl InFlight {
    fn count(&self) -> Option<Counted> {
        let now = self.0.get();
        (now < MAX_IN_FLIGHT).then(|| {
            self.0.set(now + 1);
            Counted(self.clone())
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

/// A copy that waits for the original's body.
pub struct Copy {
    worker: Rc<Worker>,
    backend: Arc<Backend>,
    parts: request::Parts,
    version: Version,
    kept: VecDeque<Bytes>,
    bytes: usize,
}

impl fmt::Debug for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copy").field("backend", &self.backend.key).finish_non_exhaustive()
    }
}

impl Copy {
    /// A copy of this request for that backend.
    #[must_use]
    pub fn new(
        worker: &Rc<Worker>,
        backend: &Arc<Backend>,
        parts: &request::Parts,
        version: Version,
    ) -> Self {
        Self {
            worker: Rc::clone(worker),
            backend: Arc::clone(backend),
            parts: parts.clone(),
            version,
            kept: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Sends it, once, without retries.
    pub fn send(self) {
        let Some(counted) = self.worker.mirrors.count() else { return };
        tokio::task::spawn_local(async move {
            if tokio::time::timeout(TIMEOUT, self.exchange()).await.is_err() {
                tracing::debug!("a mirrored request took too long");
            }
            drop(counted);
        });
    }

    async fn exchange(self) {
        let Self { worker, backend, parts, version, kept, .. } = self;
        let Some(mut picked) = balance::pick(&backend, &backend.state.endpoints.load(), &[]) else { return };
        // Counted as load until the end; how it goes is nobody's business.
        picked.load.without_judgement();
        let body = if kept.is_empty() { RequestBody::Empty } else { RequestBody::Kept(kept) };
        match send::send(&worker, &backend, &picked.endpoint, parts, body, version).await {
            Ok((response, _)) => {
                let mut body = response.into_body();
                while let Some(Ok(_)) = body.frame().await {}
            }
            Err(error) => {
                tracing::debug!(backend = %backend.key, error = %error.source, "a mirrored request failed");
            }
        }
        drop(picked.load);
    }
}

/// The client's body, copied while it is read.
#[derive(Debug)]
pub struct Tee {
    source: ClientBody,
    copies: Vec<Copy>,
}

impl Tee {
    /// Copies what is read into each; they are sent at the end of the body.
    #[must_use]
    pub const fn new(source: ClientBody, copies: Vec<Copy>) -> Self {
        Self { source, copies }
    }

    fn keep(&mut self, data: &Bytes) {
        self.copies.retain_mut(|copy| {
            copy.bytes += data.len();
            copy.kept.push_back(data.clone());
            copy.bytes <= MAX_BYTES
        });
    }

    fn ended(&mut self) {
        for copy in self.copies.drain(..) {
            copy.send();
        }
    }
}

impl Body for Tee {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.source).poll_frame(cx);
        if this.copies.is_empty() {
            return polled;
        }
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.keep(data);
                }
                // The reader may not ask again after the last frame.
                if frame.is_trailers() || this.source.is_end_stream() {
                    this.ended();
                }
            }
            Poll::Ready(None) => this.ended(),
            Poll::Ready(Some(Err(_))) => this.copies.clear(),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.source.size_hint()
    }
}

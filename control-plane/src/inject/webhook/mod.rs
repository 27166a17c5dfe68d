//! The mutating webhook: HTTPS, `AdmissionReview` v1 in and out. [`mod@review`] answers, [`tls`] has the certificate,
//! [`registration`] is what the API server is told of it, and keeps its `caBundle` right.
//!
//! Anyone who reaches the port may ask, since an API server shows no certificate unless its administrator configured
//! one. Asking changes nothing: the answer follows from the question. Limits: connections, of all and of one address,
//! and fewer of it while they are in the handshake; their life; the time and size of a request. An API server that is
//! not answered in time refuses pods, so what a stranger can take up must not be what it needs.

pub mod registration;
pub mod review;
pub mod tls;

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::ByteString;
use kube::core::{DynamicObject, admission::AdmissionReview};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::review::{Namespaces, review};
use super::{Asked, Settings};
use crate::{
    metrics::{Metrics, Refused},
    tls::{
        serving::ServingTls,
        share::{Share, Shares},
    },
};

/// Where pods of labelled namespaces are sent.
pub const NAMESPACE_PATH: &str = "/inject/namespace";
/// Where pods are sent that ask by annotation, in other namespaces.
pub const POD_PATH: &str = "/inject/pod";

/// Connections at once, some 240 MiB of them at worst: a head, a small question and TLS's buffers each. More wait.
const CONNECTIONS: usize = 2048;
/// Of these, those of one address. This speaks HTTP/1, so each pod that is being made has a connection of its own, and an
/// API server makes 200 changes at once unless it is told otherwise. Two of them may come from one address, where a
/// node or a tunnel translates theirs, and seldom more than a few pods are here at once. Four addresses fill it all.
const OF_ONE_ADDRESS: usize = 512;
/// Of these in turn, those in the handshake, which takes milliseconds: a burst of an API server's finds its places, and it
/// takes eight silent addresses to fill all.
const HANDSHAKES_OF_ONE_ADDRESS: usize = 256;
/// The longest head.
const HEAD: usize = 16 << 10;
/// Questions of up to this size, which pods' nearly always are, wait for nobody else's.
const SMALL: u64 = 64 << 10;
/// Longer ones whose body is held at once: 64 MiB of them at worst. More wait.
const BODIES: usize = 16;
/// The longest question. An object has 1.5 MiB in etcd, and a question holds it once.
const LONGEST: usize = 4 << 20;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A request's head, and then its body, must be there in this time each. The API server waits no longer.
const READ_TIMEOUT: Duration = Duration::from_secs(registration::TIMEOUT_SECONDS as u64);
/// A connection ends after this long, so that callers spread again over the replicas.
const LIFE: Duration = Duration::from_secs(300);
/// After the end of that, for what is being answered.
const GOODBYE: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What answering takes.
pub struct Webhook {
    settings: Settings,
    namespaces: Arc<dyn Namespaces>,
    tls: Arc<ServingTls>,
    metrics: Arc<Metrics>,
    connections: Arc<Semaphore>,
    of_addresses: Shares<IpAddr>,
    handshakes_of_addresses: Shares<IpAddr>,
    bodies: Semaphore,
    stop: CancellationToken,
}

impl Webhook {
    /// Puts it together.
    #[must_use]
    pub fn new(
        settings: Settings,
        namespaces: Arc<dyn Namespaces>,
        tls: Arc<ServingTls>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            settings,
            namespaces,
            tls,
            metrics,
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            of_addresses: Shares::new(OF_ONE_ADDRESS),
            handshakes_of_addresses: Shares::new(HANDSHAKES_OF_ONE_ADDRESS),
            bodies: Semaphore::new(BODIES),
            stop,
        })
    }

    /// Accepts until told to stop, then waits for what is being answered.
    pub async fn run(self: Arc<Self>, listener: TcpListener) {
        let tasks = TaskTracker::new();
        loop {
            let accepted = async {
                let permit = Arc::clone(&self.connections).acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                () = self.stop.cancelled() => break,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((io, address)) => {
                    let Some([place, handshake]) = self.admit(address) else { continue };
                    let webhook = Arc::clone(&self);
                    tasks.spawn(async move {
                        webhook.serve(io, handshake).await;
                        drop((permit, place));
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the webhook cannot accept a connection; trying again in {ACCEPT_PAUSE:?}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        tasks.close();
        tasks.wait().await;
    }

    /// The places of a new connection: its own, and that in the handshake.
    fn admit(&self, from: SocketAddr) -> Option<[Share<IpAddr>; 2]> {
        let address = from.ip().to_canonical();
        let place = self.of_addresses.take(&address);
        let places = place.and_then(|place| Ok([place, self.handshakes_of_addresses.take(&address)?]));
        places
            .inspect_err(|refusal| {
                self.metrics.refused(Refused::TooManyUnidentified);
                // As often as its sender likes, so not louder.
                tracing::debug!(address = %from, %refusal, "the webhook refused a connection");
            })
            .ok()
    }

    async fn serve(self: Arc<Self>, io: TcpStream, handshake: Share<IpAddr>) {
        let acceptor = TlsAcceptor::from(self.tls.current());
        let io = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(io)).await {
            Ok(Ok(io)) => io,
            Ok(Err(error)) => {
                // Here an API server says that it does not trust the certificate.
                tracing::debug!(%error, "a TLS handshake with the webhook failed");
                return;
            }
            Err(_) => return,
        };
        drop(handshake);
        let service = service_fn(|request| {
            let webhook = Arc::clone(&self);
            async move { Ok::<_, Infallible>(webhook.answer(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(READ_TIMEOUT)
            .max_buf_size(HEAD)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ended = &mut connection => return,
            () = tokio::time::sleep(LIFE) => {}
            () = self.stop.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        // Whatever ends it, the caller sees it.
        let _ended = tokio::time::timeout(GOODBYE, connection).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let asked = match request.uri().path() {
            NAMESPACE_PATH => Asked::ByNamespace,
            POD_PATH => Asked::ByAnnotation,
            _ => {
                return text(StatusCode::NOT_FOUND, "the injector is at /inject/namespace and /inject/pod\n");
            }
        };
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "POST an AdmissionReview\n");
        }
        // An API server says how long its question is.
        let is_small = request.body().size_hint().upper().is_some_and(|length| length <= SMALL);
        // It is never closed.
        let _permit = if is_small { None } else { self.bodies.acquire().await.ok() };
        let body =
            tokio::time::timeout(READ_TIMEOUT, Limited::new(request.into_body(), LONGEST).collect()).await;
        let (status, review) = match body {
            Ok(Ok(body)) => review(&body.to_bytes(), asked, &self.settings, &*self.namespaces),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                review::nonsense(StatusCode::PAYLOAD_TOO_LARGE, &format!("more than {LONGEST} bytes"))
            }
            Ok(Err(error)) => review::nonsense(StatusCode::BAD_REQUEST, &error.to_string()),
            Err(_) => {
                review::nonsense(StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time")
            }
        };
        match wire(review) {
            Ok(json) => respond(status, "application/json", json.into()),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }
}

/// An answer as Kubernetes spells it: the patch in base64. kube's own type writes a list of numbers.
fn wire(mut review: AdmissionReview<DynamicObject>) -> serde_json::Result<Vec<u8>> {
    let patch = review.response.as_mut().and_then(|response| response.patch.take());
    let mut value = serde_json::to_value(review)?;
    if let Some(patch) = patch {
        value["response"]["patch"] = serde_json::to_value(ByteString(patch))?;
    }
    serde_json::to_vec(&value)
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", text.to_owned().into())
}

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;

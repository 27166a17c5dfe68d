//! The plaintext HTTP client of a worker: towards the pod's own application, and towards endpoints without a
//! sidecar. It decides how connections are used and never where a request goes.
//!
//! Requests and answers have the form that [`edge`] describes. A request that hyper gives back, or that may be
//! repeated and died on a reused connection before an answer began, is sent once more on a fresh one.

mod body;
pub mod dial;
pub mod edge;
mod failure;
mod farewell;
pub mod head;
pub mod hops;
mod http1;
mod http2;
mod linger;
pub mod pace;
pub mod parking;
pub mod refusal;
pub mod settings;

pub use body::{BoxError, PlainBody};

use std::{cell::Cell, fmt, net::SocketAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, request};
use http_body::Body;
use hyper::{body::Incoming, upgrade::Upgraded};

use self::{
    body::{Lease, SendBody},
    linger::Lingering,
};
use crate::{
    carrier::{SendError, Sent},
    metrics::{Direction, WorkerMetrics},
    reason::Reason,
};

/// Connections age, so that a rollout behind a changing address is noticed: 30 min ± 20 %.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
/// How often idle connections are looked through, while there are any.
const PRUNE_EVERY: Duration = Duration::from_secs(1);

/// What an application is spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlainVersion {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// The answer to a request that asked for another protocol.
#[derive(Debug)]
pub enum Upgrade {
    /// 101: the connection speaks the protocol in `Upgrade` from here on, one of those that were offered.
    Switched(Response<()>, Upgraded),
    /// Anything else is an answer like any other.
    Declined(Response<PlainBody>),
}

/// A connection on which the application has answered, and may be asked again.
#[derive(Debug)]
pub struct Spare {
    /// The application's.
    pub address: SocketAddr,
    /// It; no byte waits in it.
    pub io: std::net::TcpStream,
}

/// A worker's plaintext connections.
pub struct PlainPool {
    header_limit: usize,
    http1: Rc<http1::Http1Pool>,
    last_host: edge::WrittenHost,
    http2: http2::Http2Pool,
    pruning: Cell<bool>,
}

impl PlainPool {
    /// An empty pool. Answers whose header names and values exceed `header_limit` bytes are refused.
    #[must_use]
    pub fn new(header_limit: usize) -> Rc<Self> {
        Rc::new(Self {
            header_limit,
            http1: Rc::default(),
            last_host: edge::WrittenHost::default(),
            http2: http2::Http2Pool::default(),
            pruning: Cell::new(false),
        })
    }

    /// Sends a request and waits for the head of its answer, for as long as it takes: the caller bounds it. gRPC
    /// goes over HTTP/2 whatever `version` says. Dropping the future cancels the request.
    ///
    /// # Errors
    /// When there is no connection, or no answer that may be passed on; [`SendError::sent`] says whether the
    /// application may have seen the request.
    pub fn send<B>(
        self: &Rc<Self>,
        address: SocketAddr,
        version: PlainVersion,
        request: Request<B>,
        connect_timeout: Duration,
    ) -> impl Future<Output = Result<Response<PlainBody>, SendError>>
    where
        B: Body<Data = Bytes> + 'static,
        B::Error: Into<BoxError>,
    {
        // Taken apart out here: the future would keep room for the whole and for its parts.
        let (parts, body) = request.into_parts();
        let body = SendBody::new(body);
        async move {
            self.keep_pruned();
            // Until the answer holds on to it: see `http1_in_use`.
            let _counted = Rc::clone(&self.http1);
            if version == PlainVersion::Http2 || edge::is_grpc(&parts.headers) {
                self.send_http2(address, parts, body, connect_timeout).await
            } else {
                self.send_http1(address, parts, body, connect_timeout).await
            }
        }
    }

    /// Takes a connection as if a request of its own had left it.
    pub async fn adopt(self: &Rc<Self>, spare: Spare) {
        let Spare { address, io } = spare;
        let opened = async { http1::open(address, dial::adopt(io, address)?).await };
        match opened.await {
            Ok(connection) => {
                self.keep_pruned();
                let pool = Rc::clone(&self.http1);
                http1::Lease { pool, address, connection, reusable: true }.give_back();
            }
            Err(error) => tracing::debug!(%address, error = error.source, "a connection could not be kept"),
        }
    }

    /// Sends a request that asks for another protocol, on a connection of its own.
    ///
    /// # Errors
    /// As [`PlainPool::send`].
    pub async fn upgrade(
        self: &Rc<Self>,
        address: SocketAddr,
        request: Request<()>,
        protocol: &HeaderValue,
        connect_timeout: Duration,
    ) -> Result<Upgrade, SendError> {
        self.keep_pruned();
        let (mut parts, ()) = request.into_parts();
        let method = parts.method.clone();
        edge::to_http1(&mut parts, false, Some(protocol), &self.last_host);
        let io = dial::connect(address, connect_timeout).await?;
        let mut connection = http1::open(address, io).await?;
        let request = Request::from_parts(parts, SendBody::empty());
        let answer = connection
            .sender
            .send_request(request)
            .await
            .map_err(|error| failure::of_exchange(address, &error))?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            // Whatever the server still expects on it, it is no request.
            return self.answer(address, connection, &method, answer, false).map(Upgrade::Declined);
        }
        let (mut head, body) = answer.into_parts();
        edge::switching(&mut head, self.header_limit, protocol)
            .map_err(|error| failure::of_answer(address, error))?;
        let mut whole = Response::from_parts(head, body);
        let upgraded =
            hyper::upgrade::on(&mut whole).await.map_err(|error| failure::of_exchange(address, &error))?;
        Ok(Upgrade::Switched(whole.map(drop), upgraded))
    }

    async fn send_http1(
        self: &Rc<Self>,
        address: SocketAddr,
        mut parts: request::Parts,
        mut body: SendBody,
        connect_timeout: Duration,
    ) -> Result<Response<PlainBody>, SendError> {
        let method = parts.method.clone();
        let is_empty = body.is_end_stream();
        edge::to_http1(&mut parts, !is_empty, None, &self.last_host);
        let repeatable = is_empty && method.is_idempotent();
        let mut perhaps_received = None;
        if let Some(mut connection) = self.http1.take(address, repeatable).await {
            let spare = repeatable.then(|| copy(&parts));
            let body_here = body.on(&connection);
            match connection.sender.try_send_request(Request::from_parts(parts, body_here)).await {
                Ok(answer) => return self.answer(address, connection, &method, answer, true),
                Err(mut error) => {
                    if let Some(unsent) = error.take_message() {
                        (parts, body) = unsent.into_parts();
                    } else if let Some(spare) = spare.filter(|_| failure::is_reset(error.error())) {
                        (parts, body) = (spare, SendBody::empty());
                        perhaps_received = Some(failure::of_exchange(address, error.error()));
                    } else {
                        return Err(failure::of_exchange(address, error.error()));
                    }
                }
            }
        }
        // On the heap: seldom, and no reason for every request's task to be larger.
        let fresh = Box::pin(async move {
            let io = dial::for_requests(address, connect_timeout).await?;
            let mut connection = http1::open(address, io).await?;
            let body = body.on(&connection);
            let answer = connection.sender.send_request(Request::from_parts(parts, body)).await;
            answer.map(|answer| (connection, answer)).map_err(|error| failure::of_exchange(address, &error))
        });
        let (connection, answer) = fresh.await.map_err(|error| match perhaps_received {
            Some(before) => failure::after(before, error),
            None => error,
        })?;
        self.answer(address, connection, &method, answer, true)
    }

    /// The answer with its body, which holds the connection; another request may follow on it only if it is `reusable`.
    fn answer(
        &self,
        address: SocketAddr,
        connection: http1::Connection,
        method: &Method,
        answer: Response<Incoming>,
        reusable: bool,
    ) -> Result<Response<PlainBody>, SendError> {
        let (mut head, incoming) = answer.into_parts();
        let both_lengths = edge::answer(&mut head, method, self.header_limit)
            .map_err(|error| failure::of_answer(address, error))?;
        let reusable = reusable && !both_lengths;
        let lease = http1::Lease { pool: Rc::clone(&self.http1), address, connection, reusable };
        Ok(Response::from_parts(head, PlainBody::new(incoming, Lease::Http1(lease))))
    }

    async fn send_http2(
        self: &Rc<Self>,
        address: SocketAddr,
        mut parts: request::Parts,
        body: SendBody,
        connect_timeout: Duration,
    ) -> Result<Response<PlainBody>, SendError> {
        let method = parts.method.clone();
        if parts.uri.authority().is_none() {
            edge::to_http2(&mut parts, &address.to_string());
        } else {
            edge::to_http2(&mut parts, "");
        }
        let mut request = Request::from_parts(parts, body);
        let mut again = true;
        let (answer, count) = loop {
            let (mut sender, count) = self.http2.take(address, connect_timeout).await?;
            let sending = async move { (sender.try_send_request(request).await, count) };
            match Lingering::new(sending).await {
                (Ok(answer), count) => break (answer, count),
                // The server said goodbye in the same moment.
                (Err(mut error), _) => match error.take_message() {
                    Some(unsent) if again => {
                        again = false;
                        request = unsent;
                    }
                    unsent => {
                        let mut failed = failure::of_exchange(address, error.error());
                        if unsent.is_some() {
                            failed.sent = Sent::No;
                        }
                        return Err(failed);
                    }
                },
            }
        };
        let (mut head, incoming) = answer.into_parts();
        edge::answer(&mut head, &method, self.header_limit)
            .map_err(|error| failure::of_answer(address, error))?;
        Ok(Response::from_parts(head, PlainBody::new(incoming, Lease::Http2(count))))
    }

    /// Whether a request is under way, whose connection may go idle: each holds on to the pool, and so does its answer.
    fn http1_in_use(&self) -> bool {
        Rc::strong_count(&self.http1) > 1
    }

    /// Idle connections are looked through as long as there are any, or may be.
    fn keep_pruned(self: &Rc<Self>) {
        if self.pruning.replace(true) {
            return;
        }
        let pool = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(PRUNE_EVERY).await;
                let Some(pool) = pool.upgrade() else { return };
                let (http1, http2) = (pool.http1.prune(), pool.http2.prune());
                if !http1 && !http2 && !pool.http1_in_use() {
                    pool.pruning.set(false);
                    return;
                }
            }
        });
    }
}

impl fmt::Debug for PlainPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainPool").field("header_limit", &self.header_limit).finish_non_exhaustive()
    }
}

/// Counts what hyper refused to read from a client like what Heddle refuses.
pub fn count_unreadable(metrics: &WorkerMetrics, direction: Direction, error: &hyper::Error) {
    if error.is_parse_too_large() {
        metrics.header_limit(direction);
        metrics.refused(direction, Reason::HeadersTooLarge);
    } else if error.is_parse() {
        metrics.refused(direction, Reason::BadRequest);
    }
}

/// A request's head once more. Its extensions belong to the connection it came from.
fn copy(parts: &request::Parts) -> request::Parts {
    let (mut copy, ()) = Request::new(()).into_parts();
    copy.method = parts.method.clone();
    copy.uri = parts.uri.clone();
    copy.version = parts.version;
    copy.headers = parts.headers.clone();
    copy
}

/// How long a new connection may live.
fn lifetime() -> Duration {
    LIFETIME.mul_f64(0.8 + 0.4 * fastrand::f64())
}

#[cfg(test)]
mod tests;

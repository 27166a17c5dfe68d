//! Bytes that are not looked into: a connection to an endpoint, tried elsewhere if it cannot be made.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use heddle_api::carrier::Form;
use smallvec::SmallVec;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{
    attempt::{failure_of, note_ejection},
    http::{self, Refused, Target},
    refuse, send,
};
use crate::{
    balance::{self, LoadGuard, Outcome, Picked},
    carrier::{self, SendError, Tunnel, copy::Socket},
    config::{Backend, Destination, Endpoint},
    detect::{Detector, Protocol, Rewind},
    metrics::{Direction, Flow},
    plain::dial,
    reason::Reason,
    relay::relay,
    retry,
    store::Slot,
    worker::Worker,
};

/// A way to the application: through its sidecar, or straight.
enum Upstream {
    Tunnel(Tunnel),
    Plain(TcpStream),
}

/// An upstream with what hangs on it.
struct Connected {
    upstream: Upstream,
    /// Counts the connection as load while it lasts.
    _load: LoadGuard,
    idle: Duration,
}

/// Serves a connection whose bytes are the client's and the server's alone.
pub async fn serve<T: Socket>(worker: &Rc<Worker>, io: Rewind<T>, destination: &Arc<Destination>) {
    match connect(worker, destination).await {
        Ok(connected) => connected.copy(worker, io).await,
        Err(refused) => refuse(worker, io.into_parts().1, refused.reason, &refused.sentence),
    }
}

/// The client is silent, so the server may be the one who speaks first: it is dialled, and whoever speaks decides.
pub async fn serve_silent<T: Socket + Send + 'static>(
    worker: Rc<Worker>,
    io: Rewind<T>,
    slot: Arc<Slot>,
    destination: &Arc<Destination>,
) {
    let mut connected = match connect(&worker, destination).await {
        Ok(connected) => connected,
        Err(refused) => return refuse(&worker, io.into_parts().1, refused.reason, &refused.sentence),
    };
    let mut detector = Detector::new(io.into_parts().1);
    let found = tokio::select! {
        greeting = connected.first() => Err(greeting),
        found = detector.protocol(None) => Ok(found),
    };
    let mut io = detector.replay();
    match found {
        Err(Some(greeting)) => match timeout(connected.idle, io.write_all(&greeting)).await {
            Ok(Ok(())) => connected.copy(&worker, io).await,
            _ => tracing::debug!("the client left as the server greeted it"),
        },
        // The server closed without a word; the client sees it close.
        Err(None) => drop(connected),
        Ok(Err(error)) => tracing::debug!(%error, "a silent connection ended"),
        Ok(Ok(Protocol::Http1)) => {
            drop(connected);
            http::serve_http1(worker, io, Target::Fixed(slot)).await;
        }
        Ok(Ok(Protocol::Http2)) => {
            drop(connected);
            http::serve_http2(worker, io, Target::Fixed(slot)).await;
        }
        Ok(Ok(_)) => connected.copy(&worker, io).await,
    }
}

impl Connected {
    /// The server's first bytes; none: it ended.
    async fn first(&mut self) -> Option<Bytes> {
        match &mut self.upstream {
            Upstream::Tunnel(tunnel) => tunnel.receive().await,
            Upstream::Plain(io) => {
                let mut buffer = bytes::BytesMut::with_capacity(4096);
                matches!(io.read_buf(&mut buffer).await, Ok(1..)).then(|| buffer.freeze())
            }
        }
    }

    async fn copy<T: Socket>(self, worker: &Worker, io: Rewind<T>) {
        let (early, io) = io.into_parts();
        let (up, down) = match self.upstream {
            Upstream::Tunnel(tunnel) => {
                let copied = carrier::both_ways(io, tunnel, early, self.idle).await;
                (copied.sent, copied.received)
            }
            Upstream::Plain(upstream) => {
                let relayed = relay(io, upstream, early, self.idle).await;
                (relayed.forth, relayed.back)
            }
        };
        worker.metrics.tcp_bytes(Direction::Outbound, Flow::ToServer, up);
        worker.metrics.tcp_bytes(Direction::Outbound, Flow::ToClient, down);
    }
}

/// Connects to one of the destination's endpoints; what cannot be connected to is left for another.
async fn connect(worker: &Rc<Worker>, destination: &Destination) -> Result<Connected, Refused> {
    let backend = backend(destination)?;
    let policy = &backend.policy.retry;
    let budget = &backend.state.budget;
    budget.deposit();
    let mut tried: SmallVec<[SocketAddr; 4]> = SmallVec::new();
    let mut attempt = 0;
    loop {
        let Some(Picked { endpoint, mut load }) =
            balance::pick(backend, &backend.state.endpoints.load(), &tried)
        else {
            return Err(Refused::new(Reason::NoEndpoints, format!("{} has no endpoints", backend.key)));
        };
        let started = Instant::now();
        match dial(worker, backend, &endpoint).await {
            Ok(upstream) => {
                let ejected = load.judge(backend, Outcome::Success, started.elapsed());
                note_ejection(worker, backend, &endpoint, ejected);
                return Ok(Connected { upstream, _load: load, idle: backend.policy.idle_timeout });
            }
            Err(error) => {
                let ejected = load.judge(backend, Outcome::Failure, started.elapsed());
                note_ejection(worker, backend, &endpoint, ejected);
                // Not a byte of the client's has gone out, so any connection may be tried again.
                let again = retry::may_retry(policy, &::http::Method::CONNECT, failure_of(&error), attempt);
                if !again || !budget.withdraw(policy) {
                    let sentence = format!("{} at {}: {}", backend.key, endpoint.address, error.source);
                    return Err(Refused::new(error.reason, sentence).after(attempt + 1));
                }
                tried.push(endpoint.address);
                tokio::time::sleep(retry::backoff(policy, attempt)).await;
                attempt += 1;
            }
        }
    }
}

fn backend(destination: &Destination) -> Result<&Arc<Backend>, Refused> {
    let none = |name: &str| Refused::new(Reason::NoBackend, format!("{name} does not exist"));
    match &destination.tcp {
        Some(split) => {
            let entry =
                split.pick().ok_or_else(|| none(&format!("a TCP backend of {}", destination.service)))?;
            entry.backend.as_ref().ok_or_else(|| none(&entry.name))
        }
        None => destination.default.as_ref().ok_or_else(|| none(&destination.service)),
    }
}

async fn dial(worker: &Rc<Worker>, backend: &Backend, endpoint: &Endpoint) -> Result<Upstream, SendError> {
    let limit = backend.policy.connect_timeout;
    match send::peer(worker, endpoint, Form::Tcp)? {
        Some(peer) => worker.carrier.tunnel(&peer, limit).await.map(Upstream::Tunnel),
        None => dial::connect(endpoint.address, limit).await.map(Upstream::Plain),
    }
}

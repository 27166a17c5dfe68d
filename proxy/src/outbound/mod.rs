//! From the pod's application into the mesh: who connects, where to, in what protocol.
//!
//! [`http`] serves requests, [`exchange`] takes one through the mesh, [`tcp`] carries bytes that are not looked into,
//! [`tunnel`] CONNECT and upgrades, [`websocket`] those that come over HTTP/2, [`passthrough`] whatever is not of the mesh.

mod answer;
mod attempt;
mod body;
mod exchange;
mod http;
mod mirror;
mod passthrough;
mod record;
pub mod resolve;
mod send;
mod series;
mod target;
mod tcp;
mod tries;
mod tunnel;
mod websocket;

pub use mirror::InFlight as Mirrors;
pub use send::peer;
pub use series::{SeriesCache, SeriesKey};

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use tokio::net::TcpStream;

use self::http::Target;
use crate::{
    capture,
    carrier::copy::Socket,
    config::{AppProtocol, Destination},
    detect::{Protocol, Rewind, detect},
    metrics::Direction,
    reason::Reason,
    store::{Lookup, Slot},
    threads::OpenConnection,
    worker::{Opened, Worker},
};

/// How long a pool that connects ahead may keep a connection for which it has no use yet.
const SILENCE: Duration = Duration::from_secs(3600);

/// Serves one connection to 15001.
pub async fn serve(worker: Rc<Worker>, io: TcpStream, peer: SocketAddr, open: OpenConnection) {
    if !capture::source_is_this_pod(peer.ip(), &worker.settings) {
        worker.metrics.refused(Direction::Outbound, Reason::ForeignSource);
        tracing::warn!(%peer, "refused on the outbound port: the source is not this pod");
        io.abort();
        return;
    }
    let opened = Opened::new(&worker, Direction::Outbound, false, open);
    match capture::original_destination(&io) {
        Some(original) if worker.settings.is_own_port(original) => {
            // Meant for this port, by whichever of the pod's addresses: nothing was lost by the redirect.
            if io.local_addr().is_ok_and(|local| local.port() == original.port()) {
                return explicit(worker, io, opened).await;
            }
            refuse(&worker, io, Reason::OwnPort, &original.to_string());
        }
        Some(original) => to_name(worker, io, &original.to_string(), opened).await,
        None => explicit(worker, io, opened).await,
    }
}

/// Serves one connection to a `--forward` listener, whose destination is a Service port.
pub async fn serve_forward(
    worker: Rc<Worker>,
    io: TcpStream,
    peer: SocketAddr,
    name: &str,
    open: OpenConnection,
) {
    if !capture::source_is_this_pod(peer.ip(), &worker.settings) {
        worker.metrics.refused(Direction::Outbound, Reason::ForeignSource);
        io.abort();
        return;
    }
    let opened = Opened::new(&worker, Direction::Outbound, false, open);
    to_name(worker, io, name, opened).await;
}

/// Explicit mode: only HTTP can say where it wants to go.
async fn explicit(worker: Rc<Worker>, io: TcpStream, opened: Rc<Opened>) {
    match first_bytes(&worker, io, None).await {
        Some((found @ (Protocol::Http1 | Protocol::Http2), io)) => {
            as_http(worker, io, found, Target::Authority, opened).await;
        }
        Some((protocol, io)) => {
            let what = format!("{protocol:?} bytes in explicit mode name no destination");
            refuse(&worker, io.into_parts().1, Reason::NoDestination, &what);
        }
        None => {}
    }
}

/// A connection whose destination is known: captured, forwarded or CONNECTed to.
async fn to_name<T: Socket + Send + 'static>(worker: Rc<Worker>, io: T, name: &str, opened: Rc<Opened>) {
    match http::lookup(&worker, name).await {
        Ok(slot) => to_slot(worker, io, slot, opened).await,
        Err(refused) => refuse(&worker, io, refused.reason, &refused.sentence),
    }
}

/// Serves a connection as the destination's port wants it.
async fn to_slot<T: Socket + Send + 'static>(worker: Rc<Worker>, io: T, slot: Arc<Slot>, opened: Rc<Opened>) {
    let Lookup::Mesh(destination) = slot.load() else {
        return Box::pin(passthrough::bytes(&worker, io, slot.name())).await;
    };
    let protocol = match destination.protocol {
        AppProtocol::Opaque => {
            let io = Rewind::new(bytes::Bytes::new(), io);
            return Box::pin(tcp::serve(&worker, io, &destination)).await;
        }
        // Declared: the bytes only tell the version, and are waited for.
        AppProtocol::Http | AppProtocol::Http1 | AppProtocol::Http2 => None,
        AppProtocol::Detect => Some(worker.settings.detect_timeout),
    };
    if let Some((found, io)) = first_bytes(&worker, io, protocol).await {
        as_detected(worker, io, found, slot, &destination, opened).await;
    }
}

/// What a connection speaks. None: it ended without a word or was silent for [`SILENCE`] where only the client can
/// begin, or the sidecar is leaving and has no reason to wait for its first.
async fn first_bytes<T: Socket>(
    worker: &Worker,
    io: T,
    silence: Option<Duration>,
) -> Option<(Protocol, Rewind<T>)> {
    let mut drain = worker.drain.clone();
    let found = tokio::select! {
        found = detect(io, Some(silence.unwrap_or(SILENCE))) => found,
        () = drain.leaving() => return None,
    };
    match found {
        Ok((Protocol::Silent | Protocol::Ended, _)) if silence.is_none() => None,
        Ok(found) => Some(found),
        Err(error) => {
            tracing::debug!(%error, "a connection ended before it said anything");
            None
        }
    }
}

async fn as_detected<T: Socket + Send + 'static>(
    worker: Rc<Worker>,
    io: Rewind<T>,
    found: Protocol,
    slot: Arc<Slot>,
    destination: &Arc<Destination>,
    opened: Rc<Opened>,
) {
    match found {
        Protocol::Http1 | Protocol::Http2 => as_http(worker, io, found, Target::Fixed(slot), opened).await,
        // hyper answers what is no HTTP as the RFCs ask.
        Protocol::Opaque | Protocol::Tls if destination.protocol != AppProtocol::Detect => {
            as_http(worker, io, found, Target::Fixed(slot), opened).await;
        }
        Protocol::Opaque | Protocol::Tls | Protocol::Ended => {
            Box::pin(tcp::serve(&worker, io, destination)).await;
        }
        Protocol::Silent => Box::pin(tcp::serve_silent(worker, io, slot, destination, opened)).await,
    }
}

async fn as_http<T: Socket + Send + 'static>(
    worker: Rc<Worker>,
    io: Rewind<T>,
    found: Protocol,
    target: Target,
    opened: Rc<Opened>,
) {
    io.limit_unread(Some(worker.settings.stall_timeout));
    if found == Protocol::Http2 {
        Box::pin(http::serve_http2(worker, io, target, opened)).await;
    } else {
        Box::pin(http::serve_http1(worker, io, target, opened)).await;
    }
}

/// Ends a connection that carries no HTTP: the peer sees a reset, people see the reason.
fn refuse<T: Socket>(worker: &Worker, io: T, reason: Reason, what: &str) {
    worker.metrics.refused(Direction::Outbound, reason);
    tracing::info!(%reason, "connection refused: {what}");
    io.abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the future that a function of four arguments returns.
    fn future<A, B, C, D, R>(_: impl Fn(A, B, C, D) -> R) -> usize {
        size_of::<R>()
    }

    #[test]
    fn an_idle_connection_costs_less_than_two_kib_of_futures() {
        assert!(future(serve) <= 1280, "{}", future(serve));
        assert!(future(http::serve_http1::<TcpStream>) <= 768, "{}", future(http::serve_http1::<TcpStream>));
    }
}

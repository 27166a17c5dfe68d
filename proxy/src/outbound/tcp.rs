//! Bytes that are not looked into: a connection to an endpoint, tried elsewhere if it cannot be made.

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use heddle_api::carrier::Form;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{
    as_http,
    http::{Refused, Target},
    refuse, send,
    tries::{self, Tries},
    tunnel::passed,
};
use crate::{
    balance::{LoadGuard, Outcome, Picked},
    carrier::{self, SendError, Tunnel, copy::Socket},
    config::{Backend, Destination, Endpoint},
    detect::{Detector, Protocol, Rewind},
    plain::dial,
    reason::Reason,
    relay::relay,
    store::Slot,
    worker::{Opened, Worker},
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

/// How a server begins.
enum First {
    Bytes(Bytes),
    End,
    BrokenOff,
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
    opened: Rc<Opened>,
) {
    let mut connected = match connect(&worker, destination).await {
        Ok(connected) => connected,
        Err(refused) => return refuse(&worker, io.into_parts().1, refused.reason, &refused.sentence),
    };
    let mut detector = Detector::new(io.into_parts().1);
    let idle = connected.idle;
    let found = tokio::select! {
        greeting = connected.first() => Err(greeting),
        found = detector.protocol(None) => Ok(found),
        () = sleep(idle) => Err(First::BrokenOff),
    };
    let mut io = detector.replay();
    match found {
        Err(First::Bytes(greeting)) => match timeout(idle, io.write_all(&greeting)).await {
            Ok(Ok(())) => connected.copy(&worker, io).await,
            _ => tracing::debug!("the client left as the server greeted it"),
        },
        // The server says nothing and may still listen.
        Err(First::End) => connected.copy(&worker, io).await,
        Err(First::BrokenOff) => io.into_parts().1.abort(),
        Ok(Err(error)) => tracing::debug!(%error, "a silent connection ended"),
        Ok(Ok(found @ (Protocol::Http1 | Protocol::Http2))) => {
            drop(connected);
            as_http(worker, io, found, Target::Fixed(slot), opened).await;
        }
        Ok(Ok(_)) => connected.copy(&worker, io).await,
    }
}

impl Connected {
    /// What comes from the server first.
    async fn first(&mut self) -> First {
        let read = match &mut self.upstream {
            Upstream::Tunnel(tunnel) => tunnel.receive().await.map_err(drop),
            Upstream::Plain(io) => {
                let mut buffer = bytes::BytesMut::with_capacity(4096);
                let read = io.read_buf(&mut buffer).await;
                read.map(|count| (count > 0).then(|| buffer.freeze())).map_err(drop)
            }
        };
        match read {
            Ok(Some(bytes)) => First::Bytes(bytes),
            Ok(None) => First::End,
            Err(()) => First::BrokenOff,
        }
    }

    async fn copy<T: Socket>(self, worker: &Worker, io: Rewind<T>) {
        let (early, io) = io.into_parts();
        match self.upstream {
            Upstream::Tunnel(tunnel) => {
                carrier::both_ways(io, tunnel, early, self.idle, passed(worker)).await;
            }
            Upstream::Plain(upstream) => {
                relay(io, upstream, early, self.idle, passed(worker)).await;
            }
        }
    }
}

/// Connects to one of the destination's endpoints; what cannot be connected to is left for another.
async fn connect(worker: &Rc<Worker>, destination: &Destination) -> Result<Connected, Refused> {
    let backend = backend(destination)?;
    let mut tries = Tries::begin(worker, backend, &backend.policy.retry, None);
    loop {
        let Picked { endpoint, mut load } = tries.pick()?;
        let started = Instant::now();
        let error = match dial(worker, backend, &endpoint).await {
            Ok(upstream) => {
                tries.judge(&endpoint, &mut load, Outcome::Success, started.elapsed());
                tries.ended(&::http::Method::CONNECT, None);
                return Ok(Connected { upstream, _load: load, idle: backend.policy.idle_timeout });
            }
            Err(error) => error,
        };
        tries.judge(&endpoint, &mut load, tries::outcome_after(&error), started.elapsed());
        drop(load);
        // Not a byte of the client's has gone out, so any connection may be tried again.
        let wanted = tries.ended(&::http::Method::CONNECT, Some(tries::failure_of(&error)));
        if !(wanted && tries.granted()) {
            return Err(tries.refused(&endpoint, &error).after(tries.count()));
        }
        tries.pause(Some(endpoint.address)).await;
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

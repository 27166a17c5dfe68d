//! HTTP/2 connections to applications without TLS (h2c, prior knowledge): shared by up to 100 streams each.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    time::Duration,
};

use hyper::client::conn::http2::{Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::{body::SendBody, dial, failure, lifetime, settings};
use crate::{
    batch::{Batched, Habits, TurnsExecutor},
    carrier::{SendError, Sent},
    meter::{Metered, Side},
    reason::Reason,
};

/// A connection without streams is closed after this long: shorter than nginx's 75 s.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Connections to one address; streams beyond what they hold wait in the one with the fewest.
const MAX_CONNECTIONS: usize = 64;
/// Streams on one connection.
const MAX_STREAMS: usize = settings::MAX_STREAMS as usize;

/// Connections by address, each with what is needed to open the next.
#[derive(Default)]
pub(super) struct Http2Pool {
    addresses: RefCell<HashMap<SocketAddr, Rc<Address>>>,
}

#[derive(Default)]
struct Address {
    connections: RefCell<Vec<Shared>>,
    /// Held while a connection is being opened, so that a burst of requests opens one and not one each.
    opening: Mutex<()>,
}

struct Shared {
    sender: SendRequest<SendBody>,
    load: Rc<Load>,
    expires: Instant,
}

struct Load {
    streams: Cell<usize>,
    /// What the server's SETTINGS allow; at most [`MAX_STREAMS`].
    most: Cell<usize>,
    idle_since: Cell<Instant>,
}

/// One stream of a connection, counted while it lives.
pub(super) struct StreamCount(Rc<Load>);

impl StreamCount {
    fn new(load: Rc<Load>) -> Self {
        load.streams.set(load.streams.get() + 1);
        Self(load)
    }
}

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.idle_since.set(Instant::now());
    }
}

/// A handle to send one request with, and its place on the connection.
pub(super) type Stream = (SendRequest<SendBody>, StreamCount);

impl Http2Pool {
    /// A place on an open connection, or on a new one.
    ///
    /// # Errors
    /// When none can be opened within `limit`; nothing was sent.
    pub(super) async fn take(&self, address: SocketAddr, limit: Duration) -> Result<Stream, SendError> {
        let entry = Rc::clone(self.addresses.borrow_mut().entry(address).or_default());
        match entry.free() {
            Some(stream) => Ok(stream),
            // On the heap: seldom, and three kilobytes that every request's task would hold, HTTP/1's too.
            None => Box::pin(entry.open(address, limit)).await,
        }
    }

    /// Closes what was idle for too long, is too old or was closed by the server. True: some are left.
    pub(super) fn prune(&self) -> bool {
        let mut addresses = self.addresses.borrow_mut();
        let now = Instant::now();
        addresses.retain(|_, entry| {
            entry.connections.borrow_mut().retain(|shared| {
                let idle = shared.load.streams.get() == 0;
                // hyper ends a connection whose handles are gone once its streams have ended.
                !shared.sender.is_closed()
                    && shared.expires > now
                    && (!idle || now - shared.load.idle_since.get() < IDLE_LIMIT)
            });
            // Whoever is opening one still holds the entry.
            !entry.connections.borrow().is_empty() || Rc::strong_count(entry) > 1
        });
        !addresses.is_empty()
    }

    #[cfg(test)]
    pub(super) fn connections(&self, address: SocketAddr) -> usize {
        self.addresses.borrow().get(&address).map_or(0, |entry| entry.connections.borrow().len())
    }
}

impl Address {
    /// A place on the first connection that has one; the fullest ones are filled first, so that those not needed
    /// any more become idle.
    fn free(&self) -> Option<Stream> {
        let mut connections = self.connections.borrow_mut();
        let now = Instant::now();
        connections.retain(|shared| !shared.sender.is_closed() && shared.expires > now);
        let full = connections.len() >= MAX_CONNECTIONS;
        let shared = connections.iter().find(|shared| shared.has_room()).or_else(|| {
            let least = connections.iter().min_by_key(|shared| shared.load.streams.get());
            least.filter(|_| full)
        })?;
        Some((shared.sender.clone(), StreamCount::new(Rc::clone(&shared.load))))
    }

    /// A place on a connection that this or a request before it opened.
    async fn open(&self, address: SocketAddr, limit: Duration) -> Result<Stream, SendError> {
        let deadline = Instant::now() + limit;
        let Ok(_opening) = timeout_at(deadline, self.opening.lock()).await else {
            return Err(late(address, limit));
        };
        if let Some(stream) = self.free() {
            return Ok(stream);
        }
        let io = dial::for_requests(address, deadline.saturating_duration_since(Instant::now())).await?;
        let (io, turns) = Batched::new(io, Habits::default());
        let io = TokioIo::new(Metered::new(io, Side::Client));
        // hyper polls the connection in a task that it spawns.
        let handshake = settings::http2_client(TurnsExecutor(turns)).handshake(io);
        let (sender, connection) = match timeout_at(deadline, handshake).await {
            Ok(Ok(pair)) => pair,
            Ok(Err(error)) => {
                let error = failure::of_exchange(address, &error);
                return Err(SendError { reason: Reason::ConnectFailed, sent: Sent::No, ..error });
            }
            Err(_) => return Err(late(address, limit)),
        };
        let load = Rc::new(Load {
            streams: Cell::new(0),
            most: Cell::new(MAX_STREAMS),
            idle_since: Cell::new(Instant::now()),
        });
        tokio::task::spawn_local(drive(address, connection, Rc::clone(&load)));
        let stream = (sender.clone(), StreamCount::new(Rc::clone(&load)));
        self.connections.borrow_mut().push(Shared { sender, load, expires: Instant::now() + lifetime() });
        Ok(stream)
    }
}

impl Shared {
    fn has_room(&self) -> bool {
        self.load.streams.get() < self.load.most.get()
    }
}

/// Runs a connection to its end, with an eye on how many streams the server allows.
async fn drive(
    address: SocketAddr,
    mut connection: Connection<TokioIo<Metered<Batched<TcpStream>>>, SendBody, TurnsExecutor<TcpStream>>,
    load: Rc<Load>,
) {
    let end = poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        load.most.set(connection.current_max_send_streams().clamp(1, MAX_STREAMS));
        polled
    });
    if let Err(error) = end.await {
        tracing::debug!(%address, %error, "HTTP/2 connection to the application ended");
    }
}

fn late(address: SocketAddr, limit: Duration) -> SendError {
    SendError {
        reason: Reason::ConnectTimeout,
        sent: Sent::No,
        source: format!("{address}: no HTTP/2 connection within {limit:?}"),
    }
}

//! HTTP/1.1 connections to applications: idle ones wait here, the one used last goes first.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{body::SendBody, failure, lifetime, settings};
use crate::carrier::SendError;

/// An idle connection is closed after this long: shorter than the idle time-outs of usual servers (5 s in Node.js
/// and Apache httpd), so that it is Heddle that gives up first.
const IDLE_LIMIT: Duration = Duration::from_secs(4);
/// Idle for longer than this, a connection carries only what may be repeated: some servers close after 2 s.
const IDLE_FOR_ANYTHING: Duration = Duration::from_secs(1);
/// Idle for longer than this, the network is asked once more whether the server has closed.
const IDLE_UNCHECKED: Duration = Duration::from_millis(10);
/// Idle connections to one address: above what is in use at once by far, for under load they go idle and are wanted again in
/// bursts of hundreds, and a new one costs more than a request.
const MAX_IDLE_PER_ADDRESS: usize = 1024;
/// Idle connections of a worker.
const MAX_IDLE: usize = 2048;
/// How long a connection whose answer has ended may still send its request before it is given up.
const REQUEST_TAIL: Duration = Duration::from_secs(1);

/// Idle connections by address.
#[derive(Default)]
pub(super) struct Http1Pool {
    idle: RefCell<HashMap<SocketAddr, VecDeque<Idle>, ahash::RandomState>>,
    /// Of all addresses; true again after each pruning, and never too small.
    total: Cell<usize>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// An open connection that nobody else uses.
pub(super) struct Connection {
    pub(super) sender: SendRequest<SendBody>,
    expires: Instant,
    /// The body that is being sent holds a clone.
    unsent: Unsent,
}

/// Lives as long as a request's body that its connection has not got to the end of.
#[derive(Clone, Default)]
pub(super) struct Unsent(Rc<()>);

/// A connection while its answer is read.
pub(super) struct Lease {
    pub(super) pool: Rc<Http1Pool>,
    pub(super) address: SocketAddr,
    pub(super) connection: Connection,
    /// Whether another request may follow this one.
    pub(super) reusable: bool,
}

impl Http1Pool {
    /// The connection used last; one idle for more than a second only if the request is `repeatable`.
    pub(super) async fn take(&self, address: SocketAddr, repeatable: bool) -> Option<Connection> {
        loop {
            let idle = self.pop(address, repeatable)?;
            if !repeatable && idle.since.elapsed() > IDLE_UNCHECKED {
                // Lets the runtime look at its sockets, and the connection's task at an end that has come.
                tokio::task::yield_now().await;
            }
            if idle.connection.sender.is_ready() {
                return Some(idle.connection);
            }
        }
    }

    fn pop(&self, address: SocketAddr, repeatable: bool) -> Option<Idle> {
        let mut all = self.idle.borrow_mut();
        let list = all.get_mut(&address)?;
        let now = Instant::now();
        while let Some(idle) = list.pop_back() {
            let age = now - idle.since;
            if age >= IDLE_LIMIT {
                // Those below were idle for longer still.
                list.clear();
            } else if age > IDLE_FOR_ANYTHING && !repeatable {
                list.push_back(idle);
                return None;
            } else if idle.connection.sender.is_ready() && idle.connection.expires > now {
                self.total.set(self.total.get().saturating_sub(1));
                return Some(idle);
            }
        }
        all.remove(&address);
        None
    }

    fn put(&self, address: SocketAddr, connection: Connection) {
        let mut all = self.idle.borrow_mut();
        if self.total.get() >= MAX_IDLE {
            return;
        }
        self.total.set(self.total.get() + 1);
        let list = all.entry(address).or_default();
        if list.len() >= MAX_IDLE_PER_ADDRESS {
            // The oldest is the one least likely to be wanted.
            list.pop_front();
        }
        list.push_back(Idle { connection, since: Instant::now() });
    }

    /// Closes what was idle for too long or was closed by the server. True: some are left.
    pub(super) fn prune(&self) -> bool {
        let mut all = self.idle.borrow_mut();
        let now = Instant::now();
        all.retain(|_, list| {
            list.retain(|idle| {
                now - idle.since < IDLE_LIMIT
                    && idle.connection.expires > now
                    && !idle.connection.sender.is_closed()
            });
            !list.is_empty()
        });
        self.total.set(all.values().map(VecDeque::len).sum());
        !all.is_empty()
    }

    #[cfg(test)]
    pub(super) fn idle(&self, address: SocketAddr) -> usize {
        self.idle.borrow().get(&address).map_or(0, VecDeque::len)
    }
}

impl Connection {
    /// What a body holds until hyper has taken all of it and drops it.
    pub(super) fn unsent(&self) -> Unsent {
        self.unsent.clone()
    }

    fn is_sending(&self) -> bool {
        Rc::strong_count(&self.unsent.0) > 1
    }
}

impl Lease {
    /// The answer has ended. A connection whose request has not is used no more: servers that answer without
    /// reading a body close it, often without having said so, and the next request would meet that end.
    pub(super) fn give_back(self) {
        let Self { pool, address, mut connection, reusable } = self;
        if !reusable || connection.sender.is_closed() {
            return;
        }
        if connection.sender.is_ready() {
            pool.put(address, connection);
            return;
        }
        // The rest of the request may still go, or hyper has yet to see the end of both.
        let answered_early = connection.is_sending();
        tokio::task::spawn_local(async move {
            if let Ok(Ok(())) = timeout(REQUEST_TAIL, connection.sender.ready()).await
                && !answered_early
            {
                pool.put(address, connection);
            }
        });
    }
}

/// Speaks HTTP/1 on a fresh connection. Its task ends when the connection does: dropping the [`Connection`]
/// closes it.
///
/// # Errors
/// Never for a connection that is open; hyper sends nothing yet.
pub(super) async fn open(address: SocketAddr, io: TcpStream) -> Result<Connection, SendError> {
    let (sender, connection) = settings::http1_client()
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| failure::of_exchange(address, &error))?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%address, %error, "connection to the application ended");
        }
    });
    Ok(Connection { sender, expires: Instant::now() + lifetime(), unsent: Unsent::default() })
}

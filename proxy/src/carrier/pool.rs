//! The calling side: connections by peer, many streams on each, one dial for all who wait.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    net::IpAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use h2::{SendStream, client::ResponseFuture};
use heddle_api::{carrier::ServerName, identity::SpiffeId, ports};
use http::{Request, Response, uri::Authority};
use http_body::Body;
use tokio::{
    sync::oneshot,
    task::spawn_local,
    time::{Instant, timeout},
};

use super::{
    ahead,
    body::CarrierBody,
    connection::{Connection, NotOpened, Slot},
    dial::dial,
    keeper::keep_client,
    peer::{Peer, SendError},
    pump::{self, Pump},
    settings::{AGE, AGE_JITTER, CONNECTIONS_PER_PEER, REST, STREAM_WAIT, STREAMS, WAITING_PER_PEER},
    tunnel::{self, Tunnel},
    upgrade::{self, Upgraded},
};
use crate::{
    identity::{Credentials, Identity},
    metrics::{Direction, WorkerMetrics},
    reason::Reason,
};

/// What a connection is for. Nothing else may share it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    ip: IpAddr,
    name: ServerName,
    identity: SpiffeId,
}

/// The connections of one worker, all dialled with the certificate that is current when they are.
pub struct Pool {
    credentials: Box<dyn Fn() -> Option<Arc<Credentials>>>,
    port: u16,
    metrics: Arc<WorkerMetrics>,
    peers: RefCell<HashMap<Key, Rc<PeerPool>, ahash::RandomState>>,
    /// Peers without connections are dropped when the map has grown to this.
    prune_at: Cell<usize>,
}

impl Pool {
    /// A pool that dials with this pod's identity. Its futures run in a `LocalSet` or local runtime.
    #[must_use]
    pub fn new(identity: Arc<Identity>, metrics: Arc<WorkerMetrics>) -> Rc<Self> {
        Self::to_port(ports::MESH, identity, metrics)
    }

    /// The same to sidecars that listen on another port.
    #[must_use]
    pub fn to_port(port: u16, identity: Arc<Identity>, metrics: Arc<WorkerMetrics>) -> Rc<Self> {
        Self::with(move || identity.current(), port, metrics)
    }

    pub(super) fn with(
        credentials: impl Fn() -> Option<Arc<Credentials>> + 'static,
        port: u16,
        metrics: Arc<WorkerMetrics>,
    ) -> Rc<Self> {
        Rc::new(Self {
            credentials: Box::new(credentials),
            port,
            metrics,
            peers: RefCell::default(),
            prune_at: Cell::new(64),
        })
    }

    /// Sends a request and gives the response once its headers are there. Dropping the future or the body before its
    /// end cancels the stream. The caller bounds the wait for the response.
    ///
    /// # Errors
    /// What [`SendError`] says; `connect_timeout` bounds the wait for a connection with a free stream, and
    /// [`STREAM_WAIT`] what follows it when the peer has all the connections that it may have.
    pub async fn send<B>(
        self: &Rc<Self>,
        peer: &Peer,
        request: Request<B>,
        connect_timeout: Duration,
    ) -> Result<Response<CarrierBody>, SendError>
    where
        B: Body<Data = Bytes> + 'static,
        B::Error: std::fmt::Display,
    {
        let (parts, body) = request.into_parts();
        let head = pump::head(parts).map_err(|what| SendError::unsent(Reason::BadRequest, peer, what))?;
        let no_body = body.is_end_stream();
        let (slot, response, stream) = self.open(peer, head, no_body, connect_timeout).await?;
        let opened = Instant::now();
        let pump = (!no_body).then(|| Pump::spawn(body, stream));
        let response = response.await.map_err(|error| match &pump {
            // It was reset by ourselves.
            Some(pump) if pump.broke_off() => {
                SendError::of_answer(Reason::BadRequest, peer, "the request's body broke off")
            }
            _ => SendError::of_stream(peer, &error),
        })?;
        Ok(CarrierBody::of_response(response, slot, pump).map(|body| body.after(opened.elapsed())))
    }

    /// Sees to it that there is a connection to the peer, ahead of the first request.
    ///
    /// # Errors
    /// What [`SendError`] says; `connect_timeout` bounds the wait.
    pub async fn connect_ahead(
        self: &Rc<Self>,
        peer: &Peer,
        connect_timeout: Duration,
    ) -> Result<(), SendError> {
        self.slot(peer, connect_timeout).await.map(Slot::end)
    }

    /// The same, and sends the peer's sidecar a request of our own there (see [`ahead`]), with the authority that the
    /// application's requests will likely have.
    ///
    /// # Errors
    /// What [`SendError`] says; `connect_timeout` bounds the wait for a connection, the caller that for the answer.
    pub async fn ask_ahead(
        self: &Rc<Self>,
        peer: &Peer,
        authority: Authority,
        connect_timeout: Duration,
    ) -> Result<(), SendError> {
        let (slot, response, _stream) =
            self.open(peer, ahead::request(authority), true, connect_timeout).await?;
        let response = response.await.map_err(|error| SendError::of_stream(peer, &error))?;
        // Whatever it says. One with a body is not of a sidecar, and is cancelled.
        if response.body().is_end_stream() {
            slot.end();
        }
        Ok(())
    }

    /// Opens a tunnel to the application's port that the peer's server name says.
    ///
    /// # Errors
    /// What [`SendError`] says; `connect_timeout` bounds the whole of it.
    pub async fn tunnel(
        self: &Rc<Self>,
        peer: &Peer,
        connect_timeout: Duration,
    ) -> Result<Tunnel, SendError> {
        let opening = async {
            let (slot, response, stream) = self.open(peer, tunnel::request(), false, connect_timeout).await?;
            let response = response.await.map_err(|error| SendError::of_stream(peer, &error))?;
            tunnel::opened(peer, response, stream, slot)
        };
        timeout(connect_timeout, opening).await.unwrap_or_else(|_| {
            // The far sidecar may hold a connection to its application, but no byte of the client's has left.
            Err(SendError::unsent(Reason::ConnectTimeout, peer, "no tunnel in time"))
        })
    }

    /// Carries an HTTP/1 upgrade. `protocol` is the value of the Upgrade header.
    ///
    /// # Errors
    /// What [`SendError`] says; `connect_timeout` bounds the wait for a connection, the caller that for the answer.
    pub async fn upgrade(
        self: &Rc<Self>,
        peer: &Peer,
        request: Request<()>,
        protocol: &str,
        connect_timeout: Duration,
    ) -> Result<Upgraded, SendError> {
        let (parts, ()) = request.into_parts();
        let head = upgrade::request(parts, protocol)
            .map_err(|what| SendError::unsent(Reason::BadRequest, peer, what))?;
        let (slot, response, stream) = self.open(peer, head, false, connect_timeout).await?;
        let response = response.await.map_err(|error| SendError::of_stream(peer, &error))?;
        upgrade::answered(peer, response, protocol, stream, slot)
    }

    /// Retires every connection at once, as age would; what comes after gets new ones.
    #[cfg(test)]
    pub(super) fn drain(&self) {
        let peers: Vec<_> = self.peers.borrow().values().cloned().collect();
        for peer in peers {
            peer.retire_all();
        }
    }

    async fn open(
        self: &Rc<Self>,
        peer: &Peer,
        mut head: Request<()>,
        end_of_stream: bool,
        connect_timeout: Duration,
    ) -> Result<(Slot, ResponseFuture, SendStream<Bytes>), SendError> {
        // Each round that fails has met a connection that was closing and left the pool; they are bounded by number.
        for _ in 0..=CONNECTIONS_PER_PEER {
            let slot = self.slot(peer, connect_timeout).await?;
            match slot.open(head, end_of_stream) {
                Ok((response, stream)) => return Ok((slot, response, stream)),
                Err(NotOpened::ConnectionGone(request)) => head = request,
                Err(NotOpened::Request(error)) => {
                    return Err(SendError::unsent(Reason::BadRequest, peer, error));
                }
            }
        }
        Err(SendError::unsent(Reason::ConnectFailed, peer, "every connection closed as it was used"))
    }

    async fn slot(self: &Rc<Self>, peer: &Peer, connect_timeout: Duration) -> Result<Slot, SendError> {
        let home = self.home(peer);
        if let Some(slot) = home.slot() {
            return Ok(slot);
        }
        if home.waiting.borrow().len() >= WAITING_PER_PEER {
            home.waiting.borrow_mut().retain(|waiting| !waiting.is_closed());
            if home.waiting.borrow().len() >= WAITING_PER_PEER {
                let what = format!("{WAITING_PER_PEER} requests wait for a stream already");
                return Err(SendError::unsent(Reason::ConnectFailed, peer, what));
            }
        }
        let (tell, told) = oneshot::channel();
        home.waiting.borrow_mut().push_back(tell);
        self.dial_for_the_waiting(&home, peer, connect_timeout);
        let mut told = pin!(home.told(told));
        let outcome = match timeout(connect_timeout, told.as_mut()).await {
            Ok(outcome) => Ok(outcome),
            // The peer is there and busy: that is for the caller's patience to bound, and no failure to connect.
            Err(_) if home.is_full() => timeout(STREAM_WAIT, told).await,
            Err(late) => Err(late),
        };
        match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(SendError::unsent(Reason::ConnectFailed, peer, "the pool is gone")),
            Err(_) => {
                let what = format!("no connection with a free stream within {connect_timeout:?}");
                Err(SendError::unsent(Reason::ConnectTimeout, peer, what))
            }
        }
    }

    fn home(&self, peer: &Peer) -> Rc<PeerPool> {
        let key = Key { ip: peer.address.ip(), name: peer.name, identity: peer.identity.clone() };
        let mut peers = self.peers.borrow_mut();
        if let Some(home) = peers.get(&key) {
            return Rc::clone(home);
        }
        if peers.len() >= self.prune_at.get() {
            peers.retain(|_, home| !home.is_vacant());
            self.prune_at.set((2 * peers.len()).max(64));
        }
        Rc::clone(peers.entry(key).or_default())
    }

    /// As many dials as those who wait need, shared by them all.
    fn dial_for_the_waiting(self: &Rc<Self>, home: &Rc<PeerPool>, peer: &Peer, connect_timeout: Duration) {
        let wanted = home.waiting.borrow().len().div_ceil(STREAMS);
        while home.dialling.get() < wanted
            && home.dialling.get() + home.connections.borrow().len() < CONNECTIONS_PER_PEER
        {
            home.dialling.set(home.dialling.get() + 1);
            let (pool, home, peer) = (Rc::clone(self), Rc::clone(home), peer.clone());
            // A task of its own: who began it may give up, the others still want it.
            spawn_local(async move {
                let made = match timeout(connect_timeout, pool.connect(&home, &peer)).await {
                    Ok(made) => made,
                    Err(_) => {
                        let what = format!("no connection within {connect_timeout:?}");
                        Err(SendError::unsent(Reason::ConnectTimeout, &peer, what))
                    }
                };
                home.dialling.set(home.dialling.get() - 1);
                match made {
                    Ok(connection) => {
                        home.connections.borrow_mut().push(Rc::clone(&connection));
                        home.offer(&connection);
                    }
                    // Who has waited as long as this dial gives up by itself; who came later gets a new one.
                    Err(error) if error.reason == Reason::ConnectTimeout => {
                        home.waiting.borrow_mut().retain(|waiting| !waiting.is_closed());
                        pool.dial_for_the_waiting(&home, &peer, connect_timeout);
                    }
                    Err(error) => home.fail(&error),
                }
            });
        }
    }

    async fn connect(&self, home: &Rc<PeerPool>, peer: &Peer) -> Result<Rc<Connection>, SendError> {
        let Some(credentials) = (self.credentials)() else {
            return Err(SendError::unsent(Reason::NotReady, peer, "no certificate yet"));
        };
        let (sender, mut driven) = dial(peer, self.port, &credentials, &self.metrics).await?;
        let ping = driven.get_mut().ping_pong().expect("the first to ask for a connection's PINGs");
        let connection = Connection::new(sender, Rc::downgrade(home));
        let retire = Retire(Rc::downgrade(&connection));
        let open = self.metrics.connection(Direction::Outbound, true);
        let driver = spawn_local(async move {
            // Dropped however the task ends.
            let (_retire, _open) = (retire, open);
            if let Err(error) = driven.await {
                tracing::debug!(%error, "a mesh connection ended");
            }
        });
        let jitter = fastrand::u64(100 - AGE_JITTER..=100 + AGE_JITTER);
        let retire_at = Instant::now() + AGE * jitter as u32 / 100;
        spawn_local(keep_client(Rc::downgrade(&connection), ping, driver.abort_handle(), retire_at));
        Ok(connection)
    }
}

/// Takes a connection that ended out of its pool.
struct Retire(std::rc::Weak<Connection>);

impl Drop for Retire {
    fn drop(&mut self) {
        if let Some(connection) = self.0.upgrade() {
            connection.retire();
        }
    }
}

/// The connections to one peer, and who waits for one.
#[derive(Default)]
pub(super) struct PeerPool {
    /// Those that take new streams, at most [`CONNECTIONS_PER_PEER`] with the dials. The first with room is used, so that
    /// what a burst opened goes idle after it.
    connections: RefCell<Vec<Rc<Connection>>>,
    waiting: RefCell<VecDeque<oneshot::Sender<Result<Slot, SendError>>>>,
    dialling: Cell<usize>,
}

impl PeerPool {
    /// Waits for a place; now and then looks for connections that have rested, since no stream's end tells of it.
    async fn told(
        &self,
        mut told: oneshot::Receiver<Result<Slot, SendError>>,
    ) -> Result<Result<Slot, SendError>, oneshot::error::RecvError> {
        loop {
            if let Ok(outcome) = timeout(REST, &mut told).await {
                return outcome;
            }
            let connections = self.connections.borrow().clone();
            connections.iter().for_each(|connection| self.offer(connection));
        }
    }

    /// Every connection that may be is there.
    fn is_full(&self) -> bool {
        self.connections.borrow().len() >= CONNECTIONS_PER_PEER
    }

    fn slot(&self) -> Option<Slot> {
        self.connections.borrow().iter().find_map(Connection::slot)
    }

    /// Gives the connection's free streams to those who wait.
    pub(super) fn offer(&self, connection: &Rc<Connection>) {
        while !self.waiting.borrow().is_empty() {
            if !connection.has_room() {
                return;
            }
            let next = self.waiting.borrow_mut().pop_front();
            if let Some(next) = next
                && !next.is_closed()
                && let Some(slot) = connection.slot()
            {
                let _gone = next.send(Ok(slot));
            }
        }
    }

    /// A dial failed: with nothing else to wait for, all who wait are told.
    fn fail(&self, error: &SendError) {
        if !self.connections.borrow().is_empty() {
            return;
        }
        let waiting = self.waiting.take();
        for waiting in waiting {
            let _gone = waiting.send(Err(error.clone()));
        }
    }

    pub(super) fn remove(&self, connection: &Connection) {
        let mut removed = None;
        let mut connections = self.connections.borrow_mut();
        if let Some(at) = connections.iter().position(|held| std::ptr::eq(&raw const **held, connection)) {
            removed = Some(connections.remove(at));
        }
        drop(connections);
        // Its end may run code of its own, so not while the list is borrowed.
        drop(removed);
    }

    #[cfg(test)]
    fn retire_all(&self) {
        let connections = self.connections.borrow().clone();
        for connection in connections {
            connection.retire();
        }
    }

    fn is_vacant(&self) -> bool {
        self.connections.borrow().is_empty() && self.dialling.get() == 0 && self.waiting.borrow().is_empty()
    }
}

//! One connection to a peer, as its caller holds it: counted streams on a shared `h2` handle.

use std::{
    cell::Cell,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::Request;
use tokio::time::Instant;

use super::{
    pool::PeerPool,
    settings::{CANCELS_BEFORE_REST, REST, STREAMS},
};

/// One connection. It lives as long as the pool or a stream holds it; the last to go makes `h2` send GOAWAY and close.
pub(super) struct Connection {
    sender: SendRequest<Bytes>,
    open: Cell<usize>,
    used: Cell<bool>,
    /// Takes no new streams any more.
    retired: Cell<bool>,
    /// Streams cancelled since [`Self::counted_since`].
    cancelled: Cell<u32>,
    counted_since: Cell<Instant>,
    home: Weak<PeerPool>,
}

/// Why a stream could not be opened.
pub(super) enum NotOpened {
    /// The connection is going or gone; the request is given back for another one.
    ConnectionGone(Request<()>),
    /// The request itself cannot be carried.
    Request(h2::Error),
}

impl Connection {
    pub(super) fn new(sender: SendRequest<Bytes>, home: Weak<PeerPool>) -> Rc<Self> {
        Rc::new(Self {
            sender,
            open: Cell::new(0),
            used: Cell::new(true),
            retired: Cell::new(false),
            cancelled: Cell::new(0),
            counted_since: Cell::new(Instant::now()),
            home,
        })
    }

    pub(super) fn has_room(&self) -> bool {
        !self.retired.get() && self.open.get() < STREAMS && !self.rests()
    }

    /// Whether so many streams were cancelled that the peer would soon take it for an attack, and end the connection
    /// for everybody on it. An application that opens and cancels as fast as it can thus waits for itself.
    fn rests(&self) -> bool {
        self.cancelled.get() >= CANCELS_BEFORE_REST && self.counted_since.get().elapsed() < REST
    }

    fn count_cancel(&self) {
        if self.counted_since.get().elapsed() >= REST {
            self.counted_since.set(Instant::now());
            self.cancelled.set(0);
        }
        self.cancelled.set(self.cancelled.get().saturating_add(1));
    }

    /// A place for one more stream, if there is one.
    pub(super) fn slot(self: &Rc<Self>) -> Option<Slot> {
        if !self.has_room() {
            return None;
        }
        self.open.set(self.open.get() + 1);
        self.used.set(true);
        Some(Slot { connection: Rc::clone(self), ended: false })
    }

    /// Whether it carried a stream since this was last asked.
    pub(super) fn was_used(&self) -> bool {
        self.used.take() || self.open.get() > 0
    }

    /// Takes no new streams; those that run go on.
    pub(super) fn retire(&self) {
        if !self.retired.replace(true)
            && let Some(home) = self.home.upgrade()
        {
            home.remove(self);
        }
    }
}

/// A place on a connection, given back when dropped. Held for as long as its stream is open.
pub(super) struct Slot {
    connection: Rc<Connection>,
    /// Its stream ended by itself.
    ended: bool,
}

impl Slot {
    /// Gives the place back; the stream was not cancelled.
    pub(super) fn end(mut self) {
        self.ended = true;
    }

    /// Opens the stream.
    pub(super) fn open(
        &self,
        request: Request<()>,
        end_of_stream: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), NotOpened> {
        // A handle of its own. One remembers the last stream that it opened, if that waits for the peer's limit (its count
        // may run behind ours), and asking whether it is ready would take that stream's waker away: its body would never go.
        // Streams of different handles queue behind each other.
        let mut sender = self.connection.sender.clone();
        match sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(_)) => {
                self.connection.retire();
                Err(NotOpened::ConnectionGone(request))
            }
            Poll::Ready(Ok(())) | Poll::Pending => {
                sender.send_request(request, end_of_stream).map_err(NotOpened::Request)
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connection.open.set(self.connection.open.get() - 1);
        if !self.ended {
            self.connection.count_cancel();
        }
        if let Some(home) = self.connection.home.upgrade() {
            home.offer(&self.connection);
        }
    }
}

//! What looks after a connection beside its traffic: PINGs, idleness, age. A task of its own that wakes a few times a
//! minute, so that nothing of it is polled on the request path.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    task::{Context, Waker},
};

use h2::{Ping, PingPong};
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    connection::Connection,
    settings::{CLIENT_IDLE, PING_EVERY, PING_TIMEOUT, SERVER_IDLE},
};

/// Ends the task when dropped.
#[derive(Debug)]
pub(super) struct AbortOnDrop(pub(super) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether the peer still answers.
async fn answers(ping: &mut PingPong) -> bool {
    matches!(timeout(PING_TIMEOUT, ping.ping(Ping::opaque())).await, Ok(Ok(_)))
}

/// Looks after a connection that this side opened: takes it out of the pool once it is old or idle (the last handle
/// that goes then sends GOAWAY and closes), and ends it when the peer does not answer. It asks for the first time at once,
/// so that the first request on a connection made ahead is not the first that either end reads and writes there.
pub(super) async fn keep_client(
    connection: Weak<Connection>,
    mut ping: PingPong,
    driver: AbortHandle,
    retire_at: Instant,
) {
    let mut idle_rounds = 0;
    while answers(&mut ping).await {
        sleep(PING_EVERY).await;
        let Some(connection) = connection.upgrade() else { return };
        idle_rounds = if connection.was_used() { 0 } else { idle_rounds + 1 };
        if PING_EVERY * idle_rounds >= CLIENT_IDLE || Instant::now() >= retire_at {
            connection.retire();
        }
    }
    driver.abort();
}

/// What the keeper of an accepted connection tells the task that serves it.
#[derive(Debug, Default)]
pub(super) struct Signal {
    waker: RefCell<Option<Waker>>,
    /// Handlers that run now.
    pub(super) handlers: Cell<usize>,
    /// A request came since the keeper last looked.
    pub(super) used: Cell<bool>,
    /// Send GOAWAY, and end when the last stream has.
    pub(super) drain: Cell<bool>,
    /// As [`Self::drain`], also where no request has come yet: none came for so long, or the sidecar leaves.
    pub(super) idle: Cell<bool>,
    /// The peer does not answer.
    pub(super) dead: Cell<bool>,
}

impl Signal {
    /// The serving task will be woken by the next word.
    pub(super) fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    fn raise(&self, flag: &Cell<bool>) {
        flag.set(true);
        let waker = self.waker.borrow().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Looks after an accepted connection.
pub(super) async fn keep_server(
    signal: Rc<Signal>,
    mut ping: PingPong,
    drain: impl Future<Output = ()>,
    leave: impl Future<Output = ()>,
) {
    let rounds = async {
        let mut idle_rounds = 0;
        loop {
            sleep(PING_EVERY).await;
            let busy = signal.used.take() || signal.handlers.get() > 0;
            idle_rounds = if busy { 0 } else { idle_rounds + 1 };
            if PING_EVERY * idle_rounds >= SERVER_IDLE {
                signal.raise(&signal.idle);
            }
            if !answers(&mut ping).await {
                signal.raise(&signal.dead);
                return;
            }
        }
    };
    let drained = async {
        drain.await;
        signal.raise(&signal.drain);
    };
    let left = async {
        leave.await;
        signal.raise(&signal.idle);
    };
    tokio::join!(rounds, drained, left);
}

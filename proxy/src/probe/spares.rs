//! Connections that probes leave to the requests that follow them.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use heddle_api::probe::{Action, HttpGet, Kind, Probe};
use tokio::{net::TcpStream, sync::mpsc};

use crate::plain::Spare;

/// Connections on their way to the worker.
const QUEUE: usize = 4;

/// Hands a worker the connection of each startup or readiness probe (HTTP, in plaintext) that succeeds for the first time, or
/// for the first time since it failed. The pod's first request then finds a connection to the application.
///
/// Not of every probe: a server that serves one connection at a time would be kept from others by each of them. And not one
/// that was made for this alone: such a server would wait for a request that may never come. Of what is kept here it is
/// known that the application answers on it, and it is closed as soon as any that a request has left.
#[derive(Debug)]
pub struct Spares {
    /// Probes whose last replay succeeded, by kind and port.
    up: Mutex<BTreeSet<(Kind, u16)>>,
    worker: mpsc::Sender<Spare>,
}

impl Spares {
    /// With the end at which the worker gets them.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Spare>) {
        let (worker, spares) = mpsc::channel(QUEUE);
        (Self { up: Mutex::default(), worker }, spares)
    }

    /// Whether the connection of this probe's next replay is to be kept.
    pub(super) fn wanted(&self, kind: Kind, probe: &Probe) -> bool {
        key(kind, probe)
            .is_some_and(|key| !self.up.lock().unwrap_or_else(PoisonError::into_inner).contains(&key))
    }

    /// A replay has ended, well or not, and this was kept of it.
    pub(super) fn replayed(&self, kind: Kind, probe: &Probe, well: bool, kept: Option<TcpStream>) {
        let Some(key) = key(kind, probe) else { return };
        let mut up = self.up.lock().unwrap_or_else(PoisonError::into_inner);
        if !well {
            up.remove(&key);
        } else if up.insert(key)
            && let Some(io) = kept
            && let Ok(address) = io.peer_addr()
            && let Ok(io) = io.into_std()
        {
            // Where there is no room it is closed.
            let _closed = self.worker.try_send(Spare { address, io });
        }
    }
}

/// Of the probes whose success brings a pod requests.
fn key(kind: Kind, probe: &Probe) -> Option<(Kind, u16)> {
    match (kind, &probe.action) {
        (Kind::Startup | Kind::Readiness, Action::HttpGet(HttpGet { port, https: false, .. })) => {
            Some((kind, *port))
        }
        _ => None,
    }
}

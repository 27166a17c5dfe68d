//! Connections that probes leave to the requests that follow them.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ::http::StatusCode;
use heddle_api::probe::{Action, HttpGet, Kind, Probe};
use tokio::{net::TcpStream, sync::mpsc};

use super::{Failure, http::Answer};
use crate::plain::Spare;

/// Connections on their way to the worker.
const QUEUE: usize = 4;

/// Hands a worker the connection of each startup or readiness probe (HTTP, in plaintext) that succeeds for the first time, or
/// for the first time since it failed. The pod's first request then finds a connection to the application.
///
/// An application that took too long is not asked so again: perhaps it ends an answer only by closing, and only if told to.
///
/// Not of every probe: a server that serves one connection at a time would be kept from others by each of them. And not one
/// that was made for this alone: such a server would wait for a request that may never come. Of what is kept here it is
/// known that the application answers on it, and it is closed as soon as any that a request has left.
#[derive(Debug)]
pub struct Spares {
    /// Probes whose next connection is not wanted, by kind and port: the last replay succeeded, or took too long.
    unwanted: Mutex<BTreeSet<(Kind, u16)>>,
    worker: mpsc::Sender<Spare>,
}

impl Spares {
    /// With the end at which the worker gets them.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Spare>) {
        let (worker, spares) = mpsc::channel(QUEUE);
        (Self { unwanted: Mutex::default(), worker }, spares)
    }

    /// Whether the connection of this probe's next replay is to be kept.
    pub(super) fn wanted(&self, kind: Kind, probe: &Probe) -> bool {
        key(kind, probe).is_some_and(|key| !self.unwanted().contains(&key))
    }

    /// A replay has ended so, and this was kept of it.
    pub(super) fn replayed(
        &self,
        kind: Kind,
        probe: &Probe,
        ended: Result<&Answer, &Failure>,
        kept: Option<TcpStream>,
    ) {
        let Some(key) = key(kind, probe) else { return };
        let failed = match ended {
            Ok(answer) => !answer.status.is_success(),
            Err(failure) => failure.status != StatusCode::GATEWAY_TIMEOUT,
        };
        let mut unwanted = self.unwanted();
        if failed {
            unwanted.remove(&key);
        } else if unwanted.insert(key)
            && let Some(io) = kept
            && let Ok(address) = io.peer_addr()
            && let Ok(io) = io.into_std()
        {
            // Where there is no room it is closed.
            let _closed = self.worker.try_send(Spare { address, io });
        }
    }

    fn unwanted(&self) -> MutexGuard<'_, BTreeSet<(Kind, u16)>> {
        self.unwanted.lock().unwrap_or_else(PoisonError::into_inner)
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

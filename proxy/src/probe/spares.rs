//! Connections that probes leave to the requests that follow them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ::http::StatusCode;
use heddle_api::probe::{Action, HttpGet, Kind, Probe};
use tokio::{net::TcpStream, sync::mpsc};

use super::{Failure, http::Answer};
use crate::plain::Spare;

/// Connections on their way to the worker.
const QUEUE: usize = 4;

/// Hands a worker the connection of each readiness probe (HTTP, in plaintext) that succeeds for the first time, or for the first
/// time since it failed. The pod's first request then finds a connection to the application.
///
/// Not of every probe: a server that serves one connection at a time would be kept from others by each of them. And not one
/// that was made for this alone: such a server would wait for a request that may never come. Of what is kept here it is
/// known that the application answers on it, and it is closed as soon as any that a request has left.
#[derive(Debug)]
pub struct Spares {
    /// By the probe's port.
    last: Mutex<BTreeMap<u16, Last>>,
    worker: mpsc::Sender<Spare>,
}

/// How a replay ended after which no connection is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    Succeeded,
    /// Took too long when it was not asked to close: perhaps the application ends an answer only by closing, and only if told
    /// to. It is not asked so again.
    Hung,
}

impl Spares {
    /// With the end at which the worker gets them.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Spare>) {
        let (worker, spares) = mpsc::channel(QUEUE);
        (Self { last: Mutex::default(), worker }, spares)
    }

    /// Whether the connection of this probe's next replay is to be kept.
    pub(super) fn wanted(&self, kind: Kind, probe: &Probe) -> bool {
        port(kind, probe).is_some_and(|port| !self.last().contains_key(&port))
    }

    /// A replay has ended so. `asked`: its connection was wanted; `kept`: and here it is.
    pub(super) fn replayed(
        &self,
        kind: Kind,
        probe: &Probe,
        ended: Result<&Answer, &Failure>,
        asked: bool,
        kept: Option<TcpStream>,
    ) {
        let Some(port) = port(kind, probe) else { return };
        let mut last = self.last();
        if last.get(&port) == Some(&Last::Hung) {
            return;
        }
        match ended {
            Ok(answer) if answer.status.is_success() => {
                if last.insert(port, Last::Succeeded).is_none()
                    && let Some(io) = kept
                    && let Ok(address) = io.peer_addr()
                    && let Ok(io) = io.into_std()
                {
                    // Where there is no room it is closed.
                    let _closed = self.worker.try_send(Spare { address, io });
                }
            }
            Err(failure) if asked && failure.status == StatusCode::GATEWAY_TIMEOUT => {
                last.insert(port, Last::Hung);
            }
            _ => drop(last.remove(&port)),
        }
    }

    fn last(&self) -> MutexGuard<'_, BTreeMap<u16, Last>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of the probes whose success brings a pod requests. A startup probe's success brings it other probes first, which one more
/// connection might keep waiting.
fn port(kind: Kind, probe: &Probe) -> Option<u16> {
    match (kind, &probe.action) {
        (Kind::Readiness, Action::HttpGet(HttpGet { port, https: false, .. })) => Some(*port),
        _ => None,
    }
}

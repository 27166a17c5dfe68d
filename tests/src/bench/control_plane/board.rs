//! Who has seen which change: the sidecars report to it, the measuring waits on it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::sync::oneshot;

/// A change that has not arrived everywhere by then is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// The changes that are under way.
#[derive(Debug, Default)]
pub(super) struct Board {
    awaited: Mutex<HashMap<(usize, String), Awaited>>,
}

#[derive(Debug)]
struct Awaited {
    missing: usize,
    last: Instant,
    done: Option<oneshot::Sender<Instant>>,
}

impl Board {
    /// The moment at which the last of `interested` sidecars has read the state `mark` of a Service.
    pub(super) fn expect(
        &self,
        service: usize,
        mark: &str,
        interested: usize,
    ) -> impl Future<Output = anyhow::Result<Instant>> + use<> {
        let (tx, rx) = oneshot::channel();
        let key = (service, mark.to_owned());
        let awaited = Awaited { missing: interested, last: Instant::now(), done: Some(tx) };
        self.lock().insert(key, awaited);
        let mark = mark.to_owned();
        async move {
            let last = tokio::time::timeout(PATIENCE, rx).await;
            last.with_context(|| {
                format!("{mark} of Service {service} did not reach all within {PATIENCE:?}")
            })?
            .context("the board is gone")
        }
    }

    /// A sidecar has read the state `mark` of a Service at `when`.
    pub(super) fn seen(&self, service: usize, mark: &str, when: Instant) {
        let mut all = self.lock();
        let key = (service, mark.to_owned());
        let Some(awaited) = all.get_mut(&key) else { return };
        awaited.last = awaited.last.max(when);
        awaited.missing = awaited.missing.saturating_sub(1);
        if awaited.missing == 0
            && let Some(done) = awaited.done.take()
        {
            // Whoever waited has given up.
            let _sent = done.send(awaited.last);
            all.remove(&key);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(usize, String), Awaited>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_has_arrived_when_the_last_one_has_seen_it() {
        let board = Board::default();
        let arrival = board.expect(3, "g1", 2);
        let first = Instant::now();
        let later = first + Duration::from_millis(7);
        board.seen(3, "g1", later);
        board.seen(4, "g1", first);
        board.seen(3, "g0", first);
        let mut arrival = std::pin::pin!(arrival);
        assert!(tokio::time::timeout(Duration::ZERO, arrival.as_mut()).await.is_err());
        board.seen(3, "g1", first);
        assert_eq!(arrival.await.unwrap(), later);
    }
}

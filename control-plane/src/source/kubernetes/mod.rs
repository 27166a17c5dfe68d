//! The Kubernetes source: every kind watched, and what the watches tell merged into batches.
//!
//! The API server's word is never believed to be complete before a list is: a list that follows an outage removes
//! what is not in it any more, and until it comes everything known stays. What comes twice changes nothing.

pub mod ledger;
mod merge;
mod read;
#[cfg(test)]
mod tests;
mod watch;

use std::{sync::Arc, time::Duration};

use kube::Client;
use tokio::{
    sync::mpsc::{self, Sender},
    task::JoinSet,
};

use self::{ledger::Ledger, merge::Merge};
use super::Batch;
use crate::{diagnostics::Log, object::Kind};

/// Notices that the watches may be ahead.
const NOTICES: usize = 1024;
/// Changes of one moment are compiled together: a rollout touches a Pod and its EndpointSlice at once.
const TOGETHER: Duration = Duration::from_millis(5);
/// Notices in a batch at most, lists apart.
const BATCH: usize = 4096;

/// Follows a cluster and sends everything it holds, then what changes, until the receiver is gone.
///
/// # Errors
/// None: an API server that cannot be reached is waited for.
pub async fn run(client: Client, ledger: Arc<Ledger>, tx: Sender<Batch>) -> anyhow::Result<()> {
    let (notices, mut noticed) = mpsc::channel(NOTICES);
    let mut watches = JoinSet::new();
    for kind in Kind::ALL {
        watches.spawn(watch::watch(client.clone(), kind, notices.clone()));
    }
    drop(notices);
    let mut merge = Merge::new(ledger);
    let mut log = Log::default();
    loop {
        let first = tokio::select! {
            notice = noticed.recv() => notice,
            () = tx.closed() => return Ok(()),
        };
        let Some(first) = first else { anyhow::bail!("the watches ended") };
        merge.take(first);
        tokio::time::sleep(TOGETHER).await;
        for _ in 0..BATCH {
            let Ok(notice) = noticed.try_recv() else { break };
            merge.take(notice);
        }
        let Some(batch) = merge.batch() else { continue };
        if let Some(problems) = &batch.problems {
            log.report(problems);
        }
        if tx.send(batch).await.is_err() {
            return Ok(());
        }
    }
}

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

use kube::{Api, Client, api::ListParams, core::DynamicObject};
use tokio::{
    sync::mpsc::{self, Sender},
    task::JoinSet,
};

use self::{ledger::Ledger, merge::Merge};
use super::Batch;
use crate::{
    diagnostics::{Diagnostic, Log},
    object::{Kind, Object},
};

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

/// All objects of a kind as the API server has them now, in the newest version that we read; `None` where it has no such
/// kind.
///
/// # Errors
/// When the API server does not say.
pub async fn list(client: &Client, kind: Kind) -> Result<Option<Vec<DynamicObject>>, kube::Error> {
    let Some(resource) = watch::served(client, kind).await? else { return Ok(None) };
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let mut all = Vec::new();
    let mut params = ListParams::default().limit(watch::PAGE);
    loop {
        let page = api.list(&params).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(Some(all)),
        }
    }
}

/// An object as the mesh takes it, or what is wrong with it.
///
/// # Errors
/// What is wrong. What is used instead is not told here.
pub fn object(kind: Kind, object: DynamicObject) -> Result<Object, Diagnostic> {
    let read::Item { reference, outcome, .. } = read::read(kind, object);
    outcome.map_err(|(error, _)| error.of(&reference, None))
}

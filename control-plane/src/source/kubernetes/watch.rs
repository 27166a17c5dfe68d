//! One kind's watch: listed, followed, and listed again when the API server cannot go on from where we were.
//!
//! `kube`'s watcher does the protocol: pages, bookmarks, resuming after a broken connection, and a new list after
//! 410 Gone. Here it is decided which version of a kind is served, and what a kind that is not served means. An API server
//! that starts says 404 of what it will have in a moment, and policies that vanish open what they guarded: so a kind is
//! believed to be missing only when discovery and a list both say so, twice.

use std::{pin::pin, time::Duration};

use kube::{
    Api, Client,
    api::ListParams,
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use tokio::{
    sync::mpsc::Sender,
    time::{Instant, MissedTickBehavior},
};
use tokio_stream::StreamExt as _;

use super::read::{Item, read};
use crate::object::Kind;

/// How often it is looked whether a missing kind has come.
const LOOK: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// How often it is looked whether a followed kind is still there.
const CHECK: Duration = Duration::from_secs(20);
/// After a question that got no answer, and before a watch that could not go on is begun anew.
const RETRY: Duration = Duration::from_secs(1);
/// From the first word that there is no such kind until it is asked again, and then believed.
const DOUBT: Duration = Duration::from_secs(3);
/// Objects in one page of a list.
pub(super) const PAGE: u32 = 500;

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Notice {
    /// These are all.
    All(Kind, Vec<Item>),
    /// One is new or another.
    Set(Box<Item>),
    /// One is gone.
    Gone(Box<Item>),
    /// The API server has no such kind, so there are none.
    Missing(Kind),
}

/// Follows a kind until the receiver is gone.
pub(super) async fn watch(client: Client, kind: Kind, tx: Sender<Notice>) {
    let mut doubted = false;
    while !tx.is_closed() {
        let resource = match there(&client, kind).await {
            Ok(Some(resource)) => resource,
            Ok(None) if !std::mem::replace(&mut doubted, true) => {
                tokio::time::sleep(DOUBT).await;
                continue;
            }
            Ok(None) => {
                if tx.send(Notice::Missing(kind)).await.is_err() {
                    return;
                }
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Err(error) => {
                doubted = false;
                tracing::warn!(%kind, %error, "the API server does not say whether it has the kind; trying again");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        doubted = false;
        follow(&client, &resource, kind, &tx).await;
        tokio::time::sleep(RETRY).await;
    }
}

/// As [`served`], but what discovery does not know is listed, and is missing only where that is not found either.
async fn there(client: &Client, kind: Kind) -> Result<Option<ApiResource>, kube::Error> {
    if let Some(resource) = served(client, kind).await? {
        return Ok(Some(resource));
    }
    for version in kind.api_versions() {
        let resource = resource(kind, version, kind.plural());
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        match api.list_metadata(&ListParams::default().limit(1)).await {
            Ok(_) => return Ok(Some(resource)),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn resource(kind: Kind, version: &str, plural: &str) -> ApiResource {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind.as_str()), plural)
}

const fn is_built_in(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Namespace | Kind::Node | Kind::Pod | Kind::Service | Kind::EndpointSlice | Kind::NetworkPolicy
    )
}

/// The newest version of a kind that we read and the API server's discovery says that it serves.
pub(super) async fn served(client: &Client, kind: Kind) -> Result<Option<ApiResource>, kube::Error> {
    for version in kind.api_versions() {
        // Every API server that has sidecars' pods has these.
        if is_built_in(kind) {
            return Ok(Some(resource(kind, version, kind.plural())));
        }
        match client.list_api_group_resources(version).await {
            Ok(list) => {
                let found = list.resources.iter().find(|r| r.kind == kind.as_str() && !r.name.contains('/'));
                if let Some(found) = found {
                    return Ok(Some(resource(kind, version, &found.name)));
                }
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Until the kind is not served any more, or the receiver is gone.
async fn follow(client: &Client, resource: &ApiResource, kind: Kind, tx: &Sender<Notice>) {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    // An API server that restarted, and then lost a definition, was seen to leave its watches open without a word.
    let mut check = tokio::time::interval_at(Instant::now() + CHECK, CHECK);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let config = watcher::Config::default().page_size(PAGE);
    let mut events = pin!(watcher::watcher(api, config).default_backoff());
    let mut listing = Vec::new();
    let mut failing = false;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = tx.closed() => return,
            _ = check.tick(), if !is_built_in(kind) => match there(client, kind).await {
                Ok(now) if now.as_ref() != Some(resource) => return,
                // An answer that does not come is no word that the kind is gone.
                Ok(_) | Err(_) => continue,
            },
        };
        let notice = match event {
            None => return,
            Some(Ok(Event::Init)) => {
                listing = Vec::new();
                continue;
            }
            // Trimmed as it comes: a page of whole objects is the most that is held.
            Some(Ok(Event::InitApply(object))) => {
                listing.push(read(kind, object));
                continue;
            }
            Some(Ok(Event::InitDone)) => Notice::All(kind, std::mem::take(&mut listing)),
            Some(Ok(Event::Apply(object))) => Notice::Set(Box::new(read(kind, object))),
            Some(Ok(Event::Delete(object))) => Notice::Gone(Box::new(read(kind, object))),
            Some(Err(error)) => {
                if begins_anew(&error) {
                    return;
                }
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%kind, %error, "the watch broke; what is known stays, and it is tried again");
                }
                continue;
            }
        };
        if std::mem::replace(&mut failing, false) {
            tracing::info!(%kind, "the watch goes on");
        }
        if tx.send(notice).await.is_err() {
            return;
        }
    }
}

/// 404 of a whole kind: its definition was deleted, or another version of it is served now. 410 as the answer to a watch's
/// start, which `kube` would try again from the same forgotten version; within a watch it lists anew by itself.
fn begins_anew(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => matches!(status.code, 404 | 410),
        _ => false,
    }
}

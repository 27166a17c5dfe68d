//! The status writer: what the compiler says of routes and policies, written where people look with `kubectl`.
//!
//! Only the leader writes, and nothing that is there already. The conditions themselves are made in [`conditions`], and how
//! the root fares in [`health`].

pub mod conditions;
pub mod health;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::{api::core::v1::ObjectReference, jiff::Timestamp};
use kube::{
    Api,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Cluster, root};
use crate::{
    ca::CurrentAuthority,
    diagnostics::{Diagnostic, Severity},
    hub::Hub,
    metrics::Metrics,
    object::{Kind, ObjectRef},
    source::kubernetes::ledger::{Ledger, Seen},
};

/// Changes within this time are written together.
const TOGETHER: Duration = Duration::from_millis(500);
/// Everything is looked at so often, whatever changed: a write that failed is tried again.
const LOOK: Duration = Duration::from_secs(60);
/// Writes and Events of one round; the rest follow in the next, so that no flood reaches the API server.
const ROUND: usize = 200;
/// The longest note of an Event (events.k8s.io/v1), in bytes.
const NOTE: usize = 1024;

/// Who writes.
pub struct Writer {
    cluster: Cluster,
    hub: Arc<Hub>,
    ledger: Arc<Ledger>,
    authority: Arc<CurrentAuthority>,
    metrics: Arc<Metrics>,
    recorder: Recorder,
    /// From which state of an object its status was written last, so that it is not written twice before we see it.
    written: HashMap<ObjectRef, String>,
    /// Problems that have their Event.
    told: BTreeSet<Diagnostic>,
    warned: bool,
    health: health::Reporter,
    /// What makes the root's Secret unusable.
    problem: watch::Receiver<Option<String>>,
}

impl Writer {
    /// Puts it together.
    #[must_use]
    pub fn new(
        cluster: Cluster,
        hub: Arc<Hub>,
        ledger: Arc<Ledger>,
        authority: Arc<CurrentAuthority>,
        problem: watch::Receiver<Option<String>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let reporter = Reporter {
            controller: conditions::CONTROLLER.to_owned(),
            instance: Some(cluster.instance.clone()),
        };
        let recorder = Recorder::new(cluster.client.clone(), reporter);
        let health = health::Reporter::new(cluster.client.clone(), &cluster.namespace);
        Self {
            cluster,
            hub,
            ledger,
            authority,
            metrics,
            recorder,
            written: HashMap::new(),
            told: BTreeSet::new(),
            warned: false,
            health,
            problem,
        }
    }

    /// Writes while this replica leads; for ever.
    pub async fn run(mut self, mut leading: watch::Receiver<bool>) {
        self.hub.synced().await;
        let mut applied = self.hub.applied();
        loop {
            let leads = *leading.borrow_and_update();
            self.metrics.leader.set(leads.into());
            if leads {
                self.round().await;
            } else {
                // What another leader writes meanwhile is seen by the watch.
                self.written.clear();
                self.health.forget();
            }
            tokio::select! {
                changed = applied.changed(), if leads => if changed.is_err() { return },
                changed = leading.changed() => if changed.is_err() { return },
                changed = self.problem.changed(), if leads => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK), if leads => {}
            }
            tokio::time::sleep(TOGETHER).await;
        }
    }

    async fn round(&mut self) {
        // First what the objects were, then what is said of them: what was compiled in between is of a version that the API
        // server has already, and it refuses what is written by an older one.
        let all = self.ledger.all();
        let diagnostics = self.hub.diagnostics();
        let mut problems: BTreeMap<&ObjectRef, Vec<&Diagnostic>> = BTreeMap::new();
        for diagnostic in &diagnostics {
            if let Some(object) = &diagnostic.object {
                problems.entry(object).or_default().push(diagnostic);
            }
        }
        let mut writes = 0;
        let versions: HashMap<_, _> = all.iter().map(|(object, seen)| (object, &seen.version)).collect();
        self.written.retain(|object, version| versions.get(object) == Some(&&*version));
        drop(versions);
        for (object, seen) in all {
            if writes >= ROUND {
                break;
            }
            let found = problems.get(&object).map_or(&[][..], Vec::as_slice);
            let status = conditions::status(&object, &seen, found, Timestamp::now());
            let Some(status) = status.filter(|_| self.written.get(&object) != Some(&seen.version)) else {
                continue;
            };
            writes += 1;
            self.write(object, &seen, &status).await;
        }
        self.tell(&diagnostics).await;
        self.warn().await;
        let problem = self.problem.borrow_and_update().clone();
        let health = health::health(&self.authority.load(), problem.as_deref(), SystemTime::now());
        self.health.report(health).await;
    }

    async fn write(&mut self, object: ObjectRef, seen: &Seen, status: &Value) {
        // With the version that we looked at: whoever was quicker is not overwritten, and we look again.
        let patch = json!({"metadata": {"resourceVersion": seen.version}, "status": status});
        for version in object.kind.api_versions() {
            let api: Api<DynamicObject> = Api::namespaced_with(
                self.cluster.client.clone(),
                &object.namespace,
                &resource(object.kind, version),
            );
            match api.patch_status(&object.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => {
                    self.metrics.status_writes.inc();
                    self.written.insert(object, seen.version.clone());
                    return;
                }
                Err(kube::Error::Api(error)) if error.code == 409 => return,
                // Another version is served, or the object is gone.
                Err(kube::Error::Api(error)) if error.code == 404 => {}
                Err(error) => {
                    tracing::warn!(%object, %error, "its status could not be written");
                    return;
                }
            }
        }
    }

    /// An Event for each problem that appeared.
    async fn tell(&mut self, diagnostics: &[Diagnostic]) {
        let present: BTreeSet<_> = diagnostics.iter().collect();
        self.told.retain(|told| present.contains(told));
        let new = diagnostics.iter().filter(|problem| problem.severity == Severity::Error);
        let new: Vec<_> = new.filter(|problem| !self.told.contains(problem)).take(ROUND).cloned().collect();
        for problem in new {
            if let Some(object) = &problem.object {
                let field = problem.field.as_ref().map_or(String::new(), |field| format!("{field}: "));
                let note = format!("{field}{}", problem.message);
                if let Some(reference) = self.reference(object).await {
                    self.publish(problem.reason.as_str(), note, &reference).await;
                }
            }
            self.told.insert(problem);
        }
    }

    /// An Event on the root's Secret long before it ends.
    async fn warn(&mut self) {
        let warning = root::warning(&self.authority.load(), SystemTime::now());
        let news = warning.is_some() && !std::mem::replace(&mut self.warned, warning.is_some());
        if let Some(note) = warning.filter(|_| news) {
            tracing::warn!("{note}");
            let reference = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Secret".to_owned()),
                name: Some(root::SECRET.to_owned()),
                namespace: Some(self.cluster.namespace.clone()),
                ..ObjectReference::default()
            };
            self.publish("RootExpires", note, &reference).await;
        }
    }

    async fn publish(&self, reason: &str, mut note: String, reference: &ObjectReference) {
        let mut end = NOTE.min(note.len());
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        note.truncate(end);
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Compile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, reference).await {
            tracing::debug!(%error, "an Event could not be written");
        }
    }

    async fn reference(&self, object: &ObjectRef) -> Option<ObjectReference> {
        let version = object.kind.api_versions()[0];
        let resource = resource(object.kind, version);
        let api: Api<DynamicObject> = if object.kind.is_namespaced() {
            Api::namespaced_with(self.cluster.client.clone(), &object.namespace, &resource)
        } else {
            Api::all_with(self.cluster.client.clone(), &resource)
        };
        let meta = api.get_metadata_opt(&object.name).await.ok()??.metadata;
        Some(ObjectReference {
            api_version: Some(version.to_owned()),
            kind: Some(object.kind.as_str().to_owned()),
            name: Some(object.name.clone()),
            namespace: object.kind.is_namespaced().then(|| object.namespace.clone()),
            uid: meta.uid,
            ..ObjectReference::default()
        })
    }
}

fn resource(kind: Kind, version: &str) -> ApiResource {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind.as_str()), kind.plural())
}

//! The root: a Secret in the control plane's namespace, made by the first replica or brought by the user in
//! cert-manager's layout (`tls.crt`, `tls.key`, `ca.crt`), and followed from then on.
//!
//! What is trusted is published as the ConfigMap [`BUNDLE`] in every namespace that has sidecars: their pods mount it
//! to know the control plane by. The one in the control plane's own namespace also remembers how long each root is
//! needed, so that a restart forgets no root that certificates still chain to.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_stream::StreamExt as _;

use super::{
    publish::{Published, Wanted},
    trust::{Trust, fingerprint},
};
use crate::{
    ca::{Authority, CurrentAuthority, fresh_root},
    hub::Hub,
    metrics::Metrics,
    source::kubernetes::ledger::Ledger,
};

/// The Secret.
pub const SECRET: &str = "heddle-root";
/// The ConfigMap of what is trusted.
pub const BUNDLE: &str = "heddle-ca";
/// Its key: the roots, PEM.
pub const BUNDLE_KEY: &str = "ca.pem";
/// Its annotation in the control plane's own namespace.
const NEEDED: &str = "heddle.dev/roots-needed-until";
/// As whom we write fields.
pub(super) const MANAGER: &str = "heddle-control-plane";
/// The Secret is read again so often, whatever the watch says.
const POLL: Duration = Duration::from_secs(30);
/// How often it is looked what is due: a root to sign with, a namespace that joined the mesh.
const LOOK: Duration = Duration::from_secs(2);
/// From when the root's end is warned of.
pub(super) const WARN: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What the root is for, and where.
#[derive(Clone)]
pub struct Settings {
    /// Speaks to the API server.
    pub client: Client,
    /// The control plane's namespace.
    pub namespace: String,
    /// The trust domain of a root that is made.
    pub trust_domain: String,
    /// Life of a workload's certificate.
    pub lifetime: Duration,
    /// A new root signs once it has been trusted for so long; see [`ADOPT`](super::trust::ADOPT).
    pub adopt_after: Duration,
}

/// Why the Secret says nothing new.
enum Unread {
    /// The API server did not answer: nothing is wrong with the Secret.
    Unavailable(kube::Error),
    /// It is gone, or what it holds makes no authority.
    Unusable(anyhow::Error),
}

/// The root, followed.
pub struct Root {
    settings: Settings,
    trust: Trust,
    /// The authority as the Secret has it.
    secret: Authority,
    /// When the Secret's authority begins to sign, while it does not yet.
    adopt: Option<Instant>,
    /// Since when roots are trusted that were not when this replica began, by fingerprint.
    young: HashMap<String, Instant>,
    version: Option<String>,
    published: Published,
}

impl Settings {
    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn bundles(&self, namespace: &str) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The Secret, made where there is none: of several replicas that try, the API server lets one.
    async fn secret(&self) -> anyhow::Result<Secret> {
        loop {
            if let Some(secret) = self.secrets().get_opt(SECRET).await? {
                return Ok(secret);
            }
            let (root, key) = fresh_root(&self.trust_domain, SystemTime::now())?;
            let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
            let secret = Secret {
                metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
                type_: Some("kubernetes.io/tls".to_owned()),
                data: Some(BTreeMap::from([
                    ("tls.crt".to_owned(), bytes(&root)),
                    ("tls.key".to_owned(), bytes(&key)),
                    ("ca.crt".to_owned(), bytes(&root)),
                ])),
                ..Secret::default()
            };
            match self.secrets().create(&PostParams::default(), &secret).await {
                Ok(secret) => {
                    tracing::info!(namespace = %self.namespace, "made the root: Secret {SECRET}");
                    return Ok(secret);
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn authority(&self, secret: &Secret) -> anyhow::Result<Authority> {
        let field = |name: &str| {
            let found = secret.data.as_ref().and_then(|data| data.get(name)).map(|bytes| bytes.0.as_slice());
            found.filter(|bytes| !bytes.is_empty())
        };
        let part = |name: &str| {
            field(name).ok_or_else(|| {
                anyhow::anyhow!(
                    "Secret {}/{SECRET} has no {name}: it needs tls.crt, tls.key and ca.crt",
                    self.namespace
                )
            })
        };
        // A self-signed root may come without ca.crt: it is its own.
        let bundle = field("ca.crt").map_or_else(|| part("tls.crt"), Ok)?;
        Authority::from_pem(part("tls.crt")?, part("tls.key")?, bundle, &self.trust_domain, self.lifetime)
            .map_err(|problem| anyhow::anyhow!("Secret {}/{SECRET}: {problem}", self.namespace))
    }

    /// What was trusted before this replica began.
    async fn remembered(&self) -> anyhow::Result<Trust> {
        let Some(bundle) = self.bundles(&self.namespace).get_opt(BUNDLE).await? else {
            return Ok(Trust::default());
        };
        let text = bundle.data.as_ref().and_then(|data| data.get(BUNDLE_KEY)).map_or("", String::as_str);
        let roots = CertificateDer::pem_slice_iter(text.as_bytes()).filter_map(Result::ok).collect();
        let annotations = bundle.metadata.annotations.unwrap_or_default();
        let needed = annotations.get(NEEDED).and_then(|text| serde_json::from_str(text).ok());
        Ok(Trust { roots, needed: needed.unwrap_or_default(), kept: Vec::new() })
    }
}

impl Root {
    /// Reads the Secret, makes it first where there is none, and says who signs.
    ///
    /// # Errors
    /// When the API server does not answer or the Secret cannot be used.
    pub async fn open(settings: Settings) -> anyhow::Result<(Self, Arc<CurrentAuthority>)> {
        let secret = settings.secret().await?;
        let authority = settings.authority(&secret)?;
        let trust = settings.remembered().await?.next(&authority, &authority, SystemTime::now());
        let current = CurrentAuthority::new(authority.with_roots(trust.roots.clone()));
        let root = Self {
            settings,
            trust,
            secret: authority,
            adopt: None,
            young: HashMap::new(),
            version: secret.metadata.resource_version,
            published: Published::default(),
        };
        Ok((root, current))
    }

    /// Follows the Secret, and while this replica leads publishes what is trusted; for ever.
    pub async fn follow(
        mut self,
        current: Arc<CurrentAuthority>,
        hub: Arc<Hub>,
        ledger: Arc<Ledger>,
        metrics: Arc<Metrics>,
        problem: watch::Sender<Option<String>>,
        leading: watch::Receiver<bool>,
    ) {
        let mut events =
            std::pin::pin!(watcher::watch_object(self.settings.secrets(), SECRET).default_backoff());
        let mut poll = tokio::time::interval(POLL);
        let mut look = tokio::time::interval(LOOK);
        for interval in [&mut poll, &mut look] {
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            let read = tokio::select! {
                event = events.next() => event.is_some_and(|event| event.is_ok()),
                _ = poll.tick() => true,
                _ = look.tick() => false,
            };
            if read {
                match self.read().await {
                    Ok(()) => {
                        metrics.root_unusable.set(0);
                        problem.send_if_modified(|problem| problem.take().is_some());
                    }
                    Err(Unread::Unavailable(error)) => {
                        tracing::warn!(%error, "the root's Secret could not be read, and stays as it was");
                    }
                    Err(Unread::Unusable(error)) => {
                        metrics.root_unusable.set(1);
                        let text = format!("{error:#}");
                        tracing::error!("the root stays as it was: {text}");
                        problem.send_if_modified(|problem| {
                            let news = problem.as_ref() != Some(&text);
                            *problem = Some(text);
                            news
                        });
                    }
                }
            }
            self.settle(&current, &hub, &metrics);
            self.publish(&ledger, &leading).await;
        }
    }

    /// Reads the Secret.
    async fn read(&mut self) -> Result<(), Unread> {
        let Some(secret) = self.settings.secrets().get_opt(SECRET).await.map_err(Unread::Unavailable)? else {
            return Err(Unread::Unusable(anyhow::anyhow!(
                "Secret {}/{SECRET} is gone: restore it; a restart of every replica would make a new root, which no sidecar knows",
                self.settings.namespace
            )));
        };
        if self.version == secret.metadata.resource_version {
            return Ok(());
        }
        self.secret = self.settings.authority(&secret).map_err(Unread::Unusable)?;
        self.version = secret.metadata.resource_version;
        let (now, adopt_after) = (Instant::now(), self.settings.adopt_after);
        let trusted = self.secret.signs_under(&self.trust.roots);
        let since =
            trusted.iter().map(|root| self.young.get(&fingerprint(root)).map_or(now, |at| *at + adopt_after));
        // Trusted for long enough: at once. New to us: once it is.
        self.adopt = Some(since.min().unwrap_or(now + adopt_after).max(now));
        Ok(())
    }

    /// Brings what is trusted, and who signs, up to date.
    fn settle(&mut self, current: &CurrentAuthority, hub: &Hub, metrics: &Metrics) {
        let signing = current.load();
        let trust = self.trust.next(&self.secret, &signing, SystemTime::now());
        let changed = trust.roots != self.trust.roots;
        for root in trust.roots.iter().filter(|root| !self.trust.roots.contains(root)) {
            self.young.insert(fingerprint(root), Instant::now());
        }
        for kept in trust.kept.iter().filter(|kept| !self.trust.kept.contains(kept)) {
            tracing::warn!(root = %kept, until = trust.needed.get(kept), "the Secret has this root no more, but certificates under it still live: it stays trusted until they have ended");
        }
        self.trust = trust;
        if self.adopt.is_some_and(|at| at <= Instant::now()) {
            self.adopt = None;
            current.replace(self.secret.with_roots(self.trust.roots.clone()));
            tracing::info!("signing with what Secret {SECRET} holds now");
        } else if changed {
            current.replace(signing.with_roots(self.trust.roots.clone()));
        }
        if changed {
            tracing::info!(roots = self.trust.roots.len(), "the roots that are trusted changed");
            hub.set_roots(&self.trust.roots);
        }
        let seconds = current.load().not_after().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        metrics.root_expiry.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// Writes what is trusted into every namespace that has sidecars, while this replica leads.
    async fn publish(&mut self, ledger: &Ledger, leading: &watch::Receiver<bool>) {
        if !*leading.borrow() {
            return;
        }
        let pem: String = self.trust.roots.iter().map(|root| pem(root)).collect();
        let needed = serde_json::to_string(&self.trust.needed).unwrap_or_default();
        let (own, everywhere) = (format!("{pem}{needed}"), Arc::<str>::from(&*pem));
        let mut wanted: BTreeMap<String, Wanted> = ledger
            .namespaces()
            .into_iter()
            .map(|(namespace, uid)| (namespace, Wanted { uid, state: Arc::clone(&everywhere) }))
            .collect();
        // Wherever the control plane is, it stays; its uid is nothing to it.
        let own = Wanted { uid: String::new(), state: own.into() };
        wanted.insert(self.settings.namespace.clone(), own);
        for namespace in self.published.due(&wanted, Instant::now()) {
            // Another replica may write by now.
            if !*leading.borrow() {
                return;
            }
            let own = namespace == self.settings.namespace;
            let annotations = if own { json!({ NEEDED: needed }) } else { json!({}) };
            let bundle = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": BUNDLE, "annotations": annotations},
                "data": {BUNDLE_KEY: pem},
            });
            let (api, params) = (self.settings.bundles(&namespace), PatchParams::apply(MANAGER).force());
            match api.patch(BUNDLE, &params, &Patch::Apply(&bundle)).await {
                Ok(_) => {
                    let wanted = wanted[&namespace].clone();
                    self.published.wrote(namespace, wanted, Instant::now());
                }
                Err(error) => {
                    tracing::warn!(%namespace, %error, "ConfigMap {BUNDLE} could not be written");
                    self.published.failed(&namespace);
                    // Nobody answers: the others would wait as long.
                    if !matches!(error, kube::Error::Api(_)) {
                        return;
                    }
                }
            }
        }
    }
}

/// What people must know of an authority's end, if it is near.
#[must_use]
pub fn warning(authority: &Authority, now: SystemTime) -> Option<String> {
    let left = authority.not_after().duration_since(now).unwrap_or_default();
    (left < WARN).then(|| {
        let days = left.as_secs() / (24 * 60 * 60);
        format!("the root ends in {days} days: add a new one to ca.crt of Secret {SECRET} now, and sign with it in a day")
    })
}

/// A certificate as PEM.
pub(super) fn pem(certificate: &CertificateDer<'_>) -> String {
    // ByteString is base64 in JSON.
    let encoded = serde_json::to_value(ByteString(certificate.to_vec())).unwrap_or_default();
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in encoded.as_str().unwrap_or_default().as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

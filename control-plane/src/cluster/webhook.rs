//! The injector's webhook in a cluster: its port, and its `caBundle` kept right through the API server. Every replica
//! answers and every replica publishes; they have the same roots.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration, time::SystemTime};

use anyhow::Context as _;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::root;
use crate::{
    ca::CurrentAuthority,
    inject::{
        Settings,
        webhook::{
            Webhook,
            registration::{CaBundle, NAME, keep_published},
            review::Namespaces,
            tls,
        },
    },
    metrics::Metrics,
    source::kubernetes::ledger::Ledger,
    tls::serving::ServingTls,
};

/// The API server has this long to take the roots, conflicts included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// After a conflict.
const AGAIN: Duration = Duration::from_millis(50);

/// What the command line says of the webhook.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the API server connects.
    pub listen: SocketAddr,
    /// The Service by whose name it does, in the control plane's namespace.
    pub service: String,
    /// After a stop begins, new questions are still answered for so long: until the Service leads nobody here.
    pub grace: Duration,
    /// What sidecars have in common.
    pub settings: Settings,
}

/// A webhook whose port is open.
pub(crate) struct Opened {
    /// Where.
    pub address: SocketAddr,
    listener: TcpListener,
    options: Options,
    tls: Arc<ServingTls>,
    due: SystemTime,
}

impl Opened {
    /// Makes its certificate for a listener.
    ///
    /// # Errors
    /// When the authority cannot sign, or the Service's name is none.
    pub(crate) fn new(
        options: Options,
        listener: TcpListener,
        authority: &Arc<CurrentAuthority>,
        namespace: &str,
    ) -> anyhow::Result<Self> {
        let authority = Arc::clone(authority);
        let (tls, due) = tls::for_service(authority, &options.service, namespace, SystemTime::now())
            .with_context(|| format!("the webhook's certificate for the Service {:?}", options.service))?;
        Ok(Self { address: listener.local_addr()?, listener, options, tls, due })
    }

    /// Starts it. What comes back ends once it was stopped and what was asked is answered.
    pub(crate) fn spawn(
        self,
        client: Client,
        authority: Arc<CurrentAuthority>,
        ledger: Arc<Ledger>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
        others: &mut JoinSet<()>,
    ) -> JoinHandle<()> {
        let Options { settings, grace, .. } = self.options;
        others.spawn(Arc::clone(&self.tls).rotate(self.due));
        let bundle = Arc::new(Published(Api::all(client)));
        others.spawn(keep_published(bundle, move || {
            authority.load().roots().iter().map(|root| root::pem(root)).collect()
        }));
        let late = CancellationToken::new();
        others.spawn({
            let late = late.clone();
            async move {
                stop.cancelled().await;
                tokio::time::sleep(grace).await;
                late.cancel();
            }
        });
        tokio::spawn(Webhook::new(settings, ledger, self.tls, metrics, late).run(self.listener))
    }
}

impl Namespaces for Ledger {
    fn labels(&self, namespace: &str) -> Option<BTreeMap<String, String>> {
        self.security(namespace)
    }
}

/// The configuration [`NAME`], which the chart installs.
struct Published(Api<MutatingWebhookConfiguration>);

impl CaBundle for Published {
    async fn publish(&self, roots: &str) -> anyhow::Result<()> {
        tokio::time::timeout(TIMEOUT, self.write(roots))
            .await
            .with_context(|| format!("not written in {TIMEOUT:?}"))?
    }
}

impl Published {
    /// Until nothing is stale: a conflict says only that somebody wrote meanwhile, be it another replica, with the same
    /// roots, or Helm, without any.
    async fn write(&self, roots: &str) -> anyhow::Result<()> {
        loop {
            let Some(found) = self.0.get_opt(NAME).await? else {
                anyhow::bail!(
                    "there is no MutatingWebhookConfiguration {NAME}: no pod is injected; install the chart"
                );
            };
            let Some(patch) = patch(&found, roots) else { return Ok(()) };
            let params =
                PatchParams { field_manager: Some(root::MANAGER.to_owned()), ..PatchParams::default() };
            match self.0.patch(NAME, &params, &Patch::Strategic(&patch)).await {
                Ok(_) => {
                    tracing::info!(
                        "wrote the roots into the caBundle of MutatingWebhookConfiguration {NAME}"
                    );
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if status.code == 409 => tokio::time::sleep(AGAIN).await,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What makes each webhook's `caBundle` these roots, if one is not. A strategic merge finds each webhook by its name, and
/// touches nothing else of it.
fn patch(found: &MutatingWebhookConfiguration, roots: &str) -> Option<serde_json::Value> {
    let stale: Vec<_> = found
        .webhooks
        .iter()
        .flatten()
        .filter(|webhook| {
            webhook.client_config.ca_bundle.as_ref().is_none_or(|bundle| bundle.0 != roots.as_bytes())
        })
        .map(|webhook| {
            let bundle = k8s_openapi::ByteString(roots.as_bytes().to_vec());
            json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}})
        })
        .collect();
    let version = &found.metadata.resource_version;
    (!stale.is_empty()).then(|| json!({"metadata": {"resourceVersion": version}, "webhooks": stale}))
}

//! A pod of a [`World`] on loopback: its application, its sidecar, and what it is asked.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::ensure;
use heddle_api::ports;

use super::{APP_PORT, World, is_ready};
use crate::{
    app::HttpApp, client::Client, eventually, manifest::PodManifest, metrics::Scrape, process::wrap,
    wait::PATIENCE,
};

/// A pod before it runs.
#[derive(Debug)]
pub struct PodBuilder<'a> {
    world: &'a mut World,
    manifest: PodManifest,
    answers_as: Option<String>,
    args: Vec<String>,
    file_limit: Option<u32>,
    waits: bool,
    writes: bool,
}

impl<'a> PodBuilder<'a> {
    pub(super) fn new(world: &'a mut World, manifest: PodManifest) -> Self {
        Self {
            answers_as: None,
            args: Vec::new(),
            file_limit: None,
            waits: true,
            writes: true,
            manifest,
            world,
        }
    }
    /// Its application is a scripted one at port 9080 that answers as `version`.
    #[must_use]
    pub fn answering(mut self, version: &str) -> Self {
        self.answers_as = Some(version.to_owned());
        self
    }

    /// It has this address, taken beforehand by [`World::new_address`].
    #[must_use]
    pub fn at(mut self, ip: IpAddr) -> Self {
        self.manifest.ip = ip;
        self
    }

    /// This label, instead of what it had under the key.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.manifest.labels.retain(|(present, _)| present != key);
        self.manifest.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// It has this service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.manifest.service_account);
        self
    }

    /// Its container has these ports.
    #[must_use]
    pub fn ports(mut self, ports: &[u16]) -> Self {
        self.manifest.ports = ports.to_vec();
        self
    }

    /// Arguments for its sidecar beyond the usual.
    #[must_use]
    pub fn sidecar_args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Without a sidecar.
    #[must_use]
    pub fn outside_the_mesh(mut self) -> Self {
        self.manifest.meshed = false;
        self
    }

    /// Its sidecar may hold this many descriptors.
    #[must_use]
    pub fn file_limit(mut self, descriptors: u32) -> Self {
        self.file_limit = Some(descriptors);
        self
    }

    /// Its manifest is in the directory already.
    #[must_use]
    pub fn as_declared(mut self) -> Self {
        self.writes = false;
        self
    }

    /// [`PodBuilder::start`] does not wait until the sidecar is ready.
    #[must_use]
    pub fn not_waiting(mut self) -> Self {
        self.waits = false;
        self
    }

    /// Writes the Pod's manifest and starts nothing.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn declare(self) -> anyhow::Result<()> {
        self.world.save(&self.manifest.file(), &self.manifest.yaml())
    }

    /// Writes the Pod's manifest, starts application and sidecar, and waits until the sidecar is ready.
    ///
    /// # Errors
    /// When one of them cannot be started.
    pub async fn start(self) -> anyhow::Result<Pod> {
        let Self { world, manifest, answers_as, args, file_limit, waits, writes } = self;
        let full_name = format!("{}/{}", manifest.namespace, manifest.name);
        if writes {
            world.save(&manifest.file(), &manifest.yaml())?;
        }
        let app = match answers_as {
            Some(version) => Some(HttpApp::start(SocketAddr::new(manifest.ip, APP_PORT), &version).await?),
            None => None,
        };
        if manifest.meshed {
            let token = world.token(&manifest.namespace, &manifest.service_account, "1h")?;
            let mut command = world.sidecar_command(&full_name, manifest.ip, &token)?;
            command.args(args);
            if let Some(limit) = file_limit {
                // util-linux, as setpriv is.
                command = wrap("prlimit", &[&format!("--nofile={limit}:{limit}"), "--"], &command);
            }
            let process = world.run(&full_name, &command)?;
            world.sidecars.insert(full_name.clone(), (command, process));
        }
        let pod = Pod { name: full_name, ip: manifest.ip, manifest, app };
        if pod.manifest.meshed && waits {
            pod.wait_until_ready().await;
        }
        Ok(pod)
    }
}

/// A running pod. It holds no process: those end with the [`World`].
#[derive(Clone, Debug)]
pub struct Pod {
    /// `namespace/name`.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
    /// As it was written.
    pub manifest: PodManifest,
    app: Option<HttpApp>,
}

impl Pod {
    /// Its scripted application.
    ///
    /// # Panics
    /// When it was started without one.
    #[must_use]
    pub fn app(&self) -> &HttpApp {
        self.app.as_ref().expect("this pod was started with an application")
    }

    /// Where its sidecar or application listens on `port`.
    #[must_use]
    pub fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    /// The sidecar's outbound port.
    #[must_use]
    pub fn outbound(&self) -> SocketAddr {
        self.port(ports::OUTBOUND)
    }

    /// A kept-alive HTTP/1.1 connection of the pod's application to its sidecar.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn http1(&self) -> anyhow::Result<Client> {
        Client::http1(self.outbound()).await
    }

    /// An HTTP/2 connection of the pod's application to its sidecar.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn http2(&self) -> anyhow::Result<Client> {
        Client::http2(self.outbound()).await
    }

    /// The sidecar's metrics.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn scrape(&self) -> anyhow::Result<Scrape> {
        Scrape::of(self.port(ports::METRICS)).await
    }

    /// What the sidecar holds, as `/config` shows it.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn config(&self) -> anyhow::Result<serde_json::Value> {
        let admin = self.port(ports::ADMIN);
        let answer = Client::http1(admin).await?.get(&admin.to_string(), "/config").await?;
        ensure!(answer.status == 200, "http://{admin}/config says {} {}", answer.status, answer.text());
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// The addresses that the sidecar leaves out of balancing now, by its own word in `/config`.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ejected(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        collect_ejected(&self.config().await?, &mut found);
        Ok(found)
    }

    /// Waits until the sidecar says that it is ready.
    ///
    /// # Panics
    /// When it does not become so.
    pub async fn wait_until_ready(&self) {
        let address = self.port(ports::METRICS);
        eventually(&format!("the sidecar of {} is ready", self.name), || is_ready(address)).await;
    }

    /// Whether the sidecar says now that it is ready.
    pub async fn is_ready(&self) -> bool {
        is_ready(self.port(ports::METRICS)).await.is_ok()
    }

    /// Asks until the answer to GET `path` of `host` is one that `wanted` takes.
    ///
    /// # Panics
    /// When none is.
    pub async fn answers(&self, host: &str, path: &str, wanted: impl Fn(&crate::client::Answer) -> bool) {
        eventually(&format!("the wanted answer to {host}{path} within {PATIENCE:?}"), || async {
            let answer = self.http1().await?.get(host, path).await?;
            ensure!(wanted(&answer), "{} {:?} {}", answer.status, answer.headers, answer.text());
            Ok(())
        })
        .await;
    }
}

/// Endpoints are objects with `address` and `ejected`, wherever in the document they stand.
fn collect_ejected(value: &serde_json::Value, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            let address = fields.get("address").and_then(serde_json::Value::as_str);
            if let (Some(address), Some(serde_json::Value::Bool(true))) = (address, fields.get("ejected")) {
                found.insert(address.rsplit_once(':').map_or(address, |(ip, _)| ip).to_owned());
            }
            fields.values().for_each(|field| collect_ejected(field, found));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect_ejected(item, found)),
        _ => {}
    }
}

//! Simulated sidecars: certificate by `Join`, one discovery stream over mTLS each, every response read and accepted.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use heddle_api::v1::{self, ResourceType, resource::Body};
use tokio::{
    sync::{Semaphore, mpsc},
    task::{AbortHandle, JoinSet},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{board::Board, cluster};
use crate::peer::{self, Credentials};

/// Certificates asked for at once.
const JOINS: usize = 16;
/// Until a sidecar has all its resources, however many come at once.
const PATIENCE: Duration = Duration::from_secs(120);
/// Before a refused connection is tried again; a sidecar's first wait is like it.
const RETRY: Duration = Duration::from_millis(100);

/// All simulated sidecars.
pub(super) struct Fleet {
    address: SocketAddr,
    board: Arc<Board>,
    services: usize,
    follows: usize,
    members: Vec<Member>,
    streams: JoinSet<anyhow::Result<()>>,
}

struct Member {
    credentials: Credentials,
    stream: Option<AbortHandle>,
}

impl Fleet {
    /// An empty one of the control plane at `address`; each member will follow `follows` of `services` Services beside
    /// those that are measured.
    pub(super) fn new(address: SocketAddr, board: Arc<Board>, services: usize, follows: usize) -> Self {
        Self { address, board, services, follows, members: Vec::new(), streams: JoinSet::new() }
    }

    pub(super) const fn len(&self) -> usize {
        self.members.len()
    }

    /// Grows to `count` members: each has a key of its own and gets a certificate for it.
    pub(super) async fn join(&mut self, count: usize, token: &str) -> anyhow::Result<()> {
        let places = Arc::new(Semaphore::new(JOINS));
        let mut joining = JoinSet::new();
        for number in self.members.len()..count {
            let (address, token, places) = (self.address, token.to_owned(), Arc::clone(&places));
            joining.spawn(async move {
                let _place = places.acquire().await?;
                Credentials::join(address, &token, &cluster::sidecar_pod(number)).await.map(|c| (number, c))
            });
        }
        let mut joined = joining.join_all().await.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        joined.sort_by_key(|(number, _)| *number);
        let member = |(_, credentials)| Member { credentials, stream: None };
        self.members.extend(joined.into_iter().map(member));
        Ok(())
    }

    /// Connects all that are not connected, at once, and waits until each has everything that it follows. The first
    /// `few` follow the obscure Service, too.
    pub(super) async fn connect(&mut self, few: usize) -> anyhow::Result<()> {
        let (ready, mut ready_count) = mpsc::unbounded_channel();
        let mut missing = 0;
        for (number, member) in self.members.iter_mut().enumerate() {
            if member.stream.is_some() {
                continue;
            }
            let mut services: HashSet<usize> = (0..self.follows)
                // Spread evenly and the same each time.
                .map(|n| 2 + (number * self.follows + n) * 7919 % self.services.saturating_sub(2).max(1))
                .filter(|service| *service < self.services)
                .collect();
            services.insert(cluster::POPULAR);
            if number < few {
                services.insert(cluster::OBSCURE);
            }
            let sidecar = Sidecar {
                pod: cluster::sidecar_pod(number),
                address: self.address,
                credentials: member.credentials.clone(),
                services: services.into_iter().collect(),
                board: Arc::clone(&self.board),
                ready: ready.clone(),
            };
            member.stream = Some(self.streams.spawn(sidecar.run()));
            missing += 1;
        }
        drop(ready);
        let all = async {
            while missing > 0 {
                tokio::select! {
                    one = ready_count.recv() => {
                        one.context("a sidecar ended before it had its resources")?;
                        missing -= 1;
                    }
                    Some(ended) = self.streams.join_next() => {
                        ended.context("a sidecar's task")??;
                        bail!("a stream ended");
                    }
                }
            }
            Ok(())
        };
        let waited = tokio::time::timeout(PATIENCE, all).await;
        waited.map_err(|_| anyhow!("not all sidecars had their resources within {PATIENCE:?}"))?
    }

    /// Cuts all streams; the certificates stay.
    pub(super) async fn disconnect(&mut self) {
        for member in &mut self.members {
            member.stream = None;
        }
        self.streams.shutdown().await;
    }
}

struct Sidecar {
    pod: String,
    address: SocketAddr,
    credentials: Credentials,
    services: Vec<usize>,
    board: Arc<Board>,
    ready: mpsc::UnboundedSender<()>,
}

impl Sidecar {
    async fn run(self) -> anyhow::Result<()> {
        let destination = |&service: &usize| {
            format!("{}.{}:{}", cluster::service_name(service), cluster::namespace_of(service), cluster::PORT)
        };
        let mut names = vec![(ResourceType::Inbound, self.pod.clone())];
        names.push((ResourceType::TrustBundle, "cluster.local".to_owned()));
        names.extend(self.services.iter().map(|s| (ResourceType::Destination, destination(s))));
        let subscribe: Vec<_> =
            names.into_iter().map(|(kind, name)| v1::ResourceName { r#type: kind.into(), name }).collect();
        let popular = backend(cluster::POPULAR);
        let obscure = backend(cluster::OBSCURE);
        let measured = [(cluster::POPULAR, popular), (cluster::OBSCURE, obscure)];

        // Each Service comes as a Destination and its Endpoints; beside them the Inbound and the roots.
        let mut missing = 2 + 2 * self.services.len();
        let (requests, mut responses) = self.open(subscribe).await?;
        while let Some(response) = responses.message().await? {
            let now = Instant::now();
            requests.send(v1::DiscoveryRequest { nonce: response.nonce, ..Default::default() }).await?;
            for resource in &response.changed {
                let name = resource.name.as_ref().map_or("", |name| &name.name);
                let endpoints = match &resource.body {
                    Some(Body::Endpoints(all)) => &all.endpoints,
                    Some(Body::EndpointsDelta(delta)) => &delta.upserted,
                    _ => continue,
                };
                let Some((service, _)) = measured.iter().find(|(_, key)| key == name) else { continue };
                // Of a whole list, only the changed endpoint's mark can be awaited.
                for endpoint in endpoints {
                    self.board.seen(*service, &endpoint.zone, now);
                }
            }
            if !response.absent.is_empty() {
                bail!("{}: does not exist: {:?}", self.pod, response.absent);
            }
            if missing > 0 {
                missing = missing.saturating_sub(response.changed.len());
                if missing == 0 {
                    let _gone = self.ready.send(());
                }
            }
        }
        bail!("{}: the control plane ended the stream", self.pod)
    }

    /// Tries until the control plane answers.
    async fn open(
        &self,
        subscribe: Vec<v1::ResourceName>,
    ) -> anyhow::Result<(mpsc::Sender<v1::DiscoveryRequest>, Streaming<v1::DiscoveryResponse>)> {
        let mut last = None;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let (tx, rx) = mpsc::channel(4);
            let hello = v1::Hello { pod: self.pod.clone(), version: "bench".to_owned(), held: Vec::new() };
            let first = v1::DiscoveryRequest {
                hello: Some(hello),
                subscribe: subscribe.clone(),
                ..Default::default()
            };
            tx.send(first).await?;
            let opened = async {
                let mut client = peer::discovery(self.address, Some(&self.credentials)).await?;
                let stream = client.stream(ReceiverStream::new(rx)).await;
                stream.map_err(|status| anyhow!("{}: {}", status.code(), status.message()))
            };
            match opened.await {
                Ok(stream) => return Ok((tx, stream.into_inner())),
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(RETRY).await;
        }
        Err(last.unwrap_or_else(|| anyhow!("no attempt"))).with_context(|| self.pod.clone())
    }
}

fn backend(service: usize) -> String {
    format!("{}/{}:{}", cluster::namespace_of(service), cluster::service_name(service), cluster::PORT)
}

//! Two replicas after a rollout: streams that all went to the first of them are shared again.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use heddle_api::v1::{DiscoveryRequest, HeldResource, ResourceType};
use tokio::task::JoinSet;

use crate::{
    client::{Leaf, Stream, connect, held, join, name},
    identity::{bundle, token},
    replica::start,
    server::{SYSTEM, Server, pod, service, wait},
    status::metrics,
};

const PODS: u8 = 8;

/// What a sidecar does about its stream: keeps it up, and opens another where it ends, led by the Service.
struct Sidecar {
    pod: String,
    leaf: Leaf,
    ca: Arc<PathBuf>,
    held: Vec<HeldResource>,
}

impl Sidecar {
    /// Opens a stream, and waits until it is known to hold everything.
    async fn open(&mut self, replica: SocketAddr) -> Stream {
        let subscribe = vec![name(ResourceType::Destination, "reviews:9080")];
        let channel = connect(replica, &self.ca, Some(&self.leaf)).await.unwrap();
        let mut stream = Stream::open(channel, &self.pod, self.held.clone(), subscribe).await.unwrap();
        if self.held.is_empty() {
            self.held = held(&stream.accept().await);
        }
        stream
    }

    async fn live(mut self, mut stream: Stream, replicas: [SocketAddr; 2]) {
        loop {
            while let Ok(Some(news)) = stream.read().await {
                stream.send(DiscoveryRequest { nonce: news.nonce, ..DiscoveryRequest::default() }).await;
            }
            // As a Service leads: by chance.
            stream = self.open(replicas[usize::from(rand())]).await;
        }
    }
}

/// Heads or tails.
fn rand() -> bool {
    std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), 0).is_multiple_of(2)
}

/// Streams of a replica.
async fn streams(admin: SocketAddr) -> u32 {
    let text = metrics(admin).await;
    let count = text.lines().find_map(|line| line.strip_prefix("heddle_control_plane_streams "));
    count.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_all_went_to_one_replica_are_shared_once_there_are_two() {
    let Some(server) = Server::start().await else { return };
    server.define_all().await;
    server.apply("{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: shop}}").await;
    server.apply(&service("reviews", "reviews")).await;
    let (first, second) = (start(&server, "a").await, start(&server, "b").await);
    let replicas = [first.address, second.address];
    let mut uids = Vec::new();
    for n in 0..PODS {
        let manifest = pod(&format!("web-{n}"), "web", &format!("10.244.1.{n}"), "n1");
        uids.push(server.apply(&manifest).await.metadata.uid.unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let ca = Arc::new(dir.path().join("ca.pem"));
    let roots = wait("the roots", async || bundle(&server, "shop").await).await;
    std::fs::write(&*ca, &roots).unwrap();
    let mut sidecars = JoinSet::new();
    for (n, uid) in uids.iter().enumerate() {
        let own = format!("web-{n}");
        let token = token(&server, "web", Some((&own, uid)), "heddle.dev").await;
        let own = format!("shop/{own}");
        let leaf = wait("a certificate", async || join(first.address, &ca, &token, &own).await.ok()).await;
        let mut sidecar = Sidecar { pod: own, leaf, ca: Arc::clone(&ca), held: Vec::new() };
        let stream = sidecar.open(first.address).await;
        sidecars.spawn(sidecar.live(stream, replicas));
    }
    assert_eq!(streams(first.admin_address).await, u32::from(PODS));

    // The second becomes ready, by the word of the EndpointSlice.
    server
        .apply(&format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{{name: discovery, port: 15010}}], \
             metadata: {{name: heddle-control-plane-1, namespace: {SYSTEM}, labels: {{kubernetes.io/service-name: heddle-control-plane}}}}, \
             endpoints: [{{addresses: [10.244.0.11], conditions: {{ready: true}}}}, {{addresses: [10.244.0.12], conditions: {{ready: true}}}}]}}"
        ))
        .await;
    wait("half of the streams at each", async || {
        let [a, b] = [streams(first.admin_address).await, streams(second.admin_address).await];
        (a + b == u32::from(PODS) && a.abs_diff(b) <= 2).then_some(())
    })
    .await;
    assert!(sidecars.try_join_next().is_none(), "every sidecar has a stream");
    sidecars.abort_all();
    first.stop().await;
    second.stop().await;
}

//! The source over a real API server: what the mesh knows of a cluster, through an outage and back.

use heddle_api::v1::EndpointState;
use heddle_control_plane::{
    compile::{Mesh, Options},
    source::{self, Batch},
};
use tokio::sync::mpsc::Receiver;

use crate::{
    server::{Server, pod, route, service, wait},
    world::PATIENCE,
};

pub(crate) struct Follower {
    pub(crate) mesh: Mesh,
    batches: Receiver<Batch>,
    problems: Vec<String>,
}

impl Follower {
    pub(crate) async fn start(server: &Server) -> Self {
        let (tx, batches) = tokio::sync::mpsc::channel(16);
        tokio::spawn(source::kubernetes::run(server.cluster("a").client, std::sync::Arc::default(), tx));
        let mut follower = Self { mesh: Mesh::new(Options::default()), batches, problems: Vec::new() };
        while !follower.next().await {}
        follower
    }

    /// Takes a batch; whether all is known.
    async fn next(&mut self) -> bool {
        let batch = tokio::time::timeout(PATIENCE, self.batches.recv()).await.expect("no news").unwrap();
        self.mesh.apply(batch.changes);
        if let Some(problems) = batch.problems {
            self.problems = problems.iter().map(ToString::to_string).collect();
        }
        batch.synced
    }

    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Mesh) -> bool) {
        let news = async {
            while !holds(&self.mesh) {
                self.next().await;
            }
        };
        tokio::time::timeout(PATIENCE, news).await.unwrap_or_else(|_| panic!("never: {what}"));
    }
}

/// `address zone state` of each endpoint.
fn endpoints(mesh: &Mesh, key: &str) -> Vec<String> {
    let found = mesh.endpoints(key).value.unwrap_or_default().endpoints;
    let state = |state: EndpointState| if state == EndpointState::Draining { "draining" } else { "serving" };
    found.iter().map(|e| format!("{}:{} {} {}", e.address, e.port, e.zone, state(e.state()))).collect()
}

#[tokio::test]
async fn what_the_cluster_holds_is_known_and_what_changes_while_the_api_server_is_away_is_made_good() {
    let Some(mut server) = Server::start().await else { return };
    server.apply("{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: zone-a}}}").await;
    server.apply(&service("reviews", "reviews")).await;
    server.apply(&pod("reviews-0", "reviews", "10.244.0.1", "n1")).await;
    server.apply(&pod("reviews-1", "reviews", "10.244.0.2", "n1")).await;
    let mut follower = Follower::start(&server).await;
    let key = "shop/reviews:9080";
    assert_eq!(
        endpoints(&follower.mesh, key),
        ["10.244.0.1:8080 zone-a serving", "10.244.0.2:8080 zone-a serving"]
    );
    assert!(
        follower.problems.iter().any(|p| p.contains("the cluster has no HTTPRoute")),
        "{:?}",
        follower.problems
    );
    let facts = follower.mesh.pod(&"shop/reviews-0".parse().unwrap()).unwrap();
    assert!(facts.meshed && facts.uid.is_some() && facts.service_account == "reviews");

    // Its definition comes later.
    server.define_all().await;
    server.apply(&service("reviews-v2", "reviews")).await;
    server.apply(&route("reviews", "{name: reviews-v2, port: 9080}")).await;
    follower
        .until("a route of a kind that came later", |mesh| {
            let destination = mesh.destination("shop", "reviews:9080").value;
            destination.is_some_and(|d| !d.http_routes.is_empty())
        })
        .await;

    // A pod that is being deleted drains, and its sidecar is told.
    let terminating = "{apiVersion: v1, kind: Pod, metadata: {name: reviews-1, namespace: shop}}";
    server.delete_slowly(terminating).await;
    follower
        .until("a pod that terminates", |mesh| {
            let inbound = mesh.inbound(&"shop/reviews-1".parse().unwrap()).value;
            inbound.is_some_and(|inbound| inbound.terminating)
        })
        .await;
    assert_eq!(endpoints(&follower.mesh, key)[1], "10.244.0.2:8080 zone-a draining");

    // While the API server is away nothing is forgotten; afterwards what was missed is made good.
    if server.kill_api().is_none() {
        return;
    }
    server.start_api().await;
    server.delete("{apiVersion: v1, kind: Pod, metadata: {name: reviews-1, namespace: shop}}").await;
    server.apply(&pod("reviews-2", "reviews", "10.244.0.3", "n1")).await;
    follower
        .until("the pods of after the outage", |mesh| {
            endpoints(mesh, key) == ["10.244.0.1:8080 zone-a serving", "10.244.0.3:8080 zone-a serving"]
        })
        .await;

    // The kind goes again, and its routes with it.
    let name = "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: httproutes.gateway.networking.k8s.io}}";
    server.delete(name).await;
    wait("the deletion", async || server.get(name).await.is_none().then_some(())).await;
    follower
        .until("a kind that goes", |mesh| {
            let destination = mesh.destination("shop", "reviews:9080").value;
            destination.is_some_and(|d| d.http_routes.is_empty())
        })
        .await;
}

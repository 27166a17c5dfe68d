//! Topology: a Service's `trafficDistribution`, hints, and where a pod runs, as a real API server keeps them. (Of a Pod that is
//! bound to a Node a newer one copies the Node's zone into the Pod's labels.)

use crate::{
    follow::Follower,
    server::{Server, pod},
};

fn node(name: &str, zone: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}}}"
    )
}

/// As the controller of EndpointSlices writes it; hints of nodes are of Kubernetes 1.33.
fn slice(hints: [&str; 2]) -> String {
    let [first, second] = hints;
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: reviews-1, namespace: shop, labels: {{kubernetes.io/service-name: reviews}}}}, \
         addressType: IPv4, ports: [{{name: http, port: 8080}}], endpoints: [\
         {{addresses: [10.244.0.1], zone: zone-a, nodeName: n1, conditions: {{ready: true}}{first}}}, \
         {{addresses: [10.244.0.2], zone: zone-b, nodeName: n2, conditions: {{ready: true}}{second}}}]}}"
    )
}

/// `zones nodes` of each endpoint's hints.
fn hints(follower: &Follower) -> Vec<String> {
    let endpoints = follower.mesh.endpoints("shop/reviews:9080").value.unwrap_or_default().endpoints;
    endpoints.iter().map(|e| format!("{} {}", e.for_zones.join(","), e.for_nodes.join(","))).collect()
}

#[tokio::test]
async fn hints_and_a_callers_place_are_known_and_followed() {
    let Some(server) = Server::start().await else { return };
    for manifest in [
        node("n1", "zone-a"),
        node("n2", "zone-b"),
        "{apiVersion: v1, kind: Service, metadata: {name: reviews, namespace: shop}, \
          spec: {trafficDistribution: PreferSameNode, ports: [{name: http, port: 9080}]}}"
            .to_owned(),
        pod("reviews-0", "reviews", "10.244.0.1", "n1"),
        pod("reviews-1", "reviews", "10.244.0.2", "n2"),
        slice([
            ", hints: {forZones: [{name: zone-a}], forNodes: [{name: n1}]}",
            ", hints: {forZones: [{name: zone-b}], forNodes: [{name: n2}]}",
        ]),
    ] {
        server.apply(&manifest).await;
    }
    let mut follower = Follower::start(&server).await;
    follower.until("both hints", |_| true).await;
    assert_eq!(hints(&follower), ["zone-a n1", "zone-b n2"]);
    let place = |follower: &Follower| {
        let inbound = follower.mesh.inbound(&"shop/reviews-0".parse().unwrap()).value.unwrap();
        (inbound.zone, inbound.node)
    };
    assert_eq!(place(&follower), ("zone-a".to_owned(), "n1".to_owned()));

    // Another zone takes the first one in, and the second loses its hints.
    server.apply(&slice([", hints: {forZones: [{name: zone-c}]}", ""])).await;
    follower
        .until("the new hints", |mesh| {
            let endpoints = mesh.endpoints("shop/reviews:9080").value.unwrap_or_default().endpoints;
            endpoints.iter().map(|e| e.for_zones.clone()).collect::<Vec<_>>()
                == [vec!["zone-c".to_owned()], vec![]]
        })
        .await;
}

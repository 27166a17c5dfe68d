//! How long a save takes to reach the sidecars: measured and printed. Only that it reaches them is asserted.

use std::time::Instant;

use heddle_api::v1::{self, ResourceType, resource::Body};
use heddle_control_plane::ca::ROOTS_FILE;

use crate::{
    client::{Stream, connect, join, name},
    world::{World, pod},
};

const STREAMS: usize = 20;
const SAVES: u32 = 200;

fn route(weight: u32) -> String {
    format!(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: reviews, namespace: shop}}
spec:
  parentRefs: [{{group: "", kind: Service, name: reviews}}]
  rules: [{{backendRefs: [{{name: reviews, port: 9080, weight: {weight}}}]}}]
"#
    )
}

fn weight(response: &v1::DiscoveryResponse) -> Option<u32> {
    response.changed.iter().find_map(|resource| match &resource.body {
        Some(Body::Destination(destination)) => {
            destination.http_rules.first()?.backends.first().map(|backend| backend.weight)
        }
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_save_reaches_every_stream() {
    let world = World::shop();
    world.write("route.yaml", &route(0));
    let (running, ca) = (world.start().await, world.path("state").join(ROOTS_FILE));
    let mut streams = Vec::new();
    for n in 0..STREAMS {
        let pod_name = format!("shop/caller-{n}");
        world.write("caller.yaml", &pod(&format!("caller-{n}"), "web", "127.0.3.1"));
        let leaf = loop {
            match join(running.address, &ca, &world.token("web"), &pod_name).await {
                Ok(leaf) => break leaf,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        };
        let channel = connect(running.address, &ca, Some(&leaf)).await.unwrap();
        let subscribe = vec![name(ResourceType::Destination, "reviews:9080")];
        let mut stream = Stream::open(channel, &pod_name, vec![], subscribe).await.unwrap();
        assert_eq!(weight(&stream.accept().await), Some(0));
        streams.push(stream);
    }
    let mut millis = Vec::new();
    for save in 1..=SAVES {
        let start = Instant::now();
        // As a shell or an editor does it, not renamed into place: the slower of the two ways.
        std::fs::write(world.path("manifests").join("route.yaml"), route(save)).unwrap();
        for stream in &mut streams {
            while weight(&stream.accept().await) != Some(save) {}
            millis.push(start.elapsed().as_secs_f64() * 1000.0);
        }
    }
    millis.sort_by(f64::total_cmp);
    let percentile = |percent: usize| millis[(millis.len() - 1) * percent / 100];
    println!(
        "from file save to {STREAMS} streams, {SAVES} saves: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        percentile(50),
        percentile(99),
        percentile(100)
    );
    running.stop().await;
}

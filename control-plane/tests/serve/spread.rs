//! A replica that has more streams than its share, and real sidecars' streams on it.

use std::time::Duration;

use heddle_api::v1::{DiscoveryRequest, ResourceType};
use heddle_control_plane::{ca::ROOTS_FILE, run};

use crate::{
    client::{Stream, connect, held, join, name},
    world::{World, get, pod},
};

/// The replicas must be the same for ten seconds, and then one stream goes each second.
const LONG: Duration = Duration::from_secs(60);

fn replicas(addresses: &str) -> String {
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{{name: discovery, port: 15010}}], \
         metadata: {{name: heddle-control-plane-1, namespace: heddle-system, labels: {{kubernetes.io/service-name: heddle-control-plane}}}}, \
         endpoints: [{addresses}]}}"
    )
}

async fn metric(running: &run::Running, name: &str) -> u64 {
    let text = get(running.admin_address, "/metrics").await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("heddle_control_plane_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_too_many_end_in_good_order_and_come_back_with_what_they_hold() {
    let world = World::shop();
    world.write("replicas.yaml", &replicas("{addresses: [127.0.0.1]}, {addresses: [127.0.0.2]}"));
    let running = world.start().await;
    let ca = world.path("state").join(ROOTS_FILE);
    // All nine pods with a sidecar, as after a rollout in which this replica was the first.
    let mut streams = tokio::task::JoinSet::new();
    for n in 0..9 {
        let (app, own) =
            if n == 8 { ("web", "web-0".to_owned()) } else { ("reviews", format!("reviews-{n}")) };
        let own = format!("shop/{own}");
        let leaf = join(running.address, &ca, &world.token(app), &own).await.unwrap();
        let channel = connect(running.address, &ca, Some(&leaf)).await.unwrap();
        let subscribe = vec![name(ResourceType::Destination, "reviews:9080")];
        let mut stream = Stream::open(channel, &own, vec![], subscribe).await.unwrap();
        let first = stream.accept().await;
        streams.spawn(async move {
            let ended = loop {
                match stream.read().await {
                    // A difference: taken.
                    Ok(Some(news)) => {
                        let answer = DiscoveryRequest { nonce: news.nonce, ..DiscoveryRequest::default() };
                        stream.send(answer).await;
                    }
                    ended => break ended.map(|_| ()),
                }
            };
            (n, own, leaf, held(&first), ended)
        });
    }
    // Of nine five are its share; the four that were here first leave, one by one.
    let mut gone = Vec::new();
    for _ in 0..4 {
        let ended = tokio::time::timeout(LONG, streams.join_next()).await.expect("a stream ends");
        gone.push(ended.unwrap().unwrap());
    }
    assert_eq!(gone.iter().map(|(n, ..)| *n).collect::<Vec<_>>(), [0, 1, 2, 3]);
    for (_, own, _, _, ended) in &gone {
        assert!(ended.is_ok(), "{own} was told that something is wrong: {ended:?}");
    }
    // The rest are not concerned: they still get what changes, and nobody else goes.
    world.write("reviews-8.yaml", &pod("reviews-8", "reviews", "127.0.2.9"));
    while metric(&running, "streams").await > 5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((streams.len(), metric(&running, "moved_total").await), (5, 4));

    // By chance the Service leads one of them back here. It gets the difference alone.
    let (_, own, leaf, held, _) = gone.pop().unwrap();
    let channel = connect(running.address, &ca, Some(&leaf)).await.unwrap();
    let mut stream = Stream::open(channel, &own, held, vec![]).await.unwrap();
    let news = stream.accept().await;
    assert_eq!(news.changed.len(), 1, "{news:?}");
    running.stop().await;
}

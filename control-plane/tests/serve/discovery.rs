//! What a stream brings, in real time and over real TLS. The session's own rules have their tests beside it.

use heddle_api::v1::{self, ResourceType, resource::Body};
use heddle_control_plane::{ca::ROOTS_FILE, run, source::Batch};
use tonic::{Code, transport::Channel};

use crate::{
    client::{Leaf, Stream, connect, held, join, name},
    world::{PATIENCE, World, get, pod},
};

async fn channel(world: &World, running: &run::Running, account: &str, pod: &str) -> (Leaf, Channel) {
    let ca = world.path("state").join(ROOTS_FILE);
    let leaf = join(running.address, &ca, &world.token(account), pod).await.unwrap();
    let channel = connect(running.address, &ca, Some(&leaf)).await.unwrap();
    (leaf, channel)
}

fn reviews() -> v1::ResourceName {
    name(ResourceType::Destination, "reviews:9080")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_comes_with_its_endpoints_and_a_new_pod_as_a_difference() {
    let world = World::shop();
    let running = world.start().await;
    let (_leaf, channel) = channel(&world, &running, "web", "shop/web-0").await;
    let mut stream = Stream::open(channel, "shop/web-0", vec![], vec![reviews()]).await.unwrap();
    let first = stream.accept().await;
    let [destination, endpoints] = &first.changed[..] else { panic!("{first:?}") };
    let Some(Body::Destination(destination)) = &destination.body else { panic!("{first:?}") };
    let Some(Body::Endpoints(list)) = &endpoints.body else { panic!("{first:?}") };
    assert_eq!((destination.service.as_str(), list.endpoints.len()), ("shop/reviews:9080", 8));
    assert_eq!(list.endpoints[0].identity, "spiffe://cluster.local/ns/shop/sa/reviews");

    world.write("reviews-8.yaml", &pod("reviews-8", "reviews", "127.0.2.9"));
    let second = stream.accept().await;
    let [changed] = &second.changed[..] else { panic!("{second:?}") };
    let Some(Body::EndpointsDelta(delta)) = &changed.body else { panic!("{second:?}") };
    assert_eq!((&delta.base_version, delta.removed.len()), (&endpoints.version, 0));
    assert_eq!(delta.upserted.iter().map(|e| e.address.as_str()).collect::<Vec<_>>(), ["127.0.2.9"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_mesh_is_called_absent_and_comes_when_it_appears() {
    let world = World::shop();
    let running = world.start().await;
    let (_leaf, channel) = channel(&world, &running, "web", "shop/web-0").await;
    let ratings = name(ResourceType::Destination, "ratings.shop:80");
    let mut stream = Stream::open(channel, "shop/web-0", vec![], vec![ratings.clone()]).await.unwrap();
    assert_eq!(stream.accept().await.absent, std::slice::from_ref(&ratings));
    world.write(
        "ratings.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: ratings, namespace: shop}\nspec: {selector: {app: ratings}, ports: [{port: 80}]}\n",
    );
    assert_eq!(stream.accept().await.changed[0].name.as_ref(), Some(&ratings));
    world.remove("ratings.yaml");
    assert!(stream.accept().await.absent.contains(&ratings));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnect_brings_only_what_changed_meanwhile() {
    let world = World::shop();
    let running = world.start().await;
    let (_leaf, channel) = channel(&world, &running, "web", "shop/web-0").await;
    let (inbound, trust) =
        (name(ResourceType::Inbound, "shop/web-0"), name(ResourceType::TrustBundle, "cluster.local"));
    let subscribe = vec![reviews(), inbound.clone(), trust];
    let mut stream = Stream::open(channel.clone(), "shop/web-0", vec![], subscribe).await.unwrap();
    let first = stream.accept().await;
    assert_eq!(first.changed.len(), 4);
    drop(stream);

    // The only thing that changes is what the pod says of itself.
    let unknown = name(ResourceType::Destination, "example.com:80");
    let mut stream = Stream::open(channel, "shop/web-0", held(&first), vec![unknown.clone()]).await.unwrap();
    let second = stream.accept().await;
    assert_eq!((second.changed.len(), second.absent), (0, vec![unknown]));
    world.write("reviews-8.yaml", &pod("reviews-8", "reviews", "127.0.2.9"));
    let third = stream.accept().await;
    assert!(
        matches!(&third.changed[..], [v1::Resource { body: Some(Body::EndpointsDelta(_)), .. }]),
        "{third:?}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_pods_inbound_is_refused_and_counted() {
    let world = World::shop();
    let running = world.start().await;
    let (_leaf, channel) = channel(&world, &running, "web", "shop/web-0").await;
    let foreign = name(ResourceType::Inbound, "shop/reviews-0");
    let mut stream = Stream::open(channel.clone(), "shop/web-0", vec![], vec![foreign]).await.unwrap();
    assert_eq!(stream.next().await.unwrap_err().code(), Code::PermissionDenied);
    let mut stream = Stream::open(channel, "shop/reviews-0", vec![], vec![]).await.unwrap();
    assert_eq!(stream.next().await.unwrap_err().code(), Code::PermissionDenied);
    let metrics = get(running.admin_address, "/metrics").await.unwrap();
    for reason in ["ForeignInbound", "ForeignPod"] {
        let line = format!("heddle_control_plane_refused_total{{reason=\"{reason}\"}} 1");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_who_is_connected_and_what_was_refused() {
    let world = World::shop();
    let running = world.start().await;
    let (_leaf, channel) = channel(&world, &running, "web", "shop/web-0").await;
    let mut stream = Stream::open(channel, "shop/web-0", vec![], vec![reviews()]).await.unwrap();
    let response = stream.next().await.unwrap();
    let refusal =
        v1::Refusal { name: Some(reviews()), reason: "cannot read this".to_owned(), ..Default::default() };
    stream
        .send(v1::DiscoveryRequest { nonce: response.nonce, refused: vec![refusal], ..Default::default() })
        .await;
    let seen = async {
        loop {
            let text = get(running.admin_address, "/streams").await.unwrap();
            let json: serde_json::Value =
                serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
            if json[0]["refused"][0]["reason"] == "cannot read this" {
                return json;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let json = tokio::time::timeout(PATIENCE, seen).await.unwrap();
    assert_eq!((&json[0]["pod"], &json[0]["version"]), (&"shop/web-0".into(), &"test".into()));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_problem_in_a_manifest_is_shown_with_its_place() {
    let world = World::shop();
    world.write("broken.yaml", "kind: Pod\nmetadata: [");
    let running = world.start().await;
    let json = get(running.admin_address, "/diagnostics").await.unwrap();
    let text = get(running.admin_address, "/diagnostics?format=text").await.unwrap();
    assert!(json.contains("broken.yaml") && text.contains("broken.yaml:"), "{json}\n{text}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_called_absent_before_everything_was_read() {
    let world = World::shop();
    // The certificate is from before a restart.
    let running = world.start().await;
    let ca = world.path("state").join(ROOTS_FILE);
    let leaf = join(running.address, &ca, &world.token("web"), "shop/web-0").await.unwrap();
    running.stop().await;

    let (tx, rx) = tokio::sync::oneshot::channel::<tokio::sync::mpsc::Sender<Batch>>();
    let slow = |batches| async move {
        let _waiting = tx.send(batches);
        std::future::pending().await
    };
    let running = run::start_with(world.options(), slow).await.unwrap();
    let batches = rx.await.unwrap();
    assert!(get(running.admin_address, "/ready").await.unwrap().starts_with("HTTP/1.1 503"));
    let status = join(running.address, &ca, &world.token("web"), "shop/web-0").await.map(|_| ()).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let channel = connect(running.address, &ca, Some(&leaf)).await.unwrap();
    let mut stream = Stream::open(channel, "shop/web-0", vec![], vec![reviews()]).await.unwrap();
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), stream.next()).await;
    assert!(early.is_err(), "{early:?}");
    batches.send(Batch { synced: true, ..Batch::default() }).await.unwrap();
    assert_eq!(stream.next().await.unwrap().absent, [reviews()]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_pod_hears_what_its_siblings_follow_and_nobody_else_does() {
    let world = World::shop();
    world.write("web-1.yaml", &pod("web-1", "web", "127.0.1.3"));
    let running = world.start().await;
    let (_leaf, first) = channel(&world, &running, "web", "shop/web-0").await;
    let (_leaf, second) = channel(&world, &running, "web", "shop/web-1").await;
    let (_leaf, other) = channel(&world, &running, "reviews", "shop/reviews-0").await;
    let trust = || vec![name(ResourceType::TrustBundle, "cluster.local")];

    let mut stream = Stream::open(first, "shop/web-0", vec![], vec![reviews()]).await.unwrap();
    assert_eq!(stream.accept().await.expected, [""; 0], "there was nobody before it");
    let mut sibling = Stream::open(second.clone(), "shop/web-1", vec![], trust()).await.unwrap();
    let told = sibling.accept().await;
    assert_eq!(told.expected, ["reviews:9080"]);
    drop(sibling);
    let mut again = Stream::open(second, "shop/web-1", held(&told), vec![reviews()]).await.unwrap();
    assert_eq!(again.accept().await.expected, [""; 0], "it held something");
    let mut stranger = Stream::open(other, "shop/reviews-0", vec![], trust()).await.unwrap();
    assert_eq!(stranger.accept().await.expected, [""; 0], "it is of another workload");
    running.stop().await;
}

//! The stream itself, against a control plane in this process.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use heddle_api::v1::{DiscoveryRequest, ResourceType};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use super::{
    super::{LOOKUP_TIMEOUT, MAX_NAME, Store},
    addresses, destination, endpoints, inbound, name, nonsense, response,
};
use crate::{
    identity::{
        ControlPlaneConfig, Identity, start,
        testing::{
            control_plane::{ControlPlane, Stream},
            pod,
        },
    },
    reason::Reason,
};

const REVIEWS: &str = "shop/reviews:9080";

/// The server's side of one sidecar's stream, past its `hello`.
async fn opened(control_plane: &mut ControlPlane) -> (Stream, DiscoveryRequest) {
    let mut stream = control_plane.streams.recv().await.unwrap();
    let first = stream.hear().await;
    (stream, first)
}

/// Hears requests until one subscribes.
async fn subscription(stream: &mut Stream) -> Vec<String> {
    loop {
        let request = stream.hear().await;
        if !request.subscribe.is_empty() {
            return request.subscribe.into_iter().map(|n| n.name).collect();
        }
    }
}

/// Hears requests until one answers a response.
async fn acknowledgement(stream: &mut Stream) -> DiscoveryRequest {
    loop {
        let request = stream.hear().await;
        if request.nonce != 0 {
            return request;
        }
    }
}

fn ask(store: &Arc<Store>, name: &'static str) -> tokio::task::JoinHandle<Result<Vec<String>, Reason>> {
    let store = store.clone();
    tokio::spawn(async move { store.lookup(name).await.map(|slot| addresses(&slot)) })
}

fn reviews(version: &str, addresses: &[&str]) -> Vec<heddle_api::v1::Resource> {
    vec![destination("reviews:9080", "d1", &[REVIEWS]), endpoints(REVIEWS, version, addresses)]
}

/// Until the store knows that its stream is (not) up.
async fn until_connected(store: &Store, connected: bool) {
    while store.status().connected != connected {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_miss_on_any_runtime_is_asked_for_once_and_answered() {
    let mut control_plane = ControlPlane::start().await;
    let (_identity, store) = start(control_plane.config.clone());
    let (mut stream, first) = opened(&mut control_plane).await;
    assert_eq!(first.hello.unwrap().pod, pod().to_string());
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let store = store.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(store.lookup("reviews:9080")).map(|slot| addresses(&slot))
            })
        })
        .collect();
    assert_eq!(subscription(&mut stream).await, ["reviews:9080"]);
    stream.say(response(1, reviews("e1", &["10.0.0.1"]), vec![])).await;
    let acknowledgement = acknowledgement(&mut stream).await;
    assert_eq!((acknowledgement.nonce, acknowledgement.refused), (1, vec![]));
    for worker in workers {
        let answer = tokio::task::spawn_blocking(|| worker.join().unwrap()).await.unwrap();
        assert_eq!(answer.unwrap(), ["10.0.0.1"]);
    }
    // From now on it is known without asking.
    assert_eq!(addresses(&store.cached("reviews:9080").unwrap()), ["10.0.0.1"]);
    assert!(store.cached("reviews:9081").is_none());
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_with_its_nonce_and_reason() {
    let mut control_plane = ControlPlane::start().await;
    let (_identity, store) = start(control_plane.config.clone());
    let (mut stream, _) = opened(&mut control_plane).await;
    let answer = ask(&store, "reviews:9080");
    subscription(&mut stream).await;
    stream.say(response(7, vec![nonsense("reviews:9080", "d1")], vec![])).await;
    let refusal = acknowledgement(&mut stream).await;
    assert_eq!((refusal.nonce, refusal.refused.len()), (7, 1));
    assert_eq!(answer.await.unwrap(), Err(Reason::DiscoveryUnavailable));
    assert_eq!((store.status().refused_updates, store.status().unanswered_lookups), (1, 1));
}

#[tokio::test]
async fn after_a_restart_of_the_control_plane_only_differences_travel() {
    let mut control_plane = ControlPlane::start().await;
    let (_identity, store) = start(control_plane.config.clone());
    let (mut stream, _) = opened(&mut control_plane).await;
    let answer = ask(&store, "reviews:9080");
    subscription(&mut stream).await;
    stream.say(response(1, reviews("e1", &["10.0.0.1"]), vec![])).await;
    answer.await.unwrap().unwrap();

    control_plane.kill().await;
    until_connected(&store, false).await;
    // What is held goes on serving; what is asked for meanwhile waits.
    assert_eq!(addresses(&store.lookup("reviews:9080").await.unwrap()), ["10.0.0.1"]);
    let asked_meanwhile = ask(&store, "example.com:80");
    assert!(store.status().last_error.is_some());

    control_plane.restart().await;
    let (mut stream, first) = opened(&mut control_plane).await;
    let held: Vec<_> =
        first.hello.unwrap().held.into_iter().map(|h| (h.name.unwrap().name, h.version)).collect();
    let expected = [("reviews:9080", "d1"), (REVIEWS, "e1")].map(|(n, v)| (n.to_owned(), v.to_owned()));
    assert_eq!(held, expected);
    let asked = first.subscribe.iter().any(|n| n.name == "example.com:80")
        || subscription(&mut stream).await.contains(&"example.com:80".to_owned());
    assert!(asked);
    stream.say(response(1, vec![], vec![name(ResourceType::Destination, "example.com:80")])).await;
    assert_eq!(asked_meanwhile.await.unwrap().unwrap(), ["not in the mesh"]);
    assert_eq!(addresses(&store.cached("reviews:9080").unwrap()), ["10.0.0.1"]);
    assert_eq!(store.status().streams, 2);
}

#[tokio::test]
async fn a_stream_that_the_server_ends_is_opened_again() {
    let mut control_plane = ControlPlane::start().await;
    let (_identity, store) = start(control_plane.config.clone());
    let (stream, _) = opened(&mut control_plane).await;
    stream.responses.send(Err(tonic::Status::unauthenticated("your certificate has expired"))).await.unwrap();
    drop(stream);
    let (_stream, _) = opened(&mut control_plane).await;
    assert!(store.status().last_error.unwrap().contains("your certificate has expired"));
}

#[tokio::test]
async fn a_stream_that_ends_in_good_order_is_opened_again_at_once_with_what_is_held() {
    let mut control_plane = ControlPlane::start().await;
    let (_identity, store) = start(control_plane.config.clone());
    let (mut stream, _) = opened(&mut control_plane).await;
    let answer = ask(&store, "reviews:9080");
    subscription(&mut stream).await;
    stream.say(response(1, reviews("e1", &["10.0.0.1"]), vec![])).await;
    answer.await.unwrap().unwrap();
    acknowledgement(&mut stream).await;
    // The control plane has another replica.
    drop(stream);
    let (_stream, first) = opened(&mut control_plane).await;
    let held: Vec<_> = first.hello.unwrap().held.into_iter().map(|held| held.version).collect();
    assert_eq!(held, ["d1", "e1"]);
    assert_eq!(addresses(&store.cached("reviews:9080").unwrap()), ["10.0.0.1"]);
}

#[tokio::test]
async fn a_pod_that_begins_to_terminate_is_told_so() {
    let mut control_plane = ControlPlane::start().await;
    let (_identity, store) = start(control_plane.config.clone());
    let (stream, first) = opened(&mut control_plane).await;
    assert!(first.subscribe.contains(&name(ResourceType::Inbound, &pod().to_string())));
    for terminating in [false, true] {
        let changed = store.inbound_changed();
        assert!(store.inbound().is_none_or(|inbound| !inbound.terminating));
        stream.say(response(1, vec![inbound(&pod().to_string(), "i", terminating)], vec![])).await;
        changed.await;
        assert_eq!(store.inbound().unwrap().terminating, terminating);
    }
}

#[tokio::test]
async fn the_writer_ends_with_the_store() {
    let mut control_plane = ControlPlane::start().await;
    let (_identity, store) = start(control_plane.config.clone());
    let (mut stream, _) = opened(&mut control_plane).await;
    drop(store);
    while let Ok(Some(_)) = stream.requests.message().await {}
    stream.responses.closed().await;
}

/// Nobody answers at its address.
fn nowhere() -> ControlPlaneConfig {
    ControlPlaneConfig {
        url: "https://127.0.0.1:1".parse().unwrap(),
        ca: "/nonexistent/ca.pem".into(),
        token: "/nonexistent/token".into(),
        pod: pod(),
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_a_lookup_fails_after_five_seconds() {
    let store = Store::start(nowhere(), Arc::new(Identity::new()));
    let begin = Instant::now();
    assert_eq!(store.lookup("reviews:9080").await.unwrap_err(), Reason::DiscoveryUnavailable);
    assert_eq!(begin.elapsed(), LOOKUP_TIMEOUT);
    assert_eq!(store.status().unanswered_lookups, 1);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_no_dns_could_hold_is_refused_at_once() {
    let store = Store::start(nowhere(), Arc::new(Identity::new()));
    let begin = Instant::now();
    let name = "x".repeat(MAX_NAME + 1);
    assert_eq!(store.lookup(&name).await.unwrap_err(), Reason::DiscoveryUnavailable);
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

/// Carries connections to `target` until `frozen`, and then neither carries nor closes them.
async fn relay(target: SocketAddr, frozen: Arc<AtomicBool>) -> SocketAddr {
    async fn carry(
        mut from: impl AsyncReadExt + Unpin,
        mut to: impl AsyncWriteExt + Unpin,
        frozen: Arc<AtomicBool>,
    ) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if frozen.load(Ordering::Relaxed) {
                return std::future::pending().await;
            }
            if to.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(target).await else { continue };
            let (client_read, client_write) = client.into_split();
            let (server_read, server_write) = server.into_split();
            tokio::spawn(carry(client_read, server_write, frozen.clone()));
            tokio::spawn(carry(server_read, client_write, frozen.clone()));
        }
    });
    address
}

/// Takes the ten seconds that the pings need.
#[tokio::test]
async fn a_stream_that_is_dead_but_not_closed_is_noticed() {
    let mut control_plane = ControlPlane::start().await;
    let frozen = Arc::new(AtomicBool::new(false));
    let target = control_plane.config.url.authority().unwrap().as_str().parse().unwrap();
    let address = relay(target, frozen.clone()).await;
    let config = ControlPlaneConfig {
        url: format!("https://{address}").parse().unwrap(),
        ..control_plane.config.clone()
    };
    let (_identity, store) = start(config);
    let (_dead, _) = opened(&mut control_plane).await;
    until_connected(&store, true).await;
    frozen.store(true, Ordering::Relaxed);
    until_connected(&store, false).await;
    frozen.store(false, Ordering::Relaxed);
    let (mut stream, _) = opened(&mut control_plane).await;
    let answer = ask(&store, "example.com:80");
    subscription(&mut stream).await;
    stream.say(response(1, vec![], vec![name(ResourceType::Destination, "example.com:80")])).await;
    assert_eq!(answer.await.unwrap().unwrap(), ["not in the mesh"]);
}

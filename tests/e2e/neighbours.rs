//! On a shared mesh connection nobody's trouble is another's, and memory stays within a written figure.

use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use heddle_tests::{World, eventually, manifest};
use http::Request;
use tokio::{net::TcpStream, task::JoinSet};

use crate::shop::{self, HOST, Shop};

/// Nothing here may take this long, whatever the neighbours do.
const LIMIT: Duration = Duration::from_secs(10);
/// What each sidecar may hold at its worst in these tests, in bytes. A debug build at rest has 40 MB; what 100 stalled
/// streams may hold of theirs is 37.5 MiB (`proxy/src/carrier/settings.rs`) at each of three places: the application's
/// connection, the carrier, the buffers of TLS and sockets.
const MEMORY: u64 = 170_000_000;
/// The same while requests are cancelled faster than a busy machine looks at them: some connections' handlers (1,024
/// each) and unseen streams (4,096 each) on top.
const MEMORY_UNDER_CANCELS: u64 = 400_000_000;
/// What a sidecar may grow by over thirty thousand cancelled requests, in bytes: 1.3 KB left of each would be as much. It
/// grows for many rounds before that, up to sixteen mesh connections and what the allocator keeps for each.
const GROWTH: u64 = 40_000_000;
const ROUNDS: usize = 60;

/// On two connections of the application, and what the two sidecars share between them.
async fn others_are_served(shop: &Shop, count: usize) {
    let mut http1 = shop.web.http1().await.unwrap();
    let mut http2 = shop.web.http2().await.unwrap();
    for n in 0..count {
        for client in [&mut http1, &mut http2] {
            let answer = tokio::time::timeout(LIMIT, client.get(HOST, "/")).await;
            let answer =
                answer.unwrap_or_else(|_| panic!("request {n} was delayed beyond {LIMIT:?}")).unwrap();
            assert_eq!(answer.status, 200, "request {n}: {}: {}", answer.reason(), answer.text());
        }
    }
}

fn memory_is_bounded(shop: &mut Shop) {
    memory_is_below(shop, MEMORY);
}

fn memory_is_below(shop: &mut Shop, limit: u64) {
    for pod in ["shop/web", "shop/reviews-v1"] {
        let peak = shop.world.sidecar(pod).unwrap().peak_memory().unwrap();
        println!("the sidecar of {pod} held {} MB at most", peak / 1_000_000);
        assert!(peak < limit, "the sidecar of {pod} held {peak} bytes");
    }
}

/// An HTTP/2 connection whose windows open only when we say so.
async fn stubborn(shop: &Shop) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(shop.web.outbound()).await.unwrap();
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(65_535)
        .initial_connection_window_size(16 << 20)
        .max_concurrent_reset_streams(10_000)
        .handshake(stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

fn get(path: &str) -> Request<()> {
    Request::builder().uri(format!("http://{HOST}{path}")).body(()).unwrap()
}

/// Asks for an echo and gives what is to be echoed, and the echo, which nobody reads.
async fn echo(sender: SendRequest<Bytes>) -> (SendStream<Bytes>, RecvStream) {
    let mut sender = sender.ready().await.unwrap();
    let request = Request::builder().method("POST").uri(format!("http://{HOST}/echo")).body(()).unwrap();
    let (response, mut body) = sender.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(b"8 bytes."), false).unwrap();
    let answer = tokio::time::timeout(LIMIT, response).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    (body, answer.into_body())
}

#[tokio::test]
async fn readers_that_stall_on_large_bodies_delay_nobody() {
    let mut shop = shop::open(1).await;
    let mut stalled = Vec::new();
    // Half a mesh connection's streams, so that the others share it with them.
    for _ in 0..5 {
        let mut sender = stubborn(&shop).await;
        for _ in 0..10 {
            sender = sender.ready().await.unwrap();
            let (response, _) = sender.send_request(get("/bytes/5000000"), true).unwrap();
            // The head is read, the body never.
            stalled.push((tokio::time::timeout(LIMIT, response).await.unwrap().unwrap(), sender.clone()));
        }
    }
    others_are_served(&shop, 100).await;
    memory_is_bounded(&mut shop);
}

#[tokio::test]
async fn small_frames_to_those_that_do_not_read_harm_nobody() {
    let mut shop = shop::open(1).await;
    let sender = stubborn(&shop).await;
    let mut feeding = JoinSet::new();
    for _ in 0..20 {
        let (mut body, echo) = echo(sender.clone()).await;
        feeding.spawn(async move {
            for _ in 0..5_000 {
                body.reserve_capacity(8);
                while body.capacity() == 0 {
                    std::future::poll_fn(|cx| body.poll_capacity(cx)).await?.ok()?;
                }
                body.send_data(Bytes::from_static(b"8 bytes."), false).ok()?;
                // One by one, lest they be merged on their way.
                tokio::task::yield_now().await;
            }
            Some((body, echo))
        });
    }
    others_are_served(&shop, 30).await;
    let mut held = Vec::new();
    while let Some(fed) = tokio::time::timeout(6 * LIMIT, feeding.join_next()).await.unwrap() {
        held.push(fed.unwrap().expect("the stream that stalls has no fault"));
    }
    others_are_served(&shop, 60).await;
    memory_is_bounded(&mut shop);
}

/// A shop whose `reviews` speaks HTTP/2, so that a thousand requests are no burst of connections that its backlog
/// would have to hold.
async fn open_http2() -> Shop {
    let mut world = World::new().unwrap();
    for name in ["reviews", "reviews-v1"] {
        let service = manifest::service(
            &format!("shop/{name}"),
            9080,
            "kubernetes.io/h2c",
            "app: reviews, version: v1",
        );
        world.save(&format!("{name}.yaml"), &service).unwrap();
    }
    world.start_control_plane().await.unwrap();
    shop::fill(world, 1).await
}

/// Opens and cancels, ten at a time, on a new connection whenever it loses one; how many that were.
async fn rapid_reset(shop: &Shop) -> u32 {
    let mut sender = stubborn(shop).await;
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < Duration::from_secs(2) {
        let mut asked = Vec::new();
        while asked.len() < 10 {
            sender = match sender.ready().await {
                Ok(ready) => ready,
                Err(_) => stubborn(shop).await,
            };
            asked.extend(sender.send_request(get("/sleep/1000"), true));
        }
        count += 10;
        // Long enough for the sidecar to have sent them on.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_that_cancel_without_end_cost_their_neighbours_no_mesh_connection() {
    let mut shop = open_http2().await;
    let mut resetting = JoinSet::new();
    let shared = std::sync::Arc::new(shop);
    for _ in 0..4 {
        let shop = shared.clone();
        resetting.spawn(async move { rapid_reset(&shop).await });
    }
    others_are_served(&shared, 100).await;
    let cancelled: u32 = resetting.join_all().await.into_iter().sum();
    println!("{cancelled} cancelled");
    others_are_served(&shared, 20).await;
    shop = std::sync::Arc::into_inner(shared).unwrap();
    memory_is_below(&mut shop, MEMORY_UNDER_CANCELS);
}

/// A thousand requests on ten connections, all of them cancelled at once.
async fn cancel_a_thousand(shop: &Shop) {
    let before = shop.reviews[0].app().requests();
    let mut tasks = JoinSet::new();
    for _ in 0..10 {
        let shared = shop.web.http2().await.unwrap();
        for _ in 0..100 {
            let mut client = shared.share().unwrap();
            tasks.spawn(async move { client.get(HOST, "/sleep/30000").await });
        }
    }
    eventually("all of them are under way", || async {
        let seen = shop.reviews[0].app().requests() - before;
        anyhow::ensure!(seen >= 1000, "{seen}");
        Ok(())
    })
    .await;
    tasks.abort_all();
    while tasks.join_next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_cancelled_at_once_harm_nobody_and_leave_nothing() {
    let mut shop = open_http2().await;
    let pods = ["shop/web", "shop/reviews-v1"];
    let mut before = [0; 2];
    for round in 0..ROUNDS {
        cancel_a_thousand(&shop).await;
        others_are_served(&shop, 20).await;
        for (pod, before) in pods.into_iter().zip(&mut before) {
            let memory = shop.world.sidecar(pod).unwrap().memory().unwrap();
            if round % 10 == 9 {
                println!("round {round}: the sidecar of {pod} holds {} MB", memory / 1_000_000);
            }
            // The first rounds are what fills pools and slabs.
            if round < ROUNDS / 2 {
                *before = memory.max(*before);
            }
            assert!(memory < *before + GROWTH, "{pod}: {memory} bytes after {before}");
        }
    }
    memory_is_bounded(&mut shop);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_than_streams_fit_are_all_served() {
    let mut shop = open_http2().await;
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let shared = shop.web.http2().await.unwrap();
        for _ in 0..100 {
            let mut client = shared.share().unwrap();
            tasks.spawn(async move { client.get(HOST, "/sleep/1500").await });
        }
    }
    others_are_served(&shop, 20).await;
    while let Some(answer) = tasks.join_next().await {
        let answer = answer.unwrap().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    memory_is_bounded(&mut shop);
}

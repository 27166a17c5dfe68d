//! On a shared mesh connection nobody's trouble is another's.

use std::time::Duration;

use bytes::Bytes;
use heddle_tests::client::Client;
use http::Request;
use tokio::{net::TcpStream, task::JoinSet};

use crate::shop::{self, HOST, Shop};

/// Nothing here may take this long, whatever the neighbours do.
const LIMIT: Duration = Duration::from_secs(10);

async fn others_are_served(shop: &Shop, count: usize) {
    let mut http1 = shop.web.http1().await.unwrap();
    let mut http2 = shop.web.http2().await.unwrap();
    for n in 0..count {
        for client in [&mut http1, &mut http2] {
            let answer = tokio::time::timeout(LIMIT, client.get(HOST, "/")).await;
            let answer =
                answer.unwrap_or_else(|_| panic!("request {n} was delayed beyond {LIMIT:?}")).unwrap();
            assert_eq!(answer.status, 200, "request {n}: {}", answer.reason());
        }
    }
}

/// An HTTP/2 connection whose windows open only when we say so.
async fn stubborn(shop: &Shop) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(shop.web.outbound()).await.unwrap();
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(65_535)
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

#[tokio::test]
async fn a_reader_that_stalls_on_a_large_body_delays_nobody() {
    let shop = shop::open(1).await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let mut sender = stubborn(&shop).await;
        let (response, _) = sender.send_request(get("/bytes/5000000"), true).unwrap();
        // The head is read, the body never.
        stalled.push((tokio::time::timeout(LIMIT, response).await.unwrap().unwrap(), sender));
    }
    others_are_served(&shop, 100).await;
    let resident = shop.web.scrape().await.unwrap().sum("process_resident_memory_bytes", &[]);
    let there = shop.reviews[0].scrape().await.unwrap().sum("process_resident_memory_bytes", &[]);
    println!("20 stalled readers of 5 MB: {:.0} MiB and {:.0} MiB", resident / 1048576.0, there / 1048576.0);
    assert!(resident < 150e6 && there < 150e6, "{resident} {there}");
}

#[tokio::test]
async fn a_thousand_requests_cancelled_at_once_harm_nobody() {
    let shop = shop::open(1).await;
    let mut tasks = JoinSet::new();
    for _ in 0..10 {
        let shared = shop.web.http2().await.unwrap();
        for _ in 0..100 {
            let mut client = shared.share().unwrap();
            tasks.spawn(async move { client.get(HOST, "/sleep/3000").await });
        }
    }
    tokio::time::sleep(Duration::from_millis(800)).await;
    tasks.abort_all();
    others_are_served(&shop, 50).await;
    let again = shop.web.http2().await.unwrap();
    let mut client: Client = again.share().unwrap();
    assert_eq!(client.get(HOST, "/sleep/10").await.unwrap().status, 200);
}

#[tokio::test]
async fn more_requests_than_streams_fit_are_all_served() {
    let shop = shop::open(1).await;
    let mut tasks = JoinSet::new();
    for _ in 0..5 {
        let shared = shop.web.http2().await.unwrap();
        for _ in 0..90 {
            let mut client = shared.share().unwrap();
            tasks.spawn(async move { client.get(HOST, "/sleep/1500").await.map(|answer| answer.status) });
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    others_are_served(&shop, 10).await;
    while let Some(status) = tasks.join_next().await {
        assert_eq!(status.unwrap().unwrap(), 200);
    }
}

#[tokio::test]
async fn many_small_frames_to_one_that_does_not_read_harm_nobody() {
    let shop = shop::open(1).await;
    // The stalled stream echoes small pieces, whose answers nobody takes.
    let mut sender = stubborn(&shop).await;
    let request = Request::builder().method("POST").uri(format!("http://{HOST}/echo")).body(()).unwrap();
    let (response, mut body) = sender.send_request(request, false).unwrap();
    let feeding = tokio::spawn(async move {
        for _ in 0..10_000 {
            body.reserve_capacity(8);
            while body.capacity() == 0 {
                if std::future::poll_fn(|cx| body.poll_capacity(cx)).await.is_none() {
                    return;
                }
            }
            if body.send_data(Bytes::from_static(b"8 bytes."), false).is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    let answer = tokio::time::timeout(LIMIT, response).await.unwrap().unwrap();
    others_are_served(&shop, 60).await;
    assert_eq!(answer.status(), 200);
    feeding.abort();
}

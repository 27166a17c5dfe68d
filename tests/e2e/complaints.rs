//! What users of other meshes complain of does not happen here.

use std::time::Duration;

use heddle_tests::{
    app::TcpApp,
    client::{Raw, body},
    manifest,
};
use http::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::shop::{self, HOST};

/// Keeps connections alive, but closes one that was idle this long, without a word, as servers do.
async fn impatient(address: std::net::SocketAddr, idle: Duration) -> TcpApp {
    TcpApp::start(address, move |mut stream| async move {
        let mut read = Vec::new();
        loop {
            while !read.windows(4).any(|end| end == b"\r\n\r\n") {
                match timeout(idle, stream.read_buf(&mut read)).await {
                    Ok(Ok(1..)) => {}
                    _ => return Ok(()),
                }
            }
            let head = String::from_utf8_lossy(&read).to_ascii_lowercase();
            let end = head.find("\r\n\r\n").unwrap_or(0) + 4;
            let length: usize = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(0);
            while read.len() < end + length {
                if stream.read_buf(&mut read).await? == 0 {
                    return Ok(());
                }
            }
            read.clear();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
        }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn idle_timeout_races_give_no_503() {
    let mut shop = shop::open(1).await;
    shop.world.save("idle.yaml", &manifest::service("shop/idle", 9080, "http", "app: idle")).unwrap();
    let pod = shop.world.pod("shop/idle-v1").start().await.unwrap();
    let app = impatient(pod.port(9080), Duration::from_millis(100)).await;
    shop.web.answers("idle:9080", "/", |answer| answer.status == 200).await;
    let mut client = shop.web.http1().await.unwrap();
    // As near to the application's timeout as can be aimed for.
    for n in 0..40 {
        tokio::time::sleep(Duration::from_millis(94 + n % 12)).await;
        let answer = client.get("idle:9080", "/").await.unwrap();
        assert_eq!(answer.status, 200, "GET {n}: {} {}", answer.reason(), answer.text());
    }
    assert!(app.connections() > 1, "the application never closed one");
    // A request that may not be repeated does not take a connection that was idle for long.
    for n in 0..3 {
        tokio::time::sleep(Duration::from_millis(1150)).await;
        let answer = client.request(Method::POST, "idle:9080", "/", body("x")).await.unwrap();
        assert_eq!(answer.status, 200, "POST {n}: {} {}", answer.reason(), answer.text());
    }
}

#[tokio::test]
async fn running_out_of_descriptors_slows_accepting_and_kills_nothing() {
    let mut shop = shop::open(1).await;
    let narrow = shop.world.pod("shop/narrow").file_limit(96).start().await.unwrap();
    narrow.answers(HOST, "/", |answer| answer.status == 200).await;
    let mut kept = narrow.http1().await.unwrap();
    assert_eq!(kept.get(HOST, "/").await.unwrap().status, 200);
    let mut crowd = Vec::new();
    for _ in 0..200 {
        // The kernel takes them into its queue; the sidecar gets to them when it can.
        if let Ok(Ok(raw)) = timeout(Duration::from_secs(2), Raw::connect(narrow.outbound())).await {
            crowd.push(raw);
        } else {
            break;
        }
    }
    assert!(crowd.len() > 96, "{} connections are no crowd", crowd.len());
    for _ in 0..20 {
        assert_eq!(kept.get(HOST, "/").await.unwrap().status, 200, "who was there is served");
    }
    drop(crowd);
    narrow.answers(HOST, "/", |answer| answer.status == 200).await;
    assert!(shop.world.sidecar("shop/narrow").unwrap().is_running());
    assert!(!kept.is_closed());
}

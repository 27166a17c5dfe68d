//! Everything changes at once under load, and no request fails and no connection is closed.
//!
//! Runs for 15 s; `HEDDLE_SOAK_SECONDS=60` for the full length, `HEDDLE_SOAK_RATE` for another load than 2,000
//! requests a second (a debug build on a small machine may not reach it: the test prints what it reached).

use std::time::{Duration, Instant};

use bytes::Bytes;
use heddle_tests::{
    World,
    client::Raw,
    load::{Load, Plan},
    manifest,
};
use http::{Method, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;

use crate::shop::{self, HOST, Shop};

/// Changes of weights in the full length.
const CHANGES: u32 = 200;

fn setting(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_weights_endpoints_certificates_and_control_plane_change() {
    let length = Duration::from_secs_f64(setting("HEDDLE_SOAK_SECONDS", 15.0));
    let rate = setting("HEDDLE_SOAK_RATE", 2000.0);
    let mut world = World::new().unwrap();
    world.certificates_live(Duration::from_secs(10));
    shop::declare(&world, 2);
    world.save("grpc.yaml", &manifest::service("shop/grpc", 9081, "grpc", "app: grpc")).unwrap();
    world.start_control_plane().await.unwrap();
    let grpc = world.pod("shop/grpc-v1").ports(&[9081]).start().await.unwrap();
    let _grpc_app = heddle_tests::app::HttpApp::start(grpc.port(9081), "grpc").await.unwrap();
    let mut shop = shop::fill(world, 2).await;
    shop.split(&[50, 50]);

    let first_expiry = expiry(&shop).await;
    let mut call = LongCall::open(&shop).await;
    let mut socket = LongSocket::open(&shop).await;
    let load = Load::start(&Plan {
        through: shop.web.outbound(),
        host: HOST.to_owned(),
        path: "/".to_owned(),
        http1: 12,
        http2: 4,
        rate,
        post_every: 0,
    });

    let began = Instant::now();
    // A little faster than needed, since endpoints take their time to start.
    let step = Duration::from_secs(60) / (CHANGES + CHANGES / 2);
    let enough = (f64::from(CHANGES) * length.as_secs_f64() / 60.0) as i32;
    let mut changes = 0;
    let mut extra = 0;
    let mut killed = false;
    while began.elapsed() < length || changes < enough {
        tokio::time::sleep(step).await;
        changes += 1;
        let v1 = changes * 37 % 101;
        shop.split(&[v1, 100 - v1]);
        call.exchange().await;
        socket.exchange().await;
        // Every 3 s an endpoint comes, and goes with draining 1.5 s later.
        match changes % 10 {
            3 => extra = come(&mut shop, extra).await,
            8 if extra > 0 => go(&mut shop, extra),
            _ => {}
        }
        if !killed && began.elapsed() > length / 3 {
            shop.world.kill_control_plane();
            killed = true;
        } else if killed && shop.world.control_plane().is_err() && began.elapsed() > length / 2 {
            shop.world.start_control_plane().await.unwrap();
        }
    }
    let tally = load.finish().await;
    let reached = tally.requests as f64 / began.elapsed().as_secs_f64();
    println!(
        "{} requests in {:?} ({reached:.0}/s of {rate:.0}), {changes} changes, p50 {:?}, p99 {:?}, by version {:?}",
        tally.requests,
        began.elapsed(),
        tally.latencies.percentile(0.5),
        tally.latencies.percentile(0.99),
        tally.by_version
    );
    assert_eq!(tally.failed, 0, "{:#?}", tally.failures);
    assert_eq!(tally.closed, 0, "connections closed by the sidecar");
    call.exchange().await;
    socket.exchange().await;
    assert!(expiry(&shop).await > first_expiry, "no certificate was renewed");
}

/// When web's certificate ends, in seconds since the Unix epoch.
async fn expiry(shop: &Shop) -> f64 {
    shop.web.scrape().await.unwrap().sum("heddle_certificate_expiry_timestamp_seconds", &[])
}

/// One endpoint more for `reviews`, beside v1 and v2.
async fn come(shop: &mut Shop, extra: usize) -> usize {
    let n = extra + 1;
    // Without the control plane nobody can join, and nobody would hear of it.
    if shop.world.control_plane().is_err() {
        return extra;
    }
    let pod = shop.world.pod(&format!("shop/reviews-x{n}")).answering("v1").label("version", "v1");
    shop.reviews.push(pod.start().await.unwrap());
    n
}

/// The newest endpoint is told to terminate. Its processes stay: the kubelet stops them only later.
fn go(shop: &mut Shop, extra: usize) {
    let Some(pod) = shop.reviews.iter().find(|pod| pod.name == format!("shop/reviews-x{extra}")) else {
        return;
    };
    let mut manifest = pod.manifest.clone();
    manifest.terminating = true;
    shop.world.save(&manifest.file(), &manifest.yaml()).unwrap();
}

/// A gRPC stream that stays open.
struct LongCall {
    out: mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>,
    answers: Incoming,
    sent: u32,
}

impl LongCall {
    async fn open(shop: &Shop) -> Self {
        let (out, rx) = mpsc::channel(4);
        shop.web.answers("grpc:9081", "/", |answer| answer.status == 200).await;
        let mut client = shop.web.http2().await.unwrap();
        let request = Request::builder()
            .method(Method::POST)
            .uri("http://grpc:9081/echo")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(rx)).boxed())
            .unwrap();
        let response = client.open(request).await.unwrap();
        assert_eq!(response.status(), 200);
        Self { out, answers: response.into_body(), sent: 0 }
    }

    async fn exchange(&mut self) {
        self.sent += 1;
        let message = Bytes::from(format!("{}", self.sent));
        self.out.send(Ok(Frame::data(message.clone()))).await.expect("the call is open");
        let frame = tokio::time::timeout(Duration::from_secs(10), self.answers.frame()).await;
        let frame = frame.expect("an answer in time").expect("the call goes on").expect("no error");
        assert_eq!(frame.into_data().expect("a message"), message);
    }
}

/// An upgraded connection that stays open.
struct LongSocket(Raw);

impl LongSocket {
    async fn open(shop: &Shop) -> Self {
        let mut raw = Raw::connect(shop.web.outbound()).await.unwrap();
        raw.send(format!(
            "GET /upgrade HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        ))
        .await
        .unwrap();
        let head = raw.read_until("\r\n\r\n").await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        Self(raw)
    }

    async fn exchange(&mut self) {
        self.0.send("ping").await.unwrap();
        assert_eq!(self.0.read_exact(4).await.unwrap(), b"ping");
    }
}

#[tokio::test]
async fn a_removed_endpoint_finishes_its_requests() {
    let shop = shop::open(2).await;
    shop.split_in_force(&[100, 0]).await;
    let mut client = shop.web.http1().await.unwrap();
    let slow = tokio::spawn(async move { client.get(HOST, "/sleep/2500").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    shop.world.remove(&shop.reviews[0].manifest.file()).unwrap();
    shop.split_in_force(&[0, 100]).await;
    let answer = slow.await.unwrap().unwrap();
    assert_eq!((answer.status, answer.answered_by()), (200, "v1"));
}

#[tokio::test]
async fn a_sidecar_that_is_told_to_end_finishes_what_it_has() {
    let mut shop = shop::open(1).await;
    let mut client = shop.web.http1().await.unwrap();
    let slow = tokio::spawn(async move { client.get(HOST, "/sleep/1500").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    shop.world.sidecar("shop/web").unwrap().terminate().unwrap();
    let answer = slow.await.unwrap().unwrap();
    assert_eq!(answer.status, 200);
    let code = shop.world.sidecar("shop/web").unwrap().wait(Duration::from_secs(15)).await.unwrap();
    assert_eq!(code, 0);
}

/// HTTP is over on them, but the connections are not.
#[tokio::test]
async fn a_sidecar_that_is_told_to_end_waits_for_upgrades_and_tunnels() {
    let mut shop = shop::open(1).await;
    let mut upgraded = Raw::connect(shop.web.outbound()).await.unwrap();
    let ask =
        format!("GET /upgrade HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    upgraded.send(ask).await.unwrap();
    assert!(upgraded.read_until("\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 101"));
    let mut tunnel = Raw::connect(shop.web.outbound()).await.unwrap();
    tunnel.send(format!("CONNECT {HOST} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await.unwrap();
    assert!(tunnel.read_until("\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 200"));
    tunnel.send(format!("GET /sleep/1500 HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await.unwrap();
    heddle_tests::eventually("both are counted, each once", || async {
        let labels = [("direction", "outbound"), ("tls", "false")];
        let open = shop.web.scrape().await?.sum("heddle_connections_open", &labels);
        anyhow::ensure!((open - 2.0).abs() < 0.1, "{open} are open");
        Ok(())
    })
    .await;

    shop.world.sidecar("shop/web").unwrap().terminate().unwrap();
    assert!(tunnel.read_until("\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 200"));
    upgraded.send("late").await.unwrap();
    assert_eq!(upgraded.read_exact(4).await.unwrap(), b"late");
    drop((upgraded, tunnel));
    let code = shop.world.sidecar("shop/web").unwrap().wait(Duration::from_secs(4)).await.unwrap();
    assert_eq!(code, 0);
}

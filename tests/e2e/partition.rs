//! The network fails in parts, without a word: between a sidecar and the control plane, between two pods, and with a pod
//! that dies at once. What is left goes on, says what is missing, and mends by itself.

use std::{net::SocketAddr, time::Duration};

use anyhow::ensure;
use heddle_api::ports;
use heddle_tests::{
    app::HttpApp,
    client::{Answer, Client},
    eventually,
    load::{Load, Plan},
    manifest,
    netns::{Family, NetPod, Wire, missing},
    skip,
};

/// `web` calls `reviews-1`, `reviews-2`, …
struct Mesh {
    wire: Wire,
    service: SocketAddr,
    reviews: Vec<(NetPod, HttpApp)>,
    web: NetPod,
}

impl Mesh {
    async fn new(versions: u8) -> Self {
        let wire = Wire::new(Family::V4).await.unwrap();
        let service = SocketAddr::new(wire.service("reviews", 10, 9080, "http", "reviews").unwrap(), 9080);
        let mut reviews = Vec::new();
        for n in 1..=versions {
            reviews.push(review(&wire, n).await);
        }
        let web = wire.pod("web", 2, &[], &[]).await.unwrap();
        let mesh = Self { wire, service, reviews, web };
        eventually("the first answer", || async {
            let answer = mesh.get("/").await?;
            ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
            Ok(())
        })
        .await;
        mesh
    }

    /// On a new connection of the application's.
    async fn get(&self, path: &'static str) -> anyhow::Result<Answer> {
        let service = self.service;
        self.web
            .inside
            .run(async move { Client::http1(service).await?.get("reviews:9080", path).await })
            .await
    }

    async fn connected(&self, wanted: bool) {
        eventually(&format!("connected is {wanted}"), || async {
            let scrape = self.web.scrape(&self.wire).await?;
            let connected = scrape.sum("heddle_discovery_connected", &[]) > 0.0;
            ensure!(connected == wanted, "not yet");
            Ok(())
        })
        .await;
    }

    async fn answered_by(&self, version: &str) {
        eventually(&format!("{version} answers"), || async {
            let answer = self.get("/").await?;
            ensure!(answer.answered_by() == version, "{} {}", answer.status, answer.answered_by());
            Ok(())
        })
        .await;
    }
}

async fn review(wire: &Wire, n: u8) -> (NetPod, HttpApp) {
    let pod = wire.pod(&format!("reviews-{n}"), 20 + n, &[9080], &[]).await.unwrap();
    let address = pod.app();
    let app = pod.inside.run(async move { HttpApp::start(address, &format!("v{n}")).await }).await.unwrap();
    (pod, app)
}

#[tokio::test]
async fn a_sidecar_without_its_control_plane_serves_what_it_knows_and_catches_up_when_the_network_heals() {
    if let Some(what) = missing() {
        skip!(what);
    }
    let mut mesh = Mesh::new(1).await;
    let control_plane = mesh.wire.family().host(1);
    mesh.web.part(control_plane, Some(ports::DISCOVERY)).unwrap();
    // Packets vanish, nothing is closed: the heartbeat finds it.
    mesh.connected(false).await;
    let second = review(&mesh.wire, 2).await;
    for _ in 0..20 {
        let answer = mesh.get("/").await.unwrap();
        assert_eq!((answer.status, answer.answered_by()), (200, "v1"), "{}", answer.text());
    }
    assert!(mesh.web.sidecar().is_running());
    let scrape = mesh.web.scrape(&mesh.wire).await.unwrap();
    assert!(scrape.text.contains("heddle_discovery_connected 0"), "{}", scrape.text);

    mesh.web.heal().unwrap();
    mesh.connected(true).await;
    mesh.reviews.push(second);
    mesh.answered_by("v2").await;
    let log = mesh.web.sidecar().log();
    assert_eq!(
        log.matches("\"listening\"").count().max(log.matches(" listening").count()),
        1,
        "no restart: {log}"
    );
}

#[tokio::test]
async fn a_pod_that_cannot_be_reached_is_left_out_and_comes_back_when_the_network_heals() {
    if let Some(what) = missing() {
        skip!(what);
    }
    let mesh = Mesh::new(2).await;
    let policy = "  targetRefs: [{group: \"\", kind: Service, name: reviews}]
  loadBalancing: {algorithm: RoundRobin}
  retries: {attempts: 2, on: [ConnectFailure, Reset, 5xx], perTryTimeout: 500ms}
  timeouts: {connect: 500ms, request: 5s}
  outlierEjection: {consecutiveFailures: 3, baseEjection: 1s, interval: 1s}
";
    let policy = manifest::policy("TrafficPolicy", "shop/reviews", policy);
    mesh.wire.world.save("policy.yaml", &policy).unwrap();
    for version in ["v1", "v2"] {
        mesh.answered_by(version).await;
    }
    let parted = mesh.reviews[0].0.ip;
    // A connection to it is open, and loses its packets from now on.
    mesh.web.part(parted, None).unwrap();
    eventually("what cannot be reached is ejected", || async {
        let answer = mesh.get("/").await?;
        assert_eq!(answer.status, 200, "tried elsewhere: {} {}", answer.reason(), answer.text());
        let scrape = mesh.web.scrape(&mesh.wire).await?;
        ensure!(scrape.sum("heddle_ejections_total", &[]) >= 1.0, "not yet");
        Ok(())
    })
    .await;
    for _ in 0..20 {
        let answer = mesh.get("/").await.unwrap();
        assert_eq!((answer.status, answer.answered_by()), (200, "v2"));
    }

    // With nobody left the caller hears why.
    mesh.web.heal().unwrap();
    mesh.web.part(mesh.wire.family().host(21), None).unwrap();
    mesh.web
        .inside
        .nft(&format!(
            "add rule inet parted in ip saddr {ip} drop; add rule inet parted out ip daddr {ip} drop",
            ip = mesh.reviews[1].0.ip
        ))
        .unwrap();
    let answer = mesh.get("/").await.unwrap();
    assert!([503, 504].contains(&answer.status), "{} {}", answer.status, answer.text());
    assert!(
        ["ConnectTimeout", "ConnectFailed", "RequestTimeout"].contains(&answer.reason()),
        "{}",
        answer.text()
    );
    assert!(
        answer.text().contains("reviews:9080 at 10.77.0.2"),
        "who could not be reached: {}",
        answer.text()
    );

    mesh.web.heal().unwrap();
    for version in ["v1", "v2"] {
        mesh.answered_by(version).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_dies_under_load_costs_no_request_that_may_be_repeated() {
    if let Some(what) = missing() {
        skip!(what);
    }
    let mut mesh = Mesh::new(3).await;
    let plan = Plan {
        through: mesh.service,
        host: "reviews:9080".to_owned(),
        path: "/".to_owned(),
        http1: 8,
        http2: 1,
        rate: 300.0,
        post_every: 0,
    };
    let load = mesh.web.inside.run(async move { Load::start(&plan) }).await;
    eventually("every pod has its share", || async {
        let asked: Vec<_> = mesh.reviews.iter().map(|(_, app)| app.requests()).collect();
        ensure!(asked.iter().all(|asked| *asked > 20), "{asked:?}");
        Ok(())
    })
    .await;
    // Its manifest stays: nobody says that it has gone.
    let (mut dead, app) = mesh.reviews.remove(0);
    app.stop();
    dead.sidecar().kill();
    dead.unplug(&mesh.wire).unwrap();
    let others: u64 = mesh.reviews.iter().map(|(_, app)| app.requests()).sum();
    eventually("the others have served all since", || async {
        let now: u64 = mesh.reviews.iter().map(|(_, app)| app.requests()).sum();
        ensure!(now > others + 500, "{now}");
        Ok(())
    })
    .await;
    // Longer than the kernel looks for an address that nobody has.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let tally = load.finish().await;
    println!(
        "{} sent, {} answered; p99 {:?}, longest {:?}",
        tally.sent,
        tally.requests - tally.failed,
        tally.latencies.percentile(0.99),
        tally.latencies.percentile(1.0)
    );
    assert_eq!((tally.failed, tally.sent), (0, tally.requests), "{:#?}", tally.failures);
}

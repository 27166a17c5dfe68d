//! A new pod's first requests find what they need: it is connected to what its siblings talk to before it is ready, and its
//! application is connected to since its readiness probe succeeded.

use std::time::{Duration, Instant};

use heddle_api::ports;
use heddle_tests::{Pod, client::Client, eventually, manifest};

use crate::shop::{self, HOST};

/// Connections that a pod's sidecar has from other sidecars.
async fn from_the_mesh(pod: &Pod) -> f64 {
    let scrape = pod.scrape().await.unwrap();
    scrape.sum("heddle_connections_open", &[("direction", "inbound"), ("tls", "true")])
}

#[tokio::test]
async fn the_second_pod_of_a_workload_is_connected_before_its_first_request() {
    let mut shop = shop::open(1).await;
    let before = from_the_mesh(&shop.reviews[0]).await;
    assert!(before > 0.0, "the first pod's connection counts");

    let late = shop.world.pod("shop/web-late").label("version", "v1").start().await.unwrap();
    let names = late.config().await.unwrap()["destinations"].to_string();
    assert!(names.contains(HOST), "known before anything was asked for: {names}");
    assert!(from_the_mesh(&shop.reviews[0]).await > before, "connected when it says that it is ready");
    let mut client = late.http1().await.unwrap();
    assert_eq!(client.get(HOST, "/").await.unwrap().answered_by(), "v1");
}

#[tokio::test]
async fn a_new_pods_sidecar_asks_ahead_where_http_is_declared_and_the_application_hears_nothing() {
    let mut shop = shop::open_with(1, &["--log-level", "debug"]).await;
    let service = manifest::service("shop/undeclared", 9080, "", "app: reviews");
    shop.world.save("undeclared.yaml", &service).unwrap();
    shop.web.answers("undeclared:9080", "/", |answer| answer.status == 200).await;
    let before = shop.reviews[0].app().requests();
    let late = shop.world.pod("shop/web-late").label("version", "v1").start().await.unwrap();
    let names = late.config().await.unwrap()["destinations"].to_string();
    assert!(names.contains("undeclared:9080") && names.contains(HOST), "{names}");

    let log = shop.world.sidecar("shop/reviews-v1").unwrap().log();
    let asked = log.lines().filter(|line| line.contains("asks ahead of its application"));
    let asked: Vec<_> = asked.map(|line| line.contains("undeclared")).collect();
    assert!(!asked.is_empty() && !asked.contains(&true), "{log}");
    assert_eq!(shop.reviews[0].app().requests(), before);
}

#[tokio::test]
async fn a_sidecar_is_ready_though_what_its_siblings_talk_to_cannot_be_reached() {
    let mut shop = shop::open(1).await;
    shop.world.kill_sidecar("shop/reviews-v1");
    let late = shop.world.pod("shop/web-late").label("version", "v1").start().await.unwrap();
    eventually("a request is answered with why", || async {
        let status = late.http1().await?.get(HOST, "/").await?.status;
        anyhow::ensure!(status == 503, "{status}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_pods_first_request_takes_the_connection_that_its_readiness_probe_left() {
    const PROBES: &str =
        r#"{"reviews": {"readiness": {"httpGet": {"port": 9080, "path": "/ready"}, "timeoutSeconds": 2}}}"#;
    // The sidecar keeps an idle connection to an application for four seconds.
    const KEPT: Duration = Duration::from_secs(3);
    let mut shop = shop::open(1).await;
    for late in ["late-a", "late-b", "late-c", "late-d"] {
        let host = format!("{late}:9080");
        let service = manifest::service(&format!("shop/{late}"), 9080, "http", &format!("version: {late}"));
        shop.world.save(&format!("{late}.yaml"), &service).unwrap();
        let pod = shop.world.pod(&format!("shop/reviews-{late}")).label("version", late).answering(late);
        let pod = pod.sidecar_args(["--probes", PROBES]).start().await.unwrap();

        let kubelet = pod.port(ports::METRICS);
        let mut probe = Client::http1(kubelet).await.unwrap();
        let asked = Instant::now();
        let answer = probe.get(&kubelet.to_string(), "/probe/reviews/readiness").await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = shop.web.http1().await.unwrap().get(&host, "/").await.unwrap();
        assert_eq!(answer.answered_by(), late);
        // A machine that was elsewhere meanwhile says nothing.
        if asked.elapsed() < KEPT {
            assert_eq!((pod.app().requests(), pod.app().connections()), (2, 1));
            return;
        }
    }
    panic!("no request within {KEPT:?} of a probe");
}

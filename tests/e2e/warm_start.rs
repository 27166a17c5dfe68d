//! A new pod of a workload is connected to what its siblings talk to before it is ready.

use heddle_tests::{Pod, eventually};

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

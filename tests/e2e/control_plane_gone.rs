//! Degraded, not down: the control plane may be late, go away, hang, and come back.

use heddle_tests::{World, eventually, metrics::Scrape};

use crate::shop::{self, HOST};

#[tokio::test]
async fn a_sidecar_that_starts_first_waits_says_so_and_serves_when_the_control_plane_comes() {
    let mut world = World::new().unwrap();
    shop::declare(&world, 1);
    let reviews = world.pod("shop/reviews-v1").answering("v1").not_waiting().start().await.unwrap();
    let web = world.pod("shop/web").not_waiting().start().await.unwrap();
    let sidecar = world.sidecar("shop/web").unwrap();
    eventually("the sidecar says what it waits for", || async {
        let log = sidecar.log();
        anyhow::ensure!(log.contains("waiting for the control plane"), "its log: {log}");
        Ok(())
    })
    .await;
    assert!(!web.is_ready().await, "not ready without a certificate");
    assert!(world.sidecar("shop/web").unwrap().is_running());

    world.start_control_plane().await.unwrap();
    reviews.wait_until_ready().await;
    web.wait_until_ready().await;
    web.answers(HOST, "/", |answer| answer.status == 200).await;
}

#[tokio::test]
async fn traffic_goes_on_without_the_control_plane_and_only_differences_travel_when_it_is_back() {
    let mut shop = shop::open(2).await;
    shop.split_in_force(&[100, 0]).await;
    let mut client = shop.web.http1().await.unwrap();
    client.get(HOST, "/").await.unwrap();

    shop.world.kill_control_plane();
    eventually("the sidecar notices", || async {
        let connected = shop.web.scrape().await?.sum("heddle_discovery_connected", &[]);
        anyhow::ensure!(connected == 0.0, "still connected");
        Ok(())
    })
    .await;
    let before = shop.web.scrape().await.unwrap();
    for _ in 0..50 {
        assert_eq!(client.get(HOST, "/").await.unwrap().answered_by(), "v1");
    }
    let mut fresh = shop.web.http2().await.unwrap();
    assert_eq!(fresh.get(HOST, "/").await.unwrap().status, 200, "new connections too");

    shop.world.start_control_plane().await.unwrap();
    eventually("the sidecar is connected again", || async {
        let connected = shop.web.scrape().await?.sum("heddle_discovery_connected", &[]);
        anyhow::ensure!(connected == 1.0, "not yet");
        Ok(())
    })
    .await;
    // The hello is answered before the stream counts as up, or a moment later: give a wrong update time to arrive.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let updates = |scrape: &Scrape| scrape.sum("heddle_discovery_updates_total", &[]);
    let after = shop.web.scrape().await.unwrap();
    assert!(updates(&before) > 0.0, "{}", before.text);
    assert_eq!(updates(&before), updates(&after), "nothing changed, and something was sent again");

    shop.split_in_force(&[0, 100]).await;
    assert!(!client.is_closed());
    assert_eq!(client.get(HOST, "/").await.unwrap().answered_by(), "v2");
}

#[tokio::test]
async fn what_was_never_asked_for_is_refused_while_nobody_can_say_where_it_leads() {
    let mut shop = shop::open(2).await;
    shop.world.kill_control_plane();
    let mut client = shop.web.http1().await.unwrap();
    let before = shop.reviews[1].app().requests();
    let answer = client.get("reviews-v2:9080", "/").await.unwrap();
    assert_eq!((answer.status, answer.reason()), (503, "DiscoveryUnavailable"));
    // By address neither: never in the clear to what may be in the mesh.
    let answer = client.get(&format!("{}:9080", shop.reviews[1].ip), "/").await.unwrap();
    assert_eq!((answer.status, answer.reason()), (503, "DiscoveryUnavailable"));
    assert_eq!(shop.reviews[1].app().requests(), before);
    shop.world.start_control_plane().await.unwrap();
    shop.web.answers("reviews-v2:9080", "/", |answer| answer.status == 200).await;
}

#[tokio::test]
async fn a_stream_that_is_dead_but_not_closed_is_noticed() {
    let mut shop = shop::open(1).await;
    shop.world.control_plane().unwrap().freeze().unwrap();
    // A frozen process keeps its sockets: the kernel acknowledges, nobody answers.
    eventually("the heartbeat finds the stream dead", || async {
        let connected = shop.web.scrape().await?.sum("heddle_discovery_connected", &[]);
        anyhow::ensure!(connected == 0.0, "still connected");
        Ok(())
    })
    .await;
    assert_eq!(shop.web.http1().await.unwrap().get(HOST, "/").await.unwrap().status, 200);
    shop.world.control_plane().unwrap().thaw().unwrap();
    eventually("the sidecar is connected again", || async {
        let connected = shop.web.scrape().await?.sum("heddle_discovery_connected", &[]);
        anyhow::ensure!(connected == 1.0, "not yet");
        Ok(())
    })
    .await;
}

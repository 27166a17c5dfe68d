//! Weights are weights, and a saved one holds from the next request on, on connections that are open.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use heddle_tests::{client::Client, wait::PATIENCE};
use tokio::task::JoinSet;

use crate::shop::{self, HOST, Shop};

#[tokio::test]
async fn ninety_to_ten_over_ten_thousand_requests_lands_within_a_point() {
    const REQUESTS: usize = 10_000;
    const LANES: usize = 25;
    let shop = shop::open(2).await;
    shop.split_in_force(&[90, 10]).await;

    let client = shop.web.http2().await.unwrap();
    let mut lanes = JoinSet::new();
    for _ in 0..LANES {
        let mut client = client.share().unwrap();
        lanes.spawn(async move {
            let mut by_version = BTreeMap::<String, usize>::new();
            for _ in 0..REQUESTS / LANES {
                let answer = client.get(HOST, "/").await.unwrap();
                assert_eq!(answer.status, 200, "{} {}", answer.reason(), answer.text());
                *by_version.entry(answer.answered_by().to_owned()).or_default() += 1;
            }
            by_version
        });
    }
    let mut by_version = BTreeMap::<String, usize>::new();
    while let Some(lane) = lanes.join_next().await {
        for (version, count) in lane.unwrap() {
            *by_version.entry(version).or_default() += count;
        }
    }
    assert_eq!(by_version.values().sum::<usize>(), REQUESTS);
    let share = by_version["v1"] as f64 * 100.0 / REQUESTS as f64;
    println!("90/10 over {REQUESTS}: {by_version:?}");
    assert!((89.0..=91.0).contains(&share), "{by_version:?}");
}

#[tokio::test]
async fn a_saved_weight_holds_from_the_next_request_on_an_open_connection() {
    let shop = shop::open(2).await;
    shop.split_in_force(&[100, 0]).await;
    let mut http1 = shop.web.http1().await.unwrap();
    let mut http2 = shop.web.http2().await.unwrap();
    for client in [&mut http1, &mut http2] {
        until_answered_by(client, "v1").await;
    }
    for turn in 0..4 {
        let (weights, version) = if turn % 2 == 0 { ([0, 100], "v2") } else { ([100, 0], "v1") };
        let saved = Instant::now();
        shop.split(&weights);
        until_answered_by(&mut http1, version).await;
        println!("from file save to effect: {:?}", saved.elapsed());
        // The same snapshot serves every connection.
        assert_eq!(http2.get(HOST, "/").await.unwrap().answered_by(), version);
    }
    assert!(!http1.is_closed() && !http2.is_closed(), "a new config closes no connection");
}

#[tokio::test]
async fn a_backend_that_does_not_exist_gets_its_share_as_500_and_the_rest_is_served() {
    let shop = shop::open(1).await;
    shop.world
        .save(
            "route.yaml",
            &heddle_tests::manifest::split_route(
                "shop/split",
                "reviews",
                9080,
                &[("reviews-v1", 1), ("no-such-service", 1)],
            ),
        )
        .unwrap();
    shop.web.answers(HOST, "/", |answer| answer.status == 500).await;
    let mut client = shop.web.http1().await.unwrap();
    let mut statuses = BTreeMap::<(u16, String), usize>::new();
    for _ in 0..200 {
        let answer = client.get(HOST, "/").await.unwrap();
        *statuses.entry((answer.status, answer.reason().to_owned())).or_default() += 1;
    }
    let served = statuses.get(&(200, String::new())).copied().unwrap_or(0);
    let refused = statuses.get(&(500, "NoBackend".to_owned())).copied().unwrap_or(0);
    assert_eq!(served + refused, 200, "{statuses:?}");
    assert!((50..150).contains(&served), "{statuses:?}");
}

#[tokio::test]
async fn all_weights_zero_is_500() {
    let shop: Shop = shop::open(2).await;
    shop.split(&[0, 0]);
    shop.web.answers(HOST, "/", |answer| answer.status == 500).await;
}

async fn until_answered_by(client: &mut Client, version: &str) {
    let began = Instant::now();
    loop {
        let answer = client.get(HOST, "/").await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.reason());
        if answer.answered_by() == version {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{version} never answered");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

//! A bad endpoint is left out, what it failed is tried elsewhere, and retries never become a storm.

use std::time::Duration;

use heddle_tests::{
    app::Mode,
    client::{Raw, body},
    eventually,
    load::{Load, Plan},
};
use http::Method;
use tokio::task::JoinSet;

use crate::shop::{self, HOST};

#[tokio::test]
async fn callers_see_none_of_an_endpoint_that_answers_503_and_it_returns_when_healed() {
    let shop = shop::open(3).await;
    shop.traffic_policy("  outlierEjection: {consecutiveFailures: 5, baseEjection: 4s, interval: 1s}");
    let bad = shop.reviews[2].app();
    let mut client = shop.web.http1().await.unwrap();
    eventually("every version answers", || async {
        shop.web.http1().await?.get(HOST, "/").await?;
        anyhow::ensure!(shop.reviews.iter().all(|pod| pod.app().requests() > 0), "not yet");
        Ok(())
    })
    .await;

    bad.behave(Mode::Status(503));
    let before = bad.requests();
    for n in 0..300 {
        let answer = client.get(HOST, "/").await.unwrap();
        assert_eq!(answer.status, 200, "request {n}: {} {}", answer.reason(), answer.text());
    }
    eventually("the endpoint is ejected", || async {
        shop.web.http1().await?.get(HOST, "/").await?;
        let out = shop.web.scrape().await?.sum("heddle_ejections_total", &[]);
        anyhow::ensure!(out >= 1.0, "no ejection counted");
        Ok(())
    })
    .await;
    let failures = bad.requests() - before;
    println!("the bad endpoint was asked {failures} times in 300 requests");
    assert!(failures <= 10, "out within 10 failures, but it was asked {failures} times");

    bad.behave(Mode::Healthy);
    let healed = bad.requests();
    eventually("the healed endpoint answers again", || async {
        shop.web.http1().await?.get(HOST, "/").await?;
        anyhow::ensure!(bad.requests() > healed + 3, "asked {} times since", bad.requests() - healed);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn upgrades_see_none_of_an_endpoint_that_refuses_connections() {
    let shop = shop::open(3).await;
    shop.reviews[0].app().stop();
    for n in 0..30 {
        let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
        let ask =
            format!("GET /upgrade HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
        client.send(ask).await.unwrap();
        let head = client.read_until("\r\n\r\n").await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101"), "upgrade {n}: {head}");
    }
}

#[tokio::test]
async fn callers_see_none_of_an_endpoint_that_refuses_connections_whatever_the_method() {
    let shop = shop::open(3).await;
    shop.reviews[0].app().stop();
    let mut client = shop.web.http1().await.unwrap();
    for n in 0..100 {
        let method = if n % 2 == 0 { Method::GET } else { Method::POST };
        let answer = client.request(method.clone(), HOST, "/echo", body("order")).await.unwrap();
        assert_eq!(answer.status, 200, "{method} {n}: {} {}", answer.reason(), answer.text());
        assert_eq!(answer.text(), "order");
    }
}

#[tokio::test]
async fn callers_see_none_of_a_pod_that_is_gone_altogether() {
    let mut shop = shop::open(3).await;
    shop.reviews[1].app().stop();
    shop.world.kill_sidecar("shop/reviews-v2");
    let mut client = shop.web.http1().await.unwrap();
    for n in 0..100 {
        let answer = client.get(HOST, "/").await.unwrap();
        assert_eq!(answer.status, 200, "request {n}: {} {}", answer.reason(), answer.text());
    }
}

#[tokio::test]
async fn when_all_endpoints_fail_retries_add_at_most_their_budget() {
    let shop = shop::open(2).await;
    for pod in &shop.reviews {
        pod.app().behave(Mode::Status(503));
    }
    let before: u64 = shop.reviews.iter().map(|pod| pod.app().requests()).sum();
    let load = Load::start(&Plan {
        through: shop.web.outbound(),
        host: HOST.to_owned(),
        path: "/".to_owned(),
        http1: 0,
        http2: 8,
        rate: 700.0,
        post_every: 0,
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    let tally = load.finish().await;
    let tried: u64 = shop.reviews.iter().map(|pod| pod.app().requests()).sum::<u64>() - before;
    let more = tried as f64 / tally.requests as f64 - 1.0;
    println!("{} requests became {tried} tries: {:.1} % more", tally.requests, more * 100.0);
    assert_eq!(tally.failed, tally.requests, "every endpoint fails");
    assert_eq!(tally.closed, 0, "a failed request costs no connection");
    assert!(tally.requests > 500, "too little load to judge by: {}", tally.requests);
    // Ten a second are granted in any case, also in the second before the load began.
    assert!(tried as f64 <= tally.requests as f64 * 1.2 + 10.0, "{} became {tried}", tally.requests);
    assert!(tried > tally.requests, "some retries are expected");
}

#[tokio::test]
async fn ejection_never_empties_a_backend() {
    let shop = shop::open(2).await;
    shop.traffic_policy(
        "  outlierEjection: {consecutiveFailures: 1, baseEjection: 60s, maxEjectedPercent: 100}\n  retries: {attempts: 0}",
    );
    for pod in &shop.reviews {
        pod.app().behave(Mode::Status(500));
    }
    let mut client = shop.web.http1().await.unwrap();
    for _ in 0..20 {
        // The application's own answer each time, never the sidecar's NoEndpoints.
        let answer = client.get(HOST, "/").await.unwrap();
        assert_eq!((answer.status, answer.reason()), (500, ""));
    }
    for pod in &shop.reviews {
        pod.app().behave(Mode::Healthy);
    }
    let answer = client.get(HOST, "/").await.unwrap();
    assert_eq!(answer.status, 200, "all are out, so all are used");
}

#[tokio::test]
async fn a_post_that_may_have_been_received_is_not_repeated() {
    let shop = shop::open(2).await;
    let count = || shop.reviews.iter().map(|pod| pod.app().requests()).sum::<u64>();
    let mut client = shop.web.http1().await.unwrap();
    for mode in [Mode::Close, Mode::Status(503)] {
        for pod in &shop.reviews {
            pod.app().behave(mode);
        }
        let before = count();
        let answer = client.request(Method::POST, HOST, "/order", body("once")).await.unwrap();
        assert!(answer.status >= 500, "{}", answer.status);
        assert_eq!(count() - before, 1, "{mode:?}: a POST was repeated");
    }
}

#[tokio::test]
async fn a_body_within_64_kib_is_replayed_whole() {
    let shop = shop::open(2).await;
    shop.traffic_policy("  retries: {attempts: 3, on: [5xx]}");
    shop.reviews[0].app().behave(Mode::Status(503));
    let sent = vec![b'r'; 60_000];
    eventually("the policy is in force and a retried POST arrives whole", || async {
        let mut client = shop.web.http1().await?;
        for _ in 0..8 {
            let answer = client.request(Method::POST, HOST, "/echo", body(sent.clone())).await?;
            anyhow::ensure!(answer.status == 200, "{} {}", answer.status, answer.reason());
            assert_eq!(answer.body, sent);
        }
        Ok(())
    })
    .await;
    assert!(shop.reviews[0].app().requests() > 0, "the bad endpoint was never asked");
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_504_and_the_connection_stays() {
    let shop = shop::open(1).await;
    shop.traffic_policy("  timeouts: {request: 300ms}\n  retries: {attempts: 0}");
    shop.web.answers(HOST, "/sleep/2000", |a| a.status == 504 && a.reason() == "RequestTimeout").await;
    let mut client = shop.web.http1().await.unwrap();
    assert_eq!(client.get(HOST, "/sleep/2000").await.unwrap().status, 504);
    assert_eq!(client.get(HOST, "/").await.unwrap().status, 200);
}

#[tokio::test]
async fn an_answer_is_given_rather_than_lost_to_a_retry_that_would_have_no_time() {
    let shop = shop::open(1).await;
    shop.traffic_policy(
        "  timeouts: {request: 1s}\n  retries: {attempts: 2, on: [5xx], backoff: {base: 1h, max: 1h}}",
    );
    shop.web.answers(HOST, "/sleep/2000", |a| a.status == 504 && a.reason() == "RequestTimeout").await;
    shop.reviews[0].app().behave(Mode::Status(503));
    let answer = shop.web.http1().await.unwrap().get(HOST, "/").await.unwrap();
    assert_eq!((answer.status, answer.reason()), (503, ""), "the application's own word");
}

#[tokio::test]
async fn a_try_that_takes_too_long_is_tried_elsewhere() {
    let shop = shop::open(2).await;
    shop.traffic_policy("  retries: {attempts: 2, on: [GatewayError, Reset], perTryTimeout: 300ms}");
    shop.reviews[0].app().behave(Mode::Hang);
    eventually("the policy is in force", || async {
        let mut client = shop.web.http1().await?;
        for _ in 0..6 {
            let answer = tokio::time::timeout(Duration::from_secs(5), client.get(HOST, "/")).await??;
            anyhow::ensure!(answer.status == 200, "{} {}", answer.status, answer.reason());
        }
        Ok(())
    })
    .await;
}

/// Nothing ever fails here that the sidecar could hear of: it is the clients that give up.
#[tokio::test]
async fn an_endpoint_that_hangs_gets_little_of_clients_that_give_up_by_themselves() {
    const CLIENTS: usize = 4;
    const REQUESTS: usize = 150;
    let shop = shop::open(2).await;
    let bad = shop.reviews[0].app();
    shop.web.answers(HOST, "/", |answer| answer.status == 200).await;
    bad.behave(Mode::Hang);
    let before = bad.requests();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let mut client = shop.web.http2().await.unwrap();
        clients.spawn(async move {
            let mut given_up = 0;
            for _ in 0..REQUESTS {
                match tokio::time::timeout(Duration::from_millis(300), client.get(HOST, "/")).await {
                    Ok(answer) => assert_eq!(answer.unwrap().status, 200),
                    Err(_) => given_up += 1,
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            given_up
        });
    }
    let given_up: usize = clients.join_all().await.into_iter().sum();
    let (asked, all) = (bad.requests() - before, CLIENTS * REQUESTS);
    println!("{given_up} of {all} requests were given up; the endpoint that hangs was asked {asked} times");
    assert!(asked > 0, "it was never asked, so nothing is shown");
    assert!(asked * 20 < all as u64, "it was asked {asked} times of {all}");
}

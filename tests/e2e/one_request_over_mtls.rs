//! The thin whole: an application asks its sidecar for a service, and the far application answers over mTLS.

use heddle_tests::{World, manifest};

#[tokio::test]
async fn a_request_crosses_two_sidecars_over_mtls() {
    let mut world = World::new().unwrap();
    world.save("service.yaml", &manifest::service("shop/reviews", 9080, "http", "app: reviews")).unwrap();
    world.start_control_plane().await.unwrap();
    let reviews = world.pod("shop/reviews-v1").answering("v1").start().await.unwrap();
    let web = world.pod("shop/web").start().await.unwrap();

    web.answers("reviews:9080", "/", |answer| answer.status == 200).await;
    let answer = web.http1().await.unwrap().get("reviews:9080", "/hello?who=you").await.unwrap();
    assert_eq!((answer.status, answer.answered_by(), answer.reason()), (200, "v1", ""));

    let seen = reviews.app().seen().pop().unwrap();
    assert_eq!(seen.uri, "/hello?who=you");
    assert_eq!(seen.headers["host"], "reviews:9080");
    let metrics = web.scrape().await.unwrap();
    let requests = metrics.sum("http_client_request_duration_seconds_count", &[("heddle_mtls", "true")]);
    assert!(requests >= 1.0, "no request over mTLS in the caller's metrics:\n{}", metrics.text);
    let metrics = reviews.scrape().await.unwrap();
    let requests = metrics.sum("http_server_request_duration_seconds_count", &[("heddle_mtls", "true")]);
    assert!(requests >= 1.0, "no request over mTLS in the application's metrics:\n{}", metrics.text);
}

//! Callers stay near where the Service says so, and nobody is left without an endpoint for it.

use heddle_tests::{World, app::Mode, eventually, manifest};

use crate::shop::HOST;

const ZONE: &str = "topology.kubernetes.io/zone";

#[tokio::test]
async fn a_service_that_prefers_its_zone_is_served_there_and_elsewhere_while_the_zone_fails() {
    let mut world = World::new().unwrap();
    let service = manifest::service("shop/reviews", 9080, "http", "app: reviews");
    let preferring =
        |word: &str| service.replace("spec:\n", &format!("spec:\n  trafficDistribution: {word}\n"));
    world.save("reviews.yaml", &preferring("PreferSameZone")).unwrap();
    world.start_control_plane().await.unwrap();
    let mut reviews = Vec::new();
    for (version, zone) in [("v1", "zone-a"), ("v2", "zone-b"), ("v3", "zone-b")] {
        let pod = world.pod(&format!("shop/reviews-{version}")).answering(version).label(ZONE, zone);
        reviews.push(pod.start().await.unwrap());
    }
    let web = world.pod("shop/web").label(ZONE, "zone-a").start().await.unwrap();
    web.answers(HOST, "/", |answer| answer.status == 200).await;
    let mut client = web.http1().await.unwrap();
    let elsewhere = || reviews[1].app().requests() + reviews[2].app().requests();
    let before = elsewhere();
    for _ in 0..100 {
        assert_eq!(client.get(HOST, "/").await.unwrap().status, 200);
    }
    assert_eq!(elsewhere(), before, "all of its zone's");

    // Without that wish everybody is asked, and with it again the zone alone; on the same connection.
    for (yaml, near) in [(&service, false), (&preferring("PreferClose"), true)] {
        world.save("reviews.yaml", yaml).unwrap();
        eventually(if near { "the zone alone is asked" } else { "other zones are asked" }, || async {
            let before = elsewhere();
            let mut client = web.http1().await?;
            for _ in 0..30 {
                client.get(HOST, "/").await?;
            }
            anyhow::ensure!((elsewhere() == before) == near, "not yet");
            Ok(())
        })
        .await;
    }

    // The zone's only endpoint fails: retries and then its ejection lead elsewhere, and no caller sees it.
    let before = elsewhere();
    reviews[0].app().behave(Mode::Status(503));
    for n in 0..50 {
        let answer = client.get(HOST, "/").await.unwrap();
        assert_eq!(answer.status, 200, "request {n}: {} {}", answer.reason(), answer.text());
    }
    assert!(elsewhere() - before >= 50);
}

//! Broken manifests: each is named with file, resource and field; everything else goes on from its last good state.

use heddle_tests::{World, eventually, manifest};

use crate::shop::{self, HOST, Shop};

/// Saves a bad manifest and waits until the control plane names the file and all of `words`, on its page and in
/// its log; then checks that the shop is still open.
async fn is_named(shop: &mut Shop, file: &str, yaml: &str, words: &[&str]) {
    shop.world.save(file, yaml).unwrap();
    let mut wanted = vec![file];
    wanted.extend(words);
    eventually(&format!("/diagnostics names {wanted:?}"), || async {
        let page = shop.world.diagnostics().await?;
        let missing: Vec<_> = wanted.iter().filter(|word| !page.contains(**word)).collect();
        anyhow::ensure!(missing.is_empty(), "it lacks {missing:?}: {page}");
        Ok(())
    })
    .await;
    let log = shop.world.control_plane().unwrap().log();
    for word in &wanted {
        assert!(log.contains(word), "the log lacks {word:?}");
    }
    still_open(shop, file).await;
}

async fn still_open(shop: &Shop, file: &str) {
    let answer = shop.web.http1().await.unwrap().get(HOST, "/").await.unwrap();
    assert_eq!((answer.status, answer.answered_by()), (200, "v1"), "{} after {file}", answer.reason());
}

#[tokio::test]
async fn each_mistake_is_named_and_the_rest_goes_on() {
    let mut shop = shop::open(1).await;
    is_named(&mut shop, "broken.yaml", "kind: Service\n  metadata: [\n", &["line"]).await;
    is_named(
        &mut shop,
        "kind.yaml",
        "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolice\nmetadata: {name: x, namespace: shop}\nspec: {}\n",
        &["TrafficPolice"],
    )
    .await;
    is_named(
        &mut shop,
        "field.yaml",
        &manifest::policy(
            "TrafficPolicy",
            "shop/misspelt",
            "  targetRefs: [{group: \"\", kind: Service, name: reviews-v1}]\n  timeout: {request: 1s}\n",
        ),
        &["misspelt", "timeout"],
    )
    .await;
    is_named(
        &mut shop,
        "nowhere.yaml",
        &manifest::split_route("shop/nowhere", "reviews-v1", 9080, &[("no-such-service", 1)]),
        &["HTTPRoute", "nowhere", "no-such-service", "backendRefs"],
    )
    .await;
    is_named(
        &mut shop,
        "port.yaml",
        &manifest::http_route(
            "shop/wrong-port",
            "reviews-v1",
            9080,
            "  - backendRefs: [{name: reviews, port: 81}]\n",
        ),
        &["wrong-port", "81"],
    )
    .await;
    let policy = |name: &str| {
        manifest::policy(
            "TrafficPolicy",
            name,
            "  targetRefs: [{group: \"\", kind: Service, name: reviews}]\n  timeouts: {request: 10s}\n",
        )
    };
    shop.world.save("first.yaml", &policy("shop/first")).unwrap();
    is_named(&mut shop, "second.yaml", &policy("shop/second"), &["second", "first"]).await;
}

#[tokio::test]
async fn a_file_that_turns_bad_keeps_its_last_good_state() {
    let mut shop = shop::open(2).await;
    shop.split_in_force(&[100, 0]).await;
    let route =
        manifest::split_route("shop/split", "reviews", 9080, &[("reviews-v1", -5), ("reviews-v2", 100)]);
    is_named(&mut shop, "route.yaml", &route, &["weight"]).await;
    let mut client = shop.web.http1().await.unwrap();
    for _ in 0..30 {
        assert_eq!(client.get(HOST, "/").await.unwrap().answered_by(), "v1", "the last good weights hold");
    }
    shop.split_in_force(&[0, 100]).await;
    eventually("the diagnostic is gone", || async {
        let page = shop.world.diagnostics().await?;
        anyhow::ensure!(!page.contains("route.yaml"), "{page}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_bad_keeps_its_last_good_state_over_a_restart_of_the_control_plane() {
    let mut shop = shop::open(2).await;
    shop.split_in_force(&[100, 0]).await;
    let route =
        manifest::split_route("shop/split", "reviews", 9080, &[("reviews-v1", -5), ("reviews-v2", 100)]);
    is_named(&mut shop, "route.yaml", &route, &["weight"]).await;
    shop.world.kill_control_plane();
    shop.world.save("broken.yaml", "kind: [").unwrap();
    shop.world.start_control_plane().await.unwrap();
    let page = shop.world.diagnostics().await.unwrap();
    assert!(page.contains("from before the control plane started"), "{page}");
    // A sidecar that knows nothing of before.
    let late = shop.world.pod("shop/web-late").start().await.unwrap();
    let mut client = late.http1().await.unwrap();
    for _ in 0..30 {
        assert_eq!(client.get(HOST, "/").await.unwrap().answered_by(), "v1", "the last good weights hold");
    }
    shop.split(&[0, 100]);
    late.answers(HOST, "/", |answer| answer.answered_by() == "v2").await;
}

#[tokio::test]
async fn every_sample_manifest_is_understood() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
    let mut features: Vec<_> =
        std::fs::read_dir(examples.join("features")).unwrap().map(|entry| entry.unwrap().path()).collect();
    features.sort();
    assert!(features.len() > 10);

    let mut world = World::new().unwrap();
    for entry in std::fs::read_dir(examples.join("shop")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        // A feature's route or policy takes its place.
        if name != "reviews-route.yaml" {
            world.save(name, &read(&path)).unwrap();
        }
    }
    world.save("marker.yaml", "kind: Nonsense0\n").unwrap();
    world.start_control_plane().await.unwrap();
    for (n, path) in features.iter().enumerate() {
        let name = path.file_name().unwrap().to_str().unwrap();
        world.save("feature.yaml", &read(path)).unwrap();
        // Once the page names this marker, it has seen the feature, which was saved before.
        let marker = format!("Nonsense{}", n + 1);
        world
            .save("marker.yaml", &format!("apiVersion: v1\nkind: {marker}\nmetadata: {{name: x}}\n"))
            .unwrap();
        eventually(name, || async {
            let page = world.diagnostics().await?;
            anyhow::ensure!(page.contains(&marker), "not read yet: {page}");
            anyhow::ensure!(!page.contains("feature.yaml"), "{page}");
            Ok(())
        })
        .await;
    }
    // A route's references are missing only when the features are not read at all.
    world
        .save("feature.yaml", &read(&examples.join("features/weights.yaml")).replace("reviews-v2", "gone"))
        .unwrap();
    eventually("a missing reference would have been named", || async {
        let page = world.diagnostics().await?;
        anyhow::ensure!(page.contains("gone"), "{page}");
        Ok(())
    })
    .await;
}

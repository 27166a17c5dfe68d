//! The world that most tests need: `web` calls `reviews`, which has some versions.

use heddle_tests::{Pod, World, manifest};

/// The service as `web` names it.
pub(crate) const HOST: &str = "reviews:9080";

/// `web` and its mesh.
pub(crate) struct Shop {
    pub(crate) world: World,
    pub(crate) web: Pod,
    pub(crate) reviews: Vec<Pod>,
}

/// A running shop whose `reviews` has `versions` pods: v1, v2, …
pub(crate) async fn open(versions: usize) -> Shop {
    let mut world = World::new().unwrap();
    declare(&world, versions);
    world.start_control_plane().await.unwrap();
    fill(world, versions).await
}

/// Saves the shop's Services.
pub(crate) fn declare(world: &World, versions: usize) {
    world.save("reviews.yaml", &manifest::service("shop/reviews", 9080, "http", "app: reviews")).unwrap();
    for n in 1..=versions {
        let selector = format!("app: reviews, version: v{n}");
        let yaml = manifest::service(&format!("shop/reviews-v{n}"), 9080, "http", &selector);
        world.save(&format!("reviews-v{n}.yaml"), &yaml).unwrap();
    }
}

/// Starts the shop's pods and waits for the first good answer.
pub(crate) async fn fill(mut world: World, versions: usize) -> Shop {
    let mut reviews = Vec::new();
    for n in 1..=versions {
        let pod = world.pod(&format!("shop/reviews-v{n}")).answering(&format!("v{n}"));
        reviews.push(pod.start().await.unwrap());
    }
    let web = world.pod("shop/web").start().await.unwrap();
    web.answers(HOST, "/", |answer| answer.status == 200).await;
    Shop { world, web, reviews }
}

impl Shop {
    /// Saves the route that splits `reviews` by these weights over v1, v2, …
    pub(crate) fn split(&self, weights: &[i32]) {
        let names: Vec<_> = (1..=weights.len()).map(|n| format!("reviews-v{n}")).collect();
        let shares: Vec<_> = names.iter().map(String::as_str).zip(weights.iter().copied()).collect();
        let yaml = manifest::split_route("shop/split", "reviews", 9080, &shares);
        self.world.save("route.yaml", &yaml).unwrap();
    }

    /// Saves a TrafficPolicy for `reviews` with these fields, YAML indented by two spaces.
    pub(crate) fn traffic_policy(&self, fields: &str) {
        let spec = format!("  targetRefs: [{{group: \"\", kind: Service, name: reviews}}]\n{fields}\n");
        self.world.save("policy.yaml", &manifest::policy("TrafficPolicy", "shop/reviews", &spec)).unwrap();
    }

    /// Saves an AccessPolicy for `reviews`.
    pub(crate) fn access_policy(&self, name: &str, action: &str, rules: &str) {
        let spec = format!(
            "  targetRefs: [{{group: \"\", kind: Service, name: reviews}}]\n  action: {action}\n  rules:\n{rules}\n"
        );
        let yaml = manifest::policy("AccessPolicy", &format!("shop/{name}"), &spec);
        self.world.save(&format!("{name}.yaml"), &yaml).unwrap();
    }
}

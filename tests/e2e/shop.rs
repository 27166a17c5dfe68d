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

/// The same, with these arguments for its sidecars.
pub(crate) async fn open_with(versions: usize, args: &[&str]) -> Shop {
    let mut world = World::new().unwrap();
    declare(&world, versions);
    world.start_control_plane().await.unwrap();
    fill_with(world, versions, args).await
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
pub(crate) async fn fill(world: World, versions: usize) -> Shop {
    fill_with(world, versions, &[]).await
}

/// The same, with these arguments for its sidecars.
pub(crate) async fn fill_with(mut world: World, versions: usize, args: &[&str]) -> Shop {
    let mut reviews = Vec::new();
    for n in 1..=versions {
        let pod = world.pod(&format!("shop/reviews-v{n}")).answering(&format!("v{n}"));
        reviews.push(pod.sidecar_args(args.iter().copied()).start().await.unwrap());
    }
    let web = world.pod("shop/web").sidecar_args(args.iter().copied()).start().await.unwrap();
    web.answers(HOST, "/", |answer| answer.status == 200).await;
    Shop { world, web, reviews }
}

impl Shop {
    /// Saves the route that splits `reviews` by these weights over v1, v2, …
    pub(crate) fn split(&self, weights: &[i32]) {
        let backends: String = (1..)
            .zip(weights)
            .map(|(n, weight)| format!("    - {{name: reviews-v{n}, port: 9080, weight: {weight}}}\n"))
            .collect();
        // Answers say which weights they obeyed.
        let filter = format!("{{set: [{{name: x-split, value: \"{}\"}}]}}", label(weights));
        let rules = format!(
            "  - filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {filter}}}]\n    backendRefs:\n{backends}"
        );
        self.world.save("route.yaml", &manifest::http_route("shop/split", "reviews", 9080, &rules)).unwrap();
    }

    /// Saves these weights and waits until they hold.
    pub(crate) async fn split_in_force(&self, weights: &[i32]) {
        self.split(weights);
        self.web.answers(HOST, "/", |answer| answer.header("x-split") == label(weights)).await;
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

fn label(weights: &[i32]) -> String {
    weights.iter().map(i32::to_string).collect::<Vec<_>>().join("-")
}

//! What the Gateway API asks of a mesh: every feature of its profiles MESH-HTTP and MESH-GRPC, core and extended, as
//! tables of requests and what becomes of them.
//!
//! The ground is that of the Gateway API's own suite, names and all: echo servers in pods, which are network namespaces here,
//! called by an echo client that knows of no proxy. It stands once for all cases of a test. A row counts when it holds,
//! and holds again once all rows of its case did: by then the case's routes are in force for everybody, so what a route
//! must leave alone has been left alone.

mod case;
mod cluster;
mod filters;
mod ground;
mod grpc;
mod matching;
mod mesh;
mod redirects;
mod references;

use heddle_tests::{netns::missing, skip};

use self::{case::Case, ground::Ground};

/// All cases, in the order in which they run.
fn cases() -> Vec<&'static Case> {
    let all =
        [mesh::CASES, matching::CASES, filters::CASES, redirects::CASES, references::CASES, grpc::CASES];
    all.into_iter().flatten().collect()
}

async fn run(ground: &Ground) {
    let mut failed = Vec::new();
    let cases = cases();
    for case in &cases {
        let started = std::time::Instant::now();
        let outcome = ground.run(case).await;
        let word = if outcome.is_empty() { "holds" } else { "FAILS" };
        println!(
            "{word} {} ({}; {} requests, {:.1?})",
            case.what,
            case.name(),
            case.rows.len(),
            started.elapsed()
        );
        failed.extend(outcome.into_iter().map(|why| format!("{} ({}): {why}", case.what, case.name())));
    }
    assert!(
        failed.is_empty(),
        "{} of {} cases, each problem once:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
}

#[tokio::test]
async fn every_case_of_the_mesh_profiles_holds_with_manifests_in_a_directory() {
    if let Some(what) = missing() {
        skip!(what);
    }
    run(&Ground::in_directory().await.unwrap()).await;
}

#[tokio::test]
async fn every_case_of_the_mesh_profiles_holds_on_a_real_api_server() {
    if let Some(what) = missing() {
        skip!(what);
    }
    let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS") else { skip!("KUBEBUILDER_ASSETS") };
    run(&Ground::on_api_server(assets.into()).await.unwrap()).await;
}

/// The tests of the Gateway API's suite for meshes (`conformance/tests/mesh`), of August 2026, after release 1.6.1.
const UPSTREAM: [&str; 23] = [
    "MeshBasic",
    "MeshConsumerRoute",
    "MeshFrontend",
    "MeshFrontendHostname",
    "MeshGRPCRouteRequestHeaderModifier",
    "MeshGRPCRouteWeight",
    "MeshHTTPRoute303Redirect",
    "MeshHTTPRoute307Redirect",
    "MeshHTTPRoute308Redirect",
    "MeshHTTPRouteBackendRequestHeaderModifier",
    "MeshHTTPRouteMatching",
    "MeshHTTPRouteNamedRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectHostAndStatus",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRequestHeaderModifier",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteSimpleSameNamespace",
    "MeshHTTPRouteWeight",
    "MeshPorts",
    "MeshTrafficSplit",
];

#[test]
fn no_test_of_the_gateway_apis_own_suite_is_left_out() {
    let mut ours: Vec<_> = cases().iter().filter_map(|case| case.upstream).collect();
    ours.sort_unstable();
    assert_eq!(ours, UPSTREAM);
    let page = include_str!("../../../docs/conformance.md");
    for name in UPSTREAM {
        assert!(page.contains(name), "docs/conformance.md does not name {name}");
    }
}

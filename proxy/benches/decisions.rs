//! What the pure decisions of a request cost: route matching, each balancer's pick, header handling. Time and allocations.
//!
//! `cargo bench --package heddle-proxy`

use std::{net::SocketAddr, sync::Arc};

use divan::{Bencher, black_box, counter::ItemsCount};
use heddle_proxy::{
    balance,
    config::{
        Algorithm, AppProtocol, Backend, BackendState, Destination, Endpoint, EndpointSet, PathMatch, Policy,
        Route, Rule,
    },
    plain::edge,
    route::{self, Found},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header, request::Parts};

#[global_allocator]
static ALLOCATIONS: divan::AllocProfiler = divan::AllocProfiler::system();

const HEADER_LIMIT: usize = 65_536;

fn main() {
    divan::main();
}

/// A request as a browser or a service sends it.
fn request(path: &str) -> Parts {
    let request = Request::get(path)
        .header(header::HOST, "reviews:9080")
        .header(header::USER_AGENT, "bench/1.0")
        .header(header::ACCEPT, "application/json")
        .header(header::ACCEPT_ENCODING, "gzip")
        .header("x-request-id", "2f0e9b1c-0f5c-4b0a-9d6e-2f3f0a7c9e11")
        .header("x-user", "jane")
        .header(header::COOKIE, "session=0123456789abcdef0123456789abcdef");
    request.body(()).unwrap().into_parts().0
}

fn destination(paths: impl Iterator<Item = PathMatch>) -> Destination {
    let routes: Vec<_> = paths
        .enumerate()
        .map(|(rule, path)| Route {
            name: "shop/route".into(),
            rule,
            path,
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
        })
        .collect();
    let rules = routes.iter().map(|_| Rule::default()).collect();
    Destination {
        service: "shop/reviews:9080".into(),
        protocol: AppProtocol::Http,
        routes,
        rules,
        tcp: None,
        default: None,
    }
}

const ROUTES: [usize; 4] = [1, 10, 100, 1000];

#[divan::bench(args = ROUTES)]
fn the_last_of_n_prefixes(bencher: Bencher<'_, '_>, routes: usize) {
    let destination = destination((0..routes).map(|n| PathMatch::Prefix(format!("/r/{n}"))));
    let request = request(&format!("http://reviews:9080/r/{}/detail", routes - 1));
    bencher.bench_local(|| {
        matches!(route::find(black_box(&destination), black_box(&request)), Found::Rule { .. })
    });
}

#[divan::bench(args = ROUTES)]
fn none_of_n_exact_paths(bencher: Bencher<'_, '_>, routes: usize) {
    let destination = destination((0..routes).map(|n| PathMatch::Exact(format!("/r/{n}"))));
    let request = request("http://reviews:9080/elsewhere");
    bencher
        .bench_local(|| matches!(route::find(black_box(&destination), black_box(&request)), Found::NoRoute));
}

const ALGORITHMS: [Algorithm; 4] =
    [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random];

/// The pick, and the end of the request that it was for.
#[divan::bench(args = ALGORITHMS, consts = [2, 100, 1000])]
fn pick<const ENDPOINTS: usize>(bencher: Bencher<'_, '_>, algorithm: Algorithm) {
    let endpoints = (0..ENDPOINTS).map(|n| {
        Arc::new(Endpoint {
            address: SocketAddr::from(([10, 0, (n / 250) as u8, (n % 250) as u8], 9080)),
            identity: None,
            must_be_meshed: false,
            draining: false,
            weight: 1,
            zone: "".into(),
            pod: "".into(),
            hints: None,
            stats: Arc::default(),
        })
    });
    let state = BackendState::default();
    let set = Arc::new(EndpointSet::new(endpoints.collect()));
    state.endpoints.store(Arc::clone(&set));
    let policy = Policy { algorithm, ..Policy::default() };
    let backend = Backend {
        key: "shop/reviews:9080".into(),
        protocol: AppProtocol::Http,
        policy,
        state: Arc::new(state),
    };
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        let picked = balance::pick(black_box(&backend), &set, &[]);
        let mut picked = picked.expect("there are endpoints");
        picked.load.judge(&backend, balance::Outcome::Success, std::time::Duration::from_millis(1))
    });
}

/// What the first sidecar makes of a request from the application.
#[divan::bench]
fn headers_of_a_request_coming_in(bencher: Bencher<'_, '_>) {
    let parts = request("/api/reviews/1");
    // Of the connection: the host is nearly always that of the request before.
    let last_host = edge::LastHost::default();
    bencher
        .with_inputs(|| parts.clone())
        .bench_local_values(|mut parts| edge::request(&mut parts, HEADER_LIMIT, &last_host).map(|_| parts));
}

/// What the second makes of it for an application that speaks HTTP/1.
#[divan::bench]
fn headers_towards_http1(bencher: Bencher<'_, '_>) {
    let mut parts = request("http://reviews:9080/api/reviews/1");
    parts.headers.remove(header::HOST);
    let last_host = edge::WrittenHost::default();
    bencher.with_inputs(|| parts.clone()).bench_local_values(|mut parts| {
        edge::to_http1(&mut parts, false, None, &last_host);
        parts
    });
}

/// What either makes of an answer.
#[divan::bench]
fn headers_of_an_answer(bencher: Bencher<'_, '_>) {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (header::CONTENT_TYPE, "application/json"),
        (header::CONTENT_LENGTH, "1024"),
        (header::SERVER, "nginx/1.22"),
        (header::DATE, "Sat, 21 Nov 2026 18:31:49 GMT"),
        (header::CONNECTION, "keep-alive"),
        (HeaderName::from_static("x-version"), "v1"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let mut response = http::Response::new(()).into_parts().0;
    response.headers = headers;
    bencher.with_inputs(|| response.clone()).bench_local_values(|mut parts| {
        let answer = edge::answer(&mut parts, &Method::GET, HEADER_LIMIT);
        (parts, answer)
    });
}

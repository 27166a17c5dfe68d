//! The pages as they are asked for.

use std::collections::{HashMap, VecDeque};
use std::time::SystemTime;

use bytes::Bytes;
use heddle_api::probe::{Action, HttpGet, Kind, Probe, Probes, Token};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tracing_subscriber::reload;

use super::seat::MAX_SILENT;
use super::*;
use crate::config::inbound::{AccessLog, Inbound, InboundPort, MtlsMode};
use crate::config::{
    AppProtocol, Backend, BackendState, Destination, Endpoint, EndpointSet, Filter, HeaderModifier, Hints,
    Mirror, PathMatch, Place, Policy, Route, Rule, Split, SplitEntry, TextMatch,
};
use crate::probe::Spares;
use crate::store::{Lookup, Status};

#[derive(Debug, Default)]
struct Fixed {
    names: Vec<(String, Lookup)>,
    inbound: Option<Arc<Inbound>>,
    certificate: Option<CertificateFacts>,
}

impl Live for Fixed {
    fn names(&self) -> Vec<(String, Lookup)> {
        self.names.clone()
    }

    fn inbound(&self) -> Option<Arc<Inbound>> {
        self.inbound.clone()
    }

    fn discovery(&self) -> Status {
        Status { connected: true, last_refusal: Some("no such algorithm".to_owned()), ..Status::default() }
    }

    fn certificate(&self) -> Option<CertificateFacts> {
        self.certificate.clone()
    }

    fn certificate_problem(&self) -> Option<String> {
        Some("the token expired".to_owned())
    }

    fn certificate_requests(&self) -> (u64, u64) {
        (3, 1)
    }
}

/// The filter must live for the level to be changed.
type Filtering = reload::Layer<tracing_subscriber::EnvFilter, tracing_subscriber::Registry>;

fn admin(live: Fixed) -> (Arc<Admin>, Filtering) {
    admin_with(live, Probes::default())
}

fn admin_with(live: Fixed, probes: Probes) -> (Arc<Admin>, Filtering) {
    let (filter, logs) = Logs::for_tests("info");
    let admin = Admin {
        pod: "shop/web-0".parse().unwrap(),
        metrics: Metrics::new(1),
        readiness: Readiness::default(),
        logs,
        live: Arc::new(live),
        probes: Replayer::new(probes, "127.0.0.1".parse().unwrap(), Spares::new().0).unwrap(),
        instance: Instance::new().unwrap(),
    };
    (Arc::new(admin), filter)
}

async fn ask(admin: &Admin, surface: Surface, method: Method, path: &str, body: &str) -> Response<String> {
    let request =
        Request::builder().method(method).uri(path).body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let (parts, body) =
        pages::answer(admin, surface, &Places::new().seat(), request).await.unwrap().into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap();
    Response::from_parts(parts, text)
}

async fn get(admin: &Admin, path: &str) -> Response<String> {
    ask(admin, Surface::Admin, Method::GET, path, "").await
}

#[tokio::test]
async fn ready_names_what_is_missing() {
    let (admin, _filter) = admin(shop());
    assert_eq!(get(&admin, "/ready").await.status(), StatusCode::OK);
    let listeners = admin.readiness.part("listeners", "port 15001");
    let answer = get(&admin, "/ready?verbose").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.body(), "not ready\nlisteners: port 15001\n");
    listeners.ready();
    assert_eq!(get(&admin, "/ready").await.body(), "ready\n");
}

#[tokio::test]
async fn without_certificate_and_ports_it_is_not_ready_and_an_expired_certificate_is_no_reason() {
    let (fresh, _filter) = admin(Fixed::default());
    assert_eq!(
        get(&fresh, "/ready").await.body(),
        "not ready\ncertificate: the token expired\n\
         inbound: the control plane has not said yet what this pod's ports are\n"
    );
    let mut live = shop();
    live.certificate.as_mut().unwrap().not_after = SystemTime::UNIX_EPOCH;
    let (expired, _filter) = admin(live);
    assert_eq!(get(&expired, "/ready").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_web_page_can_neither_read_nor_change_anything() {
    let (admin, _filter) = admin(shop());
    for (name, value, expected) in [
        ("host", "127.0.0.1:15000", 200),
        ("host", "[::1]:15000", 200),
        ("host", "localhost:15000", 200),
        ("host", "rebound.example:15000", 403),
        ("host", "", 403),
        ("origin", "https://example.com", 403),
        ("origin", "null", 403),
    ] {
        for (method, path) in [(Method::GET, "/config"), (Method::POST, "/log-level")] {
            let request = Request::builder().method(method).uri(path).header(name, value);
            let request = request.body(Full::new(Bytes::from_static(b"debug"))).unwrap();
            let seat = Places::new().seat();
            let answer = pages::answer(&admin, Surface::Admin, &seat, request).await.unwrap();
            assert_eq!(answer.status(), expected, "{name}: {value}, {path}");
        }
    }
    // Prometheus may scrape by name.
    let request = Request::builder().uri("/metrics").header("host", "web.shop.svc:15020");
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let answer = pages::answer(&admin, Surface::Metrics, &Places::new().seat(), request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_bad_level_gets_the_reason_and_changes_nothing() {
    let (admin, _filter) = admin(Fixed::default());
    for bad in ["", "verbose", "heddle_proxy=loud", &"x=debug,".repeat(1_000)] {
        let answer = ask(&admin, Surface::Admin, Method::PUT, "/log-level", bad).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{bad:.20}");
        assert!(answer.body().starts_with("the level stays as it is: "), "{}", answer.body());
    }
    assert_eq!(get(&admin, "/log-level").await.body(), "info\n");
    let answer = ask(&admin, Surface::Admin, Method::POST, "/log-level", " debug,h2=off\n").await;
    assert_eq!((answer.status(), answer.body().as_str()), (StatusCode::OK, "h2=off,debug\n"));
    assert_eq!(get(&admin, "/log-level").await.body(), "h2=off,debug\n");
}

#[tokio::test]
async fn what_is_not_there_or_not_allowed_is_told_what_is() {
    let (admin, _filter) = admin(Fixed::default());
    let unknown = get(&admin, "/stats").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    let index = get(&admin, "/").await;
    assert_eq!(index.status(), StatusCode::OK);
    for page in ["/ready", "/metrics", "/config", "/log-level"] {
        assert!(unknown.body().contains(page) && index.body().contains(page), "{page}");
        let answer = ask(&admin, Surface::Admin, Method::DELETE, page, "").await;
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{page}");
        assert!(answer.headers()["allow"].to_str().unwrap().starts_with("GET, HEAD"));
    }
}

#[tokio::test]
async fn the_metrics_address_serves_no_more_than_it_should() {
    let (admin, _filter) = admin(shop());
    for (path, status) in
        [("/ready", 200), ("/metrics", 200), ("/config", 404), ("/log-level", 404), ("/", 404)]
    {
        let answer = ask(&admin, Surface::Metrics, Method::GET, path, "").await;
        assert_eq!(answer.status(), status, "{path}");
    }
    let answer = ask(&admin, Surface::Metrics, Method::PUT, "/log-level", "trace").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert!(!answer.body().contains("/config"));
}

fn shop() -> Fixed {
    let endpoint = Arc::new(Endpoint {
        address: "127.0.0.3:9080".parse().unwrap(),
        identity: Some("spiffe://cluster.local/ns/shop/sa/reviews".parse().unwrap()),
        must_be_meshed: false,
        draining: true,
        weight: 1,
        zone: "a".into(),
        pod: "shop/reviews-v1-0".into(),
        hints: Some(Box::new(Hints { zones: vec!["a".to_owned()], nodes: vec![] })),
        stats: Arc::default(),
    });
    let state = Arc::new(BackendState::default());
    state.endpoints.store(Arc::new(EndpointSet::new(vec![endpoint])));
    let backend = |key: &str| {
        Arc::new(Backend {
            key: key.into(),
            protocol: AppProtocol::Http1,
            policy: Policy::default(),
            state: Arc::clone(&state),
        })
    };
    let v1 = backend("shop/reviews-v1:9080");
    let entry = |weight, backend: Option<&Arc<Backend>>, name: &str| SplitEntry {
        weight,
        backend: backend.cloned(),
        name: name.into(),
        filters: vec![],
    };
    let modifier = HeaderModifier {
        set: vec![(http::HeaderName::from_static("x-a"), http::HeaderValue::from_static("1"))],
        ..HeaderModifier::default()
    };
    let mirror = Mirror { backend: Some(backend("shop/mirror:9080")), numerator: 1, denominator: 2 };
    let destination = Arc::new(Destination {
        service: "shop/reviews:9080".into(),
        protocol: AppProtocol::Detect,
        routes: vec![Route {
            name: "shop/split".into(),
            rule: 0,
            path: PathMatch::Prefix(String::new()),
            method: Some(Method::GET),
            headers: vec![(http::HeaderName::from_static("x-user"), TextMatch::Exact("anna".to_owned()))],
            query: vec![],
        }],
        rules: vec![Rule {
            filters: vec![Filter::RequestHeaders(modifier), Filter::Mirror(mirror)],
            split: Split {
                entries: vec![entry(90, Some(&v1), "shop/reviews-v1:9080"), entry(10, None, "shop/gone:1")],
                total: 100,
            },
            request_timeout: Some(Duration::from_secs(2)),
            ..Rule::default()
        }],
        tcp: None,
        default: Some(backend("shop/reviews:9080")),
    });
    let identity: heddle_api::identity::SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let port = InboundPort {
        mtls: MtlsMode::Strict,
        authorities: vec!["web:80".to_owned()],
        ..InboundPort::default()
    };
    Fixed {
        names: vec![
            ("reviews:9080".to_owned(), Lookup::Mesh(Arc::clone(&destination))),
            ("reviews.shop:9080".to_owned(), Lookup::Mesh(destination)),
            ("example.com:80".to_owned(), Lookup::NotInMesh),
        ],
        inbound: Some(Arc::new(Inbound {
            identity: identity.clone(),
            ports: HashMap::from([(8080, Arc::new(port))]),
            other: Arc::default(),
            terminating: false,
            access_log: AccessLog::Errors,
            opaque_ports: vec![6379],
            place: Place { zone: "a".to_owned(), node: "n1".to_owned() },
        })),
        certificate: Some(CertificateFacts {
            identity,
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            roots: 1,
        }),
    }
}

#[tokio::test]
async fn the_config_shows_what_requests_meet() {
    let (admin, _filter) = admin(shop());
    let answer = get(&admin, "/config").await;
    assert_eq!(answer.headers()["content-type"], "application/json");
    let config: Value = serde_json::from_str(answer.body()).unwrap();
    let at =
        |pointer: &str| config.pointer(pointer).unwrap_or_else(|| panic!("{pointer} in {config:#}")).clone();
    for (pointer, expected) in [
        ("/pod", json!("shop/web-0")),
        ("/discovery/connected", json!(true)),
        ("/discovery/last_refusal", json!("no such algorithm")),
        ("/certificate/identity", json!("spiffe://cluster.local/ns/shop/sa/web")),
        ("/certificate/expires", json!("2027-01-15T08:00:00Z")),
        ("/certificate_problem", json!("the token expired")),
        ("/inbound/ports/8080/mtls", json!("Strict")),
        ("/inbound/ports/8080/authorities", json!(["web:80"])),
        ("/inbound/access_log", json!("Errors")),
        ("/inbound/opaque_ports", json!([6379])),
        ("/inbound/zone", json!("a")),
        ("/inbound/node", json!("n1")),
        ("/not_in_mesh", json!(["example.com:80"])),
        ("/destinations/reviews.shop:9080/service", json!("shop/reviews:9080")),
        ("/destinations/reviews:9080/routes/0/path", json!({"prefix": "/"})),
        ("/destinations/reviews:9080/routes/0/headers/0", json!({"name": "x-user", "exact": "anna"})),
        ("/destinations/reviews:9080/rules/0/backends/0/weight", json!(90)),
        ("/destinations/reviews:9080/rules/0/backends/1/exists", json!(false)),
        ("/destinations/reviews:9080/rules/0/filters/0/request_headers/set", json!([["x-a", "1"]])),
        ("/destinations/reviews:9080/rules/0/request_timeout_ms", json!(2_000)),
        ("/backends/shop~1reviews-v1:9080/policy/algorithm", json!("PeakEwma")),
        ("/backends/shop~1reviews-v1:9080/policy/retry/on_status", json!([502, 503, 504])),
        ("/backends/shop~1reviews-v1:9080/endpoints/0/address", json!("127.0.0.3:9080")),
        ("/backends/shop~1reviews-v1:9080/endpoints/0/ejected", json!(false)),
        ("/backends/shop~1reviews-v1:9080/endpoints/0/hints", json!({"zones": ["a"], "nodes": []})),
        ("/backends/shop~1reviews-v1:9080/endpoints/0/draining", json!(true)),
        ("/backends/shop~1reviews-v1:9080/endpoints/0/in_flight", json!(0)),
        ("/backends/shop~1reviews-v1:9080/endpoints/0/latency_ms", Value::Null),
    ] {
        assert_eq!(at(pointer), expected, "{pointer}");
    }
    let backends: Vec<_> = config["backends"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(backends, ["shop/mirror:9080", "shop/reviews-v1:9080", "shop/reviews:9080"]);
}

#[tokio::test]
async fn the_scrape_counts_endpoints_of_every_backend_once() {
    let (admin, _filter) = admin(shop());
    let answer = get(&admin, "/metrics").await;
    assert_eq!(
        answer.headers()["content-type"],
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    for (line, times) in [
        ("heddle_endpoints{backend=\"shop/reviews-v1:9080\",state=\"draining\"} 1", 1),
        ("heddle_endpoints{backend=\"shop/reviews-v1:9080\",state=\"ejected\"} 0", 1),
        ("heddle_endpoint_ejected{backend=\"shop/reviews-v1:9080\",endpoint=\"127.0.0.3:9080\"} 0", 1),
        ("heddle_endpoint_ejected{", 3),
        ("heddle_certificate_expiry_timestamp_seconds 1800000000", 1),
        ("heddle_certificate_requests_total{result=\"success\"} 3", 1),
        ("heddle_certificate_requests_total{result=\"failure\"} 1", 1),
    ] {
        assert_eq!(answer.body().lines().filter(|of| of.starts_with(line)).count(), times, "{line}");
    }
}

async fn served() -> (std::net::SocketAddr, Filtering) {
    served_with(Surface::Admin, Probes::default()).await
}

async fn served_with(surface: Surface, probes: Probes) -> (std::net::SocketAddr, Filtering) {
    let (admin, filter) = admin_with(shop(), probes);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, surface, admin));
    (address, filter)
}

async fn read_all(io: &mut TcpStream) -> String {
    let mut text = Vec::new();
    // A reset counts as an end.
    let _ = io.read_to_end(&mut text).await;
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_connection_carries_one_request_and_head_has_no_body() {
    let (address, _filter) = served().await;
    let mut io = TcpStream::connect(address).await.unwrap();
    io.write_all(b"GET /ready HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").await.unwrap();
    let text = read_all(&mut io).await;
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("\r\n\r\nready\n"), "{text}");
    let mut io = TcpStream::connect(address).await.unwrap();
    io.write_all(b"HEAD /ready HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").await.unwrap();
    let text = read_all(&mut io).await;
    assert!(text.contains("content-length: 6\r\n") && text.ends_with("\r\n\r\n"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_closed() {
    let (address, _filter) = served().await;
    for beginning in ["", "GET /ready HTTP/1.1\r\nho"] {
        let mut io = TcpStream::connect(address).await.unwrap();
        io.write_all(beginning.as_bytes()).await.unwrap();
        let since = tokio::time::Instant::now();
        assert!(!read_all(&mut io).await.contains("200"));
        assert!(since.elapsed() <= 2 * HEADER_TIME, "{:?}", since.elapsed());
    }
}

#[tokio::test]
async fn pages_that_nobody_takes_have_an_end_and_keep_no_probe_out() {
    let mut places = Places::new();
    let (admin, _filter) = admin(shop());
    let mut seats = Vec::new();
    loop {
        let seat = places.seat();
        let request = Request::builder().uri("/metrics").body(Full::<Bytes>::default()).unwrap();
        let status = pages::answer(&admin, Surface::Metrics, &seat, request).await.unwrap().status();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            break;
        }
        seats.push(seat);
        assert!(seats.len() < 100, "no end");
    }
    for path in ["/ready", "/probe/web/liveness"] {
        let request = Request::builder().uri(path).body(Full::<Bytes>::default()).unwrap();
        let answer = pages::answer(&admin, Surface::Metrics, &places.seat(), request).await.unwrap();
        assert_ne!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
    }
    seats.pop();
    let request = Request::builder().uri("/metrics").body(Full::<Bytes>::default()).unwrap();
    let answer = pages::answer(&admin, Surface::Metrics, &places.seat(), request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "a place is free again");
}

#[tokio::test]
async fn the_oldest_connection_that_says_nothing_gives_way() {
    let (address, _filter) = served().await;
    let mut open = VecDeque::new();
    for _ in 0..=MAX_SILENT {
        open.push_back(TcpStream::connect(address).await.unwrap());
    }
    assert_eq!(read_all(&mut open.pop_front().unwrap()).await, "");
    for mut io in open {
        io.write_all(b"GET /ready HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").await.unwrap();
        assert!(read_all(&mut io).await.starts_with("HTTP/1.1 200"));
    }
}

/// An application whose probe begins with the first of these and ends with the second.
async fn slow_application() -> (Probes, oneshot::Receiver<()>, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, was_asked) = oneshot::channel();
    let (answer, may_answer) = oneshot::channel();
    tokio::spawn(async move {
        let (mut io, _) = listener.accept().await.unwrap();
        assert!(io.read(&mut [0; 1024]).await.unwrap() > 0);
        asked.send(()).unwrap();
        may_answer.await.unwrap();
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    });
    let get = HttpGet { port, path: "/".to_owned(), https: false, headers: Vec::new() };
    let mut probes = Probes::default();
    probes.insert("web", Kind::Liveness, Probe { action: Action::HttpGet(get), timeout_seconds: 60 });
    (probes, was_asked, answer)
}

#[tokio::test]
async fn who_does_not_know_the_token_learns_nothing_of_hooks() {
    let token = Token::new([7; 16]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let action = Action::TcpSocket { port: listener.local_addr().unwrap().port() };
    let mut probes = Probes::default();
    probes.insert(&token.place("web"), Kind::PreStop, Probe { action, timeout_seconds: 5 });
    let (admin, _filter) = admin_with(shop(), probes);
    let get = async |path: &str| ask(&admin, Surface::Metrics, Method::GET, path, "").await;
    let unknown = get("/stats").await;
    let other = Token::new([8; 16]).query();
    for path in
        ["/probe/web/preStop".to_owned(), format!("/probe/web/preStop?{other}"), "/probe/x".to_owned()]
    {
        let answer = get(&path).await;
        assert_eq!((answer.status(), answer.body()), (unknown.status(), unknown.body()), "{path}");
    }
    let known = get(&format!("/probe/web/preStop?{}", token.query())).await;
    assert_eq!(known.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_probe_that_is_being_answered_gives_way_to_nobody() {
    let (probes, asked, answer) = slow_application().await;
    let (address, _filter) = served_with(Surface::Metrics, probes).await;
    let mut kubelet = TcpStream::connect(address).await.unwrap();
    kubelet.write_all(b"GET /probe/web/liveness HTTP/1.1\r\nhost: pod\r\n\r\n").await.unwrap();
    asked.await.unwrap();
    let mut silent = VecDeque::new();
    for _ in 0..4 * MAX_SILENT {
        silent.push_back(TcpStream::connect(address).await.unwrap());
    }
    // They are there, and more than may be.
    assert_eq!(read_all(&mut silent.pop_front().unwrap()).await, "");
    answer.send(()).unwrap();
    let text = read_all(&mut kubelet).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

#[tokio::test]
async fn a_hook_that_cannot_be_run_fails_in_kubelets_eyes_and_one_with_a_status_does_not() {
    let ask = async |kind: Kind, answer: &'static str| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            // Without an answer nobody listens.
            if !answer.is_empty() {
                let (mut io, _) = listener.accept().await.unwrap();
                assert!(io.read(&mut [0; 1024]).await.unwrap() > 0);
                io.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let get = HttpGet { port, path: "/".to_owned(), https: false, headers: Vec::new() };
        let mut probes = Probes::default();
        probes.insert("web", kind, Probe { action: Action::HttpGet(get), timeout_seconds: 60 });
        let (address, _filter) = served_with(Surface::Metrics, probes).await;
        let mut kubelet = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /probe/web/{kind} HTTP/1.1\r\nhost: pod\r\n\r\n");
        kubelet.write_all(request.as_bytes()).await.unwrap();
        read_all(&mut kubelet).await
    };
    for kind in [Kind::PostStart, Kind::PreStop] {
        assert_eq!(ask(kind, "").await, "", "{kind}: nobody listens");
        assert_eq!(ask(kind, "HTTP/1.1 2").await, "", "{kind}: it breaks off");
        let text = ask(kind, "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 500"), "{kind}: {text}");
    }
    assert!(ask(Kind::Liveness, "").await.starts_with("HTTP/1.1 503"));
}

//! Replays against real servers on loopback.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    sync::mpsc,
    task::LocalSet,
};
use tokio_rustls::TlsAcceptor;
use tonic_health::pb::{
    HealthCheckResponse,
    health_server::{Health, HealthServer},
};
use tower_service::Service as _;

use super::*;
use crate::plain::{PlainPool, PlainVersion};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn replayer(action: Action, timeout_seconds: u32) -> Replayer {
    let mut probes = Probes::default();
    probes.insert("web", Kind::Readiness, Probe { action, timeout_seconds });
    Replayer::new(probes, LOCALHOST, Spares::new().0).unwrap()
}

async fn replay(action: Action) -> (StatusCode, String) {
    let agent = HeaderValue::from_static("kube-probe/1.33");
    let replayer = replayer(action, 5);
    let (kind, probe) = replayer.find("web/readiness").unwrap();
    match replayer.replay(kind, probe, Some(&agent)).await {
        Ok(answer) => (answer.status, String::from_utf8(answer.body).unwrap()),
        Err(failure) => (failure.status, failure.reason),
    }
}

fn http(port: u16, path: &str) -> HttpGet {
    HttpGet { port, path: path.to_owned(), https: false, headers: Vec::new() }
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Serves connections, each with the next answer, and leaves them open; says which heads it was sent.
async fn server(answers: &[&str]) -> (u16, mpsc::UnboundedReceiver<String>) {
    let (listener, port) = listener().await;
    let answers: Vec<String> = answers.iter().map(|&answer| answer.to_owned()).collect();
    let (seen, heads) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut open = Vec::new();
        for answer in answers {
            let (mut io, _) = listener.accept().await.unwrap();
            let _told = seen.send(head(&mut io).await);
            io.write_all(answer.as_bytes()).await.unwrap();
            open.push(io);
        }
        std::future::pending::<()>().await;
    });
    (port, heads)
}

async fn head<I: tokio::io::AsyncRead + Unpin>(io: &mut I) -> String {
    let (mut io, mut head) = (BufReader::new(io), String::new());
    while !head.ends_with("\r\n\r\n") {
        assert!(io.read_line(&mut head).await.unwrap() > 0, "{head}");
    }
    head
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn the_applications_status_and_words_reach_kubelet() {
    for (status, code) in
        [("200 OK", 200), ("204 No Content", 204), ("404 Not Found", 404), ("500 Oops", 500)]
    {
        let (port, _heads) = server(&[&answer(status, "", if code == 204 { "" } else { "words" })]).await;
        let (seen, text) = replay(Action::HttpGet(http(port, "/ready"))).await;
        assert_eq!((seen.as_u16(), text.as_str()), (code, if code == 204 { "" } else { "words" }));
    }
}

#[tokio::test]
async fn what_the_spec_declares_is_sent_and_nothing_of_the_askers() {
    let (port, mut heads) = server(&[&answer("200 OK", "", "")]).await;
    let headers =
        vec![("Host".to_owned(), "shop.example".to_owned()), ("X-Probe".to_owned(), "yes".to_owned())];
    let get = HttpGet { headers, ..http(port, "/ready?deep=1") };
    assert_eq!(replay(Action::HttpGet(get)).await.0, StatusCode::OK);
    let head = heads.recv().await.unwrap();
    assert!(head.starts_with("GET /ready?deep=1 HTTP/1.1\r\n"), "{head}");
    let names: Vec<String> =
        head.lines().filter_map(|line| line.split_once(": ")).map(|(name, _)| name.to_lowercase()).collect();
    assert_eq!(names, ["host", "x-probe", "user-agent", "accept"], "{head}");
    assert!(head.contains("shop.example\r\n") && head.contains("kube-probe/1.33\r\n"), "{head}");
}

#[tokio::test]
async fn a_redirect_on_the_same_server_is_followed_and_one_that_leads_elsewhere_is_a_success() {
    let (port, mut heads) =
        server(&[&answer("302 Found", "location: login?x\r\n", ""), &answer("500 Oops", "", "down")]).await;
    assert_eq!(replay(Action::HttpGet(http(port, "/a/b?c"))).await.0, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(heads.recv().await.unwrap().starts_with("GET /a/b?c "));
    assert!(heads.recv().await.unwrap().starts_with("GET /a/login?x "));

    for elsewhere in
        ["https://shop.example/", "//shop.example/", "mailto:shop@shop.example", "https://127.0.0.1/"]
    {
        let (port, _heads) = server(&[&answer("301 Moved", &format!("location: {elsewhere}\r\n"), "")]).await;
        assert_eq!(replay(Action::HttpGet(http(port, "/"))).await.0, StatusCode::OK, "{elsewhere}");
    }
}

#[tokio::test]
async fn redirects_without_end_are_a_failure() {
    let again = answer("307 Again", "location: /\r\n", "");
    let (port, _heads) = server(&[again.as_str(); MOST_REDIRECTS + 1]).await;
    let (status, text) = replay(Action::HttpGet(http(port, "/"))).await;
    assert!(!status.is_success() && text.contains("redirects"), "{status} {text}");
}

#[tokio::test]
async fn of_an_endless_body_the_beginning_is_enough() {
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        let (mut io, _) = listener.accept().await.unwrap();
        head(&mut io).await;
        io.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        while io.write_all(&[b'x'; 1024]).await.is_ok() {}
    });
    let (status, text) = replay(Action::HttpGet(http(port, "/"))).await;
    assert_eq!((status, text.len()), (StatusCode::OK, 10 * 1024));
}

#[tokio::test]
async fn https_is_asked_whatever_the_certificate_says_in_both_versions_of_tls() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let key = rcgen::generate_simple_self_signed(["expired.example".to_owned()]).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], key.signing_key.into())
        .unwrap();
        let (listener, port) = listener().await;
        tokio::spawn(async move {
            let (io, _) = listener.accept().await.unwrap();
            let mut io = TlsAcceptor::from(Arc::new(config)).accept(io).await.unwrap();
            head(&mut io).await;
            io.write_all(answer("200 OK", "", "secret").as_bytes()).await.unwrap();
            let _ended = io.shutdown().await;
        });
        let get = HttpGet { https: true, ..http(port, "/") };
        assert_eq!(replay(Action::HttpGet(get)).await, (StatusCode::OK, "secret".to_owned()));
    }
}

#[tokio::test]
async fn a_tcp_probe_means_that_the_application_listens() {
    let (listener, port) = listener().await;
    assert_eq!(replay(Action::TcpSocket { port }).await.0, StatusCode::OK);
    drop(listener);
    let (status, text) = replay(Action::TcpSocket { port }).await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && text.contains("refused"), "{status} {text}");
    let (status, _) = replay(Action::HttpGet(http(port, "/"))).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}

/// Serves `cart` and nothing else.
struct Cart;

#[tonic::async_trait]
impl Health for Cart {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, tonic::Status> {
        let status = match request.into_inner().service.as_str() {
            "" => ServingStatus::Serving,
            "cart" => ServingStatus::NotServing,
            _ => return Err(tonic::Status::not_found("no such service")),
        };
        Ok(tonic::Response::new(HealthCheckResponse { status: status.into() }))
    }

    type WatchStream = tokio_stream::Empty<Result<HealthCheckResponse, tonic::Status>>;

    async fn watch(
        &self,
        _: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("no"))
    }
}

#[tokio::test]
async fn a_grpc_probe_asks_the_health_service() {
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let service = service_fn(|request| HealthServer::new(Cart).call(request));
            let server = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(io), service));
        }
    });
    let ask = |service: &str| replay(Action::Grpc { port, service: service.to_owned() });
    assert_eq!(ask("").await.0, StatusCode::OK);
    for (service, word) in [("cart", "NOT_SERVING"), ("basket", "no such service")] {
        let (status, text) = ask(service).await;
        assert!(status == StatusCode::SERVICE_UNAVAILABLE && text.contains(word), "{status} {text}");
    }
}

#[tokio::test]
async fn an_application_that_does_not_answer_has_failed_when_its_timeout_is_over() {
    let (listener, port) = listener().await;
    let held = tokio::spawn(async move {
        let (mut io, _) = listener.accept().await.unwrap();
        head(&mut io).await;
        // The replay gave up: its connection ends.
        io.read(&mut [0]).await.unwrap()
    });
    let replayer = replayer(Action::HttpGet(http(port, "/")), 1);
    let (_, probe) = replayer.find("web/readiness").unwrap();
    let failure = replayer.replay(Kind::Readiness, probe, None).await.unwrap_err();
    assert_eq!(failure.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(failure.reason.contains("longer than 1s"), "{failure:?}");
    assert_eq!(held.await.unwrap(), 0);
}

#[test]
fn nothing_but_what_the_spec_declares_is_replayed() {
    let replayer = replayer(Action::TcpSocket { port: 80 }, 1);
    for path in ["web/liveness", "other/readiness", "web/readiness/../liveness", "", "web"] {
        assert_eq!(replayer.find(path), None, "{path}");
    }
}

#[tokio::test]
async fn the_connection_of_the_first_success_is_left_to_requests_and_no_other() {
    let good = answer("200 OK", "", "words");
    let bad = answer("500 Oops", "", "");
    let closed = answer("200 OK", "connection: Keep-Alive, Close\r\n", "");
    let old = good.replace("1.1", "1.0");
    let two_lengths =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 9\r\n\r\n0\r\n\r\n".to_owned();
    let long = answer("200 OK", "", &"w".repeat(20_000));
    let (spares, mut left) = Spares::new();
    let replayer = Replayer::new(Probes::default(), LOCALHOST, spares).unwrap();
    // Of each replay: the answer, whether the application is asked to leave the connection open, and whether it is kept.
    for (kind, replays) in [
        // The first success, and the first after a failure.
        (
            Kind::Readiness,
            &[(&good, true, true), (&good, false, false), (&bad, false, false), (&good, true, true)][..],
        ),
        (Kind::Readiness, &[(&bad, true, false), (&good, true, true), (&good, false, false)]),
        // Nothing follows from these.
        (Kind::Startup, &[(&good, false, false)]),
        (Kind::Liveness, &[(&good, false, false)]),
        (Kind::PostStart, &[(&good, false, false)]),
        // The application closes, or says two lengths, or has more to say.
        (Kind::Readiness, &[(&two_lengths, true, false)]),
        (Kind::Readiness, &[(&closed, true, false)]),
        (Kind::Readiness, &[(&old, true, false)]),
        (Kind::Readiness, &[(&long, true, false)]),
    ] {
        let texts: Vec<&str> = replays.iter().map(|(text, ..)| text.as_str()).collect();
        let (port, mut heads) = server(&texts).await;
        let probe = Probe { action: Action::HttpGet(http(port, "/ready")), timeout_seconds: 5 };
        for (number, &(text, asked, kept)) in replays.iter().enumerate() {
            let answered = replayer.replay(kind, &probe, None).await.unwrap();
            assert_eq!(answered.status.is_success(), *text != bad);
            let head = heads.recv().await.unwrap();
            let seen = (!head.contains("connection: close"), left.try_recv().is_ok());
            assert_eq!(seen, (asked, kept), "{kind}, replay {number}, {text}");
        }
    }
}

#[tokio::test]
async fn an_application_that_ends_its_answer_by_closing_when_told_to_is_told_to_from_then_on() {
    let (listener, port) = listener().await;
    let (told, statuses) = (Arc::new(AtomicUsize::new(0)), ["200 OK", "500 Oops", "200 OK", "200 OK"]);
    let counted = Arc::clone(&told);
    tokio::spawn(async move {
        let mut open = Vec::new();
        for status in statuses {
            let (mut io, _) = listener.accept().await.unwrap();
            let to_close = head(&mut io).await.contains("connection: close");
            io.write_all(format!("HTTP/1.1 {status}\r\n\r\nwords").as_bytes()).await.unwrap();
            if to_close {
                counted.fetch_add(1, Ordering::Relaxed);
            } else {
                open.push(io);
            }
        }
    });
    let replayer = replayer(Action::HttpGet(http(port, "/")), 1);
    let (kind, probe) = replayer.find("web/readiness").unwrap();
    let mut seen = Vec::new();
    for _ in statuses {
        seen.push(match replayer.replay(kind, probe, None).await {
            Ok(answer) => answer.status.as_u16(),
            Err(failure) => failure.status.as_u16(),
        });
    }
    assert_eq!((seen.as_slice(), told.load(Ordering::Relaxed)), (&[504, 500, 200, 200][..], 3));
}

#[tokio::test]
async fn an_application_that_hangs_after_it_was_ready_may_leave_a_connection_again() {
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        let mut open = Vec::new();
        for answers in [true, false, true] {
            let (mut io, _) = listener.accept().await.unwrap();
            head(&mut io).await;
            if answers {
                io.write_all(answer("200 OK", "", "words").as_bytes()).await.unwrap();
            }
            open.push(io);
        }
        std::future::pending::<()>().await;
    });
    let (spares, mut left) = Spares::new();
    let replayer = Replayer::new(Probes::default(), LOCALHOST, spares).unwrap();
    let probe = Probe { action: Action::HttpGet(http(port, "/")), timeout_seconds: 1 };
    let mut kept = Vec::new();
    for _ in 0..3 {
        let succeeds = replayer.replay(Kind::Readiness, &probe, None).await.is_ok();
        kept.push((succeeds, left.try_recv().is_ok()));
    }
    assert_eq!(kept, [(true, true), (false, false), (true, true)]);
}

#[tokio::test]
async fn a_connection_that_is_left_carries_another_request() {
    let (listener, port) = listener().await;
    let (spares, mut left) = Spares::new();
    let replayer = Replayer::new(Probes::default(), LOCALHOST, spares).unwrap();
    let mut heads = Vec::new();
    let application = async {
        let (mut io, _) = listener.accept().await.unwrap();
        for _ in 0..2 {
            heads.push(head(&mut io).await);
            io.write_all(answer("200 OK", "", "words").as_bytes()).await.unwrap();
        }
    };
    let client = LocalSet::new();
    let requests = client.run_until(async {
        let probe = Probe { action: Action::HttpGet(http(port, "/ready")), timeout_seconds: 5 };
        replayer.replay(Kind::Readiness, &probe, None).await.unwrap();
        let pool = PlainPool::new(65_536);
        pool.adopt(left.try_recv().unwrap()).await;
        tokio::task::yield_now().await;
        let address = SocketAddr::new(LOCALHOST, port);
        let request =
            ::http::Request::get("http://shop:80/first").body(http_body_util::Empty::new()).unwrap();
        let answer = pool.send(address, PlainVersion::Http1, request, Duration::from_secs(5)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    });
    timeout(Duration::from_secs(30), async { tokio::join!(application, requests) }).await.unwrap();
    assert!(heads[1].starts_with("GET /first "), "{heads:?}");
}

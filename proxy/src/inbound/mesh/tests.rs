//! A caller's carrier, TLS, this module, and an application that the test plays.

use heddle_api::{carrier::Form, v1::AccessAction};
use http_body_util::Empty;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::spawn_local,
};

use super::{
    super::testing::{Application, CONNECT, World, on_a_worker, port, rest, rule, text},
    *,
};
use crate::{
    carrier::{SendError, Sent, Upgraded},
    config::{
        AppProtocol,
        inbound::{InboundPort, MtlsMode},
    },
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://reviews:9080{path}")).body(Empty::new()).unwrap()
}

fn guarded(action: AccessAction, from: Option<&str>, path: Option<&str>) -> InboundPort {
    port(AppProtocol::Detect, MtlsMode::Permissive, &[rule(action, from, path)])
}

/// Sends while the application answers `answer` and closes; gives what it was asked too.
async fn exchange(
    world: &World,
    application: &mut Application,
    request: Request<Empty<Bytes>>,
    answer: &str,
) -> (String, Result<Response<CarrierBody>, SendError>) {
    let peer = world.peer(Form::Http1, application.address.port());
    let answering = async { application.answer(answer).await.0 };
    tokio::join!(answering, world.web.send(&peer, request, CONNECT))
}

#[tokio::test]
async fn a_request_reaches_the_application_as_http_1_and_its_answer_comes_back() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let (asked, answer) = exchange(&world, &mut application, get("/a?b"), OK).await;
        assert_eq!(asked, "GET /a?b HTTP/1.1\r\nhost: reviews:9080\r\n\r\n");
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(text(answer).await, "ok");
    })
    .await;
}

#[tokio::test]
async fn who_may_not_call_is_told_so_and_the_application_is_not_touched() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let peer = world.peer(Form::Http1, application.address.port());
        for (rules, path, status) in [
            (guarded(AccessAction::Allow, Some("shop/other"), None), "/", 403),
            (guarded(AccessAction::Deny, Some("shop/web"), None), "/", 403),
            (guarded(AccessAction::Allow, Some("shop/web"), Some("/a")), "/b", 403),
            (guarded(AccessAction::Deny, Some("shop/web"), Some("/admin/*")), "/x/..%2fadmin/y", 403),
        ] {
            world.set(rules);
            let answer = world.web.send(&peer, get(path), CONNECT).await.unwrap();
            assert_eq!(answer.status(), status);
            assert_eq!(answer.headers()["heddle-reason"], "AccessDenied");
        }
        assert!(application.is_untouched());
        assert!(world.counted("heddle_refused_total{direction=\"inbound\",reason=\"AccessDenied\"} 4"));
        // The same connection, once policy allows it.
        world.set(guarded(AccessAction::Allow, Some("shop/web"), Some("/a")));
        let (_, answer) = exchange(&world, &mut application, get("/a"), OK).await;
        assert_eq!(answer.unwrap().status(), 200);
    })
    .await;
}

#[tokio::test]
async fn what_could_not_be_handed_over_may_be_tried_elsewhere() {
    on_a_worker(async {
        let world = World::new().await;
        let listener = TcpListener::bind((world.ip, 0)).await.unwrap();
        let closed = listener.local_addr().unwrap().port();
        drop(listener);
        for form in [Form::Http1, Form::Http2] {
            let error = world.web.send(&world.peer(form, closed), get("/"), CONNECT).await.unwrap_err();
            assert_eq!(error.sent, Sent::No, "{error}");
            let world = World::not_ready().await;
            let error = world.web.send(&world.peer(form, closed), get("/"), CONNECT).await.unwrap_err();
            assert_eq!(error.sent, Sent::No, "{error}");
        }
        let error = world.web.tunnel(&world.peer(Form::Tcp, closed), CONNECT).await.unwrap_err();
        assert_eq!(error.sent, Sent::No, "{error}");
    })
    .await;
}

#[tokio::test]
async fn an_application_that_fails_is_named_by_a_reason_and_cannot_name_one_itself() {
    on_a_worker(async {
        let world = World::new().await;
        for (said, status, reason) in [
            ("", 503, Some("UpstreamReset")),
            ("nonsense\r\n\r\n", 502, Some("BadResponse")),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", 502, Some("BadResponse")),
            ("HTTP/1.1 503 No\r\nHeddle-Reason: NoEndpoints\r\nContent-Length: 0\r\n\r\n", 503, None),
        ] {
            let mut application = world.application().await;
            let (_, answer) = exchange(&world, &mut application, get("/"), said).await;
            let answer = answer.unwrap();
            let told = answer.headers().get("heddle-reason").map(|reason| reason.to_str().unwrap());
            assert_eq!((answer.status().as_u16(), told), (status, reason), "{said:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn nothing_but_the_pods_own_ports_is_dialled() {
    on_a_worker(async {
        let world = World::new().await;
        let peer = world.peer(Form::Http1, heddle_api::ports::ADMIN);
        let answer = world.web.send(&peer, get("/"), CONNECT).await.unwrap();
        assert_eq!(answer.headers()["heddle-reason"], "OwnPort");
        let error =
            world.web.tunnel(&world.peer(Form::Tcp, heddle_api::ports::INBOUND), CONNECT).await.unwrap_err();
        assert_eq!(error.reason, Reason::OwnPort);
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_carries_bytes_with_half_close() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let peer = world.peer(Form::Tcp, application.address.port());
        let tunnel = world.web.tunnel(&peer, CONNECT).await.unwrap();
        let (near, mut client) = sockets().await;
        spawn_local(carrier::both_ways(near, tunnel, Bytes::new(), TCP_IDLE, |_, _| {}));
        let mut server = application.accept().await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut server).await.unwrap(), "question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        assert_eq!(rest(&mut client).await.unwrap(), "answer");
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_cannot_carry_requests_past_a_rule_about_requests() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let peer = world.peer(Form::Tcp, application.address.port());
        for rules in [
            guarded(AccessAction::Allow, Some("shop/web"), Some("/a")),
            guarded(AccessAction::Deny, Some("shop/web"), Some("/admin/*")),
        ] {
            world.set(rules);
            let error = world.web.tunnel(&peer, CONNECT).await.unwrap_err();
            assert_eq!(error.reason, Reason::AccessDenied);
        }
        assert!(application.is_untouched());
        world.set(guarded(AccessAction::Allow, Some("shop/web"), None));
        world.web.tunnel(&peer, CONNECT).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_that_is_open_is_reset_when_policy_denies_it_and_not_when_policy_changes_otherwise() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let peer = world.peer(Form::Tcp, application.address.port());
        let tunnel = world.web.tunnel(&peer, CONNECT).await.unwrap();
        let (near, mut client) = sockets().await;
        spawn_local(carrier::both_ways(near, tunnel, Bytes::new(), TCP_IDLE, |_, _| {}));
        let mut server = application.accept().await;
        for rules in [
            guarded(AccessAction::Allow, Some("shop/web"), None),
            guarded(AccessAction::Deny, Some("shop/other"), None),
        ] {
            world.set(rules);
            client.write_all(b"ping").await.unwrap();
            server.read_exact(&mut [0; 4]).await.unwrap();
        }
        world.set(guarded(AccessAction::Deny, Some("shop/web"), None));
        for end in [&mut client, &mut server] {
            let kind = end.read(&mut [0; 4]).await.unwrap_err().kind();
            assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
        }
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_does_not_fit_its_connection_is_misdirected() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let port = application.address.port();
        let answer = world.web.send(&world.peer(Form::Tcp, port), get("/"), CONNECT).await.unwrap();
        assert_eq!(answer.status(), 421);
        assert_eq!(answer.headers()["heddle-reason"], "NotOnThisConnection");
        let error = world.web.tunnel(&world.peer(Form::Http1, port), CONNECT).await.unwrap_err();
        assert_eq!(error.reason, Reason::NotOnThisConnection);
        let ask = Request::get("http://reviews:9080/").body(()).unwrap();
        let peer = world.peer(Form::Http2, port);
        let Upgraded::Declined(answer) = world.web.upgrade(&peer, ask, "websocket", CONNECT).await.unwrap()
        else {
            panic!("switched");
        };
        assert_eq!(answer.status(), 421);
        assert!(application.is_untouched());
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_is_confirmed_when_the_application_confirms_it_and_only_then() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let peer = world.peer(Form::Http1, application.address.port());
        let ask =
            || Request::get("http://reviews:9080/chat").header("sec-websocket-key", "k").body(()).unwrap();
        let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Accept: a\r\nHeddle-Status: 200\r\n\r\nhello";
        let ((asked, mut server), answer) = tokio::join!(
            application.answer(switching),
            world.web.upgrade(&peer, ask(), "websocket", CONNECT)
        );
        assert!(asked.starts_with("GET /chat HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("upgrade: websocket\r\n"), "{asked}");
        let Upgraded::Switched(answer, tunnel) = answer.unwrap() else { panic!("declined") };
        assert_eq!(answer.headers()["sec-websocket-accept"], "a");
        let (near, mut client) = sockets().await;
        spawn_local(carrier::both_ways(near, tunnel, Bytes::new(), TCP_IDLE, |_, _| {}));
        client.write_all(b"ping").await.unwrap();
        let mut ping = [0; 4];
        server.read_exact(&mut ping).await.unwrap();
        let mut hello = [0; 5];
        client.read_exact(&mut hello).await.unwrap();
        assert_eq!((&ping, &hello), (b"ping", b"hello"));

        let forged = "HTTP/1.1 200 OK\r\nHeddle-Status: 101\r\nContent-Length: 2\r\n\r\nno";
        let (_, answer) =
            tokio::join!(application.answer(forged), world.web.upgrade(&peer, ask(), "websocket", CONNECT));
        let Upgraded::Declined(answer) = answer.unwrap() else { panic!("switched") };
        assert!(!answer.headers().contains_key("heddle-status"));
        assert_eq!(text(answer).await, "no");

        world.set(guarded(AccessAction::Deny, None, Some("/chat")));
        let Upgraded::Declined(answer) = world.web.upgrade(&peer, ask(), "websocket", CONNECT).await.unwrap()
        else {
            panic!("switched");
        };
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["heddle-reason"]),
            (403, &"AccessDenied".parse().unwrap())
        );
    })
    .await;
}

/// What a server that declines still expects of an upgrade would be taken from the next caller's request.
#[tokio::test]
async fn no_request_follows_an_upgrade_on_its_connection_and_an_upgrade_has_no_content() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let peer = world.peer(Form::Http1, application.address.port());
        let ask = |length: &'static str| {
            Request::post("http://reviews:9080/chat").header("content-length", length).body(()).unwrap()
        };
        let Upgraded::Declined(answer) =
            world.web.upgrade(&peer, ask("5"), "websocket", CONNECT).await.unwrap()
        else {
            panic!("switched");
        };
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["heddle-reason"]),
            (400, &"BadRequest".parse().unwrap())
        );
        assert!(application.is_untouched());

        let declined = async {
            let answer = world.web.upgrade(&peer, ask("0"), "websocket", CONNECT).await.unwrap();
            let Upgraded::Declined(answer) = answer else { panic!("switched") };
            text(answer).await
        };
        let ((asked, _kept), answer) = tokio::join!(application.answer(OK), declined);
        assert!(!asked.contains("content-length"), "{asked}");
        assert_eq!(answer, "ok");
        let (_, answer) = exchange(&world, &mut application, get("/"), OK).await;
        assert_eq!(answer.unwrap().status(), 200);
    })
    .await;
}

#[tokio::test]
async fn a_request_that_is_cancelled_is_cancelled_at_the_application() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let peer = world.peer(Form::Http1, application.address.port());
        let mut server = {
            let sending = world.web.send(&peer, get("/"), CONNECT);
            tokio::select! {
                _ = sending => panic!("answered"),
                server = application.accept() => server,
            }
        };
        // The head, and then the end of a connection that nobody wants any more.
        assert!(rest(&mut server).await.unwrap().starts_with("GET / HTTP/1.1\r\n"));
    })
    .await;
}

#[tokio::test]
async fn a_connection_without_a_request_yet_does_not_hold_up_the_end() {
    on_a_worker(async {
        let world = World::new().await;
        let application = world.application().await;
        let peer = world.peer(Form::Http1, application.address.port());
        world.web.connect_ahead(&peer, CONNECT).await.unwrap();
        let open = "heddle_connections_open{direction=\"inbound\",tls=\"true\"} ";
        assert!(world.counted(&format!("{open}1")));
        world.drain.terminating();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(world.counted(&format!("{open}1")), "its caller has not heard of it yet");
        world.drain.leave();
        while !world.counted(&format!("{open}0")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_its_sidecar_asks_ahead_of_a_pods_first_request_is_answered_here_and_not_counted() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        // Nor is a caller that may ask for nothing told off for it.
        world.set(guarded(AccessAction::Deny, Some("shop/web"), None));
        for form in [Form::Http1, Form::Http2] {
            let peer = world.peer(form, application.address.port());
            world.web.ask_ahead(&peer, "reviews:9080".parse().unwrap(), CONNECT).await.unwrap();
        }
        assert!(application.is_untouched());
        let scrape = world.scrape();
        let counted = scrape.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
        let of_requests = |line: &&str| {
            ["http_server_request_duration", "heddle_refused"].iter().any(|n| line.starts_with(n))
        };
        assert_eq!(counted.filter(of_requests).count(), 0, "{scrape}");

        world.set(guarded(AccessAction::Allow, Some("shop/web"), None));
        let (_, answer) = exchange(&world, &mut application, get("/"), OK).await;
        assert_eq!(answer.unwrap().status(), 200);
        assert!(world.counted("heddle_connections_open{direction=\"inbound\",tls=\"true\"} 2"), "no new one");
    })
    .await;
}

#[tokio::test]
async fn what_must_not_be_passed_on_is_answered_like_any_request_and_only_to_who_may_ask() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let peer = world.peer(Form::Http1, application.address.port());
        let ask = async |method: Method| {
            let request = Request::builder().method(method).uri("http://reviews:9080/a");
            let request = request.header("max-forwards", "0").body(Empty::<Bytes>::new()).unwrap();
            world.web.send(&peer, request, CONNECT).await.unwrap().status().as_u16()
        };
        assert_eq!((ask(Method::OPTIONS).await, ask(Method::TRACE).await), (204, 400));
        assert!(world.counted("heddle_refused_total{direction=\"inbound\",reason=\"BadRequest\"} 1"));
        world.set(guarded(AccessAction::Deny, Some("shop/web"), None));
        assert_eq!(ask(Method::OPTIONS).await, 403);
        assert!(application.is_untouched());
        let counted = |line: &&str| line.starts_with("http_server_request_duration_seconds_count");
        assert_eq!(world.scrape().lines().filter(counted).count(), 3, "{}", world.scrape());
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_is_terminating_says_goodbye_and_still_serves_what_comes() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let (_, answer) = exchange(&world, &mut application, get("/"), OK).await;
        assert_eq!(text(answer.unwrap()).await, "ok");
        world.drain.terminating();
        let (_, answer) = exchange(&world, &mut application, get("/"), OK).await;
        assert_eq!(text(answer.unwrap()).await, "ok");
    })
    .await;
}

#[tokio::test]
async fn a_caller_without_a_certificate_of_the_mesh_is_refused_and_counted() {
    on_a_worker(async {
        let world = World::new().await;
        let mut io = TcpStream::connect((world.ip, heddle_api::ports::MESH)).await.unwrap();
        io.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let _alert_or_reset = rest(&mut io).await;
        let line = "heddle_peer_refused_total{direction=\"inbound\",reason=\"Handshake\"} 1";
        assert!(world.counted(line));
    })
    .await;
}

/// Two ends of one connection.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

#[test]
fn the_task_of_a_request_is_small() {
    fn future<R>(_: impl Fn(Rc<Connection>, Request<RecvStream>, SendResponse<Bytes>) -> R) -> usize {
        size_of::<R>()
    }
    // tokio boxes what is larger than 16 KiB, and a task is copied once for each request.
    assert!(future(Connection::stream) <= 6 * 1024, "{}", future(Connection::stream));
}

//! Raw bytes to 15006, and an application that the test plays.

use heddle_api::v1::AccessAction;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::{
    super::testing::{World, head, on_a_worker, port, rest, rule},
    *,
};
use crate::config::inbound::{InboundPort, MtlsMode};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: Reviews:9080\r\nConnection: close\r\n\r\n";

fn strict(protocol: AppProtocol) -> InboundPort {
    port(protocol, MtlsMode::Strict, &[])
}

fn permissive(protocol: AppProtocol) -> InboundPort {
    port(protocol, MtlsMode::Permissive, &[])
}

fn refused(reason: &str) -> String {
    format!("heddle_refused_total{{direction=\"inbound\",reason=\"{reason}\"}} 1")
}

#[tokio::test]
async fn a_redirected_request_reaches_the_port_it_was_for() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let mut client = world.plaintext(Some(application.address)).await;
        client.write_all(GET).await.unwrap();
        let (asked, _io) = application.answer(OK).await;
        assert_eq!(asked, "GET / HTTP/1.1\r\nhost: Reviews:9080\r\n\r\n");
        let answer = rest(&mut client).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_request_that_may_go_no_further_is_answered_here_if_its_caller_may_ask() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let ask = async |method: &str| {
            let mut client = world.plaintext(Some(application.address)).await;
            let head = format!("{method} / HTTP/1.1\r\nHost: reviews:9080\r\nConnection: close\r\n");
            client.write_all(format!("{head}Max-Forwards: 0\r\n\r\n").as_bytes()).await.unwrap();
            rest(&mut client).await.unwrap()
        };
        let answer = ask("OPTIONS").await;
        assert!(answer.starts_with("HTTP/1.1 204 ") && answer.ends_with("\r\n\r\n"), "{answer}");
        assert!(!answer.contains("content-length"), "{answer}");
        let answer = ask("TRACE").await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("heddle-reason: BadRequest"),
            "{answer}"
        );
        world.set(strict(AppProtocol::Http1));
        let answer = ask("OPTIONS").await;
        assert!(answer.contains("heddle-reason: PlaintextRefused\r\n"), "{answer}");
        assert!(application.is_untouched());
    })
    .await;
}

#[tokio::test]
async fn without_redirect_the_authority_names_the_port() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        world.set_port(application.address.port(), permissive(AppProtocol::Http1));
        let mut client = world.plaintext(None).await;
        client.write_all(GET).await.unwrap();
        application.answer(OK).await;
        assert!(rest(&mut client).await.unwrap().ends_with("ok"));
        for (host, status, reason) in [
            ("ratings:9080", "421", "NotOnThisConnection"),
            ("reviews", "421", "NotOnThisConnection"),
            ("", "400", "NoDestination"),
        ] {
            let mut client = world.plaintext(None).await;
            let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let answer = rest(&mut client).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
            assert!(answer.contains(&format!("heddle-reason: {reason}\r\n")), "{host}: {answer}");
        }
        let mut client = world.plaintext(None).await;
        client.write_all(b"\x16\x03\x01\0\0").await.unwrap();
        assert!(rest(&mut client).await.is_err());
        assert!(application.is_untouched());
    })
    .await;
}

#[tokio::test]
async fn a_strict_port_tells_http_and_resets_the_rest() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        for protocol in [AppProtocol::Detect, AppProtocol::Http1] {
            world.set(strict(protocol));
            let mut client = world.plaintext(Some(application.address)).await;
            client.write_all(GET).await.unwrap();
            let answer = rest(&mut client).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
            assert!(answer.contains("heddle-reason: PlaintextRefused\r\n"), "{answer}");
        }
        for (protocol, bytes) in [(AppProtocol::Opaque, GET), (AppProtocol::Detect, b"\0\0\0\x01".as_slice())]
        {
            world.set(strict(protocol));
            let mut client = world.plaintext(Some(application.address)).await;
            client.write_all(bytes).await.unwrap();
            assert!(rest(&mut client).await.is_err(), "a reset");
        }
        assert!(application.is_untouched());
        let line = "heddle_refused_total{direction=\"inbound\",reason=\"PlaintextRefused\"} 4";
        assert!(world.counted(line));
    })
    .await;
}

#[tokio::test]
async fn a_caller_without_identity_does_not_slip_past_a_deny() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let deny = rule(AccessAction::Deny, Some("shop/web"), None);
        world.set(port(AppProtocol::Detect, MtlsMode::Permissive, &[deny]));
        let mut client = world.plaintext(Some(application.address)).await;
        client.write_all(GET).await.unwrap();
        let answer = rest(&mut client).await.unwrap();
        assert!(answer.contains("heddle-reason: AccessDenied\r\n"), "{answer}");
        // Nor does one that says nothing, or speaks no HTTP.
        let mut client = world.plaintext(Some(application.address)).await;
        client.write_all(b"\x16\x03\x01\0\0").await.unwrap();
        assert!(rest(&mut client).await.is_err());
        assert!(application.is_untouched());
    })
    .await;
}

#[tokio::test]
async fn only_the_pods_own_addresses_and_not_the_sidecars_own_ports_are_reached() {
    on_a_worker(async {
        let world = World::new().await;
        let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = world.plaintext(Some(elsewhere.local_addr().unwrap())).await;
        assert!(client.read_u8().await.is_err());
        assert!(world.counted(&refused("ForeignAddress")));
        let mut client = world.plaintext(Some((world.ip, heddle_api::ports::ADMIN).into())).await;
        assert!(client.read_u8().await.is_err());
        assert!(world.counted(&refused("OwnPort")));
    })
    .await;
}

#[tokio::test]
async fn before_the_control_plane_has_spoken_nothing_comes_in() {
    on_a_worker(async {
        let world = World::not_ready().await;
        let mut application = world.application().await;
        let mut client = world.plaintext(Some(application.address)).await;
        assert!(client.read_u8().await.is_err());
        assert!(world.counted(&refused("NotReady")));
        assert!(application.is_untouched());
    })
    .await;
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let mut client = world.plaintext(Some(application.address)).await;
        let mut server = application.accept().await;
        server.write_all(b"220 ready\r\n").await.unwrap();
        let mut greeting = [0; 11];
        client.read_exact(&mut greeting).await.unwrap();
        client.write_all(b"QUIT").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut server).await.unwrap(), "QUIT");
    })
    .await;
}

#[tokio::test]
async fn a_client_that_was_silent_may_still_speak_http() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let mut client = world.plaintext(Some(application.address)).await;
        // The client was taken to wait, so the application was dialled; nobody spoke on that connection.
        let first = application.accept().await;
        client.write_all(GET).await.unwrap();
        let (asked, _io) = application.answer(OK).await;
        assert!(asked.starts_with("GET / HTTP/1.1\r\n"));
        drop(first);
        assert!(rest(&mut client).await.unwrap().ends_with("ok"));
    })
    .await;
}

#[tokio::test]
async fn a_client_that_was_silent_says_nothing_once_policy_denies_it() {
    on_a_worker(async {
        for _ in 0..10 {
            let world = World::new().await;
            let mut application = world.application().await;
            let mut client = world.plaintext(Some(application.address)).await;
            let mut server = application.accept().await;
            world.set(strict(AppProtocol::Detect));
            client.write_all(b"SET x 1\r\n").await.unwrap();
            assert_eq!(rest(&mut server).await.unwrap(), "");
            assert!(rest(&mut client).await.is_err(), "a clean end instead of a reset");
            assert!(world.counted(&refused("PlaintextRefused")));
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_answered_by_a_server_that_speaks() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        // At once, and after it was taken to wait for the server.
        for silent_first in [false, true] {
            let mut client = world.plaintext(Some(application.address)).await;
            let mut server = if silent_first {
                let server = application.accept().await;
                client.shutdown().await.unwrap();
                server
            } else {
                client.shutdown().await.unwrap();
                application.accept().await
            };
            assert_eq!(rest(&mut server).await.unwrap(), "", "its end is passed on");
            server.write_all(b"hello").await.unwrap();
            drop(server);
            assert_eq!(rest(&mut client).await.unwrap(), "hello");
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_has_asked_for_nothing_does_not_hold_up_the_end() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        world.set(permissive(AppProtocol::Http));
        let mut redirected = world.plaintext(Some(application.address)).await;
        let mut explicit = world.plaintext(None).await;
        world.drain.leave();
        for client in [&mut redirected, &mut explicit] {
            assert_eq!(rest(client).await.unwrap(), "");
        }
        assert!(application.is_untouched());
    })
    .await;
}

#[tokio::test]
async fn what_the_port_declares_is_what_the_application_gets() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        world.set(permissive(AppProtocol::Http2));
        let mut client = world.plaintext(Some(application.address)).await;
        client.write_all(GET).await.unwrap();
        let server = application.accept().await;
        let mut connection = h2::server::handshake(server).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        assert_eq!(request.uri(), "http://Reviews:9080/");
        respond.send_response(Response::new(()), true).unwrap();
        tokio::task::spawn_local(async move { while connection.accept().await.is_some() {} });
        assert!(rest(&mut client).await.unwrap().starts_with("HTTP/1.1 200 OK\r\n"));
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_is_passed_through() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let mut client = world.plaintext(Some(application.address)).await;
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await
            .unwrap();
        let (_, mut server) = application
            .answer("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await;
        let answer = super::super::testing::head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.contains("upgrade: websocket\r\n"), "{answer}");
        client.write_all(b"ping").await.unwrap();
        let mut ping = [0; 4];
        server.read_exact(&mut ping).await.unwrap();
        let open = "heddle_connections_open{direction=\"inbound\",tls=\"false\"} 1";
        assert!(world.counted(open), "HTTP is over, the connection is not");
        drop(server);
        assert_eq!(rest(&mut client).await.unwrap(), "");
    })
    .await;
}

#[tokio::test]
async fn a_port_that_is_declared_as_http_gets_no_other_bytes() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        world.set(permissive(AppProtocol::Http));
        // A space too many, which some servers would take for HTTP; and no HTTP at all.
        for bytes in [&b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"[..], b"\0\0\0\x08\x04\xd2\x16\x2f\r\n\r\n"] {
            let mut client = world.plaintext(Some(application.address)).await;
            client.write_all(bytes).await.unwrap();
            let answer = rest(&mut client).await.unwrap_or_default();
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
        }
        assert!(application.is_untouched());
        assert!(world.counted("heddle_refused_total{direction=\"inbound\",reason=\"BadRequest\"} 2"));
    })
    .await;
}

#[tokio::test]
async fn trailers_cannot_pass_for_the_meshs_own_word() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let mut client = world.plaintext(Some(application.address)).await;
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: te, close\r\n\r\n")
            .await
            .unwrap();
        application
            .answer(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: heddle-reason, heddle-status, x-end\r\n\r\n\
                 2\r\nok\r\n0\r\nHeddle-Reason: AccessDenied\r\nHeddle-Status: 101\r\nX-End: yes\r\n\r\n",
            )
            .await;
        let answer = rest(&mut client).await.unwrap();
        assert!(answer.contains("x-end: yes\r\n"), "{answer}");
        assert!(!answer.contains("AccessDenied") && !answer.contains("heddle-status: 101"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_connect_leads_nowhere() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let mut client = world.plaintext(Some(application.address)).await;
        client.write_all(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(rest(&mut client).await.unwrap().starts_with("HTTP/1.1 421 "));
        assert!(application.is_untouched());
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_is_terminating_closes_after_the_answer() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let mut client = world.plaintext(Some(application.address)).await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut server = application.accept().await;
        world.drain.terminating();
        server.write_all(OK.as_bytes()).await.unwrap();
        let answer = rest(&mut client).await.unwrap();
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn an_idle_connection_of_a_pod_that_is_terminating_gets_one_more_answer_and_is_told_to_go() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let mut client = world.plaintext(Some(application.address)).await;
        let request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
        client.write_all(request).await.unwrap();
        let (_, server) = application.answer(OK).await;
        // The next is to come on a connection of its own.
        drop(server);
        let answer = head(&mut client).await;
        assert!(!answer.contains("connection:"), "{answer}");
        client.read_exact(&mut [0; 2]).await.unwrap();
        world.drain.terminating();
        // It crosses the word on its way.
        tokio::task::yield_now().await;
        client.write_all(request).await.unwrap();
        application.answer(OK).await;
        let answer = rest(&mut client).await.unwrap();
        assert!(answer.contains("connection: close\r\n") && answer.ends_with("ok"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_new_http2_connection_of_a_pod_that_is_terminating_gets_its_first_request_served() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let client = world.plaintext(Some(application.address)).await;
        world.set_port(application.address.port(), permissive(AppProtocol::Http1));
        world.drain.terminating();
        let (mut sender, connection) = h2::client::handshake(client).await.unwrap();
        let connection = tokio::task::spawn_local(connection);
        let request = Request::builder().uri("http://a/").body(()).unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        let (_, answer) = tokio::join!(application.answer(OK), answer);
        assert_eq!(answer.unwrap().status(), StatusCode::OK);
        // GOAWAY, so that the next request goes elsewhere.
        drop(sender);
        connection.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn trailers_reach_a_client_that_asked_for_them() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let mut client = world.plaintext(Some(application.address)).await;
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n")
            .await
            .unwrap();
        let (asked, _io) = application
            .answer(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
            )
            .await;
        assert!(asked.contains("te: trailers\r\n"), "{asked}");
        let answer = rest(&mut client).await.unwrap();
        assert!(answer.contains("trailer: x-sum\r\n"), "{answer}");
        assert!(answer.ends_with("2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn an_http_1_0_client_gets_the_body_to_the_end_of_the_connection() {
    on_a_worker(async {
        let world = World::new().await;
        let mut application = world.application().await;
        let mut client = world.plaintext(Some(application.address)).await;
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let (asked, _io) = application
            .answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            .await;
        assert_eq!(asked, "GET / HTTP/1.1\r\nhost: \r\n\r\n");
        let answer = rest(&mut client).await.unwrap();
        assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    })
    .await;
}

//! HTTP/1 is carried as HTTP/2 between sidecars and given back as it was; HTTP/2, gRPC and upgrades pass too.

use std::time::Duration;

use bytes::Bytes;
use heddle_tests::{
    World,
    app::TcpApp,
    client::{Raw, body, empty},
    manifest,
};
use http::{Method, Request, Version};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use crate::shop::{self, HOST};

/// Who refuses `/secret/x` there, with which status and reason: the caller's sidecar, and the other one.
const REFUSED: [(&str, u16, &str); 2] = [("empty:9080", 503, "NoEndpoints"), (HOST, 403, "AccessDenied")];

/// A shop whose sidecars have something to refuse: [`REFUSED`].
async fn refusing() -> shop::Shop {
    let shop = shop::open(1).await;
    shop.world.save("empty.yaml", &manifest::service("shop/empty", 9080, "http", "app: nobody")).unwrap();
    shop.web.answers("empty:9080", "/", |answer| answer.reason() == "NoEndpoints").await;
    shop.access_policy("no-secrets", "Deny", "  - to: [{paths: [\"/secret/*\"]}]");
    shop.web.answers(HOST, "/secret/x", |answer| answer.status == 403).await;
    shop
}

#[tokio::test]
async fn bodies_trailers_and_statuses_come_back_as_they_were() {
    let shop = shop::open(1).await;
    let mut http1 = shop.web.http1().await.unwrap();
    let mut http2 = shop.web.http2().await.unwrap();
    for client in [&mut http1, &mut http2] {
        let big = vec![b'z'; 1_000_000];
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{HOST}/echo"))
            .header("te", "trailers")
            .body(body(big.clone()))
            .unwrap();
        let answer = client.send(request).await.unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, big.len()));
        let trailers = answer.trailers.expect("the application's trailers");
        assert_eq!(trailers["x-echo"], "done");

        for code in [204, 304, 404, 418, 500] {
            let answer = client.get(HOST, &format!("/status/{code}")).await.unwrap();
            assert_eq!((answer.status, answer.body.len()), (code, 0));
            assert_eq!(answer.answered_by(), "v1");
        }
        let answer = client.request(Method::HEAD, HOST, "/bytes/5000", empty()).await.unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, 0));
        assert_eq!(answer.headers.get_all("content-length").iter().count(), 1);
        assert_eq!(answer.header("content-length"), "5000");
        let answer = client.get(HOST, "/bytes/5000").await.unwrap();
        assert_eq!(answer.headers.get_all("content-length").iter().count(), 1);
    }
    // The port declares HTTP/1.1, so that is what the application got from both.
    assert!(shop.reviews[0].app().seen().iter().all(|seen| seen.version == Version::HTTP_11));
}

#[tokio::test]
async fn http_1_0_gets_an_answer_it_can_read() {
    let shop = shop::open(1).await;
    let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
    client
        .send(format!("POST /echo HTTP/1.0\r\nHost: {HOST}\r\nContent-Length: 3\r\n\r\nabc"))
        .await
        .unwrap();
    let all = client.read_to_end().await.unwrap();
    assert!(all.starts_with("HTTP/1.") && all.contains(" 200 "), "{all}");
    assert!(all.ends_with("\r\n\r\nabc"), "no chunks for HTTP/1.0, and the end by closing: {all}");
}

#[tokio::test]
async fn the_sidecar_itself_says_100_continue() {
    let shop = shop::open(1).await;
    let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
    client
        .send(format!(
            "POST /echo HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        ))
        .await
        .unwrap();
    assert!(client.read_until("\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 100"));
    client.send("abc").await.unwrap();
    let head = client.read_until("\r\n\r\n").await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

#[tokio::test]
async fn max_forwards_counts_both_sidecars() {
    let shop = shop::open(1).await;
    let ask = async |hops: &str| {
        let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
        let head = format!("OPTIONS /bytes/3 HTTP/1.1\r\nHost: {HOST}\r\nMax-Forwards: {hops}\r\n\r\n");
        client.send(head).await.unwrap();
        client.read_until("\r\n\r\n").await.unwrap()
    };
    let before = shop.reviews[0].app().requests();
    for hops in ["0", "1"] {
        let answer = ask(hops).await;
        assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    }
    assert_eq!(shop.reviews[0].app().requests(), before);
    assert!(ask("2").await.starts_with("HTTP/1.1 200 "));
    assert_eq!(shop.reviews[0].app().seen().last().unwrap().headers["max-forwards"], "0");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let shop = shop::open(1).await;
    let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
    let one = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    client.send(one("/bytes/3") + &one("/bytes/4") + &one("/bytes/5")).await.unwrap();
    for length in [3, 4, 5] {
        let (status, _, body) = client.read_response().await.unwrap();
        assert_eq!((status, body.len()), (200, length));
    }
}

#[tokio::test]
async fn an_upgrade_is_confirmed_only_when_the_application_confirmed_it() {
    let shop = shop::open(1).await;
    let ask = |path: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
    };
    let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
    client.send(ask("/upgrade")).await.unwrap();
    let head = client.read_until("\r\n\r\n").await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.to_ascii_lowercase().contains("upgrade: echo"), "{head}");
    assert!(!head.to_ascii_lowercase().contains("heddle-status"), "{head}");
    for text in ["warp", "weft"] {
        client.send(text).await.unwrap();
        assert_eq!(client.read_exact(4).await.unwrap(), text.as_bytes());
    }
    client.finish().await.unwrap();
    assert_eq!(client.read_to_end().await.unwrap(), "");

    // A list reaches the application as the client wrote it, but for HTTP, and what it chose comes back.
    let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
    client.send(ask("/upgrade").replace("echo", "irc/6.9, h2c, echo")).await.unwrap();
    let head = client.read_until("\r\n\r\n").await.unwrap();
    assert!(head.to_ascii_lowercase().contains("upgrade: irc/6.9, echo\r\n"), "{head}");

    let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
    client.send(ask("/refuse-upgrade")).await.unwrap();
    let (status, head, _) = client.read_response().await.unwrap();
    assert_eq!(status, 403);
    assert!(!head.to_ascii_lowercase().contains("heddle-status"), "{head}");
}

#[tokio::test]
async fn grpc_streams_both_ways_and_gives_trailers_back() {
    let mut world = World::new().unwrap();
    world.save("grpc.yaml", &manifest::service("shop/grpc", 9080, "grpc", "app: grpc")).unwrap();
    world.start_control_plane().await.unwrap();
    let app = world.pod("shop/grpc-v1").answering("v1").start().await.unwrap();
    let web = world.pod("shop/web").start().await.unwrap();
    web.answers("grpc:9080", "/", |answer| answer.status == 200).await;

    let mut client = web.http2().await.unwrap();
    let (tx, rx) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(4);
    let request = Request::builder()
        .method(Method::POST)
        .uri("http://grpc:9080/echo")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(rx)).boxed())
        .unwrap();
    let response = client.open(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut answers = response.into_body();
    for n in 0..20 {
        // Each message comes back before the next is sent: nothing is gathered on the way.
        let message = Bytes::from(format!("message {n}"));
        tx.send(Ok(Frame::data(message.clone()))).await.unwrap();
        let frame = tokio::time::timeout(Duration::from_secs(10), answers.frame()).await.unwrap().unwrap();
        assert_eq!(frame.unwrap().into_data().unwrap(), message);
    }
    drop(tx);
    let last = tokio::time::timeout(Duration::from_secs(10), answers.frame()).await.unwrap().unwrap();
    assert_eq!(last.unwrap().into_trailers().unwrap()["grpc-status"], "0");
    assert!(app.app().seen().iter().any(|seen| seen.version == Version::HTTP_2));
}

#[tokio::test]
async fn a_pod_may_call_itself_through_its_own_service() {
    let shop = shop::open(1).await;
    let reviews = &shop.reviews[0];
    reviews.answers(HOST, "/", |answer| answer.status == 200 && answer.answered_by() == "v1").await;
}

#[tokio::test]
async fn a_service_answers_to_every_one_of_its_names() {
    let shop = shop::open(1).await;
    for name in [
        "reviews:9080",
        "reviews.shop:9080",
        "reviews.shop.svc:9080",
        "reviews.shop.svc.cluster.local:9080",
        "REVIEWS.shop:9080",
    ] {
        let answer = shop.web.http1().await.unwrap().get(name, "/").await.unwrap();
        assert_eq!((answer.status, answer.answered_by()), (200, "v1"), "{name}: {}", answer.reason());
    }
}

#[tokio::test]
async fn headless_pods_are_reached_by_address_with_their_own_identity() {
    let mut shop = shop::open(2).await;
    shop.world
        .save(
            "headless.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: each, namespace: shop}\nspec:\n  clusterIP: None\n  \
             selector: {app: reviews}\n  ports: [{name: main, port: 9080, targetPort: 9080, appProtocol: http}]\n",
        )
        .unwrap();
    let _ = &mut shop.world;
    for (n, pod) in shop.reviews.iter().enumerate() {
        let host = format!("{}:9080", pod.ip);
        shop.web.answers(&host, "/", |answer| answer.status == 200).await;
        for _ in 0..10 {
            let answer = shop.web.http1().await.unwrap().get(&host, "/").await.unwrap();
            assert_eq!(answer.answered_by(), format!("v{}", n + 1));
        }
    }
    let scrape = shop.web.scrape().await.unwrap();
    let plain = scrape.sum("http_client_request_duration_seconds_count", &[("heddle_mtls", "false")]);
    assert!(plain == 0.0, "{}", scrape.text);
}

#[tokio::test]
async fn an_address_outside_the_mesh_is_passed_through_untouched() {
    let mut shop = shop::open(1).await;
    let outside = shop.world.new_address();
    let address = std::net::SocketAddr::new(outside, 8000);
    let _app =
        TcpApp::answering(address, b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\noutside").await.unwrap();
    let answer = shop.web.http1().await.unwrap().get(&address.to_string(), "/").await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "outside"));
}

#[tokio::test]
async fn long_lived_http2_clients_are_balanced_per_request() {
    let shop = shop::open(3).await;
    shop.traffic_policy("  loadBalancing: {algorithm: RoundRobin}");
    let mut client = shop.web.http2().await.unwrap();
    heddle_tests::eventually("the policy is in force: three requests go to three pods", || {
        let mut client = client.share().unwrap();
        async move {
            let mut three = std::collections::BTreeSet::new();
            for _ in 0..3 {
                three.insert(client.get(HOST, "/").await?.answered_by().to_owned());
            }
            anyhow::ensure!(three.len() == 3, "{three:?}");
            Ok(())
        }
    })
    .await;
    let before: Vec<_> = shop.reviews.iter().map(|pod| pod.app().requests()).collect();
    for _ in 0..120 {
        assert_eq!(client.get(HOST, "/").await.unwrap().status, 200);
    }
    for (pod, before) in shop.reviews.iter().zip(before) {
        let got = pod.app().requests() - before;
        assert!((35..=45).contains(&got), "{} got {got} of 120", pod.name);
    }
}

#[tokio::test]
async fn a_refused_head_has_its_reason_and_no_body() {
    let shop = refusing().await;
    for mut client in [shop.web.http1().await.unwrap(), shop.web.http2().await.unwrap()] {
        // By the caller's sidecar, and by the other one.
        for (host, status, reason) in REFUSED {
            let answer = client.request(Method::HEAD, host, "/secret/x", empty()).await.unwrap();
            assert_eq!((answer.status, answer.reason(), answer.body.len()), (status, reason, 0));
        }
    }
}

#[tokio::test]
async fn an_upgraded_connection_that_is_reset_does_not_look_ended() {
    let mut world = World::new().unwrap();
    shop::declare(&world, 1);
    world.start_control_plane().await.unwrap();
    let reviews = world.pod("shop/reviews-v1").ports(&[9080]).start().await.unwrap();
    let _app = TcpApp::start(reviews.port(9080), |mut stream| async move {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(stream.read_u8().await?);
        }
        let switching =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello";
        stream.write_all(switching.as_bytes()).await?;
        stream.read_u8().await?;
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
    })
    .await
    .unwrap();
    let web = world.pod("shop/web").start().await.unwrap();
    let ask = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    let tunnel = format!("CONNECT {HOST} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    // To the sidecar itself, and within a CONNECT.
    for before in [None, Some(tunnel)] {
        let mut client = Raw::connect(web.outbound()).await.unwrap();
        if let Some(tunnel) = before {
            client.send(tunnel).await.unwrap();
            let head = client.read_until("\r\n\r\n").await.unwrap();
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        }
        client.send(&ask).await.unwrap();
        let head = client.read_until("\r\n\r\nhello").await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        client.send("x").await.unwrap();
        let end = client.read_to_end().await;
        assert!(end.is_err(), "a clean end instead of a reset: {end:?}");
    }
}

#[tokio::test]
async fn a_client_that_left_before_its_answer_is_not_counted_as_served() {
    let shop = shop::open(1).await;
    let count = async |labels: &[(&str, &str)]| {
        shop.web.scrape().await.unwrap().sum("http_client_request_duration_seconds_count", labels)
    };
    let served = [("http_response_status_code", "200")];
    let (all, before) = (count(&[]).await, count(&served).await);
    shop.reviews[0].app().behave(heddle_tests::app::Mode::Hang);
    let asked = shop.reviews[0].app().requests();
    let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await.unwrap();
    heddle_tests::eventually("the application has the request", || async {
        anyhow::ensure!(shop.reviews[0].app().requests() > asked, "not yet");
        Ok(())
    })
    .await;
    drop(client);
    heddle_tests::eventually("it is counted", || async {
        anyhow::ensure!(count(&[]).await > all, "not yet");
        Ok(())
    })
    .await;
    assert_eq!(count(&served).await, before);
}

/// By either sidecar: a client that writes everything before it reads still hears why.
#[tokio::test]
async fn an_answer_before_the_uploads_end_is_heard() {
    let shop = refusing().await;
    let upload = vec![b'x'; 16 << 20];
    for (host, expected, reason) in REFUSED {
        let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
        let length = upload.len();
        client
            .send(format!("POST /secret/x HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"))
            .await
            .unwrap();
        client.send(&upload).await.unwrap_or_else(|error| panic!("{reason}: {error:#}"));
        let (status, head, _) = client.read_response().await.unwrap();
        assert!(status == expected && head.contains(reason), "{head}");
    }
}

/// What HTTP/2 does not take would end the stream, and pass for the endpoint's failure.
#[tokio::test]
async fn trailers_that_concern_a_connection_end_at_it() {
    let shop = shop::open(1).await;
    let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
    for n in 0..6 {
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(format!("{head}2\r\nhi\r\n0\r\nKeep-Alive: x\r\nX-A: b\r\n\r\n")).await.unwrap();
        let (status, head, _) = client.read_response().await.unwrap();
        assert_eq!(status, 200, "request {n}: {head}");
    }
    assert!(shop.web.ejected().await.unwrap().is_empty());
}

/// `reviews.` is the root's, whatever Service is called so.
#[tokio::test]
async fn a_name_that_ends_in_a_dot_is_left_to_dns() {
    let shop = shop::open(1).await;
    let asked = shop.reviews[0].app().requests();
    let mut request = Raw::connect(shop.web.outbound()).await.unwrap();
    request.send("GET / HTTP/1.1\r\nHost: reviews.:9080\r\n\r\n").await.unwrap();
    let head = request.read_until("\r\n\r\n").await.unwrap();
    assert!(head.to_lowercase().contains("heddle-reason: unknownhost"), "{head}");
    let mut tunnel = Raw::connect(shop.web.outbound()).await.unwrap();
    tunnel.send("CONNECT reviews.:9080 HTTP/1.1\r\nHost: reviews.:9080\r\n\r\n").await.unwrap();
    assert!(tunnel.read_until("\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 200"));
    let _refused_already = tunnel.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert!(tunnel.read_to_end().await.is_err(), "a clean end instead of a reset");
    assert_eq!(shop.reviews[0].app().requests(), asked);
}

#[tokio::test]
async fn a_service_without_endpoints_is_named() {
    let shop = shop::open(1).await;
    shop.world.save("empty.yaml", &manifest::service("shop/empty", 9080, "http", "app: nobody")).unwrap();
    shop.web.answers("empty:9080", "/", |answer| answer.reason() == "NoEndpoints").await;
    let answer = shop.web.http1().await.unwrap().get("empty:9080", "/").await.unwrap();
    assert_eq!((answer.status, answer.reason()), (503, "NoEndpoints"));
    let scrape = shop.web.scrape().await.unwrap();
    assert!(scrape.sum("heddle_refused_total", &[("reason", "NoEndpoints")]) >= 1.0, "{}", scrape.text);
}

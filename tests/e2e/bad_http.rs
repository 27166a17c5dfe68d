//! Bad HTTP gets what the RFCs ask, and no ambiguity is forwarded in either direction.

use heddle_tests::{
    app::TcpApp,
    client::{Raw, empty},
    manifest,
};
use http::Request;

use crate::shop::{self, HOST, Shop};

/// Writes `bytes` to web's sidecar and gives the status of its answer; 0: closed without one.
async fn status_of(shop: &Shop, bytes: impl AsRef<[u8]>) -> u16 {
    let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
    client.send(bytes).await.unwrap();
    match client.read_until("\r\n\r\n").await {
        Ok(head) => head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0),
        Err(_) => 0,
    }
}

#[tokio::test]
async fn what_breaks_http_is_answered_400_and_never_reaches_the_application() {
    let shop = shop::open(1).await;
    let before = shop.reviews[0].app().requests();
    let cases: &[(&str, &str)] = &[
        ("two hosts", "GET / HTTP/1.1\r\nHost: reviews:9080\r\nHost: elsewhere:9080\r\n\r\n"),
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("a bad host", "GET / HTTP/1.1\r\nHost: reviews:9080/x@y\r\n\r\n"),
        (
            "two lengths",
            "POST / HTTP/1.1\r\nHost: reviews:9080\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        ),
        ("a list of lengths", "POST / HTTP/1.1\r\nHost: reviews:9080\r\nContent-Length: 1, 2\r\n\r\nab"),
        ("a signed length", "POST / HTTP/1.1\r\nHost: reviews:9080\r\nContent-Length: +1\r\n\r\na"),
        ("a negative length", "POST / HTTP/1.1\r\nHost: reviews:9080\r\nContent-Length: -1\r\n\r\na"),
        (
            "chunked twice",
            "POST / HTTP/1.1\r\nHost: reviews:9080\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "chunked not last",
            "POST / HTTP/1.1\r\nHost: reviews:9080\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        ),
        (
            "an unknown coding",
            "POST / HTTP/1.1\r\nHost: reviews:9080\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        ("a space before the colon", "GET / HTTP/1.1\r\nHost : reviews:9080\r\n\r\n"),
        ("a folded line", "GET / HTTP/1.1\r\nHost: reviews:9080\r\nX-A: b\r\n c\r\n\r\n"),
        ("a NUL", "GET / HTTP/1.1\r\nHost: reviews:9080\r\nX-A: b\0c\r\n\r\n"),
        ("a bare CR", "GET / HTTP/1.1\r\nHost: reviews:9080\r\nX-A: b\rc\r\n\r\n"),
        ("no name", "GET / HTTP/1.1\r\nHost: reviews:9080\r\n: b\r\n\r\n"),
        ("a bad method", "G(T / HTTP/1.1\r\nHost: reviews:9080\r\n\r\n"),
        ("a bad version", "GET / HTTP/1.9x\r\nHost: reviews:9080\r\n\r\n"),
    ];
    for (what, bytes) in cases {
        let status = status_of(&shop, bytes).await;
        assert!(matches!(status, 400 | 0 | 501 | 505), "{what}: {status}");
    }
    // Whether hyper refused it or the sidecar.
    let labels = [("direction", "outbound"), ("reason", "BadRequest")];
    let counted = shop.web.scrape().await.unwrap().sum("heddle_refused_total", &labels);
    assert!(counted >= (cases.len() - 2) as f64, "{counted} of {}", cases.len());
    let reached: Vec<_> = shop.reviews[0].app().seen().into_iter().skip(before as usize).collect();
    assert!(reached.is_empty(), "the application saw {reached:?}");
    let answer = shop.web.http1().await.unwrap().get(HOST, "/").await.unwrap();
    assert_eq!(answer.status, 200, "and nobody else is harmed");
}

#[tokio::test]
async fn with_both_framings_chunked_wins_the_length_goes_and_the_connection_closes_after() {
    let shop = shop::open(1).await;
    let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
    client
        .send(
            "POST /echo HTTP/1.1\r\nHost: reviews:9080\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: reviews:9080\r\n\r\n",
        )
        .await
        .unwrap();
    let all = client.read_to_end().await.unwrap();
    assert!(all.starts_with("HTTP/1.1 200"), "{all}");
    assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "one answer and the end: {all}");
    let seen = shop.reviews[0].app().seen();
    let post = seen.iter().find(|s| s.uri.path() == "/echo").unwrap();
    assert!(!post.headers.contains_key("content-length"), "{:?}", post.headers);
    assert!(seen.iter().all(|s| s.uri.path() != "/smuggled"));
}

#[tokio::test]
async fn a_bad_chunk_ends_the_request_and_the_application_sees_no_whole_body() {
    let shop = shop::open(1).await;
    let before = shop.reviews[0].app().requests();
    for chunk in [
        "xyz\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\nabc",
        "3\r\nabcdef\r\n0\r\n\r\n",
    ] {
        let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
        let head = "POST /echo HTTP/1.1\r\nHost: reviews:9080\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send(format!("{head}{chunk}")).await.unwrap();
        // 400, or a broken answer if it had begun; never a whole 200.
        let all = client.read_to_end().await.unwrap_or_default();
        assert!(!(all.starts_with("HTTP/1.1 200") && all.ends_with("0\r\n\r\n")), "{chunk:?}: {all}");
    }
    let echoed = shop.reviews[0].app().requests() - before;
    println!("{echoed} of 4 requests had begun at the application");
    assert_eq!(shop.web.http1().await.unwrap().get(HOST, "/").await.unwrap().status, 200);
}

#[tokio::test]
async fn headers_over_64_kib_are_refused_on_http1_and_http2_alike_and_counted() {
    let shop = shop::open(1).await;
    let request = |bytes: usize| {
        let mut request = Request::builder().uri(format!("http://{HOST}/"));
        // In pieces, as cookies come.
        for n in 0..bytes / 1000 {
            request = request.header(format!("x-{n:03}"), "v".repeat(995));
        }
        request.body(empty()).unwrap()
    };
    for http2 in [false, true] {
        let connect = async || {
            if http2 { shop.web.http2().await.unwrap() } else { shop.web.http1().await.unwrap() }
        };
        let under = connect().await.send(request(60_000)).await.unwrap();
        assert_eq!(under.status, 200, "http2 {http2}: {} {}", under.reason(), under.text());
        let over = connect().await.send(request(70_000)).await.unwrap();
        assert_eq!((over.status, over.reason()), (431, "HeadersTooLarge"), "http2 {http2}");
    }
    let scrape = shop.web.scrape().await.unwrap();
    assert!(scrape.sum("heddle_header_limit_total", &[("direction", "outbound")]) >= 2.0, "{}", scrape.text);
}

#[tokio::test]
async fn a_bad_answer_of_the_application_becomes_502_and_is_not_passed_on() {
    let mut shop = shop::open(1).await;
    let answers: [(&str, &'static [u8]); 6] = [
        ("lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 3\r\n\r\nabc"),
        ("folded", b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 0\r\n\r\n"),
        ("nul", b"HTTP/1.1 200 OK\r\nX-A: b\0c\r\nContent-Length: 0\r\n\r\n"),
        ("garbage", b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        ("status", b"HTTP/1.1 9999 What\r\nContent-Length: 0\r\n\r\n"),
        ("signed", b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc"),
    ];
    for (name, bytes) in answers {
        let service = format!("bad-{name}");
        let yaml = manifest::service(&format!("shop/{service}"), 9080, "http", &format!("bad: {name}"));
        shop.world.save(&format!("{service}.yaml"), &yaml).unwrap();
        let pod = shop.world.pod(&format!("shop/{service}")).label("bad", name).start().await.unwrap();
        let app = TcpApp::answering(pod.port(9080), bytes).await.unwrap();
        let host = format!("{service}:9080");
        shop.web.answers(&host, "/", |answer| answer.status == 502).await;
        let answer = shop.web.http1().await.unwrap().get(&host, "/").await.unwrap();
        assert_eq!((answer.status, answer.header("x-a")), (502, ""), "{name}: {}", answer.text());
        assert!(app.connections() > 0);
    }
}

#[tokio::test]
async fn an_upgrade_to_h2c_is_ignored_and_the_request_served() {
    let shop = shop::open(1).await;
    let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
    client
        .send(
            "GET /h2c HTTP/1.1\r\nHost: reviews:9080\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
             HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        )
        .await
        .unwrap();
    let (status, ..) = client.read_response().await.unwrap();
    assert_eq!(status, 200);
    let seen = shop.reviews[0].app().seen();
    let seen = seen.iter().find(|s| s.uri.path() == "/h2c").unwrap();
    assert!(!seen.headers.contains_key("upgrade") && !seen.headers.contains_key("http2-settings"));
}

#[tokio::test]
async fn headers_of_the_connection_do_not_travel() {
    let shop = shop::open(1).await;
    let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
    client
        .send(
            "GET /hop HTTP/1.1\r\nHost: reviews:9080\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\n\
             Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nX-Kept: 1\r\n\r\n",
        )
        .await
        .unwrap();
    assert_eq!(client.read_response().await.unwrap().0, 200);
    let seen = shop.reviews[0].app().seen();
    let seen = seen.iter().find(|s| s.uri.path() == "/hop").unwrap();
    for gone in ["x-mine", "keep-alive", "proxy-connection"] {
        assert!(!seen.headers.contains_key(gone), "{gone} travelled");
    }
    assert!(seen.headers.contains_key("x-kept"));
}

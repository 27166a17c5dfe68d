//! Raw bytes against hyper as [`super::super::settings`] configures it, followed by this module's rules: what
//! comes through, and what the client is told.

use std::{cell::RefCell, convert::Infallible, rc::Rc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::LocalSet,
};

use super::{super::settings, *};

const LIMIT: usize = 64 * 1024;

/// What a service behind the edge got, and what the client read.
#[derive(Default)]
struct Outcome {
    requests: Vec<(request::Parts, Bytes, Option<HeaderValue>)>,
    answer: String,
}

impl Outcome {
    fn only(&self) -> &(request::Parts, Bytes, Option<HeaderValue>) {
        assert_eq!(self.requests.len(), 1, "{}", self.answer);
        &self.requests[0]
    }

    fn status(&self) -> &str {
        self.answer.split(' ').nth(1).unwrap_or("none")
    }
}

type Seen = Rc<RefCell<Outcome>>;

async fn edge_service(seen: Seen, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let upgrade = match super::request(&mut parts, LIMIT, &LastHost::default()) {
        Ok(upgrade) => upgrade,
        Err(malformed) => {
            let mut refused = Response::new(Full::from("END"));
            *refused.status_mut() = malformed.reason().status();
            return Ok(refused);
        }
    };
    if let Ok(body) = body.collect().await {
        seen.borrow_mut().requests.push((parts, body.to_bytes(), upgrade));
    }
    Ok(Response::new(Full::from("END")))
}

/// Sends bytes to an HTTP/1 server and reads until its answer ends.
async fn http1(bytes: &[u8]) -> Outcome {
    let seen = Seen::default();
    let service_seen = Rc::clone(&seen);
    let bytes = bytes.to_vec();
    let answer = LocalSet::new()
        .run_until(async move {
            let (mut client, server) = tokio::io::duplex(1 << 20);
            let service = service_fn(move |request| edge_service(Rc::clone(&service_seen), request));
            let (http1, io, _) = settings::http1_server(server);
            tokio::task::spawn_local(http1.serve_connection(io, service));
            client.write_all(&bytes).await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"END") && client.read_buf(&mut answer).await.unwrap() > 0 {}
            answer
        })
        .await;
    Outcome { answer: String::from_utf8_lossy(&answer).into_owned(), ..seen.take() }
}

/// Sends one HTTP/2 request made of raw fields; the answer is the types of the frames that came back.
async fn http2(fields: &[(&str, &[u8])]) -> Outcome {
    let seen = Seen::default();
    let service_seen = Rc::clone(&seen);
    let mut block = Vec::new();
    for (name, value) in fields {
        // Literal without indexing, new name (RFC 7541, 6.2.2), no Huffman coding.
        block.push(0);
        for text in [name.as_bytes(), value] {
            integer(&mut block, text.len());
            block.extend_from_slice(text);
        }
    }
    let answer = LocalSet::new()
        .run_until(async move {
            let (mut client, server) = tokio::io::duplex(1 << 20);
            let service = service_fn(move |request| edge_service(Rc::clone(&service_seen), request));
            tokio::task::spawn_local(
                settings::http2_server().serve_connection(TokioIo::new(server), service),
            );
            client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
            frame(&mut client, 4, 0, 0, &[]).await;
            let mut pieces = block.chunks(16_000).peekable();
            let mut kind = 1;
            while let Some(piece) = pieces.next() {
                let end_headers = if pieces.peek().is_none() { 4 } else { 0 };
                frame(&mut client, kind, end_headers | u8::from(kind == 1), 1, piece).await;
                kind = 9;
            }
            let mut kinds = String::new();
            loop {
                let mut head = [0; 9];
                if client.read_exact(&mut head).await.is_err() {
                    break;
                }
                let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                let mut payload = vec![0; length];
                client.read_exact(&mut payload).await.unwrap();
                match head[3] {
                    // DATA that ends the answer, RST_STREAM, GOAWAY.
                    0 if head[4] & 1 == 1 => return kinds + " answered",
                    3 => return kinds + " reset",
                    7 => return kinds + " goaway",
                    _ => {}
                }
                if head[3] == 1 {
                    // The first field is :status; the common ones are indexed.
                    kinds += match payload.first() {
                        Some(0x88) => " 200",
                        Some(0x8c) => " 400",
                        _ => " other",
                    };
                    if head[4] & 1 == 1 {
                        return kinds + " answered";
                    }
                }
            }
            kinds
        })
        .await;
    Outcome { answer, ..seen.take() }
}

async fn frame(io: &mut tokio::io::DuplexStream, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    io.write_all(&length[1..]).await.unwrap();
    io.write_all(&[kind, flags]).await.unwrap();
    io.write_all(&stream.to_be_bytes()).await.unwrap();
    io.write_all(payload).await.unwrap();
}

/// An integer with a 7-bit prefix (RFC 7541, 5.1).
fn integer(out: &mut Vec<u8>, mut n: usize) {
    if n < 127 {
        out.push(u8::try_from(n).unwrap());
        return;
    }
    out.push(127);
    n -= 127;
    while n >= 128 {
        out.push(u8::try_from(n % 128).unwrap() | 128);
        n /= 128;
    }
    out.push(u8::try_from(n).unwrap());
}

fn fields(extra: &[(&'static str, &'static [u8])]) -> Vec<(&'static str, &'static [u8])> {
    let mut all: Vec<(&str, &[u8])> =
        vec![(":method", b"GET"), (":scheme", b"http"), (":authority", b"reviews:9080"), (":path", b"/")];
    all.extend_from_slice(extra);
    all
}

#[tokio::test]
async fn connection_fields_stay_behind_and_the_authority_moves_into_the_uri() {
    let outcome = http1(
        b"GET /a?b HTTP/1.1\r\nhOST: reviews:9080\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\
          Proxy-Connection: close\r\nTE: gzip, trailers\r\nX-End: 2\r\n\r\n",
    )
    .await;
    let (parts, _, upgrade) = outcome.only();
    assert_eq!(parts.uri, "http://reviews:9080/a?b");
    assert!(upgrade.is_none());
    let left: Vec<_> = parts.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
    assert_eq!(left, [("x-end", "2"), ("te", "trailers")]);
}

#[tokio::test]
async fn a_request_whose_authority_is_unclear_is_refused() {
    for bytes in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET http://user@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let outcome = http1(bytes.as_bytes()).await;
        assert_eq!((outcome.requests.len(), outcome.status()), (0, "400"), "{bytes:?}");
    }
}

#[tokio::test]
async fn absolute_form_wins_over_host_and_http_1_0_needs_none() {
    for (bytes, uri) in [
        ("GET http://a:1/x HTTP/1.1\r\nHost: b\r\n\r\n", "http://a:1/x"),
        ("GET http://a HTTP/1.1\r\nHost: b\r\n\r\n", "http://a/"),
        ("GET /x HTTP/1.0\r\n\r\n", "/x"),
        ("GET /x HTTP/1.0\r\nHost: b\r\n\r\n", "http://b/x"),
        ("GET /x HTTP/1.1\r\nHost:\r\n\r\n", "/x"),
        ("GET /x HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "http://[::1]:80/x"),
        ("OPTIONS * HTTP/1.1\r\nHost: b\r\n\r\n", "http://b*"),
    ] {
        let outcome = http1(bytes.as_bytes()).await;
        assert_eq!(outcome.only().0.uri.to_string(), uri, "{bytes:?}");
    }
}

#[tokio::test]
async fn chunked_wins_over_a_length_and_the_connection_closes_after() {
    for bytes in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let outcome = http1(bytes.as_bytes()).await;
        let (parts, body, _) = outcome.only();
        assert_eq!(body, "hello");
        assert!(!parts.headers.contains_key(header::CONTENT_LENGTH));
        assert!(!parts.headers.contains_key(header::TRANSFER_ENCODING));
        assert!(outcome.answer.contains("connection: close"), "{}", outcome.answer);
    }
}

#[tokio::test]
async fn lengths_that_do_not_agree_are_refused() {
    for head in [
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Content-Length: 3, 4\r\n",
        "Content-Length: +3\r\n",
        "Content-Length: 0x3\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Content-Length : 3\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
    ] {
        let bytes = format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n0\r\n\r\n");
        let outcome = http1(bytes.as_bytes()).await;
        assert_eq!((outcome.requests.len(), outcome.status()), (0, "400"), "{head:?}");
    }
    let outcome = http1(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
    assert_eq!(outcome.requests.len(), 0);
}

#[tokio::test]
async fn bad_chunks_never_become_a_whole_body() {
    for chunks in [
        "g\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
    ] {
        let bytes = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        let outcome = http1(bytes.as_bytes()).await;
        assert!(outcome.requests.is_empty(), "{chunks:?}");
    }
}

#[tokio::test]
async fn headers_above_64_kib_are_refused_by_us_on_both_versions() {
    let value = |n: usize| "v".repeat(n);
    // "host" and "a" are counted, and "x" with its value.
    for (size, status) in [(LIMIT - 6, "200"), (LIMIT - 5, "431")] {
        let bytes = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", value(size));
        assert_eq!(http1(bytes.as_bytes()).await.status(), status, "{size}");
    }
    for (size, seen) in [(LIMIT - 1, 1), (LIMIT, 0)] {
        let value = value(size);
        let mut all = fields(&[]);
        all.push(("x", value.as_bytes()));
        let outcome = http2(&all).await;
        assert_eq!(outcome.requests.len(), seen, "{size}: {}", outcome.answer);
        assert!(outcome.answer.ends_with("answered"), "{}", outcome.answer);
    }
    let many = "X: 1\r\n".repeat(MAX_FIELDS);
    let outcome = http1(format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n").as_bytes()).await;
    assert_eq!(outcome.status(), "431");
    let outcome =
        http1(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(MAX_FIELDS + 400)).as_bytes())
            .await;
    assert_eq!(outcome.status(), "431");
}

#[tokio::test]
async fn bytes_that_would_split_a_message_on_the_other_side_never_come_through() {
    assert_eq!(http2(&fields(&[("x", b"fine")])).await.requests.len(), 1);
    for (name, value) in [
        ("x", b"a\r\nb: c".as_slice()),
        ("x", b"a\nb"),
        ("x", b"a\rb"),
        ("x", b"a\0b"),
        ("x", b" a"),
        ("x", b"a\t"),
        ("x\r\ny", b"a"),
        ("x y", b"a"),
        ("X", b"a"),
        ("connection", b"close"),
        ("transfer-encoding", b"chunked"),
        ("te", b"gzip"),
        ("host", b"other:9080"),
        ("content-length", b"5"),
    ] {
        let mut all = fields(&[]);
        all.push((name, value));
        let outcome = http2(&all).await;
        assert!(outcome.requests.is_empty(), "{name:?}: {value:?}");
        assert!(!outcome.answer.contains("200"), "{name:?}: {value:?}: {}", outcome.answer);
    }
    for (at, value) in [
        (3, b"/a b".as_slice()),
        (3, b"/a\r\nX: y"),
        (3, b"/a HTTP/1.1\r\nHost: b\r\n\r\nGET /"),
        (3, b"/\0"),
        (3, b"a"),
        (3, b""),
        (2, b"a\r\nb"),
        (2, b"a b"),
        (2, b"user@a"),
        (0, b"GET / HTTP/1.1\r\n"),
        (0, b"G T"),
        (1, b"ftp"),
    ] {
        let mut all = fields(&[]);
        all[at].1 = value;
        let outcome = http2(&all).await;
        assert!(outcome.requests.is_empty(), "{value:?}: {:?}", outcome.requests);
    }
}

#[tokio::test]
async fn header_lines_that_readers_disagree_on_are_refused() {
    for line in [
        "X: a\r\n b\r\n",
        "X : a\r\n",
        " X: a\r\n",
        "X: a\0b\r\n",
        "X\r\n",
        ": a\r\n",
        "X: a\rb\r\n",
        "X\0: a\r\n",
    ] {
        let outcome = http1(format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n").as_bytes()).await;
        assert_eq!((outcome.requests.len(), outcome.status()), (0, "400"), "{line:?}");
    }
}

#[tokio::test]
async fn an_offer_of_h2c_is_removed_and_the_request_served_as_it_is() {
    let outcome = http1(
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
    )
    .await;
    let (parts, _, upgrade) = outcome.only();
    assert!(upgrade.is_none());
    assert!(parts.headers.is_empty(), "{:?}", parts.headers);
    assert_eq!(outcome.status(), "200");
}

#[test]
fn an_application_chooses_among_what_it_was_offered() {
    let offered = "irc/6.9, WebSocket".parse().unwrap();
    let choose = |answer: &'static str| {
        let answer =
            Response::builder().status(101).header("connection", "upgrade").header("upgrade", answer);
        let mut parts = answer.body(()).unwrap().into_parts().0;
        switching(&mut parts, LIMIT, &offered).map(|()| parts.headers["upgrade"].to_str().unwrap().to_owned())
    };
    assert_eq!(choose("websocket").as_deref(), Ok("websocket"));
    assert_eq!(choose("irc/6.9, WebSocket").as_deref(), Ok("irc/6.9, WebSocket"));
    assert_eq!(choose("").as_deref(), Ok("irc/6.9"), "one that does not say");
    assert_eq!(choose("h2c"), Err(Malformed::Unasked));
    assert_eq!(choose("irc/6.9, h2c"), Err(Malformed::Unasked));
}

#[tokio::test]
async fn another_protocol_is_asked_for_only_as_http_1_1_says() {
    for (head, expected) in [
        (
            "HTTP/1.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: h2c, WebSocket, other\r\n",
            Some("WebSocket, other"),
        ),
        ("HTTP/1.1\r\nUpgrade: websocket\r\n", None),
        ("HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n", None),
    ] {
        let outcome = http1(format!("GET / {head}Host: a\r\n\r\n").as_bytes()).await;
        let (parts, _, upgrade) = outcome.only();
        assert_eq!(upgrade.as_ref().map(|v| v.to_str().unwrap()), expected, "{head:?}");
        assert!(!parts.headers.contains_key(header::UPGRADE));
    }
    let with_body =
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\n1";
    assert!(http1(with_body).await.only().2.is_none());
}

#[tokio::test]
async fn expect_is_answered_here_and_not_passed_on() {
    let outcome =
        http1(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi").await;
    let (parts, body, _) = outcome.only();
    assert!(!parts.headers.contains_key(header::EXPECT));
    assert_eq!(body, "hi");
    assert!(outcome.answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK"), "{}", outcome.answer);
}

#[test]
fn a_request_for_http_1_has_one_host_one_cookie_and_a_length() {
    let (mut parts, ()) = Request::get("http://reviews:9080/a?b")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .body(())
        .unwrap()
        .into_parts();
    to_http1(&mut parts, true, None, &WrittenHost::default());
    assert_eq!(parts.uri, "/a?b");
    let value =
        |name: &str| parts.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(value("host"), ["reviews:9080"]);
    assert_eq!(value("cookie"), ["a=1; b=2"]);
    assert_eq!(value("transfer-encoding"), ["chunked"]);
    assert_eq!(value("connection"), ["te"]);
}

#[test]
fn an_answer_loses_what_is_its_connections_own() {
    let answer = |status: u16, method: Method, headers: &[(&'static str, &'static str)]| {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let (mut parts, ()) = response.body(()).unwrap().into_parts();
        super::answer(&mut parts, &method, LIMIT).map(|close| (close, parts.headers))
    };
    let (close, headers) =
        answer(200, Method::GET, &[("connection", "x-a"), ("x-a", "1"), ("content-length", "5, 5")]).unwrap();
    assert!(!close);
    assert_eq!(headers.len(), 1);
    assert_eq!(headers["content-length"], "5");
    let (close, headers) =
        answer(200, Method::GET, &[("content-length", "5"), ("transfer-encoding", "chunked")]).unwrap();
    assert!(close && headers.is_empty());
    let (_, headers) = answer(204, Method::GET, &[("content-length", "0")]).unwrap();
    assert!(headers.is_empty());
    let (_, headers) = answer(200, Method::HEAD, &[("content-length", "7")]).unwrap();
    assert_eq!(headers["content-length"], "7");
    let (_, headers) = answer(304, Method::GET, &[("content-length", "7")]).unwrap();
    assert_eq!(headers["content-length"], "7");
    assert_eq!(answer(101, Method::GET, &[]), Err(Malformed::Unasked));
    assert!(answer(200, Method::GET, &[("content-length", "5"), ("content-length", "6")]).is_err());
    assert!(answer(200, Method::GET, &[("transfer-encoding", "gzip, chunked")]).is_err());
}

#[test]
fn grpc_is_told_from_grpc_web() {
    for (kind, expected) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("Application/gRPC;charset=x", true),
        ("application/grpc-web", false),
        ("application/json", false),
        ("application/grp", false),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        assert_eq!(is_grpc(&headers), expected, "{kind}");
    }
}

//! Attacks on HTTP/2 cost the sender its connection, and nobody else a request.

use std::time::Duration;

use heddle_api::ports;
use heddle_tests::{
    client::frames::{self, END_HEADERS, END_STREAM, Kind, block, frame, get},
    load::{Load, Plan},
    peer::{self, Credentials},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::shop::{self, HOST, Shop};

/// How long an attacker may last.
const LIMIT: Duration = Duration::from_secs(15);

/// A flood: what is sent first, then piece by piece for as long as the other side takes it.
struct Flood {
    name: &'static str,
    first: Vec<u8>,
    /// The n-th piece.
    piece: fn(u32) -> Vec<u8>,
    pieces: u32,
}

fn floods() -> Vec<Flood> {
    let open = || [frames::preface(), headers(1, END_HEADERS)].concat();
    vec![
        Flood {
            name: "rapid reset",
            first: frames::preface(),
            piece: |n| {
                let stream = 1 + 2 * n;
                let cancel = frame(Kind::Reset, 0, stream, &8u32.to_be_bytes());
                [headers(stream, END_HEADERS | END_STREAM), cancel].concat()
            },
            pieces: 200_000,
        },
        Flood {
            name: "resets provoked from us",
            first: frames::preface(),
            // A window update of zero is a stream error: the server resets (CVE-2025-8671).
            piece: |n| {
                let stream = 1 + 2 * n;
                let nothing = frame(Kind::WindowUpdate, 0, stream, &0u32.to_be_bytes());
                [headers(stream, END_HEADERS), nothing].concat()
            },
            pieces: 200_000,
        },
        Flood {
            name: "CONTINUATION",
            first: [frames::preface(), headers(1, END_STREAM)].concat(),
            piece: |_| frame(Kind::Continuation, 0, 1, &block(&[("x-more", &"m".repeat(4000))])),
            pieces: 50_000,
        },
        Flood {
            name: "a header bomb",
            first: [frames::preface(), frame(Kind::Headers, 0, 1, &bomb())].concat(),
            // One byte each: an indexed field of 4,000 bytes (RFC 7541, 6.1).
            piece: |_| frame(Kind::Continuation, 0, 1, &[0xbe; 16_000]),
            pieces: 1000,
        },
        Flood {
            name: "SETTINGS",
            first: frames::preface(),
            piece: |n| frame(Kind::Settings, 0, 0, &[[0, 4], (n as u16).to_be_bytes(), [255, 255]].concat()),
            pieces: 1_000_000,
        },
        Flood {
            name: "PING",
            first: frames::preface(),
            piece: |n| frame(Kind::Ping, 0, 0, &u64::from(n).to_be_bytes()),
            pieces: 1_000_000,
        },
        Flood {
            name: "empty DATA",
            first: open(),
            piece: |_| frame(Kind::Data, 0, 1, &[]),
            pieces: 1_000_000,
        },
    ]
}

fn headers(stream: u32, flags: u8) -> Vec<u8> {
    frame(Kind::Headers, flags, stream, &block(&get(HOST, "/")))
}

/// A block that puts one large field into the peer's table: index 62 is the newest (0xbe).
fn bomb() -> Vec<u8> {
    let mut bytes = block(&get(HOST, "/"));
    bytes.push(0x40);
    let large = block(&[("x-bomb", &"b".repeat(3800))]);
    bytes.extend(&large[1..]);
    bytes
}

/// Sends the flood and gives whether the other side ended the connection.
async fn ends(flood: &Flood, stream: impl AsyncRead + AsyncWrite + Send + 'static) -> bool {
    let (mut read, mut write) = tokio::io::split(stream);
    let (first, piece, pieces) = (flood.first.clone(), flood.piece, flood.pieces);
    let writing = tokio::spawn(async move {
        write.write_all(&first).await?;
        for start in (0..pieces).step_by(64) {
            let some: Vec<u8> = (start..pieces.min(start + 64)).flat_map(piece).collect();
            write.write_all(&some).await?;
        }
        std::io::Result::Ok(write)
    });
    let mut bytes = vec![0; 65536];
    let reading = async {
        // To the end, clean or not.
        while read.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
    };
    let ended = tokio::time::timeout(LIMIT, reading).await.is_ok();
    writing.abort();
    ended
}

fn steady(shop: &Shop) -> Load {
    Load::start(&Plan {
        through: shop.web.outbound(),
        host: HOST.to_owned(),
        path: "/".to_owned(),
        http1: 2,
        http2: 1,
        rate: 60.0,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_from_an_application_costs_it_its_connection_and_nobody_else_a_request() {
    let shop = shop::open(1).await;
    let load = steady(&shop);
    let mut lasting = Vec::new();
    for flood in floods() {
        let stream = tokio::net::TcpStream::connect(shop.web.outbound()).await.unwrap();
        if !ends(&flood, stream).await {
            lasting.push(flood.name);
        }
    }
    let tally = load.finish().await;
    assert_eq!((tally.failed, tally.closed), (0, 0), "{:?}", tally.failures);
    // hyper answers an application's pings one by one, never queueing, and does not count them.
    lasting.retain(|&name| name != "PING");
    assert!(lasting.is_empty(), "still connected after {LIMIT:?}: {lasting:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_from_a_peer_costs_it_its_connection_and_nobody_else_a_request() {
    let shop = shop::open(1).await;
    let load = steady(&shop);
    let file = shop.world.token("shop", "web", "1h").unwrap();
    let token = std::fs::read_to_string(file).unwrap();
    let peer = Credentials::join(shop.world.discovery(), &token, "shop/web").await.unwrap();
    let mut lasting = Vec::new();
    for flood in floods() {
        let mesh = shop.reviews[0].port(ports::MESH);
        let stream = peer::dial(mesh, "http1.9080.heddle", Some(&peer)).await.unwrap();
        if !ends(&flood, stream).await {
            lasting.push(flood.name);
        }
    }
    let tally = load.finish().await;
    assert_eq!((tally.failed, tally.closed), (0, 0), "{:?}", tally.failures);
    assert!(lasting.is_empty(), "still connected after {LIMIT:?}: {lasting:?}");
}

#[tokio::test]
async fn a_field_that_would_split_a_message_on_the_other_side_is_refused() {
    let shop = shop::open(1).await;
    let before = shop.reviews[0].app().requests();
    for (name, value) in [
        ("x-a", "b\r\nx-smuggled: 1"),
        ("x-a", "b\nx-smuggled: 1"),
        ("x-a\r\nx-smuggled", "1"),
        ("x-a", "b\0c"),
        ("X-Upper", "1"),
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        (":path", "/second"),
    ] {
        let mut fields = get(HOST, "/");
        fields.push((name, value));
        let head = frame(Kind::Headers, END_HEADERS | END_STREAM, 1, &block(&fields));
        let mut stream = tokio::net::TcpStream::connect(shop.web.outbound()).await.unwrap();
        stream.write_all(&[frames::preface(), head].concat()).await.unwrap();
        // The answer is a reset, a GOAWAY, or a 400; in no case does the application see it.
        let mut bytes = vec![0; 4096];
        let _ = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut bytes)).await;
    }
    let path = frame(Kind::Headers, END_HEADERS | END_STREAM, 1, &block(&get(HOST, "/a b\r\nx: y")));
    let mut stream = tokio::net::TcpStream::connect(shop.web.outbound()).await.unwrap();
    stream.write_all(&[frames::preface(), path].concat()).await.unwrap();
    let answer = shop.web.http1().await.unwrap().get(HOST, "/").await.unwrap();
    assert_eq!(answer.status, 200);
    let seen = shop.reviews[0].app().seen();
    let reached: Vec<_> =
        seen.iter().skip(before as usize).filter(|s| s.headers.len() > 1 || s.uri != "/").collect();
    let smuggled =
        reached.iter().any(|s| s.headers.contains_key("x-smuggled") || s.headers.contains_key("x-a"));
    assert!(!smuggled, "{reached:?}");
    assert_eq!(shop.reviews[0].app().requests() - before, 1, "{reached:?}");
}

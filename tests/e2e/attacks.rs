//! Attacks on HTTP/2 and slow peers cost the sender its connection, and nobody else a request.

mod flood;
mod servers;
mod slow;
mod stalls;

use std::time::{Duration, Instant};

use heddle_api::ports;
use heddle_tests::{
    client::frames::{self, END_HEADERS, END_STREAM, Kind, block, frame, get},
    load::{Load, Plan, Tally},
    peer::{self, Credentials},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use crate::shop::{self, HOST, Shop};

/// What a sidecar may have held at its worst, in bytes: a debug build at rest has 40 MB, and one connection that does
/// its worst may take 128 MiB (`proxy/src/carrier/settings.rs`).
const MEMORY: u64 = 250_000_000;

/// Anything that carries bytes.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A port that speaks HTTP to others than ourselves.
#[derive(Clone, Copy, Debug)]
enum Door {
    /// 15001 of `web`, as its application.
    Application,
    /// 15006 of `reviews`, as somebody without a sidecar.
    Outside,
    /// 15008 of `reviews`, with the certificate of `web`.
    Mesh,
}

const DOORS: [Door; 3] = [Door::Application, Door::Outside, Door::Mesh];

impl Door {
    async fn knock(self, shop: &Shop, identity: &Credentials) -> Box<dyn Stream> {
        let reviews = &shop.reviews[0];
        match self {
            Self::Application => Box::new(TcpStream::connect(shop.web.outbound()).await.unwrap()),
            Self::Outside => Box::new(TcpStream::connect(reviews.port(ports::INBOUND)).await.unwrap()),
            Self::Mesh => {
                let mesh = reviews.port(ports::MESH);
                Box::new(peer::dial(mesh, "http1.9080.heddle", Some(identity)).await.unwrap())
            }
        }
    }
}

/// A certificate of `web`, as its sidecar would ask for it.
async fn identity(shop: &Shop) -> Credentials {
    let file = shop.world.token("shop", "web", "1h").unwrap();
    let token = std::fs::read_to_string(file).unwrap();
    Credentials::join(shop.world.discovery(), &token, "shop/web").await.unwrap()
}

/// The neighbours: what they ask for while an attack goes on must all be answered.
fn steady(shop: &Shop) -> Load {
    Load::start(&Plan {
        through: shop.web.outbound(),
        host: HOST.to_owned(),
        path: "/".to_owned(),
        http1: 2,
        http2: 1,
        rate: 60.0,
        post_every: 0,
    })
}

fn unharmed(tally: &Tally) {
    assert!(tally.requests > 0);
    assert_eq!((tally.failed, tally.closed), (0, 0), "{:?}", tally.failures);
}

/// Neither sidecar ever held more than [`MEMORY`].
fn memory_is_bounded(shop: &mut Shop) {
    for pod in ["shop/web", "shop/reviews-v1"] {
        let peak = shop.world.sidecar(pod).unwrap().peak_memory().unwrap();
        println!("the sidecar of {pod} held {} MB at most", peak / 1_000_000);
        assert!(peak < MEMORY, "the sidecar of {pod} held {peak} bytes");
    }
}

/// Reads until the other side has ended the connection, cleanly or not; how long that took, if not too long.
async fn ended(mut stream: impl AsyncRead + Unpin, limit: Duration) -> Option<Duration> {
    let began = Instant::now();
    let mut bytes = vec![0; 65536];
    let reading = async { while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {} };
    tokio::time::timeout(limit, reading).await.ok().map(|()| began.elapsed())
}

fn headers(stream: u32, flags: u8) -> Vec<u8> {
    frame(Kind::Headers, flags, stream, &block(&get(HOST, "/")))
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
        let mut stream = TcpStream::connect(shop.web.outbound()).await.unwrap();
        stream.write_all(&[frames::preface(), head].concat()).await.unwrap();
        // The answer is a reset, a GOAWAY, or a 400; in no case does the application see it.
        let mut bytes = vec![0; 4096];
        let _ = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut bytes)).await;
    }
    let path = frame(Kind::Headers, END_HEADERS | END_STREAM, 1, &block(&get(HOST, "/a b\r\nx: y")));
    let mut stream = TcpStream::connect(shop.web.outbound()).await.unwrap();
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

//! Floods: many frames that cost the sender less than the receiver.

use super::*;

/// How long an attacker may last.
const LIMIT: Duration = Duration::from_secs(30);

/// A flood: what is sent first, then piece by piece for as long as the other side takes it.
#[derive(Clone)]
pub(super) struct Flood {
    pub(super) name: &'static str,
    pub(super) first: Vec<u8>,
    /// The n-th piece.
    pub(super) piece: fn(u32) -> Vec<u8>,
    pub(super) pieces: u32,
}

impl Flood {
    /// Sends it and gives whether the other side ended the connection.
    pub(super) async fn ends(&self, stream: impl Stream) -> bool {
        let (read, mut write) = tokio::io::split(stream);
        let Self { first, piece, pieces, .. } = self.clone();
        let writing = tokio::spawn(async move {
            write.write_all(&first).await?;
            for start in (0..pieces).step_by(64) {
                let some: Vec<u8> = (start..pieces.min(start + 64)).flat_map(piece).collect();
                write.write_all(&some).await?;
            }
            std::io::Result::Ok(write)
        });
        let ended = ended(read, LIMIT).await.is_some();
        writing.abort();
        ended
    }
}

/// Those that either side may send; each begins with `first`, in which stream 1 was opened.
pub(super) fn of_either_side(first: &[u8]) -> Vec<Flood> {
    let flood =
        |name, piece: fn(u32) -> Vec<u8>| Flood { name, first: first.to_vec(), piece, pieces: 2_000_000 };
    vec![
        flood("SETTINGS", |n| {
            let window = (n % 60_000 + 1_000).to_be_bytes();
            frame(Kind::Settings, 0, 0, &[&[0, 4], &window[..]].concat())
        }),
        flood("PING", |n| frame(Kind::Ping, 0, 0, &u64::from(n).to_be_bytes())),
        flood("empty DATA", |_| frame(Kind::Data, 0, 1, &[])),
        flood("WINDOW_UPDATE", |_| frame(Kind::WindowUpdate, 0, 0, &1u32.to_be_bytes())),
        flood("PRIORITY", |_| frame(Kind::Priority, 0, 1, &[0, 0, 0, 3, 16])),
        flood("GOAWAY", |_| frame(Kind::GoAway, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0])),
    ]
}

fn of_clients() -> Vec<Flood> {
    let open = [frames::preface(), headers(1, END_HEADERS)].concat();
    let mut floods = of_either_side(&open);
    floods.extend([
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
            name: "PUSH_PROMISE",
            first: open.clone(),
            // From a client it is an error of the connection (RFC 9113, 8.4).
            piece: |n| {
                let promised = (2 + 2 * n).to_be_bytes();
                let promise = [&promised[..], &block(&get(HOST, "/"))].concat();
                frame(Kind::PushPromise, END_HEADERS, 1, &promise)
            },
            pieces: 1_000_000,
        },
        Flood {
            name: "DATA beyond the stream's window",
            first: [frames::preface(), frame(Kind::Headers, END_HEADERS, 1, &block(&post("/count")))]
                .concat(),
            // The first ones too many are an error of the stream (RFC 9113, 6.9.1).
            piece: |_| frame(Kind::Data, 0, 1, &[b'x'; 16_384]),
            pieces: 2_000_000,
        },
        Flood {
            name: "CONTINUATION",
            first: [frames::preface(), headers(1, END_STREAM)].concat(),
            piece: |_| frame(Kind::Continuation, 0, 1, &block(&[("x-more", &"m".repeat(4000))])),
            pieces: 50_000,
        },
        Flood {
            name: "empty CONTINUATION",
            first: [frames::preface(), headers(1, END_STREAM)].concat(),
            piece: |_| frame(Kind::Continuation, 0, 1, &[]),
            pieces: 1_000_000,
        },
        Flood {
            name: "a header bomb",
            first: [frames::preface(), frame(Kind::Headers, 0, 1, &bomb())].concat(),
            // One byte each: an indexed field of 4,000 bytes (RFC 7541, 6.1).
            piece: |_| frame(Kind::Continuation, 0, 1, &[0xbe; 16_000]),
            pieces: 1000,
        },
    ]);
    floods
}

/// The fields of a POST.
fn post(path: &str) -> Vec<(&str, &str)> {
    let mut fields = get(HOST, path);
    fields[0].1 = "POST";
    fields
}

/// A block that puts one large field into the peer's table: index 62 is the newest (0xbe).
fn bomb() -> Vec<u8> {
    let mut bytes = block(&get(HOST, "/"));
    bytes.push(0x40);
    let large = block(&[("x-bomb", &"b".repeat(3800))]);
    bytes.extend(&large[1..]);
    bytes
}

async fn costs_only_the_sender(door: Door) {
    let mut shop = shop::open(1).await;
    let identity = identity(&shop).await;
    let load = steady(&shop);
    let mut lasting = Vec::new();
    for flood in of_clients() {
        if !flood.ends(door.knock(&shop, &identity).await).await {
            lasting.push(flood.name);
        }
    }
    unharmed(&load.finish().await);
    assert!(lasting.is_empty(), "still connected after {LIMIT:?}: {lasting:?}");
    memory_is_bounded(&mut shop);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_from_an_application_costs_it_its_connection_and_nobody_else_a_request() {
    costs_only_the_sender(Door::Application).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_in_plaintext_costs_the_sender_its_connection_and_nobody_else_a_request() {
    costs_only_the_sender(Door::Outside).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_from_a_peer_costs_it_its_connection_and_nobody_else_a_request() {
    costs_only_the_sender(Door::Mesh).await;
}

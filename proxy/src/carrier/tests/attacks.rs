//! Attacks on HTTP/2, made by hand: each costs the sender its connection and nobody else a request.

use std::pin::pin;

use bytes::Bytes;
use heddle_api::carrier::Form;
use http::Response;
use http_body_util::Full;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, split},
    task::{spawn_local, yield_now},
};

use super::super::{
    CarrierBody, respond,
    testing::{SECOND, World, on_a_worker, raw},
    unless_reset,
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `:method: POST`, `:scheme: http`, `:path: /` from HPACK's static table (RFC 7541, appendix A).
const POST: [u8; 3] = [0x83, 0x86, 0x84];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Reads the body of a POST to its end, and that of a PUT never; the rest is answered at once.
async fn world() -> World {
    World::new(Form::Http1, |request, mut to| async move {
        if request.method() == http::Method::PUT {
            unless_reset(&mut to, pin!(std::future::pending::<()>())).await;
        } else if request.method() == http::Method::POST {
            let mut body = CarrierBody::of_request(request).into_body();
            let read = async { while let Some(Ok(_)) = http_body_util::BodyExt::frame(&mut body).await {} };
            if unless_reset(&mut to, pin!(read)).await.is_none() {
                return;
            }
        }
        let _gone = respond(to, Response::new(Full::from("fine"))).await;
    })
    .await
}

/// Sends what `next` makes until the server closes the connection; false if it never does within `most` rounds.
/// Meanwhile and after, a well-behaved caller is served.
async fn is_cut_off(most: u32, next: impl FnMut(u32) -> Vec<u8> + 'static) -> bool {
    is_cut_off_when_paced(0, most, next).await
}

async fn is_cut_off_when_paced(
    turns: usize,
    most: u32,
    mut next: impl FnMut(u32) -> Vec<u8> + 'static,
) -> bool {
    let world = world().await;
    assert_eq!(world.text("/").await, "fine");
    let credentials = world.authority.credentials("mallory");
    let (mut read, mut write) = split(raw(&world, &credentials, "http1.9080.heddle").await);
    let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    hello.extend(frame(SETTINGS, 0, 0, &[]));
    write.write_all(&hello).await.unwrap();
    let attack = async move {
        for round in 0..most {
            if write.write_all(&next(round)).await.is_err() {
                // The reading half learns of it, too.
                return std::future::pending().await;
            }
            // Gives the server time to look at it, or not.
            for _ in 0..turns {
                yield_now().await;
            }
        }
        // All of it was sent, the last of it needs a moment to be judged.
        tokio::time::sleep(SECOND).await;
    };
    let cut_off = async move {
        let mut answers = vec![0; 65536];
        while !matches!(read.read(&mut answers).await, Ok(0) | Err(_)) {}
    };
    let attacked = spawn_local(async move {
        tokio::select! {
            biased;
            () = cut_off => true,
            () = attack => false,
        }
    });
    for _ in 0..50 {
        assert_eq!(world.text("/").await, "fine");
    }
    let cut_off = attacked.await.unwrap();
    assert_eq!((world.text("/").await.as_str(), world.accepted.get()), ("fine", 2));
    cut_off
}

fn stream(round: u32) -> u32 {
    2 * round + 1
}

#[tokio::test]
async fn rapid_reset_is_cut_off() {
    on_a_worker(async {
        let attack = |round| {
            let mut bytes = frame(HEADERS, END_HEADERS, stream(round), &POST);
            bytes.extend(frame(RST_STREAM, 0, stream(round), &8u32.to_be_bytes()));
            bytes
        };
        assert!(is_cut_off(100_000, attack).await, "before the server has seen the stream");

        // Fifty at once, so that it is a flood on a slow machine too.
        let attack = |round| {
            let ids = (0..50).map(|at| stream(round / 2 * 50 + at));
            if round % 2 == 0 {
                ids.flat_map(|id| frame(HEADERS, END_HEADERS, id, &POST)).collect()
            } else {
                ids.flat_map(|id| frame(RST_STREAM, 0, id, &8u32.to_be_bytes())).collect::<Vec<u8>>()
            }
        };
        assert!(is_cut_off_when_paced(10, 10_000, attack).await, "after");
    })
    .await;
}

#[tokio::test]
async fn resets_provoked_from_us_are_cut_off() {
    on_a_worker(async {
        // A window beyond 2^31 - 1 makes the server reset the stream (CVE-2025-8671).
        let attack = |round| {
            let mut bytes = frame(HEADERS, END_HEADERS, stream(round), &POST);
            bytes.extend(frame(WINDOW_UPDATE, 0, stream(round), &0x7fff_ffffu32.to_be_bytes()));
            bytes
        };
        assert!(is_cut_off(100_000, attack).await);
    })
    .await;
}

#[tokio::test]
async fn floods_of_control_frames_are_cut_off() {
    on_a_worker(async {
        assert!(is_cut_off(100_000, |_| frame(PING, 0, 0, &[0; 8])).await, "PING");
        assert!(is_cut_off(100_000, |_| frame(SETTINGS, 0, 0, &[])).await, "SETTINGS");
        assert!(is_cut_off(100_000, |_| frame(0xbe, 0, 0, &[])).await, "unknown");
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_empty_data_frames_is_cut_off() {
    on_a_worker(async {
        let attack = |round| {
            if round == 0 { frame(HEADERS, END_HEADERS, 1, &POST) } else { frame(DATA, 0, 1, &[]) }
        };
        assert!(is_cut_off(100_000, attack).await);
    })
    .await;
}

#[tokio::test]
async fn small_frames_that_nobody_reads_are_cut_off_at_the_budget() {
    on_a_worker(async {
        // `:method: PUT`, whose body the handler does not read.
        let put = [0x02, 0x03, b'P', b'U', b'T', 0x86, 0x84];
        let attack = move |round| {
            if round == 0 {
                frame(HEADERS, END_HEADERS, 1, &put)
            } else {
                frame(DATA, 0, 1, b".").repeat(100)
            }
        };
        assert!(is_cut_off(1000, attack).await);
    })
    .await;
}

#[tokio::test]
async fn headers_that_never_end_are_cut_off() {
    on_a_worker(async {
        let empty = |round| {
            if round == 0 { frame(HEADERS, END_STREAM, 1, &POST) } else { frame(CONTINUATION, 0, 1, &[]) }
        };
        assert!(is_cut_off(100_000, empty).await, "empty CONTINUATION");
        // A literal header of 4,000 bytes, again and again.
        let full = |round| {
            let mut header = vec![0x00, 0x01, b'x', 0x7f, 0xa1, 0x1e];
            header.extend([b'y'; 4000]);
            if round == 0 { frame(HEADERS, END_STREAM, 1, &POST) } else { frame(CONTINUATION, 0, 1, &header) }
        };
        assert!(is_cut_off(100_000, full).await, "full CONTINUATION");
    })
    .await;
}

#[tokio::test]
async fn a_header_bomb_is_cut_off() {
    on_a_worker(async {
        // One entry of the dynamic table named 15,000 times: 60 MB of headers in 15 KB.
        let attack = |round| {
            let mut block = POST.to_vec();
            block.extend([0x40, 0x01, b'x', 0x7f, 0xa1, 0x1e]);
            block.extend([b'y'; 4000]);
            block.extend([0xbe; 11_000]);
            frame(HEADERS, END_HEADERS | END_STREAM, stream(round), &block)
        };
        assert!(is_cut_off(2, attack).await);
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_opens_no_window_holds_its_own_streams_alone() {
    on_a_worker(async {
        let attack = |round| {
            if round == 0 {
                // SETTINGS_INITIAL_WINDOW_SIZE = 0
                frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])
            } else {
                frame(HEADERS, END_HEADERS | END_STREAM, stream(round), &POST)
            }
        };
        assert!(!is_cut_off(100, attack).await);
    })
    .await;
}

#[tokio::test]
async fn a_response_body_larger_than_promised_is_an_error() {
    on_a_worker(async {
        let world = World::new(Form::Http1, |_, to| async move {
            let response = Response::builder().header("content-length", "3");
            let _reset = respond(to, response.body(Full::from(Bytes::from_static(b"longer"))).unwrap()).await;
        })
        .await;
        let read = match world.get("/").await {
            Ok(response) => http_body_util::BodyExt::collect(response.into_body()).await.is_ok(),
            Err(_) => false,
        };
        assert!(!read);
    })
    .await;
}

//! What the meter lets pass, and what it ends.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{frames::CONTINUATION, *};

const END_HEADERS: u8 = 4;

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, 0, 0, 0, 0, 1]);
    bytes.extend(payload);
    bytes
}

proptest! {
    #[test]
    fn frames_are_found_however_the_bytes_are_cut(
        frames in prop::collection::vec((0u8..12, prop::collection::vec(0u8..6, 4..40)), 0..20),
        cuts in prop::collection::vec(1usize..30, 1..60),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(|(kind, payload)| frame(*kind, payload)).collect();
        let mut follower = Frames::new(0);
        let (mut seen, mut rest, mut cuts) = (Vec::new(), &bytes[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            follower.follow(now, |what| { seen.push(what); true });
            rest = later;
        }
        let mut sent = Vec::new();
        for (kind, payload) in &frames {
            let length = u32::try_from(payload.len()).unwrap();
            let head = Head { kind: *kind, flags: 0, stream: 1, length };
            let value = u32::from_be_bytes(payload[..4].try_into().unwrap());
            sent.push(Seen::Frame(head, if matches!(*kind, RST_STREAM | WINDOW_UPDATE) { value } else { 0 }));
            let settings = payload.chunks_exact(6).filter(|setting| *kind == SETTINGS && setting[..2] == [0, 4]);
            sent.extend(settings.map(|setting| Seen::InitialWindow(u32::from_be_bytes(setting[2..].try_into().unwrap()))));
        }
        prop_assert_eq!(seen, sent);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_refused_and_the_same_number_over_time_is_not() {
    let ping = frame(PING, &[0; 8]);
    let mut flooded = Meter::new(Side::Client, false);
    let sent = (0..1000).take_while(|_| flooded.on_read(&ping).is_ok()).count();
    assert_eq!(sent, 200);

    let mut calm = Meter::new(Side::Client, false);
    for _ in 0..1000 {
        assert!(calm.on_read(&ping).is_ok());
        tokio::time::advance(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn two_thousand_cancels_at_once_pass_and_rapid_reset_does_not() {
    let cancel = frame(RST_STREAM, &8u32.to_be_bytes());
    let mut meter = Meter::new(Side::Server, false);
    assert!(meter.on_read(&[b'P'; PREFACE]).is_ok());
    assert!((0..2000).all(|_| meter.on_read(&cancel).is_ok()));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!((0..2000).all(|_| meter.on_read(&cancel).is_ok()));
    assert!((0..10_000).any(|_| meter.on_read(&cancel).is_err()));
}

#[tokio::test(start_paused = true)]
async fn a_ping_for_each_data_frame_and_two_window_updates_are_no_flood() {
    let mut meter = Meter::new(Side::Server, false);
    assert!(meter.on_read(&[b'P'; PREFACE]).is_ok());
    let (ping, update) = (frame(PING, &[0; 8]), frame(WINDOW_UPDATE, &[0, 0, 0, 1]));
    for _ in 0..100_000 {
        assert!(meter.on_written(&frame(DATA, b"x")).is_ok());
        assert!(meter.on_read(&ping).is_ok());
        assert!(meter.on_read(&update).is_ok() && meter.on_read(&update).is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_few_interim_answers_to_each_request_pass_and_a_flood_of_them_does_not() {
    let mut meter = Meter::new(Side::Client, false);
    assert!(meter.on_written(&[b'P'; PREFACE]).is_ok());
    for _ in 0..10_000 {
        assert!(meter.on_written(&frame(HEADERS, b"GET ")).is_ok());
        assert!((0..4).all(|_| meter.on_read(&frame(HEADERS, b"103 ")).is_ok()));
    }
    let flooded = (0..10_000).take_while(|_| meter.on_read(&frame(HEADERS, b"103 ")).is_ok()).count();
    assert!(flooded <= 4096, "{flooded}");
}

fn part(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame(kind, payload);
    bytes[4] = flags;
    bytes
}

/// Writes each piece, with a pause before it, and gives what reading them ended with.
async fn read_slowly(pieces: Vec<Vec<u8>>, pause: Duration) -> io::Result<usize> {
    let (mut peer, io) = tokio::io::duplex(65536);
    let mut io = Metered::new(io, Side::Client);
    let writing = async move {
        for piece in pieces {
            tokio::time::sleep(pause).await;
            if peer.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    let mut bytes = Vec::new();
    tokio::join!(writing, io.read_to_end(&mut bytes)).1
}

#[tokio::test(start_paused = true)]
async fn headers_that_come_byte_by_byte_are_given_up_and_many_slow_messages_are_not() {
    let trickle = std::iter::once(part(HEADERS, 0, b"head"))
        .chain((0..100).map(|_| part(CONTINUATION, 0, b"x")))
        .collect();
    let ended = read_slowly(trickle, Duration::from_secs(1)).await;
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);

    let whole = part(HEADERS, END_HEADERS, &[0; 100]);
    let (begun, rest) = whole.split_at(20);
    let halves = (0..20).map(|_| [rest, begun].concat()).collect::<Vec<_>>();
    let pieces = std::iter::once(begun.to_vec()).chain(halves).chain([rest.to_vec()]).collect();
    let read = read_slowly(pieces, HEAD / 2).await.unwrap();
    assert_eq!(read, 21 * whole.len(), "each ends in time, and none between two reads");

    let body = std::iter::once(part(DATA, 0, &[0; 100])[..50].to_vec()).chain([vec![0; 59]]).collect();
    assert!(read_slowly(body, HEAD * 2).await.is_ok(), "a body may pause");
}

#[tokio::test(start_paused = true)]
async fn only_resets_for_breaking_the_protocol_count_against_the_peer() {
    let mut meter = Meter::new(Side::Server, false);
    let refused = frame(RST_STREAM, &7u32.to_be_bytes());
    assert!((0..10_000).all(|_| meter.on_written(&refused).is_ok()));
    let flow_control = frame(RST_STREAM, &3u32.to_be_bytes());
    assert!((0..1000).any(|_| meter.on_written(&flow_control).is_err()));
}

/// A client that shook hands by itself, and says its own window.
struct Reader {
    io: tokio::io::DuplexStream,
    seen: Vec<u8>,
}

const PATIENCE: Duration = Duration::from_secs(60);

impl Reader {
    /// Asks for `streams` answers of a megabyte, having opened windows of `window` bytes.
    async fn ask(window: u32, streams: u32) -> (Self, tokio::task::JoinHandle<Result<(), h2::Error>>) {
        let (mut client, io) = tokio::io::duplex(1 << 20);
        let served = tokio::spawn(async move {
            let mut connection = h2::server::handshake(Metered::server(io, PATIENCE)).await?;
            while let Some(asked) = connection.accept().await {
                let (_, mut respond) = asked?;
                let mut body = respond.send_response(http::Response::new(()), false)?;
                // Handed over whole: nobody but the meter can take it back.
                body.send_data(vec![7; 1 << 20].into(), true)?;
            }
            Ok(())
        });
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let window = [&[0, 4], &window.to_be_bytes()[..]].concat();
        client.write_all(&with_stream(0, frame(SETTINGS, &window))).await.unwrap();
        for n in 0..streams {
            // GET, http, / (RFC 7541, appendix A).
            let mut request = with_stream(1 + 2 * n, frame(HEADERS, &[0x82, 0x86, 0x84, 0x01, 1, b'a']));
            request[4] = END_HEADERS | END_STREAM;
            client.write_all(&request).await.unwrap();
        }
        (Self { io: client, seen: Vec::new() }, served)
    }

    /// Reads for a while; the streams that were reset, and whether the connection ended.
    async fn read_for(&mut self, time: Duration) -> (Vec<(u32, u32)>, bool) {
        let reading = async { while self.io.read_buf(&mut self.seen).await.is_ok_and(|count| count > 0) {} };
        let ended = tokio::time::timeout(time, reading).await.is_ok();
        let mut resets = Vec::new();
        Frames::new(0).follow(&self.seen, |seen| {
            if let Seen::Frame(Head { kind: RST_STREAM, stream, .. }, code) = seen {
                resets.push((stream, code));
            }
            true
        });
        (resets, ended)
    }
}

fn with_stream(stream: u32, mut frame: Vec<u8>) -> Vec<u8> {
    frame[5..9].copy_from_slice(&stream.to_be_bytes());
    frame
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_opens_no_window_loses_its_connection_though_the_answer_was_handed_over_whole() {
    for window in [0, 1] {
        let (mut reader, served) = Reader::ask(window, 3).await;
        assert!(!reader.read_for(PATIENCE * 9 / 10).await.1, "in good time");
        assert!(reader.read_for(PATIENCE).await.1, "window {window}");
        let error = served.await.unwrap().unwrap_err();
        assert!(error.is_io() && error.to_string().contains("takes nothing"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_several_readers_the_stalled_one_is_reset_and_the_others_read_on() {
    let (mut reader, served) = Reader::ask(1000, 2).await;
    reader.io.write_all(&with_stream(0, frame(WINDOW_UPDATE, &[0x0f, 0, 0, 0]))).await.unwrap();
    for _ in 0..20 {
        assert!(!reader.read_for(PATIENCE / 10).await.1);
        reader.io.write_all(&with_stream(3, frame(WINDOW_UPDATE, &[0, 0, 0x10, 0]))).await.unwrap();
    }
    let (resets, ended) = reader.read_for(PATIENCE / 10).await;
    assert_eq!((resets, ended), (vec![(1, STALLED.into())], false));
    // The one that is left may have the rest.
    reader.io.write_all(&with_stream(3, frame(WINDOW_UPDATE, &[0, 0x20, 0, 0]))).await.unwrap();
    let (resets, ended) = reader.read_for(PATIENCE * 10).await;
    assert_eq!((resets.len(), ended), (1, false));
    assert!(reader.seen.len() > 1 << 20, "{}", reader.seen.len());
    drop(reader);
    served.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn resets_of_our_own_for_stalling_count_against_the_connection() {
    let (mut peer, io) = tokio::io::duplex(65536);
    let mut io = Metered::server(io, PATIENCE);
    let reset = frame(RST_STREAM, &u32::from(STALLED).to_be_bytes());
    let mut sent = 0;
    while io.write_all(&reset).await.is_ok() {
        sent += 1;
        assert!(sent < 100);
    }
    assert_eq!(sent, 16);
    drop(io);
    peer.read_to_end(&mut Vec::new()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_on_its_way_on_a_stream_that_we_reset_passes_and_a_flood_on_it_does_not() {
    let mut meter = Meter::new(Side::Server, false);
    assert!(meter.on_read(&[b'P'; PREFACE]).is_ok());
    let data = |stream| with_stream(stream, frame(DATA, &[0; 16_384]));
    assert!(meter.on_written(&with_stream(3, frame(RST_STREAM, &3u32.to_be_bytes()))).is_ok());
    let late = (0..1000).take_while(|_| meter.on_read(&data(3)).is_ok()).count();
    assert!((64..80).contains(&late), "a window of 1 MiB, and not much more: {late}");

    meter = Meter::new(Side::Server, false);
    assert!(meter.on_read(&[b'P'; PREFACE]).is_ok());
    assert!(meter.on_written(&with_stream(3, frame(RST_STREAM, &3u32.to_be_bytes()))).is_ok());
    assert!((0..1000).all(|_| meter.on_read(&data(1)).is_ok()), "another stream is none of its business");
}

//! Peers that let what is under way come to a stop: readers that take nothing, bodies that do not come. After
//! `--stall-timeout` they lose the stream, and the connection when they do nothing else. Who has nothing to say may be silent.

use heddle_tests::client::{Client, Raw};
use tokio::task::JoinSet;

use super::*;

const STALL: &str = "2s";
/// Twice that between sidecars, a look every quarter of it, and the rest for a busy machine.
const LIMIT: Duration = Duration::from_secs(40);
/// Several times [`STALL`].
const LONG: Duration = Duration::from_secs(9);

async fn open() -> Shop {
    shop::open_with(1, &["--stall-timeout", STALL]).await
}

/// SETTINGS_INITIAL_WINDOW_SIZE.
fn window(bytes: u32) -> Vec<u8> {
    frame(Kind::Settings, 0, 0, &[&[0, 4], &bytes.to_be_bytes()[..]].concat())
}

fn ask(stream: u32, path: &str) -> Vec<u8> {
    frame(Kind::Headers, END_HEADERS | END_STREAM, stream, &block(&get(HOST, path)))
}

/// Opens a window of a byte now and then.
async fn by_the_byte(mut write: impl AsyncWrite + Unpin, streams: u32) {
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        for n in 0..streams {
            let byte = frame(Kind::WindowUpdate, 0, 1 + 2 * n, &1u32.to_be_bytes());
            if write.write_all(&byte).await.is_err() || write.flush().await.is_err() {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_opens_no_window_or_one_of_a_byte_loses_its_connection_and_nobody_else_a_request() {
    let mut shop = open().await;
    let identity = identity(&shop).await;
    let load = steady(&shop);
    let mut readers = JoinSet::new();
    for door in DOORS {
        for (streams, path, crawls) in [
            (1, "/bytes/2000000", false),
            (50, "/bytes/2000000", false),
            // Handed to the library whole: no application and no pool waits for it any more.
            (10, "/bytes/100", false),
            (10, "/bytes/2000000", true),
        ] {
            let mut first = [frames::preface(), window(u32::from(crawls))].concat();
            first.extend((0..streams).flat_map(|n| ask(1 + 2 * n, path)));
            let mut stream = door.knock(&shop, &identity).await;
            stream.write_all(&first).await.unwrap();
            stream.flush().await.unwrap();
            readers.spawn(async move {
                let (read, write) = tokio::io::split(stream);
                let crawling = tokio::spawn(async move {
                    if crawls {
                        by_the_byte(write, streams).await;
                    } else {
                        let _held = write;
                        std::future::pending::<()>().await;
                    }
                });
                let ended = ended(read, LIMIT).await;
                crawling.abort();
                (door, streams, path, crawls, ended)
            });
        }
    }
    while let Some(reader) = readers.join_next().await {
        let (door, streams, path, crawls, ended) = reader.unwrap();
        assert!(ended.is_some(), "{door:?}, {streams} times {path}, byte by byte: {crawls}: still connected");
    }
    unharmed(&load.finish().await);
    memory_is_bounded(&mut shop);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_stream_among_others_is_reset_and_the_others_go_on() {
    let shop = open().await;
    let identity = identity(&shop).await;
    for door in DOORS {
        let mut stream = door.knock(&shop, &identity).await;
        let open = [frames::preface(), window(1000), ask(1, "/bytes/2000000")].concat();
        stream.write_all(&open).await.unwrap();
        let began = Instant::now();
        let (mut bytes, mut asked) = (Vec::new(), 1);
        let reset = frame(Kind::Reset, 0, 1, &11u32.to_be_bytes());
        while !bytes.windows(reset.len()).any(|seen| seen == reset) {
            assert!(began.elapsed() < LIMIT, "{door:?}: no reset");
            asked += 2;
            stream.write_all(&ask(asked, "/")).await.unwrap();
            stream.flush().await.unwrap();
            let pause = tokio::time::sleep(Duration::from_millis(100));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    read = stream.read_buf(&mut bytes) => assert!(read.unwrap() > 0, "{door:?}: closed"),
                }
            }
        }
        // The connection serves on.
        let answered = bytes.len();
        stream.write_all(&ask(asked + 2, "/")).await.unwrap();
        stream.flush().await.unwrap();
        while !bytes[answered..].windows(3).any(|seen| seen == b"v1\n") {
            assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "{door:?}: closed");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http1_client_that_does_not_read_is_cut_off_and_one_that_reads_slowly_is_not() {
    let shop = open().await;
    let identity = identity(&shop).await;
    let load = steady(&shop);
    let length = 40_000_000;
    for door in [Door::Application, Door::Outside] {
        let request = format!("GET /bytes/{length} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        let (mut deaf, mut slow) = (door.knock(&shop, &identity).await, door.knock(&shop, &identity).await);
        deaf.write_all(request.as_bytes()).await.unwrap();
        slow.write_all(request.as_bytes()).await.unwrap();
        let (mut read, mut bytes, began) = (0, vec![0; 65_536], Instant::now());
        while began.elapsed() < LONG {
            read += slow.read(&mut bytes).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(read < length, "it must still be under way");
        loop {
            match slow.read(&mut bytes).await.unwrap() {
                0 => break,
                more => read += more,
            }
        }
        assert!(read > length, "{door:?}: the slow reader got {read} bytes");
        let mut got = 0;
        while let Ok(more @ 1..) = deaf.read(&mut bytes).await {
            got += more;
        }
        assert!(got < length, "{door:?}: an answer of {got} bytes waited for its reader");
    }
    unharmed(&load.finish().await);
}

/// A body of which a byte comes now and then, or none at all, and whether that ended the connection.
async fn crawl(first: Vec<u8>, byte: Option<Vec<u8>>, stream: impl Stream) -> bool {
    let (read, mut write) = tokio::io::split(stream);
    let writing = tokio::spawn(async move {
        write.write_all(&first).await?;
        loop {
            write.flush().await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            if let Some(byte) = &byte {
                write.write_all(byte).await?;
            }
        }
        #[expect(unreachable_code, reason = "gives the block its type")]
        std::io::Result::Ok(())
    });
    let ended = ended(read, LIMIT).await.is_some();
    writing.abort();
    ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_crawls_or_does_not_come_costs_its_connection_and_nobody_else_a_request() {
    let shop = open().await;
    let identity = identity(&shop).await;
    let load = steady(&shop);
    let mut slow = JoinSet::new();
    let mut post = get(HOST, "/count");
    post[0].1 = "POST";
    for crawls in [true, false] {
        for door in DOORS {
            // One stream costs a sidecar only the stream: others of its pod share the connection.
            let streams = if matches!(door, Door::Mesh) { 40 } else { 1 };
            let mut first = frames::preface();
            let mut byte = Vec::new();
            for n in 0..streams {
                first.extend(frame(Kind::Headers, END_HEADERS, 1 + 2 * n, &block(&post)));
                byte.extend(frame(Kind::Data, 0, 1 + 2 * n, b"x"));
            }
            let stream = door.knock(&shop, &identity).await;
            let byte = crawls.then_some(byte);
            slow.spawn(async move { (door, "HTTP/2", crawls, crawl(first, byte, stream).await) });
        }
        for door in [Door::Application, Door::Outside] {
            let first = format!("POST /count HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000\r\n\r\n");
            let stream = door.knock(&shop, &identity).await;
            let byte = crawls.then(|| b"x".to_vec());
            slow.spawn(
                async move { (door, "HTTP/1", crawls, crawl(first.into_bytes(), byte, stream).await) },
            );
        }
    }
    while let Some(ended) = slow.join_next().await {
        let (door, protocol, crawls, ended) = ended.unwrap();
        assert!(ended, "{door:?} {protocol}, crawls: {crawls}: still connected after {LIMIT:?}");
    }
    unharmed(&load.finish().await);
    let scrape = shop.web.scrape().await.unwrap();
    let counted = scrape.sum("heddle_refused_total", &[("reason", "RequestStalled")]);
    assert!(counted >= 4.0, "counted by its reason: {counted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_body_is_answered_with_408_and_its_reason() {
    let shop = open().await;
    let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
    let head = format!("POST /count HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000\r\n\r\nsome");
    client.send(head).await.unwrap();
    let answer = client.read_until("\r\n\r\n").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("heddle-reason: requeststalled"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_with_nothing_to_say_and_slow_bodies_that_move_stay() {
    let shop = open().await;
    let grpc = |stream| {
        let mut fields = get(HOST, "/echo");
        fields[0].1 = "POST";
        fields.push(("content-type", "application/grpc"));
        fields.push(("te", "trailers"));
        frame(Kind::Headers, END_HEADERS, stream, &block(&fields))
    };
    // A call that has sent nothing yet, and a WebSocket.
    let mut calls = TcpStream::connect(shop.web.outbound()).await.unwrap();
    calls.write_all(&[frames::preface(), grpc(1)].concat()).await.unwrap();
    let mut socket = Raw::connect(shop.web.outbound()).await.unwrap();
    let upgrade =
        format!("GET /upgrade HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    socket.send(upgrade).await.unwrap();
    assert!(socket.read_until("\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 101"));
    // A body that moves, if slowly, and an answer that takes its time.
    let mut upload = Raw::connect(shop.web.outbound()).await.unwrap();
    let length = 4000 * LONG.as_secs() as usize;
    let head = format!("POST /count HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n");
    upload.send(head).await.unwrap();
    let sleeping = tokio::spawn({
        let outbound = shop.web.outbound();
        async move {
            let mut client = Client::http2(outbound).await?;
            client.get(HOST, &format!("/sleep/{}", LONG.as_millis())).await
        }
    });
    for _ in 0..LONG.as_secs() {
        upload.send([b'x'; 4000]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(upload.read_until(&length.to_string()).await.unwrap().contains("HTTP/1.1 200"));
    assert_eq!(sleeping.await.unwrap().unwrap().status, 200);
    socket.send("still there").await.unwrap();
    assert!(socket.read_until("still there").await.is_ok());
    calls.write_all(&frame(Kind::Data, END_STREAM, 1, b"still there")).await.unwrap();
    let mut bytes = Vec::new();
    while !bytes.windows(11).any(|seen| seen == b"still there") {
        assert!(calls.read_buf(&mut bytes).await.unwrap() > 0, "the call was ended");
    }
}

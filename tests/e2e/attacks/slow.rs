//! Slow peers: heads that do not end, bodies that crawl, readers that do not read.

use heddle_tests::client::Raw;
use tokio::task::JoinSet;

use super::*;

/// A head may take 30 s (`proxy/src/meter.rs`); the rest is for a busy machine.
const HEAD: Duration = Duration::from_secs(30 + 20);

/// A byte a second for ever, and whether the other side put an end to it.
async fn trickle(first: Vec<u8>, byte: Vec<u8>, stream: impl Stream) -> bool {
    let (read, mut write) = tokio::io::split(stream);
    let writing = tokio::spawn(async move {
        write.write_all(&first).await?;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            write.write_all(&byte).await?;
            write.flush().await?;
        }
        #[expect(unreachable_code, reason = "gives the block its type")]
        std::io::Result::Ok(())
    });
    let ended = ended(read, HEAD).await.is_some();
    writing.abort();
    ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_does_not_end_costs_its_connection_and_an_idle_connection_stays() {
    let shop = shop::open(1).await;
    let identity = identity(&shop).await;
    let load = steady(&shop);
    let mut idle = [shop.web.http1().await.unwrap(), shop.web.http2().await.unwrap()];
    for client in &mut idle {
        assert_eq!(client.get(HOST, "/").await.unwrap().status, 200);
    }
    let mut slow = JoinSet::new();
    for door in DOORS {
        let first = [frames::preface(), headers(1, END_STREAM)].concat();
        let byte = frame(Kind::Continuation, 0, 1, &[]);
        let stream = door.knock(&shop, &identity).await;
        slow.spawn(async move { (door, "HTTP/2", trickle(first, byte, stream).await) });
    }
    for door in [Door::Application, Door::Outside] {
        let ask = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n");
        let mut stream = door.knock(&shop, &identity).await;
        let first = format!("{ask}x-slow: ").into_bytes();
        slow.spawn(async move { (door, "HTTP/1", trickle(first, vec![b'a'], stream).await) });
        // The same on a connection that was used and kept alive.
        stream = door.knock(&shop, &identity).await;
        stream.write_all(format!("{ask}\r\n").as_bytes()).await.unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        let first = ask.into_bytes();
        slow.spawn(async move { (door, "HTTP/1 again", trickle(first, b"x".to_vec(), stream).await) });
    }
    while let Some(ended) = slow.join_next().await {
        let (door, protocol, ended) = ended.unwrap();
        assert!(ended, "{door:?} {protocol}: still connected after {HEAD:?}");
    }
    for client in &mut idle {
        assert_eq!(client.get(HOST, "/").await.unwrap().status, 200, "an idle connection was closed");
    }
    unharmed(&load.finish().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_crawl_delay_nobody_and_arrive() {
    let shop = shop::open(1).await;
    let load = steady(&shop);
    let mut slow = JoinSet::new();
    for n in 0..100 {
        let to = if n % 2 == 0 { shop.web.outbound() } else { shop.reviews[0].port(ports::INBOUND) };
        slow.spawn(async move {
            let mut client = Raw::connect(to).await.unwrap();
            let head = format!("POST /echo HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 6\r\n\r\n");
            client.send(head).await.unwrap();
            for byte in b"crawls" {
                tokio::time::sleep(Duration::from_secs(1)).await;
                client.send([*byte]).await.unwrap();
            }
            client.read_until("\r\n0\r\n").await.unwrap()
        });
    }
    while let Some(answer) = slow.join_next().await {
        assert!(answer.unwrap().starts_with("HTTP/1.1 200"));
    }
    unharmed(&load.finish().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_open_no_window_hold_a_bounded_memory_and_delay_nobody() {
    let mut shop = shop::open(1).await;
    let identity = identity(&shop).await;
    let load = steady(&shop);
    let mut held = Vec::new();
    for door in DOORS {
        // SETTINGS_INITIAL_WINDOW_SIZE = 0
        let mut bytes = [frames::preface(), frame(Kind::Settings, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
        for n in 0..100 {
            let fields = block(&get(HOST, "/bytes/2000000"));
            bytes.extend(frame(Kind::Headers, END_HEADERS | END_STREAM, 1 + 2 * n, &fields));
        }
        let mut stream = door.knock(&shop, &identity).await;
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        held.push(stream);
    }
    // HTTP/1 has no window but the connection's own.
    for door in [Door::Application, Door::Outside] {
        for _ in 0..20 {
            let mut stream = door.knock(&shop, &identity).await;
            let ask = format!("GET /bytes/20000000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
            stream.write_all(ask.as_bytes()).await.unwrap();
            held.push(stream);
        }
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    unharmed(&load.take());
    drop(held);
    tokio::time::sleep(Duration::from_secs(1)).await;
    unharmed(&load.finish().await);
    memory_is_bounded(&mut shop);
}

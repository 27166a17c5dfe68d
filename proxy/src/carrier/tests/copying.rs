//! Opaque TCP from a client's socket through a tunnel to an application's socket, with real sockets at both ends.

use std::{cell::RefCell, io::ErrorKind, net::Ipv4Addr, rc::Rc, time::Duration};

use bytes::Bytes;
use heddle_api::carrier::Form;
use http::Response;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::spawn_local,
};

use super::super::{
    Tunnel, both_ways,
    copy::{Copied, End, Socket},
    testing::{SECOND, World, for_hours, on_a_worker},
};

/// A client's socket and an application's, joined by a tunnel, and what the two copies did.
struct Line {
    client: TcpStream,
    application: TcpStream,
    outbound: Rc<RefCell<Option<Copied>>>,
    inbound: Rc<RefCell<Option<Copied>>>,
    _world: World,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (one, other) = tokio::join!(TcpStream::connect(address), listener.accept());
    (one.unwrap(), other.unwrap().0)
}

async fn line(early: &'static [u8], idle: Duration) -> Line {
    let (near, application) = pair().await;
    let (client, accepted) = pair().await;
    let (outbound, inbound) = <(Rc<RefCell<Option<Copied>>>, Rc<RefCell<Option<Copied>>>)>::default();
    let near = Rc::new(RefCell::new(Some(near)));
    let done = Rc::clone(&inbound);
    let world = World::new(Form::Tcp, move |request, to| {
        let (near, done) = (near.take().unwrap(), Rc::clone(&done));
        async move {
            let tunnel = Tunnel::accept(request, to, Response::new(())).unwrap();
            let copied = both_ways(near, tunnel, Bytes::new(), idle, |_, _| {}).await;
            done.replace(Some(copied));
        }
    })
    .await;
    let tunnel = world.pool.tunnel(&world.peer, SECOND).await.unwrap();
    let done = Rc::clone(&outbound);
    spawn_local(async move {
        let copied = both_ways(accepted, tunnel, Bytes::from_static(early), idle, |_, _| {}).await;
        done.replace(Some(copied));
    });
    Line { client, application, outbound, inbound, _world: world }
}

async fn copied(done: &RefCell<Option<Copied>>) -> Copied {
    loop {
        if let Some(copied) = done.take() {
            return copied;
        }
        tokio::time::sleep(SECOND / 1000).await;
    }
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn bytes_arrive_as_they_were_sent_and_each_side_closes_for_itself() {
    on_a_worker(async {
        let mut line = line(b"early ", HOUR).await;
        let question: Vec<u8> = (0..8 << 20).map(|i: u32| (i / 7) as u8).collect();
        let (client, application) = (&mut line.client, &mut line.application);
        let mut heard = Vec::new();
        let asking = async {
            client.write_all(&question).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let (asked, read) = tokio::join!(asking, application.read_to_end(&mut heard));
        assert_eq!(((), read.unwrap()), (asked, question.len() + 6));
        assert!(heard.starts_with(b"early ") && heard[6..] == question);
        // The other direction is open still.
        application.write_all(b"answer").await.unwrap();
        application.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        let outbound = copied(&line.outbound).await;
        let sent = question.len() as u64 + 6;
        assert_eq!(outbound, Copied { sent, received: 6, end: End::Finished });
        let inbound = copied(&line.inbound).await;
        assert_eq!(inbound, Copied { sent: 6, received: sent, end: End::Finished });
    })
    .await;
}

#[tokio::test]
async fn small_messages_cross_as_they_come() {
    on_a_worker(async {
        let mut line = line(b"", HOUR).await;
        for round in 0..200u8 {
            line.client.write_all(&[round; 40]).await.unwrap();
            let mut heard = [0; 40];
            line.application.read_exact(&mut heard).await.unwrap();
            line.application.write_all(&heard).await.unwrap();
            line.client.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, [round; 40]);
        }
    })
    .await;
}

#[tokio::test]
async fn a_reset_by_the_application_is_a_reset_for_the_client() {
    on_a_worker(async {
        let mut line = line(b"", HOUR).await;
        line.client.write_all(b"hello").await.unwrap();
        line.application.read_exact(&mut [0; 5]).await.unwrap();
        line.application.abort();
        let error = line.client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(copied(&line.inbound).await.end, End::SocketReset);
        assert_eq!(copied(&line.outbound).await.end, End::TunnelReset);
    })
    .await;
}

#[tokio::test]
async fn a_reset_by_the_client_is_a_reset_for_the_application() {
    on_a_worker(async {
        let mut line = line(b"", HOUR).await;
        // Its own direction has ended already, so only the reset itself can tell.
        line.application.shutdown().await.unwrap();
        assert_eq!(line.client.read(&mut [0; 1]).await.unwrap(), 0);
        line.client.abort();
        let error = line.application.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(copied(&line.inbound).await.end, End::TunnelReset);
    })
    .await;
}

#[tokio::test]
async fn an_application_that_does_not_read_is_felt_by_the_client() {
    on_a_worker(async {
        let mut line = line(b"", HOUR).await;
        let chunk = vec![0; 1 << 20];
        let mut written = 0;
        // Kernel buffers, the stream's window and the send buffers of two sidecars fit; 64 MiB do not.
        while let Ok(wrote) = tokio::time::timeout(SECOND / 2, line.client.write(&chunk)).await {
            written += wrote.unwrap();
            assert!(written < 64 << 20, "the sidecars buffer without bound");
        }
        let mut heard = vec![0; written];
        line.application.read_exact(&mut heard).await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_byte_ends_after_the_idle_timeout_and_not_before() {
    for_hours(async {
        let mut line = line(b"", 60 * SECOND).await;
        for _ in 0..5 {
            tokio::time::sleep(45 * SECOND).await;
            line.client.write_all(b".").await.unwrap();
            line.application.read_exact(&mut [0; 1]).await.unwrap();
        }
        tokio::time::sleep(90 * SECOND).await;
        let ends = [copied(&line.outbound).await.end, copied(&line.inbound).await.end];
        assert!(ends.contains(&End::Idle), "{ends:?}");
        let error = line.client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    })
    .await;
}

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use http::StatusCode;
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::{JoinHandle, LocalSet, spawn_local},
};

use super::*;
use crate::worker::DrainTrigger;

const HOUR: Duration = Duration::from_secs(3600);
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// A client's end of a connection that is served, and what can be seen of it.
struct Served {
    client: DuplexStream,
    lot: Rc<Lot>,
    requests: Arc<AtomicUsize>,
    ended: JoinHandle<hyper::Result<()>>,
    drain: DrainTrigger,
}

impl Served {
    /// An application's connection to a server that answers after `takes`.
    fn new(idle: Option<Duration>, takes: Duration) -> Self {
        let (drain_trigger, drain) = Drain::new();
        let lot = Lot::new(drain.clone());
        let (client, io) = tokio::io::duplex(1 << 16);
        let requests = Arc::new(AtomicUsize::new(0));
        let (counted, of) = (Arc::clone(&requests), Rc::clone(&lot));
        let ended = spawn_local(async move {
            let answer = move |mut request: Request<Incoming>| {
                counted.fetch_add(1, Relaxed);
                async move {
                    sleep(takes).await;
                    if request.headers().contains_key(header::UPGRADE) {
                        let upgrading = hyper::upgrade::on(&mut request);
                        spawn_local(async move {
                            let mut io = hyper_util::rt::TokioIo::new(upgrading.await.unwrap());
                            let said = io.read_u8().await.unwrap();
                            io.write_u8(said + 1).await.unwrap();
                        });
                        let mut switching = Response::new(Full::default());
                        *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                        return switching;
                    }
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    Response::new(Full::new(body))
                }
            };
            serve_http1(&of, Rewind::new(Bytes::new(), io), idle, drain, answer).await
        });
        Self { client, lot, requests, ended, drain: drain_trigger }
    }

    fn is_parked(&self) -> bool {
        self.lot.moving.borrow().iter().all(|spot| spot.strong_count() == 0)
    }

    async fn ask(&mut self, request: &[u8]) -> Vec<u8> {
        self.client.write_all(request).await.unwrap();
        self.head().await
    }

    async fn head(&mut self) -> Vec<u8> {
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(self.client.read_u8().await.unwrap());
        }
        answer
    }
}

/// Runs a test on one thread, with paused time.
fn local(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_connection_is_parked_once_it_is_quiet_and_serves_again() {
    local(async {
        let mut served = Served::new(None, Duration::ZERO);
        for requests in 1..4 {
            assert!(served.ask(GET).await.starts_with(b"HTTP/1.1 200"));
            assert!(!served.is_parked());
            sleep(3 * LOOK).await;
            assert!(served.is_parked());
            sleep(HOUR).await;
            assert_eq!(served.requests.load(Relaxed), requests);
        }
        drop(served.client);
        served.ended.await.unwrap().unwrap();
    });
}

#[test]
fn a_connection_in_use_is_not_parked() {
    local(async {
        let mut served = Served::new(None, 10 * LOOK);
        served.client.write_all(GET).await.unwrap();
        for _ in 0..8 {
            sleep(LOOK).await;
            assert!(!served.is_parked());
        }
        assert!(served.head().await.starts_with(b"HTTP/1.1 200"));
        // Half a head: the other half is still waited for.
        served.client.write_all(&GET[..10]).await.unwrap();
        sleep(4 * LOOK).await;
        assert!(!served.is_parked());
        served.client.write_all(&GET[10..]).await.unwrap();
        assert!(served.head().await.starts_with(b"HTTP/1.1 200"));
        // A second request that came with the first.
        served.client.write_all(&[GET, GET].concat()).await.unwrap();
        sleep(15 * LOOK).await;
        assert!(!served.is_parked());
        served.head().await;
        served.head().await;
        assert_eq!(served.requests.load(Relaxed), 4);
    });
}

#[test]
fn a_large_request_that_wakes_a_parked_connection_arrives_whole() {
    local(async {
        let mut served = Served::new(None, Duration::ZERO);
        sleep(4 * LOOK).await;
        assert!(served.is_parked());
        let body = vec![7; 5 * FIRST_READ];
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
        assert!(served.ask(&[head.as_bytes(), &body].concat()).await.starts_with(b"HTTP/1.1 200"));
        let mut echoed = vec![0; body.len()];
        served.client.read_exact(&mut echoed).await.unwrap();
        assert_eq!(echoed, body);
    });
}

#[test]
fn an_upgrade_works_before_and_after_parking() {
    local(async {
        for parked in [false, true] {
            let mut served = Served::new(None, Duration::ZERO);
            if parked {
                sleep(4 * LOOK).await;
                assert!(served.is_parked());
            }
            let ask = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: next\r\n\r\n";
            assert!(served.ask(ask).await.starts_with(b"HTTP/1.1 101"));
            served.client.write_u8(41).await.unwrap();
            assert_eq!(served.client.read_u8().await.unwrap(), 42);
        }
    });
}

#[test]
fn a_connection_without_requests_is_closed_at_its_limit() {
    local(async {
        let mut served = Served::new(Some(HOUR), Duration::ZERO);
        sleep(HOUR * 9 / 10).await;
        served.ask(GET).await;
        sleep(HOUR * 9 / 10).await;
        assert!(!served.ended.is_finished());
        sleep(HOUR / 5).await;
        served.ended.await.unwrap().unwrap();
        assert_eq!(served.client.read(&mut [0]).await.unwrap(), 0);
    });
}

#[test]
fn leaving_ends_parked_connections_and_lets_open_requests_end() {
    local(async {
        let mut parked = Served::new(None, Duration::ZERO);
        sleep(4 * LOOK).await;
        parked.drain.terminating();
        sleep(4 * LOOK).await;
        assert!(parked.ask(GET).await.starts_with(b"HTTP/1.1 200"), "the application lives and may ask");
        sleep(4 * LOOK).await;
        parked.drain.leave();
        parked.ended.await.unwrap().unwrap();

        let mut open = Served::new(None, 5 * LOOK);
        open.client.write_all(GET).await.unwrap();
        sleep(LOOK).await;
        open.drain.leave();
        assert!(open.head().await.starts_with(b"HTTP/1.1 200"));
        open.ended.await.unwrap().unwrap();
    });
}

#[tokio::test]
async fn a_client_that_is_answered_before_it_has_sent_all_may_send_the_rest_and_hears_the_answer() {
    let test = async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (io, _) = listener.accept().await.unwrap();
        let (_drain_trigger, drain) = Drain::new();
        let served = spawn_local(async move {
            let answer = |_| async {
                let mut answer = Response::new(Full::<Bytes>::from("too large"));
                *answer.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                answer
            };
            serve_http1(&Lot::new(drain.clone()), Rewind::new(Bytes::new(), io), None, drain, answer).await
        });
        let body = vec![b'x'; 16 << 20];
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&body).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("too large"), "{answer}");
        drop(client);
        served.await.unwrap().unwrap();
    };
    LocalSet::new().run_until(test).await;
}

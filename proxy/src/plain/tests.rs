//! The pool against scripted applications on loopback.

use std::{cell::Cell, convert::Infallible, net::Ipv4Addr};

use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

use super::*;
use crate::{carrier::Sent, reason::Reason};

const CONNECT: Duration = Duration::from_secs(5);

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Reads one request head.
async fn head(io: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        match io.read_u8().await {
            Ok(byte) => text.push(byte),
            Err(_) => return None,
        }
    }
    Some(String::from_utf8(text).unwrap())
}

/// An application that gives `answer` to each request, `per_connection` times, then reads one more request and
/// closes without a word. The counter holds the connections so far.
async fn app(answer: &'static [u8], per_connection: usize) -> (SocketAddr, Rc<Cell<usize>>) {
    let (listener, address) = listener().await;
    let connections = Rc::new(Cell::new(0));
    let count = Rc::clone(&connections);
    spawn_local(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            count.set(count.get() + 1);
            spawn_local(async move {
                for _ in 0..per_connection {
                    if head(&mut io).await.is_none() {
                        return;
                    }
                    io.write_all(answer).await.unwrap();
                }
                head(&mut io).await;
            });
        }
    });
    (address, connections)
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://reviews:9080{path}")).body(Empty::new()).unwrap()
}

fn post(body: &'static str) -> Request<Full<Bytes>> {
    Request::post("http://reviews:9080/").body(Full::from(body)).unwrap()
}

async fn text(answer: Response<PlainBody>) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn a_connection_carries_one_request_after_another() {
    LocalSet::new()
        .run_until(async {
            for answer in [
                OK,
                b"HTTP/1.1 204 No Content\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: 1\r\n\r\n",
            ] {
                let (address, connections) = app(answer, 100).await;
                let pool = PlainPool::new(65_536);
                for _ in 0..3 {
                    text(pool.send(address, PlainVersion::Http1, get("/"), CONNECT).await.unwrap()).await;
                    let head_only = pool.send(address, PlainVersion::Http1, post(""), CONNECT).await.unwrap();
                    text(head_only).await;
                }
                let shown = String::from_utf8_lossy(answer);
                assert_eq!((connections.get(), pool.http1.idle(address)), (1, 1), "{shown}");
            }
        })
        .await;
}

#[tokio::test]
async fn an_answer_that_is_dropped_closes_its_connection() {
    LocalSet::new()
        .run_until(async {
            let (address, connections) = app(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", 100).await;
            let pool = PlainPool::new(65_536);
            for expected in 1..3 {
                drop(pool.send(address, PlainVersion::Http1, get("/"), CONNECT).await.unwrap());
                assert_eq!((connections.get(), pool.http1.idle(address)), (expected, 0));
            }
        })
        .await;
}

#[tokio::test]
async fn a_reused_connection_that_closes_is_replaced_for_what_may_be_repeated_and_only_for_that() {
    LocalSet::new()
        .run_until(async {
            let (address, connections) = app(OK, 1).await;
            let pool = PlainPool::new(65_536);
            let send_get = async || pool.send(address, PlainVersion::Http1, get("/"), CONNECT).await;
            assert_eq!(text(send_get().await.unwrap()).await, "ok");
            assert_eq!(text(send_get().await.unwrap()).await, "ok");
            assert_eq!(connections.get(), 2);
            let error = pool.send(address, PlainVersion::Http1, post("x"), CONNECT).await.unwrap_err();
            assert_eq!((error.reason, error.sent), (Reason::UpstreamReset, Sent::Maybe));
            assert_eq!(connections.get(), 2);
        })
        .await;
}

/// hyper's own server does this to a body that its handler does not read, and then closes.
#[tokio::test]
async fn a_connection_whose_answer_ended_before_its_request_carries_no_other() {
    LocalSet::new()
        .run_until(async {
            let (address, connections) = app(OK, 100).await;
            let pool = PlainPool::new(65_536);
            let (rest, frames) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
            let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(frames));
            let request =
                Request::post("http://reviews:9080/").header("content-length", 4).body(body).unwrap();
            let answer = pool.send(address, PlainVersion::Http1, request, CONNECT).await.unwrap();
            assert_eq!(text(answer).await, "ok");
            rest.send(Ok(Frame::data(Bytes::from_static(b"late")))).await.unwrap();
            drop(rest);
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(pool.http1.idle(address), 0);
            // One whose body went before the answer came is as good as new.
            for _ in 0..2 {
                let mut request = post("x");
                request.headers_mut().insert("content-length", HeaderValue::from_static("1"));
                text(pool.send(address, PlainVersion::Http1, request, CONNECT).await.unwrap()).await;
            }
            assert_eq!(connections.get(), 2);
        })
        .await;
}

#[tokio::test]
async fn a_fresh_connection_that_closes_is_not_tried_again() {
    LocalSet::new()
        .run_until(async {
            let (address, connections) = app(OK, 0).await;
            let pool = PlainPool::new(65_536);
            let error = pool.send(address, PlainVersion::Http1, get("/"), CONNECT).await.unwrap_err();
            assert_eq!((error.reason, error.sent), (Reason::UpstreamReset, Sent::Maybe));
            assert_eq!(connections.get(), 1);
        })
        .await;
}

#[tokio::test]
async fn an_application_that_died_of_a_request_may_have_received_it() {
    LocalSet::new()
        .run_until(async {
            let (listener, address) = listener().await;
            // The kept-alive connection and the listener go together, as they do with a process.
            spawn_local(async move {
                let (mut io, _) = listener.accept().await.unwrap();
                head(&mut io).await;
                io.write_all(OK).await.unwrap();
                head(&mut io).await;
            });
            let pool = PlainPool::new(65_536);
            text(pool.send(address, PlainVersion::Http1, get("/"), CONNECT).await.unwrap()).await;
            let poison = Request::delete("http://reviews:9080/x").body(Empty::<Bytes>::new()).unwrap();
            let error = pool.send(address, PlainVersion::Http1, poison, CONNECT).await.unwrap_err();
            assert_eq!((error.reason, error.sent), (Reason::UpstreamReset, Sent::Maybe), "{}", error.source);
            assert!(error.source.contains("refused"), "and why it was not answered: {}", error.source);
        })
        .await;
}

#[tokio::test]
async fn what_goes_idle_after_a_long_wait_is_closed_too() {
    LocalSet::new()
        .run_until(async {
            let (listener, address) = listener().await;
            let (received, go) = (Rc::new(tokio::sync::Notify::new()), Rc::new(tokio::sync::Notify::new()));
            let (tell, wait) = (Rc::clone(&received), Rc::clone(&go));
            spawn_local(async move {
                let (mut io, _) = listener.accept().await.unwrap();
                head(&mut io).await;
                tell.notify_one();
                wait.notified().await;
                io.write_all(OK).await.unwrap();
                // Nobody else closes it.
                head(&mut io).await;
            });
            let pool = PlainPool::new(65_536);
            let asking = Rc::clone(&pool);
            let asked = spawn_local(async move {
                text(asking.send(address, PlainVersion::Http1, get("/"), CONNECT).await.unwrap()).await
            });
            received.notified().await;
            tokio::time::pause();
            tokio::time::sleep(Duration::from_secs(6)).await;
            tokio::time::resume();
            go.notify_one();
            asked.await.unwrap();
            assert_eq!(pool.http1.idle(address), 1);
            tokio::time::pause();
            tokio::time::sleep(Duration::from_secs(6)).await;
            assert_eq!(pool.http1.idle(address), 0);
        })
        .await;
}

#[tokio::test]
async fn after_a_second_of_idleness_only_what_may_be_repeated_uses_a_connection() {
    LocalSet::new()
        .run_until(async {
            let (address, connections) = app(OK, 100).await;
            let pool = PlainPool::new(65_536);
            let answer = pool.send(address, PlainVersion::Http1, get("/"), CONNECT).await.unwrap();
            assert_eq!(text(answer).await, "ok");
            tokio::time::pause();
            tokio::time::advance(Duration::from_millis(1100)).await;
            tokio::time::resume();
            let request = Request::post("http://reviews:9080/").body(Empty::new()).unwrap();
            let answer = pool.send(address, PlainVersion::Http1, request, CONNECT).await.unwrap();
            assert_eq!(connections.get(), 2);
            assert_eq!(pool.http1.idle(address), 1);
            assert_eq!(text(answer).await, "ok");
            tokio::time::pause();
            tokio::time::advance(Duration::from_millis(1100)).await;
            tokio::time::resume();
            let answer = pool.send(address, PlainVersion::Http1, get("/"), CONNECT).await.unwrap();
            assert_eq!(text(answer).await, "ok");
            assert_eq!(connections.get(), 2);
        })
        .await;
}

#[tokio::test]
async fn what_is_idle_for_long_is_closed() {
    LocalSet::new()
        .run_until(async {
            let (address, _) = app(OK, 100).await;
            let pool = PlainPool::new(65_536);
            let answer = pool.send(address, PlainVersion::Http1, get("/"), CONNECT).await.unwrap();
            assert_eq!(text(answer).await, "ok");
            assert_eq!(pool.http1.idle(address), 1);
            tokio::time::pause();
            tokio::time::sleep(Duration::from_secs(6)).await;
            assert_eq!(pool.http1.idle(address), 0);
            assert!(!pool.pruning.get());
        })
        .await;
}

#[tokio::test]
async fn an_answers_trailers_lose_what_concerns_a_connection() {
    LocalSet::new().run_until(async {
        let (listener, address) = listener().await;
        spawn_local(async move {
            let (mut io, _) = listener.accept().await.unwrap();
            head(&mut io).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-a\r\n\r\n\
                2\r\nok\r\n0\r\nX-A: b\r\nKeep-Alive: x\r\nConnection: close\r\nHeddle-Reason: NoEndpoints\r\n\r\n";
            io.write_all(answer).await.unwrap();
        });
        let pool = PlainPool::new(65_536);
        let answer = pool.send(address, PlainVersion::Http1, get("/"), CONNECT).await.unwrap();
        let body = answer.into_body().collect().await.unwrap();
        let trailers = body.trailers().unwrap();
        assert_eq!((trailers.len(), &trailers["x-a"]), (1, &HeaderValue::from_static("b")));
    })
    .await;
}

#[tokio::test]
async fn an_answer_with_both_lengths_is_read_by_its_chunks_and_ends_its_connection() {
    LocalSet::new()
        .run_until(async {
            let answer =
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
            let (address, _) = app(answer, 100).await;
            let pool = PlainPool::new(65_536);
            let answer = pool.send(address, PlainVersion::Http1, get("/"), CONNECT).await.unwrap();
            assert!(!answer.headers().contains_key("content-length"));
            assert_eq!(text(answer).await, "hello");
            assert_eq!(pool.http1.idle(address), 0);
        })
        .await;
}

#[tokio::test]
async fn what_is_not_http_is_a_bad_response() {
    LocalSet::new()
        .run_until(async {
            let big: &'static [u8] =
                format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "v".repeat(65_536)).leak().as_bytes();
            for answer in [
                b"hello\r\n\r\n".as_slice(),
                b"HTTP/1.1 2000 OK\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
                b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
                b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
                big,
            ] {
                let (address, _) = app(answer, 1).await;
                let pool = PlainPool::new(65_536);
                let error = pool.send(address, PlainVersion::Http1, get("/"), CONNECT).await.unwrap_err();
                let shown = String::from_utf8_lossy(&answer[..answer.len().min(90)]).into_owned();
                assert_eq!(
                    (error.reason, error.sent),
                    (Reason::BadResponse, Sent::Maybe),
                    "{shown}: {}",
                    error.source
                );
            }
        })
        .await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error_and_not_an_end() {
    LocalSet::new()
        .run_until(async {
            for answer in [
                b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok".as_slice(),
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n",
            ] {
                let (listener, address) = listener().await;
                spawn_local(async move {
                    let (mut io, _) = listener.accept().await.unwrap();
                    head(&mut io).await;
                    io.write_all(answer).await.unwrap();
                });
                let pool = PlainPool::new(65_536);
                let answer = pool.send(address, PlainVersion::Http1, get("/"), CONNECT).await.unwrap();
                assert!(answer.into_body().collect().await.is_err());
                assert_eq!(pool.http1.idle(address), 0);
            }
        })
        .await;
}

#[tokio::test]
async fn a_refused_connection_was_not_sent() {
    LocalSet::new()
        .run_until(async {
            let (listener, address) = listener().await;
            drop(listener);
            let pool = PlainPool::new(65_536);
            for version in [PlainVersion::Http1, PlainVersion::Http2] {
                let error = pool.send(address, version, get("/"), CONNECT).await.unwrap_err();
                assert_eq!((error.reason, error.sent), (Reason::ConnectFailed, Sent::No));
            }
        })
        .await;
}

#[tokio::test]
async fn the_application_is_asked_in_http_1_as_it_expects() {
    LocalSet::new()
        .run_until(async {
            let (listener, address) = listener().await;
            let seen = spawn_local(async move {
                let (mut io, _) = listener.accept().await.unwrap();
                let first = head(&mut io).await.unwrap();
                io.write_all(OK).await.unwrap();
                first
            });
            let pool = PlainPool::new(65_536);
            let body = StreamBody::new(tokio_stream::iter([Ok::<_, Infallible>(http_body::Frame::data(
                Bytes::from_static(b"hi"),
            ))]));
            let request = Request::get("http://reviews:9080/a").body(body).unwrap();
            let answer = pool.send(address, PlainVersion::Http1, request, CONNECT).await.unwrap();
            assert_eq!(text(answer).await, "ok");
            let first = seen.await.unwrap();
            assert!(first.starts_with("GET /a HTTP/1.1\r\n"), "{first}");
            assert!(first.contains("host: reviews:9080\r\n"), "{first}");
            assert!(first.contains("transfer-encoding: chunked\r\n"), "{first}");
        })
        .await;
}

#[tokio::test]
async fn another_protocol_is_spoken_when_the_application_agrees_and_only_then() {
    LocalSet::new()
        .run_until(async {
            let (listener, address) = listener().await;
            spawn_local(async move {
                let (mut io, _) = listener.accept().await.unwrap();
                let asked = head(&mut io).await.unwrap();
                assert!(asked.contains("upgrade: websocket\r\n") && asked.contains("connection: upgrade\r\n"));
                io.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX: 1\r\n\r\nhi")
                    .await
                    .unwrap();
                let mut echo = [0; 3];
                io.read_exact(&mut echo).await.unwrap();
                io.write_all(&echo).await.unwrap();
                let (mut io, _) = listener.accept().await.unwrap();
                head(&mut io).await.unwrap();
                io.write_all(OK).await.unwrap();
            });
            let pool = PlainPool::new(65_536);
            let protocol = HeaderValue::from_static("websocket");
            let ask = || Request::get("http://reviews:9080/").body(()).unwrap();
            let Upgrade::Switched(answer, upgraded) =
                pool.upgrade(address, ask(), &protocol, CONNECT).await.unwrap()
            else {
                panic!("declined");
            };
            assert_eq!((answer.headers().len(), &answer.headers()["upgrade"]), (2, &protocol));
            let mut io = TokioIo::new(upgraded);
            io.write_all(b"abc").await.unwrap();
            let mut read = [0; 5];
            io.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"hiabc");
            let Upgrade::Declined(answer) = pool.upgrade(address, ask(), &protocol, CONNECT).await.unwrap()
            else {
                panic!("switched");
            };
            assert_eq!(text(answer).await, "ok");
        })
        .await;
}

/// An HTTP/2 application that answers when told to.
async fn http2_app(go: Rc<tokio::sync::Semaphore>) -> (SocketAddr, Rc<Cell<usize>>) {
    let (listener, address) = listener().await;
    let connections = Rc::new(Cell::new(0));
    let count = Rc::clone(&connections);
    spawn_local(async move {
        while let Ok((io, _)) = listener.accept().await {
            count.set(count.get() + 1);
            let go = Rc::clone(&go);
            let service = service_fn(move |request: Request<Incoming>| {
                let go = Rc::clone(&go);
                async move {
                    go.acquire().await.unwrap().forget();
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(request.uri().to_string())))
                }
            });
            spawn_local(settings::http2_server().serve_connection(TokioIo::new(io), service));
        }
    });
    (address, connections)
}

#[tokio::test]
async fn streams_share_a_connection_and_the_101st_opens_another() {
    LocalSet::new()
        .run_until(async {
            let go = Rc::new(tokio::sync::Semaphore::new(0));
            let (address, connections) = http2_app(Rc::clone(&go)).await;
            let pool = PlainPool::new(65_536);
            let requests: Vec<_> = (0..250)
                .map(|n| {
                    let pool = Rc::clone(&pool);
                    spawn_local(async move {
                        let request = get(&format!("/{n}"));
                        let answer = pool.send(address, PlainVersion::Http2, request, CONNECT).await.unwrap();
                        assert_eq!(text(answer).await, format!("http://reviews:9080/{n}"));
                    })
                })
                .collect();
            while connections.get() < 3 {
                tokio::task::yield_now().await;
            }
            go.add_permits(250);
            for request in requests {
                request.await.unwrap();
            }
            assert_eq!((connections.get(), pool.http2.connections(address)), (3, 3));
        })
        .await;
}

#[tokio::test]
async fn grpc_is_http_2_whatever_was_asked_for() {
    LocalSet::new()
        .run_until(async {
            let (address, _) = http2_app(Rc::new(tokio::sync::Semaphore::new(1))).await;
            let pool = PlainPool::new(65_536);
            let mut request = get("/pkg.Service/Call");
            request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            let answer = pool.send(address, PlainVersion::Http1, request, CONNECT).await.unwrap();
            assert_eq!(text(answer).await, "http://reviews:9080/pkg.Service/Call");
        })
        .await;
}

#[tokio::test]
async fn a_refused_stream_was_not_sent() {
    LocalSet::new()
        .run_until(async {
            let (listener, address) = listener().await;
            spawn_local(async move {
                let (io, _) = listener.accept().await.unwrap();
                let mut connection = h2::server::handshake(io).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                }
            });
            let pool = PlainPool::new(65_536);
            let error = pool.send(address, PlainVersion::Http2, post("x"), CONNECT).await.unwrap_err();
            assert_eq!((error.reason, error.sent), (Reason::UpstreamReset, Sent::No), "{}", error.source);
        })
        .await;
}

#[tokio::test]
async fn an_http_1_server_asked_in_http_2_gave_a_bad_response() {
    LocalSet::new()
        .run_until(async {
            let (listener, address) = listener().await;
            spawn_local(async move {
                let (mut io, _) = listener.accept().await.unwrap();
                io.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                let mut rest = Vec::new();
                io.read_to_end(&mut rest).await.unwrap();
            });
            let pool = PlainPool::new(65_536);
            let error = pool.send(address, PlainVersion::Http2, get("/"), CONNECT).await.unwrap_err();
            assert_eq!(error.reason, Reason::BadResponse, "{}", error.source);
        })
        .await;
}

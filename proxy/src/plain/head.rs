//! How long a request's head may take on HTTP/1, for connections that may be idle in between for as long as they like.
//!
//! hyper's limit begins where the request before has ended, and cannot tell a client that is idle from one that sends
//! a byte a minute. Its timer is a plug, though: [`Listened`] notes that something came, and only then does
//! [`HeadTimer`] let the time run.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::rt::{Sleep, Timer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::sleep,
};

use crate::meter::HEAD;

/// A timer for `header_read_timeout`, the connection that it must watch, and what both know. Once a byte of a head has
/// come, the rest gets [`HEAD`]; before, a connection may be silent for ever. What duration hyper is told does not matter.
pub fn listen<T>(io: T) -> (HeadTimer, Listened<T>, Arc<Waiting>) {
    let waiting = Arc::new(Waiting::default());
    (HeadTimer(Arc::clone(&waiting)), Listened { io, waiting: Arc::clone(&waiting) }, waiting)
}

/// What is known of a connection from outside hyper. Atomics because hyper's timers must be `Sync`; all is on one thread.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Something came since hyper began to wait for a head.
    heard: AtomicBool,
    /// hyper waits for a head: no request is open.
    for_head: AtomicBool,
    /// The client does not take what was written.
    unsent: AtomicBool,
    /// How often hyper began to wait for a head.
    heads: AtomicUsize,
}

impl Waiting {
    /// If the connection is between requests and has nothing left to send: how many heads it has waited for.
    #[must_use]
    pub fn between_requests(&self) -> Option<usize> {
        let idle = self.for_head.load(Relaxed) && !self.heard.load(Relaxed) && !self.unsent.load(Relaxed);
        idle.then(|| self.heads.load(Relaxed))
    }
}

/// A connection that notes when bytes have come, and when they cannot go.
#[derive(Debug)]
pub struct Listened<T> {
    io: T,
    waiting: Arc<Waiting>,
}

impl<T> Listened<T> {
    /// The connection itself.
    pub fn into_inner(self) -> T {
        self.io
    }

    /// Passes on what a write came to.
    fn sent<R>(&self, polled: Poll<R>) -> Poll<R> {
        self.waiting.unsent.store(polled.is_pending(), Relaxed);
        polled
    }
}

/// hyper's clock for one connection.
#[derive(Debug)]
pub struct HeadTimer(Arc<Waiting>);

impl Timer for HeadTimer {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Sleep>> {
        self.0.heard.store(false, Relaxed);
        self.0.for_head.store(true, Relaxed);
        self.0.heads.fetch_add(1, Relaxed);
        Box::pin(Wait { waiting: Arc::clone(&self.0), limit: None })
    }

    fn sleep_until(&self, _: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        self.sleep(HEAD)
    }
}

/// The wait for one head. It costs no timer until hyper has to wait for bytes.
struct Wait {
    waiting: Arc<Waiting>,
    limit: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Sleep for Wait {}

impl Drop for Wait {
    fn drop(&mut self) {
        self.waiting.for_head.store(false, Relaxed);
    }
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.limit.is_none() && this.waiting.heard.load(Relaxed) {
            this.limit = Some(Box::pin(sleep(HEAD)));
        }
        // Without a limit it is the next byte that wakes hyper.
        this.limit.as_mut().map_or(Poll::Pending, |limit| limit.as_mut().poll(cx))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Listened<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.waiting.heard.store(true, Relaxed);
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Listened<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.sent(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.sent(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::Response;
    use http_body_util::{BodyExt, Empty};
    use hyper::service::service_fn;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
        task::JoinHandle,
        time::Instant,
    };

    use super::*;
    use crate::plain::settings::http1_server;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A server that answers once a request's body has ended; its task gives hyper's last word.
    fn serve() -> (DuplexStream, JoinHandle<hyper::Result<()>>) {
        let (client, io) = tokio::io::duplex(65536);
        let (http1, io, _) = http1_server(io);
        let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
            let _cut = request.into_body().collect().await;
            Ok::<_, Infallible>(Response::new(Empty::<&[u8]>::new()))
        });
        (client, tokio::spawn(http1.serve_connection(io, service)))
    }

    async fn answered(client: &mut DuplexStream) {
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(client.read_u8().await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_stays_open_and_a_head_that_does_not_end_closes_it() {
        let (mut client, served) = serve();
        for _ in 0..3 {
            tokio::time::sleep(100 * HOUR).await;
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            answered(&mut client).await;
        }
        tokio::time::sleep(HOUR).await;
        let began = Instant::now();
        for byte in b"GET / HTTP/1.1\r\nx-slow: aaaaaaaaaaaaaaaaaaaaaaaaaaa" {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if client.write_u8(*byte).await.is_err() {
                break;
            }
        }
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert!(served.await.unwrap().unwrap_err().is_timeout());
        assert!(began.elapsed() < 2 * HEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_and_slow_heads_that_end_in_time_are_let_through() {
        let (mut client, _served) = serve();
        for _ in 0..5 {
            client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\n").await.unwrap();
            tokio::time::sleep(HEAD * 2 / 3).await;
            client.write_all(b"content-length: 4\r\n\r\n").await.unwrap();
            for byte in b"body" {
                tokio::time::sleep(HEAD * 2).await;
                client.write_u8(*byte).await.unwrap();
            }
            answered(&mut client).await;
        }
    }
}

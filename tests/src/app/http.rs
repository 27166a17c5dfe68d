//! An HTTP application that says which version it is, counts, and fails when told to.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context;
use http::{HeaderMap, Method, Request, Uri, Version};
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};

use super::answers;

/// How many of the latest requests an application remembers.
const REMEMBERED: usize = 256;

/// How an application behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Answers.
    Healthy,
    /// Answers everything with this status.
    Status(u16),
    /// Reads the request and never answers.
    Hang,
    /// Reads the request's head and closes the connection.
    Close,
}

/// What an application saw of a request.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its method.
    pub method: Method,
    /// Its target.
    pub uri: Uri,
    /// HTTP/1.1 or HTTP/2.
    pub version: Version,
    /// Its headers.
    pub headers: HeaderMap,
}

/// A running application; clones are handles on the same one.
#[derive(Clone, Debug)]
pub struct HttpApp {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) version: String,
    requests: AtomicU64,
    connections: AtomicU64,
    mode: Mutex<Mode>,
    seen: Mutex<VecDeque<Seen>>,
    accepting: Mutex<Option<AbortHandle>>,
}

impl HttpApp {
    /// Listens at `address` and answers as `version`, HTTP/1 and HTTP/2 alike.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn start(address: SocketAddr, version: &str) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            version: version.to_owned(),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            mode: Mutex::new(Mode::Healthy),
            seen: Mutex::default(),
            accepting: Mutex::default(),
        });
        let app = Self { address, shared };
        app.listen().await?;
        Ok(app)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests whose head it has read.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Connections it has accepted.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// The latest requests, oldest first, at most 256.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).iter().cloned().collect()
    }

    /// Behaves like this from the next request on.
    pub fn behave(&self, mode: Mode) {
        *lock(&self.shared.mode) = mode;
    }

    /// Closes every connection and refuses new ones.
    pub fn stop(&self) {
        if let Some(task) = lock(&self.shared.accepting).take() {
            task.abort();
        }
    }

    /// Listens again after [`HttpApp::stop`].
    ///
    /// # Errors
    /// When somebody else listens there now.
    pub async fn listen(&self) -> anyhow::Result<()> {
        // A stopped task closes its listener when the runtime next comes by.
        let mut tries = 0;
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) if tries < 50 => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
                Err(error) => {
                    return Err(error).with_context(|| format!("an application at {}", self.address));
                }
            }
            tries += 1;
        };
        let shared = self.shared.clone();
        let task = tokio::spawn(async move {
            // Connections end with this task.
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                while connections.try_join_next().is_some() {}
                shared.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(stream, shared.clone()));
            }
        });
        *lock(&self.shared.accepting) = Some(task.abort_handle());
        Ok(())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.accepting).take() {
            task.abort();
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = shared.clone();
        async move {
            shared.requests.fetch_add(1, Ordering::Relaxed);
            remember(&shared, &request);
            let mode = *lock(&shared.mode);
            match mode {
                Mode::Healthy => answers::to(request, &shared.version).await,
                Mode::Status(status) => Ok(answers::status(status, &shared.version)),
                Mode::Hang => std::future::pending().await,
                Mode::Close => Err(std::io::Error::other("told to close")),
            }
        }
    });
    // How a connection ends is the client's business; the test asks the client.
    if speaks_http2(&stream).await {
        let _ = conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(1 << 20)
            .max_concurrent_streams(10_000)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    } else {
        let _ = conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_buf_size(1 << 20)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
    }
}

/// Looks at the first bytes without taking them.
async fn speaks_http2(stream: &TcpStream) -> bool {
    let mut first = [0; 4];
    loop {
        match stream.peek(&mut first).await {
            Ok(4) => return &first == b"PRI ",
            Ok(0) | Err(_) => return false,
            // The rest of the first four bytes is on its way.
            Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
        }
    }
}

fn remember(shared: &Shared, request: &Request<Incoming>) {
    let mut seen = lock(&shared.seen);
    if seen.len() == REMEMBERED {
        seen.pop_front();
    }
    seen.push_back(Seen {
        method: request.method().clone(),
        uri: request.uri().clone(),
        version: request.version(),
        headers: request.headers().clone(),
    });
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

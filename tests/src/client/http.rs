//! An HTTP client that holds one connection and never opens another behind the test's back.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::{BodyExt, Empty, Full, combinators::BoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpSocket, TcpStream};

/// The body of a request.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// A request may take this long before the test fails: everything has a deadline.
const LIMIT: Duration = Duration::from_secs(30);

/// A body of these bytes.
pub fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// No body.
#[must_use]
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// A response, read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The protocol that it came over.
    pub version: Version,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Its trailers.
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value; empty when it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// The sidecar's own word for why it refused; empty when it did not.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.header("heddle-reason")
    }

    /// Which version of the application answered; empty when none did.
    #[must_use]
    pub fn answered_by(&self) -> &str {
        self.header("x-version")
    }

    async fn read(response: Response<Incoming>) -> anyhow::Result<Self> {
        let (head, body) = response.into_parts();
        let collected = body.collect().await.context("reading the response's body")?;
        let trailers = collected.trailers().cloned();
        let (status, version) = (head.status.as_u16(), head.version);
        Ok(Self { status, version, headers: head.headers, body: collected.to_bytes(), trailers })
    }
}

/// One connection to a sidecar or an application.
#[derive(Debug)]
pub enum Client {
    /// HTTP/1.1, one request at a time.
    Http1(http1::SendRequest<Body>),
    /// HTTP/2 without TLS.
    Http2(http2::SendRequest<Body>),
}

impl Client {
    /// Connects with HTTP/1.1.
    ///
    /// # Errors
    /// When nothing listens there.
    pub async fn http1(address: SocketAddr) -> anyhow::Result<Self> {
        Self::http1_over(connect(address).await?).await
    }

    /// HTTP/1.1 over this connection.
    ///
    /// # Errors
    /// When the connection is closed already.
    pub async fn http1_over(stream: TcpStream) -> anyhow::Result<Self> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(4 << 20)
            .max_headers(2000)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(connection.with_upgrades());
        Ok(Self::Http1(sender))
    }

    /// Connects with HTTP/2, prior knowledge.
    ///
    /// # Errors
    /// When nothing listens there.
    pub async fn http2(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = connect(address).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .max_header_list_size(1 << 20)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(connection);
        Ok(Self::Http2(sender))
    }

    /// GET, read to its end. `host` is the service as the application names it, `reviews:9080`.
    ///
    /// # Errors
    /// When the connection fails before the end of the response.
    pub async fn get(&mut self, host: &str, path: &str) -> anyhow::Result<Answer> {
        self.request(Method::GET, host, path, empty()).await
    }

    /// A request with a body, read to its end.
    ///
    /// # Errors
    /// When the connection fails before the end of the response.
    pub async fn request(
        &mut self,
        method: Method,
        host: &str,
        path: &str,
        body: Body,
    ) -> anyhow::Result<Answer> {
        self.send(Request::builder().method(method).uri(format!("http://{host}{path}")).body(body)?).await
    }

    /// Sends a request whose URI is absolute and reads the response to its end.
    ///
    /// # Errors
    /// When the connection fails before the end of the response.
    pub async fn send(&mut self, request: Request<Body>) -> anyhow::Result<Answer> {
        let what = format!("{} {}", request.method(), request.uri());
        let answer = async { Answer::read(self.open(request).await?).await };
        match tokio::time::timeout(LIMIT, answer).await {
            Ok(answer) => answer.with_context(|| what),
            Err(_) => bail!("{what}: no whole response in {LIMIT:?}"),
        }
    }

    /// Sends a request whose URI is absolute and gives the response with its body still to come.
    ///
    /// # Errors
    /// When the connection fails before the response.
    pub async fn open(&mut self, mut request: Request<Body>) -> anyhow::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                let authority = request.uri().authority().context("an absolute URI")?.to_string();
                let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).parse()?;
                *request.uri_mut() = path;
                request.headers_mut().entry("host").or_insert(authority.parse()?);
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
        }
    }

    /// A second handle on the same HTTP/2 connection; None for HTTP/1, which has one request at a time.
    #[must_use]
    pub fn share(&self) -> Option<Self> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(sender) => Some(Self::Http2(sender.clone())),
        }
    }

    /// Whether the far side has closed the connection.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}

async fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    // From the pod's own address, as its application would: it shares the pod's network.
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.ip().is_loopback() {
        socket.bind(SocketAddr::new(address.ip(), 0))?;
    }
    let stream = tokio::time::timeout(LIMIT, socket.connect(address))
        .await
        .with_context(|| format!("no connection to {address} in {LIMIT:?}"))?
        .with_context(|| format!("no connection to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

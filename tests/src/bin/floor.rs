//! The floor: a pair of proxies on the same libraries as Heddle's sidecar with none of its features, the yardstick of
//! what the stack can give. HTTP/1 → TLS with the h2 crate → HTTP/1, and TCP as CONNECT streams.
//!
//! ```text
//! floor outbound CERTS PEER HTTP [LISTEN=APPLICATION …]   one mTLS connection to PEER carries everything
//! floor inbound CERTS LISTEN APPLICATION                  CONNECT dials what it is told to
//! ```
//!
//! No discovery, routes, balancing, retries, metrics or limits: it is no proxy to use. `CERTS` is a directory with
//! `ca.pem`, `cert.pem` and `key.pem`; the server's name is `bench`. It is what cargo builds, without the profile that the sidecar is
//! shipped with (`proxy/release`).

use std::{
    env,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderValue, Method, Request, Response, Uri, Version, header, uri::PathAndQuery};
use http_body_util::BodyExt;
use hyper::{
    body::{Body, Frame, Incoming},
    client::conn::http1 as http1_client,
    server::conn::http1 as http1_server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedWriteHalf},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Error = Box<dyn std::error::Error + Send + Sync>;
/// Idle connections to the application.
type Idle = Arc<Mutex<Vec<http1_client::SendRequest<FromStream>>>>;

/// HTTP/2 windows and frames: nothing is ever stopped by the connection's window.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;
const FRAME: u32 = 256 << 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["outbound", certs, peer, http, ref forwards @ ..] => {
            outbound(Path::new(certs), peer.parse()?, http.parse()?, forwards).await
        }
        ["inbound", certs, listen, app] => inbound(Path::new(certs), listen.parse()?, app.parse()?).await,
        _ => Err(
            "floor outbound CERTS PEER HTTP [LISTEN=APPLICATION …] | floor inbound CERTS LISTEN APPLICATION"
                .into(),
        ),
    }
}

// ---- outbound: HTTP/1 in, a stream out

async fn outbound(certs: &Path, peer: SocketAddr, http: SocketAddr, forwards: &[&str]) -> Result<(), Error> {
    let carrier = dial(certs, peer).await?;
    for forward in forwards {
        let (listen, app) = forward.split_once('=').ok_or("LISTEN=APPLICATION")?;
        let (listener, app, carrier) = (TcpListener::bind(listen).await?, app.to_owned(), carrier.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(tunnel(socket, app.clone(), carrier.clone()));
            }
        });
    }
    let listener = TcpListener::bind(http).await?;
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let carrier = carrier.clone();
        let service = service_fn(move |request| forward(request, carrier.clone()));
        tokio::spawn(http1_server::Builder::new().serve_connection(TokioIo::new(socket), service));
    }
}

/// The one connection to the other proxy, which may still be starting.
async fn dial(certs: &Path, peer: SocketAddr) -> Result<client::SendRequest<Bytes>, Error> {
    let (roots, chain, key) = credentials(certs)?;
    let mut tls = ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let socket = loop {
        match TcpStream::connect(peer).await {
            Ok(socket) => break socket,
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    };
    socket.set_nodelay(true)?;
    let tls = TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from("bench")?, socket).await?;
    let mut builder = client::Builder::new();
    builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    // As at the other end: what still comes for streams that clients left must not end the connection.
    builder.max_frame_size(FRAME).max_local_error_reset_streams(None);
    let (carrier, connection) = builder.handshake(tls).await?;
    tokio::spawn(connection);
    Ok(carrier)
}

async fn forward(
    request: Request<Incoming>,
    carrier: client::SendRequest<Bytes>,
) -> Result<Response<FromStream>, Error> {
    let (mut parts, body) = request.into_parts();
    let host = parts.headers.remove(header::HOST).ok_or("no Host")?;
    let path = parts.uri.into_parts().path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::builder().scheme("http").authority(host.as_bytes()).path_and_query(path).build()?;
    parts.version = Version::HTTP_2;
    parts.headers.remove(header::CONNECTION);
    let no_body = body.is_end_stream();
    let (response, stream) = carrier.ready().await?.send_request(Request::from_parts(parts, ()), no_body)?;
    if !no_body {
        tokio::spawn(pump(body, stream));
    }
    let (mut parts, body) = response.await?.into_parts();
    parts.version = Version::HTTP_11;
    Ok(Response::from_parts(parts, FromStream(body)))
}

async fn tunnel(socket: TcpStream, app: String, carrier: client::SendRequest<Bytes>) -> Result<(), Error> {
    let request = Request::builder().method(Method::CONNECT).uri(app).body(())?;
    let (response, stream) = carrier.ready().await?.send_request(request, false)?;
    copy_both(socket, response.await?.into_body(), stream).await
}

// ---- inbound: a stream in, HTTP/1 out

async fn inbound(certs: &Path, listen: SocketAddr, app: SocketAddr) -> Result<(), Error> {
    let (roots, chain, key) = credentials(certs)?;
    let clients = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
    let mut tls = ServerConfig::builder().with_client_cert_verifier(clients).with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let (tls, idle) = (TlsAcceptor::from(Arc::new(tls)), Idle::default());
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let (tls, idle) = (tls.clone(), idle.clone());
        tokio::spawn(async move {
            let mut builder = server::Builder::new();
            builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
            builder.max_frame_size(FRAME).max_concurrent_streams(20_000);
            // A client of a thousand connections that leaves cancels a thousand requests, and `h2` would end the connection.
            builder.max_pending_accept_reset_streams(20_000).max_local_error_reset_streams(None);
            let mut connection = builder.handshake::<_, Bytes>(tls.accept(socket).await?).await?;
            while let Some(stream) = connection.accept().await {
                let (request, respond) = stream?;
                tokio::spawn(answer(request, respond, app, idle.clone()));
            }
            Ok::<_, Error>(())
        });
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: server::SendResponse<Bytes>,
    app: SocketAddr,
    idle: Idle,
) -> Result<(), Error> {
    let (mut parts, body) = request.into_parts();
    let authority = parts.uri.authority().ok_or("no authority")?.clone();
    if parts.method == Method::CONNECT {
        let socket = TcpStream::connect(authority.as_str()).await?;
        let stream = respond.send_response(Response::new(()), false)?;
        return copy_both(socket, body, stream).await;
    }
    parts.headers.insert(header::HOST, HeaderValue::from_str(authority.as_str())?);
    parts.uri = parts.uri.path_and_query().ok_or("no path")?.clone().into();
    parts.version = Version::HTTP_11;
    let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut connection = match kept {
        Some(connection) => connection,
        None => {
            let socket = TcpStream::connect(app).await?;
            socket.set_nodelay(true)?;
            let (sender, connection) = http1_client::handshake(TokioIo::new(socket)).await?;
            tokio::spawn(connection);
            sender
        }
    };
    let response = connection.send_request(Request::from_parts(parts, FromStream(body))).await?;
    let (mut parts, body) = response.into_parts();
    parts.version = Version::HTTP_2;
    parts.headers.remove(header::CONNECTION);
    let no_body = body.is_end_stream();
    let stream = respond.send_response(Response::from_parts(parts, ()), no_body)?;
    if !no_body {
        pump(body, stream).await?;
    }
    connection.ready().await?;
    idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    Ok(())
}

// ---- bodies and bytes

/// What a stream receives, as a body of hyper's.
struct FromStream(RecvStream);

impl Body for FromStream {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(data) = ready!(self.0.poll_data(cx)).transpose()? else { return Poll::Ready(None) };
        self.0.flow_control().release_capacity(data.len())?;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

async fn pump(mut body: Incoming, mut stream: SendStream<Bytes>) -> Result<(), Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            send(&mut stream, data, body.is_end_stream()).await?;
        }
        if body.is_end_stream() {
            return Ok(());
        }
    }
    Ok(stream.send_data(Bytes::new(), true)?)
}

async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room =
            std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.ok_or("the stream is gone")??;
        let part = data.split_to(room.min(data.len()));
        stream.send_data(part, end && data.is_empty())?;
    }
    Ok(())
}

async fn copy_both(socket: TcpStream, body: RecvStream, mut stream: SendStream<Bytes>) -> Result<(), Error> {
    socket.set_nodelay(true)?;
    let (mut read, write) = socket.into_split();
    tokio::spawn(copy_out(body, write));
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(64 << 10);
        if read.read_buf(&mut buffer).await? == 0 {
            return Ok(stream.send_data(Bytes::new(), true)?);
        }
        send(&mut stream, buffer.split().freeze(), false).await?;
    }
}

async fn copy_out(mut body: RecvStream, mut write: OwnedWriteHalf) -> Result<(), Error> {
    while let Some(data) = body.data().await {
        let data = data?;
        write.write_all(&data).await?;
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(write.shutdown().await?)
}

type Credentials = (RootCertStore, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn credentials(certs: &Path) -> Result<Credentials, Error> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(certs.join("ca.pem"))? {
        roots.add(root?)?;
    }
    let chain = CertificateDer::pem_file_iter(certs.join("cert.pem"))?.collect::<Result<_, _>>()?;
    Ok((roots, chain, PrivateKeyDer::from_pem_file(certs.join("key.pem"))?))
}

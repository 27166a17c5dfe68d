//! The server: HTTP/1 and HTTP/2 (with TLS where told to), TCP, gRPC.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ServerConfig, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{Lines, capitalised, grpc};

/// A handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What a server is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it listens.
    pub ip: IpAddr,
    /// Ports of HTTP/1 and HTTP/2.
    pub http: Vec<u16>,
    /// Which of these have TLS.
    pub tls: Vec<u16>,
    /// Ports that answer whatever comes.
    pub tcp: Vec<u16>,
    /// Ports of gRPC.
    pub grpc: Vec<u16>,
    /// Certificate and key in PEM; without them one is made that nobody need believe.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// `ServiceVersion`.
    pub version: String,
    /// `Cluster`.
    pub cluster: String,
    /// `Hostname`: the pod's name.
    pub hostname: String,
}

/// What a server says of itself.
#[derive(Debug)]
pub(super) struct About {
    pub(super) hostname: String,
    version: String,
    cluster: String,
    port: u16,
}

impl About {
    pub(super) fn say(&self, lines: &mut Lines) {
        lines.say("ServiceVersion", &self.version);
        lines.say("ServicePort", self.port);
        lines.say("Cluster", &self.cluster);
    }
}

/// What a port speaks.
#[derive(Clone)]
enum Speaks {
    Http(Option<TlsAcceptor>),
    Tcp,
    Grpc,
}

/// A server whose ports are open.
pub struct Server {
    ports: Vec<(TcpListener, Speaks, Arc<About>)>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses()).finish()
    }
}

impl Server {
    /// Opens all ports.
    ///
    /// # Errors
    /// When one is taken, or the certificate cannot be used.
    pub async fn bind(settings: &Settings) -> anyhow::Result<Self> {
        let tls = if settings.tls.is_empty() { None } else { Some(acceptor(settings)?) };
        let http = settings.http.iter().map(|port| {
            let tls = tls.clone().filter(|_| settings.tls.contains(port));
            (*port, Speaks::Http(tls))
        });
        let tcp = settings.tcp.iter().map(|port| (*port, Speaks::Tcp));
        let grpc = settings.grpc.iter().map(|port| (*port, Speaks::Grpc));
        let mut ports = Vec::new();
        for (port, speaks) in http.chain(tcp).chain(grpc) {
            let address = SocketAddr::new(settings.ip, port);
            let listener =
                TcpListener::bind(address).await.with_context(|| format!("listening at {address}"))?;
            let about = About {
                hostname: settings.hostname.clone(),
                version: settings.version.clone(),
                cluster: settings.cluster.clone(),
                port: listener.local_addr()?.port(),
            };
            ports.push((listener, speaks, Arc::new(about)));
        }
        Ok(Self { ports })
    }

    /// Where it listens: HTTP, TCP and gRPC ports in the order of the settings.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.ports.iter().filter_map(|(listener, ..)| listener.local_addr().ok()).collect()
    }

    /// Serves until it is dropped.
    pub async fn run(self) {
        let mut ports = JoinSet::new();
        for (listener, speaks, about) in self.ports {
            ports.spawn(accept(listener, speaks, about));
        }
        while ports.join_next().await.is_some() {}
    }
}

async fn accept(listener: TcpListener, speaks: Speaks, about: Arc<About>) {
    // Connections end with this task.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors: connections that end give some back.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let (speaks, about) = (speaks.clone(), Arc::clone(&about));
        connections.spawn(async move {
            let _ = stream.set_nodelay(true);
            // How a connection ends is the client's business.
            let _ended = match speaks {
                Speaks::Tcp => tcp(stream, &about, peer.ip()).await.map_err(Into::into),
                Speaks::Grpc => http2(stream, about, peer.ip(), true).await,
                Speaks::Http(None) => match is_http2(&stream).await {
                    true => http2(stream, about, peer.ip(), false).await,
                    false => http1(stream, about, peer.ip()).await,
                },
                Speaks::Http(Some(tls)) => https(stream, &tls, about, peer.ip()).await,
            };
        });
    }
}

type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Looks at the first bytes without taking them.
async fn is_http2(stream: &TcpStream) -> bool {
    let mut first = [0; 4];
    loop {
        match stream.peek(&mut first).await {
            Ok(4) => return &first == b"PRI ",
            Ok(0) | Err(_) => return false,
            // The rest of the first four bytes is on its way.
            Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn https(stream: TcpStream, tls: &TlsAcceptor, about: Arc<About>, from: IpAddr) -> Ended {
    let stream = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await??;
    match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => http2(stream, about, from, false).await,
        _ => http1(stream, about, from).await,
    }
}

async fn http1(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    about: Arc<About>,
    from: IpAddr,
) -> Ended {
    let service = service_fn(move |request| answer(request, Arc::clone(&about), from));
    let mut builder = conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).title_case_headers(true);
    Ok(builder.serve_connection(TokioIo::new(stream), service).await?)
}

async fn http2(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    about: Arc<About>,
    from: IpAddr,
    grpc: bool,
) -> Ended {
    let mut builder = conn::http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new());
    let stream = TokioIo::new(stream);
    if grpc {
        let service = service_fn(move |request| {
            let about = Arc::clone(&about);
            async move { Ok::<_, std::convert::Infallible>(grpc::answer(request, about, from).await) }
        });
        return Ok(builder.serve_connection(stream, service).await?);
    }
    let service = service_fn(move |request| answer(request, Arc::clone(&about), from));
    Ok(builder.serve_connection(stream, service).await?)
}

/// Says what the request was; its body is read to the end and left unsaid.
async fn answer(
    request: Request<Incoming>,
    about: Arc<About>,
    from: IpAddr,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, mut body) = request.into_parts();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    let host = parts.headers.get(header::HOST).map(super::text);
    let authority = || parts.uri.authority().map(ToString::to_string);
    let mut lines = Lines::default();
    about.say(&mut lines);
    lines.say("Host", host.or_else(authority).unwrap_or_default());
    lines.say("URL", parts.uri.path_and_query().map_or("/", |path| path.as_str()));
    lines.say("Method", &parts.method);
    lines.say("Proto", if parts.version == Version::HTTP_2 { "HTTP/2.0" } else { "HTTP/1.1" });
    lines.say("IP", from);
    let mut headers = parts.headers;
    // Said above; Go's servers count it with the request's line as well.
    headers.remove(header::HOST);
    lines.say_headers("RequestHeader", &headers, capitalised);
    lines.say("Hostname", &about.hostname);
    let mut response = Response::new(Full::from(lines.0));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// Says at the first bytes who it is, and gives everything back.
async fn tcp(mut stream: TcpStream, about: &About, from: IpAddr) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    let mut introduced = false;
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return stream.shutdown().await;
        }
        if !std::mem::replace(&mut introduced, true) {
            let mut lines = Lines::default();
            lines.say("StatusCode", 200);
            about.say(&mut lines);
            lines.say("IP", from);
            lines.say("Proto", "TCP");
            lines.say("Hostname", &about.hostname);
            stream.write_all(lines.0.as_bytes()).await?;
        }
        stream.write_all(&buffer[..read]).await?;
    }
}

fn acceptor(settings: &Settings) -> anyhow::Result<TlsAcceptor> {
    let (chain, key) = match &settings.certificate {
        Some((certificate, key)) => {
            let pem = fs::read(certificate).with_context(|| format!("reading {}", certificate.display()))?;
            let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>()?;
            let pem = fs::read(key).with_context(|| format!("reading {}", key.display()))?;
            (chain, PrivateKeyDer::from_pem_slice(&pem)?)
        }
        None => {
            let made = rcgen::generate_simple_self_signed([settings.hostname.clone()])?;
            let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
            (vec![made.cert.der().clone()], PrivateKeyDer::Pkcs8(key))
        }
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

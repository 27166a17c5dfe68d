//! For tests: a control plane in this process, over real TLS on 127.0.0.1, that does what the test says.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use heddle_api::{
    identity::CONTROL_PLANE_DNS_NAME,
    v1::{
        self, DiscoveryRequest, DiscoveryResponse,
        discovery_server::{Discovery, DiscoveryServer},
        identity_server::{Identity, IdentityServer},
    },
};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::SanType;
use rustls::{RootCertStore, server::WebPkiClientVerifier, version::TLS13};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service as _;

use super::{Authority, HOUR, pod};
use crate::identity::{ControlPlaneConfig, tls, verify};

pub(crate) const ID: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// A discovery stream as the server has it.
pub(crate) struct Stream {
    pub(crate) requests: Streaming<DiscoveryRequest>,
    pub(crate) responses: mpsc::Sender<Result<DiscoveryResponse, Status>>,
}

impl Stream {
    /// The sidecar's next word.
    pub(crate) async fn hear(&mut self) -> DiscoveryRequest {
        self.requests.message().await.expect("the stream is up").expect("a request")
    }

    pub(crate) async fn say(&self, response: DiscoveryResponse) {
        self.responses.send(Ok(response)).await.expect("the stream is up");
    }
}

/// What happened, and what is to happen.
#[derive(Default)]
pub(crate) struct Script {
    /// Answers in their turn: a lifetime, or a refusal. When there are none left: an hour.
    pub(crate) answers: Mutex<VecDeque<Result<Duration, Status>>>,
    /// `Join <token>` or `Renew`, as they came.
    pub(crate) calls: Mutex<Vec<String>>,
}

/// The control plane.
pub(crate) struct ControlPlane {
    pub(crate) config: ControlPlaneConfig,
    pub(crate) authority: Arc<Authority>,
    pub(crate) script: Arc<Script>,
    /// Streams that sidecars have opened.
    pub(crate) streams: mpsc::Receiver<Stream>,
    address: SocketAddr,
    opened: mpsc::Sender<Stream>,
    server: JoinHandle<()>,
    directory: TempDir,
}

impl ControlPlane {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::new("cluster.local"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = ControlPlaneConfig {
            url: format!("https://{address}").parse().unwrap(),
            ca: directory.path().join("ca.pem"),
            token: directory.path().join("token"),
            pod: pod(),
        };
        std::fs::write(&config.ca, authority.root_pem()).unwrap();
        std::fs::write(&config.token, "first\n").unwrap();
        let (opened, streams) = mpsc::channel(8);
        let script = Arc::new(Script::default());
        let server = tokio::spawn(serve(listener, authority.clone(), script.clone(), opened.clone()));
        Self { config, authority, script, streams, address, opened, server, directory }
    }

    /// Is gone, with all its connections.
    pub(crate) async fn kill(&mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
    }

    /// Is there again, at the same address.
    pub(crate) async fn restart(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let (authority, script) = (self.authority.clone(), self.script.clone());
        self.server = tokio::spawn(serve(listener, authority, script, self.opened.clone()));
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.script.calls.lock().unwrap().clone()
    }

    /// The next calls of Join and Renew are answered so.
    pub(crate) fn answer(&self, answers: impl IntoIterator<Item = Result<Duration, Status>>) {
        self.script.answers.lock().unwrap().extend(answers);
    }
}

async fn serve(
    listener: TcpListener,
    authority: Arc<Authority>,
    script: Arc<Script>,
    opened: mpsc::Sender<Stream>,
) {
    let acceptor = acceptor(&authority);
    // Aborted with this task, when it is dropped.
    let mut connections = JoinSet::new();
    loop {
        let (io, _) = listener.accept().await.unwrap();
        let service = Service {
            authority: authority.clone(),
            script: script.clone(),
            opened: opened.clone(),
            known: false,
        };
        connections.spawn(connection(acceptor.clone(), io, service));
    }
}

fn acceptor(authority: &Authority) -> TlsAcceptor {
    let now = SystemTime::now();
    let name = SanType::DnsName(CONTROL_PLANE_DNS_NAME.try_into().unwrap());
    let (leaf, key) = authority.leaf(vec![name], now - HOUR, now + HOUR);
    let mut roots = RootCertStore::empty();
    roots.add(authority.root()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider().clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(tls::provider().clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![leaf], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

async fn connection(acceptor: TlsAcceptor, io: TcpStream, mut service: Service) {
    let Ok(io) = acceptor.accept(io).await else { return };
    let certificates = io.get_ref().1.peer_certificates();
    service.known = verify::peer(certificates, &service.authority.trust(), SystemTime::now()).is_ok();
    let dispatch = service_fn(move |request: http::Request<Incoming>| {
        if request.uri().path().starts_with("/heddle.v1.Discovery/") {
            DiscoveryServer::new(service.clone()).call(request)
        } else {
            IdentityServer::new(service.clone()).call(request)
        }
    });
    // However it ends, the test sees it at the other side.
    let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), dispatch).await;
}

#[derive(Clone)]
struct Service {
    authority: Arc<Authority>,
    script: Arc<Script>,
    opened: mpsc::Sender<Stream>,
    /// Whether the connection showed a certificate.
    known: bool,
}

impl Service {
    fn issue(&self, call: String, csr: &[u8]) -> Result<Response<v1::Certificate>, Status> {
        self.script.calls.lock().unwrap().push(call);
        let lifetime = self.script.answers.lock().unwrap().pop_front().unwrap_or(Ok(HOUR))?;
        let leaf = self.authority.certify(csr, vec![SanType::URI(ID.try_into().unwrap())], lifetime);
        Ok(Response::new(v1::Certificate {
            chain: vec![leaf.to_vec().into()],
            roots: vec![self.authority.root().to_vec().into()],
            trust_domain: "cluster.local".to_owned(),
            ..v1::Certificate::default()
        }))
    }
}

#[tonic::async_trait]
impl Identity for Service {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::Certificate>, Status> {
        let request = request.into_inner();
        assert_eq!((self.known, request.pod), (false, pod().to_string()));
        self.issue(format!("Join {}", request.token), &request.csr)
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::Certificate>, Status> {
        assert!(self.known, "Renew is asked for with a certificate");
        self.issue("Renew".to_owned(), &request.into_inner().csr)
    }
}

#[tonic::async_trait]
impl Discovery for Service {
    type StreamStream = ReceiverStream<Result<DiscoveryResponse, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        assert!(self.known, "discovery is asked for with a certificate");
        let (responses, receiver) = mpsc::channel(16);
        let stream = Stream { requests: request.into_inner(), responses };
        self.opened.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

//! A sidecar's side of the protocol, as small as it gets.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use heddle_api::{
    identity::CONTROL_PLANE_DNS_NAME,
    v1::{self, discovery_client::DiscoveryClient, identity_client::IdentityClient},
};
use heddle_control_plane::ca::Authority;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::world::PATIENCE;

/// A key and the certificate for it.
pub(crate) struct Leaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
    pub(crate) certificate: v1::Certificate,
}

/// Joins as `pod`.
pub(crate) async fn join(address: SocketAddr, ca: &Path, token: &str, pod: &str) -> Result<Leaf, Status> {
    join_over(connect(address, ca, None).await.unwrap(), token, pod).await
}

/// Joins on a connection that is there.
pub(crate) async fn join_over(channel: Channel, token: &str, pod: &str) -> Result<Leaf, Status> {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    let request = v1::JoinRequest { token: token.to_owned(), pod: pod.to_owned(), csr: csr.into() };
    let mut client = IdentityClient::new(channel);
    Ok(Leaf::new(key, client.join(request).await?.into_inner()))
}

impl Leaf {
    fn new(key: KeyPair, certificate: v1::Certificate) -> Self {
        let chain = certificate.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        Self { chain, key, certificate }
    }

    /// A leaf that did not come over the network, good from `now`.
    pub(crate) fn signed_by(authority: &Authority, id: &str, pod: &str, now: SystemTime) -> Self {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let issued = authority.workload(csr.der(), &id.parse().unwrap(), &pod.parse().unwrap(), now).unwrap();
        Self { chain: issued.chain, key, certificate: v1::Certificate::default() }
    }

    /// Renews with this one.
    pub(crate) async fn renew(&self, address: SocketAddr, ca: &Path) -> Result<Self, Status> {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let mut client = IdentityClient::new(connect(address, ca, Some(self)).await.unwrap());
        let certificate = client.renew(v1::RenewRequest { csr: csr.into() }).await?.into_inner();
        Ok(Self::new(key, certificate))
    }
}

/// A connection, with or without client certificate.
pub(crate) async fn connect(
    address: SocketAddr,
    ca: &Path,
    leaf: Option<&Leaf>,
) -> Result<Channel, tonic::transport::Error> {
    connect_from(None, address, ca, leaf).await
}

/// The same, from an address of this machine's.
pub(crate) async fn connect_from(
    from: Option<IpAddr>,
    address: SocketAddr,
    ca: &Path,
    leaf: Option<&Leaf>,
) -> Result<Channel, tonic::transport::Error> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match leaf {
        Some(leaf) => {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf.key.serialize_der()));
            builder.with_client_auth_cert(leaf.chain.clone(), key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = Connector { from, address, tls: Arc::new(config).into() };
    Endpoint::from_static("http://control-plane")
        .connect_timeout(PATIENCE)
        .connect_with_connector(connector)
        .await
}

struct Connector {
    from: Option<IpAddr>,
    address: SocketAddr,
    tls: TlsConnector,
}

impl tower_service::Service<http::Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let (from, address, tls) = (self.from, self.address, self.tls.clone());
        Box::pin(async move {
            let name = ServerName::try_from(CONTROL_PLANE_DNS_NAME).unwrap();
            let socket = TcpSocket::new_v4()?;
            if let Some(from) = from {
                socket.bind((from, 0).into())?;
            }
            Ok(TokioIo::new(tls.connect(name, socket.connect(address).await?).await?))
        })
    }
}

/// A discovery stream.
pub(crate) struct Stream {
    requests: mpsc::Sender<v1::DiscoveryRequest>,
    responses: Streaming<v1::DiscoveryResponse>,
}

impl Stream {
    /// Opens one and says hello as `pod`.
    pub(crate) async fn open(
        channel: Channel,
        pod: &str,
        held: Vec<v1::HeldResource>,
        subscribe: Vec<v1::ResourceName>,
    ) -> Result<Self, Status> {
        let (requests, rx) = mpsc::channel(8);
        let hello = v1::Hello { pod: pod.to_owned(), version: "test".to_owned(), held };
        let first = v1::DiscoveryRequest { hello: Some(hello), subscribe, ..Default::default() };
        requests.send(first).await.unwrap();
        let responses = DiscoveryClient::new(channel).stream(ReceiverStream::new(rx)).await?.into_inner();
        Ok(Self { requests, responses })
    }

    pub(crate) async fn send(&self, request: v1::DiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    /// The next response, not answered yet.
    pub(crate) async fn next(&mut self) -> Result<v1::DiscoveryResponse, Status> {
        let next =
            tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("a response in time")?;
        next.ok_or_else(|| Status::cancelled("the stream ended"))
    }

    /// The next response, however long it takes; none: the server ended the stream in good order.
    pub(crate) async fn read(&mut self) -> Result<Option<v1::DiscoveryResponse>, Status> {
        self.responses.message().await
    }

    /// The next response, accepted.
    pub(crate) async fn accept(&mut self) -> v1::DiscoveryResponse {
        let response = self.next().await.unwrap();
        self.send(v1::DiscoveryRequest { nonce: response.nonce, ..Default::default() }).await;
        response
    }
}

pub(crate) fn name(kind: v1::ResourceType, name: &str) -> v1::ResourceName {
    v1::ResourceName { r#type: kind.into(), name: name.to_owned() }
}

/// What a response leaves a sidecar holding.
pub(crate) fn held(response: &v1::DiscoveryResponse) -> Vec<v1::HeldResource> {
    let changed = response.changed.iter().map(|resource| (resource.name.clone(), resource.version.clone()));
    let absent = response.absent.iter().map(|name| (Some(name.clone()), String::new()));
    changed.chain(absent).map(|(name, version)| v1::HeldResource { name, version }).collect()
}

//! A stranger at the mesh's doors: it asks for certificates as a sidecar does, or makes its own, and says on a
//! mesh connection whatever the test wants said.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
};

use anyhow::Context;
use heddle_api::{
    carrier::ALPN,
    v1::{JoinRequest, discovery_client::DiscoveryClient, identity_client::IdentityClient},
};
use http::Uri;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

/// A certificate and its key.
#[derive(Debug)]
pub struct Credentials {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    key: Vec<u8>,
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone() }
    }
}

impl Credentials {
    /// Asks the control plane for a certificate, as the sidecar of `pod` would.
    ///
    /// # Errors
    /// The control plane's refusal, in its words.
    pub async fn join(control_plane: SocketAddr, token: &str, pod: &str) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let csr = CertificateParams::new(Vec::new())?.serialize_request(&key)?;
        let mut client = IdentityClient::new(control_plane_channel(control_plane, None).await?);
        let request = JoinRequest {
            token: token.trim().to_owned(),
            pod: pod.to_owned(),
            csr: csr.der().to_vec().into(),
        };
        let certificate = client
            .join(request)
            .await
            .map_err(|refusal| anyhow::anyhow!("{}: {}", refusal.code(), refusal.message()))?
            .into_inner();
        let chain = certificate.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        Ok(Self { chain, key: key.serialize_der() })
    }

    /// A certificate for `spiffe` of an authority that this function makes up.
    ///
    /// # Errors
    /// When `spiffe` is not a URI.
    pub fn of_another_authority(spiffe: &str) -> anyhow::Result<Self> {
        let root_key = KeyPair::generate()?;
        let mut root = CertificateParams::new(Vec::new())?;
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = Issuer::from_params(&root, &root_key);
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::new(Vec::new())?;
        leaf.subject_alt_names = vec![SanType::URI(spiffe.try_into()?)];
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = leaf.signed_by(&key, &issuer)?;
        Ok(Self { chain: vec![certificate.der().clone()], key: key.serialize_der() })
    }

    /// A leaf for `spiffe` signed with this certificate's key, as if it were an authority.
    ///
    /// # Errors
    /// When `spiffe` is not a URI.
    pub fn issue(&self, spiffe: &str) -> anyhow::Result<Self> {
        let own_key = KeyPair::try_from(self.key.as_slice())?;
        let own = self.chain.first().context("a certificate")?;
        let issuer = Issuer::from_ca_cert_der(own, &own_key)?;
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::new(Vec::new())?;
        leaf.subject_alt_names = vec![SanType::URI(spiffe.try_into()?)];
        let certificate = leaf.signed_by(&key, &issuer)?;
        let chain = [vec![certificate.der().clone()], self.chain.clone()].concat();
        Ok(Self { chain, key: key.serialize_der() })
    }
}

/// A client of the discovery stream, with this certificate.
///
/// # Errors
/// When the control plane does not answer.
pub async fn discovery(
    control_plane: SocketAddr,
    credentials: Option<&Credentials>,
) -> anyhow::Result<DiscoveryClient<Channel>> {
    Ok(DiscoveryClient::new(control_plane_channel(control_plane, credentials).await?))
}

/// A TLS connection to a sidecar's mesh port with this server name and certificate. The sidecar's own certificate
/// is not judged. With TLS 1.3 a refusal of ours shows only on the first read.
///
/// # Errors
/// When the connection or the handshake fails.
pub async fn dial(
    mesh: SocketAddr,
    server_name: &str,
    credentials: Option<&Credentials>,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(mesh).await.with_context(|| format!("connecting to {mesh}"))?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(server_name.to_owned())?;
    let connector = TlsConnector::from(Arc::new(config(credentials, ALPN)?));
    connector.connect(name, stream).await.context("the TLS handshake")
}

/// The other side of [`dial`]: a sidecar that takes whoever calls, certificate or none.
///
/// # Errors
/// When the handshake fails.
pub async fn accept(
    stream: TcpStream,
    credentials: &Credentials,
) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(credentials.key.clone()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(credentials.chain.clone(), key)
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    TlsAcceptor::from(Arc::new(config)).accept(stream).await
}

/// A connection to the control plane, for whoever speaks HTTP/2 with it himself.
///
/// # Errors
/// When the connection or the handshake fails.
pub async fn dial_control_plane(
    control_plane: SocketAddr,
    credentials: Option<&Credentials>,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(control_plane).await?;
    stream.set_nodelay(true)?;
    let connector = TlsConnector::from(Arc::new(config(credentials, b"h2")?));
    Ok(connector.connect(ServerName::from(control_plane.ip()), stream).await?)
}

/// A gRPC channel to the control plane, with this certificate or none.
///
/// # Errors
/// When the control plane does not answer.
pub async fn control_plane_channel(
    control_plane: SocketAddr,
    credentials: Option<&Credentials>,
) -> anyhow::Result<Channel> {
    let config = Arc::new(config(credentials, b"h2")?);
    let connector = Dial { config, address: control_plane };
    Ok(Endpoint::from_shared(format!("http://{control_plane}"))?.connect_with_connector(connector).await?)
}

fn config(credentials: Option<&Credentials>, alpn: &[u8]) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)));
    let mut config = match credentials {
        Some(Credentials { chain, key }) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.clone()));
            builder.with_client_auth_cert(chain.clone(), key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Whoever answers is believed: these are tests of the other side's judgement.
#[derive(Debug)]
pub(crate) struct Anyone(pub(crate) Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// tonic's way to a connection of our own making.
#[derive(Clone, Debug)]
struct Dial {
    config: Arc<ClientConfig>,
    address: SocketAddr,
}

impl tower_service::Service<Uri> for Dial {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { config, address } = self.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::from(address.ip());
            Ok(TokioIo::new(TlsConnector::from(config).connect(name, stream).await?))
        })
    }
}

//! The TLS configurations: TLS 1.3 only, hybrid post-quantum key exchange preferred, ALPN `heddle/1`, no resumption.
//!
//! The verifiers here prove one thing: that the peer holds the key of the certificate it shows. Whose certificate it
//! is, [`super::verify::peer`] decides after the handshake. A resumed session would skip the first and could outlive
//! the second, so neither side keeps sessions or hands out tickets.

use std::sync::{Arc, LazyLock};

use heddle_api::carrier::ALPN;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// The cryptography, made once. With rustls' `prefer-post-quantum`, X25519MLKEM768 is its first key exchange.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// The cryptography that every configuration uses.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    &PROVIDER
}

/// Towards other sidecars. The certificate is shown when asked for, and every sidecar asks.
pub(super) fn client(key: &Arc<CertifiedKey>) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(HoldsItsKey))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// From other sidecars: without a certificate there is no connection.
pub(super) fn server(key: &Arc<CertifiedKey>) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(HoldsItsKey))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Towards the control plane: an ordinary server certificate, checked during the handshake against `roots`.
/// `key` is shown if given; without one only `Join` is possible.
pub(super) fn control_plane(
    roots: rustls::RootCertStore,
    key: Option<&Arc<CertifiedKey>>,
) -> Result<ClientConfig, ControlPlaneTlsError> {
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider().clone()).build()?;
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])?
        .with_webpki_verifier(verifier);
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Why there is no TLS towards the control plane.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneTlsError {
    /// The roots are unusable.
    #[error(transparent)]
    Roots(#[from] rustls::client::VerifierBuilderError),
    /// The rest is.
    #[error(transparent)]
    Tls(#[from] Error),
}

/// Lets through whoever proves to hold the key of the certificate shown, whatever certificate that is.
#[derive(Debug)]
struct HoldsItsKey;

impl HoldsItsKey {
    fn signature(
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    /// TLS 1.2 is not offered, so its signatures never come to be judged.
    fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }
}

impl ServerCertVerifier for HoldsItsKey {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for HoldsItsKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::{HandshakeKind, NamedGroup, ProtocolVersion};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

    use super::*;
    use crate::identity::{Credentials, testing::Authority};

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
    const REVIEWS: &str = "spiffe://cluster.local/ns/shop/sa/reviews";

    type Ends =
        (std::io::Result<client::TlsStream<DuplexStream>>, std::io::Result<server::TlsStream<DuplexStream>>);

    /// Shakes hands and lets each side hear a byte of the other: with TLS 1.3 the client is done before the server has
    /// judged it.
    async fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Ends {
        let (a, b) = duplex(64 * 1024);
        let name = ServerName::try_from("http1.9080.heddle").unwrap();
        let connect = async {
            let mut stream = TlsConnector::from(client).connect(name, a).await?;
            stream.write_all(b"x").await?;
            stream.read_u8().await?;
            Ok(stream)
        };
        let accept = async {
            let mut stream = TlsAcceptor::from(server).accept(b).await?;
            stream.write_all(b"x").await?;
            stream.read_u8().await?;
            Ok(stream)
        };
        tokio::join!(connect, accept)
    }

    fn pair() -> (Credentials, Credentials) {
        let authority = Authority::new("cluster.local");
        (authority.credentials(WEB), authority.credentials(REVIEWS))
    }

    #[tokio::test]
    async fn both_sides_speak_tls_1_3_post_quantum_and_show_their_certificates() {
        let (web, reviews) = pair();
        let (client, server) = handshake(web.client.clone(), reviews.server.clone()).await;
        let (client, server) = (client.unwrap(), server.unwrap());
        let (client, server) = (client.get_ref().1, server.get_ref().1);
        assert_eq!(server.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(server.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
        assert_eq!((client.alpn_protocol(), server.alpn_protocol()), (Some(ALPN), Some(ALPN)));
        assert_eq!(server.server_name(), Some("http1.9080.heddle"));
        let now = std::time::SystemTime::now();
        let seen = |certs| super::super::verify::peer(certs, &web.trust, now).unwrap().to_string();
        assert_eq!(
            (seen(client.peer_certificates()), seen(server.peer_certificates())),
            (REVIEWS.to_owned(), WEB.to_owned())
        );
    }

    #[tokio::test]
    async fn a_second_connection_is_not_resumed() {
        let (web, reviews) = pair();
        for _ in 0..3 {
            let (client, _) = handshake(web.client.clone(), reviews.server.clone()).await;
            let client = client.unwrap();
            assert_ne!(client.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
            assert_eq!(client.get_ref().1.tls13_tickets_received(), 0);
        }
    }

    #[tokio::test]
    async fn a_client_without_certificate_is_turned_away() {
        let (_, reviews) = pair();
        let mut config = ClientConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(HoldsItsKey))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let (client, server) = handshake(Arc::new(config), reviews.server.clone()).await;
        assert!(client.is_err());
        let error = server.unwrap_err().to_string();
        assert!(error.contains("peer sent no certificates"), "{error}");
    }

    #[tokio::test]
    async fn a_certificate_without_its_key_opens_nothing() {
        let (web, reviews) = pair();
        let stolen = Arc::new(CertifiedKey::new(reviews.key.cert.clone(), web.key.key.clone()));
        let (_, judged) = handshake(super::client(&stolen).unwrap(), reviews.server.clone()).await;
        assert!(judged.unwrap_err().to_string().contains("BadSignature"));
        let (judged, _) = handshake(web.client.clone(), super::server(&stolen).unwrap()).await;
        assert!(judged.unwrap_err().to_string().contains("BadSignature"));
    }

    #[tokio::test]
    async fn what_does_not_speak_the_carrier_gets_no_connection() {
        let (web, reviews) = pair();
        let mut config = ClientConfig::clone(&web.client);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (client, server) = handshake(Arc::new(config), reviews.server.clone()).await;
        assert!(client.is_err() && server.is_err());
    }
}

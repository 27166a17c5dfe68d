//! A connection to the control plane: our own rustls connector under tonic, made anew for each use.
//!
//! tonic's own TLS is fixed when the channel is made and could not follow a rotation. Here the CA file is read, and
//! the newest certificate taken, at every connect. The server must be the control plane by name
//! ([`CONTROL_PLANE_DNS_NAME`]), whatever host was dialled; no workload's certificate carries that name.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use heddle_api::identity::{CONTROL_PLANE_DNS_NAME, PodName};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use super::{
    Credentials, Identity,
    tls::{self, ControlPlaneTlsError},
};

/// To connect, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// To connect to one of several replicas.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(1);
/// A ping when nothing came for this long, and the same again for its answer: a control plane that is gone without
/// closing is noticed within ten seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Where the control plane is and how to be let in.
#[derive(Clone, Debug)]
pub struct ControlPlaneConfig {
    /// `https://HOST:15010`.
    pub url: Uri,
    /// PEM; read anew at every connect.
    pub ca: PathBuf,
    /// The service-account token or join token; read anew at every Join.
    pub token: PathBuf,
    /// Which pod this is.
    pub pod: PodName,
}

/// Why there is no connection to the control plane.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The CA file cannot be read.
    #[error("cannot read the control plane's CA file {}: {source}", .path.display())]
    CaFile {
        /// `--control-plane-ca`.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It holds nothing of use.
    #[error("the control plane's CA file {} holds no usable certificate: {problem}", .path.display())]
    Ca {
        /// `--control-plane-ca`.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The URL is no URL of a control plane.
    #[error("{0} is not https://HOST:PORT")]
    Url(Uri),
    /// TLS cannot be set up.
    #[error("cannot set up TLS to the control plane: {0}")]
    Tls(#[from] ControlPlaneTlsError),
    /// It does not answer, or is somebody else.
    #[error("cannot connect to the control plane at {url}: {problem}")]
    Connect {
        /// `--control-plane`.
        url: Uri,
        /// The whole chain of causes.
        problem: String,
    },
}

/// Connects; with `credentials` as the workload, without as nobody (enough for `Join`).
///
/// # Errors
/// [`ConnectError`] says what is missing.
pub(crate) async fn connect(
    config: &ControlPlaneConfig,
    identity: &Identity,
    credentials: Option<&Credentials>,
) -> Result<Channel, ConnectError> {
    let bad_url = || ConnectError::Url(config.url.clone());
    let authority = config.url.authority().filter(|_| config.url.scheme_str() == Some("https"));
    let port = config.url.port_u16().unwrap_or(heddle_api::ports::DISCOVERY);
    let host = authority.ok_or_else(bad_url)?.host().trim_matches(['[', ']']).to_owned();

    let roots = roots(config, identity).await?;
    let tls = tls::control_plane(roots, credentials.map(|c| &c.key))?;
    let connector = Connector { tls: TlsConnector::from(Arc::new(tls)), host: host.into(), port };
    // To tonic the connection is a plain one; the requests name the control plane as what it is.
    let origin = Uri::builder()
        .scheme("https")
        .authority(CONTROL_PLANE_DNS_NAME)
        .path_and_query("/")
        .build()
        .map_err(|_| bad_url())?;
    Endpoint::from_static("http://control-plane")
        .origin(origin)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|error| ConnectError::Connect { url: config.url.clone(), problem: causes(&error) })
}

/// The CA file's certificates and the trust bundle's: while the authority rotates, either may be the one.
async fn roots(
    config: &ControlPlaneConfig,
    identity: &Identity,
) -> Result<rustls::RootCertStore, ConnectError> {
    let pem = tokio::fs::read(&config.ca)
        .await
        .map_err(|source| ConnectError::CaFile { path: config.ca.clone(), source })?;
    let bad = |problem: String| ConnectError::Ca { path: config.ca.clone(), problem };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.map_err(|e| bad(e.to_string()))?).map_err(|e| bad(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad("no CERTIFICATE block in it".to_owned()));
    }
    if let Some(credentials) = identity.current() {
        // The bundle was checked when it came.
        roots.add_parsable_certificates(credentials.trust.roots().iter().cloned());
    }
    Ok(roots)
}

/// An error with all its causes, outermost first.
pub(crate) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// A gRPC status as people read it. Its own `Display` prints its insides.
pub(crate) fn words(status: &tonic::Status) -> String {
    let causes = status.source().map(|source| format!(": {}", causes(source))).unwrap_or_default();
    format!("{}{causes} ({:?})", status.message(), status.code())
}

/// The first that takes a connection. Where there are several, one that is gone without a word costs a second, and not all
/// the time that there is.
async fn first_of(replicas: &[SocketAddr]) -> io::Result<TcpStream> {
    let patience = if replicas.len() > 1 { REPLICA_TIMEOUT } else { CONNECT_TIMEOUT };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for &replica in replicas {
        match timeout(patience, TcpStream::connect(replica)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{replica} does not answer")),
        }
    }
    Err(last)
}

/// TCP and TLS to one host, as tonic wants it.
struct Connector {
    tls: TlsConnector,
    host: Arc<str>,
    port: u16,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (tls, host, port) = (self.tls.clone(), self.host.clone(), self.port);
        Box::pin(async move {
            let mut replicas: Vec<_> = tokio::net::lookup_host((&*host, port)).await?.collect();
            // So that sidecars spread over them.
            fastrand::shuffle(&mut replicas);
            let tcp = first_of(&replicas).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from(CONTROL_PLANE_DNS_NAME).map_err(io::Error::other)?;
            Ok(TokioIo::new(tls.connect(name, tcp).await?))
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_replica_that_is_gone_is_passed_over() {
        let here = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let tcp = first_of(&[gone, here.local_addr().unwrap()]).await.unwrap();
        assert_eq!(tcp.peer_addr().unwrap(), here.local_addr().unwrap());
        assert_eq!(first_of(&[gone]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert!(first_of(&[]).await.unwrap_err().to_string().contains("no address"));
    }
}

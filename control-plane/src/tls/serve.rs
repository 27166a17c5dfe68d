//! Accepts connections on port 15010, and serves Discovery and Identity on them over HTTP/2.
//!
//! Limits: handshakes at once and their time; connections at once, of all, of one pod, and of one address while they have
//! shown no client certificate; streams and header bytes of each. A connection without a client certificate, good for
//! `Join` alone, ends after a while; one that answers no ping ends too.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use heddle_api::{
    identity::PodName,
    v1::{discovery_server::DiscoveryServer, identity_server::IdentityServer},
};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::codegen::BoxFuture;
use tower_service::Service as _;

use super::{
    Caller,
    peer::peer,
    serving::ServingTls,
    share::{Share, Shares},
};
use crate::{
    discovery::DiscoveryService,
    identity::IdentityService,
    metrics::{Metrics, Refused},
};

/// From a connection's start to the end of its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at once. One costs about a millisecond of CPU and some ten kilobytes; more wait in the kernel's queue.
const HANDSHAKES: usize = 1024;
/// Connections at once: two for each of 10,000 sidecars.
const CONNECTIONS: usize = 20_000;
/// Of these, those that ended their handshake without a client certificate: a Join takes milliseconds, and whoever has a
/// certificate is to find a place.
const ANONYMOUS: usize = 4096;
/// Connections of one address at once that have shown no client certificate, the handshake included. The sidecars of a
/// node may share its address, and are 250 at most; a quarter of [`HANDSHAKES`].
const UNIDENTIFIED_PER_ADDRESS: usize = 256;
/// Connections of one pod at once. A sidecar has a stream and now and then a renewal; broken connections linger until
/// their ping goes unanswered.
const PER_POD: usize = 16;
/// A connection without a client certificate ends after this long.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(30);
/// Pings, and how long their answer may take: a dead connection is gone within 20 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// After GOAWAY, until the connection is cut.
const GOODBYE: Duration = Duration::from_secs(2);
/// Requests at once on a connection; a sidecar has a stream and a renewal.
const REQUESTS: u32 = 16;
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// The longest request message: a `hello` that names all that a sidecar may hold.
pub const MAX_REQUEST_BYTES: usize = 8 << 20;
/// When descriptors run out, accepting slows down and nothing else happens.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a connection needs.
pub struct Server {
    tls: Arc<ServingTls>,
    trust_domain: String,
    discovery: DiscoveryServer<DiscoveryService>,
    identity: IdentityServer<IdentityService>,
    metrics: Arc<Metrics>,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
    of_pods: Shares<PodName>,
    of_addresses: Shares<IpAddr>,
    stop: CancellationToken,
}

impl Server {
    /// Puts it together.
    #[must_use]
    pub fn new(
        tls: Arc<ServingTls>,
        trust_domain: String,
        discovery: DiscoveryService,
        identity: IdentityService,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            tls,
            trust_domain,
            discovery: DiscoveryServer::new(discovery).max_decoding_message_size(MAX_REQUEST_BYTES),
            identity: IdentityServer::new(identity).max_decoding_message_size(64 * 1024),
            metrics,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            anonymous: Arc::new(Semaphore::new(ANONYMOUS)),
            of_pods: Shares::new(PER_POD),
            of_addresses: Shares::new(UNIDENTIFIED_PER_ADDRESS),
            stop,
        })
    }

    /// Accepts until told to stop, then waits for the connections to end.
    pub async fn run(self: Arc<Self>, listener: TcpListener) {
        let tasks = TaskTracker::new();
        loop {
            // Taken before accepting, so that what does not fit waits in the kernel's queue.
            let permits = async {
                let connection = Arc::clone(&self.connections).acquire_owned().await;
                let handshake = Arc::clone(&self.handshakes).acquire_owned().await;
                (connection, handshake, listener.accept().await)
            };
            let (connection, handshake, accepted) = tokio::select! {
                () = self.stop.cancelled() => break,
                all = permits => all,
            };
            match accepted {
                Ok((io, address)) => {
                    let stranger = match self.of_addresses.take(&address.ip().to_canonical()) {
                        Ok(stranger) => stranger,
                        Err(refusal) => {
                            self.metrics.refused(Refused::TooManyUnidentified);
                            // As often as its sender likes, so not louder.
                            tracing::debug!(%address, %refusal, "connection refused before its handshake");
                            continue;
                        }
                    };
                    let server = Arc::clone(&self);
                    tasks.spawn(async move {
                        server.serve(io, address, handshake, stranger).await;
                        drop(connection);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; trying again in {ACCEPT_PAUSE:?}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        tasks.close();
        // Each connection ends by itself after GOODBYE.
        tasks.wait().await;
    }

    async fn serve<P>(
        self: Arc<Self>,
        io: TcpStream,
        address: SocketAddr,
        handshake: P,
        stranger: Share<IpAddr>,
    ) {
        // Small messages that must not wait for each other's acknowledgement.
        let _set = io.set_nodelay(true);
        let acceptor = TlsAcceptor::from(self.tls.current());
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(io)) => shaken,
            () = self.stop.cancelled() => return,
        };
        let io = match shaken {
            Ok(Ok(io)) => io,
            // Somebody looked whether the port is open.
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                tracing::debug!(%address, %error, "no TLS handshake");
                return;
            }
            Ok(Err(error)) => {
                self.metrics.refused(reason(&error));
                tracing::warn!(%address, %error, "TLS handshake failed");
                return;
            }
            Err(_) => {
                self.metrics.refused(Refused::Handshake);
                tracing::debug!(%address, "no TLS handshake within {HANDSHAKE_TIMEOUT:?}");
                return;
            }
        };
        drop(handshake);
        let certificates = io.get_ref().1.peer_certificates();
        let peer = match certificates.map(|chain| peer(chain, &self.trust_domain)).transpose() {
            Ok(peer) => peer,
            Err(error) => {
                self.metrics.refused(Refused::ClientCertificate);
                tracing::warn!(%address, %error, "client certificate refused");
                return;
            }
        };
        // Held as long as the connection; whoever is known takes none of its address's places.
        let _places = match &peer {
            Some(peer) => match self.of_pods.take(&peer.pod) {
                Ok(share) => {
                    drop(stranger);
                    (None, Some(share))
                }
                Err(refusal) => {
                    self.metrics.refused(Refused::TooManyConnections);
                    tracing::warn!(%address, %refusal, "connection refused");
                    return;
                }
            },
            None => match self.anonymous.try_acquire() {
                Ok(place) => (Some((stranger, place)), None),
                Err(_) => {
                    self.metrics.refused(Refused::TooManyUnidentified);
                    tracing::debug!(%address, "refused: {ANONYMOUS} connections have no client certificate");
                    return;
                }
            },
        };
        let caller = Caller { address, peer };
        let anonymous = caller.peer.is_none();
        let server = Arc::clone(&self);
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .max_concurrent_streams(REQUESTS)
            .max_header_list_size(MAX_HEADER_BYTES)
            .serve_connection(
                TokioIo::new(io),
                service_fn(move |request| server.dispatch(request, caller.clone())),
            );
        let mut connection = std::pin::pin!(connection);
        let life = async {
            if anonymous {
                tokio::time::sleep(ANONYMOUS_LIFE).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = &mut connection => return log_end(address, ended),
            () = life => {}
            () = self.stop.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        if let Ok(ended) = tokio::time::timeout(GOODBYE, connection).await {
            log_end(address, ended);
        }
    }

    fn dispatch(
        &self,
        mut request: http::Request<Incoming>,
        caller: Caller,
    ) -> BoxFuture<http::Response<tonic::body::Body>, Infallible> {
        request.extensions_mut().insert(caller);
        // An unknown method is answered by the service with UNIMPLEMENTED, an unknown service likewise.
        if request.uri().path().starts_with("/heddle.v1.Discovery/") {
            self.discovery.clone().call(request)
        } else {
            self.identity.clone().call(request)
        }
    }
}

/// Whether a handshake failed because of the client's certificate.
fn reason(error: &std::io::Error) -> Refused {
    match error.get_ref().and_then(|source| source.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(_)) => Refused::ClientCertificate,
        _ => Refused::Handshake,
    }
}

fn log_end(address: SocketAddr, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "connection ended");
    }
}

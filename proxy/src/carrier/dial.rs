//! Making one connection: TCP, TLS, who is there, HTTP/2.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::Poll,
    time::SystemTime,
};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use heddle_api::carrier::ALPN;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    corked::Corked,
    peer::{Peer, SendError},
    settings,
};
use crate::{
    batch::{Batched, InTurns, Turns},
    identity::{Credentials, verify},
    meter::{Metered, Side},
    metrics::{Direction, PeerRefusal, WorkerMetrics},
    reason::Reason,
};

/// What a connection runs over.
pub(super) type Io = Metered<Batched<Tls>>;
/// What is below HTTP/2, and what ends its turns.
pub(super) type Tls = TlsStream<Corked<TcpStream>>;

/// Dials a peer. It is done when the peer's SETTINGS are there: in TLS 1.3 the caller is through with the handshake before
/// the answering side has judged its certificate, and a request must not be what finds out. Bounded by the caller.
pub(super) async fn dial(
    peer: &Peer,
    port: u16,
    credentials: &Credentials,
    metrics: &WorkerMetrics,
) -> Result<(SendRequest<Bytes>, InTurns<Connection<Io, Bytes>, Tls>), SendError> {
    let failed = |what: &dyn std::fmt::Display| SendError::unsent(Reason::ConnectFailed, peer, what);
    let tcp = connect(peer.address.ip(), port).await.map_err(|e| failed(&e))?;
    let name = rustls_pki_types::ServerName::try_from(peer.name.to_string())
        .expect("<form>.<port>.heddle is a valid DNS name");
    let mut tls = TlsConnector::from(credentials.client.clone())
        .connect(name, Corked::new(tcp))
        .await
        .map_err(|error| {
            let reason = reason_of_tls(&error);
            if reason == Reason::PeerIdentity {
                metrics.peer_refused(Direction::Outbound, PeerRefusal::Unusable);
            }
            SendError::unsent(reason, peer, error)
        })?;
    let session = tls.get_mut().1;
    session.set_buffer_limit(Some(settings::tls_buffer(peer.name.form)));
    if session.alpn_protocol() != Some(ALPN) {
        return Err(failed(&"the peer does not speak heddle/1"));
    }
    let found = verify::peer(session.peer_certificates(), &credentials.trust, SystemTime::now()).map_err(
        |error| {
            metrics.peer_refused(Direction::Outbound, (&error).into());
            SendError::unsent(Reason::PeerIdentity, peer, error)
        },
    )?;
    if found != peer.identity {
        metrics.peer_refused(Direction::Outbound, PeerRefusal::WrongIdentity);
        let what = format!("the peer is {found}, not {}", peer.identity);
        return Err(SendError::unsent(Reason::PeerIdentity, peer, what));
    }
    let habits = settings::habits(peer.name.form, tls.get_ref().0.cork());
    let (io, turns): (_, Turns<Tls>) = Batched::new(tls, habits);
    let (sender, connection) = settings::client(peer.name.form)
        .handshake(Metered::new(io, Side::Client))
        .await
        .map_err(|e| failed(&e))?;
    let mut connection = InTurns::new(connection, turns);
    poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
        Poll::Ready(Ok(())) => Poll::Ready(Err(failed(&"the peer closed before its SETTINGS"))),
        Poll::Ready(Err(error)) => Poll::Ready(Err(failed(&error))),
        // 0 until the peer's SETTINGS say something else.
        Poll::Pending if sender.current_max_send_streams() > 0 => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    })
    .await?;
    Ok((sender, connection))
}

async fn connect(ip: IpAddr, port: u16) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(SocketAddr::new(ip, port)).await?;
    // Frames are merged above; waiting for acknowledgements would only delay them.
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// A certificate that the TLS library itself refused is as wrong as one that our own check refuses.
fn reason_of_tls(error: &io::Error) -> Reason {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Reason::PeerIdentity
        }
        _ => Reason::ConnectFailed,
    }
}

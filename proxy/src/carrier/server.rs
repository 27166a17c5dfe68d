//! The answering side of one accepted connection: who calls and for what, then its requests, each in a task of its own.

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use h2::{
    Reason as Code, RecvStream,
    server::{Connection, SendResponse},
};
use heddle_api::{
    carrier::{ALPN, BadServerName, Form, ServerName},
    identity::SpiffeId,
};
use http::Request;
use pin_project_lite::pin_project;
use tokio::{net::TcpStream, task::spawn_local, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    corked::Corked,
    keeper::{AbortOnDrop, Signal, keep_server},
    settings::{HANDLERS, HANDSHAKE, habits, tls_buffer},
};
use crate::{
    batch::{Batched, InTurns, Turns},
    identity::{
        Credentials,
        verify::{self, PeerError},
    },
    meter::{Metered, Side},
};

/// What is below HTTP/2.
type Tls = TlsStream<Corked<TcpStream>>;

/// Why an accepted connection was closed before its first request.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The caller took too long.
    #[error("no TLS and HTTP/2 handshake within {0:?}")]
    Timeout(Duration),
    /// The TLS handshake failed; where the TLS library itself judged the certificate, so did that.
    #[error("TLS handshake: {0}")]
    Tls(#[source] io::Error),
    /// The caller's certificate is none of this mesh's.
    #[error(transparent)]
    Identity(#[from] PeerError),
    /// No ALPN in common.
    #[error("the caller does not speak heddle/1")]
    Protocol,
    /// The caller said no server name.
    #[error("the caller named no port by its TLS server name")]
    NoServerName,
    /// The caller said another one.
    #[error(transparent)]
    ServerName(#[from] BadServerName),
    /// The HTTP/2 preface or SETTINGS are wrong.
    #[error("HTTP/2 handshake: {0}")]
    Http2(#[source] h2::Error),
}

/// An accepted connection whose caller is known.
pub struct Incoming {
    /// Who calls.
    pub peer: SpiffeId,
    /// Which port of the pod it is for, and what the application is to get.
    pub name: ServerName,
    connection: Connection<Metered<Batched<Tls>>, Bytes>,
    turns: Turns<Tls>,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("peer", &self.peer).field("name", &self.name).finish_non_exhaustive()
    }
}

/// Shakes hands with a caller: TLS, its identity, its server name, HTTP/2. Within ten seconds. Where the connection is for
/// requests, a caller that takes none of an answer for `patience` loses its stream or the connection; a tunnel's may rest.
///
/// # Errors
/// When any of them is refused; the connection is closed then.
pub async fn handshake(
    io: TcpStream,
    credentials: &Credentials,
    patience: Duration,
) -> Result<Incoming, AcceptError> {
    timeout(HANDSHAKE, shake_hands(io, credentials, patience))
        .await
        .unwrap_or(Err(AcceptError::Timeout(HANDSHAKE)))
}

async fn shake_hands(
    io: TcpStream,
    credentials: &Credentials,
    patience: Duration,
) -> Result<Incoming, AcceptError> {
    io.set_nodelay(true).map_err(AcceptError::Tls)?;
    let mut tls = TlsAcceptor::from(credentials.server.clone())
        .accept(Corked::new(io))
        .await
        .map_err(AcceptError::Tls)?;
    let session = tls.get_mut().1;
    let peer = verify::peer(session.peer_certificates(), &credentials.trust, SystemTime::now())?;
    if session.alpn_protocol() != Some(ALPN) {
        return Err(AcceptError::Protocol);
    }
    let name: ServerName = session.server_name().ok_or(AcceptError::NoServerName)?.parse()?;
    session.set_buffer_limit(Some(tls_buffer(name.form)));
    let habits = habits(name.form, tls.get_ref().0.cork());
    let (io, turns) = Batched::new(tls, habits);
    let metered = match name.form {
        Form::Http1 | Form::Http2 => Metered::server(io, patience),
        Form::Tcp => Metered::new(io, Side::Server),
    };
    let handshake = super::settings::server(name.form).handshake(metered);
    let connection = InTurns::new(handshake, turns.clone()).await.map_err(AcceptError::Http2)?;
    Ok(Incoming { peer, name, connection, turns })
}

impl Incoming {
    /// Serves until the connection ends. What may come on a connection of its name is the handler's to judge, who counts
    /// what is refused. Each request runs in a task of its own, which must watch for the caller's cancel
    /// ([`unless_reset`](super::unless_reset), [`respond`](super::respond)). When `drain` is through, GOAWAY is sent (on a
    /// connection without a request yet: after the first) and what runs or still comes is served to its end. When `leave` is
    /// through, it is sent in any case. Dropping the future ends the connection at once.
    ///
    /// # Errors
    /// What ended the connection, when that was not an orderly close.
    pub async fn serve<H, F>(
        mut self,
        handler: H,
        drain: impl Future<Output = ()> + 'static,
        leave: impl Future<Output = ()> + 'static,
    ) -> Result<(), h2::Error>
    where
        H: Fn(Request<RecvStream>, SendResponse<Bytes>) -> F,
        F: Future<Output = ()> + 'static,
    {
        let signal = Rc::new(Signal::default());
        let ping = self.connection.ping_pong().expect("the first to ask for a connection's PINGs");
        let keeper = spawn_local(keep_server(Rc::clone(&signal), ping, drain, leave));
        let _keeper = AbortOnDrop(keeper.abort_handle());
        let (mut served, mut draining) = (false, false);
        loop {
            let accepted = poll_fn(|cx| {
                signal.register(cx);
                if signal.dead.get() {
                    return Poll::Ready(None);
                }
                // Callers learn of the drain a moment later: a connection made meanwhile gets its first request served,
                // which may be their sidecar's own.
                if !draining && (signal.idle.get() || signal.drain.get() && served) {
                    draining = true;
                    self.connection.graceful_shutdown();
                }
                let polled = self.connection.poll_accept(cx);
                // Where there is a request the next look follows at once, in the same turn.
                if !matches!(polled, Poll::Ready(Some(Ok(_)))) {
                    self.turns.end(cx);
                }
                polled
            })
            .await;
            let Some(accepted) = accepted else { return Ok(()) };
            let (request, mut respond) = match accepted {
                Ok(accepted) => accepted,
                // A caller that is through may be gone before our own GOAWAY reaches it.
                Err(error) if error.is_io() && signal.handlers.get() == 0 => return Ok(()),
                Err(error) => return Err(error),
            };
            signal.used.set(true);
            served = true;
            if signal.handlers.get() >= HANDLERS {
                respond.send_reset(Code::REFUSED_STREAM);
                continue;
            }
            // On the heap: tokio copies what a task holds three times on its way in and three times on its way out.
            spawn_local(Running::new(&signal, Box::pin(handler(request, respond))));
        }
    }
}

pin_project! {
    /// A handler that runs. No `async` block around it: that would hold the handler's future twice over.
    struct Running<F> {
        #[pin]
        handler: F,
        _counted: Counted,
    }
}

impl<F> Running<F> {
    fn new(signal: &Rc<Signal>, handler: F) -> Self {
        signal.handlers.set(signal.handlers.get() + 1);
        Self { handler, _counted: Counted(Rc::clone(signal)) }
    }
}

impl<F: Future<Output = ()>> Future for Running<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().handler.poll(cx)
    }
}

/// One of the handlers that are counted.
struct Counted(Rc<Signal>);

impl Drop for Counted {
    fn drop(&mut self) {
        let handlers: &Cell<usize> = &self.0.handlers;
        handlers.set(handlers.get() - 1);
    }
}

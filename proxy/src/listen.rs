//! The sidecar's sockets: bound early, so that a taken address is an error at start; accepted by one acceptor,
//! which hands each connection to the worker with the fewest.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

use crate::{
    cli::{Forward, Listeners},
    threads::{Handoff, OpenConnection},
};

/// Connections that the kernel may hold for us while we are busy.
const BACKLOG: i32 = 4096;
/// After an accept that failed for want of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Which of the sidecar's ports a connection came to.
#[derive(Clone, Debug)]
pub enum Port {
    /// From the pod's application.
    Outbound,
    /// From the pod's application, for one Service port.
    Forward(Arc<str>),
    /// Plaintext from outside.
    Inbound,
    /// mTLS from another sidecar.
    Mesh,
}

/// A socket that listens already.
#[derive(Debug)]
pub struct Bound {
    port: Port,
    socket: TcpListener,
}

/// A connection on its way to a worker.
#[derive(Debug)]
pub struct Accepted {
    /// Where it came in.
    pub port: Port,
    /// The connection, non-blocking, registered nowhere yet.
    pub io: std::net::TcpStream,
    /// Who made it.
    pub peer: SocketAddr,
    /// Counts it as open.
    pub open: OpenConnection,
}

/// Binds every traffic port.
///
/// # Errors
/// Names the flag and the address that cannot be used.
pub fn bind(listeners: &Listeners, forwards: &[Forward], defaults: bool) -> anyhow::Result<Vec<Bound>> {
    let mut bound = Vec::new();
    let groups = [
        (&listeners.outbound, Port::Outbound, "--outbound-listen"),
        (&listeners.inbound, Port::Inbound, "--inbound-listen"),
        (&listeners.mesh, Port::Mesh, "--mesh-listen"),
    ];
    for (addresses, port, flag) in groups {
        for &address in addresses {
            match bind_one(address) {
                Ok(socket) => bound.push(Bound { port: port.clone(), socket }),
                // The machine may have no IPv6; only an address that the user named must work.
                Err(error) if defaults && address.is_ipv6() => {
                    tracing::info!(%address, %error, "not listening on IPv6");
                }
                Err(error) => return Err(error).with_context(|| format!("{flag} {address}")),
            }
        }
    }
    for forward in forwards {
        let socket = bind_one(forward.listen)
            .with_context(|| format!("--forward {}={}", forward.listen, forward.name))?;
        bound.push(Bound { port: Port::Forward(forward.name.as_str().into()), socket });
    }
    Ok(bound)
}

/// A listening socket, for the traffic ports and the admin ones alike.
///
/// # Errors
/// As the system says.
pub fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts on one socket for ever.
///
/// Where the queue of the worker with the fewest connections is full, accepting waits: the kernel's backlog is the
/// bound.
pub async fn accept(bound: Bound, workers: Vec<Handoff>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(bound.socket)?;
    let mut exhausted = false;
    loop {
        let (io, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // ECONNABORTED and the like concern one connection; the rest is exhaustion, which passes.
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
                {
                    if !std::mem::replace(&mut exhausted, true) {
                        tracing::warn!(port = ?bound.port, %error, "accepting is slowed until this passes");
                    }
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
                continue;
            }
        };
        exhausted = false;
        // Without it small writes wait for acknowledgements; a failure means that the connection is gone.
        let Ok(io) = io.set_nodelay(true).and_then(|()| io.into_std()) else { continue };
        hand_over(&workers, bound.port.clone(), io, peer).await;
    }
}

async fn hand_over(workers: &[Handoff], port: Port, io: std::net::TcpStream, peer: SocketAddr) {
    let Some(fewest) = workers.iter().min_by_key(|w| w.open.count()) else { return };
    let accepted = Accepted { port, io, peer, open: fewest.open.opened() };
    match fewest.queue.try_send(accepted) {
        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
        Err(mpsc::error::TrySendError::Full(accepted)) => {
            // Closed only when the worker is gone, which ends the process.
            let _ = fewest.queue.send(accepted).await;
        }
    }
}

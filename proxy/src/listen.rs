//! The sidecar's sockets: bound early, so that a taken address is an error at start; accepted by one worker, which
//! hands each connection to the worker with the fewest.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

use crate::{
    cli::{Forward, Listeners},
    threads::{Handoff, Open, OpenConnection},
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
    /// Which of ours it is.
    pub port: Port,
    /// By [`bind_one`].
    pub socket: TcpListener,
}

/// A connection on its way to a worker; on its way to another thread's it is registered with no runtime.
#[derive(Debug)]
pub struct Accepted<T = tokio::net::TcpStream> {
    /// Where it came in.
    pub port: Port,
    /// The connection.
    pub io: T,
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

/// Where an accepted connection can go.
#[derive(Clone)]
pub struct Crew {
    /// Connections of the worker that accepts.
    pub own: Open,
    /// Serves one on that worker. Not generic, so that the code that a rehearsal runs is that of the sidecar's own ports.
    pub serve: Rc<dyn Fn(Accepted)>,
    /// All other workers.
    pub others: Vec<Handoff>,
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew").field("own", &self.own).field("others", &self.others).finish_non_exhaustive()
    }
}

/// Accepts on one socket for ever.
///
/// Where the queue of the worker with the fewest connections is full, accepting waits: the kernel's backlog is the
/// bound.
pub async fn accept(bound: Bound, crew: Crew) -> io::Result<()> {
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
        if io.set_nodelay(true).is_ok() {
            crew.hand_over(bound.port.clone(), io, peer).await;
        }
    }
}

impl Crew {
    /// To the worker with the fewest connections, of equals to the one that accepts.
    async fn hand_over(&self, port: Port, io: tokio::net::TcpStream, peer: SocketAddr) {
        let fewest = self.others.iter().min_by_key(|other| other.open.count());
        let Some(fewest) = fewest.filter(|other| other.open.count() < self.own.count()) else {
            return (self.serve)(Accepted { port, io, peer, open: self.own.opened() });
        };
        let Ok(io) = io.into_std() else { return };
        let accepted = Accepted { port, io, peer, open: fewest.open.opened() };
        match fewest.queue.try_send(accepted) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(accepted)) => {
                // Closed only when the worker is gone, which ends the process.
                let _ = fewest.queue.send(accepted).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn a_connection_goes_to_the_worker_with_the_fewest_and_of_equals_to_the_one_that_accepts() {
        let (queue, mut handed) = mpsc::channel(8);
        let served = Rc::new(RefCell::new(Vec::new()));
        let into = Rc::clone(&served);
        let crew = Crew {
            own: Open::default(),
            serve: Rc::new(move |accepted| into.borrow_mut().push(accepted)),
            others: vec![Handoff { open: Open::default(), queue }],
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connect = async || {
            let client = tokio::net::TcpStream::connect(address).await.unwrap();
            let (io, peer) = listener.accept().await.unwrap();
            crew.hand_over(Port::Mesh, io, peer).await;
            client
        };
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(connect().await);
        }
        let other = handed.try_recv().unwrap();
        assert_eq!((crew.own.count(), crew.others[0].open.count()), (2, 2));
        assert_eq!(served.borrow()[0].peer, clients[0].local_addr().unwrap());
        assert_eq!(other.peer, clients[1].local_addr().unwrap());
        served.borrow_mut().clear();
        clients.push(connect().await);
        clients.push(connect().await);
        assert_eq!((served.borrow().len(), crew.own.count()), (2, 2), "those that ended count no more");
    }
}

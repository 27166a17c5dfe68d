//! Opens TCP connections to applications.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time::timeout};

use crate::{
    carrier::{SendError, Sent, copy::Socket},
    reason::Reason,
};

/// A peer that vanished without a word while nothing was asked is noticed after this much silence and [`PROBES`] without an
/// answer. TCP's own probes, since gRPC servers take HTTP/2 pings for abuse.
const KEEPALIVE: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;
/// One that does not acknowledge a request is gone after this long; TCP by itself would go on for a quarter of an hour. The
/// kernel takes one that acknowledges but does not read for the same, so it is not short.
const UNACKNOWLEDGED: Duration = Duration::from_secs(120);

fn failed(reason: Reason, source: String) -> SendError {
    SendError { reason, sent: Sent::No, source }
}

/// Connects within `limit`.
///
/// # Errors
/// `ConnectTimeout` or `ConnectFailed`; nothing was sent.
pub async fn connect(address: SocketAddr, limit: Duration) -> Result<TcpStream, SendError> {
    match timeout(limit, open(address)).await {
        Ok(Ok(io)) => Ok(io),
        Ok(Err(error)) => Err(failed(Reason::ConnectFailed, format!("{address}: {error}"))),
        Err(_) => Err(failed(Reason::ConnectTimeout, format!("{address}: no connection within {limit:?}"))),
    }
}

/// The same for requests, whose server is to be given up when it has vanished. Bytes that nobody looks into may wait for a
/// reader as long as they like.
///
/// # Errors
/// As [`connect`].
pub async fn for_requests(address: SocketAddr, limit: Duration) -> Result<TcpStream, SendError> {
    let io = connect(address, limit).await?;
    give_up_the_vanished(&io, address);
    Ok(io)
}

/// Sets up a connection that somebody else has opened, as [`for_requests`] does.
///
/// # Errors
/// `ConnectFailed` when the runtime or the kernel refuses it.
pub fn adopt(io: std::net::TcpStream, address: SocketAddr) -> Result<TcpStream, SendError> {
    let adopted = TcpStream::from_std(io).and_then(prepared);
    let io = adopted.map_err(|error| failed(Reason::ConnectFailed, format!("{address}: {error}")))?;
    give_up_the_vanished(&io, address);
    Ok(io)
}

fn give_up_the_vanished(io: &TcpStream, address: SocketAddr) {
    // What is on the same machine cannot vanish, and may read as slowly as it likes.
    if io.local_addr().is_ok_and(|own| own.ip() != address.ip()) {
        io.limit_unread(Some(UNACKNOWLEDGED));
    }
}

async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    prepared(TcpStream::connect(address).await?)
}

fn prepared(io: TcpStream) -> io::Result<TcpStream> {
    io.set_nodelay(true)?;
    let probes = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(PROBE_EVERY).with_retries(PROBES);
    SockRef::from(&io).set_tcp_keepalive(&probes)?;
    Ok(io)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_peer_elsewhere_may_not_leave_what_it_is_sent_unacknowledged_for_ever() {
        for (peer, limit) in [("127.0.0.1", None), ("127.0.0.2", Some(UNACKNOWLEDGED))] {
            let listener = TcpListener::bind((peer, 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            let io = for_requests(address, Duration::from_secs(5)).await.unwrap();
            let socket = SockRef::from(&io);
            assert_eq!(socket.tcp_user_timeout().unwrap(), limit, "{peer}");
            assert_eq!(
                (socket.keepalive().unwrap(), socket.tcp_keepalive_retries().unwrap()),
                (true, PROBES)
            );
            let bytes = connect(address, Duration::from_secs(5)).await.unwrap();
            assert_eq!(SockRef::from(&bytes).tcp_user_timeout().unwrap(), None);
        }
    }
}

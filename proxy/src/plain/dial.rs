//! Opens TCP connections to applications.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time::timeout};

use crate::{
    carrier::{SendError, Sent},
    reason::Reason,
};

/// A peer that vanished without a word is noticed after this much silence. TCP's own probes, since gRPC servers
/// take HTTP/2 pings for abuse.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Connects within `limit`.
///
/// # Errors
/// `ConnectTimeout` or `ConnectFailed`; nothing was sent.
pub async fn connect(address: SocketAddr, limit: Duration) -> Result<TcpStream, SendError> {
    let failed = |reason, source| SendError { reason, sent: Sent::No, source };
    match timeout(limit, open(address)).await {
        Ok(Ok(io)) => Ok(io),
        Ok(Err(error)) => Err(failed(Reason::ConnectFailed, format!("{address}: {error}"))),
        Err(_) => Err(failed(Reason::ConnectTimeout, format!("{address}: no connection within {limit:?}"))),
    }
}

async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let io = TcpStream::connect(address).await?;
    io.set_nodelay(true)?;
    SockRef::from(&io)
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    Ok(io)
}

//! Bytes both ways between two sockets, neither of which is looked into: half-close, resets, an idle timeout.
//!
//! What passes between a socket and another sidecar goes through [`crate::carrier::copy`].

use std::{cell::Cell, io, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    time::{Instant, sleep_until},
};

use crate::carrier::copy::Socket;

/// Read at a time in each direction.
const BUFFER: usize = 16 * 1024;

/// What passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relayed {
    /// Bytes from the first socket to the second.
    pub forth: u64,
    /// Bytes from the second to the first.
    pub back: u64,
}

/// Relays until both sides have ended, one breaks off, or no byte has passed for `idle`; then both are reset.
/// `early` was already read from the first and goes ahead. `count` hears of the bytes as they pass: those from the first to
/// the second, and those back.
pub async fn relay<A: Socket, B: Socket>(
    first: A,
    second: B,
    early: Bytes,
    idle: Duration,
    count: impl Fn(u64, u64),
) -> Relayed {
    relay_until(first, second, early, idle, count, std::future::pending()).await
}

/// The same, but no longer than until `stop` is through; then both are reset.
pub async fn relay_until<A: Socket, B: Socket>(
    mut first: A,
    mut second: B,
    early: Bytes,
    idle: Duration,
    count: impl Fn(u64, u64),
    stop: impl Future<Output = ()>,
) -> Relayed {
    let (forth, back, last) = (Cell::new(0), Cell::new(0), Cell::new(Instant::now()));
    let passed = |sum: &Cell<u64>, bytes: usize| {
        sum.set(sum.get() + bytes as u64);
        last.set(Instant::now());
    };
    let went = |bytes: usize| {
        passed(&forth, bytes);
        count(bytes as u64, 0);
    };
    let came = |bytes: usize| {
        passed(&back, bytes);
        count(0, bytes as u64);
    };
    let outcome = {
        let (mut from_first, mut to_first) = split(&mut first);
        let (mut from_second, mut to_second) = split(&mut second);
        let there = async {
            to_second.write_all(&early).await?;
            went(early.len());
            pass(&mut from_first, &mut to_second, went).await
        };
        let both = async { tokio::try_join!(there, pass(&mut from_second, &mut to_first, came)) };
        tokio::select! {
            biased;
            // First, so that no byte passes that may not.
            () = stop => false,
            outcome = both => outcome.is_ok(),
            () = rested(&last, idle) => false,
        }
    };
    if !outcome {
        first.abort();
        second.abort();
    }
    Relayed { forth: forth.get(), back: back.get() }
}

async fn pass<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    from: &mut R,
    to: &mut W,
    passed: impl Fn(usize),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            // The other direction may go on: FIN, not close.
            return to.shutdown().await;
        }
        to.write_all(&buffer[..n]).await?;
        passed(n);
    }
}

async fn rested(last: &Cell<Instant>, idle: Duration) {
    loop {
        let until = last.get() + idle;
        if until <= Instant::now() {
            return;
        }
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn one_side_may_end_while_the_other_goes_on() {
        let ((mut client, near), (far, mut server)) = (pair().await, pair().await);
        let counted = Cell::new((0, 0));
        let count = |there, back| counted.set((counted.get().0 + there, counted.get().1 + back));
        let relaying = relay(near, far, Bytes::from_static(b"early "), Duration::from_secs(60), count);
        let ends = async {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut question = String::new();
            server.read_to_string(&mut question).await.unwrap();
            server.write_all(b"answer").await.unwrap();
            drop(server);
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            (question, answer)
        };
        let (relayed, said) = tokio::join!(relaying, ends);
        assert_eq!(said, ("early question".to_owned(), "answer".to_owned()));
        assert_eq!(relayed, Relayed { forth: 14, back: 6 });
        assert_eq!(counted.get(), (14, 6));
    }

    #[tokio::test]
    async fn a_reset_is_passed_on_as_a_reset() {
        let ((client, near), (far, mut server)) = (pair().await, pair().await);
        let relaying = relay(near, far, Bytes::new(), Duration::from_secs(60), |_, _| {});
        let ends = async {
            client.abort();
            server.read(&mut [0; 8]).await.unwrap_err().kind()
        };
        let (_, kind) = tokio::join!(relaying, ends);
        assert_eq!(kind, io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_connection_at_rest_is_reset() {
        let ((mut client, near), (far, _server)) = (pair().await, pair().await);
        relay(near, far, Bytes::new(), Duration::from_millis(20), |_, _| {}).await;
        assert!(client.read(&mut [0; 8]).await.is_err());
    }
}

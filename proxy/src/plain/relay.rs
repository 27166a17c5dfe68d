//! Copies bytes both ways between two plaintext connections, with half-close and an idle timeout.

use std::{cell::Cell, io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    time::{Instant, sleep_until},
};

/// Of each direction, in bytes.
const BUFFER: usize = 32 * 1024;

/// What passed, and how it ended.
#[derive(Debug)]
pub struct Relayed {
    /// Bytes from the first to the second.
    pub forth: u64,
    /// Bytes from the second to the first.
    pub back: u64,
    /// An error: one side broke off or was idle for too long, and the other must see a reset and not an end.
    pub end: io::Result<()>,
}

/// Copies until both sides have ended, one breaks off, or neither sends for `idle`. The connections come back so
/// that the caller can reset them.
pub async fn relay<A, B>(first: A, second: B, idle: Duration) -> (A, B, Relayed)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (forth, back) = (Cell::new(0), Cell::new(0));
    let last = Cell::new(Instant::now());
    let (mut first_read, mut first_write) = tokio::io::split(first);
    let (mut second_read, mut second_write) = tokio::io::split(second);
    let both = async {
        tokio::try_join!(
            one_way(&mut first_read, &mut second_write, &forth, &last),
            one_way(&mut second_read, &mut first_write, &back, &last),
        )
    };
    let end = tokio::select! {
        ended = both => ended.map(|_| ()),
        () = idle_since(&last, idle) => Err(io::Error::new(io::ErrorKind::TimedOut, "idle for too long")),
    };
    let relayed = Relayed { forth: forth.get(), back: back.get(), end };
    (first_read.unsplit(first_write), second_read.unsplit(second_write), relayed)
}

async fn one_way<R, W>(
    from: &mut ReadHalf<R>,
    to: &mut WriteHalf<W>,
    bytes: &Cell<u64>,
    last: &Cell<Instant>,
) -> io::Result<()>
where
    R: AsyncRead,
    W: AsyncWrite,
{
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        last.set(Instant::now());
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        last.set(Instant::now());
        bytes.set(bytes.get() + read as u64);
    }
}

async fn idle_since(last: &Cell<Instant>, idle: Duration) {
    loop {
        let due = last.get() + idle;
        if due <= Instant::now() {
            return;
        }
        sleep_until(due).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn an_end_on_one_side_leaves_the_other_direction_open() {
        let (mut client, first) = duplex(64);
        let (second, mut server) = duplex(64);
        let relaying = tokio::spawn(relay(first, second, IDLE));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        let (_, _, relayed) = relaying.await.unwrap();
        assert_eq!((relayed.forth, relayed.back), (8, 6));
        assert!(relayed.end.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_a_byte_prolongs_it() {
        let (mut client, first) = duplex(64);
        let (second, mut server) = duplex(64);
        let began = Instant::now();
        let relaying = tokio::spawn(relay(first, second, IDLE));
        tokio::time::sleep(IDLE / 2).await;
        client.write_all(b"x").await.unwrap();
        server.read_u8().await.unwrap();
        let (_, _, relayed) = relaying.await.unwrap();
        assert_eq!(relayed.end.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), 90);
    }
}

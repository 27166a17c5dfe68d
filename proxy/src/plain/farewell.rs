//! The end of an HTTP/1 connection whose client still sends the body of a request that was answered already.
//!
//! Closing a socket that has unread bytes, or to which more come, is a reset, and it may overtake the answer: the client
//! would never hear why. So the sending side is closed first, and what comes is read and thrown away for a while (RFC 9112,
//! 9.6).

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

/// Such a client may send for so long …
const IN_ALL: Duration = Duration::from_secs(30);
/// … and be silent for so long.
const SILENT: Duration = Duration::from_secs(5);
/// Thrown away at a time.
const BUFFER: usize = 16 * 1024;

/// Reads until the client ends or has had its time. The sending side is closed already.
pub(super) async fn hear_out<T: AsyncRead + Unpin>(mut io: T) {
    let mut buffer = vec![0; BUFFER];
    let heard = async { while let Ok(Ok(1..)) = timeout(SILENT, io.read(&mut buffer)).await {} };
    let _enough = timeout(IN_ALL, heard).await;
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, time::Instant};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_is_heard_out_but_not_for_ever() {
        for (pieces, every, limit) in
            [(3, SILENT / 2, SILENT * 2), (0, SILENT, SILENT), (1_000, SILENT / 2, IN_ALL)]
        {
            let (mut client, io) = tokio::io::duplex(64);
            let began = Instant::now();
            let sends = async move {
                for _ in 0..pieces {
                    tokio::time::sleep(every).await;
                    if client.write_all(b"more").await.is_err() {
                        break;
                    }
                }
                if pieces == 0 {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = hear_out(io) => {}
                () = async { sends.await; std::future::pending().await } => {}
            }
            assert!(began.elapsed() <= limit, "{pieces}: {:?}", began.elapsed());
        }
    }
}

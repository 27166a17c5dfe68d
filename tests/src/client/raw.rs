//! A client that writes exactly the bytes it is told, for what no HTTP library would send.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How long one read may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A TCP connection.
#[derive(Debug)]
pub struct Raw {
    /// The connection itself.
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    /// Connects.
    ///
    /// # Errors
    /// When nothing listens there.
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: Vec::new() })
    }

    /// Writes these bytes.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
        Ok(self.stream.write_all(bytes.as_ref()).await?)
    }

    /// Sends FIN; reading goes on.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn finish(&mut self) -> anyhow::Result<()> {
        Ok(self.stream.shutdown().await?)
    }

    /// Closes with RST.
    ///
    /// # Errors
    /// When the socket takes no options any more.
    pub fn reset(self) -> anyhow::Result<()> {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?;
        Ok(())
    }

    /// Reads until what came ends with `end`, and takes it.
    ///
    /// # Errors
    /// When the connection ends or nothing comes for 20 s; the error shows what had come.
    pub async fn read_until(&mut self, end: &str) -> anyhow::Result<String> {
        loop {
            if let Some(at) = find(&self.read, end.as_bytes()) {
                let taken: Vec<u8> = self.read.drain(..at + end.len()).collect();
                return Ok(String::from_utf8_lossy(&taken).into_owned());
            }
            if self.fill().await? == 0 {
                bail!("ended before {end:?}: {:?}", String::from_utf8_lossy(&self.read));
            }
        }
    }

    /// Reads `count` bytes.
    ///
    /// # Errors
    /// When the connection ends before or nothing comes for 20 s.
    pub async fn read_exact(&mut self, count: usize) -> anyhow::Result<Vec<u8>> {
        while self.read.len() < count {
            if self.fill().await? == 0 {
                bail!("ended after {} of {count} bytes", self.read.len());
            }
        }
        Ok(self.read.drain(..count).collect())
    }

    /// Reads to the far side's FIN.
    ///
    /// # Errors
    /// When the connection is reset or nothing comes for 20 s.
    pub async fn read_to_end(&mut self) -> anyhow::Result<String> {
        while self.fill().await? > 0 {}
        Ok(String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned())
    }

    /// Reads one HTTP/1 response: its head, and as much body as Content-Length says.
    ///
    /// # Errors
    /// When the connection ends before.
    pub async fn read_response(&mut self) -> anyhow::Result<(u16, String, String)> {
        let head = self.read_until("\r\n\r\n").await?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("a status")?;
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(Ok(0), |(_, value)| value.trim().parse())?;
        let body = self.read_exact(length).await?;
        Ok((status, head, String::from_utf8_lossy(&body).into_owned()))
    }

    async fn fill(&mut self) -> anyhow::Result<usize> {
        let read = timeout(LIMIT, self.stream.read_buf(&mut self.read)).await;
        Ok(read.with_context(|| {
            format!("nothing came for {LIMIT:?} after {:?}", String::from_utf8_lossy(&self.read))
        })??)
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

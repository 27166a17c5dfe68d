//! A raw TCP application: it does with each connection what the test says.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};

/// A running application. Dropping it closes every connection.
#[derive(Debug)]
pub struct TcpApp {
    connections: Arc<AtomicU64>,
    task: AbortHandle,
}

impl TcpApp {
    /// Listens at `address` and runs `script` for each connection.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn start<F>(
        address: SocketAddr,
        script: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> anyhow::Result<Self>
    where
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("an application at {address}"))?;
        let connections = Arc::new(AtomicU64::new(0));
        let count = connections.clone();
        let task = tokio::spawn(async move {
            let mut running = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                while running.try_join_next().is_some() {}
                let _ = stream.set_nodelay(true);
                count.fetch_add(1, Ordering::Relaxed);
                running.spawn(script(stream));
            }
        });
        Ok(Self { connections, task: task.abort_handle() })
    }

    /// Gives back what comes; on FIN it sends `bye` and then its own FIN, so half-close can be seen.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn echo(address: SocketAddr) -> anyhow::Result<Self> {
        Self::start(address, |mut stream| async move {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            write.write_all(b"bye").await?;
            write.shutdown().await
        })
        .await
    }

    /// Reads each request's head and answers with exactly these bytes, then closes.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn answering(address: SocketAddr, bytes: &'static [u8]) -> anyhow::Result<Self> {
        Self::start(address, move |mut stream| async move {
            let mut read = Vec::new();
            while !read.windows(4).any(|end| end == b"\r\n\r\n") {
                if stream.read_buf(&mut read).await? == 0 {
                    return Ok(());
                }
            }
            stream.write_all(bytes).await?;
            stream.shutdown().await
        })
        .await
    }

    /// Connections it has accepted.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for TcpApp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

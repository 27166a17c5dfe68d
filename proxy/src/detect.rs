//! What a connection speaks, from its first bytes, which are kept and replayed.
//!
//! Nothing is guessed where the port declares its protocol; the caller decides whether to ask.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::{Instant, timeout_at},
};

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// An HTTP/1 request line.
    Http1,
    /// The HTTP/2 preface (prior knowledge).
    Http2,
    /// A TLS handshake record.
    Tls,
    /// None of them.
    Opaque,
    /// No byte within the time: the client may be waiting for the server.
    Silent,
    /// No byte ever: the client has said that it sends none, and may still read.
    Ended,
}

/// The client's connection preface (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A request line longer than this is taken for HTTP by its beginning; hyper then judges its length.
const LINE_LIMIT: usize = 4096;
/// A method token longer than this is none (the longest registered one has 17 bytes).
const METHOD_LIMIT: usize = 24;
/// Once a byte has come, how long the rest of what decides may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads until the protocol is certain, for `silence` at most before the first byte. The connection comes back
/// with every byte still to be read.
///
/// # Errors
/// When reading fails.
pub async fn detect<T: AsyncRead + Unpin>(
    io: T,
    silence: Option<Duration>,
) -> io::Result<(Protocol, Rewind<T>)> {
    let mut detector = Detector::new(io);
    let protocol = detector.protocol(silence).await?;
    Ok((protocol, detector.replay()))
}

/// A connection while it is found out what it speaks.
#[derive(Debug)]
pub struct Detector<T> {
    io: T,
    seen: BytesMut,
}

impl<T: AsyncRead + Unpin> Detector<T> {
    /// Nothing is read yet.
    pub fn new(io: T) -> Self {
        Self { io, seen: BytesMut::with_capacity(512) }
    }

    /// As [`detect`]. May be dropped while it waits, and called again: no byte is lost.
    ///
    /// # Errors
    /// As [`detect`].
    pub async fn protocol(&mut self, silence: Option<Duration>) -> io::Result<Protocol> {
        let Self { io, seen } = self;
        let mut deadline = silence.map(|limit| Instant::now() + limit);
        // From the first byte on, not from each: who sends a byte a second would never be through.
        let mut begun = false;
        loop {
            if let Some(protocol) = judge(seen) {
                return Ok(protocol);
            }
            if !seen.is_empty() && !begun {
                begun = true;
                deadline = Some(Instant::now() + PATIENCE);
            }
            let read = match deadline {
                Some(at) => timeout_at(at, io.read_buf(seen)).await,
                None => Ok(io.read_buf(seen).await),
            };
            match read {
                Err(_) if seen.is_empty() => return Ok(Protocol::Silent),
                Err(_) => return Ok(Protocol::Opaque),
                Ok(Err(error)) => return Err(error),
                Ok(Ok(0)) if seen.is_empty() => return Ok(Protocol::Ended),
                Ok(Ok(0)) => return Ok(Protocol::Opaque),
                Ok(Ok(_)) => {}
            }
        }
    }

    /// The connection, from its first byte.
    #[must_use]
    pub fn replay(self) -> Rewind<T> {
        Rewind::new(self.seen.freeze(), self.io)
    }
}

/// What the bytes so far say; none: more are needed.
#[must_use]
pub fn judge(seen: &[u8]) -> Option<Protocol> {
    if seen.is_empty() {
        return None;
    }
    let known = seen.len().min(PREFACE.len());
    if seen[..known] == PREFACE[..known] {
        return (known == PREFACE.len()).then_some(Protocol::Http2);
    }
    // A TLS record: type handshake (22), legacy version 3.x (RFC 8446, 5.1).
    if seen[0] == 0x16 {
        return match seen.get(1) {
            None => None,
            Some(3) => Some(Protocol::Tls),
            Some(_) => Some(Protocol::Opaque),
        };
    }
    judge_request_line(seen)
}

/// Whether the bytes begin `method SP target SP HTTP/1.x CRLF`. The whole line must be seen, since other text
/// protocols have commands that begin like a method ("GET key" of Redis).
fn judge_request_line(seen: &[u8]) -> Option<Protocol> {
    // Empty lines before a request line are to be ignored (RFC 9112, 2.2).
    let start = seen.iter().take(4).position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(seen.len().min(4));
    let line = &seen[start..];
    let method = line.iter().position(|&b| !is_token(b)).unwrap_or(line.len());
    if method > METHOD_LIMIT || (method < line.len() && (method == 0 || line[method] != b' ')) {
        return Some(Protocol::Opaque);
    }
    match line.iter().position(|&b| b == b'\n') {
        Some(end) => {
            let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
            let is_http = line.len() > 9 && line[line.len() - 9..].starts_with(b" HTTP/1.");
            Some(if is_http { Protocol::Http1 } else { Protocol::Opaque })
        }
        // Control characters have no place in a request line; what has them is binary.
        None if line.iter().any(|&b| b < 0x20 && b != b'\r') => Some(Protocol::Opaque),
        None if line.len() > LINE_LIMIT => Some(Protocol::Http1),
        None => None,
    }
}

/// A token character (RFC 9110, 5.6.2).
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// A connection whose first bytes were read already and come again.
#[derive(Debug)]
pub struct Rewind<T> {
    seen: Bytes,
    io: T,
}

impl<T> Rewind<T> {
    /// `seen` is read first, then what `io` brings.
    pub const fn new(seen: Bytes, io: T) -> Self {
        Self { seen, io }
    }

    /// The connection.
    pub const fn get_ref(&self) -> &T {
        &self.io
    }

    /// The bytes that were seen and not read again yet, and the connection.
    pub fn into_parts(self) -> (Bytes, T) {
        (self.seen, self.io)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Rewind<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.seen.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let n = self.seen.len().min(buf.remaining());
        buf.put_slice(&self.seen[..n]);
        self.seen.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Rewind<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn the_first_bytes_name_the_protocol() {
        let cases: [(&[u8], Option<Protocol>); 17] = [
            (b"GET / HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"\r\nGET / HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"OPTIONS * HTTP/1.0\n", Some(Protocol::Http1)),
            (b"CONNECT a:1 HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"M-SEARCH * HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"GET /half", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Protocol::Http2)),
            (b"PRI * HTTP/2", None),
            (b"PUT", None),
            (b"\x16\x03\x01", Some(Protocol::Tls)),
            (b"\x16", None),
            (b"\x16\x05", Some(Protocol::Opaque)),
            (b"GET key\r\n", Some(Protocol::Opaque)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Protocol::Opaque)),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Some(Protocol::Opaque)),
            (b"USER root\r\n", Some(Protocol::Opaque)),
            (b"GET \x01", Some(Protocol::Opaque)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(judge(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_long_request_line_is_http_before_its_end() {
        let line = format!("GET /{}", "a".repeat(LINE_LIMIT));
        assert_eq!(judge(line.as_bytes()), Some(Protocol::Http1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_said_to_be_silent() {
        let (_client, server) = tokio::io::duplex(64);
        let (protocol, _io) = detect(server, Some(Duration::from_millis(100))).await.unwrap();
        assert_eq!(protocol, Protocol::Silent);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_trickle_in_are_waited_for_and_replayed() {
        let (mut client, server) = tokio::io::duplex(64);
        tokio::spawn(async move {
            for piece in ["GET /", "x HTT", "P/1.1\r\nHost"] {
                client.write_all(piece.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let (protocol, mut io) = detect(server, Some(Duration::from_millis(100))).await.unwrap();
        assert_eq!(protocol, Protocol::Http1);
        let mut text = String::new();
        io.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "GET /x HTTP/1.1\r\nHost");
    }

    proptest! {
        #[test]
        fn a_verdict_never_changes_with_more_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64), cut in 0usize..64) {
            let first = judge(&bytes[..cut.min(bytes.len())]);
            if let Some(verdict) = first {
                prop_assert_eq!(judge(&bytes), Some(verdict));
            }
        }
    }
}

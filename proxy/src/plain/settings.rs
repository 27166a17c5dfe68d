//! How hyper is set up wherever Heddle speaks to applications: the one place, so that inbound and outbound agree.
//!
//! The libraries' own limits lie above the ones that [`super::edge`] checks, so that it is Heddle that answers
//! and counts, with the same figure on HTTP/1 and HTTP/2.

use std::{sync::Arc, time::Duration};

use hyper::{client, rt::Executor, server};
use hyper_util::rt::TokioIo;

use super::{
    edge::MAX_FIELDS,
    head::{self, Listened, Waiting},
};
use crate::meter::HEAD;

/// Streams on one HTTP/2 connection, whichever side opens them.
pub const MAX_STREAMS: u32 = 100;
/// Of request line and header fields together: the fields' 64 KiB, as much again for the target, and some space
/// to see that they are exceeded. Also what hyper reads ahead of a slow reader on HTTP/1.
const HTTP1_BUFFER: usize = 192 * 1024;
/// Fields that hyper parses: more than [`MAX_FIELDS`].
const HTTP1_FIELDS: usize = MAX_FIELDS + 64;
/// The same for HTTP/2, where each field counts 32 bytes more (RFC 9113, 6.5.2).
const HTTP2_HEADER_LIST: u32 = 192 * 1024;
/// What one stream may have in flight unread, in bytes: bounds the memory of a stalled reader.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Above what all streams together may hold, so that a stalled stream takes nothing from its neighbours.
const CONNECTION_WINDOW: u32 = 2 * MAX_STREAMS * STREAM_WINDOW;
/// Bytes of one stream that wait for the other side to take them.
const SEND_BUFFER: usize = 128 * 1024;
/// Streams that a client may cancel before they were looked at; all of them at once is no attack.
const PENDING_RESETS: usize = 2 * MAX_STREAMS as usize;
/// Streams that this side cancelled, and whose frames in flight are ignored for [`CANCELLED_REMEMBERED`].
const CANCELLED: usize = 1024;
const CANCELLED_REMEMBERED: Duration = Duration::from_secs(5);

/// Spawns onto the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Serves HTTP/1 on `io`. A request's head must end within [`HEAD`] of its first byte; between requests the connection
/// may be silent for ever.
#[must_use]
pub fn http1_server<T>(io: T) -> (server::conn::http1::Builder, TokioIo<Listened<T>>, Arc<Waiting>) {
    let (timer, io, waiting) = head::listen(io);
    let mut builder = server::conn::http1::Builder::new();
    builder.max_headers(HTTP1_FIELDS).max_buf_size(HTTP1_BUFFER).timer(timer).header_read_timeout(HEAD);
    (builder, TokioIo::new(io), waiting)
}

/// Serves HTTP/2, on a connection that is [metered](crate::meter::Metered).
#[must_use]
pub fn http2_server() -> server::conn::http2::Builder<LocalExecutor> {
    let mut builder = server::conn::http2::Builder::new(LocalExecutor);
    builder
        .max_header_list_size(HTTP2_HEADER_LIST)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        // Counted over the connection's whole life; the meter counts by rate.
        .max_local_error_reset_streams(None);
    builder
}

/// Calls an application that speaks HTTP/1.
#[must_use]
pub fn http1_client() -> client::conn::http1::Builder {
    let mut builder = client::conn::http1::Builder::new();
    builder.max_headers(HTTP1_FIELDS).max_buf_size(HTTP1_BUFFER);
    builder
}

/// Calls an application that speaks HTTP/2, on a connection that is [metered](crate::meter::Metered).
#[must_use]
pub fn http2_client<E: Clone>(executor: E) -> client::conn::http2::Builder<E> {
    let mut builder = client::conn::http2::Builder::new(executor);
    builder
        .max_header_list_size(HTTP2_HEADER_LIST)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(MAX_STREAMS as usize)
        .max_send_buf_size(SEND_BUFFER)
        .max_concurrent_reset_streams(CANCELLED)
        .reset_stream_duration(CANCELLED_REMEMBERED)
        .max_local_error_reset_streams(None);
    builder
}

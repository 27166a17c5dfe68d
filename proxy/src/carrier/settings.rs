//! The HTTP/2 settings of both ends, and the sum of the memory that they allow.
//!
//! **The sum.** What one connection can make a sidecar hold, at most:
//!
//! | what | http1, http2 | tcp |
//! |---|---|---|
//! | unread data: streams × stream window | 128 × 256 KiB = 32 MiB | 128 × 960 KiB = 120 MiB |
//! | unsent data: streams × send buffer | 128 × 128 KiB = 16 MiB | 128 × 480 KiB = 60 MiB |
//! | header lists: streams × list | 128 × 512 KiB = 64 MiB | 128 × 16 KiB = 2 MiB |
//! | bookkeeping of unread small frames (measured: 258 bytes each) | 16 MiB | 16 MiB |
//! | one frame being read, one batch kept, one encrypted | 0.2 MiB | 1 MiB |
//! | **a peer that does its worst** | **128 MiB** | **199 MiB** |
//!
//! To that comes what small unread frames keep alive, namely the read buffers that they came in. It takes a peer that sends
//! large data to be read between small data that is not: 8.4 KiB for each small frame (measured), of which the budget
//! allows 65,000, so 550 MiB at most, from an authenticated peer that means it. On `tcp` connections the copy loop takes
//! unread chunks out of `h2` and packs them, so there it is 16 frames (3.75 MiB) a stream.
//!
//! Honest traffic: the calling side opens 100 streams on a connection, so if every reader stalls at once a connection
//! holds 100 × (256 + 128) KiB = 37.5 MiB for HTTP and 141 MiB for opaque TCP, at both ends together, and the
//! [`CONNECTIONS_PER_PEER`] connections of a worker to one peer 16 times that; a stream that flows holds next to nothing.
//!
//! **Why these.** The connection window is twice what all the streams may hold, so that it is never what stops a stream:
//! one reader that stalls takes its own window from the connection and nothing of its neighbours'. `h2`'s budget for
//! small frames would end the whole connection (`too_many_data_frames`) because of one stalled reader; at 16 MiB a full
//! stream window of writes of four bytes fits, and what is written faster is merged. Frames for HTTP are of 16 KiB at most, since
//! larger ones make the read buffers larger that a small unread one keeps alive. Its count of resets that the peer provokes is of the
//! connection's whole life, so any limit would kill a connection that lives long: it is off, and the meter has one by rate.

use std::time::Duration;

use heddle_api::carrier::Form;

use crate::batch::{Cork, Habits};

/// Streams that the calling side keeps open on a connection; then another connection takes them.
pub const STREAMS: usize = 100;
/// Streams that the answering side allows: slack over [`STREAMS`], since a stream that ends is counted out at one side
/// before the other.
pub const STREAMS_ACCEPTED: u32 = 128;
/// Handlers of one connection that may run at once. More than its streams, since the handler of a cancelled stream lives
/// a moment longer; streams beyond are refused (REFUSED_STREAM).
pub const HANDLERS: usize = 1024;
/// Connections of one worker to one peer, per server name and identity.
pub const CONNECTIONS_PER_PEER: usize = 16;
/// Cancelled streams after which the calling side lets a connection rest, for [`REST`] since it began to count: 1000 a
/// second, half of what the [meter](crate::meter) at the other side allows, and far below [`CANCELLED_UNSEEN`] at once.
pub const CANCELS_BEFORE_REST: u32 = 250;
/// See [`CANCELS_BEFORE_REST`].
pub const REST: Duration = Duration::from_millis(250);
/// Requests of one worker that may wait for a connection to one peer.
pub const WAITING_PER_PEER: usize = 4096;
/// How long a request may wait for a free stream of a peer that has all its connections, after the connect timeout.
pub const STREAM_WAIT: Duration = Duration::from_secs(10);

/// A connection that this sidecar opened takes no new streams after this time, give or take [`AGE_JITTER`].
pub const AGE: Duration = Duration::from_secs(30 * 60);
/// Share of [`AGE`], in percent, by which it varies either way.
pub const AGE_JITTER: u64 = 20;
/// The calling side closes a connection that carried nothing for so long.
pub const CLIENT_IDLE: Duration = Duration::from_secs(90);
/// The answering side does, later: the side that would send the next request gives up first, so none crosses a close.
pub const SERVER_IDLE: Duration = Duration::from_secs(600);
/// A PING is sent this often, which bounds how long a dead peer goes unnoticed …
pub const PING_EVERY: Duration = Duration::from_secs(15);
/// … together with the time its answer may take.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The answering side's bound for TLS and HTTP/2 handshakes together.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// Above the sidecar's own limit of 64 KiB for names plus values, which must be the one that is hit: HTTP/2 counts 32
/// bytes more for each header (RFC 9113, 6.5.2), so this leaves room for 14,336 headers.
const HEADER_LIST: u32 = 512 * 1024;
/// A tunnel's CONNECT has next to no headers.
const HEADER_LIST_TCP: u32 = 16 * 1024;
/// See the module's documentation.
const SMALL_FRAME_BUDGET: usize = 16 * 1024 * 1024;
/// Streams that the peer cancelled before this side looked at them: as many as the [meter](crate::meter) lets through at
/// once, since a busy machine looks late and must not blame the peer for it.
const CANCELLED_UNSEEN: usize = 4096;
/// Streams that this side cancelled (a thousand a second, see [`REST`]), and whose frames in flight are ignored for
/// [`CANCELLED_REMEMBERED`]. A frame for a forgotten one is answered with a reset.
const CANCELLED: usize = 8192;
const CANCELLED_REMEMBERED: Duration = Duration::from_secs(5);

/// The plaintext of one TLS record (RFC 8446, 5.1).
pub const RECORD: usize = 16 * 1024;
/// The same encrypted: with its header, its type and its tag.
const ENCRYPTED: usize = RECORD + 5 + 1 + 16;
/// Of a frame (RFC 9113, 4.1).
const FRAME_HEADER: usize = 9;
/// Bodies go in frames that are with their header one TLS record. The 16 KiB that every peer takes would be two, the second
/// of nine bytes.
pub const BODY_FRAME: usize = RECORD - FRAME_HEADER;
/// A tunnel's are fifteen records: enough that a wake-up costs little, and 246,090 bytes on the wire, in four segments of
/// the loopback's 65,483. A sixteenth record would begin a fifth segment for its last 600 bytes.
pub const TUNNEL_FRAME: usize = TUNNEL_RECORDS * RECORD - FRAME_HEADER;
const TUNNEL_RECORDS: usize = 15;

/// What depends on the form of a connection's streams: requests want many small ones, tunnels few large ones.
struct Sizes {
    stream_window: u32,
    frame: u32,
    send_buffer: usize,
    header_list: u32,
}

const fn sizes(form: Form) -> Sizes {
    match form {
        Form::Http1 | Form::Http2 => Sizes {
            stream_window: 256 * 1024,
            frame: RECORD as u32,
            send_buffer: 8 * BODY_FRAME,
            header_list: HEADER_LIST,
        },
        Form::Tcp => Sizes {
            stream_window: 4 * TUNNEL_FRAME as u32,
            frame: TUNNEL_FRAME as u32,
            send_buffer: 2 * TUNNEL_FRAME,
            header_list: HEADER_LIST_TCP,
        },
    }
}

impl Sizes {
    const fn connection_window(&self) -> u32 {
        2 * STREAMS_ACCEPTED * self.stream_window
    }
}

/// Bytes that TLS may hold encrypted and unsent: a frame goes out in one write, of small ones several.
#[must_use]
pub const fn tls_buffer(form: Form) -> usize {
    match form {
        Form::Http1 | Form::Http2 => 5 * ENCRYPTED,
        Form::Tcp => 2 * TUNNEL_RECORDS * ENCRYPTED,
    }
}

/// For requests large writes wait for the end of the turn too. A tunnel's frames are large enough by themselves, and the
/// sooner one goes the sooner the other side can begin; and of what came no more is read at once than a frame.
#[must_use]
pub fn habits(form: Form, cork: Cork) -> Habits {
    match form {
        Form::Http1 | Form::Http2 => Habits { cork: Some(cork), ..Habits::default() },
        Form::Tcp => Habits { cork: None, read: TUNNEL_FRAME },
    }
}

/// The calling side.
#[must_use]
pub fn client(form: Form) -> h2::client::Builder {
    let sizes = sizes(form);
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        // Nothing may be sent before the peer's SETTINGS: they prove that it accepted our certificate.
        .initial_max_send_streams(0)
        .initial_window_size(sizes.stream_window)
        .initial_connection_window_size(sizes.connection_window())
        .max_frame_size(sizes.frame)
        .max_send_buffer_size(sizes.send_buffer)
        .max_header_list_size(sizes.header_list)
        .max_concurrent_reset_streams(CANCELLED)
        .reset_stream_duration(CANCELLED_REMEMBERED)
        .max_local_error_reset_streams(None)
        .data_frame_budget(SMALL_FRAME_BUDGET);
    builder
}

/// The answering side.
#[must_use]
pub fn server(form: Form) -> h2::server::Builder {
    let sizes = sizes(form);
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS_ACCEPTED)
        .initial_window_size(sizes.stream_window)
        .initial_connection_window_size(sizes.connection_window())
        .max_frame_size(sizes.frame)
        .max_send_buffer_size(sizes.send_buffer)
        .max_header_list_size(sizes.header_list)
        .max_pending_accept_reset_streams(CANCELLED_UNSEEN)
        .max_concurrent_reset_streams(CANCELLED)
        .reset_stream_duration(CANCELLED_REMEMBERED)
        .max_local_error_reset_streams(None)
        .data_frame_budget(SMALL_FRAME_BUDGET);
    if form != Form::Tcp {
        builder.enable_connect_protocol();
    }
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_full_of_four_byte_frames_stays_within_the_budget_of_small_frames() {
        // h2 charges each frame with what it lacks of 256 bytes.
        let frames = sizes(Form::Http1).stream_window as usize / 4;
        assert!(frames * (256 - 4) <= SMALL_FRAME_BUDGET);
    }

    #[test]
    fn the_connection_window_is_above_what_all_streams_hold_together() {
        for form in [Form::Http1, Form::Http2, Form::Tcp] {
            let sizes = sizes(form);
            let held = u64::from(sizes.stream_window) * u64::from(STREAMS_ACCEPTED);
            assert!(u64::from(sizes.connection_window()) >= 2 * held && sizes.connection_window() < 1 << 31);
        }
    }

    #[test]
    fn the_calling_side_gives_up_an_idle_connection_long_before_the_answering_side() {
        assert!(CLIENT_IDLE + PING_EVERY * 2 < SERVER_IDLE);
    }
}

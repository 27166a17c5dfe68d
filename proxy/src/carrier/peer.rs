//! Whom the carrier calls, and what it says when that failed.

use std::net::SocketAddr;

use heddle_api::{carrier::ServerName, identity::SpiffeId};

use crate::reason::Reason;

/// The far side of a mesh connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The application's address; the carrier dials the mesh port of the same IP.
    pub address: SocketAddr,
    /// Which port of the pod, and what its application is to get.
    pub name: ServerName,
    /// Who must be there.
    pub identity: SpiffeId,
}

/// Whether the peer may have seen a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Provably not: nothing left this sidecar, or the peer said that it handed nothing to its application
    /// (REFUSED_STREAM, or a GOAWAY whose last stream is an earlier one; RFC 9113, 8.7).
    No,
    /// It cannot be ruled out.
    Maybe,
}

/// A request, tunnel or upgrade that got no response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendError {
    /// The word for header, log and metric.
    pub reason: Reason,
    /// Whether it may be sent again, whatever its method.
    pub sent: Sent,
    /// What happened, in words, with the peer's name.
    pub source: String,
}

impl std::fmt::Display for SendError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.reason, self.source)
    }
}

impl std::error::Error for SendError {}

impl SendError {
    /// A failure before anything of the request left this sidecar.
    pub(super) fn unsent(reason: Reason, peer: &Peer, what: impl std::fmt::Display) -> Self {
        Self { reason, sent: Sent::No, source: peer.said(what) }
    }

    /// A failure of the stream after it was opened.
    pub(super) fn of_stream(peer: &Peer, error: &h2::Error) -> Self {
        Self { reason: Reason::UpstreamReset, sent: sent(error), source: peer.said(error) }
    }

    /// A stream that ended otherwise: by an answer of the far sidecar that is no success or breaks the carrier's
    /// rules, or by the request's own body.
    pub(super) fn of_answer(reason: Reason, peer: &Peer, what: impl std::fmt::Display) -> Self {
        Self { reason, sent: Sent::Maybe, source: peer.said(what) }
    }
}

impl Peer {
    fn said(&self, what: impl std::fmt::Display) -> String {
        format!("{what}, at {} ({} of {})", self.address.ip(), self.name, self.identity)
    }
}

/// Reads from a stream's error whether the peer's application can have seen the request.
///
/// `h2` gives a stream the peer's GOAWAY as its error only when the stream is above GOAWAY's last one; streams below
/// go on, and end with an I/O error if the connection does.
fn sent(error: &h2::Error) -> Sent {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    if error.is_remote() && (refused || error.is_go_away()) { Sent::No } else { Sent::Maybe }
}

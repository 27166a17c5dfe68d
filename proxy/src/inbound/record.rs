//! What is told of a request or connection that came in, once it has ended: its series and its line in the log.

use std::{fmt, net::SocketAddr, rc::Rc, sync::Arc};

use http::{Method, StatusCode, Uri, Version};
use tokio::time::Instant;

use super::door::Door;
use crate::{
    config::inbound::AccessLog,
    log::Entry,
    metrics::{Direction, HttpSeries},
    reason::Reason,
};

/// A request that is under way. Recorded when it is dropped, so that none is forgotten.
pub(super) struct Record {
    door: Rc<Door>,
    series: Arc<HttpSeries>,
    method: Method,
    uri: Uri,
    version: Version,
    application: Option<SocketAddr>,
    started: Instant,
    /// What the caller got; none: a reset.
    pub(super) status: Option<StatusCode>,
    /// Why, if the sidecar had a word in it.
    pub(super) reason: Option<Reason>,
    /// Body bytes that went out.
    pub(super) bytes_out: u64,
}

impl Record {
    /// Begins. `application` is none where the request names no port of this pod.
    pub(super) fn begin(
        door: &Rc<Door>,
        parts: &http::request::Parts,
        version: Version,
        application: Option<SocketAddr>,
    ) -> Self {
        Self {
            series: door.series(application.map(|a| a.port()), version),
            door: Rc::clone(door),
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            version,
            application,
            started: Instant::now(),
            status: None,
            reason: None,
            bytes_out: 0,
        }
    }

    /// The sidecar refuses; `answered` if the caller is told so.
    pub(super) fn refused(&mut self, reason: Reason, answered: bool) {
        self.reason = Some(reason);
        self.status = answered.then(|| reason.status());
        self.door.worker.metrics.refused(Direction::Inbound, reason);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        self.series.record(&self.method, self.status, self.reason, elapsed);
        let policy = self.door.log_policy();
        if policy == AccessLog::Off {
            return;
        }
        let entry = Entry {
            protocol: match self.version {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2.0",
                _ => "HTTP/1.1",
            },
            method: Some(self.method.as_str()),
            authority: self.uri.authority().map(http::uri::Authority::as_str),
            path: Some(self.uri.path()),
            status: self.status.map(|status| status.as_u16()),
            reason: self.reason,
            duration: elapsed,
            endpoint: self.application,
            bytes_out: self.bytes_out,
            ..entry(&self.door)
        };
        self.door.worker.access_log.record(policy, &entry);
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("uri", &self.uri).field("status", &self.status).finish_non_exhaustive()
    }
}

/// An opaque connection that has ended.
pub(super) fn connection(door: &Door, application: SocketAddr, started: Instant, bytes: (u64, u64)) {
    let entry = Entry {
        duration: started.elapsed(),
        endpoint: Some(application),
        bytes_in: bytes.0,
        bytes_out: bytes.1,
        ..entry(door)
    };
    door.worker.access_log.record(door.log_policy(), &entry);
}

/// A connection that was refused: counted, and a line in the log.
pub(super) fn refused(door: &Door, application: Option<SocketAddr>, reason: Reason, sentence: &str) {
    door.worker.metrics.refused(Direction::Inbound, reason);
    tracing::debug!(%reason, client = %door.client, "connection refused: {sentence}");
    let entry = Entry { reason: Some(reason), endpoint: application, ..entry(door) };
    door.worker.access_log.record(door.log_policy(), &entry);
}

/// What all entries of a connection have in common.
fn entry(door: &Door) -> Entry<'_> {
    Entry {
        direction: Direction::Inbound,
        protocol: "tcp",
        method: None,
        authority: None,
        path: None,
        status: None,
        reason: None,
        duration: std::time::Duration::ZERO,
        service: None,
        backend: None,
        route: None,
        endpoint: None,
        client: Some(door.client),
        peer: door.identity.as_ref().map(heddle_api::identity::SpiffeId::as_str),
        mtls: door.identity.is_some(),
        tries: 1,
        bytes_in: 0,
        bytes_out: 0,
    }
}

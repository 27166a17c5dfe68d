//! What is told of a request once it has ended: its series, and a line in the access log where policy wants one.

use std::{fmt, net::SocketAddr, rc::Rc, sync::Arc};

use http::{Method, StatusCode, Uri, Version};
use tokio::time::Instant;

use crate::{
    config::inbound::AccessLog, log::Entry, metrics::Direction, outbound::series::SeriesKey, reason::Reason,
    worker::Worker,
};

/// A request under way. Recorded when dropped, however it ended.
pub struct Record {
    worker: Rc<Worker>,
    key: SeriesKey,
    method: Method,
    uri: Uri,
    started: Instant,
    /// What the client gets; none: it left before there was an answer.
    pub status: Option<StatusCode>,
    /// Why, if the sidecar had a word in it.
    pub reason: Option<Reason>,
    /// Where the last try went.
    pub endpoint: Option<SocketAddr>,
    /// Tries, the first included.
    pub tries: u32,
    /// Body bytes that the client got.
    pub bytes_out: u64,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("key", &self.key).field("status", &self.status).finish_non_exhaustive()
    }
}

impl Record {
    /// Begins with a request whose backend is not known yet: the service stands for it.
    #[must_use]
    pub fn new(
        worker: &Rc<Worker>,
        service: &Arc<str>,
        method: Method,
        uri: Uri,
        version: Version,
        started: Instant,
    ) -> Self {
        let key = SeriesKey {
            service: Arc::clone(service),
            backend: Arc::clone(service),
            route: None,
            version,
            mtls: false,
        };
        Self {
            worker: Rc::clone(worker),
            key,
            method,
            uri,
            started,
            status: None,
            reason: None,
            endpoint: None,
            tries: 0,
            bytes_out: 0,
        }
    }

    /// Routing has decided.
    pub fn routed(&mut self, backend: &Arc<str>, route: Option<&Arc<str>>) {
        self.key.backend = Arc::clone(backend);
        self.key.route = route.cloned();
    }

    /// A try went there.
    pub fn tried(&mut self, endpoint: SocketAddr, mtls: bool) {
        self.endpoint = Some(endpoint);
        self.key.mtls = mtls;
        self.tries += 1;
    }

    /// The sidecar itself answers.
    pub fn refused(&mut self, reason: Reason) {
        self.status = Some(reason.status());
        self.reason = Some(reason);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let worker = &self.worker;
        let elapsed = self.started.elapsed();
        let series = worker.series.get(&worker.metrics, &self.key);
        series.record(&self.method, self.status, self.reason, elapsed);
        let policy = worker.store.inbound().map_or(AccessLog::default(), |inbound| inbound.access_log);
        if policy == AccessLog::Off {
            return;
        }
        let entry = Entry {
            direction: Direction::Outbound,
            protocol: protocol(self.key.version),
            method: Some(self.method.as_str()),
            authority: self.uri.authority().map(http::uri::Authority::as_str),
            path: Some(self.uri.path()),
            status: self.status.map(|status| status.as_u16()),
            reason: self.reason,
            duration: elapsed,
            service: Some(&self.key.service),
            backend: Some(&self.key.backend),
            route: self.key.route.as_deref(),
            endpoint: self.endpoint,
            client: None,
            peer: None,
            mtls: self.key.mtls,
            tries: self.tries,
            bytes_in: 0,
            bytes_out: self.bytes_out,
        };
        worker.access_log.record(policy, &entry);
    }
}

/// The version as the log spells it.
#[must_use]
pub fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

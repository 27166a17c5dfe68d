//! One connection's way in: who is at the other end, what policy lets it do, and the step to the application.
//! Policy is read anew for each request, so that a change holds for connections that are open.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use heddle_api::identity::SpiffeId;
use http::{HeaderValue, Method, Request, Response, Uri, Version, request};
use http_body::Body;
use tokio::{net::TcpStream, sync::Notify};

use crate::{
    access::{Caller, Decision},
    carrier::{SendError, Sent},
    config::{AppProtocol, Inbound, inbound::AccessLog, inbound::MtlsMode},
    metrics::{Direction, HttpLabels, HttpSeries},
    plain::{BoxError, PlainBody, PlainVersion, Upgrade, dial, edge},
    reason::Reason,
    worker::{Opened, Worker},
};

/// The application is on the same machine: it accepts at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that came in.
pub(super) struct Door {
    pub(super) worker: Rc<Worker>,
    /// The peer's address.
    pub(super) client: SocketAddr,
    /// From the peer's certificate; none: plaintext.
    pub(super) identity: Option<SpiffeId>,
    /// The series of the request before; mostly it is the next one's too.
    series: RefCell<Option<Held>>,
    /// A request's body stalled: the client is to take its requests to another connection.
    pub(super) stalled: Notify,
    _opened: Rc<Opened>,
}

/// A handle, and what it is for.
struct Held {
    port: Option<u16>,
    version: Version,
    series: Arc<HttpSeries>,
}

/// Why the sidecar does not let something in, or got no answer for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The word.
    pub(super) reason: Reason,
    /// For whom, and what to do.
    pub(super) sentence: String,
    /// The application was not reached, provably: the caller may try elsewhere.
    pub(super) unsent: bool,
}

/// What was let in, and goes on: it is judged again when policy changes.
#[derive(Debug)]
pub(super) struct Permitted {
    pub(super) application: SocketAddr,
    /// The request that it began as; none: opaque bytes.
    pub(super) request: Option<(Method, Uri)>,
}

impl Permitted {
    /// Whether it would still be let in.
    pub(super) fn still(&self, door: &Door) -> Result<(), Refused> {
        let port = self.application.port();
        match &self.request {
            Some((method, uri)) => door.admit_request_of(port, method, uri.path()).map(drop),
            None => door.admit_bytes(port),
        }
    }
}

impl Refused {
    pub(super) fn new(reason: Reason, sentence: impl Into<String>) -> Self {
        Self { reason, sentence: sentence.into(), unsent: false }
    }
}

impl From<SendError> for Refused {
    fn from(error: SendError) -> Self {
        let unsent = error.sent == Sent::No;
        Self { reason: error.reason, sentence: format!("the application at {}", error.source), unsent }
    }
}

impl From<edge::Malformed> for Refused {
    fn from(malformed: edge::Malformed) -> Self {
        Self::new(malformed.reason(), malformed.to_string())
    }
}

impl Door {
    pub(super) fn new(
        worker: Rc<Worker>,
        client: SocketAddr,
        identity: Option<SpiffeId>,
        opened: Rc<Opened>,
    ) -> Rc<Self> {
        let (series, stalled) = (RefCell::new(None), Notify::new());
        Rc::new(Self { worker, client, identity, series, stalled, _opened: opened })
    }

    /// The pod's own side.
    pub(super) fn inbound(&self) -> Result<Arc<Inbound>, Refused> {
        self.worker.store.inbound().ok_or_else(|| Refused {
            reason: Reason::NotReady,
            sentence: "the control plane has not said yet what this pod's ports are".to_owned(),
            unsent: true,
        })
    }

    pub(super) fn log_policy(&self) -> AccessLog {
        self.worker.store.inbound().map_or_else(AccessLog::default, |inbound| inbound.access_log)
    }

    /// The handle on the series of a port's requests; no port: of requests that name none.
    pub(super) fn series(&self, port: Option<u16>, version: Version) -> Arc<HttpSeries> {
        let mut held = self.series.borrow_mut();
        if let Some(held) = &*held
            && (held.port, held.version) == (port, version)
        {
            return Arc::clone(&held.series);
        }
        let service = port.map(|port| format!("{}:{port}", self.worker.settings.pod)).unwrap_or_default();
        let labels = HttpLabels {
            service: &service,
            backend: "",
            route: "",
            protocol: version,
            mtls: self.identity.is_some(),
        };
        let series = self.worker.metrics.http(Direction::Inbound, labels);
        *held = Some(Held { port, version, series: Arc::clone(&series) });
        series
    }

    /// The address, if it is the pod's own and not the sidecar's.
    pub(super) fn own_application(&self, ip: IpAddr, port: u16) -> Result<SocketAddr, Refused> {
        let address = SocketAddr::new(ip.to_canonical(), port);
        if !self.worker.settings.pod_ips.contains(&address.ip()) {
            return Err(Refused::new(
                Reason::ForeignAddress,
                format!("{} is none of this pod's addresses", address.ip()),
            ));
        }
        if self.worker.settings.is_own_port(address) {
            return Err(Refused::new(Reason::OwnPort, format!("{port} is a port of the sidecar itself")));
        }
        Ok(address)
    }

    /// Whether opaque bytes may go to a port.
    pub(super) fn admit_bytes(&self, port: u16) -> Result<(), Refused> {
        let inbound = self.inbound()?;
        self.admit_unencrypted(&inbound, port)?;
        self.decided(port, inbound.port(port).access.tcp(self.caller()))
    }

    /// Whether a request may go to a port; gives back what the application there speaks.
    pub(super) fn admit_request(&self, port: u16, parts: &request::Parts) -> Result<AppProtocol, Refused> {
        self.admit_request_of(port, &parts.method, parts.uri.path())
    }

    /// The same, of a request that is gone.
    pub(super) fn admit_request_of(
        &self,
        port: u16,
        method: &Method,
        path: &str,
    ) -> Result<AppProtocol, Refused> {
        let inbound = self.inbound()?;
        self.admit_unencrypted(&inbound, port)?;
        let rules = inbound.port(port);
        self.decided(port, rules.access.http(self.caller(), method, path))?;
        Ok(rules.protocol)
    }

    /// Waits until policy no longer allows what it allowed: `judge` is asked now, and whenever the pod's side changes.
    pub(super) async fn revoked(&self, judge: impl Fn() -> Result<(), Refused>) -> Refused {
        loop {
            let changed = self.worker.store.inbound_changed();
            if let Err(refused) = judge() {
                return refused;
            }
            changed.await;
        }
    }

    fn admit_unencrypted(&self, inbound: &Inbound, port: u16) -> Result<(), Refused> {
        if self.identity.is_none() && inbound.port(port).mtls == MtlsMode::Strict {
            let sentence = format!("port {port} takes mTLS only: call it from a pod with a sidecar");
            return Err(Refused::new(Reason::PlaintextRefused, sentence));
        }
        Ok(())
    }

    fn caller(&self) -> Caller<'_> {
        Caller { identity: self.identity.as_ref(), address: self.client.ip().to_canonical() }
    }

    fn decided(&self, port: u16, decision: Decision) -> Result<(), Refused> {
        let Decision::Deny { policy } = decision else { return Ok(()) };
        let who = match &self.identity {
            Some(identity) => identity.to_string(),
            None => format!("{} without identity", self.client.ip()),
        };
        let why = match policy {
            Some(policy) => format!("AccessPolicy {policy} denies it"),
            None => "no AccessPolicy allows it".to_owned(),
        };
        Err(Refused::new(Reason::AccessDenied, format!("{who} may not use port {port} so: {why}")))
    }

    /// Hands a request over, and waits for the head of the answer.
    pub(super) async fn send<B>(
        &self,
        application: SocketAddr,
        version: PlainVersion,
        parts: request::Parts,
        body: B,
    ) -> Result<Response<PlainBody>, Refused>
    where
        B: Body<Data = Bytes> + 'static,
        B::Error: Into<BoxError>,
    {
        let request = Request::from_parts(parts, body);
        Ok(self.worker.plain.send(application, version, request, CONNECT_TIMEOUT).await?)
    }

    /// Hands over a request for another protocol.
    pub(super) async fn upgrade(
        &self,
        application: SocketAddr,
        parts: request::Parts,
        protocol: &HeaderValue,
    ) -> Result<Upgrade, Refused> {
        let request = Request::from_parts(parts, ());
        Ok(self.worker.plain.upgrade(application, request, protocol, CONNECT_TIMEOUT).await?)
    }

    /// Opens a connection for bytes.
    pub(super) async fn dial(&self, application: SocketAddr) -> Result<TcpStream, Refused> {
        Ok(dial::connect(application, CONNECT_TIMEOUT).await?)
    }
}

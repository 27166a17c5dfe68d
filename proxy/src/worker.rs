//! What one traffic worker has at hand, and what all of them agree on.

use std::{
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use heddle_api::identity::PodName;
use tokio::sync::watch;

use crate::{
    carrier,
    identity::Identity,
    log::AccessLogger,
    metrics::{ConnectionGuard, Direction, Metrics, WorkerMetrics},
    outbound::{Mirrors, SeriesCache, resolve::Resolver},
    plain::{PlainPool, parking::Lot},
    store::Store,
    threads::OpenConnection,
};

/// What the workers share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// What the mesh looks like.
    pub store: Arc<Store>,
    /// This pod's certificate.
    pub identity: Arc<Identity>,
    /// Summed over workers when scraped.
    pub metrics: Arc<Metrics>,
    /// Where access log lines go.
    pub access_log: AccessLogger,
    /// What the command line said.
    pub settings: Arc<Settings>,
    /// Whether the sidecar is leaving.
    pub drain: Drain,
}

/// One worker: a current-thread runtime with its own connection pools. Never crosses threads.
pub struct Worker {
    /// What the mesh looks like; shared.
    pub store: Arc<Store>,
    /// This pod's certificate; shared.
    pub identity: Arc<Identity>,
    /// Connections to other sidecars; this worker's own.
    pub carrier: Rc<carrier::Pool>,
    /// Plaintext connections: to the pod's application, and to endpoints without a sidecar; this worker's own.
    pub plain: Rc<PlainPool>,
    /// Applications' HTTP/1 connections, the idle ones among them.
    pub parking: Rc<Lot>,
    /// Names outside the mesh.
    pub resolver: Resolver,
    /// This worker's series.
    pub metrics: Arc<WorkerMetrics>,
    /// This worker's handles on outbound series.
    pub series: SeriesCache,
    /// Copies of requests in flight.
    pub mirrors: Mirrors,
    /// What stands for the service where there is none: the world outside the mesh.
    pub outside: Arc<str>,
    /// Where access log lines go.
    pub access_log: AccessLogger,
    /// Shared by all workers.
    pub settings: Arc<Settings>,
    /// Whether the sidecar is leaving.
    pub drain: Drain,
}

impl Worker {
    /// A worker without connections. It cannot move between threads, so it is made where it runs.
    #[must_use]
    pub fn new(shared: Shared, metrics: Arc<WorkerMetrics>, carrier: Rc<carrier::Pool>) -> Self {
        Self {
            carrier,
            plain: PlainPool::new(shared.settings.header_limit),
            parking: Lot::new(shared.drain.clone()),
            resolver: Resolver::default(),
            metrics,
            series: SeriesCache::default(),
            mirrors: Mirrors::default(),
            outside: "outside".into(),
            store: shared.store,
            identity: shared.identity,
            access_log: shared.access_log,
            settings: shared.settings,
            drain: shared.drain,
        }
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// A connection that came in. It is counted for as long as anything of it goes on, also what it became by an upgrade or a
/// CONNECT, which outlive HTTP: the drain waits for it, and the worker has it.
#[derive(Debug)]
pub struct Opened {
    _of_worker: OpenConnection,
    _of_metrics: ConnectionGuard,
}

impl Opened {
    /// Counts it from now on.
    #[must_use]
    pub fn new(worker: &Worker, direction: Direction, tls: bool, open: OpenConnection) -> Rc<Self> {
        Rc::new(Self { _of_worker: open, _of_metrics: worker.metrics.connection(direction, tls) })
    }
}

/// What the command line said.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The pod.
    pub pod: PodName,
    /// Its addresses.
    pub pod_ips: Vec<IpAddr>,
    /// Where this sidecar listens; nothing dials it for an application.
    pub listening: Vec<SocketAddr>,
    /// How long a client may be silent before it is taken to wait for the server.
    pub detect_timeout: Duration,
    /// Bytes of header names plus values, on HTTP/1 and HTTP/2 alike.
    pub header_limit: usize,
    /// The longest that leaving may take.
    pub drain_time: Duration,
    /// How long a peer may take nothing of an answer, or send nothing of a request's body.
    pub stall_timeout: Duration,
}

impl Settings {
    /// Whether an address is the sidecar itself: nothing may be dialled there on an application's behalf, or a
    /// connection would come back to where it began, with this pod's identity.
    #[must_use]
    pub fn is_own_port(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let is_own = || {
            self.pod_ips.contains(&ip) || ip.is_unspecified() || crate::capture::source_is_this_pod(ip, self)
        };
        // The five ports are the sidecar's at every address of the pod; what else listens, listens at one address,
        // where the application may have another with the same port.
        (heddle_api::ports::SIDECAR.contains(&address.port()) && is_own())
            || self.listening.iter().filter(|own| own.port() == address.port()).any(|own| {
                let own = own.ip().to_canonical();
                own == ip
                    || (ip.is_unspecified() && is_own())
                    || (own.is_unspecified() && (is_own() || ip.is_loopback()))
            })
    }

    /// Settings for unit tests.
    #[cfg(test)]
    #[must_use]
    pub fn for_tests() -> Self {
        Self {
            pod: PodName { namespace: "test".into(), name: "pod".into() },
            pod_ips: vec![IpAddr::from([127, 0, 0, 1])],
            listening: Vec::new(),
            detect_timeout: Duration::from_millis(100),
            header_limit: 65_536,
            drain_time: Duration::from_secs(30),
            stall_timeout: crate::meter::STALL,
        }
    }
}

/// Tells everything that serves connections how far the pod is on its way out.
///
/// The control plane's word comes first, while the application lives and callers have yet to hear of it. Nobody may lose a
/// request by it: those who call in are told to go elsewhere, each with an answer, and what the application itself has
/// open stays as it was. SIGTERM comes when the application has gone, and ends what is idle.
#[derive(Clone, Debug)]
pub struct Drain(watch::Receiver<Stage>);

/// How far the pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Staying,
    Terminating,
    Leaving,
}

/// Moves the drain on, never back; dropped without a word, it never starts.
#[derive(Debug)]
pub struct DrainTrigger(watch::Sender<Stage>);

impl Drain {
    /// A drain that has not begun.
    #[must_use]
    pub fn new() -> (DrainTrigger, Self) {
        let (sender, receiver) = watch::channel(Stage::Staying);
        (DrainTrigger(sender), Self(receiver))
    }

    /// Whether the pod is terminating, or the sidecar leaving already.
    #[must_use]
    pub fn is_terminating(&self) -> bool {
        *self.0.borrow() >= Stage::Terminating
    }

    /// Drives a connection to its end. When the sidecar leaves, or `enough` says so, `finish` asks the connection to answer
    /// what it has and close.
    pub async fn drive<F: Future>(
        mut self,
        connection: F,
        enough: impl Future<Output = ()>,
        finish: impl FnOnce(Pin<&mut F>),
    ) -> F::Output {
        let mut connection = pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = self.leaving() => {}
            () = enough => {}
        }
        finish(connection.as_mut());
        connection.await
    }

    /// Waits until the pod is terminating.
    pub async fn terminating(&mut self) {
        self.reached(Stage::Terminating).await;
    }

    /// Waits until the sidecar leaves.
    pub async fn leaving(&mut self) {
        self.reached(Stage::Leaving).await;
    }

    async fn reached(&mut self, stage: Stage) {
        if self.0.wait_for(|now| *now >= stage).await.is_err() {
            // The trigger is gone: nothing will ever move it.
            std::future::pending::<()>().await;
        }
    }
}

impl DrainTrigger {
    /// The pod is terminating, by the control plane's word.
    pub fn terminating(&self) {
        self.reach(Stage::Terminating);
    }

    /// The sidecar was told to end.
    pub fn leave(&self) {
        self.reach(Stage::Leaving);
    }

    fn reach(&self, stage: Stage) {
        self.0.send_if_modified(|now| {
            let further = *now < stage;
            *now = stage.max(*now);
            further
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sidecars_own_ports_are_known_under_each_of_its_addresses() {
        let settings = Settings { pod_ips: vec!["127.0.0.2".parse().unwrap()], ..Settings::for_tests() };
        for (address, own) in [
            ("127.0.0.2:15001", true),
            ("127.0.0.1:15001", true),
            ("[::1]:15000", true),
            ("0.0.0.0:15008", true),
            ("[::ffff:127.0.0.2]:15006", true),
            ("127.0.0.2:8080", false),
            ("127.0.0.3:15008", false),
        ] {
            assert_eq!(settings.is_own_port(address.parse().unwrap()), own, "{address}");
        }
    }

    #[test]
    fn where_else_the_sidecar_listens_is_its_own_and_the_same_port_elsewhere_is_not() {
        let listening = ["127.0.0.9:5432", "0.0.0.0:9000", "127.0.0.9:15100"];
        let settings = Settings {
            pod_ips: vec!["127.0.0.2".parse().unwrap()],
            listening: listening.map(|address| address.parse().unwrap()).to_vec(),
            ..Settings::for_tests()
        };
        for (address, own) in [
            ("127.0.0.9:5432", true),
            ("[::ffff:127.0.0.9]:5432", true),
            ("127.0.0.9:15100", true),
            // The pod's own application has that port too.
            ("127.0.0.2:5432", false),
            ("127.0.0.2:9000", true),
            ("127.0.0.3:9000", true),
            ("10.0.0.3:9000", false),
        ] {
            assert_eq!(settings.is_own_port(address.parse().unwrap()), own, "{address}");
        }
    }

    #[tokio::test]
    async fn a_drain_reaches_whoever_asks_before_and_after_and_never_goes_back() {
        let (trigger, mut drain) = Drain::new();
        assert!(!drain.is_terminating());
        trigger.terminating();
        drain.terminating().await;
        assert!(drain.clone().is_terminating());
        let leaving = tokio::time::timeout(Duration::ZERO, drain.leaving()).await;
        assert!(leaving.is_err(), "the application lives yet");
        trigger.leave();
        trigger.terminating();
        drain.leaving().await;
    }
}

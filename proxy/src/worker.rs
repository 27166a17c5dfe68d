//! What one traffic worker has at hand, and what all of them agree on.

use std::{net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use heddle_api::identity::PodName;
use tokio::sync::watch;

use crate::{
    carrier, identity::Identity, log::AccessLogger, metrics::WorkerMetrics, plain::PlainPool, store::Store,
};

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
    /// This worker's series.
    pub metrics: Arc<WorkerMetrics>,
    /// Where access log lines go.
    pub access_log: AccessLogger,
    /// Shared by all workers.
    pub settings: Arc<Settings>,
    /// Whether the sidecar is leaving.
    pub drain: Drain,
}

/// What the command line said.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The pod.
    pub pod: PodName,
    /// Its addresses.
    pub pod_ips: Vec<IpAddr>,
    /// Ports on which this sidecar listens; nothing dials them for an application.
    pub own_ports: Vec<u16>,
    /// How long a client may be silent before it is taken to wait for the server.
    pub detect_timeout: Duration,
    /// Bytes of header names plus values, on HTTP/1 and HTTP/2 alike.
    pub header_limit: usize,
    /// The longest that leaving may take.
    pub drain_time: Duration,
}

impl Settings {
    /// Whether an address is the sidecar itself.
    #[must_use]
    pub fn is_own_port(&self, address: std::net::SocketAddr) -> bool {
        self.own_ports.contains(&address.port()) && self.pod_ips.contains(&address.ip().to_canonical())
    }

    /// Settings for unit tests.
    #[cfg(test)]
    #[must_use]
    pub fn for_tests() -> Self {
        Self {
            pod: PodName { namespace: "test".into(), name: "pod".into() },
            pod_ips: vec![IpAddr::from([127, 0, 0, 1])],
            own_ports: heddle_api::ports::SIDECAR.to_vec(),
            detect_timeout: Duration::from_millis(100),
            header_limit: 65_536,
            drain_time: Duration::from_secs(30),
        }
    }
}

/// Tells everything that serves connections that the sidecar is leaving.
#[derive(Clone, Debug)]
pub struct Drain(watch::Receiver<bool>);

/// Starts the drain; dropped without a word, it never starts.
#[derive(Debug)]
pub struct DrainTrigger(watch::Sender<bool>);

impl Drain {
    /// A drain that has not begun.
    #[must_use]
    pub fn new() -> (DrainTrigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (DrainTrigger(sender), Self(receiver))
    }

    /// Waits until it begins.
    pub async fn started(&mut self) {
        if self.0.wait_for(|draining| *draining).await.is_err() {
            // The trigger is gone: nothing will ever start it.
            std::future::pending::<()>().await;
        }
    }
}

impl DrainTrigger {
    /// Begins; again is the same.
    pub fn start(&self) {
        self.0.send_replace(true);
    }
}

//! The admin server: what people, kubelet and Prometheus ask of a sidecar.
//!
//! It runs on the control runtime and no worker has a part in it. On the admin address it serves all pages, on the
//! metrics address those that change nothing and tell no more than numbers ([`Surface`]). A connection carries one
//! request, [`MAX_CONNECTIONS`] are open at once, and the oldest gives way to a new one, so that nobody keeps the
//! kubelet's probe out by holding connections open.

mod config_view;
pub mod live;
mod pages;
pub mod ready;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::identity::PodName;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

pub use self::live::{CertificateFacts, Live, Running};
pub use self::ready::{Readiness, Token};
use crate::log::Logs;
use crate::metrics::{Metrics, Observed};
use crate::probe::Replayer;
use crate::redirect::check::Instance;

/// Connections open at once on one listener. Each may hold a page that its reader is slow to take, 14 MB at worst.
pub const MAX_CONNECTIONS: usize = 16;
/// In which a request's head must be there.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// In which all of an exchange must be over; kubelet's may take what its pod declares.
const EXCHANGE_TIME: Duration = Duration::from_secs(30);
/// Bytes that a request's head may have.
const HEADER_LIMIT: usize = 16 * 1024;
/// Pause after an accept that failed, as when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which pages a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// All: it listens on loopback, or on the pod's address in directory mode.
    Admin,
    /// Those for kubelet and Prometheus.
    Metrics,
}

/// What the pages show.
#[derive(Debug)]
pub struct Admin {
    /// This sidecar's pod.
    pub pod: PodName,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// Whether its parts can serve, beside the certificate and the pod's own side.
    pub readiness: Readiness,
    /// Its logs.
    pub logs: Logs,
    /// What it knows of the mesh.
    pub live: Arc<dyn Live>,
    /// The probes of its pod.
    pub probes: Replayer,
    /// This process and no other; what [`crate::redirect::check`] knows it by.
    pub instance: Instance,
}

impl Admin {
    /// What is missing before the sidecar can serve, a line each.
    ///
    /// The certificate and the pod's own side are asked for here, so nobody has to report them. Once there, they make
    /// the sidecar ready for good, even when the certificate has expired: an outage of the control plane must not
    /// take every pod out of its Services; what expired shows in `heddle_certificate_expiry_timestamp_seconds`.
    fn missing(&self) -> Option<String> {
        let mut text = self.readiness.missing().unwrap_or_default();
        if self.live.certificate().is_none() {
            let problem = self.live.certificate_problem();
            let reason = problem.as_deref().unwrap_or("the control plane has issued none yet");
            text += &format!("certificate: {reason}\n");
        }
        if self.live.inbound().is_none() {
            text += "inbound: the control plane has not said yet what this pod's ports are\n";
        }
        (!text.is_empty()).then_some(text)
    }

    /// The scrape.
    fn scrape(&self) -> String {
        self.metrics.encode(&Observed {
            backends: config_view::backends(&*self.live),
            discovery: self.live.discovery(),
            inbound: self.live.inbound().is_some(),
            certificate_requests: self.live.certificate_requests(),
            certificate_expiry: self.live.certificate().map(|facts| facts.not_after),
            access_log_dropped: self.logs.access.dropped(),
            log_dropped: self.logs.dropped(),
        })
    }
}

/// Serves one listener until the task is dropped. Call it on the control runtime, once for each listener.
pub async fn serve(listener: TcpListener, surface: Surface, admin: Arc<Admin>) -> Infallible {
    let mut open: VecDeque<AbortHandle> = VecDeque::with_capacity(MAX_CONNECTIONS);
    loop {
        let io = match listener.accept().await {
            Ok((io, _)) => io,
            Err(error) => {
                tracing::warn!(%error, "the admin server cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        open.retain(|task| !task.is_finished());
        if open.len() >= MAX_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(tokio::spawn(connection(io, surface, Arc::clone(&admin))).abort_handle());
    }
}

async fn connection(io: TcpStream, surface: Surface, admin: Arc<Admin>) {
    let limit = EXCHANGE_TIME.max(admin.probes.longest() + HEADER_TIME);
    let service = service_fn(move |request| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(pages::answer(&admin, surface, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_LIMIT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(io), service);
    let ended = timeout(limit, connection).await;
    if let Some(error) = problem(ended) {
        tracing::debug!(error, "an admin connection ended early");
    }
}

fn problem(ended: Result<Result<(), hyper::Error>, tokio::time::error::Elapsed>) -> Option<String> {
    match ended {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(io::Error::from(io::ErrorKind::TimedOut).to_string()),
    }
}

#[cfg(test)]
mod tests;

//! The admin server: what people, kubelet and Prometheus ask of a sidecar.
//!
//! It runs on the control runtime and no worker has a part in it. On the admin address it serves all pages, on the
//! metrics address those that change nothing and tell no more than numbers ([`Surface`]). A connection carries one
//! request. Until that is there it gives way to newcomers, so that nobody keeps the kubelet's probe out by holding
//! connections open; from then on it stays ([`seat`]).

mod config_view;
pub mod live;
mod pages;
pub mod ready;
mod seat;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::identity::PodName;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::sleep;

pub use self::live::{CertificateFacts, Live, Running};
pub use self::ready::{Readiness, Token};
use self::seat::{Places, Seat};
use crate::log::Logs;
use crate::metrics::{Metrics, Observed};
use crate::probe::Replayer;
use crate::redirect::check::Instance;

/// In which a request's head must be there.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// In which a request's body must be there, and in which an answer must be taken. A replay between the two may last as
/// long as the pod's spec declares.
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
    let mut places = Places::new();
    loop {
        let io = match listener.accept().await {
            Ok((io, _)) => io,
            Err(error) => {
                tracing::warn!(%error, "the admin server cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        tokio::spawn(connection(io, surface, Arc::clone(&admin), places.seat()));
        // What has come of its head is read before the next newcomer may ask it to give way.
        yield_now().await;
    }
}

async fn connection(io: TcpStream, surface: Surface, admin: Arc<Admin>, seat: Arc<Seat>) {
    let answered = Notify::new();
    let service = service_fn(|request| async {
        let answer = pages::answer(&admin, surface, &seat, request).await;
        answered.notify_one();
        answer
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_LIMIT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(io), service);
    let not_taken = async {
        answered.notified().await;
        sleep(EXCHANGE_TIME).await;
    };
    let problem = tokio::select! {
        // A request that is there counts before a newcomer does.
        biased;
        ended = connection => match ended {
            Ok(()) => return,
            Err(error) => error.to_string(),
        },
        () = seat.unwanted() => "it gave way to a newer one".to_owned(),
        () = not_taken => format!("its answer was not taken within {EXCHANGE_TIME:?}"),
    };
    tracing::debug!(problem, "an admin connection ended early");
}

#[cfg(test)]
mod tests;

//! `/probe/<container>/<kind>`: replays what the pod's spec declared, at the pod's own address, and nothing else.
//!
//! Kubelet has no identity in the mesh, so the injector leads its probes and hooks here and hands the sidecar what they
//! were (`heddle_api::probe`). The application still decides: a TCP probe succeeds when the application accepts. Each
//! replay ends when its declared timeout does; how many run at once the listener bounds.
//!
//! A pod gets its first requests when its readiness probe succeeds. So the connection of that probe is kept for them, where
//! the application leaves it open: [`Spares`] says how.

pub mod http;
mod spares;
mod tls;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ::http::{HeaderValue, StatusCode};
use anyhow::Context as _;
use heddle_api::probe::{Action, HttpGet, Kind, Probe, Probes};
use rustls::ClientConfig;
use tokio::{net::TcpStream, time::timeout};
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

pub use self::spares::Spares;

use self::http::{Answer, Parting, Target};

/// Redirects that are followed, as kubelet does it.
const MOST_REDIRECTS: usize = 10;

/// Replays one pod's probes.
#[derive(Debug)]
pub struct Replayer {
    probes: Probes,
    ip: IpAddr,
    /// There where a probe speaks HTTPS.
    tls: Arc<ClientConfig>,
    spares: Spares,
}

/// Why a replay has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What a probe is answered with.
    pub status: StatusCode,
    /// For people.
    pub reason: String,
}

impl Replayer {
    /// At the pod's address.
    ///
    /// # Errors
    /// None in service: when TLS cannot be set up.
    pub fn new(probes: Probes, ip: IpAddr, spares: Spares) -> anyhow::Result<Self> {
        Ok(Self { probes, ip, tls: tls::config().context("TLS for probes")?, spares })
    }

    /// The one that a path asks for: what follows `/probe/`.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<(Kind, &Probe)> {
        self.probes.find(path)
    }

    /// Replays one of them, with the user agent of whoever asks. What comes back is for kubelet: the application's
    /// answer, or why there is none.
    ///
    /// # Errors
    /// When the application cannot be reached, breaks off, or takes longer than declared.
    pub async fn replay(
        &self,
        kind: Kind,
        probe: &Probe,
        user_agent: Option<&HeaderValue>,
    ) -> Result<Answer, Failure> {
        let limit = Duration::from_secs(probe.timeout_seconds.into());
        let keep = self.spares.wanted(kind, probe);
        let (answer, parting) = match timeout(limit, self.act(probe, user_agent, keep)).await {
            Ok(Ok((answer, parting))) => (Ok(answer), parting),
            Ok(Err(reason)) => (Err(Failure { status: StatusCode::SERVICE_UNAVAILABLE, reason }), None),
            Err(_) => {
                let reason = format!("the application took longer than {limit:?}");
                (Err(Failure { status: StatusCode::GATEWAY_TIMEOUT, reason }), None)
            }
        };
        let kept = match parting {
            Some(parting) => parting.connection().await,
            None => None,
        };
        self.spares.replayed(kind, probe, answer.as_ref(), keep, kept);
        answer
    }

    /// What it does; with the connection if it is to be kept, and can be.
    async fn act(
        &self,
        probe: &Probe,
        user_agent: Option<&HeaderValue>,
        keep: bool,
    ) -> Result<(Answer, Option<Parting>), String> {
        match &probe.action {
            Action::HttpGet(get) => self.get(get, user_agent, keep).await,
            Action::TcpSocket { port } => {
                let address = SocketAddr::new(self.ip, *port);
                TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}"))?;
                Ok((Answer::ok("it accepts connections"), None))
            }
            Action::Grpc { port, service } => {
                Ok((health(SocketAddr::new(self.ip, *port), service).await?, None))
            }
        }
    }

    /// As kubelet does it: redirects to the same server are followed, one that leads elsewhere is a success.
    async fn get(
        &self,
        get: &HttpGet,
        user_agent: Option<&HeaderValue>,
        keep: bool,
    ) -> Result<(Answer, Option<Parting>), String> {
        let address = SocketAddr::new(self.ip, get.port);
        let target = Target { address, https: get.https.then_some(&self.tls) };
        let mut path = get.path.clone();
        for _ in 0..=MOST_REDIRECTS {
            let (answer, parting) = http::ask(target, &path, &get.headers, user_agent, keep).await?;
            if !answer.status.is_redirection() {
                return Ok((answer, parting));
            }
            match answer.location.as_deref().and_then(|location| http::same_server(target, &path, location)) {
                Some(next) => path = next,
                // Without this status kubelet would follow it, to a page of the sidecar's.
                None => return Ok((Answer::ok(&format!("it answers {}", answer.status)), parting)),
            }
        }
        Err(format!("{address}: more than {MOST_REDIRECTS} redirects"))
    }
}

/// The gRPC health checking protocol, in plaintext as kubelet speaks it.
async fn health(address: SocketAddr, service: &str) -> Result<Answer, String> {
    let problem = |error: &dyn std::error::Error| {
        let mut text = format!("{address}: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            text += &format!(": {cause}");
            source = cause.source();
        }
        text
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| problem(&error))?;
    let channel = endpoint.connect().await.map_err(|error| problem(&error))?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(request).await;
    let status = answer.map_err(|status| format!("{address}: {} {}", status.code(), status.message()))?;
    match status.into_inner().status() {
        ServingStatus::Serving => Ok(Answer::ok("SERVING")),
        other => Err(format!("{address}: {}", other.as_str_name())),
    }
}

#[cfg(test)]
mod tests;

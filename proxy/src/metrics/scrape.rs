//! One scrape: the workers summed, written by prometheus-client's encoder as OpenMetrics 1.0 text.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use super::histogram::Totals;
use super::http::{Labels, Outcome};
use super::process::Process;
use super::worker::WorkerMetrics;
use super::{Counter, Direction, Flow, Metrics, PeerRefusal};
use crate::config::Backend;
use crate::reason::Reason;
use crate::store::Status;

/// Endpoints that a scrape names one by one; of more, only the numbers by state are given.
const MAX_ENDPOINTS: usize = 2_000;

/// What others know at the moment of the scrape.
#[derive(Debug, Default)]
pub struct Observed {
    /// The backends that are held, each once.
    pub backends: Vec<Arc<Backend>>,
    /// How discovery fares.
    pub discovery: Status,
    /// Whether the pod's own side is known.
    pub inbound: bool,
    /// When the certificate in use expires; none before the first.
    pub certificate_expiry: Option<SystemTime>,
    /// Certificates that were asked for, ever: (got, in vain).
    pub certificate_requests: (u64, u64),
    /// Lines that the access log had no room for.
    pub access_log_dropped: u64,
    /// Lines that the diagnostic log had no room for.
    pub log_dropped: u64,
}

pub(super) fn text(metrics: &Metrics, observed: &Observed) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape::new(metrics, observed)));
    let mut out = String::new();
    text::encode(&mut out, &registry).expect("writing to a String does not fail");
    out
}

/// Label names and values.
type Values<'a> = Vec<(&'static str, &'a str)>;

/// Retries that succeeded and failed, exhausted budgets, ejections.
#[derive(Debug, Default)]
struct BackendTotals {
    retries: [u64; 2],
    budget_exhausted: u64,
    ejections: u64,
}

/// How many endpoints of a backend are in which state; one may be draining and ejected.
#[derive(Debug)]
struct EndpointTotals {
    backend: Arc<str>,
    serving: usize,
    draining: usize,
    ejected: usize,
    /// Address, and ejected or not.
    each: Vec<(String, bool)>,
}

/// All that is written, taken at one moment, in an order that does not change from scrape to scrape.
#[derive(Debug)]
struct Scrape {
    http: BTreeMap<(Labels, Outcome), Totals>,
    backends: BTreeMap<Box<str>, BackendTotals>,
    endpoints: Vec<EndpointTotals>,
    refused: Vec<(Direction, Reason, u64)>,
    /// Direction, TLS, opened, open.
    connections: Vec<(Direction, &'static str, u64, u64)>,
    tcp_bytes: Vec<(Direction, Flow, u64)>,
    header_limit: Vec<(Direction, u64)>,
    peer_refused: Vec<(Direction, PeerRefusal, u64)>,
    overflow: u64,
    discovery: Status,
    inbound: bool,
    /// Seconds since the Unix epoch.
    certificate_expiry: Option<u64>,
    certificate_requests: (u64, u64),
    dropped: [(&'static str, u64); 2],
    process: Process,
    started: f64,
}

impl Scrape {
    fn new(metrics: &Metrics, observed: &Observed) -> Self {
        let sum = |counter: &dyn Fn(&WorkerMetrics) -> &Counter| -> u64 {
            metrics.workers.iter().map(|worker| counter(worker).get()).sum()
        };
        let mut http: BTreeMap<_, Totals> = BTreeMap::new();
        let mut backends: BTreeMap<Box<str>, BackendTotals> = BTreeMap::new();
        for worker in &metrics.workers {
            for series in worker.http_series() {
                for (outcome, totals) in series.totals() {
                    http.entry((series.labels.clone(), outcome)).or_default().add(&totals);
                }
            }
            for series in worker.backend_series() {
                let totals = backends.entry(series.backend.clone()).or_default();
                totals.retries[0] += series.retries_succeeded.get();
                totals.retries[1] += series.retries_failed.get();
                totals.budget_exhausted += series.budget_exhausted.get();
                totals.ejections += series.ejections.get();
            }
        }
        let pairs = Direction::ALL.into_iter().flat_map(|direction| [(direction, 0), (direction, 1)]);
        Self {
            http,
            backends,
            endpoints: endpoints(&observed.backends),
            refused: Direction::ALL
                .into_iter()
                .flat_map(|direction| Reason::ALL.map(|reason| (direction, reason)))
                .map(|(d, reason)| (d, reason, sum(&|worker| &worker.refused[d as usize][reason as usize])))
                .filter(|(_, _, count)| *count > 0)
                .collect(),
            connections: pairs
                .clone()
                .map(|(d, tls)| {
                    // What closed was opened before: read in this order, the difference is never negative.
                    let closed = sum(&|worker| &worker.closed[d as usize][tls]);
                    let opened = sum(&|worker| &worker.opened[d as usize][tls]);
                    (d, ["false", "true"][tls], opened, opened.saturating_sub(closed))
                })
                .collect(),
            tcp_bytes: pairs
                .map(|(d, flow)| (d, Flow::ALL[flow], sum(&|worker| &worker.tcp_bytes[d as usize][flow])))
                .collect(),
            header_limit: Direction::ALL.map(|d| (d, sum(&|worker| &worker.header_limit[d as usize]))).into(),
            peer_refused: Direction::ALL
                .into_iter()
                .flat_map(|direction| PeerRefusal::ALL.map(|reason| (direction, reason)))
                .map(|(d, why)| (d, why, sum(&|worker| &worker.peer_refused[d as usize][why as usize])))
                .collect(),
            overflow: metrics.workers.iter().map(|worker| worker.http_overflow()).sum(),
            discovery: observed.discovery.clone(),
            inbound: observed.inbound,
            certificate_requests: observed.certificate_requests,
            certificate_expiry: observed
                .certificate_expiry
                .and_then(|expiry| expiry.duration_since(UNIX_EPOCH).ok())
                .map(|since| since.as_secs()),
            dropped: [("access", observed.access_log_dropped), ("diagnostic", observed.log_dropped)],
            process: Process::read(),
            started: metrics.started.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
        }
    }

    fn http(&self, out: &mut Writer<'_>, direction: Direction) -> fmt::Result {
        let (name, help) = match direction {
            Direction::Inbound => (
                "http_server_request_duration",
                "Requests to this pod, from the first byte to the end of the answer",
            ),
            Direction::Outbound => (
                "http_client_request_duration",
                "Requests of this pod, retries included, to the end of the answer",
            ),
        };
        let rows = self.http.iter().filter(|((labels, _), _)| labels.direction == direction);
        let mut family = out.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for ((labels, outcome), totals) in rows {
            let status = outcome.status().map(|status| status.to_string());
            let values = http_labels(labels, *outcome, status.as_deref());
            family.encode_family(&values)?.encode_histogram(
                totals.sum_seconds(),
                totals.count(),
                &totals.buckets(),
                None::<&std::collections::HashMap<usize, Exemplar<Values<'_>, f64>>>,
            )?;
        }
        Ok(())
    }

    fn traffic(&self, out: &mut Writer<'_>) -> fmt::Result {
        let connection = |d: Direction, tls| vec![("direction", d.as_str()), ("tls", tls)];
        out.gauge(
            "heddle_connections_open",
            "Connections that are open",
            self.connections.iter().map(|&(d, tls, _, open)| (connection(d, tls), open)),
        )?;
        out.counter(
            "heddle_connections",
            "Connections that were opened",
            self.connections.iter().map(|&(d, tls, opened, _)| (connection(d, tls), opened)),
        )?;
        out.counter(
            "heddle_tcp_bytes",
            "Bytes of opaque connections that passed",
            self.tcp_bytes
                .iter()
                .map(|&(d, flow, bytes)| (vec![("direction", d.as_str()), ("flow", flow.as_str())], bytes)),
        )?;
        out.counter(
            "heddle_refused",
            "Requests and connections that the sidecar itself refused, by the word in heddle-reason",
            self.refused.iter().map(|&(d, reason, count)| {
                (vec![("direction", d.as_str()), ("reason", reason.as_str())], count)
            }),
        )?;
        out.counter(
            "heddle_header_limit",
            "Messages whose headers were over the limit",
            self.header_limit.iter().map(|&(d, count)| (vec![("direction", d.as_str())], count)),
        )?;
        out.counter(
            "heddle_peer_refused",
            "Mesh connections refused for the peer's certificate or server name",
            self.peer_refused.iter().map(|&(d, reason, count)| {
                (vec![("direction", d.as_str()), ("reason", reason.as_str())], count)
            }),
        )
    }

    fn backends(&self, out: &mut Writer<'_>) -> fmt::Result {
        let used =
            || self.backends.iter().map(|(backend, totals)| (vec![("backend", backend.as_ref())], totals));
        out.counter(
            "heddle_retries",
            "Tries after the first, by how they ended",
            used().flat_map(|(labels, totals)| {
                ["success", "failure"].into_iter().zip(totals.retries).map(move |(result, count)| {
                    (labels.iter().copied().chain([("result", result)]).collect(), count)
                })
            }),
        )?;
        out.counter(
            "heddle_retry_budget_exhausted",
            "Failures that were not tried again because the budget was spent",
            used().map(|(labels, totals)| (labels, totals.budget_exhausted)),
        )?;
        out.counter(
            "heddle_ejections",
            "Times that an endpoint was put out of balancing",
            used().map(|(labels, totals)| (labels, totals.ejections)),
        )?;
        out.gauge(
            "heddle_endpoints",
            "Endpoints by state; an ejected one is serving or draining too",
            self.endpoints.iter().flat_map(|of| {
                [("serving", of.serving), ("draining", of.draining), ("ejected", of.ejected)].map(
                    |(state, count)| (vec![("backend", of.backend.as_ref()), ("state", state)], count as u64),
                )
            }),
        )?;
        out.gauge(
            "heddle_endpoint_ejected",
            "1 while the endpoint is out of balancing",
            self.endpoints.iter().flat_map(|of| {
                of.each.iter().map(|(address, ejected)| {
                    let labels = vec![("backend", of.backend.as_ref()), ("endpoint", address.as_str())];
                    (labels, u64::from(*ejected))
                })
            }),
        )
    }

    fn discovery(&self, out: &mut Writer<'_>) -> fmt::Result {
        let status = &self.discovery;
        out.gauge(
            "heddle_discovery_connected",
            "1 while the discovery stream is up",
            one(Some(u64::from(status.connected))),
        )?;
        for (name, help, count) in [
            ("heddle_discovery_streams", "Discovery streams that came up", status.streams),
            ("heddle_discovery_updates", "Resources that the control plane sent", status.updates),
            (
                "heddle_discovery_nacks",
                "Resources that could not be used and were refused",
                status.refused_updates,
            ),
            (
                "heddle_discovery_names_refused",
                "Names refused because the store was full",
                status.refused_names,
            ),
            (
                "heddle_discovery_unanswered",
                "Look-ups that ended without an answer",
                status.unanswered_lookups,
            ),
        ] {
            out.counter(name, help, one(Some(count)))?;
        }
        out.gauge(
            "heddle_discovery_pending",
            "Names asked for and not answered yet",
            one(Some(status.pending as u64)),
        )?;
        let held = [
            ("destination", status.names),
            ("endpoints", status.backends),
            ("inbound", usize::from(self.inbound)),
        ];
        out.gauge(
            "heddle_config_resources",
            "Resources that are held",
            held.map(|(kind, count)| (vec![("type", kind)], count as u64)),
        )?;
        let (issued, failed) = self.certificate_requests;
        out.counter(
            "heddle_certificate_requests",
            "Certificates asked for",
            [("success", issued), ("failure", failed)].map(|(result, n)| (vec![("result", result)], n)),
        )?;
        out.gauge(
            "heddle_certificate_expiry_timestamp_seconds",
            "When the certificate expires, in seconds since the Unix epoch",
            one(self.certificate_expiry),
        )
    }

    fn own(&self, out: &mut Writer<'_>) -> fmt::Result {
        out.counter(
            "heddle_metric_series_overflow",
            "Requests recorded under `other` because there were too many series",
            one(Some(self.overflow)),
        )?;
        out.counter(
            "heddle_log_lines_dropped",
            "Log lines that found no room because the output is slow",
            self.dropped.iter().map(|&(log, lines)| (vec![("log", log)], lines)),
        )?;
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        let mut build = out.0.encode_descriptor("heddle_build", "What runs", None, MetricType::Info)?;
        build.encode_info(&version)?;
        let process = &self.process;
        out.gauge("process_resident_memory_bytes", "Resident memory", one(process.resident_bytes))?;
        out.gauge("process_threads", "Threads", one(process.threads))?;
        out.gauge("process_open_fds", "Open file descriptors", one(process.open_fds))?;
        out.gauge("process_max_fds", "File descriptors that may be open", one(process.max_fds))?;
        out.counter("process_cpu_seconds", "User and system CPU time", one(process.cpu_seconds))?;
        let started = one(Some(self.started));
        out.gauge("process_start_time_seconds", "When the process started, since the Unix epoch", started)
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Writer(encoder);
        self.http(&mut out, Direction::Inbound)?;
        self.http(&mut out, Direction::Outbound)?;
        self.traffic(&mut out)?;
        self.backends(&mut out)?;
        self.discovery(&mut out)?;
        self.own(&mut out)
    }
}

/// Writes whole families.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    /// The encoder appends `_total` to the name.
    fn counter<'v, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Values<'v>, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in rows {
            let none = None::<&Exemplar<Values<'_>, f64>>;
            // The encoder would write `{}` after the name.
            match labels.is_empty() {
                true => family.encode_counter(&value, none)?,
                false => family.encode_family(&labels)?.encode_counter(&value, none)?,
            }
        }
        Ok(())
    }

    fn gauge<'v, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Values<'v>, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in rows {
            match labels.is_empty() {
                true => family.encode_gauge(&value)?,
                false => family.encode_family(&labels)?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }
}

/// A family of one row without labels, or of none where the value is not known.
fn one<T>(value: Option<T>) -> Option<(Values<'static>, T)> {
    value.map(|value| (Values::new(), value))
}

fn http_labels<'a>(labels: &'a Labels, outcome: Outcome, status: Option<&'a str>) -> Values<'a> {
    let mut values: Values<'a> = vec![("http_request_method", outcome.method())];
    if let Some(status) = status {
        values.push(("http_response_status_code", status));
    }
    if let Some(error) = error_type(labels.direction, outcome, status) {
        values.push(("error_type", error));
    }
    // The conventions ask this of the client.
    if labels.direction == Direction::Outbound
        && let Some((address, port)) = &labels.server
    {
        values.extend([("server_address", address.as_ref()), ("server_port", port)]);
    }
    values.extend([
        ("heddle_service", labels.service.as_ref()),
        ("heddle_backend", labels.backend.as_ref()),
        ("heddle_route", labels.route.as_ref()),
        ("network_protocol_version", labels.protocol),
        ("heddle_mtls", labels.mtls),
    ]);
    values
}

/// The sidecar's reason; else the status where the conventions call it an error: for a client from 400, for a
/// server from 500.
fn error_type(direction: Direction, outcome: Outcome, status: Option<&str>) -> Option<&str> {
    let first_error = match direction {
        Direction::Inbound => 500,
        Direction::Outbound => 400,
    };
    match outcome.reason() {
        Some(reason) => Some(reason.as_str()),
        None => status.filter(|_| outcome.status().is_some_and(|code| code >= first_error)),
    }
}

fn endpoints(backends: &[Arc<Backend>]) -> Vec<EndpointTotals> {
    let mut left = MAX_ENDPOINTS;
    let mut totals: Vec<_> = backends
        .iter()
        .map(|backend| {
            let set = backend.state.endpoints.load();
            let draining = set.all.iter().filter(|endpoint| endpoint.draining).count();
            let each: Vec<_> = set
                .all
                .iter()
                .take(left)
                .map(|endpoint| (endpoint.address.to_string(), endpoint.stats.is_ejected()))
                .collect();
            left -= each.len();
            EndpointTotals {
                backend: Arc::clone(&backend.key),
                serving: set.all.len() - draining,
                draining,
                ejected: set.all.iter().filter(|endpoint| endpoint.stats.is_ejected()).count(),
                each,
            }
        })
        .collect();
    totals.sort_by(|a, b| a.backend.cmp(&b.backend));
    totals
}

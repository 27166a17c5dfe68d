//! TrafficPolicy and MeshPolicy as the sidecar reads them.

use heddle_api::{
    SYSTEM_NAMESPACE,
    resources::{self, Duration, Retries, RetryCondition},
    v1,
};

use super::Mesh;
use crate::object::Name;

/// What a namespace's MeshPolicy says, the mesh's default behind it field by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Defaults {
    pub modes: Modes,
    /// What the namespace says of itself, without the mesh's default.
    pub own: Modes,
    pub opaque_ports: Vec<u32>,
    pub access_log: v1::AccessLog,
}

/// Modes of mTLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Modes {
    pub mtls: v1::MtlsMode,
    /// Ports that differ.
    pub ports: Vec<(u16, v1::MtlsMode)>,
}

impl Modes {
    /// Of policies, the first of which goes first.
    fn of<'a>(specs: impl Iterator<Item = &'a resources::MeshPolicySpec> + Clone) -> Self {
        let ports = specs.clone().find_map(|spec| spec.ports.as_ref()).into_iter().flatten();
        let mut ports: Vec<_> = ports.map(|port| (port.port.get(), mode(port.mtls))).collect();
        // Named twice, the first holds.
        ports.sort_by_key(|(port, _)| *port);
        ports.dedup_by_key(|(port, _)| *port);
        let mtls = specs.into_iter().find_map(|spec| spec.mtls);
        Self { mtls: mtls.map_or(v1::MtlsMode::Permissive, mode), ports }
    }

    /// The mode of a pod's port.
    pub(super) fn at(&self, port: u16) -> v1::MtlsMode {
        self.ports.iter().find(|(number, _)| *number == port).map_or(self.mtls, |(_, mode)| *mode)
    }
}

impl Defaults {
    /// Whether who sends to a port that has no sidecar is to send nothing. The mesh's default asks that of what could have a
    /// sidecar alone: the API server, a database outside or a pod on its node's network never can.
    pub(super) fn must_be_meshed(&self, port: u16, could_be: bool) -> bool {
        let strict = |modes: &Modes| modes.at(port) == v1::MtlsMode::Strict;
        strict(&self.modes) && (could_be || strict(&self.own))
    }
}

impl Mesh {
    /// What holds in a namespace.
    pub(super) fn defaults(&self, namespace: &str) -> Defaults {
        let of = |namespace: &str| self.mesh_policies.get(namespace)?.values().next();
        let specs = || [of(namespace), of(SYSTEM_NAMESPACE)].into_iter().flatten().map(|policy| &policy.spec);
        let mut opaque_ports: Vec<u32> = specs()
            .find_map(|spec| spec.opaque_ports.as_ref())
            .into_iter()
            .flatten()
            .map(|port| u32::from(port.get()))
            .collect();
        opaque_ports.sort_unstable();
        opaque_ports.dedup();
        let access_log = specs().find_map(|spec| spec.logs.as_ref()?.access);
        Defaults {
            modes: Modes::of(specs()),
            own: Modes::of(of(namespace).into_iter().map(|policy| &policy.spec)),
            opaque_ports,
            access_log: match access_log {
                Some(resources::AccessLogMode::Off) => v1::AccessLog::Off,
                Some(resources::AccessLogMode::Errors) | None => v1::AccessLog::Errors,
                Some(resources::AccessLogMode::All) => v1::AccessLog::All,
            },
        }
    }

    /// The policy by which a Service is called, if one is attached.
    pub(super) fn traffic_policy(&self, service: &Name) -> Option<v1::TrafficPolicy> {
        let policy = self.traffic_of.get(service)?.values().next()?;
        Some(traffic_policy(&policy.spec))
    }
}

const fn mode(mode: resources::MtlsMode) -> v1::MtlsMode {
    match mode {
        resources::MtlsMode::Permissive => v1::MtlsMode::Permissive,
        resources::MtlsMode::Strict => v1::MtlsMode::Strict,
        resources::MtlsMode::Disabled => v1::MtlsMode::Disabled,
    }
}

fn traffic_policy(spec: &resources::TrafficPolicySpec) -> v1::TrafficPolicy {
    let algorithm = spec.load_balancing.as_ref().map(|balancing| balancing.algorithm).unwrap_or_default();
    let timeouts = spec.timeouts.as_ref();
    let millis = |duration: Option<Duration>| duration.map_or(0, Duration::as_millis);
    v1::TrafficPolicy {
        algorithm: match algorithm {
            resources::Algorithm::PeakEwma => v1::Algorithm::PeakEwma,
            resources::Algorithm::LeastRequest => v1::Algorithm::LeastRequest,
            resources::Algorithm::RoundRobin => v1::Algorithm::RoundRobin,
            resources::Algorithm::Random => v1::Algorithm::Random,
        }
        .into(),
        outlier_ejection: spec.outlier_ejection.as_ref().map(|ejection| v1::OutlierEjection {
            consecutive_failures: ejection.consecutive_failures.map_or(0, resources::Amount::get),
            base_ejection_ms: millis(ejection.base_ejection),
            max_ejected_percent: ejection.max_ejected_percent.map_or(0, resources::Share::get),
            interval_ms: millis(ejection.interval),
        }),
        retry: spec.retries.as_ref().map(retry),
        request_timeout_ms: timeouts.and_then(|t| t.request).map(Duration::as_millis),
        connect_timeout_ms: millis(timeouts.and_then(|t| t.connect)),
        idle_timeout_ms: millis(timeouts.and_then(|t| t.idle)),
    }
}

/// On what a retry happens when nobody says.
pub(super) const DEFAULT_CONDITIONS: [v1::RetryOn; 2] =
    [v1::RetryOn::ConnectFailure, v1::RetryOn::GatewayError];
/// Retries when nobody says how many.
pub(super) const DEFAULT_ATTEMPTS: u32 = 2;

fn retry(retries: &Retries) -> v1::RetryPolicy {
    let conditions = retries.on.as_ref().map_or_else(
        || DEFAULT_CONDITIONS.map(i32::from).to_vec(),
        |on| {
            let mut conditions: Vec<i32> =
                on.iter().map(|condition| self::condition(*condition).into()).collect();
            conditions.sort_unstable();
            conditions.dedup();
            conditions
        },
    );
    let backoff = retries.backoff.as_ref();
    let budget = retries.budget.as_ref();
    let millis = |duration: Option<Duration>| duration.map_or(0, Duration::as_millis);
    v1::RetryPolicy {
        attempts: retries.attempts.map_or(DEFAULT_ATTEMPTS, resources::Attempts::get),
        on: conditions,
        statuses: Vec::new(),
        per_try_timeout_ms: retries.per_try_timeout.map(Duration::as_millis),
        backoff_base_ms: millis(backoff.and_then(|b| b.base)),
        backoff_max_ms: millis(backoff.and_then(|b| b.max)),
        budget_percent: budget.and_then(|b| b.percent).map(resources::Percent::get),
        budget_min_per_second: budget.and_then(|b| b.min_per_second).map(resources::Attempts::get),
        any_method: retries.on.is_some(),
    }
}

const fn condition(condition: RetryCondition) -> v1::RetryOn {
    match condition {
        RetryCondition::ConnectFailure => v1::RetryOn::ConnectFailure,
        RetryCondition::Reset => v1::RetryOn::Reset,
        RetryCondition::ServerError => v1::RetryOn::RetryOn5xx,
        RetryCondition::GatewayError => v1::RetryOn::GatewayError,
        RetryCondition::TooManyRequests => v1::RetryOn::TooManyRequests,
    }
}

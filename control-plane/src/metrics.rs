//! The control plane's own metrics, in Prometheus form.

use std::sync::Arc;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Why somebody was refused. The words are the metric's labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Refused {
    /// TLS did not come about: no common parameters, our certificate refused, a timeout.
    Handshake,
    /// A client certificate of another authority, an expired one, or one that is no workload's.
    ClientCertificate,
    /// No client certificate where one is needed.
    NoClientCertificate,
    /// No join token.
    MalformedToken,
    /// A join token with a wrong signature.
    ForgedToken,
    /// A join token whose time is over.
    ExpiredToken,
    /// A join token of another authority or for another audience.
    ForeignToken,
    /// A pod that is not the caller's.
    ForeignPod,
    /// Another pod's Inbound.
    ForeignInbound,
    /// A pod that is not known.
    NoPod,
    /// A pod without the sidecar's annotation.
    NotMeshed,
    /// Asked before the objects were read.
    NotSynced,
    /// The API server could not be asked about a token.
    ReviewUnavailable,
    /// In a cluster, a renewal by certificate instead of token.
    RenewByToken,
    /// A message that breaks the protocol.
    BadRequest,
    /// More subscriptions than a sidecar may have.
    TooManySubscriptions,
    /// More connections than a pod may have.
    TooManyConnections,
    /// More connections without a client certificate than one address, or all together, may have; of the webhook too.
    TooManyUnidentified,
    /// A fault of the control plane.
    Internal,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    reason: Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    version: String,
}

/// All of them.
#[derive(Default)]
pub struct Metrics {
    registry: Registry,
    /// Connected discovery streams.
    pub streams: Gauge,
    /// Resources that somebody follows.
    pub resources: Gauge,
    /// Problems with the objects at present.
    pub problems: Gauge,
    /// Batches taken from the source.
    pub batches: Counter,
    /// Resources compiled again because of a change.
    pub compiled: Counter,
    /// Discovery responses.
    pub responses: Counter,
    /// Resources in them.
    pub resources_sent: Counter,
    /// Resources that a sidecar could not use.
    pub nacks: Counter,
    /// Workload certificates signed.
    pub certificates: Counter,
    /// When the certificate that signs ends, in seconds since the Unix epoch.
    pub root_expiry: Gauge,
    /// 1 when what the root's Secret holds cannot be used.
    pub root_unusable: Gauge,
    /// 1 for the replica that writes status.
    pub leader: Gauge,
    /// Discovery streams whose requests were made to wait.
    pub slowed: Counter,
    /// Status written to objects.
    pub status_writes: Counter,
    /// Discovery streams that were sent to other replicas.
    pub moved: Counter,
    refused: Family<RefusedLabels, Counter>,
    sidecars: Family<VersionLabels, Gauge>,
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let mut all = Self::default();
        let registry = &mut all.registry;
        let mut name = |name: &str, help: &str, metric: Registered| {
            let name = format!("heddle_control_plane_{name}");
            match metric {
                Registered::Gauge(gauge) => registry.register(name, help, gauge),
                Registered::Counter(counter) => registry.register(name, help, counter),
            }
        };
        name("streams", "Connected discovery streams", Registered::Gauge(all.streams.clone()));
        name("resources", "Resources that sidecars follow", Registered::Gauge(all.resources.clone()));
        name("problems", "Problems with the objects at present", Registered::Gauge(all.problems.clone()));
        name("batches", "Batches of changes taken from the source", Registered::Counter(all.batches.clone()));
        name("compiled", "Resources compiled because of a change", Registered::Counter(all.compiled.clone()));
        name("responses", "Discovery responses sent", Registered::Counter(all.responses.clone()));
        name(
            "resources_sent",
            "Resources in discovery responses",
            Registered::Counter(all.resources_sent.clone()),
        );
        name("nacks", "Resources that a sidecar could not use", Registered::Counter(all.nacks.clone()));
        name("certificates", "Workload certificates signed", Registered::Counter(all.certificates.clone()));
        name(
            "root_expiry_timestamp_seconds",
            "When the signing certificate ends",
            Registered::Gauge(all.root_expiry.clone()),
        );
        name(
            "root_unusable",
            "Whether the root's Secret cannot be used as it is",
            Registered::Gauge(all.root_unusable.clone()),
        );
        name("leader", "Whether this replica writes status", Registered::Gauge(all.leader.clone()));
        name(
            "slowed",
            "Discovery streams whose requests were made to wait, since they named too much too fast",
            Registered::Counter(all.slowed.clone()),
        );
        name("status_writes", "Status written to objects", Registered::Counter(all.status_writes.clone()));
        name(
            "moved",
            "Discovery streams ended so that another replica has them",
            Registered::Counter(all.moved.clone()),
        );
        registry.register(
            "heddle_control_plane_refused",
            "Connections and requests refused, by reason",
            all.refused.clone(),
        );
        registry.register(
            "heddle_control_plane_sidecars",
            "Connected discovery streams, by the sidecar's version",
            all.sidecars.clone(),
        );
        Arc::new(all)
    }

    /// How many streams sidecars of a version have; of versions that are gone nothing is left.
    pub fn sidecars(&self, version: &str, streams: usize) {
        let labels = VersionLabels { version: version.to_owned() };
        if streams == 0 {
            self.sidecars.remove(&labels);
        } else {
            self.sidecars.get_or_create(&labels).set(i64::try_from(streams).unwrap_or(i64::MAX));
        }
    }

    /// Counts a refusal.
    pub fn refused(&self, reason: Refused) {
        self.refused.get_or_create(&RefusedLabels { reason }).inc();
    }

    /// The text that Prometheus reads (OpenMetrics 1.0).
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _written = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

enum Registered {
    Gauge(Gauge),
    Counter(Counter),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_counted_by_its_reason() {
        let metrics = Metrics::new();
        metrics.refused(Refused::ForgedToken);
        let text = metrics.encode();
        assert!(text.contains("heddle_control_plane_refused_total{reason=\"ForgedToken\"} 1"), "{text}");
    }
}

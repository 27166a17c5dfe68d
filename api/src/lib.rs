//! What the parts of Heddle agree on: the wire protocol, the custom resource types, SPIFFE names, log levels. No I/O.
//!
//! Only this crate knows how a message is laid out on the wire or a policy in YAML. With the feature
//! `resources` off (as the sidecar has it) nothing of Kubernetes is compiled.

pub mod carrier;
pub mod identity;
pub mod log;
pub mod probe;
#[cfg(feature = "resources")]
pub mod resources;

/// The wire protocol `heddle.v1`, generated from `proto/heddle/v1/*.proto`, where its meaning is documented.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("heddle.v1");
}

/// The label domain of everything that Heddle writes on objects, and its API group.
pub const GROUP: &str = "heddle.dev";
/// Annotation of a Pod that has a sidecar; the value is `"true"`.
pub const SIDECAR_ANNOTATION: &str = "heddle.dev/sidecar";
/// The user that sidecars run as, and whose traffic is therefore not captured (contract).
pub const PROXY_UID: u32 = 2102;
/// The namespace whose MeshPolicy is the mesh's default.
pub const SYSTEM_NAMESPACE: &str = "heddle-system";

/// The ports of a sidecar (contract: users type them).
pub mod ports {
    /// Outbound capture, and explicit mode.
    pub const OUTBOUND: u16 = 15001;
    /// Inbound capture: plaintext.
    pub const INBOUND: u16 = 15006;
    /// The mesh: mTLS from other sidecars.
    pub const MESH: u16 = 15008;
    /// Admin: `/metrics`, `/config`, `/log-level`.
    pub const ADMIN: u16 = 15000;
    /// `/ready`, `/metrics`, `/probe/…` for kubelet and Prometheus.
    pub const METRICS: u16 = 15020;
    /// Nobody listens there: where a sidecar's rules are in place, its own connection to this port of loopback comes
    /// out at [`METRICS`], and that is how it knows.
    pub const REDIRECT_CHECK: u16 = 15009;
    /// The control plane: `Join` and discovery.
    pub const DISCOVERY: u16 = 15010;
    /// All ports on which a sidecar listens; nothing dials them for an application.
    pub const SIDECAR: [u16; 5] = [OUTBOUND, INBOUND, MESH, ADMIN, METRICS];
}

/// Ports that are opaque unless declared: the server speaks first there, or the protocol is known not to be HTTP
/// (SMTP, MySQL, PostgreSQL, Redis, Elasticsearch transport, memcached, MongoDB).
pub const OPAQUE_PORTS: [u16; 8] = [25, 587, 3306, 5432, 6379, 9300, 11211, 27017];

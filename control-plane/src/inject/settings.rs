//! What every sidecar of an installation has in common.

use std::collections::BTreeMap;

use heddle_api::{PROXY_UID, ports};
use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity};

use super::quantity::Amount;

/// The same for all pods; annotations change some of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The sidecar's image.
    pub image: String,
    /// Whether it is pulled anew; none: as Kubernetes decides by the tag.
    pub image_pull_policy: Option<String>,
    /// `https://HOST:PORT` of the control plane.
    pub control_plane: String,
    /// The ConfigMap of every namespace with labelled pods that holds the roots, at key `ca.pem`.
    pub ca_config_map: String,
    /// Whom the sidecar's token is for.
    pub token_audience: String,
    /// The user that sidecars run as.
    pub proxy_uid: u32,
    /// What they log.
    pub log_level: String,
    /// What they ask for and may use. No CPU limit by default: one would throttle the application's latency.
    pub resources: ResourceRequirements,
    /// What the version label says.
    pub version: String,
}

/// The key of [`Settings::ca_config_map`].
pub const CA_KEY: &str = "ca.pem";
/// The ConfigMap's name by default.
pub const CA_CONFIG_MAP: &str = "heddle-ca";
/// Whom tokens are for.
pub const TOKEN_AUDIENCE: &str = "heddle.dev";

impl Default for Settings {
    fn default() -> Self {
        let version = env!("CARGO_PKG_VERSION");
        Self {
            image: format!("heddle-proxy:{version}"),
            image_pull_policy: None,
            control_plane: control_plane(heddle_api::SYSTEM_NAMESPACE),
            ca_config_map: CA_CONFIG_MAP.to_owned(),
            token_audience: TOKEN_AUDIENCE.to_owned(),
            proxy_uid: PROXY_UID,
            log_level: "info".to_owned(),
            resources: ResourceRequirements {
                requests: Some(quantities(&[("cpu", "50m"), ("memory", "64Mi")])),
                limits: Some(quantities(&[("memory", "512Mi")])),
                claims: None,
            },
            version: version.to_owned(),
        }
    }
}

/// Where the control plane is that was installed in `namespace`.
#[must_use]
pub fn control_plane(namespace: &str) -> String {
    format!("https://heddle-control-plane.{namespace}.svc:{}", ports::DISCOVERY)
}

/// Reads a container's `resources` from JSON. What no API server would take is refused here, where it is known whose
/// mistake it is, and not at each pod.
///
/// # Errors
/// With the field.
pub fn resources(json: &str) -> Result<ResourceRequirements, String> {
    let value: serde_json::Value = serde_json::from_str(json).map_err(|error| format!("no JSON: {error}"))?;
    let fields = value.as_object().ok_or("no JSON object of requests and limits")?;
    if let Some(other) = fields.keys().find(|key| !matches!(key.as_str(), "requests" | "limits")) {
        return Err(format!("{other} is none of requests and limits"));
    }
    let read: ResourceRequirements = serde_json::from_value(value).map_err(|error| error.to_string())?;
    for (side, all) in [("requests", &read.requests), ("limits", &read.limits)] {
        for (name, quantity) in all.iter().flatten() {
            let kind = kind(name).ok_or_else(|| {
                format!(
                    "{side}.{name}: there is no such resource; cpu, memory, ephemeral-storage and hugepages-SIZE are, and \
                     extended ones as example.org/name"
                )
            })?;
            if Amount::parse(&quantity.0).is_none() {
                return Err(format!(
                    "{side}.{name}: {:?} is not a quantity such as 100m or 256Mi",
                    quantity.0
                ));
            }
            let limit = read.limits.as_ref().and_then(|limits| limits.get(name));
            let limited = limit.map(|limit| Amount::parse(&limit.0));
            if side == "requests" && kind == Kind::Whole && limited != Some(Amount::parse(&quantity.0)) {
                return Err(format!("requests.{name}: limits.{name} must be the same"));
            }
        }
    }
    if let Some((name, request, limit)) = excess(&read) {
        return Err(format!("requests.{name}: {request} is more than limits.{name}, {limit}"));
    }
    Ok(read)
}

/// The first resource of which more is requested than the limit is, with both.
pub(super) fn excess(resources: &ResourceRequirements) -> Option<(&str, &str, &str)> {
    let (requests, limits) = (resources.requests.as_ref()?, resources.limits.as_ref()?);
    requests.iter().find_map(|(name, request)| {
        let limit = limits.get(name)?;
        let more = Amount::parse(&request.0)? > Amount::parse(&limit.0)?;
        more.then_some((name.as_str(), request.0.as_str(), limit.0.as_str()))
    })
}

/// How a resource is given out.
#[derive(PartialEq)]
enum Kind {
    /// What nobody uses, others may.
    Shared,
    /// As much as is requested, and no more.
    Whole,
}

/// As the API server knows resources of containers.
fn kind(name: &str) -> Option<Kind> {
    match name.split_once('/') {
        None if matches!(name, "cpu" | "memory" | "ephemeral-storage") => Some(Kind::Shared),
        None => name.starts_with("hugepages-").then_some(Kind::Whole),
        Some((domain, of_domain)) => {
            let own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
            (!own && !domain.is_empty() && !of_domain.is_empty()).then_some(Kind::Whole)
        }
    }
}

pub(super) fn quantities(all: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
    all.iter().map(|&(name, quantity)| (name.to_owned(), Quantity(quantity.to_owned()))).collect()
}

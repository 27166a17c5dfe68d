//! What every sidecar of an installation has in common.

use std::{collections::BTreeMap, sync::LazyLock};

use heddle_api::{PROXY_UID, ports};
use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity};
use regex::Regex;

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
            if !is_quantity(&quantity.0) {
                return Err(format!(
                    "{side}.{name}: {:?} is not a quantity such as 100m or 256Mi",
                    quantity.0
                ));
            }
        }
    }
    Ok(read)
}

/// By the API server's own pattern; a resource is never negative.
pub(super) fn is_quantity(text: &str) -> bool {
    static PATTERN: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"^[0-9]+(\.[0-9]*)?([numkMGTPE]|[KMGTPE]i|[eE][-+]?[0-9]+)?$").ok());
    PATTERN.as_ref().is_some_and(|pattern| pattern.is_match(text))
}

pub(super) fn quantities(all: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
    all.iter().map(|&(name, quantity)| (name.to_owned(), Quantity(quantity.to_owned()))).collect()
}

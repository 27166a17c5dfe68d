//! Not written yet.

/// Load and health of one endpoint.
#[derive(Debug, Default)]
pub struct EndpointStats;

/// A backend's cursor and ejection count.
#[derive(Debug, Default)]
pub struct BalancerState;

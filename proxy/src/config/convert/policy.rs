//! How a backend's clients behave.

use std::time::Duration;

use heddle_api::v1;

use super::{ConvertError, Within, each, enumeration};
use crate::config::{Algorithm, Ejection, Policy, RetryPolicy, policy::StatusSet};

/// Checks a TrafficPolicy; an absent one is the default.
pub(super) fn policy(message: Option<&v1::TrafficPolicy>) -> Result<Policy, ConvertError> {
    let default = Policy::default();
    let Some(message) = message else { return Ok(default) };
    let algorithm = match enumeration(message.algorithm, v1::Algorithm::Unspecified) {
        v1::Algorithm::Unspecified | v1::Algorithm::PeakEwma => Algorithm::PeakEwma,
        v1::Algorithm::LeastRequest => Algorithm::LeastRequest,
        v1::Algorithm::RoundRobin => Algorithm::RoundRobin,
        v1::Algorithm::Random => Algorithm::Random,
    };
    Ok(Policy {
        algorithm,
        ejection: ejection(message.outlier_ejection.as_ref()).within("outlier_ejection")?,
        retry: message.retry.as_ref().map_or(Ok(default.retry), retry).within("retry")?,
        request_timeout: timeout(message.request_timeout_ms),
        connect_timeout: or_default(message.connect_timeout_ms, default.connect_timeout),
        idle_timeout: or_default(message.idle_timeout_ms, default.idle_timeout),
    })
}

fn ejection(message: Option<&v1::OutlierEjection>) -> Result<Ejection, ConvertError> {
    let default = Ejection::default();
    let Some(message) = message else { return Ok(default) };
    if message.max_ejected_percent > 100 {
        let problem = format!("{} is more than 100", message.max_ejected_percent);
        return Err(ConvertError::new("max_ejected_percent", problem));
    }
    let number = |given: u32, default: u32| if given == 0 { default } else { given };
    Ok(Ejection {
        consecutive_failures: number(message.consecutive_failures, default.consecutive_failures),
        base: or_default(message.base_ejection_ms, default.base),
        max_percent: number(message.max_ejected_percent, default.max_percent),
        interval: or_default(message.interval_ms, default.interval),
    })
}

/// Checks a retry policy. Where it names no condition at all, the default ones hold.
pub(super) fn retry(message: &v1::RetryPolicy) -> Result<RetryPolicy, ConvertError> {
    let default = RetryPolicy::default();
    let mut policy = RetryPolicy {
        attempts: message.attempts,
        any_method: message.any_method,
        per_try_timeout: timeout(message.per_try_timeout_ms),
        backoff_base: or_default(message.backoff_base_ms, default.backoff_base),
        budget_percent: message.budget_percent.unwrap_or(default.budget_percent),
        budget_min_per_second: message.budget_min_per_second.unwrap_or(default.budget_min_per_second),
        ..default
    };
    policy.backoff_max = or_default(message.backoff_max_ms, policy.backoff_max.max(policy.backoff_base));
    if policy.backoff_max < policy.backoff_base {
        return Err(ConvertError::new("backoff_max_ms", "is less than the first pause"));
    }
    if !message.on.is_empty() || !message.statuses.is_empty() {
        policy.on_connect_failure = false;
        policy.on_reset = false;
        policy.on_status = StatusSet::EMPTY;
    }
    for &number in &message.on {
        match enumeration(number, v1::RetryOn::Unspecified) {
            // A condition of the future: not to try again is what is always safe.
            v1::RetryOn::Unspecified => {}
            v1::RetryOn::ConnectFailure => policy.on_connect_failure = true,
            v1::RetryOn::Reset => policy.on_reset = true,
            v1::RetryOn::RetryOn5xx => policy.on_status = policy.on_status.with_server_errors(),
            v1::RetryOn::GatewayError => {
                policy.on_status = policy.on_status.with(502).with(503).with(504);
            }
            v1::RetryOn::TooManyRequests => policy.on_status = policy.on_status.with(429),
        }
    }
    each("statuses", &message.statuses, |&code| match u16::try_from(code) {
        Ok(code @ 400..600) => {
            policy.on_status = policy.on_status.with(code);
            Ok(())
        }
        _ => Err(ConvertError::new("", format!("{code} is not a status from 400 to 599"))),
    })?;
    Ok(policy)
}

/// 0 is none, as the Gateway API has it.
fn timeout(milliseconds: Option<u64>) -> Option<Duration> {
    milliseconds.filter(|ms| *ms != 0).map(Duration::from_millis)
}

fn or_default(milliseconds: u64, default: Duration) -> Duration {
    if milliseconds == 0 { default } else { Duration::from_millis(milliseconds) }
}

//! Whether a request is tried again, when, and out of which budget. Never sees a socket.
//!
//! A request that an application may have received is repeated only if its method is safe to repeat, or if the user
//! named the conditions; what provably was never sent may always go elsewhere.

mod budget;
pub mod replay;

use std::time::Duration;

pub use budget::Budget;
use http::{Method, StatusCode};
pub use replay::ReplayBody;

use crate::config::RetryPolicy;

/// How a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection could not be made.
    Connect,
    /// Provably not received: the stream was refused (REFUSED_STREAM, GOAWAY) or never opened.
    NotSent,
    /// The stream or connection ended before a response.
    Reset,
    /// The response's status.
    Status(StatusCode),
    /// No response within the time of one try. Counts as the 504 that it would become.
    Timeout,
}

/// Whether a try that failed may be repeated; `attempt` is the number of retries made so far. The budget is asked
/// apart from this, and so is the body ([`ReplayBody::again`]).
#[must_use]
pub fn may_retry(policy: &RetryPolicy, method: &Method, failure: Failure, attempt: u32) -> bool {
    if attempt >= policy.attempts {
        return false;
    }
    let repeatable = policy.any_method || [Method::GET, Method::HEAD, Method::OPTIONS].contains(method);
    match failure {
        Failure::NotSent => true,
        Failure::Connect => policy.on_connect_failure,
        Failure::Reset => policy.on_reset && repeatable,
        Failure::Status(status) => policy.on_status.contains(status) && repeatable,
        Failure::Timeout => policy.on_status.contains(StatusCode::GATEWAY_TIMEOUT) && repeatable,
    }
}

/// The pause before the retry after `attempt` retries: anything up to the base doubled that often, or up to the
/// maximum (full jitter, so that callers who failed together do not come back together).
#[must_use]
pub fn backoff(policy: &RetryPolicy, attempt: u32) -> Duration {
    let doubled = policy.backoff_base.saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX));
    doubled.min(policy.backoff_max).mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::policy::StatusSet;

    const FAILURES: [Failure; 5] = [
        Failure::Connect,
        Failure::NotSent,
        Failure::Reset,
        Failure::Status(StatusCode::SERVICE_UNAVAILABLE),
        Failure::Timeout,
    ];

    fn retried(policy: &RetryPolicy, method: &Method) -> Vec<Failure> {
        FAILURES.into_iter().filter(|failure| may_retry(policy, method, *failure, 0)).collect()
    }

    #[test]
    fn a_post_that_may_have_been_received_is_not_repeated() {
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::CONNECT] {
            assert_eq!(
                retried(&RetryPolicy::default(), &method),
                [Failure::Connect, Failure::NotSent],
                "{method}"
            );
        }
    }

    #[test]
    fn safe_methods_are_repeated_on_gateway_errors_but_not_on_resets() {
        let policy = RetryPolicy::default();
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            let expected: Vec<_> = FAILURES.into_iter().filter(|f| *f != Failure::Reset).collect();
            assert_eq!(retried(&policy, &method), expected, "{method}");
        }
        assert!(!may_retry(&policy, &Method::GET, Failure::Status(StatusCode::INTERNAL_SERVER_ERROR), 0));
        assert!(!may_retry(&policy, &Method::GET, Failure::Status(StatusCode::OK), 0));
    }

    #[test]
    fn conditions_that_the_user_named_hold_for_any_method() {
        let policy = RetryPolicy {
            any_method: true,
            on_reset: true,
            on_connect_failure: false,
            on_status: StatusSet::EMPTY.with(503),
            ..RetryPolicy::default()
        };
        assert_eq!(
            retried(&policy, &Method::POST),
            [Failure::NotSent, Failure::Reset, Failure::Status(StatusCode::SERVICE_UNAVAILABLE)]
        );
    }

    #[test]
    fn attempts_run_out() {
        let policy = RetryPolicy { attempts: 2, ..RetryPolicy::default() };
        assert!(may_retry(&policy, &Method::GET, Failure::NotSent, 1));
        assert!(!may_retry(&policy, &Method::GET, Failure::NotSent, 2));
        let none = RetryPolicy { attempts: 0, ..policy };
        assert!(!may_retry(&none, &Method::GET, Failure::NotSent, 0));
    }

    #[test]
    fn pauses_double_up_to_the_maximum_and_are_spread_over_the_whole() {
        let policy = RetryPolicy::default();
        for (attempt, ceiling) in [(0, 25), (1, 50), (2, 100), (3, 200), (4, 250), (40, 250), (u32::MAX, 250)]
        {
            let pauses: Vec<_> = (0..500).map(|_| backoff(&policy, attempt)).collect();
            let ceiling = Duration::from_millis(ceiling);
            assert!(pauses.iter().all(|pause| *pause <= ceiling));
            assert!(pauses.iter().any(|pause| *pause > ceiling / 2), "attempt {attempt}");
            assert!(pauses.iter().any(|pause| *pause < ceiling / 2), "attempt {attempt}");
        }
    }
}

//! How the clients of a backend behave: algorithm, ejection, retries, timeouts.

use std::time::Duration;

use http::StatusCode;

/// A compiled TrafficPolicy; [`Policy::default`] is what holds without any.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// How an endpoint is picked.
    pub algorithm: Algorithm,
    /// When an endpoint is left out.
    pub ejection: Ejection,
    /// What is tried again.
    pub retry: RetryPolicy,
    /// Of the whole exchange; none by default.
    pub request_timeout: Option<Duration>,
    /// Of a connection's making, handshakes included.
    pub connect_timeout: Duration,
    /// Of a TCP connection without a byte either way.
    pub idle_timeout: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::PeakEwma,
            ejection: Ejection::default(),
            retry: RetryPolicy::default(),
            request_timeout: None,
            connect_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(3600),
        }
    }
}

/// How an endpoint is picked among those that may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The better of two random ones by peak-sensitive latency average times load.
    PeakEwma,
    /// The better of two random ones by requests in flight.
    LeastRequest,
    /// Each in turn, by weight.
    RoundRobin,
    /// Any, by weight.
    Random,
}

/// When an endpoint is left out of balancing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Failures in a row: 5xx, resets, failed connects, timeouts.
    pub consecutive_failures: u32,
    /// The n-th ejection in a row lasts n times this, at most five minutes (or once this, where that is longer).
    pub base: Duration,
    /// At most this share of a backend's endpoints is out at once.
    pub max_percent: u32,
    /// An endpoint that behaves forgets one of its past ejections each time this passes.
    pub interval: Duration,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            base: Duration::from_secs(30),
            max_percent: 50,
            interval: Duration::from_secs(10),
        }
    }
}

/// What is tried again, and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Tries after the first.
    pub attempts: u32,
    /// When the connection could not be made. What provably was not sent is retried in any case while attempts last.
    pub on_connect_failure: bool,
    /// When the stream was reset before a response.
    pub on_reset: bool,
    /// On these answers.
    pub on_status: StatusSet,
    /// Any method, because the user said so; otherwise resets and statuses retry GET, HEAD and OPTIONS alone.
    pub any_method: bool,
    /// Of each try.
    pub per_try_timeout: Option<Duration>,
    /// First pause; doubles each time, with full jitter.
    pub backoff_base: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// Retries may add this share to the requests …
    pub budget_percent: u32,
    /// … or this many a second, whichever is more.
    pub budget_min_per_second: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 2,
            on_connect_failure: true,
            on_reset: false,
            on_status: StatusSet::GATEWAY_ERRORS,
            any_method: false,
            per_try_timeout: None,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            budget_percent: 20,
            budget_min_per_second: 10,
        }
    }
}

/// A set of status codes from 400 to 599, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusSet([u64; 4]);

impl StatusSet {
    /// None.
    pub const EMPTY: Self = Self([0; 4]);
    /// 502, 503, 504.
    pub const GATEWAY_ERRORS: Self = Self::EMPTY.with(502).with(503).with(504);

    /// Adds one; codes outside 400 to 599 are not retried and stay out.
    #[must_use]
    pub const fn with(mut self, code: u16) -> Self {
        if code >= 400 && code < 600 {
            let bit = (code - 400) as usize;
            self.0[bit / 64] |= 1 << (bit % 64);
        }
        self
    }

    /// Adds 500 to 599.
    #[must_use]
    pub fn with_server_errors(self) -> Self {
        (500..600).fold(self, Self::with)
    }

    /// Whether the code is in it.
    #[must_use]
    pub fn contains(&self, status: StatusCode) -> bool {
        let bit = usize::from(status.as_u16()).wrapping_sub(400);
        bit < 200 && self.0[bit / 64] & (1 << (bit % 64)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_set_holds_what_was_put_in_and_nothing_else() {
        let set = StatusSet::GATEWAY_ERRORS.with(429).with(200);
        let held: Vec<u16> =
            (100..1000).filter(|&code| set.contains(StatusCode::from_u16(code).unwrap())).collect();
        assert_eq!(held, [429, 502, 503, 504]);
        assert!(StatusSet::EMPTY.with_server_errors().contains(StatusCode::from_u16(599).unwrap()));
    }
}

//! The tries of one request or connection, whatever is sent: where the next one goes, what an ended one says of its
//! endpoint, and whether there is another, within policy, time and budget.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{Method, Response};
use smallvec::SmallVec;
use tokio::time::{Instant, sleep};

use super::{body::ResponseBody, http::Refused};
use crate::{
    balance::{self, LoadGuard, Outcome, Picked},
    carrier::{SendError, Sent},
    config::{Backend, Endpoint, RetryPolicy},
    reason::Reason,
    retry::{self, Failure},
    worker::Worker,
};

/// What was tried so far.
pub struct Tries<'a> {
    worker: &'a Worker,
    backend: &'a Arc<Backend>,
    policy: &'a RetryPolicy,
    deadline: Option<Instant>,
    tried: SmallVec<[SocketAddr; 4]>,
    retries: u32,
    /// Before the next one.
    pause: Duration,
}

impl<'a> Tries<'a> {
    /// Before the first; counts the request into the backend's budget.
    pub fn begin(
        worker: &'a Worker,
        backend: &'a Arc<Backend>,
        policy: &'a RetryPolicy,
        deadline: Option<Instant>,
    ) -> Self {
        backend.state.budget.deposit();
        let (tried, retries, pause) = (SmallVec::new(), 0, Duration::ZERO);
        Self { worker, backend, policy, deadline, tried, retries, pause }
    }

    /// How many there were, the one under way included.
    pub fn count(&self) -> u32 {
        self.retries + 1
    }

    /// Whether there is anything to keep the request for.
    pub fn may_follow(&self) -> bool {
        self.retries < self.policy.attempts
    }

    /// The endpoint of the next one.
    ///
    /// # Errors
    /// When the backend has none.
    pub fn pick(&self) -> Result<Picked, Refused> {
        balance::pick(self.backend, &self.backend.state.endpoints.load(), &self.tried).ok_or_else(|| {
            Refused::new(Reason::NoEndpoints, format!("{} has no endpoints", self.backend.key))
        })
    }

    /// Balancing learns how one went.
    pub fn judge(&self, endpoint: &Endpoint, load: &mut LoadGuard, outcome: Outcome, latency: Duration) {
        if load.judge(self.backend, outcome, latency) {
            self.worker.metrics.backend(&self.backend.key).ejection();
            tracing::info!(
                backend = %self.backend.key, endpoint = %endpoint.address, pod = %endpoint.pod, "endpoint ejected"
            );
        }
    }

    /// Why nobody but the sidecar can answer, after this one.
    pub fn refused(&self, endpoint: &Endpoint, error: &SendError) -> Refused {
        Refused::new(error.reason, format!("{} at {}: {}", self.backend.key, endpoint.address, error.source))
    }

    /// One ended; none: it did not fail. Whether policy and time want another. One that could only begin when the time
    /// is over would cost the answer that is there, and be blamed on an endpoint that had no time.
    pub fn ended(&mut self, method: &Method, failure: Option<Failure>) -> bool {
        if self.retries > 0 {
            self.worker.metrics.backend(&self.backend.key).retry(failure.is_none());
        }
        let wanted =
            failure.is_some_and(|failure| retry::may_retry(self.policy, method, failure, self.retries));
        if wanted {
            self.pause = retry::backoff(self.policy, self.retries);
        }
        wanted && self.deadline.is_none_or(|at| Instant::now() + self.pause < at)
    }

    /// Whether the budget has another.
    pub fn granted(&self) -> bool {
        let granted = self.backend.state.budget.withdraw(self.policy);
        if !granted {
            self.worker.metrics.backend(&self.backend.key).budget_exhausted();
        }
        granted
    }

    /// Waits before the next one, which avoids `address`.
    pub async fn pause(&mut self, address: Option<SocketAddr>) {
        self.tried.extend(address);
        sleep(self.pause).await;
        self.retries += 1;
    }
}

/// What an answer says of its endpoint: a server error, or gRPC's UNAVAILABLE without a message, speaks against it.
pub fn outcome_of(response: &Response<ResponseBody>) -> Outcome {
    let unavailable = || response.headers().get("grpc-status").is_some_and(|status| status == "14");
    if response.status().is_server_error() || unavailable() { Outcome::Failure } else { Outcome::Success }
}

/// What retrying makes of an answer; none: it is to be given.
pub fn failure_in(response: &Response<ResponseBody>) -> Option<Failure> {
    (response.status().as_u16() >= 400).then(|| Failure::Status(response.status()))
}

/// What an error says of its endpoint.
pub fn outcome_after(error: &SendError) -> Outcome {
    match error.reason {
        // The client's own fault, the word of a policy, or our own want of a certificate.
        Reason::BadRequest | Reason::AccessDenied | Reason::NotReady => Outcome::Neutral,
        _ => Outcome::Failure,
    }
}

/// What retrying makes of an error.
pub fn failure_of(error: &SendError) -> Failure {
    match (error.reason, error.sent) {
        (Reason::ConnectFailed | Reason::ConnectTimeout, _) => Failure::Connect,
        // Another endpoint may do better: nothing was sent to this one.
        (_, Sent::No) => Failure::NotSent,
        (Reason::RequestTimeout, Sent::Maybe) => Failure::Timeout,
        (_, Sent::Maybe) => Failure::Reset,
    }
}

/// No answer in the time that policy gives.
pub fn late() -> SendError {
    SendError { reason: Reason::RequestTimeout, sent: Sent::Maybe, source: "no response in time".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_not_blamed_for_what_others_did() {
        let error = |reason| SendError { reason, sent: Sent::Maybe, source: String::new() };
        for (reason, outcome) in [
            (Reason::BadRequest, Outcome::Neutral),
            (Reason::AccessDenied, Outcome::Neutral),
            (Reason::NotReady, Outcome::Neutral),
            (Reason::UpstreamReset, Outcome::Failure),
            (Reason::RequestTimeout, Outcome::Failure),
            (Reason::PeerIdentity, Outcome::Failure),
        ] {
            assert_eq!(outcome_after(&error(reason)), outcome, "{reason}");
        }
    }
}

//! One request's tries: balance → send → judge, and again where that is safe and the budget allows it.

use std::{net::SocketAddr, sync::Arc};

use http::{Response, request};
use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};

use super::{
    body::{RequestBody, ResponseBody},
    exchange::{Decision, Exchange},
    http::Refused,
    record::Record,
    send::send,
};
use crate::{
    balance::{self, LoadGuard, Outcome, Picked},
    carrier::{SendError, Sent},
    config::{Backend, Endpoint},
    reason::Reason,
    retry::{self, Failure},
    worker::Worker,
};

/// An upstream's answer.
pub struct Reply {
    /// It.
    pub response: Response<ResponseBody>,
    /// Counts the request as in flight.
    pub load: LoadGuard,
}

/// One try: what came of it, whether that is a failure, and where it went.
struct Try {
    outcome: Result<Reply, Refused>,
    failure: Option<Failure>,
    address: Option<SocketAddr>,
}

/// Tries until there is an answer to give, within policy, budget and time.
///
/// # Errors
/// When the last try brought no answer.
pub async fn attempts(
    exchange: &Exchange<'_>,
    decision: &Decision<'_>,
    mut parts: request::Parts,
    mut body: RequestBody,
    deadline: Option<Instant>,
    record: &mut Record,
) -> Result<Reply, Refused> {
    let backend = decision.backend;
    let policy = decision.retry();
    let per_try = decision.per_try_timeout();
    let budget = &backend.state.budget;
    budget.deposit();
    let mut tried: SmallVec<[SocketAddr; 4]> = SmallVec::new();
    let mut attempt = 0;
    loop {
        // Kept for the next try, before this one consumes them.
        let spare = if attempt < policy.attempts { body.again().map(|b| (parts.clone(), b)) } else { None };
        let method = parts.method.clone();
        let limit = earliest(deadline, per_try.map(|limit| Instant::now() + limit));
        let Try { outcome, failure, address } =
            one_try(exchange, backend, parts, body, &tried, limit, record).await;
        let over = deadline.is_some_and(|at| Instant::now() >= at);
        let wanted = !over && failure.is_some_and(|f| retry::may_retry(policy, &method, f, attempt));
        // A body that has outgrown the replay buffer cannot be sent again.
        let spare = spare.filter(|(_, body)| wanted && body.again().is_some());
        let granted = spare.is_some() && budget.withdraw(policy);
        if attempt > 0 || (spare.is_some() && !granted) {
            let series = exchange.worker.metrics.backend(&backend.key);
            if attempt > 0 {
                series.retry(failure.is_none());
            }
            if spare.is_some() && !granted {
                series.budget_exhausted();
            }
        }
        let Some((next_parts, next_body)) = spare.filter(|_| granted) else {
            return outcome.map_err(|refused| refused.after(attempt + 1));
        };
        // An answer not worth giving ends its stream before the pause.
        drop(outcome);
        tried.extend(address);
        let pause = Instant::now() + retry::backoff(policy, attempt);
        tokio::time::sleep_until(deadline.map_or(pause, |at| at.min(pause))).await;
        (parts, body) = (next_parts, next_body);
        attempt += 1;
    }
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

async fn one_try(
    exchange: &Exchange<'_>,
    backend: &Arc<Backend>,
    parts: request::Parts,
    body: RequestBody,
    tried: &[SocketAddr],
    limit: Option<Instant>,
    record: &mut Record,
) -> Try {
    let picked = balance::pick(backend, &backend.state.endpoints.load(), tried);
    let Some(Picked { endpoint, mut load }) = picked else {
        let refused = Refused::new(Reason::NoEndpoints, format!("{} has no endpoints", backend.key));
        return Try { outcome: Err(refused), failure: None, address: None };
    };
    record.tried(endpoint.address, endpoint.identity.is_some());
    let started = Instant::now();
    let sending = send(exchange.worker, backend, &endpoint, parts, body, exchange.version);
    let result = match limit {
        Some(at) => timeout_at(at, sending).await.unwrap_or_else(|_| {
            let sentence = "no response in time".to_owned();
            Err(SendError { reason: Reason::RequestTimeout, sent: Sent::Maybe, source: sentence })
        }),
        None => sending.await,
    };
    let (outcome, failure) = match result {
        Ok((response, latency)) => {
            let failed = is_failure(&response);
            let judged = if failed { Outcome::Failure } else { Outcome::Success };
            note_ejection(exchange.worker, backend, &endpoint, load.judge(backend, judged, latency));
            let failure = (response.status().as_u16() >= 400).then(|| Failure::Status(response.status()));
            (Ok(Reply { response, load }), failure)
        }
        Err(error) => {
            // The client's own fault says nothing about the endpoint.
            let judged = if error.reason == Reason::BadRequest { Outcome::Neutral } else { Outcome::Failure };
            let ejected = load.judge(backend, judged, started.elapsed());
            note_ejection(exchange.worker, backend, &endpoint, ejected);
            let sentence = format!("{} at {}: {}", backend.key, endpoint.address, error.source);
            let refused = Refused::new(error.reason, sentence);
            (Err(refused), Some(failure_of(&error)))
        }
    };
    Try { outcome, failure, address: Some(endpoint.address) }
}

/// Counts and logs an ejection, if there was one.
pub fn note_ejection(worker: &Worker, backend: &Backend, endpoint: &Endpoint, ejected: bool) {
    if ejected {
        worker.metrics.backend(&backend.key).ejection();
        tracing::info!(backend = %backend.key, endpoint = %endpoint.address, pod = %endpoint.pod, "endpoint ejected");
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

/// Whether an answer speaks against its endpoint: a server error, or gRPC's UNAVAILABLE without a message.
fn is_failure(response: &Response<ResponseBody>) -> bool {
    response.status().is_server_error()
        || response.headers().get("grpc-status").is_some_and(|status| status == "14")
}

//! One request's tries: balance → send → judge, and again where that is safe and the budget allows it.

use std::{net::SocketAddr, sync::Arc};

use http::{Response, request};
use tokio::time::{Instant, timeout_at};

use super::{
    body::{RequestBody, ResponseBody},
    exchange::{Decision, Exchange},
    http::Refused,
    record::Record,
    send::send,
    tries::{self, Tries},
};
use crate::{
    balance::{LoadGuard, Picked},
    config::Backend,
    retry::Failure,
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
    let per_try = decision.per_try_timeout();
    let mut tries = Tries::begin(exchange.worker, backend, decision.retry(), deadline);
    loop {
        // Kept for the next try, before this one consumes them.
        let spare = if tries.may_follow() { body.again().map(|b| (parts.clone(), b)) } else { None };
        let method = parts.method.clone();
        let limit = earliest(deadline, per_try.map(|limit| Instant::now() + limit));
        let Try { outcome, failure, address } =
            one_try(exchange, backend, parts, body, &tries, limit, record).await;
        let wanted = tries.ended(&method, failure);
        // A body that has outgrown the replay buffer cannot be sent again.
        let spare = spare.filter(|(_, body)| wanted && body.again().is_some());
        let Some((next_parts, next_body)) = spare.filter(|_| tries.granted()) else {
            return outcome.map_err(|refused| refused.after(tries.count()));
        };
        // An answer not worth giving ends its stream before the pause.
        drop(outcome);
        tries.pause(address).await;
        (parts, body) = (next_parts, next_body);
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
    tries: &Tries<'_>,
    limit: Option<Instant>,
    record: &mut Record,
) -> Try {
    let Picked { endpoint, mut load } = match tries.pick() {
        Ok(picked) => picked,
        Err(refused) => return Try { outcome: Err(refused), failure: None, address: None },
    };
    record.tried(endpoint.address, endpoint.identity.is_some());
    let started = Instant::now();
    let sending = send(exchange.worker, backend, &endpoint, parts, body, exchange.version);
    let result = match limit {
        Some(at) => timeout_at(at, sending).await.unwrap_or_else(|_| Err(tries::late())),
        None => sending.await,
    };
    let (outcome, failure) = match result {
        Ok((response, latency)) => {
            tries.judge(&endpoint, &mut load, tries::outcome_of(&response), latency);
            let failure = tries::failure_in(&response);
            (Ok(Reply { response, load }), failure)
        }
        Err(error) => {
            tries.judge(&endpoint, &mut load, tries::outcome_after(&error), started.elapsed());
            (Err(tries.refused(&endpoint, &error)), Some(tries::failure_of(&error)))
        }
    };
    Try { outcome, failure, address: Some(endpoint.address) }
}

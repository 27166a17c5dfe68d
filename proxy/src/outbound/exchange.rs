//! One request through the mesh: routed here, tried by [`super::attempt`].

use std::{rc::Rc, sync::Arc, time::Duration};

use http::{HeaderValue, Response, Version, header, request};
use tokio::time::Instant;

use super::{
    attempt::{Reply, attempts},
    body::{RequestBody, ResponseBody},
    http::{ClientBody, Refused},
    mirror::Copy,
    record::Record,
};
use crate::{
    config::{Backend, Destination, Filter, RetryPolicy, Route, Rule, SplitEntry},
    plain::edge,
    reason::Reason,
    route::{self, Found, filter},
    worker::Worker,
};

/// What a request brings with it besides itself.
#[derive(Clone, Copy)]
pub struct Exchange<'a> {
    /// Who serves it.
    pub worker: &'a Rc<Worker>,
    /// The snapshot that it keeps to its end.
    pub destination: &'a Arc<Destination>,
    /// What the client spoke.
    pub version: Version,
    /// When its headers had come.
    pub started: Instant,
}

/// What routing decided.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// Whom it goes to.
    pub backend: &'a Arc<Backend>,
    /// What matched, if routes are attached.
    pub route: Option<&'a Route>,
    rule: Option<&'a Rule>,
    entry: Option<&'a SplitEntry>,
}

/// Either a backend or an answer.
pub enum Routed<'a> {
    /// Send it there; the request's filters were applied.
    To(Decision<'a>),
    /// A redirect.
    Answer(Box<Response<ResponseBody>>),
}

impl Decision<'_> {
    /// What is tried again.
    #[must_use]
    pub fn retry(&self) -> &RetryPolicy {
        self.rule.and_then(|rule| rule.retry.as_ref()).unwrap_or(&self.backend.policy.retry)
    }

    /// The time of the whole exchange.
    #[must_use]
    pub fn request_timeout(&self) -> Option<Duration> {
        self.rule.and_then(|rule| rule.request_timeout).or(self.backend.policy.request_timeout)
    }

    /// The time of each try.
    #[must_use]
    pub fn per_try_timeout(&self) -> Option<Duration> {
        let backend = self.rule.and_then(|rule| rule.backend_timeout);
        match (backend, self.retry().per_try_timeout) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The filters in force: the rule's, and those of its share.
    fn filters(&self) -> [&[Filter]; 2] {
        [self.rule.map_or(&[], |rule| &rule.filters), self.entry.map_or(&[], |entry| &entry.filters)]
    }

    /// Copies of the request that its mirror filters want.
    fn copies(&self, exchange: &Exchange<'_>, parts: &request::Parts) -> Vec<Copy> {
        let mirrors = self.filters().into_iter().flat_map(filter::mirrors);
        mirrors.map(|backend| Copy::new(exchange.worker, backend, parts, exchange.version)).collect()
    }

    /// Applies the response filters.
    pub fn filter_response(&self, response: &mut Response<ResponseBody>) {
        for filters in self.filters() {
            filter::response(response.headers_mut(), filters);
        }
    }
}

/// Finds the route and the backend, and applies the request's filters.
///
/// # Errors
/// When no route matches, or the one that does leads nowhere.
pub fn decide<'a>(destination: &'a Destination, parts: &mut request::Parts) -> Result<Routed<'a>, Refused> {
    let (route, rule) = match route::find(destination, parts) {
        Found::Rule { route, rule } => (route, rule),
        Found::Default => {
            let backend = destination.default.as_ref().ok_or_else(|| {
                Refused::new(Reason::NoBackend, format!("{} has no backend", destination.service))
            })?;
            return Ok(Routed::To(Decision { backend, route: None, rule: None, entry: None }));
        }
        Found::NoRoute => {
            return Err(Refused::new(
                Reason::NoRoute,
                format!("no route of {} matches {} {}", destination.service, parts.method, parts.uri.path()),
            ));
        }
    };
    if let Some(redirect) = filter::find_redirect(&rule.filters) {
        let mut response = filter::redirect(parts, redirect, Some(route)).map(|()| ResponseBody::empty());
        filter::response(response.headers_mut(), &rule.filters);
        return Ok(Routed::Answer(Box::new(response)));
    }
    let rewritten = |error: route::RewriteError| {
        Refused::new(Reason::BadRequest, format!("route {} cannot rewrite the request: {error}", route.name))
    };
    filter::request(parts, &rule.filters, Some(route)).map_err(rewritten)?;
    let entry = rule.split.pick().ok_or_else(|| {
        Refused::new(Reason::NoBackend, format!("route {} has no backend with a weight", route.name))
    })?;
    let backend = entry.backend.as_ref().ok_or_else(|| {
        Refused::new(
            Reason::NoBackend,
            format!("route {} names {}, which does not exist", route.name, entry.name),
        )
    })?;
    filter::request(parts, &entry.filters, Some(route)).map_err(rewritten)?;
    Ok(Routed::To(Decision { backend, route: Some(route), rule: Some(rule), entry: Some(entry) }))
}

/// Serves one request that is no upgrade.
///
/// # Errors
/// When nobody but the sidecar can answer.
pub async fn run(
    exchange: Exchange<'_>,
    parts: request::Parts,
    body: ClientBody,
) -> Result<Response<ResponseBody>, Refused> {
    let Exchange { worker, destination, version, started } = exchange;
    let (method, uri) = (parts.method.clone(), parts.uri.clone());
    let mut record = Record::new(worker, &destination.service, method, uri, version, started);
    let answered = routed(exchange, parts, body, &mut record).await;
    match answered {
        Ok(response) => Ok(response.map(|body| body.with_record(record))),
        Err(refused) => {
            record.refused(refused.reason);
            Err(refused)
        }
    }
}

async fn routed(
    exchange: Exchange<'_>,
    mut parts: request::Parts,
    body: ClientBody,
    record: &mut Record,
) -> Result<Response<ResponseBody>, Refused> {
    let decision = match decide(exchange.destination, &mut parts)? {
        Routed::To(decision) => decision,
        Routed::Answer(response) => {
            record.status = Some(response.status());
            return Ok(*response);
        }
    };
    record.routed(&decision.backend.key, decision.route.map(|route| &route.name));
    let deadline = decision.request_timeout().map(|limit| exchange.started + limit);
    let copies = decision.copies(&exchange, &parts);
    let body = RequestBody::new(body, decision.retry().attempts > 0, copies);
    let Reply { mut response, load } = attempts(&exchange, &decision, parts, body, deadline, record).await?;
    // Of a stream, only the time to its headers is limited (DESIGN.md, defaults).
    let deadline = deadline.filter(|_| !is_stream(&response));
    decision.filter_response(&mut response);
    record.status = Some(response.status());
    Ok(response.map(|body| body.with_load(load).with_deadline(deadline)))
}

/// Whether a response is one that goes on: then a timeout ends with its headers.
fn is_stream(response: &Response<ResponseBody>) -> bool {
    let event_stream = |value: &HeaderValue| value.as_bytes().starts_with(b"text/event-stream");
    edge::is_grpc(response.headers())
        || response.headers().get(header::CONTENT_TYPE).is_some_and(event_stream)
}

//! Connections that begin as HTTP/1 requests and go on as something else: CONNECT in explicit mode, and upgrades.

use std::rc::Rc;

use heddle_api::carrier::Form;
use http::{HeaderValue, Request, Response, request};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    attempt::note_ejection,
    body::ResponseBody,
    exchange::{Exchange, Routed, decide},
    http::{Refused, lookup},
    record::Record,
    send::peer,
    target::Name,
};
use crate::{
    balance::{self, Outcome, Picked},
    carrier::{self, SendError, Sent, Upgraded},
    plain,
    reason::Reason,
    relay::relay,
    worker::Worker,
};

/// The longest that an application may take to answer an upgrade, where no policy says less.
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);
/// How long hyper may take to hand over a connection whose answer is written.
const HANDOVER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// CONNECT: what follows is served like a captured connection to that name.
///
/// # Errors
/// When the name is none, or leads nowhere.
pub async fn connect(
    worker: &Rc<Worker>,
    parts: &request::Parts,
    on_upgrade: OnUpgrade,
) -> Result<Response<ResponseBody>, Refused> {
    let authority =
        parts.uri.authority().ok_or_else(|| Refused::new(Reason::NoDestination, "CONNECT to nothing"))?;
    let name = Name::of(authority, 443).map_err(|(reason, sentence)| Refused::new(reason, sentence))?;
    if name.address().is_some_and(|ip| worker.settings.is_own_port((ip, name.host_and_port().1).into())) {
        return Err(Refused::new(Reason::OwnPort, format!("{} is the sidecar itself", name.key)));
    }
    // Before the client is told yes.
    let slot = lookup(worker, &name.key).await?;
    let worker = Rc::clone(worker);
    let serving: std::pin::Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
        match timeout(HANDOVER_TIMEOUT, on_upgrade).await {
            Ok(Ok(io)) => super::to_slot(worker, TokioIo::new(io), slot).await,
            Ok(Err(error)) => tracing::debug!(%error, "the client of a CONNECT is gone"),
            Err(_) => tracing::debug!("a CONNECT was not taken up"),
        }
    });
    tokio::task::spawn_local(serving);
    Ok(Response::new(ResponseBody::empty()))
}

/// What came of an upgrade at its endpoint.
enum Answered {
    Tunnel(Response<()>, carrier::Tunnel),
    Plain(Response<()>, TokioIo<hyper::upgrade::Upgraded>),
    Declined(Box<Response<ResponseBody>>),
}

/// An upgrade (WebSocket and others): the client is told 101 only once the application said so.
///
/// # Errors
/// When nobody but the sidecar can answer. An upgrade is tried once: what it opens cannot be repeated.
pub async fn upgrade(
    exchange: Exchange<'_>,
    mut parts: request::Parts,
    protocol: &HeaderValue,
    on_upgrade: OnUpgrade,
) -> Result<Response<ResponseBody>, Refused> {
    let Exchange { worker, destination, version, started } = exchange;
    let (method, uri) = (parts.method.clone(), parts.uri.clone());
    let mut record = Record::new(worker, &destination.service, method, uri, version, started);
    let decision = match decide(destination, &mut parts) {
        Ok(Routed::To(decision)) => decision,
        Ok(Routed::Answer(response)) => {
            record.status = response.status();
            return Ok((*response).map(|body| body.with_record(record)));
        }
        Err(refused) => {
            record.refused(refused.reason);
            return Err(refused);
        }
    };
    let backend = decision.backend;
    record.routed(&backend.key, decision.route.map(|route| &route.name));
    let picked = balance::pick(backend, &backend.state.endpoints.load(), &[]);
    let Some(Picked { endpoint, mut load }) = picked else {
        record.refused(Reason::NoEndpoints);
        return Err(Refused::new(Reason::NoEndpoints, format!("{} has no endpoints", backend.key)));
    };
    record.tried(endpoint.address, endpoint.identity.is_some());
    let limit = decision.request_timeout().unwrap_or(ANSWER_TIMEOUT);
    let sent_at = Instant::now();
    let asking = ask(worker, backend, &endpoint, parts, protocol);
    let answered = timeout_at(started + limit, asking).await.unwrap_or_else(|_| {
        let source = "no answer to the upgrade in time".to_owned();
        Err(SendError { reason: Reason::RequestTimeout, sent: Sent::Maybe, source })
    });
    let outcome = if answered.is_ok() { Outcome::Success } else { Outcome::Failure };
    note_ejection(worker, backend, &endpoint, load.judge(backend, outcome, sent_at.elapsed()));
    let idle = backend.policy.idle_timeout;
    match answered {
        Ok(Answered::Declined(mut response)) => {
            decision.filter_response(&mut response);
            record.status = response.status();
            Ok((*response).map(|body| body.with_load(load).with_record(record)))
        }
        Ok(Answered::Tunnel(response, tunnel)) => {
            record.status = response.status();
            tokio::task::spawn_local(async move {
                if let Some(io) = handed_over(on_upgrade).await {
                    carrier::both_ways(io, tunnel, bytes::Bytes::new(), idle).await;
                }
                drop((load, record));
            });
            Ok(response.map(|()| ResponseBody::empty()))
        }
        Ok(Answered::Plain(response, upstream)) => {
            record.status = response.status();
            tokio::task::spawn_local(async move {
                if let Some(io) = handed_over(on_upgrade).await {
                    relay(io, upstream, bytes::Bytes::new(), idle).await;
                }
                drop((load, record));
            });
            Ok(response.map(|()| ResponseBody::empty()))
        }
        Err(error) => {
            record.refused(error.reason);
            let sentence = format!("{} at {}: {}", backend.key, endpoint.address, error.source);
            Err(Refused::new(error.reason, sentence))
        }
    }
}

/// The client's connection, once its 101 is written.
pub async fn handed_over(on_upgrade: OnUpgrade) -> Option<TokioIo<hyper::upgrade::Upgraded>> {
    match timeout(HANDOVER_TIMEOUT, on_upgrade).await {
        Ok(Ok(io)) => Some(TokioIo::new(io)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "the client of an upgrade is gone");
            None
        }
        Err(_) => None,
    }
}

async fn ask(
    worker: &Rc<Worker>,
    backend: &crate::config::Backend,
    endpoint: &crate::config::Endpoint,
    parts: request::Parts,
    protocol: &HeaderValue,
) -> Result<Answered, SendError> {
    let limit = backend.policy.connect_timeout;
    let request = Request::from_parts(parts, ());
    match peer(worker, endpoint, Form::Http1)? {
        Some(peer) => {
            let not_text = |_| SendError {
                reason: Reason::BadRequest,
                sent: Sent::No,
                source: "Upgrade names a protocol that is no text".to_owned(),
            };
            let protocol = protocol.to_str().map_err(not_text)?;
            Ok(match worker.carrier.upgrade(&peer, request, protocol, limit).await? {
                Upgraded::Switched(response, tunnel) => Answered::Tunnel(response, tunnel),
                Upgraded::Declined(response) => {
                    Answered::Declined(Box::new(response.map(ResponseBody::carrier)))
                }
            })
        }
        None => Ok(match worker.plain.upgrade(endpoint.address, request, protocol, limit).await? {
            plain::Upgrade::Switched(response, io) => {
                Answered::Plain(switched(response, protocol), TokioIo::new(io))
            }
            plain::Upgrade::Declined(response) => {
                Answered::Declined(Box::new(response.map(ResponseBody::plain)))
            }
        }),
    }
}

/// A 101 as an HTTP/1 client wants it.
pub fn switched(mut response: Response<()>, protocol: &HeaderValue) -> Response<()> {
    let headers = response.headers_mut();
    headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(http::header::UPGRADE, protocol.clone());
    response
}

//! Connections that begin as HTTP/1 requests and go on as something else: CONNECT in explicit mode, and upgrades.

use std::{rc::Rc, sync::Arc};

use heddle_api::carrier::Form;
use http::{HeaderValue, Request, Response, request};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use super::{
    body::ResponseBody,
    exchange::{Exchange, Routed, decide},
    http::{Refused, lookup},
    passthrough,
    record::Record,
    send::peer,
    target::Name,
    tries::{self, Tries},
    websocket::Offer,
};
use crate::{
    balance::{LoadGuard, Outcome, Picked},
    carrier::{self, SendError, Sent, Upgraded, copy::Socket},
    config::{Backend, Endpoint},
    detect::Rewind,
    metrics::{Direction, Flow},
    plain::{self, head::Listened},
    reason::Reason,
    relay::relay,
    store::Slot,
    worker::{Opened, Worker},
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
    opened: Rc<Opened>,
) -> Result<Response<ResponseBody>, Refused> {
    let authority =
        parts.uri.authority().ok_or_else(|| Refused::new(Reason::NoDestination, "CONNECT to nothing"))?;
    let name = Name::of(authority, 443).map_err(|(reason, sentence)| Refused::new(reason, sentence))?;
    if name.address().is_some_and(|ip| worker.settings.is_own_port((ip, name.host_and_port().1).into())) {
        return Err(Refused::new(Reason::OwnPort, format!("{} is the sidecar itself", name.key)));
    }
    // Before the client is told yes.
    let place = if name.dns_only {
        Place::Outside(name.key.into_owned())
    } else {
        Place::Known(lookup(worker, &name.key).await?)
    };
    let worker = Rc::clone(worker);
    let serving: std::pin::Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
        match timeout(HANDOVER_TIMEOUT, on_upgrade).await {
            Ok(Ok(io)) => match io.downcast::<TokioIo<Listened<Rewind<TcpStream>>>>() {
                // HTTP is over here, and with it what held for its connection.
                Ok(parts) => {
                    let (rest, io) = parts.io.into_inner().into_inner().into_parts();
                    io.limit_unread(None);
                    let early = bytes::Bytes::from([parts.read_buf, rest].concat());
                    place.serve(worker, Rewind::new(early, io), opened).await;
                }
                Err(io) => place.serve(worker, TokioIo::new(io), opened).await,
            },
            Ok(Err(error)) => tracing::debug!(%error, "the client of a CONNECT is gone"),
            Err(_) => tracing::debug!("a CONNECT was not taken up"),
        }
    });
    tokio::task::spawn_local(serving);
    Ok(Response::new(ResponseBody::empty()))
}

/// Where a CONNECT leads.
enum Place {
    /// What discovery says of it.
    Known(Arc<Slot>),
    /// Where DNS says that this name is, whatever the mesh calls so.
    Outside(String),
}

impl Place {
    async fn serve<T: Socket + Send + 'static>(self, worker: Rc<Worker>, io: T, opened: Rc<Opened>) {
        match self {
            Self::Known(slot) => super::to_slot(worker, io, slot, opened).await,
            Self::Outside(name) => passthrough::bytes(&worker, io, &name).await,
        }
    }
}

/// What came of an upgrade at its endpoint.
enum Answered {
    Tunnel(Response<()>, carrier::Tunnel),
    Plain(Response<()>, TokioIo<hyper::upgrade::Upgraded>),
    Declined(Box<Response<ResponseBody>>),
}

impl Answered {
    /// What an application said that stays with HTTP.
    fn declined(&self) -> Option<&Response<ResponseBody>> {
        if let Self::Declined(response) = self { Some(response) } else { None }
    }

    /// As the client that asked is to have it.
    fn checked(self, offer: &Offer) -> Result<Self, Refused> {
        Ok(match self {
            Self::Tunnel(response, tunnel) => Self::Tunnel(offer.confirmed(response)?, tunnel),
            Self::Plain(response, io) => Self::Plain(offer.confirmed(response)?, io),
            Self::Declined(response) => {
                offer.declined(response.status())?;
                Self::Declined(response)
            }
        })
    }
}

/// The client's side of an upgrade: what it offers, and its connection, which becomes what it asks for.
pub struct Asking {
    /// What it offers.
    pub offer: Offer,
    /// The connection, once its answer is written.
    pub on_upgrade: OnUpgrade,
    /// Counts it.
    pub opened: Rc<Opened>,
}

/// An upgrade (WebSocket and others): the client is told 101 only once the application said so.
///
/// # Errors
/// When nobody but the sidecar can answer.
pub async fn upgrade(
    exchange: Exchange<'_>,
    mut parts: request::Parts,
    asking: Asking,
) -> Result<Response<ResponseBody>, Refused> {
    let Exchange { worker, destination, version, started } = exchange;
    let Asking { offer, on_upgrade, opened } = asking;
    let (method, uri) = (parts.method.clone(), parts.uri.clone());
    let mut record = Record::new(worker, &destination.service, method, uri, version, started);
    let decision = match decide(destination, &mut parts) {
        Ok(Routed::To(decision)) => decision,
        Ok(Routed::Answer(response)) => {
            record.status = Some(response.status());
            return Ok((*response).map(|body| body.with_record(record)));
        }
        Err(refused) => {
            record.refused(refused.reason);
            return Err(refused);
        }
    };
    let backend = decision.backend;
    record.routed(&backend.key, decision.route.map(|route| &route.name));
    if let Err(refused) = offer.suits(backend) {
        record.refused(refused.reason);
        return Err(refused);
    }
    let deadline = started + decision.request_timeout().unwrap_or(ANSWER_TIMEOUT);
    let tries = Tries::begin(worker, backend, decision.retry(), Some(deadline));
    let (answered, load) =
        match attempts(worker, backend, tries, &parts, &offer.protocols, deadline, &mut record).await {
            Ok(answered) => answered,
            Err(refused) => {
                record.refused(refused.reason);
                return Err(refused);
            }
        };
    let idle = backend.policy.idle_timeout;
    let answered = match answered.checked(&offer) {
        Ok(answered) => answered,
        Err(refused) => {
            record.refused(refused.reason);
            return Err(refused);
        }
    };
    match answered {
        Answered::Declined(mut response) => {
            decision.filter_response(&mut response);
            record.status = Some(response.status());
            Ok((*response).map(|body| body.with_load(load).with_record(record)))
        }
        // What follows a 101 is no longer this request, so its record ends here.
        Answered::Tunnel(response, tunnel) => {
            record.status = Some(response.status());
            let worker = Rc::clone(worker);
            tokio::task::spawn_local(async move {
                if let Some(io) = handed_over(on_upgrade).await {
                    carrier::both_ways(io, tunnel, bytes::Bytes::new(), idle, passed(&worker)).await;
                }
                drop((load, opened));
            });
            Ok(response.map(|()| ResponseBody::empty()))
        }
        Answered::Plain(response, upstream) => {
            record.status = Some(response.status());
            let worker = Rc::clone(worker);
            tokio::task::spawn_local(async move {
                if let Some(io) = handed_over(on_upgrade).await {
                    relay(io, upstream, bytes::Bytes::new(), idle, passed(&worker)).await;
                }
                drop((load, opened));
            });
            Ok(response.map(|()| ResponseBody::empty()))
        }
    }
}

/// Asks until an application has answered, as policy has it for any request: nothing of what an upgrade opens has
/// passed before its 101.
async fn attempts(
    worker: &Rc<Worker>,
    backend: &Arc<Backend>,
    mut tries: Tries<'_>,
    parts: &request::Parts,
    protocol: &HeaderValue,
    deadline: Instant,
    record: &mut Record,
) -> Result<(Answered, LoadGuard), Refused> {
    loop {
        let Picked { endpoint, mut load } = tries.pick()?;
        record.tried(endpoint.address, endpoint.identity.is_some());
        let sent_at = Instant::now();
        let asking = ask(worker, backend, &endpoint, parts.clone(), protocol);
        let answered = timeout_at(deadline, asking).await.unwrap_or_else(|_| Err(tries::late()));
        let (outcome, failure) = match &answered {
            Ok(answered) => (
                answered.declined().map_or(Outcome::Success, tries::outcome_of),
                answered.declined().and_then(tries::failure_in),
            ),
            Err(error) => (tries::outcome_after(error), Some(tries::failure_of(error))),
        };
        tries.judge(&endpoint, &mut load, outcome, sent_at.elapsed());
        if !(tries.ended(&parts.method, failure) && tries.granted()) {
            return match answered {
                Ok(answered) => Ok((answered, load)),
                Err(error) => Err(tries.refused(&endpoint, &error).after(tries.count())),
            };
        }
        // An answer not worth giving ends its stream before the pause.
        drop((answered, load));
        tries.pause(Some(endpoint.address)).await;
    }
}

/// Counts what passes between a client and its server.
pub fn passed(worker: &Worker) -> impl Fn(u64, u64) {
    |up, down| {
        worker.metrics.tcp_bytes(Direction::Outbound, Flow::ToServer, up);
        worker.metrics.tcp_bytes(Direction::Outbound, Flow::ToClient, down);
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
    backend: &Backend,
    endpoint: &Endpoint,
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
            plain::Upgrade::Switched(response, io) => Answered::Plain(switched(response), TokioIo::new(io)),
            plain::Upgrade::Declined(response) => {
                Answered::Declined(Box::new(response.map(ResponseBody::plain)))
            }
        }),
    }
}

/// A 101 as an HTTP/1 client wants it.
pub fn switched(mut response: Response<()>) -> Response<()> {
    response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
    response
}

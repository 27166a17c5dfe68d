//! An application's HTTP connection: every request on it, from its headers to its answer.
//!
//! The way of a request: [`answer`] here makes it well-formed and finds its destination; [`super::exchange`]
//! routes, balances, sends and judges; what the sidecar refuses leaves through [`super::answer`].

use std::{cell::Cell, convert::Infallible, pin::pin, rc::Rc, sync::Arc};

use http::{Method, Request, Response, Version};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    time::Instant,
};

use super::{
    answer::refuse,
    body::ResponseBody,
    exchange::{self, Exchange},
    passthrough,
    target::{HTTP_PORT, Name},
    tunnel::{self, Asking},
    websocket::{self, Offer},
};
use crate::{
    batch::{Batched, Habits, InTurns},
    detect::Rewind,
    meter::Metered,
    metrics::Direction,
    plain::{
        self, edge, hops,
        pace::{Pace, Paced, Stalled},
        parking,
        refusal::Form,
        settings,
    },
    reason::Reason,
    store::{Lookup, Slot},
    worker::{Opened, Worker},
};

/// The body of an application's request.
pub type ClientBody = Paced<Incoming>;

/// Whom the requests of a connection are for.
#[derive(Clone, Debug)]
pub enum Target {
    /// The connection was captured, or is a `--forward`: all go where it was going.
    Fixed(Arc<Slot>),
    /// Explicit mode: each request's authority says.
    Authority,
}

/// What holds for all requests of a connection.
struct Connection {
    worker: Rc<Worker>,
    target: Target,
    last_host: edge::LastHost,
    /// The destination of the request before, and as what it was asked for: clients mostly stay with one.
    last: Cell<Option<(Box<str>, Arc<Slot>)>>,
    /// A request's body stalled: the client is to take its requests to another connection.
    stalled: Notify,
    /// What an upgrade or a CONNECT makes of it holds this too.
    opened: Rc<Opened>,
}

impl Connection {
    fn new(worker: Rc<Worker>, target: Target, opened: Rc<Opened>) -> Rc<Self> {
        Rc::new(Self {
            worker,
            target,
            last_host: edge::LastHost::default(),
            last: Cell::new(None),
            stalled: Notify::new(),
            opened,
        })
    }
}

/// Serves HTTP/1 until either side closes, or the sidecar leaves; as long as an application likes to keep it.
pub async fn serve_http1<T>(worker: Rc<Worker>, io: Rewind<T>, target: Target, opened: Rc<Opened>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (drain, parking) = (worker.drain.clone(), Rc::clone(&worker.parking));
    let metrics = Arc::clone(&worker.metrics);
    let connection = Connection::new(worker, target, opened);
    let answer = move |request| answer(Rc::clone(&connection), request);
    if let Err(error) = parking::serve_http1(&parking, io, None, drain, answer).await {
        plain::count_unreadable(&metrics, Direction::Outbound, &error);
        tracing::debug!(%error, "an application's HTTP/1 connection ended");
    }
}

/// Serves HTTP/2 until either side closes, or the sidecar leaves.
pub async fn serve_http2<T>(worker: Rc<Worker>, io: T, target: Target, opened: Rc<Opened>)
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let drain = worker.drain.clone();
    let metrics = Arc::clone(&worker.metrics);
    let connection = Connection::new(worker, target, opened);
    let (io, turns) = Batched::new(io, Habits::default());
    let io = TokioIo::new(Metered::server(io, connection.worker.settings.stall_timeout));
    let of_requests = Rc::clone(&connection);
    let service = service_fn(move |request| {
        let connection = Rc::clone(&of_requests);
        async move { Ok::<_, Infallible>(answer(connection, request).await) }
    });
    let serving = settings::http2_server().enable_connect_protocol().serve_connection(io, service);
    let enough = connection.stalled.notified();
    let serving = InTurns::new(serving, turns);
    let ended = drain.drive(serving, enough, |serving| serving.get_pin_mut().graceful_shutdown()).await;
    if let Err(error) = ended {
        plain::count_unreadable(&metrics, Direction::Outbound, &error);
        tracing::debug!(%error, "an application's HTTP/2 connection ended");
    }
}

/// One request and what becomes of it.
fn answer(
    connection: Rc<Connection>,
    request: Request<Incoming>,
) -> impl Future<Output = Response<ResponseBody>> {
    // Looked at out here: a future that looks at what it passes on keeps room for it twice.
    let started = Instant::now();
    let version = request.version();
    let form = Form::of(request.method(), request.headers());
    async move {
        let mut response = match serve(&connection, request, started).await {
            Ok(response) => response,
            Err(refused) => {
                connection.worker.metrics.refused(Direction::Outbound, refused.reason);
                tracing::debug!(reason = %refused.reason, sentence = %refused.sentence, "refused");
                refuse(refused.reason, &refused.sentence, form)
            }
        };
        if version != Version::HTTP_2 {
            let (mut parts, body) = response.into_parts();
            edge::answer_to_http1(&mut parts);
            response = Response::from_parts(parts, body);
        }
        response
    }
}

/// Why a request got no answer from anybody but the sidecar.
#[derive(Debug)]
pub struct Refused {
    /// The word.
    pub reason: Reason,
    /// For whom, and what to do.
    pub sentence: String,
}

impl Refused {
    /// Puts word and sentence together.
    pub fn new(reason: Reason, sentence: impl Into<String>) -> Self {
        Self { reason, sentence: sentence.into() }
    }

    /// Says how often it was tried, where more than once.
    #[must_use]
    pub fn after(mut self, tries: u32) -> Self {
        if tries > 1 {
            self.sentence.push_str(&format!(" (after {tries} tries)"));
        }
        self
    }
}

impl From<edge::Malformed> for Refused {
    fn from(malformed: edge::Malformed) -> Self {
        Self::new(malformed.reason(), malformed.to_string())
    }
}

async fn serve(
    connection: &Rc<Connection>,
    mut request: Request<Incoming>,
    started: Instant,
) -> Result<Response<ResponseBody>, Refused> {
    let worker = &connection.worker;
    let version = request.version();
    // Taken before the headers that ask for it go.
    let on_upgrade = hyper::upgrade::on(&mut request);
    let (mut parts, body) = request.into_parts();
    let extended = websocket::extended_connect(&mut parts)?;
    let upgrade = edge::request(&mut parts, worker.settings.header_limit, &connection.last_host)
        .inspect_err(|malformed| {
            if malformed.reason() == Reason::HeadersTooLarge {
                worker.metrics.header_limit(Direction::Outbound);
            }
        })?;
    if let Some(answer) = hops::last(&parts.method, &mut parts.headers)? {
        return Ok(answer.map(|()| ResponseBody::empty()));
    }
    let offer = match (extended, upgrade) {
        (Some(extended), _) => Some(extended.offer(&mut parts)?),
        (None, upgrade) => upgrade.map(Offer::http1),
    };
    if parts.method == Method::CONNECT {
        // Where the destination is known already, CONNECT would lead past it.
        return match &connection.target {
            Target::Authority => {
                tunnel::connect(worker, &parts, on_upgrade, Rc::clone(&connection.opened)).await
            }
            Target::Fixed(slot) => {
                let sentence = format!("CONNECT to {}: a proxy's port must be declared as tcp", slot.name());
                Err(Refused::new(Reason::BadRequest, sentence))
            }
        };
    }
    let upgrade = offer.map(|offer| Asking { offer, on_upgrade, opened: Rc::clone(&connection.opened) });
    let (body, pace) = Paced::new(body, &parts.headers, worker.settings.stall_timeout);
    let slot = match &connection.target {
        Target::Fixed(slot) => Some(Arc::clone(slot)),
        Target::Authority => by_authority(connection, &parts.uri).await?,
    };
    match slot.as_ref().map(|slot| slot.load()) {
        Some(Lookup::Mesh(destination)) => {
            let exchange = Exchange { worker, destination: &destination, version, started };
            if let Some(asking) = upgrade {
                return tunnel::upgrade(exchange, parts, asking).await;
            }
            let answer = pin!(exchange::run(exchange, parts, body));
            Pace::watch(pace, answer).await.unwrap_or_else(|stalled| Err(give_up(connection, stalled)))
        }
        // Not of the mesh: where it would have gone without us.
        Some(Lookup::NotInMesh) | None => {
            let exchange = passthrough::Exchange { worker, version, started, slot };
            let answer = pin!(passthrough::http(exchange, parts, body, upgrade));
            Pace::watch(pace, answer).await.unwrap_or_else(|stalled| Err(give_up(connection, stalled)))
        }
    }
}

/// The client does not send the body that it promised. It is told so, and to come again on another connection: on HTTP/1
/// hyper closes this one, which is in the middle of a request.
fn give_up(connection: &Connection, stalled: Stalled) -> Refused {
    connection.stalled.notify_one();
    Refused::new(Reason::RequestStalled, stalled.to_string())
}

/// What a request's authority leads to; none: straight to DNS.
async fn by_authority(connection: &Connection, uri: &http::Uri) -> Result<Option<Arc<Slot>>, Refused> {
    let authority = uri.authority().ok_or_else(|| no_destination(uri))?;
    // Taken out and put back, so that nothing is borrowed while others wait.
    if let Some((asked, slot)) = connection.last.take()
        && *asked == *authority.as_str()
    {
        connection.last.set(Some((asked, Arc::clone(&slot))));
        return Ok(Some(slot));
    }
    let name = Name::of(authority, HTTP_PORT).map_err(|(reason, sentence)| Refused::new(reason, sentence))?;
    if name.dns_only {
        return Ok(None);
    }
    let slot = lookup(&connection.worker, &name.key).await?;
    // A copy: the authority may be a part of hyper's buffer, and would hold on to all of it.
    connection.last.set(Some((authority.as_str().into(), Arc::clone(&slot))));
    Ok(Some(slot))
}

/// What discovery knows of a name; waits for the answer when it is new.
pub async fn lookup(worker: &Worker, name: &str) -> Result<Arc<Slot>, Refused> {
    if let Some(slot) = worker.store.cached(name) {
        return Ok(slot);
    }
    worker
        .store
        .lookup(name)
        .await
        .map_err(|reason| Refused::new(reason, format!("the control plane has not said what {name} is")))
}

fn no_destination(uri: &http::Uri) -> Refused {
    Refused::new(Reason::NoDestination, format!("the request for {uri} names no host, and was not captured"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the future that a function of two arguments returns.
    fn future<A, B, R>(_: impl Fn(A, B) -> R) -> usize {
        size_of::<R>()
    }

    /// hyper keeps room for it on every HTTP/1 connection that is not parked.
    #[test]
    fn a_request_takes_less_than_eight_kib() {
        assert!(future(answer) <= 8 * 1024, "{}", future(answer));
    }
}

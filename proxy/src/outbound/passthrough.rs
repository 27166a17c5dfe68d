//! What is not of the mesh, and so goes where it would have gone without a sidecar.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use http::{HeaderValue, Request, Response, StatusCode, Version, request};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::Instant};

use super::{
    body::{RequestBody, ResponseBody},
    http::{ClientBody, Refused},
    record::Record,
    refuse,
    send::speaks_http2,
    target::{HTTP_PORT, Name},
    tunnel::{handed_over, passed, switched},
};
use crate::{
    carrier::{SendError, copy::Socket},
    config::{AppProtocol, Policy},
    plain::{PlainVersion, Upgrade, dial, edge},
    reason::Reason,
    relay::relay,
    store::Slot,
    worker::Worker,
};

/// Addresses of one name that are tried before it is given up.
const ADDRESSES: usize = 4;
/// Of one connection's making.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a request brings with it besides itself.
pub struct Exchange<'a> {
    /// Who serves it.
    pub worker: &'a Rc<Worker>,
    /// What the client spoke.
    pub version: Version,
    /// When its headers had come.
    pub started: Instant,
    /// The name that discovery does not know; none: it was not asked, and the authority says.
    pub slot: Option<Arc<Slot>>,
}

/// Bytes to a name or address outside the mesh.
pub async fn bytes<T: Socket>(worker: &Rc<Worker>, io: T, name: &str) {
    match connect(worker, name).await {
        Ok(upstream) => {
            let idle = Policy::default().idle_timeout;
            let relayed = relay(io, upstream, bytes::Bytes::new(), idle).await;
            passed(worker, relayed.forth, relayed.back);
        }
        Err(refused) => refuse(worker, io, refused.reason, &refused.sentence),
    }
}

/// A request to a host outside the mesh.
///
/// # Errors
/// When the host is unknown, cannot be reached, or does not answer in HTTP.
pub async fn http(
    exchange: Exchange<'_>,
    parts: request::Parts,
    body: ClientBody,
    upgrade: Option<HeaderValue>,
    on_upgrade: OnUpgrade,
) -> Result<Response<ResponseBody>, Refused> {
    let Exchange { worker, version, started, .. } = exchange;
    let (method, uri) = (parts.method.clone(), parts.uri.clone());
    let mut record = Record::new(worker, &worker.outside, method, uri, version, started);
    let answered = send(&exchange, parts, body, upgrade, on_upgrade, &mut record).await;
    match answered {
        Ok(response) => {
            record.status = Some(response.status());
            // What follows a 101 is no longer this request.
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                return Ok(response);
            }
            Ok(response.map(|body| body.with_record(record)))
        }
        Err(refused) => {
            record.refused(refused.reason);
            Err(refused)
        }
    }
}

async fn send(
    exchange: &Exchange<'_>,
    parts: request::Parts,
    body: ClientBody,
    upgrade: Option<HeaderValue>,
    on_upgrade: OnUpgrade,
    record: &mut Record,
) -> Result<Response<ResponseBody>, Refused> {
    let worker = exchange.worker;
    let found = match &exchange.slot {
        Some(slot) => addresses(worker, slot.name()).await?,
        None => {
            let authority = parts.uri.authority();
            let authority =
                authority.ok_or_else(|| Refused::new(Reason::NoDestination, "the request names no host"))?;
            let name = Name::of(authority, HTTP_PORT)
                .map_err(|(reason, sentence)| Refused::new(reason, sentence))?;
            addresses(worker, &name.key).await?
        }
    };
    if let Some(protocol) = upgrade {
        let ask = async |address| {
            let request = Request::from_parts(parts.clone(), ());
            worker.plain.upgrade(address, request, &protocol, CONNECT_TIMEOUT).await
        };
        return Ok(match first_that_takes(&found, record, ask).await? {
            Upgrade::Declined(response) => response.map(ResponseBody::plain),
            Upgrade::Switched(response, upstream) => {
                let worker = Rc::clone(worker);
                tokio::task::spawn_local(async move {
                    if let Some(io) = handed_over(on_upgrade).await {
                        let idle = Policy::default().idle_timeout;
                        let relayed = relay(io, TokioIo::new(upstream), bytes::Bytes::new(), idle).await;
                        passed(&worker, relayed.forth, relayed.back);
                    }
                });
                switched(response, &protocol).map(|()| ResponseBody::empty())
            }
        });
    }
    let http2 = speaks_http2(AppProtocol::Detect, exchange.version, edge::is_grpc(&parts.headers));
    let version = if http2 { PlainVersion::Http2 } else { PlainVersion::Http1 };
    let mut left = found.len().min(ADDRESSES);
    let mut next = Some((parts, RequestBody::new(body, left > 1, Vec::new())));
    let ask = async |address| {
        // Nothing was read of what could not be sent.
        let (parts, body) = next.take().expect("a body of which nothing was read can be sent again");
        left -= 1;
        if left > 0 {
            next = body.again().map(|body| (parts.clone(), body));
        }
        let request = Request::from_parts(parts, body);
        worker.plain.send(address, version, request, CONNECT_TIMEOUT).await
    };
    Ok(first_that_takes(&found, record, ask).await?.map(ResponseBody::plain))
}

/// Asks one address after the other, as long as none can be connected to.
async fn first_that_takes<T>(
    found: &[SocketAddr],
    record: &mut Record,
    mut ask: impl AsyncFnMut(SocketAddr) -> Result<T, SendError>,
) -> Result<T, Refused> {
    let mut last = Refused::new(Reason::UnknownHost, "it has no address");
    for &address in found.iter().take(ADDRESSES) {
        record.tried(address, false);
        match ask(address).await {
            Ok(answer) => return Ok(answer),
            Err(error) => {
                last = Refused::new(error.reason, format!("at {address}: {}", error.source));
                if !matches!(error.reason, Reason::ConnectFailed | Reason::ConnectTimeout) {
                    break;
                }
            }
        }
    }
    Err(last)
}

/// Where a `host:port` is: an address as it stands, a name by DNS. At least one.
async fn addresses(worker: &Worker, name: &str) -> Result<Vec<SocketAddr>, Refused> {
    let unknown = |sentence: String| Refused::new(Reason::UnknownHost, sentence);
    let found = match name.parse() {
        Ok(address) => vec![address],
        Err(_) => {
            let (host, port) = name.rsplit_once(':').ok_or_else(|| unknown(format!("{name} has no port")))?;
            let port = port.parse().map_err(|_| unknown(format!("{name} has no port")))?;
            worker.resolver.resolve(host, port).await.map_err(unknown)?
        }
    };
    match found.iter().find(|address| worker.settings.is_own_port(**address)) {
        Some(own) => Err(Refused::new(Reason::OwnPort, format!("{name} is {own}, the sidecar itself"))),
        None => Ok(found),
    }
}

/// A connection to the first address that takes one.
async fn connect(worker: &Worker, name: &str) -> Result<TcpStream, Refused> {
    let mut last = Refused::new(Reason::UnknownHost, format!("{name} has no address"));
    for address in addresses(worker, name).await?.into_iter().take(ADDRESSES) {
        match dial::connect(address, CONNECT_TIMEOUT).await {
            Ok(io) => return Ok(io),
            Err(error) => last = Refused::new(error.reason, format!("{name} at {}", error.source)),
        }
    }
    Err(last)
}
